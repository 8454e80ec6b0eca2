//! Sources that are not one plain filesystem: other filesystems mounted inside, links out of it,
//! mounts of mounts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use common::*;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs mounted inside of a source, unmounted at the end.
struct Inside(PathBuf);

impl Inside {
    fn new(at: &Path) -> Inside {
        fs::create_dir(at).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), c"size=8m").unwrap();
        Inside(at.to_owned())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Two filesystems of one kind give their files the same numbers.
fn fill(dir: &Path, what: &str) {
    for index in 0..10 {
        fs::write(dir.join(format!("{index}")), format!("{what} {index}")).unwrap();
    }
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/file"), what).unwrap();
}

#[test]
fn files_of_another_filesystem_inside_are_other_files_with_the_same_number() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let outer = SmallFs::tmpfs(8 << 20);
    fill(outer.path(), "outer");
    let (one, two) = (outer.path().join("one"), outer.path().join("two"));
    let _mounts = (Inside::new(&one), Inside::new(&two));
    fill(&one, "one");
    fill(&two, "two");
    assert_eq!(inode(one.join("3")), inode(two.join("3")), "the test needs a collision");
    let mounted = MountedFs::over(outer.path(), "access=write");
    let at = |name: &str| mounted.path().join(name);
    let open: Vec<(File, &str)> = [("", "outer"), ("one/", "one"), ("two/", "two")]
        .map(|(dir, what)| (create(at(&format!("{dir}3"))), what))
        .into();
    for (dir, what) in [("", "outer"), ("one", "one"), ("two", "two")] {
        for index in 0..10 {
            let name = format!("{dir}/{index}");
            assert_content(at(name.trim_start_matches('/')), format!("{what} {index}").as_bytes());
        }
        assert_content(
            at(&format!("{dir}/d/file")[usize::from(dir.is_empty())..]),
            what.as_bytes(),
        );
    }
    for (file, what) in &open {
        assert_bytes(&read_at(file, 0, what.len()), what.as_bytes());
        file.write_all_at(b"X", 0).unwrap();
    }
    assert_content(one.join("3"), b"Xne 3");
    assert_content(two.join("3"), b"Xwo 3");
    assert_content(outer.path().join("3"), b"Xuter 3");
    for (from, to) in [("1", "one/new"), ("one/1", "two/new"), ("two/1", "new")] {
        assert_eq!(error(fs::rename(at(from), at(to))), Errno::XDEV);
        assert_eq!(error(fs::hard_link(at(from), at(to))), Errno::XDEV);
    }
    assert_eq!(error(fs::remove_dir(at("one"))), Errno::BUSY);
    fs::remove_dir_all(at("one/d")).unwrap();
    assert!(outer.path().join("d/file").exists() && two.join("d/file").exists());
    drop(open);
    let seen = snapshot(mounted.path());
    seen.assert_same(&snapshot(outer.path()), Scope::History);
}

#[test]
fn a_filesystem_that_comes_and_goes_below_is_followed() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let outer = SmallFs::tmpfs(8 << 20);
    let place = outer.path().join("place");
    let mounted = MountedFs::over(outer.path(), "access=write,attr_timeout=0,entry_timeout=0");
    let inside = Inside::new(&place);
    fs::write(place.join("file"), b"inside").unwrap();
    assert_content(mounted.path().join("place/file"), b"inside");
    drop(inside);
    assert_eq!(names(mounted.path().join("place")), Vec::<String>::new());
    fs::write(mounted.path().join("place/file"), b"outer").unwrap();
    assert_content(place.join("file"), b"outer");
}

#[test]
fn a_link_out_of_the_source_is_the_clients_to_follow() {
    if !require_fuse() {
        return;
    }
    let outside = TestDir::new();
    fs::write(outside.path().join("file"), b"outside").unwrap();
    let mounted = MountedFs::new("access=write");
    symlink(outside.path().join("file"), mounted.path().join("absolute")).unwrap();
    symlink("../../..", mounted.path().join("upward")).unwrap();
    assert_content(mounted.path().join("absolute"), b"outside");
    assert_eq!(fs::read_link(mounted.backing().join("upward")).unwrap(), Path::new("../../.."));
    assert!(fs::metadata(mounted.path().join("upward")).unwrap().is_dir());
    set_mode(outside.path().join("file"), 0o640);
    let link = fs::symlink_metadata(mounted.path().join("absolute")).unwrap();
    assert!(link.is_symlink());
    // An operation on the link itself leaves what it points at.
    std::os::unix::fs::lchown(mounted.path().join("absolute"), None, None).unwrap();
    fs::remove_file(mounted.path().join("absolute")).unwrap();
    assert_content(outside.path().join("file"), b"outside");
}

#[test]
fn a_link_that_leads_back_into_the_mount_does_not_hang_it() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,threads=1,attr_timeout=0,entry_timeout=0");
    let (mount, backing) = (mounted.path(), mounted.backing());
    fs::write(mount.join("file"), b"x").unwrap();
    symlink(mount.join("file"), backing.join("back")).unwrap();
    symlink(mount, backing.join("root")).unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    assert_content(mount.join("back"), b"x");
    assert_content(mount.join("root/root/root/back"), b"x");
    std::os::unix::fs::lchown(mount.join("back"), None, None).unwrap();
    let _ = xattr_names(mount.join("back"));
    let _ = xattr(mount.join("back"), "user.x");
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 2 },
        last_modification: rustix::fs::Timespec { tv_sec: 3, tv_nsec: 4 },
    };
    let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, mount.join("back"), &times, nofollow).unwrap();
    fs::hard_link(mount.join("back"), mount.join("d/back")).unwrap();
    ask(mount, "status back");
    ask(mount, "advise willneed back");
    ask(mount, "advise willneed root/file");
    fs::rename(mount.join("back"), mount.join("d/again")).unwrap();
    assert_eq!(names(mount.join("d")), ["again", "back"]);
}

#[test]
fn a_mount_of_a_mount_works() {
    if !require_fuse() {
        return;
    }
    let lower = MountedFs::new("access=write");
    let upper = MountedFs::over(lower.path(), "access=write");
    fs::create_dir(upper.path().join("d")).unwrap();
    let bytes = pattern(300_000);
    fs::write(upper.path().join("d/file"), &bytes).unwrap();
    assert_content(lower.backing().join("d/file"), &bytes);
    let file = create(upper.path().join("d/file"));
    file.write_all_at(b"through both", 4090).unwrap();
    assert_eq!(read_at(&create(lower.path().join("d/file")), 4090, 12), b"through both");
    file.sync_all().unwrap();
    let lowest = File::open(lower.backing().join("d/file")).unwrap();
    assert_eq!(read_at(&lowest, 4090, 12), b"through both");
    drop(lowest);
    fs::rename(upper.path().join("d"), upper.path().join("e")).unwrap();
    fs::remove_file(upper.path().join("e/file")).unwrap();
    assert_eq!(read_at(&file, 4090, 12), b"through both");
    drop(file);
    snapshot(upper.path()).assert_same(&snapshot(lower.backing()), Scope::History);
}

#[test]
fn places_with_odd_names_are_served() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    for name in ["with blank", "with,comma", "back\\slash", "new\nline", "\u{e9}t\u{e9}"] {
        let source = dir.directory(name);
        fs::write(source.join("file"), name).unwrap();
        let mounted = MountedFs::over(&source, "access=write");
        assert_content(mounted.path().join("file"), name.as_bytes());
        let report = ask(mounted.path(), "json status").json();
        assert_eq!(report["source"], source.to_str().unwrap());
    }
}
