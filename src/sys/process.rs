//! This process: inherited descriptors, and an identity by which others wait for its end.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

#[cfg(test)]
mod tests;

/// The descriptors above standard error that this process was given by its parent: all without
/// close-on-exec. A descriptor that a process opens itself has that flag here, without exception,
/// so that the two are told apart.
///
/// To be called before anything of the process uses a descriptor that it was given.
///
/// # Errors
/// /proc/self/fd cannot be listed.
pub fn inherited() -> io::Result<Vec<OwnedFd>> {
    let mut given = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        given.extend(number.filter(|fd: &RawFd| *fd > libc::STDERR_FILENO && is_inherited(*fd)));
    }
    // SAFETY: each is open, and nothing in this process owns what it was given by its parent.
    Ok(given.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: the number is not -1, and only its flags are asked for. Nothing closes it meanwhile
    // but the listing itself, which is open until all were asked.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_getfd(fd).is_ok_and(|flags| !flags.contains(FdFlags::CLOEXEC))
}

/// A process as another one finds it again: its number, the time of its start, which no later
/// process of the same number shares, and the namespace that the number is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The number.
    pub pid: Pid,
    /// In clock ticks since the system started (proc_pid_stat(5), `starttime`).
    started: u64,
    namespace: u64,
}

impl Identity {
    /// Of this process.
    ///
    /// # Errors
    /// /proc does not tell the namespace or the time of the start.
    pub fn own() -> io::Result<Identity> {
        let pid = rustix::process::getpid();
        Ok(Identity { pid, started: Stat::read(pid)?.started, namespace: own_namespace()? })
    }

    /// Parses the text of an identity; `None` for any other text.
    pub fn parse(text: &str) -> Option<Identity> {
        let mut words = text.split(' ');
        let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
        let identity = Identity {
            pid: Pid::from_raw(pid)?,
            started: words.next()?.parse().ok()?,
            namespace: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(identity)
    }

    /// A pidfd of the process; `None` where it has ended, or its number is of another namespace.
    pub fn open(&self) -> Option<OwnedFd> {
        if own_namespace().ok()? != self.namespace {
            return None;
        }
        // The descriptor comes first: where the time is the same afterwards, it is of this process.
        let descriptor = pidfd_open(self.pid, PidfdFlags::empty()).ok()?;
        self.stat().map(|_| descriptor)
    }

    /// Whether the process is stopped, by a signal or by a debugger: it does not end before it is
    /// continued, unless it is killed.
    pub fn is_stopped(&self) -> bool {
        self.stat().is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }

    fn stat(&self) -> Option<Stat> {
        Stat::read(self.pid).ok().filter(|stat| stat.started == self.started)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.pid.as_raw_pid(), self.started, self.namespace)
    }
}

fn own_namespace() -> io::Result<u64> {
    Ok(rustix::fs::stat("/proc/self/ns/pid")?.st_ino)
}

/// The fields of /proc/PID/stat (proc_pid_stat(5)).
struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    fn read(pid: Pid) -> io::Result<Stat> {
        // The name of the program in it may be of any bytes.
        let text = std::fs::read(format!("/proc/{}/stat", pid.as_raw_pid()))?;
        Stat::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not of the known form")
        })
    }

    /// `PID (NAME) STATE ...`, where the name may hold blanks and parentheses.
    fn parse(text: &str) -> Option<Stat> {
        let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
        // The state is the third field and the start the 22nd.
        Some(Stat { state: words.next()?.chars().next()?, started: words.nth(18)?.parse().ok()? })
    }
}
