//! Trees whose paths are longer than any system call takes, and deeper than any stack or limit.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use super::*;
use crate::tree::{Attributes, Files, Names};

/// Makes directories in each other in the base, and a file of 40 pages in the lowest.
fn dig(world: &World, depth: usize, name: &str) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = OwnedFd::from(File::open(world.path("base")).unwrap());
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&dir, "file", flags, Mode::RUSR | Mode::WUSR).unwrap();
    File::from(file).write_all_at(&vec![b'b'; 40 * 4096], 0).unwrap();
    dir
}

fn go_down(overlay: &Overlay, depth: usize, name: &str) -> Ino {
    (0..depth).fold(Ino::ROOT, |at, _| overlay.lookup(at, OsStr::new(name)).unwrap().attr.ino)
}

fn content(overlay: &Overlay, ino: Ino) -> Vec<u8> {
    let how = Open { read: true, wait: true, ..Open::default() };
    let opened = overlay.open(ino, how, &ROOT, &never_registered).unwrap();
    let mut content = Vec::new();
    overlay
        .read(ino, opened.id, 0, 1 << 20, &mut |bytes| content.extend_from_slice(bytes))
        .unwrap();
    overlay.release(opened.id).unwrap();
    content
}

/// A file at a path is written, gets another mode, moves in its directory and to another one, and
/// its directory moves; after each the content is right, now and when mounted again.
#[track_caller]
fn works_at(depth: usize, name: &str, place: &Path) {
    let world = World::in_directory(place);
    dig(&world, depth, name);
    let mut expected = vec![b'b'; 40 * 4096];
    expected[5000] = b'Y';
    let none = RenameFlags::empty();
    let (file, moved) = (OsStr::new("file"), OsStr::new("moved"));
    for step in 0..5 {
        let mut mounted = Some(world.open().unwrap());
        let overlay = mounted.as_ref().unwrap();
        let above = if step < 4 { depth } else { depth - 1 };
        let dir = go_down(overlay, above, name);
        match step {
            0 => {
                let ino = overlay.lookup(dir, file).unwrap().attr.ino;
                open_write(overlay, ino, 5000, b"Y").unwrap();
                let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
                overlay.set_attr(ino, None, mode, &ROOT).unwrap();
                assert_eq!(overlay.attr(ino, None).unwrap().stat.mode & 0o777, 0o640);
            }
            1 => overlay.rename((dir, file), (dir, moved), none, &ROOT).unwrap(),
            2 => overlay.rename((dir, moved), (Ino::ROOT, moved), none, &ROOT).unwrap(),
            3 => overlay.rename((Ino::ROOT, moved), (dir, file), none, &ROOT).unwrap(),
            _ => {
                let to = OsStr::new("shallow");
                overlay.rename((dir, OsStr::new(name)), (Ino::ROOT, to), none, &ROOT).unwrap();
            }
        }
        for again in [false, true] {
            if again {
                drop(mounted.take());
                mounted = Some(world.open().unwrap());
            }
            let overlay = mounted.as_ref().unwrap();
            let (dir, name) = match step {
                0 | 3 => (go_down(overlay, depth, name), file),
                1 => (go_down(overlay, depth, name), moved),
                2 => (Ino::ROOT, moved),
                _ => (overlay.lookup(Ino::ROOT, OsStr::new("shallow")).unwrap().attr.ino, file),
            };
            let ino = overlay.lookup(dir, name).unwrap().attr.ino;
            assert!(content(overlay, ino) == expected, "step {step}, again: {again}");
        }
    }
    let stored = fs::read_dir(world.path("s/pages")).unwrap().count();
    remove(&world.places(), world.path("s").as_os_str()).unwrap();
    assert!(!world.path("s").exists(), "{stored} maps and paths");
    let name = std::ffi::CString::new(name).unwrap();
    sys::walk::remove(File::open(world.path("base")).unwrap(), &name).unwrap();
}

#[test]
fn a_path_of_six_thousand_bytes_is_changed_and_renamed_on_ext4() {
    works_at(30, &"d".repeat(200), &std::env::temp_dir());
}

#[test]
fn a_path_of_six_thousand_bytes_is_changed_and_renamed_in_memory() {
    works_at(30, &"d".repeat(200), Path::new("/dev/shm"));
}

#[test]
fn a_file_many_directories_deep_is_copied_up_moved_and_removed() {
    let is_long = std::env::var_os("MMAPFS_TEST_LONG").is_some();
    works_at(if is_long { 2000 } else { 400 }, "d", Path::new("/dev/shm"));
}
