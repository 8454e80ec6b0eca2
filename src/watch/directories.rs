//! Directories with an fanotify mark, where the whole filesystem cannot have one.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustix::io::Errno;

use crate::sys::fanotify::Fanotify;
use crate::tree::Ino;
use crate::volume::WatchDirectories;

/// Marked directories by inode number.
pub(super) struct Directories {
    queue: Arc<Fanotify>,
    marked: RwLock<HashSet<Ino>>,
    /// The user has no marks left (fs.fanotify.max_user_marks).
    full: AtomicBool,
}

impl Directories {
    pub(super) fn new(queue: Arc<Fanotify>) -> Directories {
        Directories { queue, marked: RwLock::default(), full: AtomicBool::new(false) }
    }

    /// Marks a directory.
    pub(super) fn mark(&self, ino: Ino, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        // Locked during the call: no thread sees the directory as marked too early, or unmarks it.
        let mut marked = self.marked.write();
        if !marked.contains(&ino) {
            self.queue.mark_directory(dir)?;
            marked.insert(ino);
        }
        Ok(())
    }
}

impl WatchDirectories for Directories {
    fn watch(&self, ino: Ino, dir: BorrowedFd<'_>) {
        if self.is_watched(ino) || self.full.load(Ordering::Relaxed) {
            return;
        }
        match self.mark(ino, dir) {
            Ok(()) => {}
            Err(Errno::NOSPC) => {
                log::warn!("watch: no marks are left: other directories are not watched");
                self.full.store(true, Ordering::Relaxed);
            }
            Err(err) => log::debug!("watch ino={ino}: {err}"),
        }
    }

    fn is_watched(&self, ino: Ino) -> bool {
        self.marked.read().contains(&ino)
    }

    fn forget(&self, ino: Ino, dir: Option<BorrowedFd<'_>>, known: &dyn Fn() -> bool) {
        let mut marked = self.marked.write();
        if known() || !marked.remove(&ino) {
            return;
        }
        // The mark of a directory that is gone or cannot be found reports no known inode.
        if let Some(Err(err)) = dir.map(|dir| self.queue.unmark_directory(dir)) {
            log::debug!("watch ino={ino}: no longer: {err}");
        }
        self.full.store(false, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.marked.read().len() as u64
    }
}
