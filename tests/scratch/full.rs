//! A scratch that is full: what would pass the bound is refused, and everything else goes on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use super::common::*;
use super::kept::Kept;

const MAX: u64 = 8 << 20;
const STEP: usize = 64 << 10;

fn fill(base: &Path) {
    fs::write(base.join("big"), pattern(2 * MAX as usize)).unwrap();
    fs::write(base.join("small"), pattern(10_000)).unwrap();
    fs::create_dir(base.join("dir")).unwrap();
    fs::write(base.join("dir/file"), pattern(100)).unwrap();
}

/// Writes until there is no room. Returns how many bytes fitted.
#[track_caller]
fn write_until_full(file: &File) -> u64 {
    for offset in (0..4 * MAX).step_by(STEP) {
        match errno(file.write_at(&[1; STEP], offset)) {
            Ok(count) if count == STEP => {}
            Ok(count) => return offset + count as u64,
            Err(err) => {
                assert_eq!(err, Errno::NOSPC);
                return offset;
            }
        }
    }
    panic!("there is no bound");
}

#[test]
fn a_full_scratch_refuses_what_needs_room_and_does_everything_else() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for name in ["big", "new"] {
        let kept = Kept::in_memory("scratch_max=8M,copy_up=0", fill);
        let statistics = rustix::fs::statvfs(kept.root()).unwrap();
        assert_eq!(statistics.f_blocks * statistics.f_frsize, MAX);
        let file = create(kept.at(name));
        let written = write_until_full(&file);
        assert!((MAX / 2..=MAX).contains(&written), "{name}: {written} of {MAX} bytes");
        assert_eq!(rustix::fs::statvfs(kept.root()).unwrap().f_bavail, 0);

        let reserve = fallocate(create(kept.at("more")), FallocateFlags::empty(), 0, MAX);
        assert_eq!(reserve, Err(Errno::NOSPC));
        // What was there is there, and what needs no room goes on.
        assert_bytes(&read_at(&file, 0, STEP), &[1; STEP]);
        assert_content(kept.at("small"), &pattern(10_000));
        file.write_all_at(&[2; STEP], 0).unwrap();
        set_mode(kept.at("dir"), 0o700);
        fs::rename(kept.at("dir"), kept.at("moved")).unwrap();
        fs::remove_file(kept.at("moved/file")).unwrap();
        assert_eq!(names(kept.at("moved")).len(), 0);
        if name == "big" {
            assert_bytes(
                &read_at(&file, 2 * MAX - 10, 10),
                &pattern(2 * MAX as usize)[2 * MAX as usize - 10..],
            );
        }

        // Freed room comes back, in each way.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, 0, written / 2).unwrap();
        create(kept.at("again")).write_all_at(&[3; STEP], 0).unwrap();
        write_until_full(&create(kept.at("again")));
        rustix::fs::ftruncate(&file, 0).unwrap();
        drop(file);
        write_until_full(&create(kept.at("third")));
        fs::remove_file(kept.at("third")).unwrap();
        // At once or a moment later: the kernel tells of the last close and goes on.
        wait_for("room", || write_until_full(&create(kept.at("fourth"))) > 0);
        for name in ["again", "fourth", "more", name] {
            fs::remove_file(kept.at(name)).unwrap();
        }
        let last = create(kept.at("last"));
        wait_for("all of the room", || write_until_full(&last) > MAX * 3 / 4);
    }
}

#[test]
fn a_full_scratch_in_memory_changes_attributes_names_and_sizes_of_base_files() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::in_memory("scratch_max=8M,copy_up=0", |base| {
        for number in 0..20 {
            fs::write(base.join(format!("f{number}")), pattern(200_000)).unwrap();
        }
        fs::create_dir_all(base.join("a/b")).unwrap();
        fs::write(base.join("a/b/c"), pattern(5000)).unwrap();
    });
    write_until_full(&create(kept.at("filler")));
    set_mode(kept.at("f1"), 0o640);
    fs::rename(kept.at("f2"), kept.at("a/b/g2")).unwrap();
    File::options().write(true).open(kept.at("f3")).unwrap().set_len(100).unwrap();
    fs::rename(kept.at("a"), kept.at("moved")).unwrap();
    rustix::fs::setxattr(kept.at("f4"), "user.name", b"value", rustix::fs::XattrFlags::empty())
        .unwrap();
    fs::hard_link(kept.at("f5"), kept.at("linked")).unwrap();
    let file = File::options().write(true).open(kept.at("f6")).unwrap();
    assert_eq!(errno(file.write_at(b"x", 5)), Err(Errno::NOSPC), "that is for records");
    assert_eq!(mode(kept.at("f1")), 0o640);
    assert_content(kept.at("moved/b/g2"), &pattern(200_000));
    assert_content(kept.at("f3"), &pattern(200_000)[..100]);

    // Removed, so that there is room, and again full: what was given up was taken back.
    for _ in 0..3 {
        fs::remove_file(kept.at("filler")).unwrap();
        wait_for("room", || file.write_at(b"x", 5).is_ok());
        write_until_full(&create(kept.at("filler")));
        for number in 7..20 {
            set_mode(kept.at(&format!("f{number}")), 0o600);
        }
    }
}

#[test]
fn a_write_that_does_not_fit_leaves_what_was_there() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::in_memory("scratch_max=8M,copy_up=0", fill);
    write_until_full(&create(kept.at("new")));
    let file = open(kept.at("big"), OFlags::RDWR).unwrap();
    let mut expected = pattern(2 * MAX as usize);
    for offset in [0, 5000, 4096 * 300 - 10, 2 * MAX - 5] {
        match errno(file.write_at(&[9; 9000], offset)) {
            Ok(count) => {
                let end = expected.len().max(offset as usize + count);
                expected.resize(end, 0);
                expected[offset as usize..][..count].fill(9);
            }
            Err(err) => assert_eq!(err, Errno::NOSPC),
        }
        assert_content(kept.at("big"), &expected);
    }
}
