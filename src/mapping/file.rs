//! One backing file: its descriptors, its mapping, and its counters.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::persistent_advice::PersistentAdvice;
use super::region::MappingSlot;
use super::table::Budget;
use crate::flags::MapMode;
use crate::shown::Show;
use crate::sys::region::Region;

/// Identifies a backing file for as long as it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Device number, as in `st_dev`.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// The mount through which it is reached (`stx_mnt_id`), whose flags hold for it: the same
    /// file may be read-only at one place and not at another. 0 where the kernel does not tell.
    pub mount: u64,
}

/// The access that a handle wants to the backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Only reading.
    Read,
    /// Writing, and reading where the file's permissions allow it.
    Write,
    /// Writing at the end, which is all that an append-only file allows.
    Append,
}

impl OpenMode {
    /// Whether it writes at all.
    pub fn writes(self) -> bool {
        self != OpenMode::Read
    }
}

/// The descriptors of a backing file: for reading and for writing, mostly one for both. They
/// differ where the daemon itself may not do both at once, and the file's permissions changed.
#[derive(Debug, Clone, Default)]
pub struct Descriptor {
    reader: Option<Arc<OwnedFd>>,
    writer: Option<Arc<OwnedFd>>,
    /// Only at the end: the file is append-only (`chattr +a`).
    pub append_only: bool,
}

impl Descriptor {
    /// Wraps an open descriptor of a regular file.
    pub fn new(fd: OwnedFd, readable: bool, writable: bool) -> Descriptor {
        let fd = Arc::new(fd);
        let slot = |wanted: bool| wanted.then(|| Arc::clone(&fd));
        Descriptor { reader: slot(readable), writer: slot(writable), append_only: false }
    }

    /// Wraps a descriptor that can only append, and one for reading if there is one. They are two,
    /// since an append-only file cannot be mapped shared through a descriptor for writing.
    pub fn for_appending(writer: OwnedFd, reader: Option<OwnedFd>) -> Descriptor {
        let reader = reader.map(Arc::new);
        Descriptor { reader, append_only: true, ..Descriptor::new(writer, false, true) }
    }

    /// Descriptor with the rights of both; the newer one is used where both have a right.
    fn merged(&self, newer: Descriptor) -> Descriptor {
        let append_only = match &newer.writer {
            Some(_) => newer.append_only,
            None => self.append_only,
        };
        Descriptor {
            reader: newer.reader.or_else(|| self.reader.clone()),
            writer: newer.writer.or_else(|| self.writer.clone()),
            append_only,
        }
    }

    /// The descriptor without its writer; `None` if there is none for reading.
    pub(super) fn without_writer(&self) -> Option<Descriptor> {
        let shared = self.is_for_both();
        let reader = self.reader.clone().filter(|_| !shared)?;
        Some(Descriptor { reader: Some(reader), writer: None, append_only: false })
    }

    /// One descriptor does both, so that a writable mapping can be made.
    pub(super) fn is_for_both(&self) -> bool {
        let both = self.reader.as_ref().zip(self.writer.as_ref());
        both.is_some_and(|(reader, writer)| Arc::ptr_eq(reader, writer))
    }

    /// Descriptor for reading.
    ///
    /// # Errors
    /// EBADF if there is none.
    pub fn reader(&self) -> Result<&OwnedFd, Errno> {
        self.reader.as_deref().ok_or(Errno::BADF)
    }

    /// Descriptor for writing.
    ///
    /// # Errors
    /// EBADF if there is none.
    pub fn writer(&self) -> Result<&OwnedFd, Errno> {
        self.writer.as_deref().ok_or(Errno::BADF)
    }

    /// Shared descriptor for reading.
    ///
    /// # Errors
    /// As [`Descriptor::reader`].
    pub fn shared_reader(&self) -> Result<Arc<OwnedFd>, Errno> {
        self.reader.clone().ok_or(Errno::BADF)
    }

    /// Shared descriptor for writing.
    ///
    /// # Errors
    /// As [`Descriptor::writer`].
    pub fn shared_writer(&self) -> Result<Arc<OwnedFd>, Errno> {
        self.writer.clone().ok_or(Errno::BADF)
    }

    /// Shared descriptor, for reading or writing.
    pub fn shared(&self) -> Option<Arc<OwnedFd>> {
        self.writer.as_ref().or(self.reader.as_ref()).map(Arc::clone)
    }

    /// Descriptor for calls that need no particular right.
    ///
    /// # Errors
    /// EBADF if there is none, which does not happen.
    pub fn any(&self) -> Result<&OwnedFd, Errno> {
        self.writer().or_else(|_| self.reader())
    }
}

/// A file of the backing tree that is open or carries advice.
pub struct BackingFile {
    key: FileKey,
    mode: RwLock<MapMode>,
    descriptor: RwLock<Descriptor>,
    pub(super) slot: MappingSlot,
    pub(super) persistent: Mutex<PersistentAdvice>,
    /// Open handles and how many of them write; changed only under the table's lock.
    pub(super) handles: AtomicU64,
    pub(super) writers: AtomicU64,
    /// The last use of the mapping, in ticks of the table's clock.
    pub(super) last_used: AtomicU64,
    pub(super) budget: Arc<Budget>,
    /// Number of faults on mapped pages.
    faults: AtomicU64,
    fault_logged: AtomicBool,
    /// Number of size changes by callers of the mount: pages that vanish by them are no faults.
    resizes: AtomicU64,
    /// Held shared while pages are handed to the kernel, and exclusively while a caller of the
    /// mount sets the size, so that no page is cut off while it is read.
    pub(super) resizing: RwLock<()>,
    /// Cleared when the daemon may not set this file's times: then every write is a pwrite(2).
    pub(super) may_touch: AtomicBool,
}

impl std::fmt::Debug for BackingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackingFile").field("key", &self.key).finish_non_exhaustive()
    }
}

impl BackingFile {
    pub(super) fn new(
        key: FileKey,
        descriptor: Descriptor,
        mode: MapMode,
        budget: Arc<Budget>,
    ) -> BackingFile {
        BackingFile {
            key,
            mode: RwLock::new(mode),
            descriptor: RwLock::new(descriptor),
            slot: MappingSlot::default(),
            persistent: Mutex::new(PersistentAdvice::default()),
            handles: AtomicU64::new(0),
            writers: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            budget,
            faults: AtomicU64::new(0),
            fault_logged: AtomicBool::new(false),
            resizes: AtomicU64::new(0),
            resizing: RwLock::new(()),
            may_touch: AtomicBool::new(true),
        }
    }

    /// Device and inode number.
    pub fn key(&self) -> FileKey {
        self.key
    }

    /// The flags, protection and first advice of its mapping.
    pub fn mode(&self) -> MapMode {
        *self.mode.read()
    }

    /// Changes the mode; the mapping is made anew on next use when it differs.
    pub(super) fn set_mode(&self, mode: &MapMode) {
        if *self.mode.read() != *mode {
            *self.mode.write() = *mode;
            drop(self.unmap());
        }
    }

    /// The descriptor in use at this moment; it stays open while the value lives.
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor.read().clone()
    }

    /// Adds a descriptor with other rights; the mapping follows on next use. Returns the old
    /// mapping, as [`BackingFile::unmap`] does.
    #[must_use]
    pub(super) fn add_descriptor(&self, newer: Descriptor) -> Option<Arc<Region>> {
        let mut descriptor = self.descriptor.write();
        *descriptor = descriptor.merged(newer);
        drop(descriptor);
        self.unmap()
    }

    /// Replaces the descriptor, as [`BackingFile::add_descriptor`].
    #[must_use]
    pub(super) fn replace_descriptor(&self, descriptor: Descriptor) -> Option<Arc<Region>> {
        *self.descriptor.write() = descriptor;
        self.unmap()
    }

    /// Whether a handle of this mode can be served by the present descriptor.
    pub fn serves(&self, mode: OpenMode) -> bool {
        let descriptor = self.descriptor.read();
        match mode {
            OpenMode::Read => descriptor.reader.is_some(),
            OpenMode::Write => descriptor.writer.is_some() && !descriptor.append_only,
            OpenMode::Append => descriptor.writer.is_some(),
        }
    }

    /// Size in bytes at this moment.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn size(&self) -> Result<u64, Errno> {
        let stat = rustix::fs::fstat(self.descriptor().any()?)?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Sets the size for a caller, while no read hands pages to the kernel.
    ///
    /// # Errors
    /// Errors of `resize`.
    pub fn resize(&self, resize: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        self.resizes.fetch_add(1, Ordering::AcqRel);
        let _alone = self.resizing.write();
        resize()
    }

    pub(super) fn resizes(&self) -> u64 {
        self.resizes.load(Ordering::Acquire)
    }

    /// Whether a handle is open for writing.
    pub fn is_written(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    /// The number of open handles.
    pub fn handles(&self) -> u64 {
        self.handles.load(Ordering::Acquire)
    }

    /// Number of times that a mapped page of this file was gone or unreadable.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// The present path of the backing file, for messages: the kernel's own view of the open
    /// descriptor. A removed file ends in ` (deleted)`.
    pub fn path(&self) -> PathBuf {
        let descriptor = self.descriptor();
        let link = descriptor.any().map(|fd| crate::sys::fd_path(fd.as_fd()));
        link.and_then(|link| rustix::fs::readlink(&link, Vec::new()))
            .map(|path| {
                use std::os::unix::ffi::OsStringExt;
                PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()))
            })
            .unwrap_or_else(|_| PathBuf::from(format!("inode {}", self.key.ino)))
    }

    /// Counts a fault, and logs the first one of each file.
    pub(super) fn record_fault(&self, what: &str, start: u64, end: u64, reason: &str) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.budget.faults.fetch_add(1, Ordering::Relaxed);
        if !self.fault_logged.swap(true, Ordering::Relaxed) {
            log::warn!("{}: {what} of bytes {start}-{end}: {reason}", self.path().shown());
        }
    }
}
