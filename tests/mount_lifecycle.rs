//! From the command line to the end of the daemon: mounting, refusing, unmounting.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::mounted::{is_mounted, mount_line, program, run, unmount_hard};
use common::*;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// A source and a mount point, unmounted at the end whatever happens.
struct Places {
    dir: TestDir,
    source: PathBuf,
    mountpoint: PathBuf,
}

impl Places {
    fn new() -> Places {
        let dir = TestDir::new();
        let (source, mountpoint) = (dir.directory("source"), dir.directory("mnt"));
        fs::write(source.join("file"), b"content").unwrap();
        Places { dir, source, mountpoint }
    }

    fn mount(&self, options: &str) -> Output {
        let output = output_of(
            Command::new(program())
                .args(["mount", "-o", options])
                .args([&self.source, &self.mountpoint]),
        );
        assert!(output.status.success(), "{}", text(&output));
        output
    }

    /// Unmounts. Another thread that is just starting a program has copies of our descriptors
    /// for a moment, which make the mount busy.
    #[track_caller]
    fn unmount(&self) {
        wait_for("the mount to be unmounted", || self.umount("").status.success());
        assert!(!is_mounted(&self.mountpoint));
    }

    fn umount(&self, option: &str) -> Output {
        let words = ["umount".as_ref(), option.as_ref(), self.mountpoint.as_os_str()];
        let given: Vec<&std::ffi::OsStr> =
            words.into_iter().filter(|word| !word.is_empty()).collect();
        run(&given)
    }

    fn refused(&self, source: &Path, mountpoint: &Path, word: &str) {
        let output = run(&["mount".as_ref(), source.as_os_str(), mountpoint.as_os_str()]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.starts_with("mmapfs: ") && text.contains(word), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for _ in 0..10 {
            if is_mounted(&self.mountpoint) {
                unmount_hard(&self.mountpoint);
            }
        }
    }
}

/// Runs a command whose background child must not keep this test waiting at a pipe.
#[track_caller]
fn output_of(command: &mut Command) -> Output {
    let stderr = tempfile::tempfile().unwrap();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr.try_clone().unwrap())
        .status()
        .unwrap();
    let mut text = vec![0; stderr.metadata().unwrap().len() as usize];
    stderr.read_exact_at(&mut text, 0).unwrap();
    Output { status, stdout: Vec::new(), stderr: text }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The pid of the daemon behind a mount.
///
/// A program of its own reads it. A descriptor of this process is also one of every program that a parallel test is
/// just starting, and the close of that copy waits for the daemon: for a daemon that a test has stopped, it keeps the
/// mount busy.
fn daemon_of(mountpoint: &Path) -> i32 {
    let status = Command::new("cat").arg(mountpoint.join(".mmapfs/status.json")).output().unwrap();
    assert!(status.status.success(), "{}", text(&status));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    status["pid"].as_i64().unwrap() as i32
}

fn is_alive(pid: i32) -> bool {
    // A process that has ended and that nobody has waited for is still listed.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z')
}

#[test]
fn the_command_ends_when_the_mount_answers_and_the_daemon_when_it_is_unmounted() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    for _ in 0..5 {
        places.mount("access=write");
        // No waiting: it answers now.
        assert_content(places.mountpoint.join("file"), b"content");
        let pid = daemon_of(&places.mountpoint);
        assert!(is_alive(pid));
        places.unmount();
        wait_for("the daemon to end", || !is_alive(pid));
    }
}

#[test]
fn a_mount_made_right_after_an_unmount_stays() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    for round in 0..30 {
        places.mount("access=write");
        assert_content(places.mountpoint.join("file"), b"content");
        assert!(is_mounted(&places.mountpoint), "round {round}");
        places.unmount();
    }
}

#[test]
fn a_daemon_that_ends_late_leaves_the_next_mount_alone() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let places = Places::new();
    places.mount("access=write");
    let late = Pid::from_raw(daemon_of(&places.mountpoint)).unwrap();
    kill_process(late, Signal::STOP).unwrap();
    wait_for("the mount to be free", || unmount(&places.mountpoint, UnmountFlags::empty()).is_ok());
    places.mount("access=write");
    kill_process(late, Signal::CONT).unwrap();
    wait_for("the late daemon to end", || !is_alive(late.as_raw_pid()));
    assert!(is_mounted(&places.mountpoint), "the late daemon has unmounted it");
    assert_content(places.mountpoint.join("file"), b"content");
    places.unmount();
}

#[test]
fn the_table_of_mounts_shows_type_source_and_flags() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    places.mount("access=write,noatime,nodev,noexec");
    let line = mount_line(&places.mountpoint).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let dash = words.iter().position(|word| *word == "-").unwrap();
    assert_eq!(words[dash + 1], "fuse.mmapfs");
    assert_eq!(words[dash + 2], places.source.to_str().unwrap());
    for flag in ["rw", "noatime", "nodev", "noexec", "nosuid"] {
        assert!(words[5].split(',').any(|word| word == flag), "{flag}: {line}");
    }
    assert!(line.contains("default_permissions"), "{line}");
    places.unmount();
    places.mount("fsname=a name with blanks");
    let line = mount_line(&places.mountpoint).unwrap();
    assert!(line.contains("a\\040name\\040with\\040blanks"), "{line}");
}

#[test]
fn signals_unmount() {
    if !require_fuse() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let mut mounted = MountedFs::new("access=write");
        fs::write(mounted.path().join("file"), b"x").unwrap();
        mounted.signal(signal);
        let status = mounted.wait_for_end();
        assert!(status.success(), "{signal:?}: {status}");
        assert!(!is_mounted(mounted.path()));
        assert_content(mounted.backing().join("file"), b"x");
    }
}

#[test]
fn what_is_open_is_served_after_a_signal_until_it_is_closed() {
    if !require_fuse() {
        return;
    }
    let mut mounted = MountedFs::new("access=write");
    let file = create(mounted.path().join("file"));
    file.write_all_at(b"before", 0).unwrap();
    mounted.signal(Signal::TERM);
    let place = mounted.path().to_owned();
    wait_for("the mount point to be free", || !is_mounted(&place));
    file.write_all_at(b"after!", 0).unwrap();
    assert_eq!(read_at(&file, 0, 6), b"after!");
    mounted.assert_alive();
    drop(file);
    assert!(mounted.wait_for_end().success());
    assert_content(mounted.backing().join("file"), b"after!");
}

#[test]
fn a_busy_mount_is_not_unmounted_unless_lazily() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    places.mount("access=write");
    let pid = daemon_of(&places.mountpoint);
    let file = File::open(places.mountpoint.join("file")).unwrap();
    let output = places.umount("");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).starts_with("mmapfs: "), "{}", text(&output));
    assert!(is_mounted(&places.mountpoint));
    assert!(places.umount("--lazy").status.success());
    assert!(!is_mounted(&places.mountpoint));
    assert_eq!(read_at(&file, 0, 7), b"content");
    drop(file);
    wait_for("the daemon to end", || !is_alive(pid));
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_line() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    let (source, mountpoint) = (&places.source, &places.mountpoint);
    fs::create_dir(source.join("inside")).unwrap();
    fs::write(mountpoint.join("a file"), b"x").unwrap();
    places.refused(&source.join("missing"), mountpoint, "missing");
    places.refused(source, &mountpoint.join("missing"), "missing");
    places.refused(source, &source.join("inside"), "source");
    places.refused(source, source, "source");
    places.refused(source, &mountpoint.join("a file"), "a file");
    places.refused(Path::new("/dev/null"), mountpoint, "/dev/null");
    assert!(!is_mounted(mountpoint) && !is_mounted(source));
}

#[test]
fn a_second_mount_on_the_same_point_is_refused() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    places.mount("access=write");
    places.refused(&places.source, &places.mountpoint, places.mountpoint.to_str().unwrap());
    assert_content(places.mountpoint.join("file"), b"content");
    places.unmount();
}

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    let cases: [(&[&str], i32); 8] = [
        (&[], 2),
        (&["mount"], 2),
        (&["mount", "one"], 2),
        (&["mount", "--no-such-option", "a", "b"], 2),
        (&["frobnicate"], 2),
        (&["umount"], 2),
        (&["--help"], 0),
        (&["--version"], 0),
    ];
    for (words, code) in cases {
        let output = run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
        assert_eq!(output.stderr.is_empty(), code == 0, "{words:?}");
    }
    let version = String::from_utf8(run(&["--version"]).stdout).unwrap();
    assert_eq!(version.trim(), format!("mmapfs {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn unmounting_what_is_not_mounted_is_refused() {
    let places = Places::new();
    for option in ["", "--stale", "--lazy"] {
        let output = places.umount(option);
        assert_eq!(output.status.code(), Some(1), "{option}: {}", text(&output));
        assert!(text(&output).contains(places.mountpoint.to_str().unwrap()), "{}", text(&output));
    }
    if require_root() && require_fuse() {
        let small = SmallFs::tmpfs(1 << 20);
        let output = run(&["umount".as_ref(), small.path()]);
        assert_eq!(output.status.code(), Some(1), "a mount of somebody else: {}", text(&output));
        assert!(is_mounted(small.path()));
    }
}

#[test]
fn a_single_file_is_served_in_a_directory() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    fs::write(places.source.join("secret"), b"not served").unwrap();
    let mounted = MountedFs::over(&places.source.join("file"), "access=write");
    assert_eq!(names(mounted.path()), ["file"]);
    assert_content(mounted.path().join("file"), b"content");
    create(mounted.path().join("file")).write_all_at(b"C", 0).unwrap();
    assert_content(places.source.join("file"), b"Content");
    for name in ["secret", "../secret", "file/../secret"] {
        assert!(fs::metadata(mounted.path().join(name)).is_err(), "{name}");
    }
    assert!(fs::write(mounted.path().join("new"), b"x").is_err());
    assert!(fs::remove_file(mounted.path().join("file")).is_err());
    assert_eq!(names(&places.source), ["file", "secret"]);
}

#[test]
fn a_single_file_is_served_on_a_file() {
    if !require_fuse() {
        return;
    }
    let mut places = Places::new();
    let point = places.dir.path().join("point");
    fs::write(&point, b"").unwrap();
    places.source.push("file");
    places.mountpoint = point;
    places.mount("access=write");
    assert_content(&places.mountpoint, b"content");
    let file = create(&places.mountpoint);
    file.write_all_at(b"C", 0).unwrap();
    file.set_len(3).unwrap();
    assert_content(&places.source, b"Con");
    drop(file);
    places.unmount();
    assert_content(&places.mountpoint, b"");
}

#[test]
fn the_name_mount_mmapfs_takes_the_words_of_mount() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    let link = places.dir.path().join("mount.mmapfs");
    symlink(program(), &link).unwrap();
    let options = "rw,_netdev,nofail,noauto,x-systemd.automount,access=read,x-gvfs-hide";
    let output = output_of(
        Command::new(&link)
            .args([&places.source, &places.mountpoint])
            .args(["-s", "-n", "-v", "-o", options]),
    );
    assert!(output.status.success(), "{}", text(&output));
    assert_content(places.mountpoint.join("file"), b"content");
    assert_eq!(error(fs::write(places.mountpoint.join("file"), b"x")), Errno::ROFS);
}

#[test]
fn the_words_of_libfuse_are_taken() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    let output =
        output_of(Command::new(program()).args([&places.source, &places.mountpoint]).args([
            "-o",
            "access=write",
            "-o",
            "noatime,max_read=131072",
        ]));
    assert!(output.status.success(), "{}", text(&output));
    assert_content(places.mountpoint.join("file"), b"content");
}

#[test]
fn a_check_tells_the_plan_and_mounts_nothing() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    let words = ["mount", "--check", "--json", "-o", "access=read,advice=random"];
    let output = output_with(&words, &places);
    assert!(output.status.success(), "{}", text(&output));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["source"], places.source.to_str().unwrap(), "{plan}");
    assert!(!is_mounted(&places.mountpoint));
    let output = output_with(&["mount", "--check", "-o", "acess=read"], &places);
    assert_eq!(output.status.code(), Some(2));
    let output = output_with(&["mount", "--check"], &places);
    assert!(String::from_utf8_lossy(&output.stdout).contains(places.source.to_str().unwrap()));
}

fn output_with(words: &[&str], places: &Places) -> Output {
    let mut all = words.to_vec();
    all.push(places.source.to_str().unwrap());
    all.push(places.mountpoint.to_str().unwrap());
    run(&all)
}

#[test]
fn systemd_is_told_when_the_mount_is_ready() {
    if !require_fuse() {
        return;
    }
    let places = Places::new();
    let socket = places.dir.path().join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let mut daemon = Command::new(program())
        .args(["mount", "-f", "-o", "access=write"])
        .args([&places.source, &places.mountpoint])
        .env("NOTIFY_SOCKET", &socket)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    let mut buffer = [0; 4096];
    while !told.contains("READY=1") {
        let len = listener.recv(&mut buffer).unwrap();
        told += &String::from_utf8_lossy(&buffer[..len]);
    }
    assert_content(places.mountpoint.join("file"), b"content");
    places.unmount();
    assert!(daemon.wait().unwrap().success());
    let mut log = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_user_mounts_by_fusermount3() {
    if !(require_fuse() && require_root() && require_program("fusermount3")) {
        return;
    }
    // fusermount3 wants a user with a name: nobody has one.
    const USER: u32 = 65_534;
    let device = fs::metadata("/dev/fuse").unwrap();
    if device.mode() & 0o006 != 0o006 {
        return eprintln!("SKIPPED: /dev/fuse is not open to users");
    }
    let places = Places::new();
    for dir in [&places.source, &places.mountpoint, &places.source.join("file")] {
        chown(dir, Some(USER), Some(USER)).unwrap();
    }
    let copy = places.dir.path().join("mmapfs");
    fs::copy(program(), &copy).unwrap();
    let as_user =
        |words: &[&std::ffi::OsStr]| output_of(Command::new(&copy).args(words).uid(USER).gid(USER));
    let words: [&std::ffi::OsStr; 5] = [
        "mount".as_ref(),
        "-o".as_ref(),
        "access=write".as_ref(),
        places.source.as_ref(),
        places.mountpoint.as_ref(),
    ];
    let output = as_user(&words);
    assert!(output.status.success(), "{}", text(&output));
    Caller::new(USER).run(|| {
        assert_content(places.mountpoint.join("file"), b"content");
        fs::write(places.mountpoint.join("new"), b"by the user").unwrap();
        assert!(fs::read_to_string(places.mountpoint.join(".mmapfs/status")).is_ok());
    });
    assert_content(places.source.join("new"), b"by the user");
    let output = as_user(&["umount".as_ref(), places.mountpoint.as_ref()]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!is_mounted(&places.mountpoint));
}
