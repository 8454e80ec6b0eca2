//! The interface of a tree to the layers above.
//!
//! A [`Tree`] answers the requests of the kernel, a [`Managed`] one the control verbs and the
//! daemon as well. [`Volume`](super::Volume) is the plain tree: one directory, every file a backing
//! file of its own. Where a method stands for a system call it fails with the errno of that call;
//! besides, every method that takes an inode number fails with ESTALE for one that is not known
//! and EPERM for one of the control directory, and every one that takes a handle with EBADF for
//! one that is not open. A change fails with EROFS where the view does not allow it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{RenameFlags, StatVfs};
use rustix::io::Errno;

use super::{
    Attr, DataOnly, DirItem, Entry, Found, GuardCounts, HandleId, Ino, Invalidate, NewNode,
    NotAdvised, Open, OpenInode, Opened, PageState, RegisterBacking, SeekTo, SetAttr, Validity,
    VolumeCounts, WatchCounts, WhyMapped, WriteRequest, XattrFlags,
};
use crate::advice::Advice;
use crate::config::rules::RuleSet;
use crate::flags::MapMode;
use crate::mapping::{AdviceEffect, BackingFile, FlushEffect};
use crate::range::ByteRange;
use crate::sys::advise::SyncMode;
use crate::sys::cred::Caller;

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

/// The requests of the kernel to a tree. The methods are called by many threads at a time, and one
/// that waits keeps none of the others waiting.
pub trait Tree: Send + Sync {
    /// Finds a name and counts one lookup of what it names.
    ///
    /// # Errors
    /// ENOENT when there is no such name; errors of statx(2).
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno>;

    /// Takes back `count` lookups of an inode, which is unknown when none is left.
    fn forget(&self, ino: Ino, count: u64);

    /// Time for which the kernel may use that a name is not in a directory, or a listing of it.
    fn names_validity(&self, parent: Ino) -> Validity;

    /// Whether a listing of a directory may go on in another open one than that in which it was
    /// begun, so that the kernel may keep what it has read of it.
    fn keeps_listings(&self, dir: Ino) -> bool;

    /// Whether no name that does not exist is left over in the kernel when changes were lost.
    fn drops_all_names(&self) -> bool;

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

    /// link(2): another name for a file, looked up.
    ///
    /// # Errors
    /// Errors of link(2).
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno>;

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
    /// Errors of pwrite(2).
    fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno>;

    /// Ends an open file.
    ///
    /// # Errors
    /// None but EBADF.
    fn release(&self, id: HandleId) -> Result<(), Errno>;

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

    /// One of the attribute ioctls (FS_IOC_GETFLAGS and the like) on an open file or directory.
    ///
    /// # Errors
    /// ENOTTY for any other; errors of ioctl(2).
    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        command: u32,
        data: &[u8],
        out_size: usize,
    ) -> Result<(i32, Vec<u8>), Errno>;

    /// Opens a directory for listing.
    ///
    /// # Errors
    /// Errors of open(2).
    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno>;

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

    /// Ends an open directory.
    ///
    /// # Errors
    /// None but EBADF.
    fn release_dir(&self, id: HandleId) -> Result<(), Errno>;

    /// fsync(2) of a directory.
    ///
    /// # Errors
    /// Errors of fsync(2).
    fn sync_dir(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno>;

    /// statvfs(3) of the filesystem that a file is on.
    ///
    /// # Errors
    /// Errors of statfs(2).
    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno>;

    /// getxattr(2) into `buffer`; an empty one asks for the size.
    ///
    /// # Errors
    /// ENODATA, ERANGE and the others of getxattr(2).
    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// listxattr(2) into `buffer`; an empty one asks for the size.
    ///
    /// # Errors
    /// ERANGE and the others of listxattr(2).
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

    /// Whether a backing filesystem may itself be on top of another.
    fn source_is_stacked(&self) -> bool;

    /// Says why no file is lent to the kernel, or that they may be. Holds for later opens.
    fn close_passthrough(&self, reason: Option<String>);
}

/// Further requests to a tree, of the control verbs and the daemon.
pub trait Managed: Tree {
    /// Finds a path relative to the root. Symbolic links are followed as long as they stay below
    /// the source.
    ///
    /// # Errors
    /// EXDEV for a way out of the source; errors of openat2(2).
    fn find(&self, path: &Path) -> Result<Found, Errno>;

    /// The backing files that a path is made of and that are in use, topmost first, without taking
    /// any into use.
    fn in_use(&self, found: &Found) -> Vec<Arc<BackingFile>>;

    /// Number of handles that clients have on a path.
    fn handles(&self, found: &Found) -> u64;

    /// The mode that a path's mapping has or would have.
    fn mode_at(&self, found: &Found) -> MapMode;

    /// Why a file is not lent to the kernel: as it is where it is open, else as its first open
    /// would find it.
    fn why_mapped(&self, found: &Found) -> Option<WhyMapped>;

    /// Gives the kernel an advice on a range of a regular file, and where that takes bytes away
    /// drops the kernel's own cache of them. Bytes are lost for good only with `destroy`. Must not
    /// run on a thread that answers the kernel.
    ///
    /// # Errors
    /// [`NotAdvised`]; EISDIR and EINVAL for what is no regular file, EROFS where it would be
    /// written and the view does not allow it; errors of [`BackingFile::advise`].
    fn advise(
        &self,
        found: &Found,
        range: ByteRange,
        advice: Advice,
        destroy: bool,
    ) -> Result<AdviceEffect, NotAdvised>;

    /// Flushes a range of a regular file, with what the kernel holds of it in its own cache. Must
    /// not run on a thread that answers the kernel.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file; errors of msync(2) and fdatasync(2).
    fn flush(&self, found: &Found, range: ByteRange, mode: SyncMode) -> Result<FlushEffect, Errno>;

    /// Locks a range of a regular file in memory or undoes that, and returns the whole pages.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file; errors of [`BackingFile::set_locked`].
    fn set_locked(&self, found: &Found, range: ByteRange, lock: bool) -> Result<ByteRange, Errno>;

    /// The state of a range of a regular file in the page cache.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file; errors of open(2).
    fn page_state(&self, found: &Found, range: ByteRange) -> Result<PageState, Errno>;

    /// Number of pages of a regular file in the scratch; `None` for a tree that is none.
    fn own_pages(&self, _found: &Found) -> Option<u64> {
        None
    }

    /// What has become of the base of a file in a scratch since the first touch, where that is not
    /// as it was.
    fn fate_of_base(&self, _found: &Found) -> Option<String> {
        None
    }

    /// Whether a regular file can be mapped, found out by doing it.
    ///
    /// # Errors
    /// Errors of mmap(2); EINVAL for an empty file.
    fn mappable(&self, found: &Found) -> Result<(), Errno>;

    /// Every inode that clients have open.
    fn open_files(&self) -> Vec<OpenInode>;

    /// Every backing file in use, with where the mount shows it, relative to its root; else the
    /// file's own path.
    fn files_in_use(&self) -> Vec<(PathBuf, Arc<BackingFile>)>;

    /// Counts of what was written over a base; `None` for a tree that is no scratch.
    fn scratch(&self) -> Option<ScratchCounts> {
        None
    }

    /// Number of files that are held open only because they carry advice or a lock.
    fn held_files(&self) -> u64;

    /// The counts of everything.
    fn counts(&self) -> VolumeCounts;

    /// Why no file is lent to the kernel; `None` where they are.
    fn passthrough_closed(&self) -> Option<String>;

    /// Whether backing files are found by file handle, which survives renames behind our back.
    fn uses_file_handles(&self) -> bool;

    /// Whether the kernel tells the state of the page cache (cachestat(2)).
    fn cache_stat_works(&self) -> bool;

    /// The watched places, or the reason that nothing is watched.
    ///
    /// # Errors
    /// The reason, for people.
    fn watch_state(&self) -> Result<String, String>;

    /// The counts of the watch.
    fn watch_counts(&self) -> &WatchCounts;

    /// Whether the kernel may open directories without asking, if nothing is mounted in the tree:
    /// every change of one is told, and a listing may go on in another stream.
    fn directories_open_silently(&self) -> bool;

    /// Replaces the rules. Files that are open keep their mode until they are closed.
    fn set_rules(&self, rules: RuleSet);

    /// Drops what the kernel has cached of files that may not be read any more.
    fn drop_unreadable(&self);

    /// Time for which answers are trusted where nothing else is known.
    fn validity(&self) -> Validity;

    /// The number of rules in force.
    fn rule_count(&self) -> usize;

    /// Sets the way to the kernel's caches, once, when there is one.
    fn connect(&self, invalidate: Box<dyn Invalidate>);

    /// Closes what is held open for a moment only, on a thread of its own, until [`Managed::end`].
    fn expire(&self);

    /// Makes [`Managed::expire`] return.
    fn end(&self);
}
