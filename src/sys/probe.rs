//! Probes of kernel features for this process. They leave nothing behind.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use super::last_errno;
use super::region::Region;

#[cfg(test)]
mod tests;

/// FUSE_DEV_IOC_BACKING_OPEN of linux/fuse.h: `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: u32 = 0x4010_e501;

/// struct fuse_backing_map.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Gives an open file to a FUSE connection as a target of passthrough. It stays with the
/// connection until that ends. Returns its number there.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the first user namespace, or when passthrough was not agreed on;
/// ELOOP for a file on a filesystem that is stacked as deep as was agreed on; ENOTTY before Linux
/// 6.9.
pub fn open_backing(device: impl AsFd, file: impl AsFd) -> Result<u32, Errno> {
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    let fd = device.as_fd().as_raw_fd();
    // SAFETY: the request reads the 16 bytes of the structure, which has the kernel's layout and
    // outlives the call.
    let number = unsafe { libc::ioctl(fd, BACKING_OPEN as libc::Ioctl, &raw const map) };
    u32::try_from(number).map_err(|_| last_errno())
}

/// PAGEMAP_SCAN of linux/fs.h: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xc060_6610;

/// PAGE_IS_PRESENT of linux/fs.h.
const PAGE_IS_PRESENT: u64 = 1 << 3;

/// struct pm_scan_arg.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Scans the page table of a mapping for pages that are present; `pagemap` is open on
/// /proc/self/pagemap. Returns how many ranges of such pages begin in the first 8.
///
/// # Errors
/// ENOTTY before Linux 6.7; errors of the ioctl.
pub fn scan_pagemap(pagemap: impl AsFd, region: &Region) -> Result<u32, Errno> {
    const ROOM: usize = 8;
    let mut found = [[0_u64; 3]; ROOM]; // struct page_region: start, end, categories.
    let (start, len) = region.span(&(0..region.len()))?;
    let page = super::page_size();
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags: 0,
        start: start as u64,
        end: (start as usize).saturating_add(len.next_multiple_of(page)) as u64,
        walk_end: 0,
        vec: found.as_mut_ptr() as u64,
        vec_len: ROOM as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_PRESENT,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_PRESENT,
    };
    let fd = pagemap.as_fd().as_raw_fd();
    // SAFETY: the argument has the kernel's layout and says how large it is; the array that it
    // names has the room that it states; both outlive the call.
    let ranges = unsafe { libc::ioctl(fd, PAGEMAP_SCAN as libc::Ioctl, &raw mut argument) };
    u32::try_from(ranges).map_err(|_| last_errno())
}
