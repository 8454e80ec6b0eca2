//! Counters of the content of a scratch.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::node::Node;
use crate::layers::pages::{MapAccess, MapId, PageMap};
use crate::layers::scratch::{Kind, Scratch, XattrNamespace, bytes_used};
use crate::sys::walk;
use crate::tree::ScratchCounts;

/// Counters of a scratch, updated at each change. They are for reports only.
#[derive(Debug, Default)]
pub(super) struct ScratchStats {
    /// Number of base files with a copy in the upper volume.
    pub(super) copied_files: AtomicI64,
    /// Number of base files that were cloned since the mount.
    pub(super) cloned_files: AtomicU64,
    /// Number of files that were made in the scratch.
    new_files: AtomicI64,
    /// Number of directories that were made in the scratch.
    new_directories: AtomicI64,
    /// Number of whiteouts.
    pub(super) whiteouts: AtomicI64,
    /// Number of partial copies.
    pub(super) partial_files: AtomicI64,
    /// Number of present pages of all partial copies.
    pub(super) pages: Arc<AtomicU64>,
    /// Last measured bytes of a scratch without a quota on a shared filesystem.
    bytes: Mutex<Option<Measured>>,
}

/// Bytes of a scratch as measured by a walk over all files.
#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: u64,
    good_until: Instant,
}

/// Validity of a measurement, as a multiple of its duration; it is at least a second.
const REST: u32 = 20;

impl ScratchStats {
    /// Counters of a scratch that is not changed yet.
    ///
    /// # Errors
    /// Errors of listing the page maps.
    pub(super) fn of(scratch: &Scratch) -> Result<ScratchStats, Errno> {
        let found = scratch.found();
        let mut maps = 0;
        let mut pages = 0;
        let directory = Arc::new(scratch.pages()?);
        let names = walk::names_in(&directory)?;
        for id in names.iter().filter_map(|name| name.to_str().ok()?.parse::<MapId>().ok()) {
            maps += 1;
            let map = PageMap::open(&*directory, id, MapAccess::Read);
            pages += map.map_or(0, |map| map.count());
        }
        let signed = |count| AtomicI64::new(i64::try_from(count).unwrap_or(i64::MAX));
        Ok(ScratchStats {
            copied_files: signed(found.copied_files),
            cloned_files: AtomicU64::new(0),
            new_files: signed(found.new_files),
            new_directories: signed(found.new_directories),
            whiteouts: signed(found.whiteouts),
            partial_files: signed(maps),
            pages: Arc::new(AtomicU64::new(pages)),
            bytes: Mutex::default(),
        })
    }

    /// Bytes of a directory, measured by a walk. A measurement is reused for [`REST`] times its
    /// duration, so walks take at most a twentieth of the time.
    fn measured(&self, dir: OwnedFd) -> Option<u64> {
        let mut known = self.bytes.lock();
        let started = Instant::now();
        if let Some(measured) = known.filter(|measured| started < measured.good_until) {
            return Some(measured.bytes);
        }
        let bytes = bytes_used(dir).ok()?;
        let rest = (started.elapsed() * REST).max(Duration::from_secs(1));
        *known = Some(Measured { bytes, good_until: started + rest });
        Some(bytes)
    }

    /// Adds `change` to the number of new files or directories, by the file type.
    pub(super) fn made(&self, kind: u32, change: i64) {
        match kind {
            libc::S_IFDIR => self.new_directories.fetch_add(change, Ordering::Relaxed),
            _ => self.new_files.fetch_add(change, Ordering::Relaxed),
        };
    }

    /// Adds `change` to the number of whiteouts.
    pub(super) fn whiteouts(&self, change: i64) {
        self.whiteouts.fetch_add(change, Ordering::Relaxed);
    }
}

impl Overlay {
    /// Lets a page map count its later changes in the number of present pages, which includes its
    /// present ones already.
    pub(super) fn counted(&self, mut map: PageMap) -> PageMap {
        map.tally(&self.stats.pages);
        map
    }

    /// Subtracts a page map that is about to be removed.
    pub(super) fn uncount_map(&self, id: u64) {
        let map = PageMap::open(&self.top.pages, MapId(id), MapAccess::Read);
        let pages = map.map_or(0, |map| map.count());
        self.stats.pages.fetch_sub(pages, Ordering::Relaxed);
        self.stats.partial_files.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a file or directory that was copied up. A file that cannot have overlay xattrs counts
    /// as new, as it does at the next mount.
    pub(super) fn count_copy(&self, node: &Node) {
        let marked = matches!(node.kind, libc::S_IFREG | libc::S_IFDIR)
            || self.top.xattrs.namespace == XattrNamespace::Trusted;
        node.change_stack(|stack| stack.new = !marked);
        match (marked, node.is_linked()) {
            (_, false) => {}
            (false, true) => self.stats.made(node.kind, 1),
            (true, true) if node.is_dir() => {}
            (true, true) => drop(self.stats.copied_files.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Subtracts a file or directory that has lost its last name.
    pub(super) fn uncount(&self, node: &Node) {
        let stack = node.stack();
        match stack.upper {
            None => {}
            Some(_) if stack.new => self.stats.made(node.kind, -1),
            Some(_) if node.is_dir() => {}
            Some(_) => drop(self.stats.copied_files.fetch_sub(1, Ordering::Relaxed)),
        }
    }

    /// Directory of the scratch if its bytes have to be measured.
    fn measured_place(&self) -> Option<OwnedFd> {
        let scratch = self.scratch.lock();
        let scratch = scratch.as_ref().filter(|_| self.quota.is_none())?;
        let counted = scratch.state().kind == Kind::OwnTmpfs;
        if counted { None } else { scratch.root().try_clone_to_owned().ok() }
    }

    /// Counters of the scratch for `status`; `None` after the end of the overlay.
    pub(super) fn scratch_counts(&self) -> Option<ScratchCounts> {
        // A quota counts the bytes, and a filesystem of its own knows them; else they are measured.
        let measured = match self.measured_place() {
            Some(dir) => self.stats.measured(dir),
            None => None,
        };
        let mut guard = self.guard.counts(|node| self.path_of(node));
        guard.cloned_files = self.stats.cloned_files.load(Ordering::Relaxed);
        let scratch = self.scratch.lock();
        let scratch = scratch.as_ref()?;
        let count = |of: &AtomicI64| u64::try_from(of.load(Ordering::Relaxed)).unwrap_or(0);
        let state = scratch.state();
        Some(ScratchCounts {
            id: state.id.clone(),
            layers: [scratch.layout().dir().to_owned()]
                .into_iter()
                .chain(scratch.frozen().iter().map(|layer| layer.dir().to_owned()))
                .chain([state.base.path.clone()])
                .collect(),
            adopted: state.adopted,
            temporary: scratch.is_temporary(),
            in_memory: state.kind.in_memory(),
            pages: self.stats.pages.load(Ordering::Relaxed),
            partial_files: count(&self.stats.partial_files),
            copied_files: count(&self.stats.copied_files),
            new_files: count(&self.stats.new_files),
            new_directories: count(&self.stats.new_directories),
            whiteouts: count(&self.stats.whiteouts),
            used_bytes: measured.unwrap_or_else(|| scratch.used()),
            left_bytes: scratch.space().map_or(0, |space| space.available),
            limit_bytes: state.max,
            guard,
        })
    }
}
