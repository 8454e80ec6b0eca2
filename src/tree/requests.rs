//! The requests of the kernel to a tree.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use rustix::fs::{RenameFlags, StatVfs};
use rustix::io::Errno;

use super::{
    Attr, DataOnly, DirItem, Entry, HandleId, Ino, Ioctl, NewNode, Open, Opened, RegisterBacking,
    SeekTo, SetAttr, Validity, WriteRequest, XattrFlags,
};
use crate::sys::cred::Caller;

/// Names: look up, make, link, rename, remove.
pub trait Names: Send + Sync {
    /// Finds a name and counts one lookup of what it names.
    ///
    /// # Errors
    /// ENOENT when there is no such name; errors of statx(2).
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno>;

    /// Takes back `count` lookups of an inode, which is unknown when none is left.
    fn forget(&self, ino: Ino, count: u64);

    /// The path at which an inode was seen last, relative to the root; `None` when it is not known.
    fn path_of_inode(&self, ino: Ino) -> Option<PathBuf>;

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// Errors of readlink(2).
    fn read_link(&self, ino: Ino) -> Result<OsString, Errno>;

    /// mknod(2): a regular file, fifo, socket or device, looked up.
    ///
    /// # Errors
    /// Errors of mknod(2).
    fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno>;

    /// mkdir(2), looked up.
    ///
    /// # Errors
    /// Errors of mkdir(2).
    fn make_dir(&self, parent: Ino, name: &OsStr, new: &NewNode<'_>) -> Result<Entry, Errno>;

    /// symlink(2), looked up.
    ///
    /// # Errors
    /// Errors of symlink(2).
    fn make_symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: &Caller,
    ) -> Result<Entry, Errno>;

    /// Makes a regular file and opens it. A name that has come to exist since the kernel looked
    /// is left to the kernel to open, with its checks of permission.
    ///
    /// # Errors
    /// EEXIST with `exclusive`, else ESTALE, for a name that exists; errors of open(2). EINVAL,
    /// with the file made, where there is no direct I/O and it was asked for.
    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        how: &Open,
        exclusive: bool,
        register: &RegisterBacking<'_>,
    ) -> Result<(Entry, Opened), Errno>;

    /// link(2): another name for a file, looked up.
    ///
    /// # Errors
    /// Errors of link(2).
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno>;

    /// unlink(2), or rmdir(2) with `directory`.
    ///
    /// # Errors
    /// Errors of unlink(2) and rmdir(2).
    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno>;

    /// renameat2(2) with any of its flags.
    ///
    /// # Errors
    /// Errors of renameat2(2).
    fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno>;
}

/// Open files: read, write, synchronise, allocate, seek, copy.
pub trait Files: Send + Sync {
    /// Opens a file. Without [`Open::wait`] it does not wait for the holder of a lease.
    ///
    /// # Errors
    /// EACCES where the view cannot be read; EAGAIN when it would have to wait; errors of open(2).
    fn open(
        &self,
        ino: Ino,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno>;

    /// close(2) of one descriptor, by a process whose table of descriptors has the number `closer`.
    ///
    /// # Errors
    /// EAGAIN without `wait`, when it would take long; the outcome of writes that it completes.
    fn close(&self, _ino: Ino, _id: HandleId, _closer: u64, _wait: bool) -> Result<(), Errno> {
        Ok(())
    }

    /// Ends an open file.
    ///
    /// # Errors
    /// None but EBADF.
    fn release(&self, id: HandleId) -> Result<(), Errno>;

    /// Reads up to `len` bytes at `offset` and calls `deliver` with them, once: fewer mean the end
    /// of the file. The bytes may be a mapping's own: `deliver` must only hand them to the kernel.
    ///
    /// # Errors
    /// Errors of pread(2), without a call of `deliver`.
    fn read(
        &self,
        ino: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno>;

    /// Writes `data` and returns how much arrived.
    ///
    /// # Errors
    /// EAGAIN without [`WriteRequest::wait`], when it would take long; errors of pwrite(2).
    fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno>;

    /// Makes a file durable.
    ///
    /// # Errors
    /// Errors of fsync(2).
    fn sync(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno>;

    /// fallocate(2) in any mode that the backing filesystem has.
    ///
    /// # Errors
    /// Errors of fallocate(2).
    fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno>;

    /// Finds the next data or hole.
    ///
    /// # Errors
    /// ENXIO behind the end of the file; errors of lseek(2).
    fn seek(&self, ino: Ino, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno>;

    /// Copies a range from one open file to another, by sharing blocks where it can, and returns
    /// how many bytes.
    ///
    /// # Errors
    /// Errors of copy_file_range(2).
    fn copy_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno>;

    /// An ioctl on an open file or directory: one of the attribute ioctls (FS_IOC_GETFLAGS and the
    /// like), and on the control file its commands. Returns its value and the bytes that it gives.
    ///
    /// # Errors
    /// ENOTTY for any other; EAGAIN without [`Ioctl::wait`], when it would take long; errors of
    /// ioctl(2).
    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        request: &Ioctl<'_>,
        caller: &Caller,
    ) -> Result<(i32, Vec<u8>), Errno>;
}

/// Attributes of inodes and of the filesystem.
pub trait Attributes: Send + Sync {
    /// Attributes of an inode, by an open handle of it where there is one.
    ///
    /// # Errors
    /// Errors of statx(2).
    fn attr(&self, ino: Ino, handle: Option<HandleId>) -> Result<Attr, Errno>;

    /// Changes attributes and returns them all. A size is set by `handle` where that can write.
    ///
    /// # Errors
    /// Errors of truncate(2), chown(2), chmod(2) and utimensat(2).
    fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        caller: &Caller,
    ) -> Result<Attr, Errno>;

    /// statvfs(3) of the filesystem that a file is on.
    ///
    /// # Errors
    /// Errors of statfs(2).
    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno>;
}

/// Open directories: list and synchronise.
pub trait Directories: Send + Sync {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// Errors of open(2).
    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno>;

    /// Ends an open directory.
    ///
    /// # Errors
    /// None but EBADF.
    fn release_dir(&self, id: HandleId) -> Result<(), Errno>;

    /// Lists a directory from `offset` (0 is the start) until `add` says that it is full. With
    /// `look_up` every entry counts as a lookup, which is taken back for the one that did not
    /// fit. Returns whether the end was reached.
    ///
    /// # Errors
    /// Errors of getdents(2), when nothing was listed.
    fn list(
        &self,
        directory: (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno>;

    /// fsync(2) of a directory.
    ///
    /// # Errors
    /// Errors of fsync(2).
    fn sync_dir(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno>;
}

/// Extended attributes.
pub trait Xattrs: Send + Sync {
    /// Reads an xattr into `buffer`, and returns its size in bytes. An empty buffer asks for the
    /// size.
    ///
    /// # Errors
    /// ENODATA, ERANGE and other errors of getxattr(2).
    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Lists the xattr names into `buffer`, and returns their size in bytes. An empty buffer asks
    /// for the size.
    ///
    /// # Errors
    /// ERANGE and other errors of listxattr(2).
    fn list_xattr(&self, ino: Ino, buffer: &mut [u8], caller: &Caller) -> Result<usize, Errno>;

    /// setxattr(2). The kernel has checked the caller's right.
    ///
    /// # Errors
    /// Errors of setxattr(2).
    fn set_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Result<(), Errno>;

    /// removexattr(2).
    ///
    /// # Errors
    /// Errors of removexattr(2).
    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno>;
}

/// The answers that the kernel may keep.
pub trait Caching: Send + Sync {
    /// Time for which the kernel may use that a name is not in a directory, or a listing of it.
    fn names_validity(&self, parent: Ino) -> Validity;

    /// Whether a listing of a directory may go on in another open one than that in which it was
    /// begun, so that the kernel may keep what it has read of it.
    fn keeps_listings(&self, dir: Ino) -> bool;

    /// Whether the kernel's cached missing names can all be dropped when changes were lost.
    fn drops_all_names(&self) -> bool;
}

/// The session's agreement with the kernel about passthrough.
pub trait Passthrough: Send + Sync {
    /// Whether a backing filesystem may itself be on top of another.
    fn source_is_stacked(&self) -> bool;

    /// Says why no file is lent to the kernel, or that they may be. Holds for later opens.
    fn close_passthrough(&self, reason: Option<String>);
}

/// All requests of the kernel.
pub trait Tree: Names + Files + Attributes + Directories + Xattrs + Caching + Passthrough {}

impl<T: Names + Files + Attributes + Directories + Xattrs + Caching + Passthrough> Tree for T {}
