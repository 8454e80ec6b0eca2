//! Harm done to the backing files, to the disk below and to the daemon.
//!
//! Whatever happens is the failure of one request: nobody hangs, and the daemon lives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::mapped::Mapped;
use common::mounted::{is_mounted, run};
use common::process::{my_part, run_part};
use common::*;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// How long the races run.
const RACE: Duration = Duration::from_millis(1500);

/// Repeats an action until the time is over; tells how often.
fn repeat(over: &AtomicBool, mut action: impl FnMut(u64)) -> u64 {
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        action(count);
        count += 1;
    }
    count
}

/// Lets the actions run at the same time for the time of a race.
fn race(actions: &mut [&mut (dyn FnMut(u64) + Send)]) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = actions
            .iter_mut()
            .map(|action| {
                let over = &over;
                scope.spawn(move || repeat(over, action))
            })
            .collect();
        let start = Instant::now();
        wait_until(RACE + Duration::from_secs(1), || {
            start.elapsed() > RACE || threads.iter().any(|thread| thread.is_finished())
        });
        over.store(true, Ordering::Relaxed);
        for thread in threads {
            match thread.join() {
                Ok(count) => assert!(count > 0),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
}

/// A result that a file may give that others cut and fill meanwhile.
#[track_caller]
fn expect_bytes_or_eio(result: std::io::Result<usize>) {
    if let Err(err) = result {
        assert_eq!(err.raw_os_error(), Some(Errno::IO.raw_os_error()), "{err}");
    }
}

#[test]
fn readers_and_writers_of_a_file_that_is_cut_under_them_go_on() {
    if !require_fuse() {
        return;
    }
    let mut mounted = MountedFs::new("access=write,attr_timeout=0");
    const LEN: u64 = 4 << 20;
    let backing = mounted.backing().join("victim");
    create(&backing).set_len(LEN).unwrap();
    let neighbour = pattern(300_000);
    fs::write(mounted.path().join("neighbour"), &neighbour).unwrap();

    let direct = create(&backing);
    let file = create(mounted.path().join("victim"));
    let neighbours = create(mounted.path().join("neighbour"));
    let (mut one, mut two, mut three) = (Random::new(1), Random::new(2), Random::new(3));
    let mut buffer = vec![0; 1 << 20];
    let mut space = vec![0; 300_000];
    race(&mut [
        &mut |_| {
            direct.set_len(one.below(LEN)).unwrap();
            direct.set_len(LEN).unwrap();
        },
        &mut |_| expect_bytes_or_eio(file.read_at(&mut buffer, two.below(LEN))),
        &mut |_| expect_bytes_or_eio(file.write_at(&[7; 100_000], three.below(LEN))),
        &mut |_| {
            neighbours.read_exact_at(&mut space, 0).unwrap();
            assert_bytes(&space, &neighbour);
        },
    ]);
    mounted.assert_alive();
    let told = mounted
        .log()
        .lines()
        .filter(|line| line.contains("victim: ") && line.contains(" of bytes "))
        .count();
    assert!(told <= 1, "it is told {told} times that the file was cut");
    drop((file, neighbours));
    direct.set_len(0).unwrap();
    direct.write_all_at(&pattern(100_000), 0).unwrap();
    assert_content(mounted.path().join("victim"), &pattern(100_000));
}

#[test]
fn what_lies_behind_the_new_end_of_a_file_is_the_end_of_the_file() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,attr_timeout=0");
    fs::write(mounted.backing().join("file"), pattern(1 << 20)).unwrap();
    let file = File::open(mounted.path().join("file")).unwrap();
    let mut bytes = vec![0; 1 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let direct = create(mounted.backing().join("file"));
    for len in [500_000, 4096, 1, 0] {
        direct.set_len(len as u64).unwrap();
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len);
        assert_bytes(&bytes[..len], &pattern(1 << 20)[..len]);
        assert_eq!(file.read_at(&mut bytes, 600_000).unwrap(), 0);
    }
    direct.set_len(600_000).unwrap();
    let read = file.read_at(&mut bytes, 0).unwrap();
    assert_bytes(&bytes[..read], &vec![0; 600_000]);
}

#[test]
fn a_client_that_maps_a_file_cut_below_dies_alone() {
    if !require_fuse() {
        return;
    }
    let mut mounted = MountedFs::new("access=write,attr_timeout=0");
    fs::write(mounted.backing().join("file"), pattern(1 << 20)).unwrap();
    fs::write(mounted.backing().join("other"), b"other").unwrap();
    let output = run_part("part_maps_and_is_cut", mounted.path());
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    assert_eq!(signal, Some(libc::SIGBUS), "it reads what is not there");
    mounted.assert_alive();
    assert_content(mounted.path().join("other"), b"other");
    assert_content(mounted.path().join("file"), &pattern(100));
}

#[test]
#[ignore = "a part of a_client_that_maps_a_file_cut_below_dies_alone"]
fn part_maps_and_is_cut() {
    let Some(mount) = my_part() else { return };
    let map = Mapped::shared(&create(mount.join("file")), 1 << 20).unwrap();
    map.read(0, 10_000);
    create(mount.with_file_name("source").join("file")).set_len(100).unwrap();
    // What the kernel had read ahead goes when it is told, or asks for the size.
    wait_for("the end of this process", || {
        fs::metadata(mount.join("file")).unwrap();
        map.read(500_000, 1);
        false
    });
}

#[test]
fn files_that_are_replaced_and_removed_under_open_descriptors_stay_readable() {
    if !require_fuse() {
        return;
    }
    let mut mounted = MountedFs::new("access=write,attr_timeout=0,entry_timeout=0");
    let (mount, backing) = (mounted.path().to_owned(), mounted.backing().to_owned());
    // Made where the mount does not see it, so that every version seen is whole.
    let staging = backing.with_file_name("staging");
    fs::write(backing.join("file"), [0; 10_000]).unwrap();
    let seen = AtomicU64::new(0);
    race(&mut [
        &mut |round| {
            fs::write(&staging, vec![round as u8; 10_000]).unwrap();
            fs::rename(&staging, backing.join("file")).unwrap();
        },
        &mut |_| {
            // One open file is one version, whole.
            let file = File::open(mount.join("file")).unwrap();
            let first = read_at(&file, 0, 5000);
            let second = read_at(&file, 5000, 5000);
            assert!(first.iter().chain(&second).all(|byte| *byte == first[0]), "torn");
            seen.fetch_add(1, Ordering::Relaxed);
        },
        &mut |round| {
            let name = backing.join(format!("coming-{}", round % 10));
            fs::write(&name, b"x").unwrap();
            fs::remove_file(name).unwrap();
        },
        &mut |_| {
            for name in names(&mount) {
                match errno(fs::symlink_metadata(mount.join(&name))) {
                    Ok(_) | Err(Errno::NOENT) => (),
                    Err(err) => panic!("{name}: {err}"),
                }
            }
        },
    ]);
    mounted.assert_alive();
    assert!(seen.load(Ordering::Relaxed) > 10);
}

#[test]
fn a_symlink_swapped_in_by_another_process_never_leads_outside() {
    if !require_fuse() {
        return;
    }
    let outside = TestDir::new();
    fs::create_dir(outside.path().join("d")).unwrap();
    fs::write(outside.path().join("d/file"), b"outside").unwrap();
    fs::write(outside.path().join("d/secret"), b"outside").unwrap();
    let before = snapshot(outside.path());
    let mounted = MountedFs::new("access=write,attr_timeout=0,entry_timeout=0");
    let (mount, backing) = (mounted.path().to_owned(), mounted.backing().to_owned());
    fs::create_dir(backing.join("d")).unwrap();
    fs::write(backing.join("d/file"), b"inside!").unwrap();
    let target = outside.path().join("d");
    // The client does not follow symlinks itself: what it reaches, the daemon reached.
    let at = open_directory(&mount);
    let reach = |name: &str, flags| {
        let resolve = ResolveFlags::NO_SYMLINKS;
        openat2(&at, name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644), resolve)
            .map(File::from)
    };
    race(&mut [
        &mut |_| {
            fs::rename(backing.join("d"), backing.join("kept")).unwrap();
            symlink(&target, backing.join("d")).unwrap();
            fs::remove_file(backing.join("d")).unwrap();
            fs::rename(backing.join("kept"), backing.join("d")).unwrap();
        },
        &mut |_| {
            if let Ok(file) = reach("d/file", OFlags::RDONLY) {
                let mut bytes = [0; 7];
                if file.read_at(&mut bytes, 0).is_ok_and(|count| count == 7) {
                    assert_eq!(&bytes, b"inside!");
                }
            }
            assert!(reach("d/secret", OFlags::RDONLY).is_err());
        },
        &mut |_| {
            if let Ok(file) = reach("d/file", OFlags::WRONLY) {
                let _ = file.write_at(b"inside!", 0);
            }
            if let Ok(dir) = reach("d", OFlags::PATH | OFlags::DIRECTORY) {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW;
                let mode = Mode::from_raw_mode(0o600);
                let _ = rustix::fs::openat(&dir, "made", flags | OFlags::CLOEXEC, mode).map(drop);
                let _ = rustix::fs::unlinkat(&dir, "made", AtFlags::empty());
                let _ = rustix::fs::chmodat(&dir, "file", mode, AtFlags::empty());
                let _ = rustix::fs::renameat(&dir, "secret", &dir, "stolen");
            }
        },
    ]);
    drop(at);
    snapshot(outside.path()).assert_same(&before, Scope::Everything);
}

/// Runs a test on a mount over a small filesystem.
fn on_a_small_filesystem(small: &SmallFs, test: impl Fn(&Path)) {
    let mut mounted = MountedFs::over(small.path(), "access=write");
    test(mounted.path());
    mounted.assert_alive();
}

fn fill_and_go_on(mount: &Path) {
    let file = create(mount.join("big"));
    let block = pattern(1 << 20);
    let mut written = 0u64;
    let failure = loop {
        match file.write_at(&block, written) {
            Ok(count) => written += count as u64,
            Err(err) => break err,
        }
        assert!(written < 1 << 30, "a full disk takes everything");
    };
    assert_eq!(failure.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{failure}");
    assert!(written >= 4 << 20, "only {written} bytes fit");
    // What was taken is there, and the rest of the filesystem works.
    assert_bytes(&read_at(&file, 1 << 20, 1 << 20), &block);
    fs::remove_file(mount.join("big")).unwrap();
    drop(file);
    wait_for("the space to be free again", || {
        fs::write(mount.join("after"), &block).and_then(|()| fs::read(mount.join("after"))).is_ok()
    });
    assert_content(mount.join("after"), &block);
}

#[test]
fn a_full_tmpfs_below_is_enospc_for_that_write_and_no_more() {
    if require_fuse() && require_root() {
        let small = SmallFs::tmpfs(16 << 20);
        on_a_small_filesystem(&small, fill_and_go_on);
    }
}

#[test]
fn a_full_ext4_below_is_enospc_for_that_write_and_no_more() {
    if require_fuse() && require_root() && require_program("mkfs.ext4") {
        let small = SmallFs::ext4(16 << 20);
        on_a_small_filesystem(&small, fill_and_go_on);
    }
}

fn fill_holes(mount: &Path) {
    let file = create(mount.join("sparse"));
    file.set_len(256 << 20).unwrap();
    let mut full = 0;
    for at in (0..256u64 << 20).step_by(1 << 20) {
        match errno(file.write_all_at(&[7; 300_000], at)) {
            Ok(()) => assert_eq!(full, 0, "the disk has space again"),
            Err(err) => {
                assert_eq!(err, Errno::NOSPC);
                full += 1;
            }
        }
    }
    assert!(full > 100, "{full}");
    assert_bytes(&read_at(&file, 2 << 20, 300_000), &[7; 300_000]);
    assert_eq!(file.metadata().unwrap().len(), 256 << 20);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 8 << 20).unwrap();
    file.write_all_at(&[8; 300_000], 1 << 20).unwrap();
    assert_bytes(&read_at(&file, 1 << 20, 300_000), &[8; 300_000]);
}

#[test]
fn a_hole_that_cannot_be_filled_is_enospc_and_no_more() {
    if require_fuse() && require_root() && require_program("mkfs.ext4") {
        on_a_small_filesystem(&SmallFs::ext4(16 << 20), fill_holes);
        on_a_small_filesystem(&SmallFs::tmpfs(16 << 20), fill_holes);
    }
}

#[test]
fn a_killed_daemon_leaves_errors_and_a_mount_that_can_be_taken_away() {
    if !require_fuse() {
        return;
    }
    let backing = TestDir::new();
    let mut mounted = MountedFs::over(backing.path(), "access=write,plane=mapped");
    let place = mounted.path().to_owned();
    let file = create(place.join("file"));
    file.write_all_at(b"written and not synced", 0).unwrap();
    let map_file = create(place.join("mapped"));
    map_file.set_len(10_000).unwrap();
    mounted.kill();
    assert!(is_mounted(&place));
    assert_eq!(error(fs::metadata(place.join("file"))), Errno::NOTCONN);
    assert!(file.write_at(b"more", 0).is_err());
    drop((file, map_file));
    assert_content(backing.path().join("file"), b"written and not synced");

    let live = MountedFs::new("access=write");
    let refused = run(&["umount".as_ref(), "--stale".as_ref(), live.path()]);
    assert!(!refused.status.success(), "a living mount is not stale");
    assert!(is_mounted(live.path()));

    let output = run(&["umount".as_ref(), "--stale".as_ref(), place.as_path()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!is_mounted(&place));
    let again = MountedFs::over(backing.path(), "access=write");
    assert_content(again.path().join("file"), b"written and not synced");
    let nlink = fs::metadata(again.path()).unwrap().nlink();
    assert_eq!(nlink, fs::metadata(backing.path()).unwrap().nlink());
}

#[test]
fn what_the_kernel_moves_itself_goes_on_without_the_daemon() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let backing = TestDir::new();
    let mut mounted = MountedFs::over(backing.path(), "access=write,plane=passthrough");
    let file = create(mounted.path().join("file"));
    file.write_all_at(b"before", 0).unwrap();
    mounted.kill();
    file.write_all_at(b" and after", 6).unwrap();
    assert_eq!(read_at(&file, 0, 16), b"before and after");
    drop(file);
    assert_content(backing.path().join("file"), b"before and after");
}

#[test]
fn a_backing_filesystem_that_fails_fails_its_own_files_only() {
    if !(require_fuse() && require_root()) {
        return;
    }
    // The filesystem that is going to fail: every page fault in its files ends in SIGBUS then.
    let mut failing = MountedFs::new("access=write,plane=mapped");
    fs::write(failing.path().join("file"), pattern(4 << 20)).unwrap();
    let source = TestDir::new();
    fs::write(source.path().join("good"), pattern(100_000)).unwrap();
    let place = source.directory("bad");
    let bound = Bound::new(failing.path(), &place);

    let mut mounted = MountedFs::over(source.path(), "access=write");
    let bad = create(mounted.path().join("bad/file"));
    let good = create(mounted.path().join("good"));
    assert_bytes(&read_at(&bad, 0, 4096), &pattern(4096));
    bad.write_all_at(b"mapped for writing", 0).unwrap();
    failing.kill();
    for at in (1u64 << 20..4 << 20).step_by(300_000) {
        assert!(bad.read_at(&mut [0; 10_000], at).is_err(), "at {at}");
        assert!(bad.write_at(&[7; 10_000], at + 100_000).is_err(), "at {at}");
        good.write_all_at(b"goes on", at % 90_000).unwrap();
        assert_eq!(read_at(&good, at % 90_000, 7), b"goes on");
    }
    assert!(fs::metadata(mounted.path().join("bad/file")).is_err());
    let listing = fs::read_dir(mounted.path().join("bad"));
    assert!(listing.and_then(Iterator::collect::<Result<Vec<_>, _>>).is_err());
    assert_eq!(names(mounted.path()), ["bad", "good"]);
    mounted.assert_alive();
    drop((bad, good));
    mounted.unmount();
    drop(bound);
}

#[test]
fn a_fifo_that_nobody_reads_blocks_nobody_else() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,threads=1");
    let fifo = mounted.path().join("fifo");
    let mode = Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| fs::read(&fifo).unwrap());
        fs::write(mounted.path().join("file"), b"goes on").unwrap();
        assert_content(mounted.path().join("file"), b"goes on");
        fs::write(&fifo, b"at last").unwrap();
        assert_eq!(blocked.join().unwrap(), b"at last");
    });
}

#[test]
fn faults_are_counted() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,attr_timeout=1000");
    fs::write(mounted.backing().join("file"), pattern(1 << 20)).unwrap();
    let file = create(mounted.path().join("file"));
    read_at(&file, 0, 4096);
    create(mounted.backing().join("file")).set_len(0).unwrap();
    // The kernel still trusts the size: it asks for bytes that are gone.
    let _ = file.read_at(&mut vec![0; 100_000], 500_000);
    let status = ask(mounted.path(), "json status").json();
    assert!(status["errors"]["faults"].is_u64(), "{status}");
    let of_file = ask(mounted.path(), "json status file").json();
    assert!(of_file["faults"].is_u64(), "{of_file}");
    assert_eq!(of_file["size"], 0);
}

#[test]
fn requests_that_go_on_failing_with_estale_leave_one_line_with_the_path_and_the_cause() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), b"x").unwrap();
    let mounted = MountedFs::over(dir.path(), "access=write,attr_timeout=0");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = rustix::fs::open(mounted.path().join("sub/file"), flags, Mode::empty()).unwrap();
    fs::remove_file(dir.path().join("sub/file")).unwrap();
    // The daemon may hold it open for a moment.
    wait_for("the file to be gone", || rustix::fs::fstat(&file).map(drop) == Err(Errno::STALE));
    for _ in 0..20 {
        assert_eq!(rustix::fs::fstat(&file).map(drop), Err(Errno::STALE));
    }
    let log = mounted.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("Stale file handle")).collect();
    let [line] = told[..] else { panic!("{log}") };
    assert!(line.contains(" sub/file: getattr failed: Stale file handle (os error 116): its "));
    assert!(line.ends_with(": again and again"), "{line}");
}
