//! Changes made directly to the backing tree, and when they are seen through the mount.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::mapped::Mapped;
use common::*;
use rustix::fs::{FallocateFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// Nothing is trusted for any time: a change is seen by the next call.
const AT_ONCE: &str = "access=write,attr_timeout=0,entry_timeout=0,negative_timeout=0";

/// Runs a test with the root of a mount and its backing directory.
fn on_a_mount(options: &str, test: impl Fn(&Path, &Path)) {
    if require_fuse() {
        let mounted = MountedFs::new(options);
        test(mounted.path(), mounted.backing());
    }
}

/// Reads the whole file by the mount, so that the kernel caches it.
fn warm(path: &Path) -> File {
    let file = create(path);
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    file
}

#[test]
fn names_that_come_and_go_are_seen_at_once() {
    on_a_mount(AT_ONCE, |mount, backing| {
        for round in 0..20 {
            let name = format!("{round}");
            assert_eq!(error(fs::metadata(mount.join(&name))), Errno::NOENT);
            fs::write(backing.join(&name), b"x").unwrap();
            assert_content(mount.join(&name), b"x");
            assert_eq!(names(mount), names(backing));
            fs::rename(backing.join(&name), backing.join("moved")).unwrap();
            assert_eq!(error(fs::metadata(mount.join(&name))), Errno::NOENT);
            assert_content(mount.join("moved"), b"x");
            fs::remove_file(backing.join("moved")).unwrap();
            assert_eq!(error(File::open(mount.join("moved"))), Errno::NOENT);
            assert_eq!(names(mount), Vec::<String>::new());
        }
    });
}

#[test]
fn growth_and_truncation_are_seen_at_once_by_name_and_by_descriptor() {
    on_a_mount(AT_ONCE, |mount, backing| {
        fs::write(backing.join("file"), b"").unwrap();
        let direct = create(backing.join("file"));
        let file = warm(&mount.join("file"));
        for len in [10_000, 3, 200_000, 4096, 0, 4097] {
            direct.set_len(0).unwrap();
            direct.write_all_at(&pattern(len), 0).unwrap();
            assert_eq!(size(mount.join("file")), len as u64);
            assert_eq!(file.metadata().unwrap().len(), len as u64);
            assert_bytes(&read_at(&file, 0, len), &pattern(len));
            assert_eq!(file.read_at(&mut [0; 10], len as u64).unwrap(), 0);
            assert_content(mount.join("file"), &pattern(len));
        }
    });
}

#[test]
fn data_overwritten_in_place_is_seen_at_once_though_the_kernel_has_cached_it() {
    on_a_mount(AT_ONCE, |mount, backing| {
        fs::write(backing.join("file"), [b'a'; 100_000]).unwrap();
        let direct = create(backing.join("file"));
        let file = warm(&mount.join("file"));
        let mut expected = vec![b'a'; 100_000];
        for round in 0..50u8 {
            let at = usize::from(round) * 1999;
            direct.write_all_at(&[round; 3], at as u64).unwrap();
            expected[at..at + 3].fill(round);
            assert_bytes(&read_at(&file, 0, 100_000), &expected);
            assert_content(mount.join("file"), &expected);
        }
    });
}

#[test]
fn what_a_mapping_of_the_backing_file_writes_and_syncs_is_seen_at_once() {
    on_a_mount(AT_ONCE, |mount, backing| {
        fs::write(backing.join("file"), [b'a'; 100_000]).unwrap();
        let direct = create(backing.join("file"));
        let map = Mapped::shared(&direct, 100_000).unwrap();
        let file = warm(&mount.join("file"));
        for round in 0..10u8 {
            let at = usize::from(round) * 9973;
            map.write(at, &[round; 5]);
            map.sync().unwrap();
            assert_eq!(read_at(&file, at as u64, 5), [round; 5]);
        }
    });
}

#[test]
fn holes_punched_below_are_seen_at_once() {
    on_a_mount(AT_ONCE, |mount, backing| {
        let mut expected = pattern(100_000);
        fs::write(backing.join("file"), &expected).unwrap();
        let file = warm(&mount.join("file"));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(create(backing.join("file")), punch, 5000, 50_000).unwrap();
        expected[5000..55_000].fill(0);
        assert_bytes(&read_at(&file, 0, 100_000), &expected);
    });
}

#[test]
fn a_file_replaced_by_rename_is_seen_at_once_and_the_open_one_stays() {
    on_a_mount(AT_ONCE, |mount, backing| {
        fs::write(backing.join("file"), b"old content").unwrap();
        let open = warm(&mount.join("file"));
        for round in 0..20 {
            let bytes = format!("content of round {round}");
            fs::write(backing.join("new"), &bytes).unwrap();
            fs::rename(backing.join("new"), backing.join("file")).unwrap();
            assert_content(mount.join("file"), bytes.as_bytes());
            assert_eq!(inode(mount.join("file")), inode(backing.join("file")));
        }
        assert_eq!(read_at(&open, 0, 11), b"old content");
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        open.write_all_at(b"OLD", 0).unwrap();
        assert_eq!(read_at(&open, 0, 11), b"OLD content");
    });
}

#[test]
fn a_name_that_changes_its_kind_is_seen_at_once() {
    on_a_mount(AT_ONCE, |mount, backing| {
        for _ in 0..10 {
            fs::write(backing.join("name"), b"file").unwrap();
            assert_content(mount.join("name"), b"file");
            fs::remove_file(backing.join("name")).unwrap();
            fs::create_dir(backing.join("name")).unwrap();
            fs::write(backing.join("name/inside"), b"in").unwrap();
            assert_content(mount.join("name/inside"), b"in");
            fs::remove_dir_all(backing.join("name")).unwrap();
            symlink("target", backing.join("name")).unwrap();
            assert_eq!(fs::read_link(mount.join("name")).unwrap(), Path::new("target"));
            fs::remove_file(backing.join("name")).unwrap();
        }
    });
}

#[test]
fn a_symlink_that_changes_its_target_is_seen_at_once() {
    on_a_mount(AT_ONCE, |mount, backing| {
        for target in ["one", "two", "three"] {
            symlink(target, backing.join("new")).unwrap();
            fs::rename(backing.join("new"), backing.join("link")).unwrap();
            assert_eq!(fs::read_link(mount.join("link")).unwrap(), Path::new(target));
        }
    });
}

#[test]
fn attributes_changed_below_are_seen_at_once() {
    on_a_mount(AT_ONCE, |mount, backing| {
        let (seen, direct) = (mount.join("file"), backing.join("file"));
        fs::write(&direct, b"x").unwrap();
        let file = warm(&seen);
        for bits in [0o444, 0o600, 0o755] {
            set_mode(&direct, bits);
            assert_eq!(mode(&seen), bits);
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, bits);
        }
        create(&direct).set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(fs::metadata(&seen).unwrap().mtime(), 0);
        rustix::fs::lsetxattr(&direct, "user.x", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(xattr(&seen, "user.x").unwrap(), b"1");
        rustix::fs::lremovexattr(&direct, "user.x").unwrap();
        assert_eq!(xattr(&seen, "user.x"), Err(Errno::NODATA));
        fs::hard_link(&direct, backing.join("second")).unwrap();
        assert_eq!((links(&seen), inode(&seen)), (2, inode(mount.join("second"))));
    });
}

#[test]
fn a_directory_moved_below_is_found_where_it_is_and_stays_usable_where_it_is_held() {
    on_a_mount(AT_ONCE, |mount, backing| {
        fs::create_dir_all(backing.join("a/b/c")).unwrap();
        fs::write(backing.join("a/b/c/file"), b"x").unwrap();
        assert_content(mount.join("a/b/c/file"), b"x");
        let held = open_directory(mount.join("a/b"));
        let file = create(mount.join("a/b/c/file"));
        fs::rename(backing.join("a"), backing.join("moved")).unwrap();
        fs::rename(backing.join("moved/b"), backing.join("b")).unwrap();
        assert_eq!(error(fs::metadata(mount.join("a"))), Errno::NOENT);
        assert_eq!(error(fs::metadata(mount.join("moved/b"))), Errno::NOENT);
        assert_content(mount.join("b/c/file"), b"x");
        file.write_all_at(b"y", 0).unwrap();
        assert_content(backing.join("b/c/file"), b"y");
        let flags = OFlags::CREATE | OFlags::WRONLY;
        let made = rustix::fs::openat(&held, "made", flags, Mode::from_raw_mode(0o644));
        assert!(made.is_ok(), "{made:?}");
        assert_eq!(names(backing.join("b")), ["c", "made"]);
    });
}

#[test]
fn an_open_file_is_reached_when_all_its_parents_are_gone() {
    on_a_mount(AT_ONCE, |mount, backing| {
        fs::create_dir_all(backing.join("a/b")).unwrap();
        fs::write(backing.join("a/b/file"), pattern(10_000)).unwrap();
        let file = create(mount.join("a/b/file"));
        fs::remove_dir_all(backing.join("a")).unwrap();
        assert_bytes(&read_at(&file, 0, 10_000), &pattern(10_000));
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(b"still", 20_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 20_005);
        assert_eq!(error(fs::metadata(mount.join("a"))), Errno::NOENT);
    });
}

#[test]
fn a_growing_log_is_followed_through_an_open_descriptor() {
    on_a_mount(AT_ONCE, |mount, backing| {
        let mut log = File::options().append(true).create(true).open(backing.join("log")).unwrap();
        let mut follower = File::open(mount.join("log")).unwrap();
        let (mut expected, mut seen) = (Vec::new(), Vec::new());
        for round in 0..200 {
            let line = format!("line {round} of the log\n");
            log.write_all(line.as_bytes()).unwrap();
            expected.extend_from_slice(line.as_bytes());
            follower.read_to_end(&mut seen).unwrap();
            assert_bytes(&seen, &expected);
        }
    });
}

#[test]
fn what_the_mount_writes_is_in_the_backing_tree_without_a_sync() {
    on_a_mount("access=write", |mount, backing| {
        let file = create(mount.join("file"));
        for round in 0..50u64 {
            file.write_all_at(&round.to_le_bytes(), round * 5003).unwrap();
            let direct = File::open(backing.join("file")).unwrap();
            assert_eq!(read_at(&direct, round * 5003, 8), round.to_le_bytes());
            assert_eq!(direct.metadata().unwrap().len(), round * 5003 + 8);
        }
        file.set_len(7).unwrap();
        assert_eq!(size(backing.join("file")), 7);
        set_mode(mount.join("file"), 0o611);
        assert_eq!(mode(backing.join("file")), 0o611);
    });
}

#[test]
fn writers_on_both_sides_lose_nothing() {
    on_a_mount(AT_ONCE, |mount, backing| {
        let bytes = pattern(1 << 20);
        create(backing.join("file")).set_len(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for (side, dir) in [mount, backing].into_iter().enumerate() {
                let bytes = &bytes;
                scope.spawn(move || {
                    let file = create(dir.join("file"));
                    for (index, part) in bytes.chunks(3001).enumerate() {
                        if index % 2 == side {
                            file.write_all_at(part, index as u64 * 3001).unwrap();
                        }
                    }
                });
            }
        });
        assert_content(backing.join("file"), &bytes);
        assert_content(mount.join("file"), &bytes);
    });
}

/// Waits until `seen` holds and fails when it takes longer than a timeout of half a second allows.
#[track_caller]
fn within_the_timeout(what: &str, seen: impl FnMut() -> bool) {
    let start = Instant::now();
    // The machine may be busy: what is wrong here is wrong for good, or for the default second.
    assert!(wait_until(Duration::from_millis(900), seen), "{what} is not seen in time");
    eprintln!("{what}: seen after {:?}", start.elapsed());
}

#[test]
fn with_a_timeout_changes_are_seen_within_it() {
    let options = "access=write,attr_timeout=0.3,entry_timeout=0.3,negative_timeout=0.3";
    on_a_mount(options, |mount, backing| {
        let at = |name: &str| mount.join(name);
        for name in ["grows", "shrinks", "changes", "mode", "goes", "replaced"] {
            fs::write(backing.join(name), [b'a'; 5000]).unwrap();
            warm(&at(name));
        }
        assert_eq!(error(fs::metadata(at("comes"))), Errno::NOENT);
        fs::write(backing.join("grows"), [b'b'; 9000]).unwrap();
        fs::write(backing.join("shrinks"), [b'b'; 100]).unwrap();
        create(backing.join("changes")).write_all_at(b"X", 4999).unwrap();
        set_mode(backing.join("mode"), 0o600);
        fs::remove_file(backing.join("goes")).unwrap();
        fs::write(backing.join("comes"), b"here").unwrap();
        fs::write(backing.join("new"), b"replaced").unwrap();
        fs::rename(backing.join("new"), backing.join("replaced")).unwrap();
        within_the_timeout("growth", || fs::read(at("grows")).unwrap() == [b'b'; 9000]);
        within_the_timeout("truncation", || fs::read(at("shrinks")).unwrap() == [b'b'; 100]);
        within_the_timeout("an overwrite", || fs::read(at("changes")).unwrap()[4999] == b'X');
        within_the_timeout("a mode", || mode(at("mode")) == 0o600);
        within_the_timeout("a removal", || fs::metadata(at("goes")).is_err());
        within_the_timeout("a new name", || fs::read(at("comes")).is_ok());
        within_the_timeout("a replacement", || fs::read(at("replaced")).unwrap() == b"replaced");
    });
}

/// Replaces `x` in a directory by rename, each time by a whole file that says who made it.
fn replace(dir: &Path, tag: &str, count: usize) {
    for round in 0..count {
        let new = dir.join(format!("new-{tag}"));
        fs::write(&new, format!("full-{tag}-{round:08}")).unwrap();
        fs::rename(&new, dir.join("x")).unwrap();
    }
}

/// Opens and reads `x`; tells what is wrong with it.
fn look_at(mount: &Path) -> Result<(), String> {
    let told = |what: &str| {
        let what = what.to_owned();
        move |err: std::io::Error| format!("{what}: {err}")
    };
    let file = File::open(mount.join("x")).map_err(told("open"))?;
    let mut bytes = [0; 100];
    let count = file.read_at(&mut bytes, 0).map_err(told("read"))?;
    let size = file.metadata().map_err(told("fstat"))?.len();
    match (count, size, &bytes[..5]) {
        (15, 15, b"full-") => Ok(()),
        _ => Err(format!("{count} bytes read, {size} by fstat")),
    }
}

#[test]
fn a_name_that_is_replaced_on_both_sides_opens_as_one_of_its_files() {
    for plane in ["passthrough", "mapped"] {
        on_a_mount(&format!("access=write,plane={plane}"), |mount, backing| {
            replace(backing, "s", 1);
            let (ended, wrong) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
            let read = || {
                let mut opens = 0;
                while !ended.load(Ordering::Relaxed) {
                    opens += 1;
                    if let Err(what) = look_at(mount) {
                        *wrong.lock().unwrap().entry(what).or_insert(0) += 1;
                    }
                }
                opens
            };
            let opens: u64 = std::thread::scope(|scope| {
                let readers = [(); 3].map(|()| scope.spawn(read));
                let writers = [(backing, "s"), (mount, "m")]
                    .map(|(dir, tag)| scope.spawn(move || replace(dir, tag, 700)));
                let written = writers.map(|writer| writer.join());
                ended.store(true, Ordering::Relaxed);
                written.into_iter().for_each(|written| written.unwrap());
                readers.into_iter().map(|reader| reader.join().unwrap()).sum()
            });
            let wrong = wrong.into_inner().unwrap();
            assert!(wrong.is_empty(), "plane={plane}, {opens} opens: {wrong:?}");
        });
    }
}

/// Whether two changes never have the same time (multigrain timestamps, since Linux 6.13).
fn has_exact_times() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|at: char| !at.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 13))
}

#[test]
fn a_size_set_directly_is_that_of_the_next_read() {
    if !has_exact_times() {
        return eprintln!("SKIPPED: times of change are not exact before Linux 6.13");
    }
    on_a_mount(&format!("{AT_ONCE},plane=mapped"), |mount, backing| {
        let direct = create(backing.join("file"));
        let file = File::open(mount.join("file")).unwrap();
        let mut bytes = vec![0; 10_000];
        for (round, size) in [1, 9_000, 5_000, 100].into_iter().cycle().take(3_000).enumerate() {
            direct.set_len(size).unwrap();
            let count = file.read_at(&mut bytes, 0).unwrap();
            assert_eq!(count as u64, size, "round {round}");
        }
    });
}

#[test]
fn a_byte_written_directly_is_in_the_next_read() {
    if !has_exact_times() {
        return eprintln!("SKIPPED: times of change are not exact before Linux 6.13");
    }
    on_a_mount(&format!("{AT_ONCE},plane=mapped"), |mount, backing| {
        fs::write(backing.join("file"), vec![0; 100_000]).unwrap();
        let direct = create(backing.join("file"));
        let file = File::open(mount.join("file")).unwrap();
        let (mut right, mut bytes) = (vec![0_u8; 100_000], vec![0; 100_000]);
        for round in 0..3_000_usize {
            let at = round * 1_999 % right.len();
            right[at] = right[at].wrapping_add(round as u8 | 1);
            direct.write_all_at(&right[at..=at], at as u64).unwrap();
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == right, "round {round}: the read shows what was there before");
        }
    });
}
