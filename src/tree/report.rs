//! Facts about a tree and its files, for the control verbs.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustix::io::Errno;

use super::{Ino, Stat};
use crate::mapping::MappingCounts;

/// The file that a path below the root leads to.
pub struct Found {
    /// Inode number in the mount.
    pub ino: Ino,
    /// Attributes of the backing file.
    pub stat: Stat,
    /// The path without links, relative to the root.
    pub path: PathBuf,
    /// A descriptor of it with O_PATH.
    pub fd: OwnedFd,
}

/// Page cache state of a range of a file, in pages; `None` where it is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageState {
    /// In the page cache.
    pub resident: Option<u64>,
    /// Changed since they were read or written back.
    pub dirty: Option<u64>,
    /// Being written back.
    pub writeback: Option<u64>,
}

impl PageState {
    /// No page at all.
    pub const NONE: PageState = PageState { resident: Some(0), dirty: Some(0), writeback: Some(0) };

    /// The pages of two ranges together.
    pub fn and(self, other: PageState) -> PageState {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one? + other?);
        PageState {
            resident: sum(self.resident, other.resident),
            dirty: sum(self.dirty, other.dirty),
            writeback: sum(self.writeback, other.writeback),
        }
    }
}

/// Why an advice was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdvised {
    /// It destroys bytes, and that was not said.
    Destroys,
    /// It drops this many pages that only the scratch has, and `destroy` was not said.
    AtStake(u64),
    /// The system call failed.
    Failed(Errno),
}

impl From<Errno> for NotAdvised {
    fn from(err: Errno) -> NotAdvised {
        NotAdvised::Failed(err)
    }
}

/// Counts of what a tree holds at this moment.
#[derive(Debug, Clone, Copy)]
pub struct TreeCounts {
    /// Inodes that the kernel knows.
    pub inodes: u64,
    /// The lookups that it has not taken back.
    pub lookups: u64,
    /// Open files.
    pub files: u64,
    /// Open directories.
    pub directories: u64,
    /// Mappings.
    pub mappings: MappingCounts,
}

/// The counts of a watch so far.
#[derive(Debug, Default)]
pub struct WatchCounts {
    /// Number of reported changes, including those made through the mount.
    pub events: AtomicU64,
    /// Invalidations that the kernel was sent.
    pub invalidations: AtomicU64,
    /// Number of times that changes were lost, and everything was invalidated.
    pub overflows: AtomicU64,
}

/// A scratch and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchCounts {
    /// Its name.
    pub id: String,
    /// Where its layers are, topmost first: the last is the base.
    pub layers: Vec<PathBuf>,
    /// It was an upper directory of overlayfs, or one without a state, and was taken for a scratch.
    pub adopted: bool,
    /// It goes when the mount goes.
    pub temporary: bool,
    /// It is gone when the machine goes down.
    pub in_memory: bool,
    /// Pages (of 4096 bytes) that files have of their own which have others in the base.
    pub pages: u64,
    /// Number of such files: written in part, or not at all but for their attributes.
    pub partial_files: u64,
    /// Files of the base that have a file of their own in the scratch, in part or whole.
    pub copied_files: u64,
    /// Files that were made in the scratch.
    pub new_files: u64,
    /// Directories that were made in the scratch.
    pub new_directories: u64,
    /// Names of the base that are gone.
    pub whiteouts: u64,
    /// Bytes that it takes.
    pub used_bytes: u64,
    /// Bytes that it may still take.
    pub left_bytes: u64,
    /// Bytes that it may take in all, where there is a limit but the filesystem's.
    pub limit_bytes: Option<u64>,
    /// The guard that keeps the base from changing under it.
    pub guard: GuardCounts,
}

/// Counters of the guard of the base.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardCounts {
    /// Files of the base that were cloned into the scratch, and need no guard.
    pub cloned_files: u64,
    /// Number of base files under a lease: a writer waits until their visible pages are copied.
    pub leased: u64,
    /// Files that are in use and under no lease.
    pub unguarded_files: u64,
    /// The first of them, with the reason.
    pub unguarded: Vec<(PathBuf, String)>,
    /// Files whose rest was copied because somebody was about to change the base.
    pub rescued_files: u64,
    /// Bytes that were copied so.
    pub rescued_bytes: u64,
    /// Files that somebody waits for, and that are not being copied yet.
    pub waiting: u64,
    /// Files that are being rescued, with the number of bytes copied so far.
    pub under_way: Vec<(PathBuf, u64)>,
    /// Files whose rescue failed, with the reason.
    pub failed: Vec<(PathBuf, String)>,
    /// All that the scratch has in the place of files of the base was compared with them since the
    /// mount.
    pub compared: bool,
    /// Files whose base has changed or may have changed, with its fate in words.
    pub changed: Vec<(PathBuf, String)>,
    /// Time for which the kernel lets a writer wait for a lease.
    pub lease_break: Duration,
}
