//! Calls on open files without a safe wrapper in a crate, and resources of this process.
#![allow(unsafe_code)]

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::{Errno, ReadWriteFlags};
use rustix::process::{Resource, Rlimit};

use super::last_errno;

#[cfg(test)]
mod tests;

/// Appends in one step at the end of a file, whatever its descriptor's flags and position.
///
/// # Errors
/// Errors of pwritev2(2).
pub fn append(file: &impl AsFd, data: &[u8]) -> Result<usize, Errno> {
    let data = [IoSlice::new(data)];
    rustix::io::retry_on_intr(|| rustix::io::pwritev2(file, &data, 0, ReadWriteFlags::APPEND))
}

/// The attribute ioctls of linux/fs.h with the sizes of their arguments. The kernel passes an
/// `int` for the first two although their numbers say `long`.
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_GETVERSION: u32 = 0x8008_7601;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// struct fsxattr of linux/fs.h.
const FSXATTR_SIZE: usize = 28;

/// Room for that; the others need 8 bytes at most.
const LARGEST: usize = 32;

/// One of the attribute ioctls: flags (`chattr`), project and extent size hints, generation.
/// Returns its value and at most `out_size` bytes of output.
///
/// # Errors
/// ENOTTY for any other; EINVAL when `data` is shorter than what the command reads, or longer than
/// any argument; errors of ioctl(2).
pub fn ioctl_attr(
    file: &impl AsFd,
    command: u32,
    data: &[u8],
    out_size: usize,
) -> Result<(i32, Vec<u8>), Errno> {
    let read = match command {
        FS_IOC_GETFLAGS | FS_IOC_GETVERSION | FS_IOC_FSGETXATTR => 0,
        FS_IOC_SETFLAGS => size_of::<libc::c_int>(),
        FS_IOC_FSSETXATTR => FSXATTR_SIZE,
        _ => return Err(Errno::NOTTY),
    };
    if data.len() < read {
        return Err(Errno::INVAL); // The kernel would take zeros for the missing bytes.
    }
    let mut argument = [0_u8; LARGEST];
    argument.get_mut(..data.len()).ok_or(Errno::INVAL)?.copy_from_slice(data);
    let fd = file.as_fd().as_raw_fd();
    let request = command as libc::Ioctl;
    // SAFETY: each of the commands above reads or writes at most 28 bytes at the pointer, which
    // has 32.
    let value = unsafe { libc::ioctl(fd, request, argument.as_mut_ptr()) };
    if value < 0 {
        return Err(last_errno());
    }
    Ok((value, argument.get(..out_size.min(LARGEST)).unwrap_or_default().to_vec()))
}

/// The ioctl that takes control lines on a descriptor that is open only for reading, as it must
/// be on a read-only mount: `_IOW('M', 1, char[LEN])`, where LEN is in the number itself.
const COMMAND_BASE: u32 = 1 << 30 | (b'M' as u32) << 8 | 1;

/// The most bytes that the number of an ioctl can say.
pub const LONGEST_COMMAND: usize = (1 << 14) - 1;

/// The ioctl that takes the next piece of the answer, and returns its length: `_IOR('M', 2,
/// char[LONGEST_COMMAND])`.
pub const ANSWER: u32 = 2 << 30 | (LONGEST_COMMAND as u32) << 16 | (b'M' as u32) << 8 | 2;

/// Whether an ioctl carries control lines.
pub fn is_command(request: u32) -> bool {
    request & !((LONGEST_COMMAND as u32) << 16) == COMMAND_BASE
}

/// Sends control lines by ioctl.
///
/// # Errors
/// E2BIG above [`LONGEST_COMMAND`]; whatever the command fails with.
pub fn send_command(file: &impl AsFd, lines: &[u8]) -> Result<(), Errno> {
    let len = u32::try_from(lines.len()).map_err(|_| Errno::TOOBIG)?;
    if lines.len() > LONGEST_COMMAND {
        return Err(Errno::TOOBIG);
    }
    let request = (COMMAND_BASE | len << 16) as libc::Ioctl;
    // SAFETY: the request says that the kernel reads `len` bytes, which outlive the call.
    let value = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, lines.as_ptr()) };
    if value < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The next piece of the answer to control lines that were sent by ioctl; empty at its end.
///
/// # Errors
/// Errors of ioctl(2).
pub fn take_answer(file: &impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut piece = vec![0_u8; LONGEST_COMMAND];
    let request = ANSWER as libc::Ioctl;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the number says how many bytes the call may write, which the buffer has.
    let count = unsafe { libc::ioctl(fd, request, piece.as_mut_ptr()) };
    let count = usize::try_from(count).map_err(|_| last_errno())?;
    piece.truncate(count);
    Ok(piece)
}

/// F_SETSIG of asm-generic/fcntl.h.
pub(super) const F_SETSIG: libc::c_int = 10;

/// Whether a file is open by this one descriptor only, and not mapped otherwise: then the kernel
/// grants a write lease on it (fcntl(2), F_SETLEASE), which is given back at once. False if it is
/// unknown.
///
/// The lease may be asked back in that moment, by SIGURG: that does nothing by default, where the
/// SIGIO that the kernel would send ends a process, and may come unasked for to a program that
/// handles it.
pub fn is_only_open(file: impl AsFd) -> bool {
    is_lease_granted(file.as_fd(), libc::F_WRLCK)
}

/// Whether a file is neither open nor mapped for writing, by a read lease. False if it is unknown,
/// as it is for a descriptor that is open for writing itself.
pub fn is_unwritten(file: impl AsFd) -> bool {
    is_lease_granted(file.as_fd(), libc::F_RDLCK)
}

fn is_lease_granted(file: BorrowedFd<'_>, kind: libc::c_int) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: the call takes numbers only.
    if unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) } != 0 {
        return false;
    }
    // SAFETY: the call takes numbers only.
    let granted = unsafe { libc::fcntl(fd, libc::F_SETLEASE, kind) } == 0;
    if granted {
        // SAFETY: the call takes numbers only.
        let returned = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
        if returned != 0 {
            log::error!("lease: giving it back: {}", last_errno());
        }
    }
    granted
}

/// Whether an attribute ioctl sets something.
pub fn changes_attributes(command: u32) -> bool {
    matches!(command, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR)
}

/// Number of open descriptors of this process; 0 if /proc cannot be read.
pub fn descriptors_in_use() -> u64 {
    // One of them belongs to the listing itself.
    std::fs::read_dir("/proc/self/fd").map_or(0, |dir| (dir.count() as u64).saturating_sub(1))
}

/// Resident memory of this process in bytes; 0 if /proc cannot be read.
pub fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * super::page_size() as u64
}

/// The soft and the hard limit of descriptors; `u64::MAX` is none.
pub fn descriptor_limit() -> (u64, u64) {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

/// Raises the soft limit of descriptors to the hard one.
pub fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(err) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::debug!("raising the limit of descriptors: {err}");
    }
}

/// The most mappings that the kernel allows a process (vm.max_map_count).
pub fn max_map_count() -> u64 {
    const DEFAULT: u64 = 65_530;
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT)
}
