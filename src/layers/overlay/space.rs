//! The bound of a scratch that is kept by counting: where it shares a filesystem with others.
//!
//! Every upper file is counted with the blocks that it had when it was last looked at. Before
//! something is stored there has to be room for all that it may take; after it the file is looked
//! at again. A scratch in a filesystem of its own needs none of that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::Overlay;
use super::node::Node;

/// What a new file or directory may take, its page map included, in bytes.
pub(super) const NEW_FILE: u64 = 8192;

/// What is written in pages takes at most this much more, at both ends.
pub(super) const TWO_PAGES: u64 = 8192;

impl Overlay {
    /// Does something that stores up to `most` bytes more in a node's upper file.
    ///
    /// # Errors
    /// ENOSPC where there is no room for that, unless `needs_none`; those of `change`.
    pub(super) fn within<T>(
        &self,
        node: &Node,
        most: u64,
        needs_none: impl FnOnce() -> bool,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(budget) = &self.budget else { return change() };
        let reserved = match budget.reserve(most) {
            Ok(()) => most,
            Err(_) if needs_none() => 0,
            Err(err) => return Err(err),
        };
        let result = change();
        self.count_stored(node);
        budget.release(reserved);
        result
    }

    /// Refuses to make something new where there is no room for it.
    pub(super) fn check_room(&self) -> Result<(), Errno> {
        let Some(budget) = &self.budget else { return Ok(()) };
        budget.reserve(NEW_FILE)?;
        budget.release(NEW_FILE);
        Ok(())
    }

    /// Counts what a node's upper file holds by now.
    pub(super) fn count_stored(&self, node: &Node) {
        let Some(budget) = &self.budget else { return };
        let Some(upper) = node.upper() else { return };
        let Ok(attr) = self.upper.attr(upper, None) else { return };
        let now = attr.stat.blocks * 512;
        let before = node.stored.swap(now, Ordering::AcqRel);
        budget.charge(now.saturating_sub(before));
        budget.release(before.saturating_sub(now));
    }

    /// Gives back what a file held that is gone for good.
    pub(super) fn give_back(&self, node: &Arc<Node>) {
        if let Some(budget) = &self.budget {
            budget.release(node.stored.swap(0, Ordering::AcqRel));
        }
    }

    /// What statfs(2) shows: the bound where it is kept by counting.
    pub(super) fn space_shown(&self, mut found: StatVfs) -> StatVfs {
        let Some(budget) = &self.budget else { return found };
        let space = budget.space(&found);
        let blocks = |bytes: u64| bytes / found.f_frsize.max(1);
        let (total, free, available) =
            (blocks(space.total), blocks(space.free), blocks(space.available));
        (found.f_blocks, found.f_bfree, found.f_bavail) = (total, free, available);
        found
    }
}
