//! System calls that the libraries in use have no name for.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;

fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    match result {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap()),
        result => Ok(result),
    }
}

/// truncate(2), which opens nothing.
pub fn truncate(path: &Path, size: u64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a zero byte and outlives the call.
    check(unsafe { libc::truncate(path.as_ptr(), size as libc::off_t) }).map(drop)
}

/// Takes (F_RDLCK, F_WRLCK) or gives back (F_UNLCK) a lease on an open file.
pub fn set_lease(file: &File, kind: libc::c_int) -> Result<(), Errno> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }).map(drop)
}

/// The kind of lease that this process has or has to give way to, as F_GETLEASE tells it.
pub fn lease(file: &File) -> Result<libc::c_int, Errno> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) })
}

/// Lets a signal of this process pass without effect.
pub fn ignore_signal(signal: libc::c_int) {
    // SAFETY: SIG_IGN is no function, and no other thread of the tests sets handlers.
    let previous = unsafe { libc::signal(signal, libc::SIG_IGN) };
    assert_ne!(previous, libc::SIG_ERR);
}
