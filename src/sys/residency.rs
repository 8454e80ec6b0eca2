//! The pages of a file in the page cache: cachestat(2) and mincore(2).
#![allow(unsafe_code)]

use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{Access, Advice, AtFlags, CWD};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::region::Region;
use super::{check, last_errno};

#[cfg(test)]
mod tests;

/// State of a range in the page cache, in pages (struct cachestat of linux/mman.h). The kernel
/// keeps the state of a large folio as one: a byte written makes all its pages dirty.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheStat {
    /// In the page cache.
    pub cached: u64,
    /// Changed and not written back.
    pub dirty: u64,
    /// Being written back.
    pub writeback: u64,
    /// Evicted since the file was opened, as far as the kernel remembers.
    pub evicted: u64,
    /// Evicted not long ago: reading them again would mean that memory is short.
    pub recently_evicted: u64,
}

#[repr(C)]
struct CacheStatRange {
    offset: u64,
    len: u64,
}

/// The number of the system call, the same on every architecture but alpha and mips.
const SYS_CACHESTAT: libc::c_long = 451;

/// State of a range of a file, in bytes, in the page cache.
///
/// # Errors
/// ENOSYS before Linux 6.5; EPERM for a file that this process neither owns nor may write (and
/// where a seccomp filter forbids the call); EINVAL for a range that ends before it starts; errors
/// of cachestat(2).
pub fn cachestat(fd: impl AsFd, range: Range<u64>) -> Result<CacheStat, Errno> {
    if range.start > range.end {
        return Err(Errno::INVAL);
    }
    if range.is_empty() {
        // A length of 0 means the rest of the file to the kernel; the answer for nothing is
        // nothing, if the call is to be had.
        return cachestat(fd, u64::MAX - 1..u64::MAX).map(|_| CacheStat::default());
    }
    let range = CacheStatRange { offset: range.start, len: range.end - range.start };
    let mut stat = CacheStat::default();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both structures have the kernel's layout and live through the call, which reads
    // the one and fills the other.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, fd, &raw const range, &raw mut stat, 0) };
    if result == 0 { Ok(stat) } else { Err(last_errno()) }
}

/// Pages of a range of a mapping that are in the page cache; those behind the end of the file are
/// not. The range starts on a page border.
///
/// To a process that neither owns the file nor may write it, the kernel tells of every page that
/// it is there: ask [`mincore_tells`] first where the figure is to be believed.
///
/// # Errors
/// EINVAL for a range outside the region or off the page borders; errors of mincore(2).
pub fn resident_pages(region: &Region, range: Range<usize>) -> Result<u64, Errno> {
    const CHUNK: usize = 1024;
    let page = super::page_size();
    let (mut address, mut left) = region.span(&range)?;
    let mut resident = 0;
    while left > 0 {
        let mut states = [0_u8; CHUNK];
        let len = left.min(CHUNK * page);
        // SAFETY: `address` and `len` lie in the range that was checked to be in this mapping,
        // which is alive, and there is a byte for each of its pages.
        check(unsafe { libc::mincore(address.cast(), len, states.as_mut_ptr()) })?;
        // The states beyond the range stay zero.
        resident += states.iter().filter(|state| **state & 1 != 0).count() as u64;
        address = address.wrapping_add(len);
        left -= len;
    }
    Ok(resident)
}

/// Whether mincore(2) tells the truth of a file: its owner and those who may write it are told.
/// False when that cannot be found out.
pub fn mincore_tells(file: impl AsFd) -> bool {
    let file = file.as_fd();
    let owned = rustix::fs::fstat(file)
        .is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
    let owner_rights = || {
        rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::FOWNER))
    };
    let may_write = || {
        let path = super::fd_path(file);
        rustix::fs::accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
    };
    owned || owner_rights() || may_write()
}

/// Asks the kernel to drop the clean pages of a range, in bytes, that nobody maps or has locked.
/// Only whole pages inside the range go.
///
/// # Errors
/// Errors of posix_fadvise(2).
pub fn fadvise_dontneed(file: impl AsFd, range: Range<u64>) -> Result<(), Errno> {
    let Some(len) = range.end.checked_sub(range.start) else { return Err(Errno::INVAL) };
    let Some(len) = NonZeroU64::new(len) else {
        return Ok(()); // To the kernel a length of 0 is the rest of the file.
    };
    rustix::fs::fadvise(file, range.start, Some(len), Advice::DontNeed)
}
