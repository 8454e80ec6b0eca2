//! Nothing is copied that was not written.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{Advice, AtFlags, CWD, FallocateFlags, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::fs::{XattrFlags, fallocate, lsetxattr, renameat_with};

use super::common::*;
use super::kept::Kept;

const SIZE: usize = 32 << 20;

/// What a copied-up file may store besides pages: its directories, its map, and attributes.
const OVERHEAD: u64 = 64 << 10;

fn fill(base: &Path) {
    let content = pattern(SIZE);
    fs::write(base.join("big"), &content).unwrap();
    fs::write(base.join("other"), &content).unwrap();
    fs::hard_link(base.join("other"), base.join("second")).unwrap();
    fs::create_dir_all(base.join("dir/below/deep")).unwrap();
    fs::write(base.join("dir/below/big"), &content).unwrap();
    for number in 0..2000 {
        fs::write(base.join(format!("dir/below/deep/{number}")), b"some bytes").unwrap();
    }
    rustix::fs::sync();
}

fn kept(options: &str) -> Option<Kept> {
    require_fuse().then(|| Kept::new(options, fill))
}

#[test]
fn what_changes_no_byte_copies_none() {
    let Some(mut kept) = kept("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        let big = kept.at("big");
        let least = |what: &str, call: &dyn Fn()| kept.assert_stores_at_most(OVERHEAD, what, call);
        least("open to write", &|| drop(open(&big, OFlags::RDWR).unwrap()));
        least("open to append", &|| drop(open(&big, OFlags::WRONLY | OFlags::APPEND).unwrap()));
        least("chmod", &|| set_mode(&big, 0o600));
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        least("chown", &|| chown(&big, Some(user.as_raw()), Some(group.as_raw())).unwrap());
        let time = Timespec { tv_sec: 1, tv_nsec: 2 };
        let times = Timestamps { last_access: time, last_modification: time };
        let none = AtFlags::empty();
        least("utimens", &|| rustix::fs::utimensat(CWD, &big, &times, none).unwrap());
        least("setxattr", &|| lsetxattr(&big, "user.a", b"1", XattrFlags::empty()).unwrap());
        least("link", &|| fs::hard_link(&big, kept.at("new name")).unwrap());
        least("rename", &|| fs::rename(&big, kept.at("moved")).unwrap());
        least("unlink", &|| fs::remove_file(kept.at("new name")).unwrap());
        least("unlink of a name of several", &|| fs::remove_file(kept.at("other")).unwrap());
        least("rename of the other", &|| {
            fs::rename(kept.at("second"), kept.at("dir/third")).unwrap();
        });
        least("rename of a directory", &|| fs::rename(kept.at("dir"), kept.at("away")).unwrap());
        least("rename of a directory in one that was renamed", &|| {
            fs::rename(kept.at("away/below"), kept.at("back")).unwrap();
        });
        least("a new file in it, and another rename", &|| {
            fs::write(kept.at("back/deep/new"), b"new").unwrap();
            fs::rename(kept.at("back/deep"), kept.at("deep")).unwrap();
        });
        least("exchange of a directory and a file", &|| {
            let exchange = RenameFlags::EXCHANGE;
            renameat_with(CWD, kept.at("deep"), CWD, kept.at("moved"), exchange).unwrap();
        });
        assert_eq!(names(kept.at("moved")).len(), 2001);
        assert_content(kept.at("deep"), &pattern(SIZE));
        assert_content(kept.at("back/big"), &pattern(SIZE));
        least("truncation", &|| {
            rustix::fs::ftruncate(create(kept.at("deep")), 4096 * 100).unwrap()
        });
        least("growth", &|| rustix::fs::ftruncate(create(kept.at("deep")), 1 << 40).unwrap());
        least("O_TRUNC", &|| drop(open(kept.at("back/big"), OFlags::WRONLY | OFlags::TRUNC)));
        assert_eq!((size(kept.at("deep")), size(kept.at("back/big"))), (1 << 40, 0));
        kept.remount();
        assert_bytes(&fs::read(kept.at("away/third")).unwrap(), &pattern(SIZE));
        assert_eq!(names(kept.at("moved")).len(), 2001);
    });
}

#[test]
fn a_file_that_is_truncated_to_nothing_by_its_open_stores_nothing_whatever_its_size() {
    let Some(kept) = kept("copy_up=1G") else { return };
    kept.assert_stores_at_most(OVERHEAD, "O_TRUNC", || {
        open(kept.at("big"), OFlags::WRONLY | OFlags::TRUNC).unwrap();
    });
    assert_eq!(size(kept.at("big")), 0);
}

#[test]
fn a_byte_that_changes_stores_a_page() {
    let Some(mut kept) = kept("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        set_mode(kept.at("big"), 0o600); // Copied up, as yet without a page.
        let upper = kept.scratch().join("upper/big");
        // Its attributes may take a block.
        let before = fs::metadata(&upper).unwrap().blocks();
        assert!(before <= 8);
        let blocks = || fs::metadata(&upper).unwrap().blocks() - before;
        let file = create(kept.at("big"));
        let mut expected = pattern(SIZE);
        for (offset, blocks_after) in [(5_000_000, 8), (5_000_001, 8), (4096 * 77 - 1, 16)] {
            file.write_all_at(b"x", offset).unwrap();
            expected[offset as usize] = b'x';
            file.sync_all().unwrap();
            assert_eq!(blocks(), blocks_after, "after a byte at {offset}");
        }
        assert_content(kept.at("big"), &expected);
        // Over a border of pages.
        file.write_all_at(b"xyz", 4096 * 1000 - 1).unwrap();
        expected[4096 * 1000 - 1..][..3].copy_from_slice(b"xyz");
        file.sync_all().unwrap();
        assert_eq!(blocks(), 32);
        // A page of the base in whose place a hole is is not stored.
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, 4096 * 2000, 4096 * 1000).unwrap();
        expected[4096 * 2000..4096 * 3000].fill(0);
        file.sync_all().unwrap();
        assert_eq!(blocks(), 32);
        let mut appending = File::options().append(true).open(kept.at("big")).unwrap();
        appending.write_all(b"end").unwrap();
        expected.extend_from_slice(b"end");
        file.sync_all().unwrap();
        assert_eq!(blocks(), 40);
        drop((file, appending));
        assert_content(kept.at("big"), &expected);
        kept.remount();
        assert_content(kept.at("big"), &expected);
    });
}

/// Bytes of a file that are in the page cache.
fn cached(path: &Path) -> u64 {
    let output =
        Command::new("fincore").args(["-b", "-n", "-o", "RES"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn drop_from_cache(path: &Path) {
    let file = open(path, OFlags::RDONLY | OFlags::NOATIME).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn a_page_that_is_written_whole_is_not_read_from_the_base() {
    if !require_program("fincore") {
        return;
    }
    let Some(kept) = kept("copy_up=0") else { return };
    let below = kept.base.join("big");
    let file = create(kept.at("big"));
    file.write_all_at(&[1], 0).unwrap();
    drop_from_cache(&below);
    if cached(&below) != 0 {
        return eprintln!("SKIPPED: this filesystem keeps what it is told to drop");
    }
    // Of memory that is there: what has to be faulted in comes in pieces of any length.
    file.write_all_at(&vec![1; 4096], 4096 * 10).unwrap();
    assert_eq!(cached(&below), 0, "a page was read");
    file.write_all_at(&vec![2; 1 << 20], 4096 * 1000).unwrap();
    assert_eq!(cached(&below), 0, "pages were read");
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096 * 4).unwrap();
    rustix::fs::ftruncate(&file, 4096 * 3000).unwrap();
    assert_eq!(cached(&below), 0, "bytes of the base were read");
    file.write_all_at(&[3], 4096 * 20 + 5).unwrap();
    assert!(cached(&below) > 0, "what is left of the page comes from the base");
}
