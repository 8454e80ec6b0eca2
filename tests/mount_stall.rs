//! Backing files that do not answer: whoever asks for them waits, and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

    stop(&inner);
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

/// Makes what [`SCRATCH_USES`] are done to.
fn lay_out(place: &Path) {
    for at in 0..EACH {
        let file = |name: &str| place.join(format!("{name}{at}"));
        for name in ["read", "write", "cut", "mode", "move", "gone", "linked", "kept", "one", "two"]
        {
            fs::write(file(name), pattern(300_000)).unwrap();
        }
        fs::write(file("small"), pattern(5000)).unwrap();
        std::os::unix::fs::symlink("read0", file("symlink")).unwrap();
        for name in ["dir", "full", "empty"] {
            fs::create_dir(file(name)).unwrap();
        }
        fs::write(file("dir").join("inside"), b"inside").unwrap();
        fs::write(file("full").join("inside"), b"inside").unwrap();
    }
}

const RENAME_DIR: &str = "rename a directory";

/// What clients do in a directory of the base that was laid out so.
const SCRATCH_USES: [(&str, Use); 19] = [
    ("open and read", |dir, at| fs::read(dir.join(format!("read{at}"))).map(drop)),
    ("stat", |dir, at| fs::metadata(dir.join(format!("read{at}"))).map(drop)),
    ("look a missing name up", |dir, at| {
        assert!(fs::metadata(dir.join(format!("missing{at}"))).is_err());
        Ok(())
    }),
    ("list", |dir, _| fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>().map(drop)),
    ("write for the first time", |dir, at| {
        let file = File::options().write(true).open(dir.join(format!("write{at}")))?;
        file.write_all_at(b"written", 1000)
    }),
    ("write a small file for the first time", |dir, at| {
        let file = File::options().append(true).open(dir.join(format!("small{at}")))?;
        std::io::Write::write_all(&mut &file, b"appended")?;
        file.sync_all()
    }),
    ("truncate", |dir, at| {
        File::options().write(true).open(dir.join(format!("cut{at}")))?.set_len(100_000)
    }),
    ("create and remove", |dir, at| {
        let path = dir.join(format!("new{at}"));
        File::create_new(&path)?;
        fs::remove_file(path)
    }),
    ("make and remove a directory", |dir, at| {
        let path = dir.join(format!("newdir{at}"));
        fs::create_dir(&path)?;
        fs::remove_dir(path)
    }),
    ("change permissions", |dir, at| {
        set_mode(dir.join(format!("mode{at}")), 0o600);
        Ok(())
    }),
    ("set an attribute", |dir, at| {
        let path = dir.join(format!("kept{at}"));
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&path, "user.mark", b"value", flags)?;
        assert_eq!(xattr(&path, "user.mark").unwrap(), b"value");
        Ok(())
    }),
    ("rename a file", |dir, at| {
        fs::rename(dir.join(format!("move{at}")), dir.join(format!("moved{at}")))
    }),
    (RENAME_DIR, |dir, at| {
        let (from, to) = (dir.join(format!("dir{at}")), dir.join(format!("olddir{at}")));
        fs::rename(from, &to)?;
        fs::read(to.join("inside")).map(drop)
    }),
    ("exchange two files", |dir, at| {
        let (one, two) = (dir.join(format!("one{at}")), dir.join(format!("two{at}")));
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        Ok(rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, two, flags)?)
    }),
    ("remove a file", |dir, at| fs::remove_file(dir.join(format!("gone{at}")))),
    ("remove an empty directory", |dir, at| fs::remove_dir(dir.join(format!("empty{at}")))),
    ("remove a tree", |dir, at| fs::remove_dir_all(dir.join(format!("full{at}")))),
    ("make a link", |dir, at| {
        fs::hard_link(dir.join(format!("linked{at}")), dir.join(format!("link{at}")))
    }),
    ("make and read a symbolic link", |dir, at| {
        std::os::unix::fs::symlink("read0", dir.join(format!("new-symlink{at}")))?;
        fs::read_link(dir.join(format!("symlink{at}"))).map(drop)
    }),
];

/// Stops a daemon: no thread of it does anything when this returns.
#[track_caller]
fn stop(daemon: &MountedFs) {
    daemon.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", daemon.pid());
    wait_for("the daemon to stop", || {
        fs::read_dir(&tasks).unwrap().all(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status"));
            status.is_ok_and(|status| status.contains("State:\tT"))
        })
    });
}

/// Uses a part of the base that does not answer, and meanwhile the rest of the scratch.
fn a_stalled_directory_of_the_base_keeps_nobody_else_waiting(options: &str, rules: bool) {
    if !(require_fuse() && require_root()) {
        return;
    }
    const ROUNDS: usize = 10;
    // Where rules differ directories cannot be renamed.
    let uses = || SCRATCH_USES.into_iter().filter(move |(name, _)| !rules || *name != RENAME_DIR);
    let ruled = TestDir::new();
    let file = ruled.path().join("rules");
    fs::write(&file, "[[rule]]\nmatch = 'outer/**'\naccess = 'write'\n").unwrap();
    let options = match rules {
        true => format!("{options},rules={}", file.display()),
        false => String::from(options),
    };
    let inner =
        MountedFs::new("access=write,plane=mapped,attr_timeout=0,entry_timeout=0,watch=off");
    let (dir, plain) = (TestDir::new(), TestDir::new());
    drop(dir.directory("outer"));
    let stalled = dir.directory("outer/stalled");
    let bare = plain.path();
    let quick: Vec<_> = (0..ROUNDS).map(|round| dir.directory(&format!("quick{round}"))).collect();
    [inner.backing(), bare].into_iter().chain(quick.iter().map(|path| &**path)).for_each(lay_out);
    let bound = Bound::new(inner.path(), &stalled);
    let mut mounted = MountedFs::over(dir.path(), &options);
    let root = mounted.path();
    let place = |below: &Path| root.join(below.strip_prefix(dir.path()).unwrap());
    let stalled = place(&stalled);
    let quick: Vec<_> = quick.iter().map(|path| place(path)).collect();
    let path = |name: &str, at: usize| stalled.join(format!("{name}{at}"));
    let open_to_write = |path| File::options().read(true).write(true).open(path).unwrap();
    let read: Vec<_> = (0..EACH).map(|at| File::open(path("read", at)).unwrap()).collect();
    let closed: Vec<_> = (0..EACH).map(|at| File::open(path("kept", at)).unwrap()).collect();
    let written: Vec<_> = (0..EACH).map(|at| open_to_write(path("two", at))).collect();
    fs::write(root.join("own"), b"of the scratch alone").unwrap();

    stop(&inner);
    let all_done = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    let doing = Mutex::new(String::new());
    let note = |what: &str, place: &Path| *doing.lock().unwrap() = format!("{what} {place:?}");
    let (in_time, waiting) = std::thread::scope(|scope| {
        let (stalled, answered) = (&stalled, &answered);
        for at in 0..EACH {
            let (read, written) = (&read[at], &written[at]);
            scope.spawn(move || read.read_at(&mut [0; 10_000], 100_000).unwrap());
            scope.spawn(move || written.write_all_at(b"written", 200_000).unwrap());
            for (name, use_it) in uses() {
                scope.spawn(move || {
                    use_it(stalled, at).unwrap_or_else(|err| panic!("{name} (stalled): {err}"));
                    answered.fetch_add(1, Ordering::AcqRel);
                });
            }
        }
        closed.into_iter().for_each(|file| drop(scope.spawn(move || drop(file))));
        scope.spawn(|| {
            // Until all of them are on their way.
            std::thread::sleep(Duration::from_millis(500));
            for dir in &quick {
                for at in 0..EACH {
                    for (name, use_it) in uses() {
                        note(name, dir);
                        use_it(dir, at).unwrap_or_else(|err| panic!("{name}: {err}"));
                    }
                }
                note("files in the root", root);
                fs::write(root.join("own"), b"of the scratch alone").unwrap();
                assert_content(root.join("own"), b"of the scratch alone");
                assert!(names(root).contains(&String::from("outer")));
                assert!(rustix::fs::statvfs(root).is_ok());
                // How long a file is that is mapped and does not answer cannot be told.
                let commands = if rules { &["status"][..] } else { &["status", "maps"] };
                for command in commands {
                    note(command, root);
                    ask(root, command).text();
                }
            }
            all_done.store(true, Ordering::Release);
        });
        let in_time = wait_until(Duration::from_secs(60), || all_done.load(Ordering::Acquire));
        let waiting = EACH * uses().count() - answered.load(Ordering::Acquire);
        inner.signal(Signal::CONT);
        (in_time, waiting)
    });
    // The kernel knows the attributes of some of the files.
    assert!(waiting >= EACH * (uses().count() - 2), "only {waiting} have waited");
    assert!(in_time, "a stalled directory has held up: {}", doing.lock().unwrap());
    mounted.assert_alive();
    drop((read, written));
    // The others see one tree, and it is the one that a plain directory becomes.
    for at in 0..EACH {
        for (name, use_it) in uses() {
            use_it(bare, at).unwrap_or_else(|err| panic!("{name} (bare): {err}"));
        }
    }
    let expected = snapshot(bare);
    quick.iter().for_each(|dir| snapshot(dir).assert_same(&expected, Scope::MergedHistory));
    let two = |dir: &Path, at: usize| open_to_write(dir.join(format!("one{at}")));
    (0..EACH).for_each(|at| two(bare, at).write_all_at(b"written", 200_000).unwrap());
    snapshot(&stalled).assert_same(&snapshot(bare), Scope::MergedHistory);
    mounted.unmount();
    drop(bound);
}

#[test]
fn a_directory_of_the_base_that_stalls_keeps_the_rest_of_a_scratch_going() {
    a_stalled_directory_of_the_base_keeps_nobody_else_waiting("access=copy,copy_up=0", false);
}

#[test]
fn a_directory_of_the_base_that_stalls_keeps_the_rest_going_where_small_files_are_copied() {
    a_stalled_directory_of_the_base_keeps_nobody_else_waiting(
        "access=copy,copy_up=16K,threads=2",
        false,
    );
}

#[test]
fn a_directory_of_the_base_that_stalls_keeps_the_rest_going_where_files_are_lent() {
    a_stalled_directory_of_the_base_keeps_nobody_else_waiting("access=copy,share", false);
}

#[test]
fn a_directory_of_the_base_that_stalls_keeps_the_rest_going_where_it_is_not_copied() {
    a_stalled_directory_of_the_base_keeps_nobody_else_waiting("access=copy", true);
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
