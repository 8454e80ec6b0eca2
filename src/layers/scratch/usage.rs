//! What a tree takes on its filesystem.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::sys::walk;

/// What is in a scratch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the blocks of everything, hard links once.
    pub bytes: u64,
    /// Names of the base that are gone.
    pub whiteouts: u64,
    /// Files that were copied from the base, in part or whole.
    pub copied_files: u64,
    /// Files that were made in it.
    pub new_files: u64,
    /// Directories that were made in it.
    pub new_directories: u64,
}

/// The bytes of the blocks of everything below an open directory, itself included; hard links count
/// once, other filesystems not at all.
///
/// # Errors
/// Those of reading the directories. What vanishes meanwhile is not counted.
pub fn bytes_used(dir: impl AsFd) -> Result<u64, Errno> {
    let mut used = 0;
    visit(dir, |_, _, stat| {
        used += (stat.st_blocks as u64).saturating_mul(512);
        Ok(())
    })?;
    Ok(used)
}

/// Calls `see` for an open directory and everything below it, once for each file: with the directory
/// that it lies in, its name there, and its attributes.
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
