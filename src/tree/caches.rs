//! The way to the kernel's caches.

use std::ffi::OsStr;

use rustix::io::Errno;

use super::Ino;

/// Tells the kernel that what it has cached of a file is no longer so.
pub trait Invalidate: Send + Sync {
    /// Writes dirty pages of the range back and drops the rest, before it returns. `len` 0 is to
    /// the end. Must not be called by a thread that the kernel waits for.
    fn now(&self, ino: Ino, offset: u64, len: u64) -> std::io::Result<()>;

    /// The same for the whole file, soon, by another thread.
    fn soon(&self, ino: Ino);

    /// Drops what a name in a directory leads to, or that it is not there. Waits for the lookups
    /// in that directory that are under way; as [`Invalidate::now`] not for everybody to call.
    fn entry(&self, parent: Ino, name: &OsStr) -> Result<(), Errno>;

    /// Has a name looked up anew before it is used again, and leaves what is mounted there.
    fn expire(&self, parent: Ino, name: &OsStr) -> Result<(), Errno>;

    /// Drops the attributes and access lists of a file, and with `data` its cached content.
    ///
    /// # Errors
    /// ENOENT when the kernel does not know the inode, or not yet.
    fn inode(&self, ino: Ino, data: bool) -> Result<(), Errno>;

    /// Drops every name, known or known not to be there, and unmounts what is mounted below.
    ///
    /// # Errors
    /// EINVAL before Linux 6.16.
    fn names(&self) -> Result<(), Errno>;
}
