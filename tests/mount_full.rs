//! No room: full filesystems, what is reserved for root, and RLIMIT_FSIZE end writing on each plane as they do on the
//! bare filesystem.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use common::mapped::Mapped;
use common::process::{my_part, run_good_part, run_part};
use common::raw;
use common::*;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

const USER: u32 = 40_001;
const BLOCK: usize = 64 << 10;

/// Writes until an error comes twice; tells it, and how much was written.
fn fill(file: &File) -> (u64, Errno) {
    let bytes = pattern(BLOCK);
    let mut at = 0;
    let mut write_until_full = |len: usize| {
        loop {
            match errno(file.write_at(&bytes[..len], at)) {
                Ok(count) => at += count as u64,
                Err(err) => return err,
            }
        }
    };
    for len in [BLOCK, 4096, 4096, 512, 1] {
        write_until_full(len);
        // What is set aside for blocks without a place becomes free when they get one.
        let _ = file.sync_all();
    }
    let err = write_until_full(1);
    (at, err)
}

/// Fills a filesystem and tries what needs more.
fn fill_and_go_on(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut note = |what: &str, outcome: String| lines.push(format!("{what}: {outcome}"));
    let early = create(dir.join("early"));
    early.write_all_at(&pattern(3 * BLOCK), 0).unwrap();
    let holes = create(dir.join("holes"));
    holes.set_len(1 << 20).unwrap();
    let big = create(dir.join("big"));
    let (written, err) = fill(&big);
    note("fill", format!("{err:?}"));
    assert_eq!(size(dir.join("big")), written);
    let overwritten = errno(early.write_at(&[1; BLOCK], BLOCK as u64));
    note("overwrite", format!("{overwritten:?}"));
    note("append", format!("{:?}", errno(early.write_at(&[2; 4 * BLOCK], 3 * BLOCK as u64))));
    note("into a hole", format!("{:?}", errno(holes.write_at(&[3; BLOCK], 512 << 10))));
    let more = 4 << 20;
    let kinds = [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE];
    note("preallocate", format!("{:?}", kinds.map(|kind| fallocate(&holes, kind, 0, more))));
    let map = Mapped::shared(&early, 3 * BLOCK).unwrap();
    map.write(5, b"stored");
    note("store where there is room", format!("{:?}", errno(map.sync())));
    drop(map);
    note("size", format!("{:?}", ["early", "holes"].map(|name| size(dir.join(name)))));
    note("direct", direct(dir));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    note("punch", format!("{:?}", fallocate(&big, punch, 0, 2 * BLOCK as u64)));
    note("into the room", format!("{:?}", errno(holes.write_at(&[4; BLOCK / 2], 512 << 10))));
    drop(big);
    fs::remove_file(dir.join("big")).unwrap();
    // FUSE gives a file back a moment after it was closed.
    wait_for("the room of a removed file", || early.write_all_at(&[5; 8 * BLOCK], 7).is_ok());
    let mut content = fs::read(dir.join("early")).unwrap();
    content.dedup();
    note("content", format!("{:?}", &content[content.len() - 3..]));
    lines
}

/// Direct I/O into a new file.
fn direct(dir: &Path) -> String {
    let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::CREATE;
    let made = open(dir.join("direct"), flags);
    let bytes = vec![9; BLOCK + 4096];
    let start = bytes.as_ptr().align_offset(4096);
    let written = made.and_then(|file| errno(file.write_at(&bytes[start..start + BLOCK], 0)));
    // How much room there is, if any, is not said.
    format!("{:?}", written.map(|count| count <= BLOCK))
}

#[test]
fn a_full_tmpfs_is_full() {
    same_over(|| SmallFs::tmpfs(4 << 20), fill_and_go_on);
}

#[test]
fn a_full_ext4_is_full() {
    if require_program("mkfs.ext4") {
        same_over(|| SmallFs::ext4(8 << 20), fill_and_go_on);
    }
}

/// Makes a directory that everybody may write.
fn public(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("public");
    fs::create_dir(&path).unwrap();
    set_mode(&path, 0o777);
    path
}

/// An ext4 of which a part is for root alone.
fn with_reserve() -> SmallFs {
    SmallFs::ext4_with_reserve(8 << 20, 40)
}

/// Fills a file as a user, whoever has it open already, and then goes on as root.
fn fill_by_user(dir: &Path, opened_first_by: Option<&Caller>) -> (Errno, bool, bool) {
    let path = public(dir).join("file");
    let user = Caller::new(USER);
    drop(user.run(|| create(&path)));
    set_mode(&path, 0o666);
    let held = opened_first_by.map(|caller| caller.run(|| open(&path, OFlags::RDWR).unwrap()));
    let (written, err) = user.run(|| fill(&open(&path, OFlags::RDWR).unwrap()));
    drop(held);
    let by_root = create(dir.join("by root"));
    let root_goes_on = by_root.write_all_at(&pattern(16 * BLOCK), 0).is_ok();
    (err, written < 6 << 20, root_goes_on)
}

#[test]
fn what_is_reserved_for_root_is_not_for_users() {
    if !require_program("mkfs.ext4") {
        return;
    }
    same_over(with_reserve, |dir| {
        let filled = fill_by_user(dir, None);
        assert_eq!(filled, (Errno::NOSPC, true, true));
    });
    same_over(with_reserve, |dir| {
        let filled = fill_by_user(dir, Some(&Caller::new(USER + 1).groups(&[USER])));
        assert_eq!(filled, (Errno::NOSPC, true, true));
    });
}

#[test]
fn what_is_reserved_for_root_is_not_for_users_who_write_to_a_file_that_root_has_open() {
    if require_program("mkfs.ext4") {
        same_over(with_reserve, |dir| fill_by_user(dir, Some(&Caller::new(0))));
    }
}

#[test]
#[ignore = "a part of another test"]
fn part_of_storing_into_a_hole() {
    let Some(dir) = my_part() else { return };
    let holes = create(dir.join("holes"));
    holes.set_len(1 << 20).unwrap();
    fill(&create(dir.join("big")));
    let map = Mapped::shared(&holes, 1 << 20).unwrap();
    map.write(512 << 10, b"stored");
    let synced = errno(map.sync());
    assert_eq!(synced, Err(Errno::NOSPC));
}

/// Whether a process was ended by this signal.
fn died_of(output: &Output, signal: i32) -> bool {
    output.status.signal() == Some(signal)
}

#[test]
fn a_store_into_a_hole_of_a_full_filesystem_is_never_taken_for_written() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let part = "part_of_storing_into_a_hole";
    let bare = SmallFs::tmpfs(4 << 20);
    assert!(died_of(&run_part(part, bare.path()), libc::SIGBUS));
    for plane in PLANES {
        let source = SmallFs::tmpfs(4 << 20);
        let mounted = MountedFs::over(source.path(), &format!("access=write,plane={plane}"));
        if plane == "mapped" {
            // The store goes to a page of FUSE, which there is. Writing it back says what is wrong.
            run_good_part(part, mounted.path());
        } else {
            let output = run_part(part, mounted.path());
            assert!(died_of(&output, libc::SIGBUS), "plane={plane}: {output:?}");
        }
    }
}

/// Of which size a file may be.
const LIMIT: u64 = 100_000;

fn set_limit() {
    let limit = Rlimit { current: Some(LIMIT), maximum: None };
    setrlimit(Resource::Fsize, limit).unwrap();
}

#[test]
#[ignore = "a part of another test"]
fn part_that_goes_over_the_limit() {
    let Some(dir) = my_part() else { return };
    raw::ignore_signal(libc::SIGXFSZ);
    let long = create(dir.join("long"));
    long.write_all_at(&pattern(200_000), 0).unwrap();
    set_limit();
    let file = create(dir.join("file"));
    let appending = open(dir.join("long"), OFlags::WRONLY | OFlags::APPEND).unwrap();
    let write = |file: &File, len: usize, at: u64| errno(file.write_at(&vec![1; len], at));
    let lines = [
        format!("{:?}", write(&file, 10_000, 0)),
        format!("{:?}", write(&file, 10_000, LIMIT - 3000)),
        format!("{:?}", write(&file, 1, LIMIT)),
        format!("{:?}", write(&file, 1, LIMIT - 1)),
        format!("{:?}", write(&long, 1, 150_000)),
        format!("{:?}", write(&long, 1, 50_000)),
        format!("{:?}", write(&appending, 1, 0)),
        format!("{:?}", errno(file.set_len(LIMIT + 1))),
        format!("{:?}", errno(file.set_len(LIMIT))),
        format!("{:?}", errno(long.set_len(LIMIT + 1))),
        format!("{:?}", raw::truncate(&dir.join("file"), LIMIT + 1)),
        format!("{:?}", fallocate(&file, FallocateFlags::empty(), 0, LIMIT + 1)),
        format!("{:?}", fallocate(&file, FallocateFlags::KEEP_SIZE, 0, LIMIT + 1)),
        format!("{} {}", size(dir.join("file")), size(dir.join("long"))),
    ];
    fs::write(dir.join("outcomes"), lines.join("\n")).unwrap();
}

#[test]
#[ignore = "a part of another test"]
fn part_that_is_ended_at_the_limit() {
    let Some(dir) = my_part() else { return };
    let file = create(dir.join("file"));
    set_limit();
    file.write_all_at(&[1; 10], LIMIT).unwrap();
}

#[test]
fn nobody_writes_beyond_the_limit_of_its_process() {
    same_on_each_plane(|dir| {
        run_good_part("part_that_goes_over_the_limit", dir);
        fs::read_to_string(dir.join("outcomes")).unwrap()
    });
}

#[test]
fn who_writes_beyond_the_limit_of_its_process_gets_a_signal() {
    same_on_each_plane(|dir| {
        let output = run_part("part_that_is_ended_at_the_limit", dir);
        assert!(died_of(&output, libc::SIGXFSZ), "{output:?}");
        size(dir.join("file"))
    });
}
