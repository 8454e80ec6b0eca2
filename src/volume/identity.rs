//! Identity of a file, which distinguishes it from all other files, also from earlier and later
//! ones with its inode number.
//!
//! Filesystems reuse the inode number of a removed file. The birth time distinguishes the two
//! files, unless both were made in one tick of the clock for timestamps: some milliseconds, in
//! which a busy name is replaced often. The file handle always distinguishes them, since it has the
//! generation of the inode. It costs one more system call, and a descriptor, so that attributes and
//! handle are of the same file. So it is compared only while the birth time is ambiguous: until the
//! file is seen after that tick, since a later file with its number is younger.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use super::stat::stat_of;
use crate::sys::handle::{FileHandle, handle_of};
use crate::tree::Stat;

#[cfg(test)]
mod tests;

/// Facts kept of a file to know it again by. Device and inode number are compared besides.
#[derive(Debug, Default)]
pub(super) struct Identity {
    /// See [`Stat::birth`]; 0 where it says nothing.
    pub(super) birth: u32,
    pub(super) handle: Option<FileHandle>,
    /// The time of birth may be another file's too: the handle decides.
    pub(super) ambiguous: bool,
}

/// A file as it was found.
pub(super) struct Seen<'a> {
    pub(super) stat: Stat,
    /// Open on it: its inode number is no other file's meanwhile.
    open: Option<BorrowedFd<'a>>,
    handle: OnceCell<Option<FileHandle>>,
}

impl<'a> Seen<'a> {
    /// The file that a descriptor is open on.
    ///
    /// # Errors
    /// Errors of statx(2).
    pub(super) fn by(fd: &'a impl AsFd) -> Result<Seen<'a>, Errno> {
        let fd = fd.as_fd();
        Ok(Seen { stat: stat_of(fd)?, open: Some(fd), handle: OnceCell::new() })
    }
}

impl Seen<'_> {
    /// A file of which nothing is known but its attributes: no match for one whose time of birth
    /// is ambiguous.
    pub(super) fn bare(stat: &Stat) -> Seen<'static> {
        Seen::with_handle(stat, None)
    }

    /// A file with these attributes and this handle.
    pub(super) fn with_handle(stat: &Stat, handle: Option<FileHandle>) -> Seen<'static> {
        Seen { stat: *stat, open: None, handle: OnceCell::from(handle) }
    }

    /// Its file handle, where there is one and it is known.
    pub(super) fn handle(&self) -> Option<&FileHandle> {
        let read = || handle_of(self.open?, c"").ok();
        self.handle.get_or_init(read).as_ref()
    }

    /// Whether no later file with its number can have its time of birth: it is alive, and the tick
    /// in which it was born is over. No filesystem that keeps this time counts in more than
    /// seconds.
    pub(super) fn has_outlived_its_birth(&self) -> bool {
        let over = self.stat.born.sec.saturating_add(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.open.is_some() && now.is_ok_and(|now| now.as_secs() as i64 > over)
    }
}
