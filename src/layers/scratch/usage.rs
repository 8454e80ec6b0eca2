//! Disk usage and content of a scratch.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::sys::walk;

/// Content of a scratch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes; a file with hard links counts once.
    pub bytes: u64,
    /// Number of whiteouts.
    pub whiteouts: u64,
    /// Number of partial and complete copies of base files.
    pub copied_files: u64,
    /// Number of files that were made in the scratch.
    pub new_files: u64,
    /// Number of directories that were made in the scratch.
    pub new_directories: u64,
}

/// Allocated bytes of an open directory and everything below it. A file with hard links counts
/// once; other filesystems do not count, nor do files that vanish during the call.
///
/// # Errors
/// Errors of reading the directories.
pub fn bytes_used(dir: impl AsFd) -> Result<u64, Errno> {
    let mut used = 0;
    visit(dir, |_, _, stat| {
        used += (stat.st_blocks as u64).saturating_mul(512);
        Ok(())
    })?;
    Ok(used)
}

/// Calls `see` once for an open directory and for each file below it, with the parent directory,
/// the name in it, and the attributes.
pub(super) fn visit(
    top: impl AsFd,
    mut see: impl FnMut(BorrowedFd<'_>, &CStr, &Stat) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let top = top.as_fd();
    see(top, c".", &rustix::fs::fstat(top)?)?;
    let mut linked = HashSet::new();
    walk::walk(top, &mut |dir: BorrowedFd<'_>, name: &CStr, stat: &Stat| {
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_dir && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
            return Ok(());
        }
        see(dir, name, stat)
    })
}
