//! Mappings that applications make of files in the mount.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::mapped::{Mapped, Private, can_map};
use common::process::{my_part, run_good_part, run_part};
use common::*;
use rustix::fs::{AtFlags, CWD, OFlags, StatxFlags, Timespec, Timestamps, statx, utimensat};
use rustix::io::Errno;
use rustix::mm::ProtFlags;

const LEN: usize = 200_000;

#[test]
fn a_shared_mapping_and_the_file_are_the_same_bytes() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        let mut expected = pattern(LEN);
        file.write_all_at(&expected, 0).unwrap();
        let map = Mapped::shared(&file, LEN).unwrap();
        assert_bytes(&map.read(0, LEN), &expected);
        map.write(4090, b"through the mapping");
        expected[4090..4109].copy_from_slice(b"through the mapping");
        assert_bytes(&read_at(&file, 0, LEN), &expected);
        file.write_all_at(b"through the descriptor", 100_000).unwrap();
        expected[100_000..100_022].copy_from_slice(b"through the descriptor");
        assert_bytes(&map.read(0, LEN), &expected);
        map.sync().unwrap();
        assert_bytes(&read_at(&File::open(dir.join("file")).unwrap(), 0, LEN), &expected);
    });
}

#[test]
fn what_is_written_in_a_mapping_is_in_the_backing_file_after_msync() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    let mut expected = pattern(LEN);
    fs::write(mounted.backing().join("file"), &expected).unwrap();
    let backing = create(mounted.backing().join("file"));
    let backing_map = Mapped::shared_for_reading(&backing, LEN).unwrap();
    let file = create(mounted.path().join("file"));
    let map = Mapped::shared(&file, LEN).unwrap();
    for at in [0, 4095, 8192, LEN - 3] {
        map.write(at, b"new");
        map.sync().unwrap();
        expected[at..at + 3].copy_from_slice(b"new");
        assert_bytes(&read_at(&backing, 0, LEN), &expected);
        assert_bytes(&backing_map.read(0, LEN), &expected);
    }
    file.sync_all().unwrap();
    assert_content(mounted.backing().join("file"), &expected);
}

#[test]
fn what_is_written_by_write_is_in_every_mapping_of_the_backing_file_at_once() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    fs::write(mounted.backing().join("file"), pattern(LEN)).unwrap();
    let backing = create(mounted.backing().join("file"));
    let backing_map = Mapped::shared(&backing, LEN).unwrap();
    let file = create(mounted.path().join("file"));
    for at in [0, 4094, 65_536, LEN - 4] {
        file.write_all_at(b"word", at as u64).unwrap();
        assert_eq!(backing_map.read(at, 4), b"word");
        assert_eq!(read_at(&backing, at as u64, 4), b"word");
    }
}

#[test]
fn what_is_written_in_a_private_mapping_stays_in_it() {
    on_both(|dir| {
        fs::write(dir.join("file"), pattern(LEN)).unwrap();
        let file = open(dir.join("file"), OFlags::RDONLY).unwrap();
        let mut map = Private::new(&file, LEN).unwrap();
        map.write(5000, b"mine");
        assert_eq!(map.read(5000, 4), b"mine");
        assert_bytes(&map.read(8192, 1000), &pattern(LEN)[8192..9192]);
        drop(map);
        assert_content(dir.join("file"), &pattern(LEN));
    });
}

#[test]
fn a_file_can_grow_into_its_mapping() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.write_all_at(b"small", 0).unwrap();
        let len = 16 * page() as usize;
        let map = Mapped::shared(&file, len).unwrap();
        assert_eq!(map.read(0, 8), b"small\0\0\0");
        file.set_len(len as u64).unwrap();
        assert_eq!(map.read(len - 10, 10), [0; 10]);
        map.write(3 * page() as usize, b"grown");
        file.write_all_at(b"written", 9 * page()).unwrap();
        assert_eq!(map.read(9 * page() as usize, 7), b"written");
        map.sync().unwrap();
        assert_eq!(read_at(&file, 3 * page(), 5), b"grown");
    });
}

#[test]
fn the_rest_of_the_last_page_reads_as_zeros() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.write_all_at(&[7; 100], 0).unwrap();
        let map = Mapped::shared(&file, page() as usize).unwrap();
        assert_eq!(map.read(100, 3996), [0; 3996]);
        file.set_len(50).unwrap();
        assert_eq!(map.read(50, 100), [0; 100]);
        file.set_len(100).unwrap();
        assert_eq!(map.read(50, 50), [0; 50]);
    });
}

#[test]
fn a_mapping_outlives_its_descriptor_its_name_and_its_place() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.set_len(LEN as u64).unwrap();
        let map = Mapped::shared(&file, LEN).unwrap();
        drop(file);
        map.write(0, b"closed");
        fs::rename(dir.join("file"), dir.join("moved")).unwrap();
        map.write(10, b"moved");
        map.sync().unwrap();
        let again = File::open(dir.join("moved")).unwrap();
        assert_eq!(read_at(&again, 0, 15), b"closed\0\0\0\0moved");
        fs::remove_file(dir.join("moved")).unwrap();
        map.write(100_000, b"gone");
        map.sync().unwrap();
        assert_eq!(read_at(&again, 100_000, 4), b"gone");
        assert_eq!(map.read(100_000, 4), b"gone");
    });
}

#[test]
fn a_hole_is_filled_through_a_mapping() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.set_len(64 << 20).unwrap();
        let map = Mapped::shared(&file, 64 << 20).unwrap();
        for at in (0..64 << 20).step_by(5_000_011) {
            assert_eq!(map.read(at, 4), [0; 4]);
            map.write(at, b"fill");
        }
        map.sync().unwrap();
        for at in (0..64u64 << 20).step_by(5_000_011) {
            assert_eq!(read_at(&file, at, 6), b"fill\0\0");
        }
        assert!(file.metadata().unwrap().blocks() < 4096, "the holes between are filled");
    });
}

#[test]
fn a_mapping_is_allowed_what_its_descriptor_is() {
    same_on_both(|dir| {
        fs::write(dir.join("file"), pattern(10_000)).unwrap();
        let rights = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR];
        let protections = [ProtFlags::READ, ProtFlags::READ | ProtFlags::WRITE, ProtFlags::EXEC];
        let mut outcomes = Vec::new();
        for right in rights {
            let file = open(dir.join("file"), right).unwrap();
            outcomes.push(protections.map(|protection| can_map(&file, protection)));
        }
        assert_eq!(outcomes[0][1], Err(Errno::ACCESS));
        outcomes
    });
}

#[test]
fn a_write_through_a_mapping_moves_the_modification_time() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.set_len(LEN as u64).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        file.set_modified(long_ago).unwrap();
        let map = Mapped::shared(&file, LEN).unwrap();
        map.write(1000, b"now");
        map.sync().unwrap();
        assert!(file.metadata().unwrap().modified().unwrap() > long_ago + Duration::from_secs(60));
    });
}

#[test]
fn two_processes_share_a_mapping() {
    on_both(|dir| {
        let path = dir.join("shared");
        let file = create(&path);
        file.set_len(LEN as u64).unwrap();
        let map = Mapped::shared(&file, LEN).unwrap();
        map.write(0, b"question");
        run_good_part("part_answers_through_a_mapping", &path);
        assert_eq!(map.read(100_000, 6), b"answer");
        assert_eq!(read_at(&file, 100_000, 6), b"answer");
    });
}

#[test]
#[ignore = "a part of two_processes_share_a_mapping"]
fn part_answers_through_a_mapping() {
    let Some(path) = my_part() else { return };
    let map = Mapped::shared(&create(path), LEN).unwrap();
    assert_eq!(map.read(0, 8), b"question");
    map.write(100_000, b"answer");
}

#[test]
fn a_mapping_of_what_was_cut_off_raises_sigbus_and_only_that() {
    on_both(|dir| {
        let path = dir.join("cut");
        fs::write(&path, pattern(LEN)).unwrap();
        let output = run_part("part_touches_what_was_cut_off", &path);
        assert_eq!(output.status.signal(), Some(rustix::process::Signal::BUS.as_raw()));
        assert_bytes(&fs::read(&path).unwrap(), &pattern(10_000));
    });
}

#[test]
#[ignore = "a part of a_mapping_of_what_was_cut_off_raises_sigbus_and_only_that"]
fn part_touches_what_was_cut_off() {
    let Some(path) = my_part() else { return };
    let file = create(path);
    let map = Mapped::shared(&file, LEN).unwrap();
    map.read(0, LEN);
    file.set_len(10_000).unwrap();
    assert_bytes(&map.read(0, 10_000), &pattern(10_000));
    map.read(100_000, 1);
}

#[test]
fn threads_that_map_and_write_the_same_file_lose_nothing() {
    on_both(|dir| {
        let file = create(dir.join("file"));
        file.set_len(4 * LEN as u64).unwrap();
        let bytes = pattern(4 * LEN);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (file, bytes) = (&file, &bytes);
                scope.spawn(move || {
                    let map = Mapped::shared(file, 4 * LEN).unwrap();
                    let mine = thread * LEN..(thread + 1) * LEN;
                    // Two of them write through mappings and two through the descriptor, with
                    // borders inside of pages.
                    if thread % 2 == 0 {
                        map.write(mine.start, &bytes[mine]);
                    } else {
                        for (index, part) in bytes[mine].chunks(3001).enumerate() {
                            let at = thread * LEN + index * 3001;
                            file.write_all_at(part, at as u64).unwrap();
                        }
                    }
                });
            }
        });
        assert_content(dir.join("file"), &bytes);
    });
}

#[test]
fn random_reads_and_writes_through_mapping_and_descriptor_agree_with_a_model() {
    let random = Random::from_environment();
    on_both(|dir| {
        let mut random = random.clone();
        let file = create(dir.join("file"));
        let mut expected = vec![0; LEN];
        file.set_len(LEN as u64).unwrap();
        let map = Mapped::shared(&file, LEN).unwrap();
        for step in 0..300 {
            let at = random.below(LEN as u64 - 1) as usize;
            let len = (1 + random.below(20_000) as usize).min(LEN - at);
            let bytes = random.bytes(len);
            eprintln!("step {step}: {len} at {at}");
            match random.below(5) {
                0 => {
                    map.write(at, &bytes);
                    expected[at..at + len].copy_from_slice(&bytes);
                }
                1 => {
                    file.write_all_at(&bytes, at as u64).unwrap();
                    expected[at..at + len].copy_from_slice(&bytes);
                }
                2 => assert_bytes(&map.read(at, len), &expected[at..at + len]),
                3 => assert_bytes(&read_at(&file, at as u64, len), &expected[at..at + len]),
                _ => map.sync().unwrap(),
            }
        }
        drop(map);
        assert_content(dir.join("file"), &expected);
    });
}

/// Times of modification and change, without that of access: of a file that was lent to the kernel
/// the latter would have all of them asked for anew.
fn times(path: &Path) -> [(i64, u32); 2] {
    let wanted = StatxFlags::MTIME | StatxFlags::CTIME;
    let stat = statx(CWD, path, AtFlags::empty(), wanted).unwrap();
    [stat.stx_mtime, stat.stx_ctime].map(|time| (time.tv_sec, time.tv_nsec))
}

/// A file in a mount, with where its bytes are.
struct Timed {
    shown: PathBuf,
    backing: PathBuf,
    /// A store is in the backing file at once, and not when it is written back.
    lent: bool,
}

impl Timed {
    /// Sets the time of modification to long ago, and has the kernel cache it.
    fn age(&self) {
        let long_ago = Timespec { tv_sec: 1, tv_nsec: 0 };
        let times_set = Timestamps { last_access: long_ago, last_modification: long_ago };
        utimensat(CWD, &self.shown, &times_set, AtFlags::empty()).unwrap();
        assert_eq!(times(&self.shown), times(&self.backing));
    }

    /// Stores through a mapping and compares the times with those of the backing file.
    #[track_caller]
    fn store(&self, map: &Mapped, byte: u8) {
        map.write(5000, &[byte]);
        if !self.lent {
            map.sync().unwrap();
        }
        self.check(&format!("after {}", byte as char));
    }

    #[track_caller]
    fn check(&self, when: &str) {
        let (shown, backing) = (times(&self.shown), times(&self.backing));
        assert_eq!(shown, backing, "{} {when}", self.shown.display());
    }

    #[track_caller]
    fn assert_new(&self) {
        assert_ne!(times(&self.shown)[0].0, 1, "{} was not modified", self.shown.display());
    }

    /// What generic/080 and 215 of xfstests do, and more.
    fn run(&self) {
        fs::write(&self.shown, pattern(LEN)).unwrap();
        self.age();
        let file = create(&self.shown);
        self.age(); // While it is open.
        let map = Mapped::shared(&file, LEN).unwrap();
        assert_eq!(map.read(0, 10), pattern(10));
        self.check("after a read");
        self.store(&map, b'a');
        self.assert_new();
        map.sync().unwrap();
        self.age();
        self.store(&map, b'b');
        map.sync().unwrap();
        drop(file);
        self.age();
        self.store(&map, b'c'); // Without a descriptor.
        drop(map);
        self.check("after the mapping");
        // Opened and mapped, stored to, unmapped and closed.
        self.age();
        let file = create(&self.shown);
        self.check("after an open");
        let map = Mapped::shared(&file, LEN).unwrap();
        map.write(0, b"d");
        drop(map);
        drop(file);
        self.check("after the last close");
        self.assert_new();
    }
}

#[test]
fn a_store_through_a_mapping_shows_its_times_at_once() {
    if !require_fuse() {
        return;
    }
    let lends = |plane| rustix::process::geteuid().is_root() && plane != "mapped";
    for plane in PLANES {
        for watch in ["auto", "off"] {
            let mounted = MountedFs::new(&format!("access=write,plane={plane},watch={watch}"));
            let (shown, backing) = (mounted.path().join("file"), mounted.backing().join("file"));
            Timed { shown, backing, lent: lends(plane) }.run();
        }
        let (base, scratch) = (TestDir::new(), TestDir::new());
        let scratch = scratch.path().join("scratch");
        let options = format!("access=copy,plane={plane},scratch={}", scratch.display());
        let mounted = MountedFs::over(base.path(), &options);
        let (shown, backing) = (mounted.path().join("file"), scratch.join("upper/file"));
        Timed { shown, backing, lent: lends(plane) }.run();
    }
}
