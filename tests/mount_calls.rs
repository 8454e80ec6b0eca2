//! How many system calls the daemon makes for a request, counted by strace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::*;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};

/// How often each thing is done: what happens once in a while hardly shows.
const TIMES: usize = 200;

/// A strace of all threads of a daemon, ended with the value.
struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    #[track_caller]
    fn of(daemon: u32, output: PathBuf) -> Strace {
        let child = Command::new("strace")
            .args(["-f", "-c", "-o"])
            .arg(&output)
            .args(["-p", &daemon.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let strace = Strace { child, output };
        let tasks = PathBuf::from(format!("/proc/{daemon}/task"));
        wait_for("strace to have every thread", || {
            fs::read_dir(&tasks).unwrap().all(|task| {
                let status = fs::read_to_string(task.unwrap().path().join("status"));
                status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
            })
        });
        strace
    }

    /// The calls by name that were counted.
    fn end(mut self) -> Vec<(String, usize)> {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap();
        let table = fs::read_to_string(&self.output).unwrap();
        let row = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let calls = words.get(3)?.parse().ok()?;
            let name = (*words.last()?).to_owned();
            // Those in which threads wait, and what debug builds look at when they close.
            let others = ["futex", "restart_syscall", "total", "sched_yield", "fcntl"];
            (!others.contains(&name.as_str())).then_some((name, calls))
        };
        table.lines().filter_map(row).collect()
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It has ended already, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does something `TIMES` times and checks that the daemon makes at most `bound` calls each time,
/// reading the requests and writing the replies included.
#[track_caller]
fn assert_calls(options: &str, what: &str, bound: usize, prepare: impl Fn(&Path), act: fn(&Path)) {
    if !(require_fuse() && require_root() && require_program("strace")) {
        return;
    }
    let dir = TestDir::new();
    for at in 0..TIMES {
        fs::write(dir.path().join(format!("{at}")), pattern(200_000)).unwrap();
    }
    // Looks for a next request belong to none, nor does a lookup of a name whose time is over.
    let options = format!("access=write,watch=off,busy_poll=0,entry_timeout=1000,{options}");
    let mounted = MountedFs::over(dir.path(), &options);
    let paths: Vec<_> = (0..TIMES).map(|at| mounted.path().join(format!("{at}"))).collect();
    paths.iter().for_each(|path| prepare(path));
    let output = TestDir::new();
    let strace = Strace::of(mounted.pid(), output.path().join("calls"));
    paths.iter().for_each(|path| act(path));
    let calls = strace.end();
    let total: usize = calls.iter().map(|(_, count)| count).sum();
    let each = total as f64 / TIMES as f64;
    eprintln!("{what}: {each:.1} calls each, {calls:?}");
    assert!(total >= TIMES, "{what}: nothing was counted: {calls:?}");
    assert!(each <= bound as f64, "{what}: {each:.1} calls each, {calls:?}");
}

fn stat(path: &Path) {
    fs::metadata(path).unwrap();
}

fn nothing(_: &Path) {}

#[test]
fn looking_a_name_up_takes_few_calls() {
    assert_calls("plane=auto", "lookup", 6, nothing, stat);
}

#[test]
fn asking_for_attributes_takes_few_calls() {
    // The way there is asked for, too.
    let options = "attr_timeout=0";
    assert_calls(options, "getattr of a file and its directory", 7, stat, stat);
}

#[test]
fn opening_and_closing_a_file_that_the_kernel_reads_takes_few_calls() {
    // A file that was made within the last two seconds is told from others by its handle: one call.
    assert_calls("plane=passthrough", "open and release", 17, stat, |path| {
        File::open(path).unwrap();
    });
}

#[test]
fn opening_and_closing_a_file_that_the_daemon_reads_takes_few_calls() {
    assert_calls("plane=mapped", "open and release", 10, stat, |path| {
        File::open(path).unwrap();
    });
}

#[test]
fn reading_from_the_mapping_takes_few_calls() {
    // The open, the first read with its mapping, and the release are among them.
    assert_calls("plane=mapped", "20 reads, an open and a release", 20 * 8 + 20, stat, |path| {
        let file = open(path, OFlags::RDONLY | OFlags::DIRECT).unwrap();
        for at in 0..20 {
            assert_eq!(read_at(&file, at * 8192, 4096).len(), 4096);
        }
    });
}

#[test]
fn what_the_kernel_reads_and_writes_itself_takes_no_calls() {
    // The open, a question for capabilities before the first write, attributes, the release.
    let options = "plane=passthrough,attr_timeout=1000";
    assert_calls(options, "40 reads and writes in one open", 24, stat, |path| {
        let file = open(path, OFlags::RDWR).unwrap();
        for at in 0..20 {
            std::os::unix::fs::FileExt::write_all_at(&file, b"written", at * 8192).unwrap();
            assert_eq!(read_at(&file, at * 8192, 7), b"written");
        }
    });
}

#[test]
fn making_a_file_takes_few_calls() {
    // Two of them are for the handle of a file that is new.
    assert_calls("plane=auto", "look up, create and release", 30, nothing, |path| {
        File::create_new(path.with_extension("new")).unwrap();
    });
}

#[test]
fn changing_the_attributes_of_an_open_file_takes_few_calls() {
    // The open and the release, a question for capabilities before the change of owner, and the
    // two changes.
    assert_calls("plane=passthrough", "fchown and fchmod in one open", 36, stat, |path| {
        let file = open(path, OFlags::RDWR).unwrap();
        rustix::fs::fchown(&file, Some(rustix::process::getuid()), None).unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    });
}

#[test]
fn removing_a_file_takes_few_calls() {
    assert_calls("plane=auto", "unlink and forget", 12, stat, |path| {
        fs::remove_file(path).unwrap();
    });
}
