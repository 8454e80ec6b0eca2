//! Upper directories of others.

use crate::shown::Show;
use std::ffi::CString;
use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use rustix::fs::{CWD, FileType};
use rustix::mount::{MountFlags, UnmountFlags};

use super::*;

#[test]
fn an_upper_directory_is_adopted_and_put_into_the_words_of_overlayfs() {
    let world = World::new();
    let upper = world.path("disk/upper");
    fs::create_dir_all(upper.join("sub/opaque")).unwrap();
    fs::create_dir_all(world.path("disk/work/work/x")).unwrap();
    fs::write(upper.join("file"), "content").unwrap();
    fs::write(upper.join("sub/.wh.gone"), "").unwrap();
    fs::write(upper.join("sub/.wh.mine"), "content").unwrap();
    fs::write(upper.join("sub/opaque/.wh..wh..opq"), "").unwrap();
    let beside = upper.join("sub/opaque/.wh..opq");
    rustix::fs::mknodat(CWD, beside, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    rustix::fs::setxattr(upper.join("sub"), "user.overlay.origin", b"o", XattrFlags::empty())
        .unwrap();
    let scratch = world.open("disk").unwrap();
    assert_eq!(scratch.xattr_namespace(), XattrNamespace::User, "that is what it is marked with");
    assert!(fs::symlink_metadata(upper.join("sub/gone")).unwrap().file_type().is_char_device());
    let mut value = [0; 4];
    let opaque = rustix::fs::getxattr(upper.join("sub/opaque"), "user.overlay.opaque", &mut value);
    assert_eq!((opaque, value[0]), (Ok(1), b'y'));
    let names = |dir: &str| fs::read_dir(upper.join(dir)).unwrap().count();
    assert_eq!((names(""), names("sub"), names("sub/opaque")), (2, 3, 0));
    assert_eq!(fs::read_dir(scratch.layout().work()).unwrap().count(), 0);
    assert!(scratch.state().adopted);
    for dir in [scratch.layout().work(), scratch.layout().index(), scratch.layout().pages()] {
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    assert_eq!(list(&world.places).len(), 1);
}

/// Mounts a union of `base` and `disk/upper` on `disk/merged`, removes a file, replaces a
/// directory, makes a file with an odd name, and unmounts. Returns whether that could be done.
fn change_by(world: &World, mount: impl FnOnce(&str, &Path) -> bool) -> bool {
    for name in ["upper", "work", "merged"] {
        fs::create_dir(world.path("disk").join(name)).unwrap();
    }
    for name in ["base/old", "base/dir"] {
        fs::create_dir(world.path(name)).unwrap();
        fs::write(world.path(name).join("file"), "content").unwrap();
    }
    let [base, upper, work, merged] =
        ["base", "disk/upper", "disk/work", "disk/merged"].map(|name| world.path(name));
    let shown = [&base, &upper, &work].map(|path| path.shown().to_string());
    let options = format!("lowerdir={},upperdir={},workdir={}", shown[0], shown[1], shown[2]);
    if !mount(&options, &merged) {
        return false;
    }
    let changed = fs::remove_file(merged.join("dir/file"))
        .and_then(|()| fs::remove_dir_all(merged.join("old")))
        .and_then(|()| fs::create_dir(merged.join("old")));
    // fuse-overlayfs takes no such names.
    let _ = fs::write(merged.join("dir/.wh.odd"), "");
    // The program that served it may take a moment to let go.
    let unmounted = rustix::mount::unmount(&merged, UnmountFlags::DETACH);
    changed.unwrap();
    unmounted.unwrap();
    true
}

/// The mark of an opaque directory, with its prefix.
fn is_opaque(world: &World, scratch: &Scratch, name: &str) -> bool {
    let mut value = [0; 4];
    let mark = scratch.xattr_namespace().name("overlay.opaque");
    let path = world.path("disk/upper").join(name);
    rustix::fs::getxattr(path, mark.as_str(), &mut value[..]) == Ok(1) && value[0] == b'y'
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().file_type().is_char_device()
}

#[test]
fn what_the_kernel_wrote_is_adopted_as_it_is() {
    for (option, marks) in [("", XattrNamespace::Trusted), (",userxattr", XattrNamespace::User)] {
        let world = World::new();
        if !is_root() {
            return;
        }
        let done = change_by(&world, |options, at| {
            let data = CString::new(format!("{options}{option}")).unwrap();
            rustix::mount::mount("none", at, "overlay", MountFlags::empty(), data.as_c_str())
                .is_ok()
        });
        if !done {
            eprintln!("SKIPPED: overlayfs cannot be mounted here");
            return;
        }
        let scratch = world.open("disk").unwrap();
        assert_eq!(scratch.xattr_namespace(), marks);
        assert!(is_opaque(&world, &scratch, "old"));
        assert!(is_whiteout(&world.path("disk/upper/dir/file")));
        assert!(world.path("disk/upper/dir/.wh.odd").is_file(), "it is only a name");
    }
}

#[test]
fn what_fuse_overlayfs_wrote_is_adopted() {
    let world = World::new();
    if !is_root() {
        return;
    }
    let done = change_by(&world, |options, at| {
        let ran = Command::new("fuse-overlayfs").args(["-o", options]).arg(at).status();
        ran.is_ok_and(|status| status.success())
    });
    if !done {
        eprintln!("SKIPPED: fuse-overlayfs cannot be used here");
        return;
    }
    let scratch = world.open("disk").unwrap();
    assert!(is_opaque(&world, &scratch, "old"));
    assert!(is_whiteout(&world.path("disk/upper/dir/file")));
    assert_eq!(fs::read_dir(world.path("disk/upper/old")).unwrap().count(), 0);
}
