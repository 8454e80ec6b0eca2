//! Scratches of others: what overlayfs and fuse-overlayfs have made is mounted, and what was made
//! here is mounted by overlayfs.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{OFlags, RenameFlags, XattrFlags, lsetxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::common::*;

/// A lower directory, an upper directory, and places to mount them on.
struct Layers {
    dir: TestDir,
}

impl Layers {
    fn new() -> Layers {
        let dir = TestDir::new();
        for name in ["lower", "scratch", "other", "run", "state"] {
            open_to_all(&dir.directory(name));
        }
        for name in ["scratch/upper", "scratch/work"] {
            open_to_all(&dir.directory(name));
        }
        let layers = Layers { dir };
        fill(&layers.at("lower"));
        layers
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn scratch(&self) -> MountedFs {
        let options =
            format!("access=copy,allow_other,suid,dev,scratch={}", self.at("scratch").display());
        let (run, state) = (self.at("run"), self.at("state"));
        let places = [("MMAPFS_RUN_DIR", run.as_path()), ("MMAPFS_STATE_DIR", state.as_path())];
        MountedFs::over_with(&self.at("lower"), &options, &places)
    }

    /// The kernel's overlayfs of the two directories; None where it cannot be mounted so.
    fn overlayfs(&self, options: &str) -> Option<Others> {
        let data = format!(
            "lowerdir={},upperdir={},workdir={},{options}",
            self.at("lower").display(),
            self.at("scratch/upper").display(),
            self.at("scratch/work").display()
        );
        let data = CString::new(data).unwrap();
        let place = self.at("other");
        match mount("overlay", &place, "overlay", MountFlags::empty(), data.as_c_str()) {
            Ok(()) => Some(Others(place)),
            Err(err) => {
                eprintln!("SKIPPED: overlayfs with {options}: {err}");
                None
            }
        }
    }

    /// The same by fuse-overlayfs.
    fn fuse_overlayfs(&self) -> Option<Others> {
        let place = self.at("other");
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.at("lower").display(),
            self.at("scratch/upper").display(),
            self.at("scratch/work").display()
        );
        let output = Command::new("fuse-overlayfs").args(["-o", &data]).arg(&place).output();
        match output {
            Ok(output) if output.status.success() => Some(Others(place)),
            other => {
                eprintln!("SKIPPED: fuse-overlayfs: {other:?}");
                None
            }
        }
    }
}

/// A mount of another program, until the end.
struct Others(PathBuf);

impl Drop for Others {
    fn drop(&mut self) {
        // fuse-overlayfs writes until it has ended.
        if let Err(err) = unmount(&self.0, UnmountFlags::empty()) {
            eprintln!("{}: cannot unmount: {err}", self.0.display());
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

fn fill(base: &Path) {
    for dir in ["dir", "dir/below", "removed", "removed/deep", "again", "moved", "moved/in"] {
        fs::create_dir(base.join(dir)).unwrap();
    }
    for (name, len) in [
        ("file", 10_000),
        ("large", 300_000),
        ("gone", 100),
        ("attributes", 200_000),
        ("renamed", 150_000),
        ("dir/file", 5000),
        ("dir/gone", 5),
        ("dir/below/file", 70_000),
        ("removed/deep/file", 7),
        ("again/old", 8),
        ("moved/file", 140_000),
        ("moved/in/file", 9),
    ] {
        fs::write(base.join(name), pattern(len)).unwrap();
    }
    symlink("file", base.join("link")).unwrap();
}

/// Changes of all kinds; `all` with renames of directories and files of which nothing is written.
fn change(root: &Path, all: bool) {
    let at = |name: &str| root.join(name);
    fs::write(at("new"), b"new").unwrap();
    fs::write(at("file"), b"written anew").unwrap();
    fs::write(at("dir/file"), pattern(6000)).unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::remove_file(at("dir/gone")).unwrap();
    fs::remove_dir_all(at("removed")).unwrap();
    fs::remove_dir_all(at("again")).unwrap();
    fs::create_dir(at("again")).unwrap();
    fs::write(at("again/new"), b"in the new one").unwrap();
    fs::create_dir_all(at("fresh/deep")).unwrap();
    fs::write(at("fresh/deep/file"), pattern(20_000)).unwrap();
    fs::hard_link(at("new"), at("fresh/second name")).unwrap();
    symlink("fresh", at("new link")).unwrap();
    fs::remove_file(at("link")).unwrap();
    set_mode(at("dir/below"), 0o700);
    lsetxattr(at("new"), "user.key", b"value", XattrFlags::empty()).unwrap();
    let whole = open(at("large"), OFlags::WRONLY | OFlags::TRUNC).unwrap();
    whole.write_all_at(&pattern(310_000), 0).unwrap();
    if all {
        set_mode(at("attributes"), 0o640);
        fs::rename(at("moved"), at("dir/arrived")).unwrap();
        fs::rename(at("dir/arrived/in"), at("out")).unwrap();
        fs::write(at("dir/arrived/new"), b"in a moved one").unwrap();
        fs::remove_file(at("out/file")).unwrap();
        fs::rename(at("renamed"), at("dir/below/other name")).unwrap();
        set_mode(at("dir/below/file"), 0o600);
    }
}

/// What a mount shows, without the marks: overlayfs shows those of other kinds.
#[track_caller]
fn shown(root: &Path) -> Tree {
    let marks = ["trusted.overlay.", "user.overlay.", "trusted.mmapfs.", "user.mmapfs."];
    snapshot(root).without_xattrs(&marks)
}

/// Everything that both are to show in the same way.
#[track_caller]
fn assert_same_tree(one: &Tree, other: &Tree) {
    one.assert_same(other, Scope::MergedHistory);
}

#[test]
fn overlayfs_shows_what_was_written_in_a_scratch() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for options in ["userxattr", "redirect_dir=on,metacopy=off"] {
        let layers = Layers::new();
        let scratch = layers.scratch();
        change(scratch.path(), false);
        let expected = shown(scratch.path());
        scratch.unmount();
        let Some(other) = layers.overlayfs(options) else { continue };
        assert_same_tree(&shown(&other.0), &expected);
        drop(other);
        // And back, with what overlayfs has changed in it.
        let Some(other) = layers.overlayfs(options) else { continue };
        fs::write(other.0.join("by overlayfs"), b"new").unwrap();
        fs::remove_file(other.0.join("fresh/deep/file")).unwrap();
        fs::remove_dir_all(other.0.join("dir/below")).unwrap();
        let expected = shown(&other.0);
        drop(other);
        assert_same_tree(&shown(layers.scratch().path()), &expected);
    }
}

#[test]
fn what_overlayfs_has_made_is_mounted_as_a_scratch() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (options, all) in [
        ("userxattr", false),
        ("redirect_dir=off,metacopy=off,index=off", false),
        ("redirect_dir=on,metacopy=off,index=off", true),
        ("redirect_dir=on,metacopy=on,index=off", true),
        ("redirect_dir=on,metacopy=on,index=on", true),
    ] {
        eprintln!("-- {options}");
        let layers = Layers::new();
        let Some(other) = layers.overlayfs(options) else { continue };
        change(&other.0, all);
        let expected = shown(&other.0);
        drop(other);
        goes_on_in_a_scratch(&layers, &expected);
    }
}

/// Mounts what another has made, looks at it, changes it, and mounts it again.
#[track_caller]
fn goes_on_in_a_scratch(layers: &Layers, expected: &Tree) {
    let scratch = layers.scratch();
    assert_same_tree(&shown(scratch.path()), expected);
    let at = |name: &str| scratch.path().join(name);
    create(at("attributes")).write_all_at(b"changed", 5000).unwrap();
    create(at("dir/below/file")).write_all_at(b"changed", 5000).unwrap();
    fs::rename(at("dir"), at("dir again")).unwrap();
    let exchange = RenameFlags::EXCHANGE;
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, at("again"), cwd, at("fresh"), exchange).unwrap();
    let mut changed = pattern(70_000);
    changed[5000..5007].copy_from_slice(b"changed");
    assert_content(at("dir again/below/file"), &changed);
    let expected = shown(scratch.path());
    scratch.unmount();
    shown(layers.scratch().path()).assert_same(&expected, Scope::MergedHistory);
}

#[test]
fn what_fuse_overlayfs_has_made_is_mounted_as_a_scratch() {
    if !(require_fuse() && require_root() && require_program("fuse-overlayfs")) {
        return;
    }
    let layers = Layers::new();
    let Some(other) = layers.fuse_overlayfs() else { return };
    change(&other.0, false);
    // A rename of a directory is a copy there.
    let expected = shown(&other.0);
    drop(other);
    // It writes until it has ended.
    let free = || fs::File::create(layers.at("other/probe")).is_ok();
    wait_for("the mount point to be free", free);
    goes_on_in_a_scratch(&layers, &expected);
}
