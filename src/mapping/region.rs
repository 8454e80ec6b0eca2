//! The mapping of a backing file: made on first use, made anew when the file outgrows it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use rustix::io::Errno;

use super::file::BackingFile;
use crate::advice::Advice;
use crate::shown::Show;
use crate::sys;
use crate::sys::region::Region;

/// The place of the mapping; empty until first use and after eviction.
#[derive(Default)]
pub(super) struct MappingSlot(RwLock<Option<Arc<Region>>>);

/// A mapping is kept for a shrunken file until it is this many times too long.
const SHRINK_FACTOR: usize = 4;

impl BackingFile {
    /// A mapping that covers at least `size` bytes, the present size of the file.
    ///
    /// # Errors
    /// Errors of mmap(2): ENODEV where the filesystem has no mappings, EACCES without the right to
    /// read, ENOMEM when there are too many, EAGAIN when it cannot be locked in memory.
    pub(super) fn mapping(&self, size: u64) -> Result<Arc<Region>, Errno> {
        self.last_used.store(self.budget.tick(), Ordering::Relaxed);
        let needed = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
        if needed == 0 {
            return Err(Errno::INVAL);
        }
        if let Some(region) = self.slot.0.read().as_ref().filter(|region| fits(region, needed)) {
            return Ok(Arc::clone(region));
        }
        let mut slot = self.slot.0.write();
        if let Some(region) = slot.as_ref().filter(|region| fits(region, needed)) {
            return Ok(Arc::clone(region));
        }
        let grown = slot.as_ref().is_some_and(|region| region.len() < needed);
        let region = Arc::new(self.make_region(needed, grown)?);
        if slot.replace(Arc::clone(&region)).is_none() {
            self.budget.mappings.fetch_add(1, Ordering::Relaxed);
        }
        Ok(region)
    }

    /// The mapping as it is, without making one.
    pub(super) fn present_mapping(&self) -> Option<Arc<Region>> {
        self.slot.0.read().clone()
    }

    /// Takes the mapping out; requests under way keep it. Unmapping a large one takes time: the
    /// caller drops the returned value where no request waits.
    #[must_use]
    pub(super) fn unmap(&self) -> Option<Arc<Region>> {
        let region = self.slot.0.write().take();
        if region.is_some() {
            self.budget.mappings.fetch_sub(1, Ordering::Relaxed);
        }
        region
    }

    /// Ends an old mapping. Locked and advised ranges stay so in a new one.
    pub(super) fn map_anew(&self, old: Option<Arc<Region>>) {
        if old.is_none() || !self.persistent.lock().holds() {
            return;
        }
        let mapped = self.size().and_then(|size| match size {
            0 => Ok(()), // An empty file is mapped when it has grown.
            size => self.mapping(size).map(drop),
        });
        if let Err(err) = mapped {
            log::warn!("{}: mapping it anew: {err}", self.path().shown());
        }
    }

    /// Maps the file. A file that has grown under its mapping is given room for a quarter more,
    /// so that an appended file is not mapped anew for every page.
    fn make_region(&self, needed: usize, grown: bool) -> Result<Region, Errno> {
        let mode = self.mode();
        let descriptor = self.descriptor();
        let mut prot = libc::PROT_READ;
        if descriptor.is_for_both() && mode.prot.write {
            prot |= libc::PROT_WRITE;
        }
        if mode.prot.exec {
            prot |= libc::PROT_EXEC;
        }
        let pinned = libc::MAP_LOCKED | libc::MAP_POPULATE;
        let room = if grown && mode.flags.bits() & pinned == 0 { needed / 4 } else { 0 };
        let len = needed
            .checked_add(room)
            .and_then(|len| len.checked_next_multiple_of(sys::page_size()))
            .ok_or(Errno::NOMEM)?;
        let region = Region::map(descriptor.reader()?, len, prot, mode.flags.bits())?;
        if mode.advice != Advice::Normal {
            self.repeat_advice(&region, 0..region.len(), mode.advice);
        }
        let persistent = self.persistent.lock();
        for advice in persistent.advice() {
            self.repeat_advice(&region, clip(advice.range, region.len()), advice.advice);
        }
        for range in persistent.locked() {
            let range = clip(*range, region.len());
            if let Err(err) = sys::advise::lock(&region, range) {
                log::warn!("{}: locking its new mapping: {err}", self.path().shown());
            }
        }
        Ok(region)
    }

    /// Gives a new mapping an advice of the old one. A refusal is logged only, as advice is a hint.
    fn repeat_advice(&self, region: &Region, range: std::ops::Range<usize>, advice: Advice) {
        if let Err(err) = sys::advise::advise(region, range, advice) {
            log::debug!("{}: advice {advice} on its mapping: {err}", self.path().shown());
        }
    }
}

/// Whether a mapping covers the file, and not much more than it.
fn fits(region: &Region, needed: usize) -> bool {
    let slack = needed.saturating_mul(SHRINK_FACTOR).saturating_add(1 << 20);
    region.len() >= needed && region.len() <= slack
}

/// Part of a range of the file that a mapping covers.
pub(super) fn clip(range: crate::range::ByteRange, len: usize) -> std::ops::Range<usize> {
    let limit = len as u64;
    range.start.min(limit) as usize..range.end.min(limit) as usize
}
