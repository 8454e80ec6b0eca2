//! All backing files that are open or carry advice, and the bound on their mappings.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::file::{BackingFile, Descriptor, FileKey, OpenMode};
use crate::flags::MapMode;
use crate::shown::Show;
use crate::sys::region::Region;

/// The clock of use and the counts, which all backing files share.
#[derive(Default)]
pub(super) struct Budget {
    clock: AtomicU64,
    pub(super) mappings: AtomicU64,
    pub(super) faults: AtomicU64,
    evicted: AtomicU64,
    refusal_logged: AtomicBool,
}

impl Budget {
    /// Logs the first file that could not be mapped; `status PATH` shows it for each file.
    pub(super) fn note_refusal(&self, file: &BackingFile, err: Errno) {
        if !self.refusal_logged.swap(true, Ordering::Relaxed) {
            let path = file.path();
            log::warn!("{}: mmap: {err}; such files are read and written instead", path.shown());
        }
    }

    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

/// Counts of present and former mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingCounts {
    /// Mappings at this moment.
    pub count: u64,
    /// Limit of the number of mappings.
    pub limit: u64,
    /// Sum of their lengths, in bytes.
    pub bytes: u64,
    /// Number of mappings that were closed to stay within the limit.
    pub evicted: u64,
    /// Number of faults on mapped pages.
    pub faults: u64,
}

/// Backing files by device and inode number.
pub struct FileTable {
    files: Mutex<HashMap<FileKey, Arc<BackingFile>>>,
    budget: Arc<Budget>,
    limit: u64,
}

impl FileTable {
    /// A table that keeps at most `limit` mappings, at least one.
    pub fn new(limit: u64) -> FileTable {
        FileTable { files: Mutex::default(), budget: Arc::default(), limit: limit.max(1) }
    }

    /// The backing file with this key, if it is open or carries advice.
    pub fn get(&self, key: FileKey) -> Option<Arc<BackingFile>> {
        self.files.lock().get(&key).cloned()
    }

    /// Counts one more handle on a file that is open already with sufficient rights.
    pub fn reopen(&self, key: FileKey, open: OpenMode, mode: &MapMode) -> Option<Arc<BackingFile>> {
        let files = self.files.lock();
        let file = files.get(&key).filter(|file| file.serves(open))?;
        count_open(file, open, mode);
        Some(Arc::clone(file))
    }

    /// Counts one more handle on the file that `descriptor` is open on. A file that is open
    /// already takes the descriptor over if it adds rights.
    pub fn open(
        &self,
        key: FileKey,
        descriptor: Descriptor,
        open: OpenMode,
        mode: &MapMode,
    ) -> Arc<BackingFile> {
        let mut files = self.files.lock();
        let file = files.entry(key).or_insert_with(|| {
            let budget = Arc::clone(&self.budget);
            Arc::new(BackingFile::new(key, descriptor.clone(), *mode, budget))
        });
        let old = if file.serves(open) { None } else { file.add_descriptor(descriptor) };
        count_open(file, open, mode);
        let file = Arc::clone(file);
        drop(files);
        file.map_anew(old);
        file
    }

    /// Ends a handle. The file is closed with its last handle, unless it carries advice; without
    /// a writer it is held only for reading, so that the backing file can be executed.
    pub fn release(&self, file: &Arc<BackingFile>, open: OpenMode) {
        let mut files = self.files.lock();
        let last_writer = open.writes() && file.writers.fetch_sub(1, Ordering::AcqRel) == 1;
        let last = file.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        let closes = last && !file.persistent.lock().holds();
        let old = if closes { close(&mut files, file) } else { None };
        drop(files);
        if last_writer && !closes {
            self.hold_for_reading(file);
        }
        file.map_anew(old);
    }

    /// Swaps a writable descriptor for a read-only one of the same file. Opening it may take
    /// long on a slow filesystem; no request waits for it.
    fn hold_for_reading(&self, file: &BackingFile) {
        let present = file.descriptor();
        let reader = present.without_writer().map_or_else(|| read_only(&present), Ok);
        let reader = match reader {
            Ok(reader) => reader,
            Err(err) => {
                log::debug!("{}: reopening it for reading: {err}", file.path().shown());
                return;
            }
        };
        let files = self.files.lock();
        // A writer may have opened the file again meanwhile.
        let old = match file.writers.load(Ordering::Acquire) {
            0 => file.replace_descriptor(reader),
            _ => None,
        };
        drop(files);
        file.map_anew(old);
    }

    /// Number of files that are held open only because they carry advice or a lock.
    pub fn held(&self) -> u64 {
        self.files.lock().values().filter(|file| file.handles() == 0).count() as u64
    }

    /// Every file of the table, in the order of device and inode number.
    pub fn all(&self) -> Vec<Arc<BackingFile>> {
        let mut files: Vec<_> = self.files.lock().values().cloned().collect();
        files.sort_by_key(|file| file.key());
        files
    }

    /// Brings the number of mappings below the limit by closing those least recently used.
    /// Cheap when there is nothing to do.
    pub fn trim(&self) {
        if self.budget.mappings.load(Ordering::Relaxed) <= self.limit {
            return;
        }
        let mut idle: Vec<_> = self.files.lock().values().cloned().collect();
        idle.retain(|file| file.present_mapping().is_some() && !file.persistent.lock().holds());
        idle.sort_by_key(|file| file.last_used.load(Ordering::Relaxed));
        // A sixteenth more than needed, so that sorting is rare.
        let target = self.limit - self.limit / 16;
        let excess = self.budget.mappings.load(Ordering::Relaxed).saturating_sub(target);
        let excess = usize::try_from(excess).unwrap_or(usize::MAX);
        for file in idle.iter().take(excess.max(1)) {
            if file.unmap().is_some() {
                self.budget.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The counts for `status`.
    pub fn counts(&self) -> MappingCounts {
        let bytes = self
            .all()
            .iter()
            .filter_map(|file| file.present_mapping())
            .map(|region| region.len() as u64)
            .sum();
        MappingCounts {
            count: self.budget.mappings.load(Ordering::Relaxed),
            limit: self.limit,
            bytes,
            evicted: self.budget.evicted.load(Ordering::Relaxed),
            faults: self.budget.faults.load(Ordering::Relaxed),
        }
    }
}

fn count_open(file: &BackingFile, open: OpenMode, mode: &MapMode) {
    if file.handles() == 0 {
        file.set_mode(mode);
    }
    file.handles.fetch_add(1, Ordering::AcqRel);
    if open.writes() {
        file.writers.fetch_add(1, Ordering::AcqRel);
    }
}

fn close(
    files: &mut HashMap<FileKey, Arc<BackingFile>>,
    file: &Arc<BackingFile>,
) -> Option<Arc<Region>> {
    if files.get(&file.key()).is_some_and(|known| Arc::ptr_eq(known, file)) {
        files.remove(&file.key());
    }
    file.unmap()
}

fn read_only(present: &Descriptor) -> Result<Descriptor, Errno> {
    let present = present.reader()?;
    let kept = rustix::fs::fcntl_getfl(present)? & OFlags::NOATIME;
    let path = crate::sys::fd_path(present.as_fd());
    let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | kept, Mode::empty())?;
    Ok(Descriptor::new(fd, true, false))
}
