//! Space: holes, preallocation, copying inside the kernel, files without a name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::*;
use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags, SeekFrom, copy_file_range, fallocate};
use rustix::io::Errno;

/// Every run of data of a file, as lseek(2) tells it.
fn data_runs(file: &File) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return runs,
            data => {
                let start = data.unwrap();
                at = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
                runs.push((start, at));
            }
        }
    }
}

#[test]
fn holes_and_data_are_found_where_the_bare_filesystem_has_them() {
    let runs = |dir: &std::path::Path| {
        let file = create(dir.join("sparse"));
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&pattern(100_000), 1 << 20).unwrap();
        file.write_all_at(b"island", (5 << 20) + 17).unwrap();
        file.sync_all().unwrap();
        let past_the_end = errno(rustix::fs::seek(&file, SeekFrom::Data(9 << 20)));
        let at_the_end = errno(rustix::fs::seek(&file, SeekFrom::Hole(8 << 20)));
        (data_runs(&file), past_the_end, at_the_end)
    };
    same_on_both(|dir| {
        let found = runs(dir);
        assert!(found.0.len() >= 2, "no holes on this filesystem: {found:?}");
        found
    });
}

#[test]
fn a_sparse_file_of_a_tebibyte_costs_nothing_and_reads_as_zeros() {
    on_both(|dir| {
        let path = dir.join("huge");
        let file = create(&path);
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"far out", (1 << 40) - 7).unwrap();
        assert_eq!(read_at(&file, 1 << 39, 10_000), [0; 10_000]);
        assert_eq!(read_at(&file, (1 << 40) - 7, 7), b"far out");
        assert!(file.metadata().unwrap().blocks() < 1000);
        // What is left is small enough to be compared byte by byte.
        file.set_len(100).unwrap();
    });
}

/// The outcome of one fallocate(2): the result, the size, whether it holds blocks, the content.
type Outcome = (Result<(), Errno>, u64, bool, Vec<u8>);

fn outcomes_of(mode: FallocateFlags, dir: &std::path::Path) -> Vec<Outcome> {
    let ranges = [
        (0, 4096),
        (4096, 8192),
        (100, 50),
        (4000, 200),
        (4095, 8194),
        (60_000, 10_000),
        (65_536, 100_000),
        (200_000, 1),
    ];
    let outcome = |(index, (offset, len)): (usize, (u64, u64))| {
        let path = dir.join(format!("{}-{index}", mode.bits()));
        let file = create(&path);
        file.write_all_at(&pattern(65_536), 0).unwrap();
        read_at(&file, 0, 65_536);
        let result = fallocate(&file, mode, offset, len);
        let meta = file.metadata().unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_bytes(&read_at(&file, 0, content.len()), &content);
        (result, meta.len(), meta.blocks() > 0, content)
    };
    ranges.into_iter().enumerate().map(outcome).collect()
}

#[test]
fn preallocating_does_what_the_bare_filesystem_does() {
    same_on_both(|dir| outcomes_of(FallocateFlags::empty(), dir));
}

#[test]
fn preallocating_behind_the_end_does_what_the_bare_filesystem_does() {
    same_on_both(|dir| outcomes_of(FallocateFlags::KEEP_SIZE, dir));
}

#[test]
fn punching_a_hole_does_what_the_bare_filesystem_does() {
    same_on_both(|dir| outcomes_of(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, dir));
}

#[test]
fn zeroing_a_range_does_what_the_bare_filesystem_does() {
    same_on_both(|dir| outcomes_of(FallocateFlags::ZERO_RANGE, dir));
}

#[test]
fn zeroing_a_range_without_growing_does_what_the_bare_filesystem_does() {
    same_on_both(|dir| outcomes_of(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, dir));
}

#[test]
fn bad_arguments_of_fallocate_are_refused_as_the_bare_filesystem_refuses_them() {
    same_on_both(|dir| {
        let file = create(dir.join("file"));
        file.write_all_at(&pattern(10_000), 0).unwrap();
        let reader = open(dir.join("file"), OFlags::RDONLY).unwrap();
        let punch_only = FallocateFlags::PUNCH_HOLE;
        let outcomes = [
            fallocate(&file, FallocateFlags::empty(), 0, 0),
            fallocate(&file, punch_only, 0, 4096),
            fallocate(&file, FallocateFlags::empty(), 1 << 62, 4096),
            fallocate(&reader, FallocateFlags::empty(), 0, 4096),
            fallocate(open_directory(dir), FallocateFlags::empty(), 0, 4096),
        ];
        // A tmpfs has room at any offset.
        file.set_len(10_000).unwrap();
        assert_content(dir.join("file"), &pattern(10_000));
        outcomes
    });
}

#[test]
fn ranges_that_fuse_cannot_collapse_or_insert_are_refused_and_stay_as_they_are() {
    on_both(|dir| {
        for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            let file = create(dir.join(format!("{}", mode.bits())));
            let bytes = pattern(65_536);
            file.write_all_at(&bytes, 0).unwrap();
            match fallocate(&file, mode, 4096, 4096) {
                Err(err) => {
                    assert_eq!(err, Errno::OPNOTSUPP);
                    assert_bytes(&read_at(&file, 0, 65_536), &bytes);
                }
                Ok(()) => assert_ne!(file.metadata().unwrap().len(), 65_536),
            }
        }
    });
}

#[test]
fn a_punched_hole_is_seen_by_every_descriptor_at_once() {
    on_both(|dir| {
        let path = dir.join("file");
        let mut expected = pattern(100_000);
        std::fs::write(&path, &expected).unwrap();
        let reader = File::open(&path).unwrap();
        read_at(&reader, 0, 100_000);
        let writer = create(&path);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&writer, punch, 5000, 50_000).unwrap();
        expected[5000..55_000].fill(0);
        assert_bytes(&read_at(&reader, 0, 100_000), &expected);
        writer.write_all_at(b"filled", 20_000).unwrap();
        expected[20_000..20_006].copy_from_slice(b"filled");
        assert_bytes(&read_at(&reader, 0, 100_000), &expected);
    });
}

#[test]
fn ranges_are_copied_between_files_and_inside_one() {
    on_both(|dir| {
        let bytes = pattern(300_000);
        std::fs::write(dir.join("from"), &bytes).unwrap();
        let from = File::open(dir.join("from")).unwrap();
        let to = create(dir.join("to"));
        to.write_all_at(b"old", 0).unwrap();
        read_at(&to, 0, 3);

        let (mut input, mut output) = (1001, 5);
        let mut left = 200_000;
        while left > 0 {
            let copied =
                copy_file_range(&from, Some(&mut input), &to, Some(&mut output), left).unwrap();
            assert!(copied > 0);
            left -= copied;
        }
        assert_eq!((input, output), (201_001, 200_005));
        let mut expected = b"old\0\0".to_vec();
        expected.extend_from_slice(&bytes[1001..201_001]);
        assert_content(dir.join("to"), &expected);

        let (mut input, mut output) = (5, 150_000);
        copy_file_range(&to, Some(&mut input), &to, Some(&mut output), 1000).unwrap();
        let copied = expected[5..1005].to_vec();
        expected[150_000..151_000].copy_from_slice(&copied);
        assert_bytes(&read_at(&to, 0, expected.len()), &expected);
    });
}

#[test]
fn copying_a_range_is_refused_as_the_bare_filesystem_refuses_it() {
    same_on_both(|dir| {
        std::fs::write(dir.join("from"), pattern(10_000)).unwrap();
        let from = File::open(dir.join("from")).unwrap();
        let to = create(dir.join("to"));
        let copy = |from: &File, mut input, to: &File, mut output, len| {
            copy_file_range(from, Some(&mut input), to, Some(&mut output), len)
        };
        let outcomes = [
            copy(&from, 10_000, &to, 0, 100),
            copy(&from, 9_900, &to, 0, 1000),
            copy(&from, 50_000, &to, 0, 100),
            copy(&to, 0, &to, 10, 100),
            copy(&from, 0, &from, 5000, 100),
            copy(&to, 0, &from, 0, 100),
            copy(&from, 0, &open_directory(dir), 0, 100),
        ];
        (outcomes, size(dir.join("to")))
    });
}

#[test]
fn a_range_is_copied_into_the_mount_and_out_of_it() {
    let Some((mounted, other)) =
        require_fuse().then(|| (MountedFs::new("access=write"), TestDir::new()))
    else {
        return;
    };
    let bytes = pattern(100_000);
    std::fs::write(other.path().join("outside"), &bytes).unwrap();
    std::fs::copy(other.path().join("outside"), mounted.path().join("inside")).unwrap();
    assert_content(mounted.backing().join("inside"), &bytes);
    std::fs::copy(mounted.path().join("inside"), other.path().join("back")).unwrap();
    assert_content(other.path().join("back"), &bytes);
}

#[test]
fn a_file_without_a_name_can_be_used_and_be_given_one() {
    on_both(|dir| {
        let file = match open(dir, OFlags::TMPFILE | OFlags::RDWR) {
            Err(Errno::OPNOTSUPP) => return eprintln!("no O_TMPFILE on this filesystem"),
            opened => opened.unwrap(),
        };
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(&pattern(9000), 0).unwrap();
        assert_eq!(names(dir), Vec::<String>::new());
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        let named = dir.join("named");
        rustix::fs::linkat(CWD, by_descriptor, CWD, &named, AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 1);
        assert_content(&named, &pattern(9000));
        assert_eq!(inode(&named), file.metadata().unwrap().ino());
    });
}

#[test]
fn a_file_without_a_name_that_is_exclusive_cannot_be_given_one() {
    on_both(|dir| {
        let file = match open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL) {
            Err(Errno::OPNOTSUPP) => return eprintln!("no O_TMPFILE on this filesystem"),
            opened => opened.unwrap(),
        };
        file.write_all_at(b"x", 0).unwrap();
        let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = AtFlags::SYMLINK_FOLLOW;
        let linked = rustix::fs::linkat(CWD, by_descriptor, CWD, dir.join("named"), flags);
        assert_eq!(linked, Err(Errno::NOENT));
    });
}

#[test]
fn the_filesystem_tells_the_space_of_the_one_below() {
    same_on_both(|dir| {
        std::fs::write(dir.join("file"), b"x").unwrap();
        let seen = |stat: &rustix::fs::StatVfs| (stat.f_bsize, stat.f_blocks, stat.f_namemax);
        let by_path = rustix::fs::statvfs(dir.join("file")).unwrap();
        let by_file = rustix::fs::fstatvfs(File::open(dir.join("file")).unwrap()).unwrap();
        assert!(by_path.f_bfree > 0 && by_path.f_files > 0);
        assert_eq!(seen(&by_file), seen(&by_path));
        seen(&by_path)
    });
}
