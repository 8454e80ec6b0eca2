//! Open files and directories by the number that the kernel keeps for them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::device::Origin;
use super::plane_table::Hold;
use crate::mapping::{BackingFile, OpenMode};
use crate::sys::dir::DirStream;
use crate::tree::{HandleId, Ino};

/// An open file.
pub(super) struct OpenFile {
    pub(super) ino: Ino,
    pub(super) file: Arc<BackingFile>,
    pub(super) mode: OpenMode,
    /// The mode of its view lets it be read.
    pub(super) readable: bool,
    /// It was read through this handle.
    accessed: AtomicBool,
    /// Keeps the plane of the inode, where the kernel has asked for it.
    _hold: Option<Hold>,
}

impl OpenFile {
    pub(super) fn new(
        ino: Ino,
        file: Arc<BackingFile>,
        mode: OpenMode,
        readable: bool,
        hold: Option<Hold>,
    ) -> OpenFile {
        OpenFile { ino, file, mode, readable, accessed: AtomicBool::new(false), _hold: hold }
    }

    /// True once: before the first read.
    pub(super) fn first_access(&self) -> bool {
        !self.accessed.load(Ordering::Relaxed) && !self.accessed.swap(true, Ordering::Relaxed)
    }
}

/// An open directory.
pub(super) struct OpenDir {
    pub(super) ino: Ino,
    /// The device and the mount of its entries.
    pub(super) place: Origin,
    pub(super) fd: Arc<OwnedFd>,
    pub(super) stream: Mutex<DirStream>,
}

/// Open files and directories.
#[derive(Default)]
pub(super) struct HandleTable {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    dirs: RwLock<HashMap<u64, Arc<OpenDir>>>,
}

impl HandleTable {
    fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn add_file(&self, file: OpenFile) -> HandleId {
        let id = self.id();
        self.files.write().insert(id, Arc::new(file));
        HandleId(id)
    }

    pub(super) fn add_dir(&self, dir: OpenDir) -> HandleId {
        let id = self.id();
        self.dirs.write().insert(id, Arc::new(dir));
        HandleId(id)
    }

    pub(super) fn file(&self, id: HandleId) -> Result<Arc<OpenFile>, Errno> {
        self.files.read().get(&id.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn dir(&self, id: HandleId) -> Result<Arc<OpenDir>, Errno> {
        self.dirs.read().get(&id.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn remove_file(&self, id: HandleId) -> Result<Arc<OpenFile>, Errno> {
        self.files.write().remove(&id.0).ok_or(Errno::BADF)
    }

    pub(super) fn remove_dir(&self, id: HandleId) -> Result<(), Errno> {
        self.dirs.write().remove(&id.0).map(drop).ok_or(Errno::BADF)
    }

    pub(super) fn all_files(&self) -> Vec<Arc<OpenFile>> {
        self.files.read().values().cloned().collect()
    }

    /// Open files and open directories.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.files.read().len() as u64, self.dirs.read().len() as u64)
    }
}
