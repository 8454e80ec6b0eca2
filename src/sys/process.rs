//! The process itself: what it was started with.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

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
