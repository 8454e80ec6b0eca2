//! madvise(2), msync(2) and mlock(2) on a range of a mapping.
#![allow(unsafe_code)]

use std::ops::Range;

use rustix::io::Errno;

use super::check;
use super::region::Region;
use crate::advice::{Advice, Effect};

#[cfg(test)]
mod tests;

/// The mode of a flush by msync(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// MS_SYNC: the pages are written when it returns.
    Sync,
    /// MS_ASYNC: the kernel writes them in its own time.
    Async,
    /// MS_SYNC and MS_INVALIDATE.
    Invalidate,
}

/// Gives an advice on a range, whose start must be on a page border.
///
/// # Errors
/// EINVAL for a range outside the region, a start off a page border or a forbidden advice; errors
/// of madvise(2).
pub fn advise(region: &Region, range: Range<usize>, advice: Advice) -> Result<(), Errno> {
    if advice.effect() == Effect::Forbidden {
        return Err(Errno::INVAL);
    }
    give(region, range, advice.number())
}

/// Brings the pages of a range into memory and into the page table, reading them as needed; the
/// range is widened to pages.
///
/// # Errors
/// EFAULT when a page is behind the end of the file or cannot be read; EINVAL before Linux 5.14.
pub fn populate_read(region: &Region, range: Range<usize>) -> Result<(), Errno> {
    let page = super::page_size();
    let start = range.start / page * page;
    give(region, start..range.end, libc::MADV_POPULATE_READ)
}

fn give(region: &Region, range: Range<usize>, number: i32) -> Result<(), Errno> {
    let (address, len) = region.span(&range)?;
    // SAFETY: the range was checked to lie in this mapping, which is alive. No advice that
    // takes the memory itself away comes here; one that drops pages leaves the file's in place.
    check(unsafe { libc::madvise(address.cast(), len, number) })
}

/// Flushes a range, whose start must be on a page border.
///
/// # Errors
/// EINVAL for a range outside the region or a start off a page border; EIO and the like when
/// writing back failed; EBUSY for [`SyncMode::Invalidate`] of locked pages.
pub fn sync(region: &Region, range: Range<usize>, mode: SyncMode) -> Result<(), Errno> {
    let flags = match mode {
        SyncMode::Sync => libc::MS_SYNC,
        SyncMode::Async => libc::MS_ASYNC,
        SyncMode::Invalidate => libc::MS_SYNC | libc::MS_INVALIDATE,
    };
    let (address, len) = region.span(&range)?;
    // SAFETY: the range was checked to lie in this mapping, which is alive.
    check(unsafe { libc::msync(address.cast(), len, flags) })
}

/// Locks a range in memory, page by page.
///
/// # Errors
/// EINVAL for a range outside the region; ENOMEM or EPERM above RLIMIT_MEMLOCK; ENOMEM for pages
/// behind the end of the file or that cannot be read. After those last the range counts as locked
/// nevertheless, until [`unlock`].
pub fn lock(region: &Region, range: Range<usize>) -> Result<(), Errno> {
    let (address, len) = region.span(&range)?;
    // SAFETY: the range was checked to lie in this mapping, which is alive.
    check(unsafe { libc::mlock(address.cast(), len) })
}

/// Undoes [`lock`].
///
/// # Errors
/// EINVAL for a range outside the region; errors of munlock(2).
pub fn unlock(region: &Region, range: Range<usize>) -> Result<(), Errno> {
    let (address, len) = region.span(&range)?;
    // SAFETY: the range was checked to lie in this mapping, which is alive.
    check(unsafe { libc::munlock(address.cast(), len) })
}
