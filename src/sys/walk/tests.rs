use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// Makes directories in each other, and returns the lowest.
fn dig(top: &File, depth: usize, name: &CStr) -> OwnedFd {
    let mut dir = rustix::fs::openat(top, c".", DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty()).unwrap();
    }
    dir
}

fn count(top: &File) -> usize {
    let mut count = 0;
    walk(top, &mut |_: BorrowedFd<'_>, _: &CStr, _: &Stat| {
        count += 1;
        Ok(())
    })
    .unwrap();
    count
}

#[test]
fn everything_is_seen_once_at_any_depth() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "b/c", "b/c/d", "e"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), "").unwrap();
    }
    symlink("b", dir.path().join("link")).unwrap();
    let top = File::open(dir.path()).unwrap();
    assert_eq!(count(&top), 11);
    // A second walk starts from the start, too.
    assert_eq!(count(&top), 11);
    let lowest = dig(&top, 2000, c"deep");
    rustix::fs::mkdirat(&lowest, c"last", Mode::RWXU).unwrap();
    assert_eq!(count(&top), 2012);
    remove(&top, c"deep").unwrap();
    assert_eq!(count(&top), 11);
}

#[test]
fn a_walk_keeps_few_descriptors_open() {
    let dir = tempfile::tempdir().unwrap();
    let top = File::open(dir.path()).unwrap();
    dig(&top, 100, c"d");
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, mut most) = (open(), 0);
    walk(&top, &mut |_: BorrowedFd<'_>, _: &CStr, _: &Stat| {
        most = most.max(open());
        Ok(())
    })
    .unwrap();
    // Other tests of this process open files, too.
    assert!(most < before + 60, "{most} and {before} before");
    assert_eq!(count(&top), 100);
}

#[test]
fn leaving_comes_after_what_is_in_a_directory() {
    struct Order(Vec<String>);
    impl Visitor for Order {
        fn see(&mut self, _: BorrowedFd<'_>, name: &CStr, _: &Stat) -> Result<(), Errno> {
            self.0.push(name.to_string_lossy().into_owned());
            Ok(())
        }
        fn leave(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.0.push(format!("/{}", name.to_string_lossy()));
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..12).map(|level| format!("{level}")).collect();
    fs::create_dir_all(dir.path().join(names.join("/"))).unwrap();
    let mut order = Order(Vec::new());
    walk(File::open(dir.path()).unwrap(), &mut order).unwrap();
    let left = names.iter().rev().map(|name| format!("/{name}"));
    assert_eq!(order.0, names.iter().cloned().chain(left).collect::<Vec<_>>());
}

#[test]
fn a_walk_goes_on_where_directories_were_moved_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let top = File::open(dir.path()).unwrap();
    drop(dig(&top, 30, c"d"));
    fs::create_dir(dir.path().join("other")).unwrap();
    let (mut seen, mut others) = (0, 0);
    walk(&top, &mut |_: BorrowedFd<'_>, name: &CStr, _: &Stat| {
        seen += 1;
        others += usize::from(name == c"other");
        if seen == 30 {
            // The way up from the lowest directories does not lead back any more.
            let middle = dir.path().join("d/d/d/d/d");
            fs::rename(middle, dir.path().join("moved")).unwrap();
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(others, 1);
    assert!(seen >= 30, "{seen}");
}

#[test]
fn closed_directories_links_and_files_are_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("gone/closed/below")).unwrap();
    fs::write(dir.path().join("precious"), "content").unwrap();
    symlink("../precious", dir.path().join("gone/link")).unwrap();
    symlink("..", dir.path().join("gone/up")).unwrap();
    let closed = dir.path().join("gone/closed");
    fs::set_permissions(closed, fs::Permissions::from_mode(0o000)).unwrap();
    let top = File::open(dir.path()).unwrap();
    remove(&top, c"gone").unwrap();
    assert_eq!(count(&top), 1);
    remove(&top, c"precious").unwrap();
    assert_eq!(remove(&top, c"precious"), Err(Errno::NOENT));
}
