//! Reading and writing: offsets, appending, truncation, the flags of open(2).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use common::*;
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

const MIB: usize = 1 << 20;

#[test]
fn bytes_written_at_odd_offsets_read_back() {
    on_both(|dir| {
        let file = create(dir.join("odd"));
        let mut expected = Vec::new();
        let mut random = Random::new(1);
        let page = page() as usize;
        let edges = [0, 1, page - 1, page, page + 1, 3 * page - 7, 128 << 10, MIB - 1, MIB];
        for round in 0..60 {
            let offset = random.pick(&edges) + random.below(3) as usize;
            let len = random.pick(&[1, 2, 511, page - 1, page, page + 1, 40_000]);
            let bytes = random.bytes(len);
            file.write_all_at(&bytes, offset as u64).unwrap();
            if expected.len() < offset + len {
                expected.resize(offset + len, 0);
            }
            expected[offset..offset + len].copy_from_slice(&bytes);
            let from = random.below(expected.len() as u64) as usize;
            let upto = expected.len().min(from + 70_000);
            eprintln!("round {round}: {from} to {upto} after {len} at {offset}");
            assert_bytes(&read_at(&file, from as u64, upto - from), &expected[from..upto]);
        }
        assert_content(dir.join("odd"), &expected);
    });
}

#[test]
fn files_of_a_mebibyte_and_a_byte_more_or_less_read_back_in_pieces_of_any_size() {
    on_both(|dir| {
        for len in [MIB - 1, MIB, MIB + 1, 3 * MIB + 5] {
            let bytes = pattern(len);
            let path = dir.join(format!("{len}"));
            std::fs::write(&path, &bytes).unwrap();
            assert_content(&path, &bytes);
            for piece in [4095, 4096, 65_537, MIB, 2 * MIB + 1] {
                let file = File::open(&path).unwrap();
                let mut read = Vec::new();
                while (&file).take(piece as u64).read_to_end(&mut read).unwrap() > 0 {}
                assert_bytes(&read, &bytes);
            }
        }
    });
}

#[test]
fn reading_at_the_end_and_past_it_gives_nothing() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.write_all_at(b"12345", 0).unwrap();
        let mut buffer = [7; 16];
        assert_eq!(file.read_at(&mut buffer, 3).unwrap(), 2);
        assert_eq!(file.read_at(&mut buffer, 5).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
        assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
        assert_eq!(file.write_at(&[], 100).unwrap(), 0);
        assert_eq!(size(dir.join("file")), 5);
    });
}

#[test]
fn appended_bytes_land_at_the_end_whatever_the_offset_is() {
    on_both(|dir| {
        let path = dir.join("log");
        let mut first = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        let mut second = OpenOptions::new().append(true).read(true).open(&path).unwrap();
        first.write_all(b"one ").unwrap();
        second.write_all(b"two ").unwrap();
        first.seek(SeekFrom::Start(0)).unwrap();
        first.write_all(b"three ").unwrap();
        let plain = OpenOptions::new().write(true).open(&path).unwrap();
        let four = [IoSlice::new(b"four")];
        rustix::io::pwritev2(&plain, &four, 0, ReadWriteFlags::APPEND).unwrap();
        assert_content(&path, b"one two three four");
    });
}

#[test]
fn append_mode_can_be_taken_from_an_open_descriptor() {
    on_both(|dir| {
        let path = dir.join("log");
        std::fs::write(&path, b"0123456789").unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).unwrap();
        file.seek(SeekFrom::Start(2)).unwrap();
        file.write_all(b"xx").unwrap();
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND).unwrap();
        file.write_all(b"end").unwrap();
        assert_content(&path, b"01xx456789end");
    });
}

#[test]
fn appenders_at_the_same_time_lose_nothing() {
    on_both(|dir| {
        let path = dir.join("log");
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
                scope.spawn(move || {
                    for _ in 0..100 {
                        file.write_all(&[b'a' + writer; 99]).unwrap();
                    }
                });
            }
        });
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 4 * 100 * 99);
        let whole = |record: &[u8]| record.iter().all(|byte| *byte == record[0]);
        assert!(bytes.chunks(99).all(whole), "records are torn");
    });
}

#[test]
fn writers_of_different_parts_of_a_file_lose_nothing() {
    on_both(|dir| {
        let file = create(dir.join("shared"));
        let bytes = pattern(4 * MIB);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let (file, bytes) = (&file, &bytes);
                scope.spawn(move || {
                    for (index, block) in bytes.chunks(10_007).enumerate() {
                        if index % 4 == writer {
                            file.write_all_at(block, index as u64 * 10_007).unwrap();
                        }
                    }
                });
            }
        });
        assert_content(dir.join("shared"), &bytes);
    });
}

#[test]
fn writing_past_the_end_fills_the_gap_with_zeros() {
    on_both(|dir| {
        let file = create(dir.join("gap"));
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(b"tail", 300_001).unwrap();
        let mut expected = vec![0; 300_005];
        expected[..4].copy_from_slice(b"head");
        expected[300_001..].copy_from_slice(b"tail");
        assert_content(dir.join("gap"), &expected);
    });
}

#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows_again() {
    on_both(|dir| {
        let path = dir.join("cut");
        let file = create(&path);
        let bytes = pattern(50_000);
        for keep in [0, 1, 4095, 4096, 4097, 40_000] {
            file.set_len(0).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            file.set_len(keep as u64).unwrap();
            file.set_len(50_000).unwrap();
            let mut expected = bytes.clone();
            expected[keep..].fill(0);
            assert_bytes(&read_at(&file, 0, 50_000), &expected);
            rustix::fs::ftruncate(&file, keep as u64).unwrap();
            file.write_all_at(b"z", 49_999).unwrap();
            expected[49_999] = b'z';
            assert_content(&path, &expected);
        }
    });
}

#[test]
fn two_descriptors_of_a_file_see_each_others_writes_at_once() {
    on_both(|dir| {
        let path = dir.join("both");
        let (one, two) = (create(&path), create(&path));
        for round in 0..50u64 {
            let bytes = round.to_le_bytes();
            one.write_all_at(&bytes, round * 1000).unwrap();
            assert_eq!(read_at(&two, round * 1000, 8), bytes);
            assert_eq!(two.metadata().unwrap().len(), round * 1000 + 8);
            two.write_all_at(b"again", round * 1000).unwrap();
            assert_eq!(read_at(&one, round * 1000, 5), b"again");
        }
    });
}

#[test]
fn copies_of_a_descriptor_share_its_offset() {
    on_both(|dir| {
        let mut file = create(dir.join("file"));
        let mut copy = file.try_clone().unwrap();
        file.write_all(b"abc").unwrap();
        copy.write_all(b"def").unwrap();
        assert_eq!(file.stream_position().unwrap(), 6);
        assert_content(dir.join("file"), b"abcdef");
    });
}

#[test]
fn the_flags_of_open_give_what_the_bare_filesystem_gives() {
    same_on_both(|dir| {
        std::fs::write(dir.join("file"), b"content").unwrap();
        std::fs::create_dir(dir.join("dir")).unwrap();
        symlink("file", dir.join("link")).unwrap();
        symlink("nothing", dir.join("dangling")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        let flags = [
            ("file", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
            ("dangling", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
            ("dir", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL),
            ("file", OFlags::RDONLY | OFlags::DIRECTORY),
            ("file/below", OFlags::RDONLY),
            ("link", OFlags::RDONLY | OFlags::NOFOLLOW),
            ("link", OFlags::RDWR),
            ("dangling", OFlags::RDONLY),
            ("loop", OFlags::RDONLY),
            ("dir", OFlags::WRONLY),
            ("dir", OFlags::RDWR),
            ("dir", OFlags::RDONLY),
            ("missing", OFlags::RDWR),
            ("missing/below", OFlags::RDWR | OFlags::CREATE),
            ("dangling", OFlags::RDWR | OFlags::CREATE),
            ("new", OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW),
            ("file", OFlags::RDONLY | OFlags::NOATIME),
            ("file", OFlags::PATH),
            ("link", OFlags::WRONLY | OFlags::TRUNC),
        ];
        let outcome = |(name, flags): (&str, OFlags)| {
            let opened = open(dir.join(name), flags).map(|_| ());
            format!("{name} {flags:?}: {opened:?}")
        };
        let outcomes: Vec<String> = flags.into_iter().map(outcome).collect();
        assert_eq!(size(dir.join("file")), 0, "O_TRUNC through a symlink");
        outcomes
    });
}

#[test]
fn a_descriptor_allows_only_what_it_was_opened_for() {
    on_both(|dir| {
        std::fs::write(dir.join("file"), b"content").unwrap();
        let reader = open(dir.join("file"), OFlags::RDONLY).unwrap();
        let writer = open(dir.join("file"), OFlags::WRONLY).unwrap();
        assert_eq!(error(reader.write_at(b"x", 0)), Errno::BADF);
        assert_eq!(error(reader.set_len(1)), Errno::INVAL);
        assert_eq!(error(writer.read_at(&mut [0; 4], 0)), Errno::BADF);
        writer.write_all_at(b"C", 0).unwrap();
        assert_eq!(read_at(&reader, 0, 7), b"Content");
    });
}

#[test]
fn a_file_opened_for_writing_only_takes_writes_of_parts_of_pages() {
    on_both(|dir| {
        let mut expected = pattern(30_000);
        std::fs::write(dir.join("file"), &expected).unwrap();
        let writer = open(dir.join("file"), OFlags::WRONLY | OFlags::APPEND).unwrap();
        rustix::fs::fcntl_setfl(&writer, OFlags::empty()).unwrap();
        writer.write_all_at(b"patch", 4094).unwrap();
        expected[4094..4099].copy_from_slice(b"patch");
        assert_content(dir.join("file"), &expected);
    });
}

#[test]
fn truncating_at_open_empties_the_file_for_every_reader() {
    on_both(|dir| {
        let path = dir.join("file");
        std::fs::write(&path, pattern(10_000)).unwrap();
        let reader = File::open(&path).unwrap();
        read_at(&reader, 0, 10_000);
        let writer = open(&path, OFlags::WRONLY | OFlags::TRUNC).unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 0);
        assert_eq!(reader.read_at(&mut [0; 10], 0).unwrap(), 0);
        writer.write_all_at(b"new", 5000).unwrap();
        let mut expected = vec![0; 5003];
        expected[5000..].copy_from_slice(b"new");
        assert_bytes(&read_at(&reader, 0, 5003), &expected);
    });
}

/// A part of `bytes` that begins at a page border, as O_DIRECT asks for.
fn aligned(bytes: &mut [u8], len: usize) -> &mut [u8] {
    let offset = bytes.as_ptr().align_offset(4096);
    &mut bytes[offset..offset + len]
}

#[test]
fn direct_reads_and_writes_agree_with_cached_ones() {
    on_both(|dir| {
        let path = dir.join("file");
        let mut expected = pattern(256 << 10);
        std::fs::write(&path, &expected).unwrap();
        let cached = create(&path);
        read_at(&cached, 0, expected.len());
        let direct = match open(&path, OFlags::RDWR | OFlags::DIRECT) {
            Err(Errno::INVAL) => return eprintln!("no O_DIRECT on this filesystem"),
            opened => opened.unwrap(),
        };
        let mut space = vec![0; 300 << 10];
        let block = aligned(&mut space, 64 << 10);
        block.fill(b'd');
        assert_eq!(direct.write_at(block, 32 << 10).unwrap(), 64 << 10);
        expected[32 << 10..96 << 10].fill(b'd');
        assert_bytes(&read_at(&cached, 0, expected.len()), &expected);
        cached.write_all_at(b"cached", 100_000).unwrap();
        expected[100_000..100_006].copy_from_slice(b"cached");
        let whole = aligned(&mut space, 256 << 10);
        assert_eq!(direct.read_at(whole, 0).unwrap(), expected.len());
        assert_bytes(whole, &expected);
        direct.sync_all().unwrap();
    });
}

#[test]
fn a_direct_write_extends_the_file_and_a_direct_read_stops_at_its_end() {
    on_both(|dir| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT;
        let Ok(direct) = open(dir.join("file"), flags) else {
            return eprintln!("no O_DIRECT on this filesystem");
        };
        let mut space = vec![b'x'; 64 << 10];
        let block = aligned(&mut space, 16 << 10);
        assert_eq!(direct.write_at(block, 16 << 10).unwrap(), 16 << 10);
        assert_eq!(direct.metadata().unwrap().len(), 32 << 10);
        direct.set_len(20_000).unwrap();
        assert_eq!(direct.read_at(block, 16 << 10).unwrap(), 20_000 - (16 << 10));
        assert_eq!(direct.read_at(block, 32 << 10).unwrap(), 0);
    });
}

#[test]
fn synchronous_writes_and_every_sync_call_succeed() {
    on_both(|dir| {
        for flag in [OFlags::SYNC, OFlags::DSYNC] {
            let flags = OFlags::RDWR | OFlags::CREATE | flag;
            let file = open(dir.join("file"), flags).unwrap();
            file.write_all_at(b"synchronous", 4090).unwrap();
            file.sync_all().unwrap();
            file.sync_data().unwrap();
            rustix::fs::syncfs(&file).unwrap();
            let written = [IoSlice::new(b"now")];
            rustix::io::pwritev2(&file, &written, 0, ReadWriteFlags::SYNC).unwrap();
            assert_eq!(read_at(&file, 4090, 11), b"synchronous");
        }
        open_directory(dir).sync_all().unwrap();
    });
}

#[test]
fn offsets_beyond_what_the_filesystem_holds_are_refused_as_it_refuses_them() {
    same_on_both(|dir| {
        let file = create(dir.join("file"));
        file.write_all_at(b"content", 0).unwrap();
        let outcomes = [1u64 << 45, 1 << 60, i64::MAX as u64 - 1]
            .map(|offset| (errno(file.write_at(b"far", offset)), errno(file.set_len(offset))));
        file.set_len(7).unwrap();
        assert_content(dir.join("file"), b"content");
        outcomes
    });
}

#[test]
fn vectored_reads_and_writes_cover_all_their_parts() {
    on_both(|dir| {
        let mut file = create(dir.join("file"));
        let bytes = pattern(20_000);
        let parts: Vec<IoSlice<'_>> = bytes.chunks(777).map(IoSlice::new).collect();
        assert_eq!(file.write_vectored(&parts).unwrap(), bytes.len());
        assert_content(dir.join("file"), &bytes);
    });
}

#[test]
fn sendfile_moves_bytes_in_and_out() {
    on_both(|dir| {
        let bytes = pattern(300_000);
        std::fs::write(dir.join("from"), &bytes).unwrap();
        let from = File::open(dir.join("from")).unwrap();
        let to = create(dir.join("to"));
        let mut offset = 0;
        while rustix::fs::sendfile(&to, &from, Some(&mut offset), 1 << 20).unwrap() > 0 {}
        assert_content(dir.join("to"), &bytes);
    });
}

#[test]
fn a_program_on_the_mount_can_be_run() {
    on_both(|dir| {
        // By another process: a child that a test beside this one starts would hold the copy open.
        let copied = Command::new("cp").arg("/bin/sh").arg(dir.join("shell")).status().unwrap();
        assert!(copied.success());
        let output = Command::new(dir.join("shell")).args(["-c", "echo runs"]).output().unwrap();
        assert_eq!(output.stdout, b"runs\n");
    });
}

fn assert_lock_conflicts(path: &Path, lock: fn(&File, FlockOperation) -> Result<(), Errno>) {
    let (one, two) = (create(path), create(path));
    lock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(lock(&two, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
    lock(&one, FlockOperation::Unlock).unwrap();
    lock(&two, FlockOperation::NonBlockingLockShared).unwrap();
    lock(&one, FlockOperation::NonBlockingLockShared).unwrap();
    drop(two);
    lock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn whole_file_locks_exclude_each_other() {
    on_both(|dir| {
        assert_lock_conflicts(&dir.join("file"), |file, lock| {
            rustix::fs::flock(file.as_fd(), lock)
        });
    });
}

#[test]
fn record_locks_exclude_other_processes() {
    if !require_program("python3") {
        return;
    }
    on_both(|dir| {
        let path = dir.join("file");
        let file = create(&path);
        let other = || {
            let script = "import fcntl,sys\nf=open(sys.argv[1],'r+b')\ntry:\n fcntl.lockf(f,\
                          fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError:\n sys.exit(3)";
            let status = Command::new("python3").args(["-c", script]).arg(&path).status();
            status.unwrap().code()
        };
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(other(), Some(3));
        rustix::fs::fcntl_lock(&file, FlockOperation::Unlock).unwrap();
        assert_eq!(other(), Some(0));
    });
}
