//! Quota of a scratch that shares a filesystem with other data, enforced by counting.
//!
//! Each upper file and directory counts with its allocated blocks as of the last look at it, and
//! with its page map. A change reserves the most bytes that it may store, and afterwards the file's
//! blocks are read again. If the largest need cannot be reserved, the exact need is computed, and a
//! write stores as much as fits, as on any full filesystem. A scratch in a filesystem of its own
//! needs no counting.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatVfs};
use rustix::io::Errno;

use super::Overlay;
use super::node::Node;
use crate::error::cause::{self, because};
use crate::layers::pages::{MapId, PAGE};
use crate::layers::scratch::{MetadataReserve, QuotaLedger};
use crate::tree::{Attributes, Ino, SeekTo};

/// Most bytes that a new file or directory takes, page map included.
pub(super) const NEW_FILE: u64 = 8192;

/// Most bytes that a write takes beyond its length: a partial page at each end.
pub(super) const TWO_PAGES: u64 = 8192;

/// Quota of a scratch.
pub(super) struct Quota {
    ledger: Arc<QuotaLedger>,
    /// Last counted bytes of the directories that belong to no node: `pages/`, the index, and
    /// `work/`.
    internal: Mutex<u64>,
}

impl Quota {
    pub(super) fn new(ledger: &Arc<QuotaLedger>) -> Option<Quota> {
        ledger.limit()?;
        Some(Quota { ledger: Arc::clone(ledger), internal: Mutex::new(0) })
    }
}

/// Need of a change.
pub(super) enum Takes {
    /// At most this many bytes, independent of stored pages.
    UpTo(u64),
    /// The pages of these ranges, by offset and length in bytes.
    Ranges(Vec<(u64, u64)>),
}

impl Takes {
    /// Upper bound of the need, in bytes.
    fn most(&self) -> u64 {
        match self {
            Takes::UpTo(bytes) => *bytes,
            Takes::Ranges(ranges) => ranges
                .iter()
                .fold(0, |sum: u64, (_, len)| sum.saturating_add(len.saturating_add(TWO_PAGES))),
        }
    }
}

impl Overlay {
    /// Runs a change that may store more in a node's upper file. `seek` finds data and holes of the
    /// file.
    ///
    /// # Errors
    /// ENOSPC if the quota does not allow it; errors of `change`.
    pub(super) fn within<T>(
        &self,
        node: &Node,
        takes: Takes,
        seek: impl Fn(u64, SeekTo) -> Result<u64, Errno>,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(quota) = &self.quota else { return change() };
        let reserved = match quota.ledger.reserve(takes.most()) {
            Ok(()) => takes.most(),
            Err(err) => {
                let Takes::Ranges(ranges) = takes else { return Err(err) };
                let exactly = ranges.into_iter().try_fold(0, |sum: u64, range| {
                    let (count, takes) = what_fits(u64::MAX, range, &seek)?;
                    if count == range.1 { Ok(sum.saturating_add(takes)) } else { Err(err) }
                })?;
                quota.ledger.reserve(exactly)?;
                exactly
            }
        };
        let result = change();
        self.count(node, reserved);
        result
    }

    /// Runs a change that may store at most `most` bytes more, independent of stored pages.
    ///
    /// # Errors
    /// As [`Overlay::within`].
    pub(super) fn with_room<T>(
        &self,
        node: &Node,
        most: u64,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.within(node, Takes::UpTo(most), |_, _| Err(Errno::NXIO), change)
    }

    /// Writes `len` bytes at `offset` to a node's upper file, or as many of them as the quota
    /// allows.
    /// `seek` finds data and holes of the file.
    ///
    /// # Errors
    /// ENOSPC if the quota does not allow one byte; errors of `write`.
    pub(super) fn write_within(
        &self,
        node: &Node,
        (offset, len): (impl FnOnce() -> Result<u64, Errno>, usize),
        seek: impl Fn(u64, SeekTo) -> Result<u64, Errno>,
        write: impl FnOnce(usize) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let Some(quota) = &self.quota else { return write(len) };
        let most = len as u64 + TWO_PAGES;
        let (count, reserved) = match quota.ledger.reserve(most) {
            Ok(()) => (len, most),
            Err(_) => {
                let left = quota.ledger.left().unwrap_or(u64::MAX);
                let (count, takes) = what_fits(left, (offset()?, len as u64), seek)?;
                if count == 0 && len > 0 {
                    return Err(because(Errno::NOSPC, "scratch_max= is reached"));
                }
                quota.ledger.reserve(takes)?;
                cause::clear(); // Of the reservation that failed first.
                (count as usize, takes)
            }
        };
        let result = write(count);
        self.count(node, reserved);
        result
    }

    /// Checks that the quota allows a new file or directory.
    ///
    /// # Errors
    /// ENOSPC if it does not.
    pub(super) fn check_room(&self) -> Result<(), Errno> {
        let Some(quota) = &self.quota else { return Ok(()) };
        quota.ledger.reserve(NEW_FILE)?;
        quota.ledger.release(NEW_FILE);
        Ok(())
    }

    /// Counts the bytes of a node's upper file again.
    pub(super) fn count_stored(&self, node: &Node) {
        self.count(node, 0);
    }

    /// Counts directories again whose names have changed, and the directories that belong to no
    /// node.
    pub(super) fn count_names(&self, directories: &[&Arc<Node>]) {
        if self.quota.is_some() {
            directories.iter().for_each(|node| self.count(node, 0));
            self.count_own();
        }
    }

    /// Counts the directories again that belong to no node.
    pub(super) fn count_own(&self) {
        let Some(quota) = &self.quota else { return };
        let mut counted = quota.internal.lock();
        let Ok(now) = self.own_bytes() else { return };
        quota.ledger.settle(0, *counted, now);
        *counted = now;
    }

    /// Sets the initial bytes of the root and of the directories that belong to no node. The ledger
    /// includes them already.
    pub(super) fn start_counting(&self) -> Result<(), Errno> {
        if let Some(quota) = &self.quota {
            *quota.internal.lock() = self.own_bytes()?;
            let root = self.node(Ino::ROOT)?;
            let (volume, inner) = self.top(&root)?;
            *root.stored.lock() = volume.attr(inner, None)?.stat.blocks * 512;
        }
        Ok(())
    }

    fn own_bytes(&self) -> Result<u64, Errno> {
        let mut blocks = rustix::fs::fstat(&self.top.pages)?.st_blocks as u64;
        for directory in [self.work, self.top.index.dir] {
            blocks += self.upper.attr(directory, None)?.stat.blocks;
        }
        Ok(blocks * 512)
    }

    fn count(&self, node: &Node, reserved: u64) {
        let Some(quota) = &self.quota else { return };
        // Locked while the blocks are read, so that an older number never replaces a newer one.
        let mut counted = node.stored.lock();
        let stack = node.stack();
        let upper = stack.upper.filter(|_| !stack.write_through);
        let now = match upper.map(|upper| self.upper.attr(upper, None)) {
            Some(Ok(attr)) => self.bytes_of(attr.stat.blocks, stack.pages),
            _ => *counted,
        };
        quota.ledger.settle(reserved, *counted, now);
        *counted = now;
    }

    /// Bytes of an upper file with this many blocks, and of its page map if a quota is enforced.
    pub(super) fn bytes_of(&self, blocks: u64, pages: Option<u64>) -> u64 {
        let map = pages.filter(|_| self.quota.is_some()).and_then(|id| {
            let name = MapId(id).to_string();
            rustix::fs::statat(&self.top.pages, name, AtFlags::SYMLINK_NOFOLLOW).ok()
        });
        (blocks + map.map_or(0, |map| map.st_blocks as u64)) * 512
    }

    /// Counts the blocks of a new file or directory.
    pub(super) fn count_new(&self, blocks: u64) {
        if let Some(quota) = &self.quota {
            quota.ledger.charge(blocks * 512);
        }
    }

    /// Releases the bytes of a file that is gone, and refills the metadata reserve.
    pub(super) fn give_back(&self, node: &Arc<Node>) {
        if let Some(quota) = &self.quota {
            quota.ledger.release(std::mem::take(&mut *node.stored.lock()));
        }
        if let Some(reserve) = &self.reserve {
            reserve.refill();
        }
    }

    /// Runs a metadata change, which takes a page or two. If it fails with ENOSPC, a step of the
    /// metadata reserve is spent and the change is run again, until the reserve is empty.
    ///
    /// # Errors
    /// Errors of `change`.
    pub(super) fn for_a_record<T>(
        &self,
        mut change: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(reserve) = &self.reserve else { return change() };
        loop {
            let changed = change();
            let is_full = matches!(changed, Err(Errno::NOSPC));
            if !is_full && reserve.held() < MetadataReserve::WHOLE {
                reserve.refill();
            }
            if !is_full || !reserve.spend() {
                return changed;
            }
        }
    }

    /// Checks that there is space for data besides the metadata reserve.
    ///
    /// # Errors
    /// ENOSPC if there is none.
    pub(super) fn check_room_for_data(&self) -> Result<(), Errno> {
        let Some(_) = &self.reserve else { return Ok(()) };
        match self.upper.statistics(Ino::ROOT)?.f_bfree {
            0 => Err(because(Errno::NOSPC, "the scratch in memory is full")),
            _ => Ok(()),
        }
    }

    /// Statistics for statfs(2): those of the quota, or of the filesystem without the reserve.
    pub(super) fn space_shown(&self, mut found: StatVfs) -> StatVfs {
        if let Some(reserve) = &self.reserve {
            return reserve.without(found);
        }
        let Some(quota) = &self.quota else { return found };
        let space = quota.ledger.space(&found);
        let blocks = |bytes: u64| bytes / found.f_frsize.max(1);
        let (total, free, available) =
            (blocks(space.total), blocks(space.free), blocks(space.available));
        (found.f_blocks, found.f_bfree, found.f_bavail) = (total, free, available);
        found
    }
}

/// Number of bytes of a write that fit into `left` bytes, and the bytes of the pages that they
/// take: only pages that are not stored yet.
fn what_fits(
    left: u64,
    (offset, len): (u64, u64),
    seek: impl Fn(u64, SeekTo) -> Result<u64, Errno>,
) -> Result<(u64, u64), Errno> {
    let room = left / PAGE;
    let end = offset.saturating_add(len);
    let mut at = offset / PAGE * PAGE;
    let mut taken = 0;
    while at < end {
        let hole = match seek(at, SeekTo::Hole) {
            Err(Errno::NXIO) => at, // Behind the end of the file.
            hole => hole?.next_multiple_of(PAGE),
        };
        if hole >= end {
            break;
        }
        let data = match seek(hole, SeekTo::Data) {
            Err(Errno::NXIO) => end,
            data => data?.min(end),
        };
        let pages = data.div_ceil(PAGE).saturating_sub(hole / PAGE);
        if pages > room - taken {
            let stop = hole + (room - taken) * PAGE;
            return Ok((stop.saturating_sub(offset), room * PAGE));
        }
        taken += pages;
        at = data;
    }
    Ok((len, taken * PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `what_fits` for a file of which the first four and a half pages and page 8 are stored.
    fn fits(pages: u64, offset: u64, len: u64) -> (u64, u64) {
        let stored = [0..4 * PAGE + 2048, 8 * PAGE..9 * PAGE];
        let find = |at: u64, to: SeekTo| match to {
            _ if at >= 9 * PAGE => Err(Errno::NXIO),
            SeekTo::Hole => {
                Ok(stored.iter().find(|run| run.contains(&at)).map_or(at, |run| run.end))
            }
            SeekTo::Data => Ok(stored.iter().find(|run| run.end > at).unwrap().start.max(at)),
        };
        what_fits(pages * PAGE + 100, (offset, len), find).unwrap()
    }

    #[test]
    fn a_write_takes_the_pages_that_are_not_stored_and_ends_where_there_is_no_room() {
        assert_eq!(fits(0, 100, 4 * PAGE), (4 * PAGE, 0));
        assert_eq!(fits(0, 4 * PAGE + 3000, 1000), (1000, 0));
        assert_eq!(fits(0, 4 * PAGE, 2 * PAGE), (PAGE, 0));
        assert_eq!(fits(1, 4 * PAGE, 2 * PAGE), (2 * PAGE, PAGE));
        assert_eq!(fits(0, 5 * PAGE + 7, 10), (0, 0));
        assert_eq!(fits(3, 5 * PAGE + 7, 5 * PAGE), (4 * PAGE - 7, 3 * PAGE));
        assert_eq!(fits(4, 5 * PAGE + 7, 4 * PAGE), (4 * PAGE, 4 * PAGE));
        assert_eq!(fits(2, 100 * PAGE, 9000), (2 * PAGE, 2 * PAGE));
        assert_eq!(fits(3, 100 * PAGE, 9000), (9000, 3 * PAGE));
    }
}
