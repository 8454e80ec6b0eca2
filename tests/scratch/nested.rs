//! Overlays of others whose upper directory is in a scratch: their attributes and their whiteouts
//! are the user's, and told apart from those of the scratch.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{
    CWD, FileType, Mode, RenameFlags, XattrFlags, lremovexattr, lsetxattr, mknodat, renameat_with,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::common::*;
use super::kept::Kept;

/// Names that a scratch has a use of its own for.
const RESERVED: [&str; 7] = [
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "trusted.overlay.overlay.metacopy",
    "trusted.mmapfs.ino",
    "user.overlay.opaque",
    "user.mmapfs.mmapfs.pages",
    "user.fuseoverlayfs.opaque",
];

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn set_reserved(path: &Path) {
    RESERVED.iter().for_each(|name| set(path, name, name.as_bytes()));
}

#[track_caller]
fn assert_has_reserved(path: &Path) {
    let mut expected: Vec<String> = RESERVED.map(String::from).into();
    expected.sort();
    let mut names = xattr_names(path).unwrap();
    names.sort();
    assert_eq!(names, expected, "{}", path.display());
    for name in RESERVED {
        assert_eq!(xattr(path, name).unwrap(), name.as_bytes(), "{} {name}", path.display());
    }
}

#[test]
fn attributes_of_a_user_with_reserved_names_are_kept_and_mean_nothing_to_the_scratch() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("copy_up=0", |base| {
        for dir in ["dir", "marked"] {
            fs::create_dir(base.join(dir)).unwrap();
            fs::write(base.join(dir).join("file"), pattern(100_000)).unwrap();
        }
        for path in ["", "marked", "marked/file"] {
            set_reserved(&base.join(path)); // A base that is itself an upper directory.
        }
    });
    kept.with_base_untouched(|kept| {
        fs::write(kept.at("new"), b"new").unwrap();
        fs::create_dir(kept.at("made")).unwrap();
        for path in ["dir", "dir/file", "new", "made"] {
            set_reserved(&kept.at(path));
        }
        let all = ["", "marked", "marked/file", "dir", "dir/file", "new", "made"];
        let check = |kept: &Kept| {
            all.iter().for_each(|path| assert_has_reserved(&kept.at(path)));
            assert_eq!(names(kept.at("dir")), ["file"]);
            assert_eq!(names(kept.at("marked")), ["file"]);
            assert_content(kept.at("dir/file"), &pattern(100_000));
            assert_content(kept.at("marked/file"), &pattern(100_000));
        };
        check(kept);
        set_mode(kept.at("marked/file"), 0o600); // Copied up.
        check(kept);
        kept.remount();
        check(kept);
        for name in RESERVED {
            lremovexattr(kept.at("marked/file"), name).unwrap();
            assert_eq!(lremovexattr(kept.at("marked/file"), name), Err(Errno::NODATA));
            assert_eq!(xattr(kept.at("marked/file"), name), Err(Errno::NODATA));
        }
        kept.remount();
        assert_eq!(xattr_names(kept.at("marked/file")).unwrap(), [] as [&str; 0]);
        assert_content(kept.at("marked/file"), &pattern(100_000));
    });
}

#[track_caller]
fn assert_is_whiteout(path: &Path) {
    let found = path.symlink_metadata().unwrap();
    assert!(found.file_type().is_char_device(), "{}", path.display());
    assert_eq!((found.rdev(), found.permissions().mode() & 0o7777), (0, 0), "{}", path.display());
}

#[test]
fn a_rename_leaves_the_whiteout_that_it_is_asked_for() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("copy_up=0", |base| {
        for dir in ["dir", "other", "moved", "gone"] {
            fs::create_dir(base.join(dir)).unwrap();
            fs::write(base.join(dir).join("file"), dir).unwrap();
        }
    });
    kept.with_base_untouched(|kept| {
        fs::write(kept.at("new"), b"new").unwrap();
        fs::remove_dir_all(kept.at("gone")).unwrap();
        let leave = |from: &str, to: &str| {
            let flags = RenameFlags::WHITEOUT;
            renameat_with(CWD, kept.at(from), CWD, kept.at(to), flags).unwrap();
        };
        leave("dir/file", "arrived");
        leave("new", "other/file");
        leave("moved", "gone"); // A directory in the place of a whiteout of the scratch.
        leave("gone", "moved again");
        for _ in 0..2 {
            for name in ["dir/file", "new", "moved", "gone"] {
                assert_is_whiteout(&kept.at(name));
            }
            assert_eq!(names(kept.at("dir")), ["file"]);
            assert_eq!(fs::read(kept.at("arrived")).unwrap(), b"dir");
            assert_eq!(fs::read(kept.at("other/file")).unwrap(), b"new");
            assert_eq!(fs::read(kept.at("moved again/file")).unwrap(), b"moved");
            kept.remount();
        }
        fs::remove_file(kept.at("dir/file")).unwrap();
        assert_eq!(names(kept.at("dir")).len(), 0);
        kept.remount();
        assert_eq!(names(kept.at("dir")).len(), 0);
    });
}

#[test]
fn a_rename_that_a_killed_daemon_had_begun_leaves_its_whiteout_or_has_not_happened() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("copy_up=0", |base| fs::write(base.join("lower"), b"lower").unwrap());
    for name in ["renamed", "stays"] {
        fs::write(kept.at(name), b"upper").unwrap();
    }
    kept.unmount();
    // The devices are made, and one of the two files is renamed.
    let upper = kept.scratch().join("upper");
    for (at, place) in ["renamed", "stays", "../work/x"].iter().enumerate() {
        let device = upper.join(format!(".mmapfs-tmp-{at:x}"));
        let kind = FileType::CharacterDevice;
        mknodat(CWD, &device, kind, Mode::empty(), rustix::fs::makedev(0, 1)).unwrap();
        set(&device, "trusted.mmapfs.null", b"");
        set(&device, "trusted.mmapfs.place", place.as_bytes());
    }
    let flags = RenameFlags::WHITEOUT;
    renameat_with(CWD, upper.join("renamed"), CWD, upper.join("lower"), flags).unwrap();
    kept.mount();
    let mut found = names(kept.root());
    found.sort();
    assert_eq!(found, ["lower", "renamed", "stays"]);
    assert_is_whiteout(&kept.at("renamed"));
    assert_eq!(fs::read(kept.at("lower")).unwrap(), b"upper");
    assert_eq!(fs::read(kept.at("stays")).unwrap(), b"upper");
    kept.unmount();
    let left: Vec<_> = names(&upper).into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(left, [] as [&str; 0]);
    assert_eq!(xattr(upper.join("renamed"), "trusted.mmapfs.place"), Err(Errno::NODATA));
}

/// The kernel's overlayfs over `base/lower`, with its upper directory in `base/upper`.
struct Inner(std::path::PathBuf);

impl Inner {
    fn mount(base: &Path, lower: &Path, options: &str) -> Inner {
        let place = lower.with_file_name("inner");
        fs::create_dir_all(&place).unwrap();
        let (lower, upper, work) = (lower.display(), base.join("u"), base.join("w"));
        let (upper, work) = (upper.display(), work.display());
        let data = format!("lowerdir={lower},upperdir={upper},workdir={work},{options}");
        let data = CString::new(data).unwrap();
        mount("overlay", &place, "overlay", MountFlags::empty(), data.as_c_str())
            .unwrap_or_else(|err| panic!("overlayfs in a scratch, {options}: {err}"));
        Inner(place)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(err) = unmount(&self.0, UnmountFlags::empty()) {
            eprintln!("{}: cannot unmount: {err}", self.0.display());
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }
}

fn change(root: &Path) {
    fs::remove_file(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("again")).unwrap();
    fs::create_dir(root.join("again")).unwrap();
    fs::write(root.join("again/new"), b"new").unwrap();
    fs::write(root.join("dir/file"), b"changed").unwrap();
    fs::rename(root.join("renamed"), root.join("dir/renamed")).unwrap();
    set_mode(root.join("dir"), 0o750);
}

fn shown(root: &Path) -> Tree {
    snapshot(root).without_xattrs(&["trusted.overlay.", "user.overlay."])
}

#[test]
fn the_kernels_overlayfs_has_its_upper_directory_in_a_scratch() {
    if !(require_fuse() && require_root()) {
        return;
    }
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("\toverlay\n") {
        eprintln!("SKIPPED: the kernel has no overlayfs");
        return;
    }
    for options in ["userxattr", "redirect_dir=off,metacopy=off", "redirect_dir=on,metacopy=on"] {
        let dir = TestDir::new();
        let (lower, plain) = (dir.directory("lower"), dir.directory("plain"));
        for lower in [&lower, &plain] {
            for name in ["dir", "again"] {
                fs::create_dir(lower.join(name)).unwrap();
            }
            for name in ["gone", "renamed", "dir/file", "again/old"] {
                fs::write(lower.join(name), name).unwrap();
            }
        }
        change(&plain);
        let expected = shown(&plain);
        let mut kept = Kept::new("copy_up=0", |base| {
            ["u", "w"].iter().for_each(|name| fs::create_dir(base.join(name)).unwrap());
        });
        kept.with_base_untouched(|kept| {
            let inner = Inner::mount(kept.root(), &lower, options);
            change(&inner.0);
            shown(&inner.0).assert_same(&expected, Scope::MergedHistory);
            drop(inner);
            assert_is_whiteout(&kept.at("u/gone"));
            kept.remount();
            let inner = Inner::mount(kept.root(), &lower, options);
            shown(&inner.0).assert_same(&expected, Scope::MergedHistory);
            drop(inner);
        });
    }
}
