//! No more room for a scratch that is kept in a directory: by its bound or because the filesystem
//! is full, by writes and by stores in mappings.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use super::common::mapped::Mapped;
use super::common::*;
use super::kept::Kept;

const BIG: usize = 12 << 20;

fn fill(base: &Path) {
    fs::write(base.join("big"), pattern(BIG)).unwrap();
    fs::write(base.join("small"), pattern(10_000)).unwrap();
    fs::create_dir(base.join("dir")).unwrap();
    fs::write(base.join("dir/file"), pattern(100)).unwrap();
}

/// Everything that a scratch without room does: `big` is filled up with pages of its own.
fn runs_full(kept: &mut Kept) {
    kept.with_base_untouched(|kept| {
        let mut expected = pattern(BIG);
        set_mode(kept.at("small"), 0o600); // It has a file of its own.
        let file = create(kept.at("big"));
        let mut at = 0;
        let err = loop {
            match errno(file.write_at(&[5; 50_000], at as u64)) {
                Ok(count) => {
                    expected[at..at + count].fill(5);
                    at += count;
                }
                Err(err) => break err,
            }
            assert!(at < BIG, "there is room for everything");
        };
        assert_eq!(err, Errno::NOSPC);
        assert_content(kept.at("big"), &expected);
        // Anything else that does not fit is the same error, or does its part.
        for offset in [10_000_001u64, 11_000_000, BIG as u64 - 3] {
            match errno(file.write_at(&[6; 100_000], offset)) {
                Ok(count) => {
                    let end = offset as usize + count;
                    expected.resize(expected.len().max(end), 0);
                    expected[offset as usize..end].fill(6);
                }
                Err(err) => assert_eq!(err, Errno::NOSPC),
            }
        }
        let reserve = fallocate(&file, FallocateFlags::empty(), 0, 32 << 20);
        assert_eq!(reserve, Err(Errno::NOSPC));
        assert_content(kept.at("big"), &expected);
        let filled = (0..10_000).map(|number| fs::create_dir(kept.at(&format!("dir/{number}"))));
        let ended = filled.map(errno).find_map(Result::err);
        // Directories take no room of some filesystems.
        assert!(matches!(ended, None | Some(Errno::NOSPC)), "{ended:?}");
        // What was acknowledged stays, through a kill and a mount.
        file.sync_all().unwrap();
        let listed = names(kept.at("dir"));
        drop(file);
        kept.kill_and_mount();
        assert_content(kept.at("big"), &expected);
        assert_eq!(names(kept.at("dir")), listed);
        // Room that is freed is used again.
        for name in listed.iter().filter(|name| *name != "file") {
            fs::remove_dir(kept.at("dir").join(name)).unwrap();
        }
        rustix::fs::ftruncate(open(kept.at("big"), OFlags::RDWR).unwrap(), 1 << 20).unwrap();
        expected.truncate(1 << 20);
        wait_for("room", || create(kept.at("new")).write_all_at(&[7; 1 << 20], 0).is_ok());
        kept.remount();
        assert_content(kept.at("big"), &expected);
        assert_content(kept.at("new"), &[7; 1 << 20]);
    });
}

#[test]
fn a_full_bound_is_enospc_and_nothing_else() {
    if require_fuse() {
        runs_full(&mut Kept::new("scratch_max=6M,copy_up=0", fill));
    }
}

#[test]
fn a_full_tmpfs_below_the_scratch_is_the_same() {
    if require_fuse() && require_root() {
        let small = SmallFs::tmpfs(6 << 20);
        runs_full(&mut Kept::in_place(&small.path().join("scratch"), "copy_up=0", fill));
    }
}

#[test]
fn a_full_ext4_below_the_scratch_is_the_same() {
    if require_fuse() && require_root() && require_program("mkfs.ext4") {
        let small = SmallFs::ext4(8 << 20);
        runs_full(&mut Kept::in_place(&small.path().join("scratch"), "copy_up=0", fill));
    }
}

/// Stores in a mapping of a base file more than there is room for.
fn stores_too_much(kept: &Kept) {
    let file = create(kept.at("big"));
    let map = Mapped::shared(&file, BIG).unwrap();
    let before = pattern(BIG);
    map.write(0, b"fits");
    map.sync().unwrap();
    for page in 0..BIG / 4096 {
        map.write(page * 4096 + 7, b"stored");
    }
    assert_eq!(errno(map.sync()), Err(Errno::NOSPC));
    drop(map);
    drop(file);
    // Each page is the old one or the new one, and what was synchronised is there.
    let content = fs::read(kept.at("big")).unwrap();
    assert_eq!(content.len(), BIG);
    assert_eq!(&content[..4], b"fits");
    let mut stored = 0;
    for (number, page) in content.chunks(4096).enumerate() {
        let mut new = before[number * 4096..][..4096].to_vec();
        if number == 0 {
            new[..4].copy_from_slice(b"fits");
        }
        let old = new.clone();
        new[7..13].copy_from_slice(b"stored");
        assert!(page == new || page == old, "page {number} is neither");
        stored += u64::from(page == new);
    }
    assert!(stored > 100, "{stored} pages were stored");
    assert_content(kept.at("small"), &pattern(10_000));
}

/// Stores in one mapping what fits only in part, so that the kernel writes it in one request.
fn stores_half_too_much(kept: &Kept) {
    let big = create(kept.at("big"));
    big.write_all_at(b"x", BIG as u64 - 1).unwrap();
    let filler = create(kept.at("filler"));
    let mut len = 0;
    while filler.write_at(&[1; 4096], len).is_ok() {
        len += 4096;
    }
    // Room for half of it.
    rustix::fs::ftruncate(&filler, len - (32 << 10)).unwrap();
    let map = Mapped::shared(&big, 64 << 10).unwrap();
    map.write(0, &[7; 64 << 10]);
    assert_eq!(errno(map.sync()), Err(Errno::NOSPC));
    drop((map, big));
    let (content, old) = (fs::read(kept.at("big")).unwrap(), pattern(BIG));
    let whole = |at: usize| content[at..at + 4096] == [7; 4096];
    let stored = (0..64 << 10).step_by(4096).filter(|at| whole(*at)).count();
    assert!((4..16).contains(&stored), "{stored} pages were stored");
    assert_bytes(&content[stored * 4096..BIG - 1], &old[stored * 4096..BIG - 1]);
}

#[test]
fn stores_of_one_request_that_fit_in_part_are_not_lost_silently() {
    if require_fuse() && require_root() {
        stores_half_too_much(&Kept::new("scratch_max=6M,copy_up=0", fill));
        let small = SmallFs::tmpfs(6 << 20);
        stores_half_too_much(&Kept::in_place(&small.path().join("scratch"), "copy_up=0", fill));
    }
}

#[test]
fn stores_that_do_not_fit_are_told_by_msync_and_kill_nobody() {
    if require_fuse() {
        stores_too_much(&Kept::new("scratch_max=6M,copy_up=0", fill));
    }
}

#[test]
fn stores_that_do_not_fit_on_a_full_filesystem_are_told_the_same_way() {
    if require_fuse() && require_root() {
        let small = SmallFs::tmpfs(6 << 20);
        stores_too_much(&Kept::in_place(&small.path().join("scratch"), "copy_up=0", fill));
    }
}

#[test]
fn a_scratch_in_memory_has_half_of_what_is_available() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let available = || {
        let text = fs::read_to_string("/proc/meminfo").unwrap();
        let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
    };
    let before = available();
    let kept = Kept::in_memory("copy_up=0", |base| fs::write(base.join("file"), b"x").unwrap());
    let found = rustix::fs::statvfs(kept.root()).unwrap();
    let (least, most) = (before.min(available()) / 2.0, before.max(available()) / 2.0);
    let whole = (found.f_blocks * found.f_frsize) as f64;
    assert!((least * 0.8..most * 1.2).contains(&whole), "{whole} bytes of {before} available");
}
