//! Cache of the last used open directories, so that lookups need not open the path to them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::tree::Ino;

/// Number of directories that are kept open.
const CAPACITY: usize = 256;

#[derive(Default)]
struct Inner {
    open: HashMap<Ino, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

/// O_PATH descriptors of directories by inode number.
#[derive(Default)]
pub(super) struct DirCache(Mutex<Inner>);

impl DirCache {
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        let mut inner = self.0.lock();
        inner.clock += 1;
        let now = inner.clock;
        let (fd, used) = inner.open.get_mut(&ino)?;
        *used = now;
        Some(Arc::clone(fd))
    }

    pub(super) fn put(&self, ino: Ino, fd: &Arc<OwnedFd>) {
        let mut inner = self.0.lock();
        inner.clock += 1;
        let now = inner.clock;
        if inner.open.len() >= CAPACITY {
            // The older half is closed at once, so that scans are rare.
            let mut times: Vec<_> = inner.open.values().map(|(_, used)| *used).collect();
            times.sort_unstable();
            let median = times.get(times.len() / 2).copied().unwrap_or(0);
            inner.open.retain(|_, (_, used)| *used > median);
        }
        inner.open.insert(ino, (Arc::clone(fd), now));
    }

    /// Closes all of them.
    pub(super) fn clear(&self) {
        let open = std::mem::take(&mut self.0.lock().open);
        drop(open);
    }

    pub(super) fn remove(&self, ino: Ino) {
        self.0.lock().open.remove(&ino);
    }
}
