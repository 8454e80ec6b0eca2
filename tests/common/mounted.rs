//! A mount that lives as long as a test.
//!
//! Nothing hangs for ever: a watchdog takes the mount down when a test lasts too long, and the end
//! of a test unmounts by ever harder means until it worked. Only the daemon of this mount is ever
//! signalled.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::{TestDir, open_to_all, wait_until};

/// How long a mount may take to answer, and a daemon to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a test may last before its mount is taken down.
const TEST_LIMIT: Duration = Duration::from_secs(240);

/// The program under test.
pub fn program() -> PathBuf {
    let other = std::env::var_os("MMAPFS_TEST_PROGRAM").map(PathBuf::from);
    other.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mmapfs")))
}

/// A mounted filesystem and its daemon in the foreground.
pub struct MountedFs {
    dir: TestDir,
    source: PathBuf,
    mountpoint: PathBuf,
    daemon: Child,
    watchdog: Watchdog,
    ended: Option<ExitStatus>,
}

impl MountedFs {
    /// Mounts an empty directory of its own.
    #[track_caller]
    pub fn new(options: &str) -> MountedFs {
        let dir = TestDir::new();
        let source = dir.directory("source");
        open_to_all(&source);
        MountedFs::start(dir, source, options, &[])
    }

    /// Mounts a directory that is there.
    #[track_caller]
    pub fn over(source: &Path, options: &str) -> MountedFs {
        MountedFs::over_with(source, options, &[])
    }

    /// The same, with these variables in the environment of the daemon.
    #[track_caller]
    pub fn over_with(source: &Path, options: &str, environment: &[(&str, &Path)]) -> MountedFs {
        MountedFs::start(TestDir::new(), source.to_owned(), options, environment)
    }

    #[track_caller]
    fn start(
        dir: TestDir,
        source: PathBuf,
        options: &str,
        environment: &[(&str, &Path)],
    ) -> MountedFs {
        let mountpoint = dir.directory("mnt");
        let log = File::create(dir.path().join("log")).unwrap();
        let daemon = Command::new(program())
            .args(["mount", "-f", "-o", &with_environment(options)])
            .arg(&source)
            .arg(&mountpoint)
            .env("MMAPFS_STATE_DIR", dir.path().join("state"))
            .env("MMAPFS_LOG", std::env::var("MMAPFS_TEST_LOG").unwrap_or("info".into()))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let watchdog = Watchdog::new(&mountpoint, daemon.id());
        let mut mounted = MountedFs { dir, source, mountpoint, daemon, watchdog, ended: None };
        mounted.wait_until_it_answers();
        mounted
    }

    #[track_caller]
    fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        while !is_mounted(&self.mountpoint) {
            if let Some(status) = self.daemon.try_wait().unwrap() {
                self.ended = Some(status);
                panic!("the daemon ended ({status}) before it had mounted");
            }
            assert!(start.elapsed() < PATIENCE, "no mount after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::read_dir(&self.mountpoint).expect("the new mount answers");
    }

    /// The root of the mount.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The directory that it serves.
    pub fn backing(&self) -> &Path {
        &self.source
    }

    /// The process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// What the daemon has logged so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fails when the daemon has ended.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        let status = self.daemon.try_wait().unwrap();
        assert!(status.is_none(), "the daemon has ended: {status:?}");
    }

    /// Sends a signal to the daemon.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(pid(&self.daemon), signal).unwrap();
    }

    /// Waits until the daemon has ended, and takes note that it was meant to.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let daemon = &mut self.daemon;
        let ended = wait_until(PATIENCE, || daemon.try_wait().unwrap().is_some());
        assert!(ended, "the daemon has not ended after {PATIENCE:?}");
        // From here on the pid may be somebody else's: the watchdog must not use it any more.
        let fired = self.watchdog.stop();
        let status = self.daemon.wait().unwrap();
        self.ended = Some(status);
        assert!(!fired, "the test took over {TEST_LIMIT:?}");
        status
    }

    /// Kills the daemon as `kill -9` does; the mount stays, and nobody answers.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.wait_for_end().signal(), Some(9));
    }

    /// Ends the mount, and fails when the daemon did not end by itself and well.
    #[track_caller]
    pub fn unmount(mut self) {
        self.finish();
    }

    #[track_caller]
    fn finish(&mut self) {
        if let Err(how) = self.take_down() {
            panic!("{how}");
        }
        let status = self.ended.take();
        let as_meant = status.is_none_or(|status| status.success() || status.signal() == Some(9));
        assert!(as_meant, "the daemon ended with {status:?}");
        assert!(!self.log().contains("panicked at"), "the daemon panicked");
    }

    /// Unmounts and waits for the daemon, by ever harder means; tells what had to be used.
    fn take_down(&mut self) -> Result<(), String> {
        let mountpoint = self.mountpoint.clone();
        let mut busy = None;
        let gone = wait_until(Duration::from_secs(5), || {
            if is_mounted(&mountpoint) {
                busy = unmount_plainly(&mountpoint).err();
            }
            !is_mounted(&mountpoint)
        });
        if !gone {
            unmount_hard(&mountpoint);
        }
        let (pid, daemon) = (self.daemon.id(), &mut self.daemon);
        let mut ended = || daemon.try_wait().is_ok_and(|status| status.is_some());
        // How long it takes is a matter of what else the machine does: the watchdog bounds it.
        if !wait_until(PATIENCE, &mut ended) {
            eprintln!("the daemon has not ended after {PATIENCE:?}:\n{}", threads_of(pid));
        }
        let by_itself = wait_until(TEST_LIMIT, &mut ended);
        let fired = self.watchdog.stop();
        self.ended = self.ended.or(self.daemon.try_wait().ok().flatten());
        match () {
            () if fired => Err(format!("the mount hung, or the test took over {TEST_LIMIT:?}")),
            () if !gone => Err(format!("the mount was busy at the end: {busy:?}")),
            () if !by_itself => Err(format!("the daemon did not end within {TEST_LIMIT:?}")),
            () => Ok(()),
        }
    }
}

impl Drop for MountedFs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish()));
            if let Err(reason) = finished {
                self.show_log();
                std::panic::resume_unwind(reason);
            }
            return;
        }
        if let Err(how) = self.take_down() {
            eprintln!("{how}");
        }
        self.show_log();
    }
}

impl MountedFs {
    fn show_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let most = if std::env::var_os("MMAPFS_TEST_LOG").is_some() { usize::MAX } else { 60 };
        let from = lines.len().saturating_sub(most);
        eprintln!("-- log of the daemon (the last {} lines):", lines.len() - from);
        eprintln!("{}", lines[from..].join("\n"));
    }
}

/// True when something of ours is mounted at this place.
pub fn is_mounted(mountpoint: &Path) -> bool {
    mount_line(mountpoint).is_some()
}

/// The line of /proc/self/mountinfo of the mount at this place.
pub fn mount_line(mountpoint: &Path) -> Option<String> {
    // What others mount may have any name.
    let table = std::fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let wanted = mountpoint.to_str().unwrap();
    let at_place = |line: &&str| line.split(' ').nth(4) == Some(wanted);
    table.lines().rfind(at_place).map(str::to_owned)
}

/// Runs the program with arguments and waits for its end.
#[track_caller]
pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(program()).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn with_environment(options: &str) -> String {
    match std::env::var("MMAPFS_TEST_OPTIONS") {
        Ok(more) if !more.is_empty() => format!("{more},{options}"),
        _ => options.to_owned(),
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Unmounts as root by the system call, as a user by fusermount3.
fn unmount_plainly(mountpoint: &Path) -> std::io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(unmount(mountpoint, UnmountFlags::empty())?);
    }
    let output = Command::new("fusermount3").arg("-u").arg(mountpoint).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// Frees a mount point, whatever is in use; requests that wait are ended where that is permitted.
pub fn unmount_hard(mountpoint: &Path) {
    if unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::FORCE).is_err() {
        let _ = Command::new("fusermount3").arg("-uzq").arg(mountpoint).output();
    }
}

/// What every thread of a process is doing, as /proc tells it.
fn threads_of(pid: u32) -> String {
    let mut text = String::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack = read("stack");
        let calls: Vec<&str> = stack.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        text += &format!("{}: {}\n", read("comm").trim(), calls.join(" < "));
    }
    text
}

/// Takes a mount down when the test that uses it hangs.
struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Watchdog {
    fn new(mountpoint: &Path, daemon: u32) -> Watchdog {
        let (stop, stopped) = channel();
        let place = mountpoint.to_owned();
        let thread = std::thread::spawn(move || {
            let fired = stopped.recv_timeout(TEST_LIMIT) == Err(RecvTimeoutError::Timeout);
            if fired {
                eprintln!("watchdog: taking down {}", place.display());
                abort(&place, daemon);
            }
            fired
        });
        Watchdog { stop: Some(stop), thread: Some(thread) }
    }

    /// Tells whether it had to act.
    fn stop(&mut self) -> bool {
        drop(self.stop.take());
        self.thread.take().is_some_and(|thread| thread.join().unwrap_or(true))
    }
}

/// Aborts the connection, so that every caller gets an error, and kills the daemon.
pub fn abort(mountpoint: &Path, daemon: u32) {
    let line = mount_line(mountpoint);
    let minor = line.as_deref().and_then(|line| line.split(' ').nth(2)?.split(':').nth(1));
    if let Some(minor) = minor {
        let _ = std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
    }
    unmount_hard(mountpoint);
    if let Some(pid) = Pid::from_raw(daemon as i32) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
