//! What the kernel still holds, when it is used once more.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;

use super::common::*;

/// More than is copied whole.
const LARGE: usize = 300_000;

fn known(mounted: &MountedFs) -> u64 {
    ask(mounted.path(), "json status").json()["inodes"]["known"].as_u64().unwrap()
}

#[test]
fn a_partly_written_file_that_lost_its_name_is_opened_again_by_its_descriptor() {
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    fs::write(base.path().join("file"), pattern(LARGE)).unwrap();
    let mounted = MountedFs::over(base.path(), "access=copy");
    let path = mounted.path().join("file");
    let file = open(&path, OFlags::RDWR).unwrap();
    file.write_all_at(b"new", 5000).unwrap();
    let held = open(&path, OFlags::PATH).unwrap();
    drop(file);
    fs::remove_file(&path).unwrap();
    let mut expected = pattern(LARGE);
    expected[5000..5003].copy_from_slice(b"new");
    let again = fs::read(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap();
    assert_bytes(&again, &expected);
    drop(held);
    mounted.unmount();
}

#[test]
fn readers_of_a_file_that_is_replaced_over_and_over_see_the_old_or_the_new_one() {
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    fs::write(base.path().join("file"), vec![b'o'; LARGE]).unwrap();
    for round in 0..40 {
        fs::write(base.path().join(format!("{round}")), vec![b'o'; LARGE]).unwrap();
    }
    let mounted = MountedFs::over(base.path(), "access=copy");
    let path = |name: &str| mounted.path().join(name);
    let path = &path;
    let done = AtomicBool::new(false);
    let done = &done;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for round in 0..40 {
                let next = path(&format!("{round}"));
                open(&next, OFlags::RDWR).unwrap().write_all_at(b"o", 9000).unwrap();
                fs::rename(next, path("file")).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        for _ in 0..3 {
            scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    assert_bytes(&fs::read(path("file")).unwrap(), &[b'o'; LARGE]);
                }
            });
        }
    });
    mounted.unmount();
}

#[test]
fn directories_that_are_removed_while_open_are_forgotten() {
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    for round in 0..50 {
        fs::write(base.directory(&format!("below{round}")).join("file"), b"x").unwrap();
    }
    let mounted = MountedFs::over(base.path(), "access=copy");
    for round in 0..100 {
        let dir = mounted.path().join(match round % 2 {
            0 => format!("new{round}"),
            _ => format!("below{}", round / 2),
        });
        let _ = fs::create_dir(&dir); // That below is there.
        fs::write(dir.join("file"), b"x").unwrap();
        let file = open(dir.join("file"), OFlags::RDONLY).unwrap();
        fs::remove_file(dir.join("file")).unwrap();
        let held = open_directory(&dir);
        fs::remove_dir(&dir).unwrap();
        drop((file, held));
    }
    wait_for("all of them to be forgotten", || known(&mounted) < 10);
    mounted.unmount();
}

#[test]
fn a_listing_shows_all_that_stays_while_another_removes_what_it_lists() {
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    (0..2000).for_each(|file| drop(create(base.path().join(format!("stays{file}")))));
    let mounted = MountedFs::over(base.path(), "access=copy");
    for file in 0..2000 {
        drop(create(mounted.path().join(format!("goes{file}"))));
    }
    std::thread::scope(|scope| {
        let listed = scope.spawn(|| {
            let names = names(mounted.path());
            names.iter().filter(|name| name.starts_with("stays")).count()
        });
        for entry in fs::read_dir(mounted.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("goes") {
                fs::remove_file(path).unwrap();
            }
        }
        assert_eq!(listed.join().unwrap(), 2000);
    });
    let left: Vec<_> = names(mounted.path());
    assert!(left.iter().all(|name| !name.starts_with("goes")), "{} are left", left.len() - 2000);
    assert_eq!(left.iter().filter(|name| name.starts_with("stays")).count(), 2000);
    mounted.unmount();
}
