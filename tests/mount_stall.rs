//! Backing files that do not answer: whoever asks for them waits, and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use rustix::process::Signal;

/// How many of each kind of request wait for the stalled files: more than there are event loops.
const EACH: usize = 4;

/// One thing to do with a file of a directory.
type Use = fn(&Path, usize) -> std::io::Result<()>;

/// What clients do in a directory with the files 0, 1, 2 ... of 300,000 bytes.
const USES: [(&str, Use); 10] = [
    ("open and read", |dir, at| fs::read(dir.join(at.to_string())).map(drop)),
    ("stat", |dir, at| fs::metadata(dir.join(format!("{at}"))).map(drop)),
    ("look a missing name up", |dir, at| {
        assert!(fs::metadata(dir.join(format!("missing{at}"))).is_err());
        Ok(())
    }),
    ("list", |dir, _| fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>().map(drop)),
    ("write", |dir, at| {
        let file = File::options().write(true).open(dir.join(at.to_string()))?;
        file.write_all_at(b"written", 1000)
    }),
    ("synchronise", |dir, at| File::open(dir.join(at.to_string()))?.sync_all()),
    ("truncate", |dir, at| {
        File::options().write(true).open(dir.join(at.to_string()))?.set_len(300_000)
    }),
    ("create and remove", |dir, at| {
        let path = dir.join(format!("new{at}"));
        File::create_new(&path)?;
        fs::remove_file(path)
    }),
    ("make and remove a directory", |dir, at| {
        let path = dir.join(format!("dir{at}"));
        fs::create_dir(&path)?;
        fs::remove_dir(path)
    }),
    ("change permissions", |dir, at| {
        set_mode(dir.join(at.to_string()), 0o640);
        Ok(())
    }),
];

fn stalled_files_keep_nobody_else_waiting(options: &str) {
    if !(require_fuse() && require_root()) {
        return;
    }
    // The files of a mount whose daemon is stopped stall for as long as that lasts.
    let inner =
        MountedFs::new("access=write,plane=mapped,attr_timeout=0,entry_timeout=0,watch=off");
    let dir = TestDir::new();
    let (stalled, quick) = (dir.directory("stalled"), dir.directory("quick"));
    for place in [inner.backing(), &quick] {
        (0..EACH).for_each(|at| fs::write(place.join(at.to_string()), pattern(300_000)).unwrap());
    }
    let bound = Bound::new(inner.path(), &stalled);
    let mut mounted = MountedFs::over(dir.path(), options);
    let (stalled, quick) = (mounted.path().join("stalled"), mounted.path().join("quick"));
    let open: Vec<_> =
        (0..EACH).map(|at| File::open(stalled.join(at.to_string())).unwrap()).collect();

    inner.signal(Signal::STOP);
    let all_done = AtomicBool::new(false);
    let in_time = std::thread::scope(|scope| {
        for (at, file) in open.iter().enumerate() {
            scope.spawn(move || file.read_at(&mut [0; 10_000], 100_000).unwrap());
            for (name, use_it) in USES {
                let stalled = &stalled;
                scope.spawn(move || {
                    use_it(stalled, at).unwrap_or_else(|err| panic!("{name} (stalled): {err}"));
                });
            }
        }
        scope.spawn(|| {
            for _ in 0..50 {
                for at in 0..EACH {
                    for (name, use_it) in USES {
                        use_it(&quick, at).unwrap_or_else(|err| panic!("{name}: {err}"));
                    }
                }
            }
            assert!(rustix::fs::statvfs(mounted.path()).is_ok());
            all_done.store(true, Ordering::Release);
        });
        let in_time = wait_until(Duration::from_secs(60), || all_done.load(Ordering::Acquire));
        inner.signal(Signal::CONT);
        in_time
    });
    assert!(in_time, "stalled files have held up the others");
    mounted.assert_alive();
    drop(open);
    let mut expected = pattern(300_000);
    expected[1000..1007].copy_from_slice(b"written");
    for place in [&stalled, &quick] {
        (0..EACH).for_each(|at| assert_content(place.join(at.to_string()), &expected));
    }
    mounted.unmount();
    drop(bound);
}

#[test]
fn files_that_stall_keep_nobody_else_waiting_where_the_daemon_moves_the_bytes() {
    stalled_files_keep_nobody_else_waiting("access=write,plane=mapped,threads=2");
}

#[test]
fn files_that_stall_keep_nobody_else_waiting_where_the_kernel_does() {
    stalled_files_keep_nobody_else_waiting("access=write,plane=passthrough");
}

#[test]
fn files_that_stall_keep_nobody_else_waiting_without_file_handles_or_watch() {
    stalled_files_keep_nobody_else_waiting("access=write,watch=off,attr_timeout=0,entry_timeout=0");
}
