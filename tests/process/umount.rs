//! `mmapfs umount` and what it waits for.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::*;
use crate::common::mounted::run;
use crate::common::process::{my_part, start_part_under};

#[test]
fn the_disk_of_a_scratch_and_that_of_its_base_are_free_when_umount_has_returned() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for round in 0..10 {
        let background = Background::new();
        let (disk, base) = (SmallFs::tmpfs(16 << 20), SmallFs::tmpfs(16 << 20));
        fs::write(base.path().join("file"), vec![b'x'; 1 << 20]).unwrap();
        let options = format!("access=copy,scratch={}/scratch", disk.path().display());
        let mounted = Command::new(program())
            .args(["mount", "-o", &options])
            .args([base.path(), &background.mountpoint])
            .env("MMAPFS_STATE_DIR", background.path("state"))
            .output()
            .unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        fs::write(background.mountpoint.join("file"), b"changed").unwrap();
        let output = run(&["umount".as_ref(), background.mountpoint.as_os_str()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for place in [disk.path(), base.path()] {
            let free = unmount(place, UnmountFlags::empty());
            assert_eq!(free, Ok(()), "round {round}: {}", place.display());
            rustix::mount::mount("none", place, "tmpfs", rustix::mount::MountFlags::empty(), None)
                .unwrap();
        }
    }
}

#[test]
fn the_name_umount_fuse_mmapfs_takes_the_words_of_umount() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let background = Background::new();
    let helper = background.path("umount.fuse.mmapfs");
    symlink(program(), &helper).unwrap();
    let mounts: [&[&str]; 3] = [&[], &["-n", "-v", "-t", "fuse.mmapfs"], &["-l"]];
    for words in mounts {
        let output = background.command(&[], "access=write").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = Command::new(&helper).arg(&background.mountpoint).args(words).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!is_mounted(&background.mountpoint), "{words:?}");
    }
}

/// A daemon in the background with a run directory of its own.
struct Noted {
    background: Background,
    run: PathBuf,
}

impl Noted {
    #[track_caller]
    fn new() -> Noted {
        let background = Background::new();
        let run = background.path("run");
        let mut command = background.command(&[], "access=write");
        let output = command.env("MMAPFS_RUN_DIR", &run).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Noted { background, run }
    }

    /// The notes of the run directory.
    fn notes(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.run.join("daemons")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Unmounts by these words.
    fn umount(&self, program: &Path, words: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(words).arg(&self.background.mountpoint).env("MMAPFS_RUN_DIR", &self.run);
        command.output().unwrap()
    }
}

#[track_caller]
fn assert_silent(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.is_empty(), "{text}");
}

/// A process that was stopped; killed at the end.
struct Stopped {
    process: OwnedFd,
}

impl Stopped {
    #[track_caller]
    fn new(pid: i32) -> Stopped {
        let process = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&process, Signal::STOP).unwrap();
        let stopped = Stopped { process };
        let is_stopped = || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).unwrap();
            tasks.map(|task| stat(task.unwrap())).all(|stat| stat.contains(") T "))
        };
        assert!(wait_until(Duration::from_secs(30), is_stopped));
        stopped
    }

    #[track_caller]
    fn go_on_to_the_end(self) {
        pidfd_send_signal(&self.process, Signal::CONT).unwrap();
        let mut events = [PollFd::new(&self.process, PollFlags::IN)];
        let time = Timespec { tv_sec: 30, tv_nsec: 0 };
        assert_eq!(poll(&mut events, Some(&time)), Ok(1), "it has not ended");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

#[test]
fn the_mount_of_a_stopped_daemon_is_unmounted_without_a_request() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for slash in ["", "/"] {
        let mut noted = Noted::new();
        let stopped = Stopped::new(noted.background.pid());
        noted.background.mountpoint.as_mut_os_string().push(slash);
        let output = noted.umount(&program(), &["umount"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("is stopped") && text.lines().count() == 1, "{text}");
        assert!(!is_mounted(&noted.background.mountpoint));
        stopped.go_on_to_the_end();
        assert!(noted.notes().is_empty(), "{:?}", noted.notes());
    }
}

#[test]
fn a_daemon_is_noted_as_long_as_it_serves() {
    if !require_fuse() {
        return;
    }
    let noted = Noted::new();
    let [note] = &noted.notes()[..] else { panic!("{:?}", noted.notes()) };
    let text = fs::read_to_string(note).unwrap();
    assert_eq!(text.split(' ').next(), Some(&*noted.background.pid().to_string()), "{text}");
    assert_silent(&noted.umount(&program(), &["umount"]));
    assert!(noted.notes().is_empty(), "{:?}", noted.notes());
}

#[test]
fn a_process_that_started_at_another_time_is_not_waited_for() {
    if !require_fuse() {
        return;
    }
    let noted = Noted::new();
    let [note] = &noted.notes()[..] else { panic!("{:?}", noted.notes()) };
    let text = fs::read_to_string(note).unwrap();
    let namespace = text.rsplit(' ').next().unwrap();
    // This process lives on: it would be waited for in vain.
    fs::write(note, format!("{} 1 {namespace}", std::process::id())).unwrap();
    assert_silent(&noted.umount(&program(), &["umount"]));
    assert!(!is_mounted(&noted.background.mountpoint));
}

/// Fails unless one line says why the daemon goes on, and that within seconds, not at the end of its
/// patience.
#[track_caller]
fn assert_goes_on(noted: &Noted, why: &str) {
    let daemon = noted.background.pid();
    let daemon = pidfd_open(Pid::from_raw(daemon).unwrap(), PidfdFlags::empty()).unwrap();
    let start = Instant::now();
    let output = noted.umount(&program(), &["umount"]);
    let (time, text) = (start.elapsed(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(!is_mounted(&noted.background.mountpoint));
    assert!(text.contains("goes on: ") && text.contains(why), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(time < Duration::from_secs(10), "it took {time:?}");
    let mut events = [PollFd::new(&daemon, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(poll(&mut events, Some(&now)), Ok(0), "the daemon has ended");
}

#[test]
fn a_daemon_that_serves_another_mount_namespace_is_not_waited_for() {
    if !(require_fuse() && require_root() && require_program("unshare")) {
        return;
    }
    let noted = Noted::new();
    // It lives until its standard input ends.
    let mut other = Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo ready; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    other.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let daemon = noted.background.pid();
    let daemon = pidfd_open(Pid::from_raw(daemon).unwrap(), PidfdFlags::empty()).unwrap();
    let point = noted.background.mountpoint.display();
    assert_goes_on(&noted, &format!("it is mounted on {point} in the mount namespace of process "));
    drop(other.stdin.take());
    other.wait().unwrap();
    let mut events = [PollFd::new(&daemon, PollFlags::IN)];
    let time = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut events, Some(&time)), Ok(1), "it has not ended");
}

#[test]
fn a_daemon_whose_file_is_open_in_a_detached_mount_is_not_waited_for() {
    if !(require_fuse() && require_root() && require_program("unshare")) {
        return;
    }
    // In a mount namespace of its own, where the control filesystem of FUSE is mounted.
    let place = "/sys/fs/fuse/connections";
    let script = format!("mount -t fusectl none {place} 2>&-; exec \"$0\" \"$@\"");
    let words = ["unshare", "--mount", "sh", "-c", &script];
    let part = start_part_under(&words, "umount::part_with_a_detached_mount", Path::new(place));
    let output = part.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    eprintln!("{text}");
}

#[test]
#[ignore = "a part of another test"]
fn part_with_a_detached_mount() {
    let Some(place) = my_part() else { return };
    let noted = Noted::new();
    if !fs::read_dir(place).is_ok_and(|mut all| all.next().is_some()) {
        eprintln!("SKIPPED: the control filesystem of FUSE cannot be mounted");
        return;
    }
    let second = noted.background.dir.directory("second");
    rustix::mount::mount_bind(&noted.background.mountpoint, &second).unwrap();
    let open = fs::File::open(second.join("file")).unwrap();
    unmount(&second, UnmountFlags::DETACH).unwrap();
    assert_goes_on(&noted, "a file of a mount that was detached is open");
    drop(open);
}

#[test]
fn the_helper_of_umount_aborts_and_detaches_a_mount_in_use() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let noted = Noted::new();
    let helper = noted.background.path("umount.mmapfs");
    symlink(program(), &helper).unwrap();
    let open = fs::File::open(noted.background.mountpoint.join("file")).unwrap();
    let refused = noted.umount(&helper, &["-f"]);
    assert!(!refused.status.success() && is_mounted(&noted.background.mountpoint));
    assert_silent(&noted.umount(&helper, &["-f", "-l"]));
    assert!(!is_mounted(&noted.background.mountpoint));
    drop(open);
}
