//! The kernel's caches: the answers that it may keep, and the way to drop them.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::node::{LowerInode, Numbers};
use super::write_through::WRITE_THROUGH;
use crate::tree::{Caching, Coherence, Ino, Invalidate, Validity, WatchCounts};
use crate::volume::Volume;

/// Invalidation for a volume of a layer: translates its inode numbers into those of the mount.
struct Outward {
    /// None where the numbers are the same.
    numbers: Option<Arc<Numbers>>,
    caches: Arc<dyn Invalidate>,
}

impl Outward {
    fn shown(&self, ino: Ino) -> Ino {
        self.numbers.as_ref().map_or(ino, |numbers| numbers.shown(ino))
    }

    /// Number of a lower file if it is written through; `None` for the upper volume.
    fn write_through_ino(&self, ino: Ino) -> Option<Ino> {
        self.numbers.is_none().then_some(Ino(ino.0 ^ WRITE_THROUGH))
    }
}

impl Invalidate for Outward {
    fn now(&self, ino: Ino, offset: u64, len: u64) -> std::io::Result<()> {
        if let Some(through) = self.write_through_ino(ino) {
            let _ = self.caches.now(through, offset, len); // Mostly not known.
        }
        self.caches.now(self.shown(ino), offset, len)
    }

    fn soon(&self, ino: Ino) {
        self.write_through_ino(ino).into_iter().for_each(|through| self.caches.soon(through));
        self.caches.soon(self.shown(ino));
    }

    fn entry(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        self.caches.entry(self.shown(parent), name)
    }

    fn expire(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        self.caches.expire(self.shown(parent), name)
    }

    fn inode(&self, ino: Ino, data: bool) -> Result<(), Errno> {
        if let Some(through) = self.write_through_ino(ino) {
            let _ = self.caches.inode(through, data); // Mostly not known.
        }
        self.caches.inode(self.shown(ino), data)
    }

    fn names(&self) -> Result<(), Errno> {
        self.caches.names()
    }
}

impl Caching for Overlay {
    fn names_validity(&self, parent: Ino) -> Validity {
        match self.nodes.get(parent).filter(|_| !self.is_mixed()) {
            Some(node) => self.validity_below(&node),
            None => Validity::Timeout,
        }
    }

    fn keeps_listings(&self, ino: Ino) -> bool {
        let Some(node) = self.nodes.get(ino) else { return false };
        let keeps =
            |at: &LowerInode| self.layer(*at).is_ok_and(|volume| volume.keeps_offsets(at.ino));
        self.upper.keeps_offsets(node.upper().unwrap_or(Ino::ROOT))
            && node.stack().lowers.iter().all(keeps)
    }

    fn drops_all_names(&self) -> bool {
        self.base().drops_all_names()
    }
}

impl Coherence for Overlay {
    fn connect(&self, invalidate: Box<dyn Invalidate>) {
        let caches: Arc<dyn Invalidate> = Arc::from(invalidate);
        let inner = Outward { numbers: Some(self.nodes.numbers()), caches: Arc::clone(&caches) };
        self.upper.connect(Box::new(inner));
        for volume in self.plain_volumes() {
            let shown = Outward { numbers: None, caches: Arc::clone(&caches) };
            volume.connect(Box::new(shown)); // Files of the base have their own numbers.
        }
        if self.caches.set(caches).is_err() {
            log::error!("the overlay is connected to a second kernel session");
        }
    }

    fn watch_state(&self) -> Result<String, String> {
        self.base().watch_state()
    }

    fn watch_counts(&self) -> &WatchCounts {
        self.plain_volumes().last().unwrap_or(&self.upper).watch_counts()
    }

    fn validity(&self) -> Validity {
        self.base().validity()
    }

    fn directories_open_silently(&self) -> bool {
        let mut all = self.plain_volumes().chain([&self.upper]);
        let keeps = |of: &Arc<Volume>| of.watches_filesystem() && of.cookies_outlive_opens();
        !self.is_mixed() && all.all(keeps)
    }

    fn drop_unreadable(&self) {
        // Only read-only mounts keep files that are not open.
    }
}
