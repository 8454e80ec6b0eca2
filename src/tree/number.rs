//! Numbers of inodes and of open files.

use std::fmt;

/// An inode number in the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the mount (FUSE_ROOT_ID).
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers of inodes and handles of a mount from here on belong to the control tree.
pub const FIRST_RESERVED: u64 = 1 << 63;

/// The number of an open file or directory; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

impl HandleId {
    /// The number that the kernel sends for an open that it made without asking.
    pub const NONE: HandleId = HandleId(0);
}
