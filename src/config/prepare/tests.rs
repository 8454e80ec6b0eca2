use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::config::options::Unknown;
use crate::error::FailureKind;
use crate::shown::Show;

/// `src/` with a directory and a file in it, an empty `mnt/`, and a file `one` beside them.
fn places() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let root = dir.path().canonicalize().unwrap();
    for name in ["src/sub", "mnt"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["src/file", "one", "two"] {
        fs::write(root.join(name), "x").unwrap();
    }
    (dir, root)
}

fn prepare(source: &Path, mountpoint: &Path, options: &str) -> Result<MountConfig, Failure> {
    let options = MountOptions::parse([options], Unknown::Refused).unwrap();
    MountConfig::prepare(source, mountpoint, options)
}

fn failure(source: &Path, mountpoint: &Path, options: &str) -> Failure {
    prepare(source, mountpoint, options).unwrap_err()
}

/// Whether this machine can pass the checks that come after those of the places.
fn fuse() -> bool {
    let there = Path::new(DEVICE).exists();
    if !there {
        assert!(std::env::var_os("MMAPFS_REQUIRE_FUSE").is_none(), "{DEVICE} is missing");
        eprintln!("skipped: {DEVICE} is missing");
    }
    there
}

#[test]
fn paths_become_absolute_and_lose_their_links() {
    let (_dir, root) = places();
    if !fuse() {
        return;
    }
    symlink("src", root.join("link")).unwrap();
    let config = prepare(&root.join("link/."), &root.join("src/../mnt"), "").unwrap();
    assert_eq!((config.source, config.mountpoint), (root.join("src"), root.join("mnt")));
    assert_eq!(config.kernel.fsname, root.join("src"));
    assert_eq!(
        (config.source_kind, config.mountpoint_kind),
        (SourceKind::Directory, SourceKind::Directory)
    );
    assert_eq!(config.control, ControlVisibility::Hidden);
}

#[test]
fn a_mount_is_read_only_when_nothing_in_it_can_be_written() {
    let (_dir, root) = places();
    if !fuse() {
        return;
    }
    let rules = root.join("rules.toml");
    fs::write(&rules, "[[rule]]\nmatch = \"*.db\"\naccess = \"write\"\n").unwrap();
    let with_rules = format!("access=read,rules={}", rules.shown());
    for (options, read_only) in [
        ("", false),
        ("ro", true),
        ("access=read", true),
        ("access=read,rw", true),
        (&with_rules, false),
    ] {
        let config = prepare(&root.join("src"), &root.join("mnt"), options).unwrap();
        assert_eq!(config.kernel.read_only, read_only, "{options}");
        let by_kernel = options.split(',').any(|option| option == "ro");
        assert_eq!(config.kernel.flags.contains(MountFlags::RDONLY), by_kernel, "{options}");
    }
}

#[test]
fn a_file_can_be_served_on_a_directory_and_on_a_file() {
    let (_dir, root) = places();
    if !fuse() {
        return;
    }
    let config = prepare(&root.join("one"), &root.join("mnt"), "").unwrap();
    assert_eq!(
        (config.source_kind, config.mountpoint_kind),
        (SourceKind::File, SourceKind::Directory)
    );
    assert_eq!(config.control, ControlVisibility::Hidden);
    let config = prepare(&root.join("one"), &root.join("two"), "control=visible").unwrap();
    assert_eq!((config.source_kind, config.mountpoint_kind), (SourceKind::File, SourceKind::File));
    assert_eq!(config.control, ControlVisibility::Off);
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let (_dir, root) = places();
    symlink("src/sub", root.join("inside")).unwrap();
    for (source, mountpoint, reason) in [
        ("missing", "mnt", "missing: the source cannot be served: No such file"),
        ("src", "missing", "missing: it cannot be mounted on: No such file"),
        ("src", "src", "src: it is the source itself"),
        ("one", "one", "one: it is the source itself"),
        ("src", "inside", "src/sub: it lies inside the source"),
        ("src/sub", "src", "lies inside it"),
        ("src/file", "src", "lies inside it"),
        ("src", "one", "one: it is a file"),
    ] {
        let failure = failure(&root.join(source), &root.join(mountpoint), "");
        assert_eq!(failure.kind, FailureKind::Failed);
        let line = failure.to_string();
        assert!(line.contains(reason) && !line.contains('\n'), "{source} {mountpoint}: {line}");
    }
}

#[test]
fn devices_are_neither_served_nor_mounted_on() {
    let (_dir, root) = places();
    let null = Path::new("/dev/null");
    assert!(failure(null, &root.join("mnt"), "").to_string().contains("can be served"));
    assert!(failure(&root.join("one"), null, "").to_string().contains("can be mounted on"));
}

#[test]
fn options_that_do_not_fit_each_other_are_usage_errors() {
    let (_dir, root) = places();
    for (options, reason) in [
        ("access=read,flags=shared", "options `access=read,flags=shared`: access=read decides"),
        ("access=copy,prot=rw", "options `access=copy,prot=rw`: access=copy decides"),
        ("scratch=s", "option `scratch=`: it goes with access=copy"),
        ("access=write,scratch_max=1G", "option `scratch_max=`: it goes with access=copy"),
        ("access=read,copy_up=0", "option `copy_up=`: it goes with access=copy"),
        ("share", "option `share`: it goes with access=copy"),
        ("rebase", "option `rebase`: it goes with access=copy"),
        ("access=copy,rebase", "option `rebase`: it goes with scratch="),
        ("advice=remove", "advice=remove"),
    ] {
        let failure = failure(&root.join("src"), &root.join("mnt"), options);
        assert_eq!(failure.kind, FailureKind::Usage);
        assert!(failure.to_string().contains(reason), "{failure}");
    }
}

#[test]
fn a_mistake_in_the_rules_names_its_line() {
    let (_dir, root) = places();
    let rules = root.join("rules.toml");
    fs::write(&rules, "[[rule]]\nmatch = \"a\"\nacess = \"read\"\n").unwrap();
    let options = format!("rules={}", rules.shown());
    let failure = failure(&root.join("src"), &root.join("mnt"), &options);
    assert_eq!(failure.kind, FailureKind::Usage);
    assert!(failure.to_string().contains("rules.toml:3: "), "{failure}");
}

#[test]
fn a_missing_fuse_device_says_what_to_do() {
    let (_dir, root) = places();
    let failure = fuse_is_there(&root.join("fuse")).unwrap_err();
    assert!(failure.to_string().contains("modprobe fuse"));
}
