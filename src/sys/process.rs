//! The process itself: what it was started with, and how others wait for its end.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use rustix::process::Pid;

#[cfg(test)]
mod tests;

/// The descriptors above standard error that this process was given by its parent: all without
/// close-on-exec. What a process opens itself has that flag here, without exception, so that the
/// two are told apart.
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

/// A process as another one finds it again: its number, and the namespace that the number is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The number.
    pub pid: Pid,
    namespace: u64,
}

impl Identity {
    /// Of this process.
    ///
    /// # Errors
    /// /proc does not tell the namespace.
    pub fn own() -> io::Result<Identity> {
        let namespace = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
        Ok(Identity { pid: rustix::process::getpid(), namespace })
    }

    /// From its text; `None` for any other.
    pub fn parse(text: &str) -> Option<Identity> {
        let (pid, namespace) = text.split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok().filter(|pid| *pid > 0)?)?;
        Some(Identity { pid, namespace: namespace.parse().ok()? })
    }

    /// Whether its number is one of this process's namespace.
    pub fn is_of_our_namespace(&self) -> bool {
        Identity::own().is_ok_and(|own| own.namespace == self.namespace)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid.as_raw_pid(), self.namespace)
    }
}
