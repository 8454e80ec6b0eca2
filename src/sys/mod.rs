//! System calls that need `unsafe`, with the reason why each call is sound.
//!
//! All unsafe code of the program is below this module: one call to a block, and above it the
//! local fact that makes it sound. Everything takes borrowed descriptors and checked ranges,
//! never bare numbers or pointers. Nothing here knows the purpose of a call.
//!
//! Mapped memory is never given as a slice to code of this program, since others may write or
//! truncate the file at any moment: it is handed to the kernel ([`region::Region::lend`]) or copied
//! by a routine that survives a page that is gone ([`guard`]).

pub mod advise;
pub mod beneath;
pub mod confine;
pub mod cred;
pub mod detached;
pub mod dir;
pub mod fanotify;
pub mod file;
pub mod guard;
pub mod handle;
pub mod lease;
pub mod probe;
pub mod process;
pub mod region;
pub mod residency;
mod syscalls;
pub mod walk;

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;

/// The size of a page, in bytes.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// Path of a descriptor's link in /proc, which leads to the file that it is open on. It is valid
/// while the descriptor is open.
pub fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Major and minor version of the running kernel; zeros if they are unknown.
pub fn kernel_version() -> (u32, u32) {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(|at: char| !at.is_ascii_digit()).map(str::parse);
    let mut number = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (number(), number())
}

/// The errno that the last libc call of this thread left.
fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Turns the usual -1 of libc into an errno.
fn check(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}
