//! What is in a scratch, counted as it changes.

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
use crate::volume::ScratchCounts;

/// ScratchStats of a scratch: what was there at the start and what has changed since. They say how much
/// there is, and nothing is decided by them.
#[derive(Debug, Default)]
pub(super) struct ScratchStats {
    /// Files of the base with a file of their own in the upper volume.
    pub(super) copied_files: AtomicI64,
    /// Files of the base that were cloned since the start.
    pub(super) cloned_files: AtomicU64,
    /// Files that were made in it.
    new_files: AtomicI64,
    /// Directories that were made in it.
    new_directories: AtomicI64,
    /// NamesRead of the base that are gone.
    pub(super) whiteouts: AtomicI64,
    /// Files with a page map.
    pub(super) partial_files: AtomicI64,
    /// Pages that these have of their own.
    pub(super) pages: Arc<AtomicU64>,
    /// The bytes of a scratch whose bytes nobody counts as they change.
    bytes: Mutex<Option<Measured>>,
}

/// Bytes that were found by looking at every file.
#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: u64,
    good_until: Instant,
}

/// What is measured is good for so many times as long as that took, and for a second at least.
const REST: u32 = 20;

impl ScratchStats {
    /// Those of a scratch that nobody changes yet.
    ///
    /// # Errors
    /// Those of listing its page maps.
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

    /// The bytes of a directory, by a walk that takes a twentieth of the time at most, however
    /// often they are asked for.
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

    /// ScratchStats what was made in the scratch, or went, by its type.
    pub(super) fn made(&self, kind: u32, change: i64) {
        match kind {
            libc::S_IFDIR => self.new_directories.fetch_add(change, Ordering::Relaxed),
            _ => self.new_files.fetch_add(change, Ordering::Relaxed),
        };
    }

    /// ScratchStats whiteouts that were made, or went.
    pub(super) fn whiteouts(&self, change: i64) {
        self.whiteouts.fetch_add(change, Ordering::Relaxed);
    }
}

impl Overlay {
    /// A page map, whose pages are among those that are counted.
    pub(super) fn counted(&self, mut map: PageMap) -> PageMap {
        map.tally(&self.stats.pages);
        map
    }

    /// Takes a page map that is about to go out of the counts.
    pub(super) fn uncount_map(&self, id: u64) {
        let map = PageMap::open(&self.top.pages, MapId(id), MapAccess::Read);
        let pages = map.map_or(0, |map| map.count());
        self.stats.pages.fetch_sub(pages, Ordering::Relaxed);
        self.stats.partial_files.fetch_sub(1, Ordering::Relaxed);
    }

    /// ScratchStats a file or directory that was copied up. On some files marks cannot be: they count as
    /// those that were made here, as after the next mount.
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

    /// Takes a file or directory that has lost its last name out of the counts.
    pub(super) fn uncount(&self, node: &Node) {
        let stack = node.stack();
        match stack.upper {
            None => {}
            Some(_) if stack.new => self.stats.made(node.kind, -1),
            Some(_) if node.is_dir() => {}
            Some(_) => drop(self.stats.copied_files.fetch_sub(1, Ordering::Relaxed)),
        }
    }

    /// The directory of a scratch whose bytes are not counted.
    fn measured_place(&self) -> Option<OwnedFd> {
        let scratch = self.scratch.lock();
        let scratch = scratch.as_ref().filter(|_| self.quota.is_none())?;
        let counted = scratch.state().kind == Kind::OwnTmpfs;
        if counted { None } else { scratch.root().try_clone_to_owned().ok() }
    }

    /// What `status` says of the scratch; `None` once it is left.
    pub(super) fn scratch_counts(&self) -> Option<ScratchCounts> {
        // The bytes are counted as they change where they are bounded by that, and a filesystem
        // of its own knows them.
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
            layers: vec![scratch.layout().dir().to_owned(), state.base.path.clone()],
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
