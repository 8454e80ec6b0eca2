//! The bound of a scratch that shares its filesystem with others, which is kept by counting: what
//! it holds is what its files take, at any moment and after every mount.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, XattrFlags, fallocate, lremovexattr, lsetxattr};
use rustix::io::Errno;

use super::common::*;
use super::kept::Kept;

const MAX: u64 = 1 << 20;
const BIG: usize = 2 * MAX as usize;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn fill(base: &Path) {
    fs::write(base.join("big"), pattern(BIG)).unwrap();
    fs::write(base.join("small"), pattern(10_000)).unwrap();
    fs::write(base.join("linked"), pattern(50_000)).unwrap();
    fs::hard_link(base.join("linked"), base.join("other")).unwrap();
    fs::create_dir_all(base.join("dir/below")).unwrap();
    fs::write(base.join("dir/file"), pattern(100)).unwrap();
}

fn bounded(options: &str) -> Option<Kept> {
    let options = format!("scratch_max={MAX},{options}");
    require_fuse().then(|| Kept::new(&options, fill))
}

/// What df shows: everything, and what is left, in bytes.
fn shown(kept: &Kept) -> (u64, u64) {
    let found = rustix::fs::statvfs(kept.root()).unwrap();
    assert_eq!(found.f_bfree, found.f_bavail);
    (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
}

/// What is shown is the bound, and what the files of the scratch leave of it.
#[track_caller]
fn assert_exact(kept: &Kept, what: &str) {
    let whole = MAX - MAX % page();
    let left = || (MAX - kept.stored().min(MAX)) / page() * page();
    // The kernel gives files back a moment after they were closed.
    wait_for(&format!("the count after {what}"), || shown(kept) == (whole, left()));
}

/// Takes all room but so much, to a page.
fn leave(kept: &Kept, room: u64) -> File {
    let file = create(kept.at("filler"));
    let (mut at, bytes) = (0, [1; 4096]);
    while shown(kept).1 > room {
        match errno(file.write_at(&bytes, at)) {
            Ok(count) => at += count as u64,
            Err(err) => {
                assert_eq!(err, Errno::NOSPC);
                break;
            }
        }
    }
    file
}

#[test]
fn a_full_scratch_leaves_a_warning_with_the_path_and_the_room_that_is_left() {
    let Some(kept) = bounded("copy_up=0") else { return };
    fs::create_dir(kept.at("dir/made")).unwrap();
    let file = create(kept.at("dir/made/filler"));
    assert_eq!(errno(file.write_all_at(&pattern(BIG), 0)), Err(Errno::NOSPC));
    let told = |line: &str| {
        let failed = line.contains(" dir/made/filler: write failed: No space left on device");
        failed && line.contains(": scratch_max= is reached: ") && line.contains(" bytes are left")
    };
    let log = || kept.mounted().log();
    wait_for("the warning", || log().lines().any(told));
    let before = log().matches("write failed").count();
    for at in 0..100 {
        assert_eq!(errno(file.write_all_at(&pattern(BIG), at)), Err(Errno::NOSPC));
    }
    assert!(log().matches("write failed").count() < before + 100, "{}", log());
}

#[test]
fn what_is_shown_is_what_the_files_of_the_scratch_take() {
    for options in ["copy_up=0", "copy_up=128K"] {
        let Some(mut kept) = bounded(options) else { return };
        let scratch = |kept: &Kept, what: &str| assert_exact(kept, what);
        scratch(&kept, "nothing");
        kept.with_base_untouched(|kept| {
            fs::write(kept.at("new"), pattern(30_000)).unwrap();
            scratch(kept, "a new file");
            create(kept.at("big")).write_all_at(&[1; 9000], 70_000).unwrap();
            scratch(kept, "a write in the middle");
            create(kept.at("small")).write_all_at(&[1], 5000).unwrap();
            scratch(kept, "a byte");
            create(kept.at("other")).write_all_at(&[1; 5000], 0).unwrap();
            scratch(kept, "a byte of a file with two names");
            fs::create_dir(kept.at("made")).unwrap();
            fs::create_dir(kept.at("dir/made")).unwrap();
            scratch(kept, "directories");
            symlink("x".repeat(200), kept.at("long link")).unwrap();
            scratch(kept, "a link");
            for number in 0..150 {
                fs::write(kept.at(&format!("dir/below/{}{number}", "n".repeat(90))), b"").unwrap();
            }
            scratch(kept, "many names");
            set_mode(kept.at("dir/file"), 0o600);
            scratch(kept, "chmod");
            let long = [b'v'; 2000];
            lsetxattr(kept.at("new"), "user.a", &long, XattrFlags::empty()).unwrap();
            lsetxattr(kept.at("dir"), "user.a", &long, XattrFlags::empty()).unwrap();
            scratch(kept, "attributes");
            fallocate(create(kept.at("room")), FallocateFlags::empty(), 0, 100_000).unwrap();
            scratch(kept, "fallocate");
            fs::rename(kept.at("dir"), kept.at("moved")).unwrap();
            scratch(kept, "a rename");
        });
        let before = shown(&kept);
        kept.remount();
        assert_exact(&kept, "a mount");
        assert_eq!(shown(&kept), before);
        kept.kill_and_mount();
        assert_exact(&kept, "a kill and a mount");
        assert_eq!(shown(&kept), before);
        // All of it is given back, piece by piece.
        lremovexattr(kept.at("new"), "user.a").unwrap();
        assert_exact(&kept, "an attribute less");
        rustix::fs::ftruncate(create(kept.at("new")), 5000).unwrap();
        assert_exact(&kept, "truncation");
        fallocate(create(kept.at("room")), PUNCH, 4096, 50_000).unwrap();
        fallocate(create(kept.at("big")), PUNCH, 65_536, 16_384).unwrap();
        assert_exact(&kept, "holes");
        drop(open(kept.at("room"), OFlags::WRONLY | OFlags::TRUNC).unwrap());
        assert_exact(&kept, "O_TRUNC");
        fs::rename(kept.at("new"), kept.at("small")).unwrap();
        assert_exact(&kept, "a rename over a file");
        for name in ["big", "small", "other", "linked", "room", "long link"] {
            fs::remove_file(kept.at(name)).unwrap();
            assert_exact(&kept, name);
        }
        fs::remove_dir_all(kept.at("moved")).unwrap();
        fs::remove_dir(kept.at("made")).unwrap();
        assert_exact(&kept, "everything removed");
        kept.remount();
        assert_exact(&kept, "the last mount");
    }
}

#[test]
fn what_would_pass_the_bound_is_refused_in_every_way() {
    let Some(mut kept) = bounded("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        // What there is to be changed is copied up before.
        let open_files = ["big", "small", "linked"].map(|name| {
            let file = create(kept.at(name));
            file.write_all_at(&[7; 4096], 0).unwrap();
            file
        });
        fs::write(kept.at("made"), pattern(100)).unwrap();
        drop(leave(kept, 0));
        let mut expected = pattern(BIG);
        expected[..4096].fill(7);
        let [big, small, _] = &open_files;
        let full = |what: &str, result: Result<(), Errno>| {
            assert_eq!(result, Err(Errno::NOSPC), "{what}");
            // A file of more than four extents gets a block for their list when ext4 writes it to
            // the disk, which may be long after it was counted.
            let lists = kept.regular_files() * page();
            let stored = kept.stored();
            assert!(stored <= MAX + lists, "{what} passed the bound: {stored}");
        };
        let write = |file: &File, offset: u64| errno(file.write_all_at(&[9; 20_000], offset));
        full("a write in the middle", write(big, 500_000));
        full("a write at the end", write(big, BIG as u64));
        full("a write to a small file", write(small, 4096));
        full("a write to a new file", write(&create(kept.at("made")), 8192));
        full("mkdir", errno(fs::create_dir(kept.at("dir/new"))));
        full("create", open(kept.at("dir/new"), OFlags::RDWR | OFlags::CREATE).map(drop));
        full("symlink", errno(symlink("x", kept.at("dir/new"))));
        full("fallocate", fallocate(big, FallocateFlags::empty(), 0, BIG as u64));
        full(
            "fallocate of a new file",
            fallocate(create(kept.at("made")), FallocateFlags::empty(), 0, 1 << 16),
        );
        let (mut from, mut to) = (100_000, 1 << 20);
        let copied = rustix::fs::copy_file_range(big, Some(&mut from), big, Some(&mut to), 50_000);
        full("copy_file_range", copied.map(drop));
        let long = [b'v'; 3000];
        full("setxattr", lsetxattr(kept.at("small"), "user.a", &long, XattrFlags::empty()));
        // Not a byte is lost, and nothing is there that was refused.
        assert_content(kept.at("big"), &expected);
        assert_eq!(size(kept.at("made")), 100);
        assert_eq!(xattr_names(kept.at("small")).unwrap(), Vec::<String>::new());
        assert_eq!(names(kept.at("dir")).len(), 2);
        // What takes no room goes on.
        big.write_all_at(&[8; 4096], 0).unwrap();
        expected[..4096].fill(8);
        rustix::fs::ftruncate(small, 1 << 30).unwrap();
        rustix::fs::ftruncate(small, 9000).unwrap();
        set_mode(kept.at("small"), 0o600);
        fs::rename(kept.at("made"), kept.at("renamed")).unwrap();
        fs::remove_file(kept.at("other")).unwrap();
        assert_content(kept.at("big"), &expected);
        // Each way to free room makes room.
        let needs_room = |what: &str| {
            wait_for(&format!("room after {what}"), || {
                big.write_all_at(&[5; 8192], 1 << 16).is_ok()
            });
            fallocate(big, PUNCH, 1 << 16, 8192).unwrap();
            drop(leave(kept, 0));
            full("a write once more", write(big, 500_000));
        };
        let filler = create(kept.at("filler"));
        let len = || size(kept.at("filler"));
        fallocate(&filler, PUNCH, 0, 32_768).unwrap();
        needs_room("a hole");
        rustix::fs::ftruncate(&filler, len() - 65_536).unwrap();
        needs_room("truncation");
        drop(filler);
        fs::write(kept.at("tiny"), b"").unwrap_or_default();
        fs::remove_file(kept.at("filler")).unwrap();
        needs_room("unlink");
        drop(open(kept.at("filler"), OFlags::WRONLY | OFlags::TRUNC).unwrap());
        needs_room("O_TRUNC");
        fs::rename(kept.at("renamed"), kept.at("filler")).unwrap();
        needs_room("a rename over it");
        assert_content(kept.at("big"), &{
            let mut bytes = expected.clone();
            bytes[1 << 16..(1 << 16) + 8192].fill(0);
            bytes
        });
    });
}

#[test]
fn the_bound_is_reached_to_the_last_page() {
    let Some(kept) = bounded("copy_up=0") else { return };
    let big = create(kept.at("big"));
    big.write_all_at(&[1; 4096], 0).unwrap();
    let file = create(kept.at("new"));
    // Aligned pages of a new file, and of the base.
    let mut at = 0;
    while file.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
        if shown(&kept).1 < MAX / 2 {
            break;
        }
    }
    let mut page_of_base = 1;
    while big.write_all_at(&[2; 4096], page_of_base * 4096).is_ok() {
        page_of_base += 1;
    }
    let (_, left) = shown(&kept);
    assert!(left <= 4096, "{left} bytes were not to be had");
    assert!(kept.stored() <= MAX);
    // A write that fits in part is done in part, as on any filesystem.
    fallocate(&big, PUNCH, 4096, 8192).unwrap();
    let done = errno(file.write_at(&[3; 65_536], at)).unwrap();
    assert!((4096..65_536).contains(&done), "{done} bytes");
    assert_bytes(&read_at(&file, at, done), &vec![3; done]);
}
