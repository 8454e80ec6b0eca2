//! The requests of the control verbs and the daemon to a tree.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::{
    Change, ChangeQuery, Found, Invalidate, NotAdvised, OpenInode, PageState, ScratchCounts, Tree,
    TreeCounts, Validity, WatchCounts, WhyMapped,
};
use crate::advice::Advice;
use crate::config::rules::RuleSet;
use crate::flags::MapMode;
use crate::mapping::{AdviceEffect, BackingFile, FlushEffect};
use crate::range::ByteRange;
use crate::sys::advise::SyncMode;

/// Files by path, and facts about the tree.
pub trait Inspect: Send + Sync {
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

    /// The state of a range of a regular file in the page cache.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file; errors of open(2).
    fn page_state(&self, found: &Found, range: ByteRange) -> Result<PageState, Errno>;

    /// Number of pages of a regular file in the scratch; `None` for a tree that is none.
    fn own_pages(&self, _found: &Found) -> Option<u64> {
        None
    }

    /// The change of the base of a file in a scratch since the first touch; `None` where it is as
    /// it was.
    fn fate_of_base(&self, _found: &Found) -> Option<String> {
        None
    }

    /// The differences between the tree and the one below a scratch, sorted by path.
    ///
    /// # Errors
    /// ENOTSUP for a tree that is no scratch; errors of looking at the layers.
    fn changes(&self, _query: &ChangeQuery) -> Result<Vec<Change>, Errno> {
        Err(Errno::NOTSUP)
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

    /// Number of files that are held open only because they carry advice or a lock.
    fn held_files(&self) -> u64;

    /// The counts of everything.
    fn counts(&self) -> TreeCounts;

    /// Counts of what was written over a base; `None` for a tree that is no scratch.
    fn scratch(&self) -> Option<ScratchCounts> {
        None
    }

    /// Why no file is lent to the kernel; `None` where they are.
    fn passthrough_closed(&self) -> Option<String>;

    /// Whether backing files are found by file handle, which survives renames behind our back.
    fn uses_file_handles(&self) -> bool;

    /// Whether the kernel has cachestat(2).
    fn cache_stat_works(&self) -> bool;

    /// The number of rules in force.
    fn rule_count(&self) -> usize;
}

/// Operations on a range of a file's mapping. They may make the kernel write back and wait for
/// that, so that no thread that answers the kernel may call them.
pub trait Advise: Send + Sync {
    /// Gives the kernel an advice on a range of a regular file, and where that takes bytes away
    /// drops the kernel's own cache of them. Bytes are lost for good only with `destroy`.
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

    /// Flushes a range of a regular file, with what the kernel holds of it in its own cache.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file; errors of msync(2) and fdatasync(2).
    fn flush(&self, found: &Found, range: ByteRange, mode: SyncMode) -> Result<FlushEffect, Errno>;

    /// Locks a range of a regular file in memory or undoes that, and returns the whole pages.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file; errors of [`BackingFile::set_locked`].
    fn set_locked(&self, found: &Found, range: ByteRange, lock: bool) -> Result<ByteRange, Errno>;
}

/// The watch for direct changes, and the way by which the kernel is told of them.
pub trait Coherence: Send + Sync {
    /// Sets the way to the kernel's caches, once, when there is one.
    fn connect(&self, invalidate: Box<dyn Invalidate>);

    /// The watched places, or the reason that nothing is watched.
    ///
    /// # Errors
    /// The reason, for people.
    fn watch_state(&self) -> Result<String, String>;

    /// The counts of the watch.
    fn watch_counts(&self) -> &WatchCounts;

    /// Time for which answers are trusted where nothing else is known.
    fn validity(&self) -> Validity;

    /// Whether the kernel may open directories without asking, if nothing is mounted in the tree:
    /// every change of one is told, and a listing may go on in another stream.
    fn directories_open_silently(&self) -> bool;

    /// Drops what the kernel has cached of files that may not be read any more.
    fn drop_unreadable(&self);
}

/// The daemon's part in a tree's life.
pub trait Lifecycle: Send + Sync {
    /// Replaces the rules. Files that are open keep their mode until they are closed.
    fn set_rules(&self, rules: RuleSet);

    /// Closes what is held open for a moment only, on a thread of its own, until
    /// [`Lifecycle::end`].
    fn expire(&self);

    /// Makes [`Lifecycle::expire`] return.
    fn end(&self);
}

/// A tree that the control verbs and the daemon work on.
pub trait Managed: Tree + Inspect + Advise + Coherence + Lifecycle {}

impl<T: Tree + Inspect + Advise + Coherence + Lifecycle> Managed for T {}
