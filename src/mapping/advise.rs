//! Advice, flush, locks and residency of a backing file.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::file::BackingFile;
use super::persistent_advice::PersistentRange;
use super::region::clip;
use crate::advice::{Advice, Effect};
use crate::range::ByteRange;
use crate::sys;
use crate::sys::advise::SyncMode;
use crate::sys::region::Region;
use crate::sys::residency::CacheStat;

/// MADV_WILLNEED reads at most the device's readahead per call, so it is asked for in parts.
const WILLNEED_CHUNK: usize = 128 << 10;

/// Time from one try to evict pages to the next. The kernel keeps pages that it is just done with
/// (the end of a write-back, a reader, compaction) for a moment, which is long on a busy machine.
const EVICTION_PAUSES: [Duration; 5] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
    Duration::from_millis(64),
    Duration::from_millis(250),
];

/// OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const OVERLAYFS: u64 = 0x794c_7630;

/// Effect of an advice.
#[derive(Debug, Clone, Copy)]
pub struct AdviceEffect {
    /// Range of the advised pages, in bytes of the file.
    pub range: ByteRange,
    /// Pages of the range in the page cache before; `None` if unknown.
    pub resident_before: Option<u64>,
    /// Pages of the range in the page cache afterwards; `None` if unknown.
    pub resident_after: Option<u64>,
    /// Time that the advice itself took.
    pub elapsed: Duration,
}

/// The effect of a flush.
#[derive(Debug, Clone, Copy)]
pub struct FlushEffect {
    /// Range of the flushed pages, in bytes of the file.
    pub range: ByteRange,
    /// Dirty pages of the range before; `None` if unknown.
    pub dirty_before: Option<u64>,
    /// Dirty pages of the range afterwards; `None` if unknown.
    pub dirty_after: Option<u64>,
    /// Time that the flush took.
    pub elapsed: Duration,
}

impl BackingFile {
    /// Gives the kernel an advice on a range, through the mapping. A hint is rounded outward to
    /// whole pages, an advice that discards pages inward.
    ///
    /// # Errors
    /// OPNOTSUPP when the kernel or the kind of mapping does not know the advice, else errors of
    /// madvise(2).
    pub fn advise(&self, range: ByteRange, advice: Advice) -> Result<AdviceEffect, Errno> {
        let page = sys::page_size() as u64;
        let range = match advice.effect() {
            Effect::Hint => range.outward(page),
            Effect::Discard | Effect::Destroy | Effect::Forbidden => {
                whole_pages(range, page, self.size()?)
            }
        };
        let resident_before = self.resident(range);
        let started = Instant::now();
        if !range.is_empty() {
            let region = self.mapping(self.size()?)?;
            let pages = clip(range, region.len());
            self.apply(&region, pages, advice).map_err(|err| match err {
                Errno::INVAL => Errno::OPNOTSUPP,
                err => err,
            })?;
            self.persistent.lock().record(range, advice);
        }
        let elapsed = started.elapsed();
        Ok(AdviceEffect { range, resident_before, resident_after: self.resident(range), elapsed })
    }

    fn apply(&self, region: &Region, pages: Range<usize>, advice: Advice) -> Result<(), Errno> {
        match advice {
            Advice::WillNeed => {
                for start in pages.clone().step_by(WILLNEED_CHUNK) {
                    let end = pages.end.min(start + WILLNEED_CHUNK);
                    sys::advise::advise(region, start..end, advice)?;
                }
                Ok(())
            }
            // The advice acts only on pages in this process's page table.
            Advice::Cold => {
                self.enter_resident_pages(region, pages.clone());
                sys::advise::advise(region, pages, advice)
            }
            Advice::PageOut => self.evict(region, pages),
            _ => sys::advise::advise(region, pages, advice),
        }
    }

    /// Takes pages out of the page cache, written back where they are dirty. Pages that programs
    /// map or have locked stay.
    fn evict(&self, region: &Region, pages: Range<usize>) -> Result<(), Errno> {
        let range = ByteRange { start: pages.start as u64, end: pages.end as u64 };
        let descriptor = self.descriptor();
        let file = descriptor.any()?;
        if self.cache_stat(range).is_none_or(|stat| stat.dirty + stat.writeback > 0) {
            rustix::fs::fdatasync(file)?;
        }
        // The kernel keeps a page that is in this process's page table.
        sys::advise::advise(region, pages.clone(), Advice::DontNeed)?;
        for pause in EVICTION_PAUSES {
            sys::residency::fadvise_dontneed(file, range.start..range.end)?;
            match self.resident(range) {
                Some(0) => return Ok(()),
                Some(_) => thread::sleep(pause),
                None => break,
            }
        }
        sys::residency::fadvise_dontneed(file, range.start..range.end)?;
        if self.resident(range) == Some(0) {
            return Ok(());
        }
        // The remaining pages have no disk blocks or are in use: the kernel may swap them out.
        self.enter_resident_pages(region, pages.clone());
        sys::advise::advise(region, pages.clone(), Advice::PageOut)?;
        sys::advise::advise(region, pages, Advice::DontNeed)
    }

    /// Maps the pages that are in the page cache into this process's page table, without reading
    /// any.
    fn enter_resident_pages(&self, region: &Region, pages: Range<usize>) {
        if !self.mincore_tells() {
            return; // mincore(2) would report all pages as resident, and they would be read.
        }
        let page = sys::page_size();
        for start in pages.clone().step_by(page * 16) {
            let part = start..pages.end.min(start + page * 16);
            let whole = (part.len() / page) as u64;
            match sys::residency::resident_pages(region, part.clone()) {
                Ok(count) if count == whole => enter(region, part),
                Ok(count) if count > 0 => {
                    for start in part.clone().step_by(page) {
                        let one = start..part.end.min(start + page);
                        if sys::residency::resident_pages(region, one.clone()) == Ok(1) {
                            enter(region, one);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// msync(2) of a range; the pages are rounded outward.
    ///
    /// # Errors
    /// Errors of msync(2) and fdatasync(2).
    pub fn flush(&self, range: ByteRange, mode: SyncMode) -> Result<FlushEffect, Errno> {
        let range = range.outward(sys::page_size() as u64);
        let dirty_before = self.cache_stat(range).map(|stat| stat.dirty);
        let started = Instant::now();
        if let Some(region) = self.present_mapping() {
            let pages = clip(range, region.len());
            if !pages.is_empty() {
                sys::advise::sync(&region, pages, mode)?;
            }
        }
        if mode != SyncMode::Async {
            // Covers writes by pwrite(2), and metadata that is needed to read the data.
            rustix::fs::fdatasync(self.descriptor().any()?)?;
        }
        let elapsed = started.elapsed();
        let dirty_after = self.cache_stat(range).map(|stat| stat.dirty);
        Ok(FlushEffect { range, dirty_before, dirty_after, elapsed })
    }

    /// mlock(2) or munlock(2) of a range; the pages are rounded outward when locking and inward
    /// when unlocking.
    ///
    /// # Errors
    /// Errors of mlock(2): ENOMEM or EPERM above RLIMIT_MEMLOCK.
    pub fn set_locked(&self, range: ByteRange, locked: bool) -> Result<ByteRange, Errno> {
        let page = sys::page_size() as u64;
        let range =
            if locked { range.outward(page) } else { whole_pages(range, page, self.size()?) };
        if range.is_empty() {
            return Ok(range);
        }
        let region = self.mapping(self.size()?)?;
        let pages = clip(range, region.len());
        if locked {
            if let Err(err) = sys::advise::lock(&region, pages.clone()) {
                // The kernel keeps the lock of the pages before the one that failed.
                sys::advise::unlock(&region, pages)?;
                return Err(err);
            }
        } else {
            sys::advise::unlock(&region, pages)?;
        }
        self.persistent.lock().record_lock(range, locked);
        Ok(range)
    }

    /// State of a range in the page cache, in pages; `None` on a kernel before 6.5.
    pub fn cache_stat(&self, range: ByteRange) -> Option<CacheStat> {
        let descriptor = self.descriptor();
        let fd = descriptor.any().ok()?;
        // On overlayfs cachestat(2) reads an inode that has no pages of its own.
        if rustix::fs::fstatfs(fd).ok()?.f_type as u64 == OVERLAYFS {
            return None;
        }
        sys::residency::cachestat(fd, range.start..range.end).ok()
    }

    fn mincore_tells(&self) -> bool {
        self.descriptor().any().is_ok_and(sys::residency::mincore_tells)
    }

    /// Number of pages of a range in the page cache. Without cachestat(2) it is counted by
    /// mincore(2) on the mapping; `None` if there is none.
    pub fn resident(&self, range: ByteRange) -> Option<u64> {
        if range.is_empty() {
            return Some(0);
        }
        if let Some(stat) = self.cache_stat(range) {
            return Some(stat.cached);
        }
        if !self.mincore_tells() {
            return None;
        }
        let region = self.present_mapping()?;
        let pages = clip(range, region.len());
        sys::residency::resident_pages(&region, pages).ok()
    }

    /// Checks that the file can be mapped, by mapping it.
    ///
    /// # Errors
    /// Errors of mmap(2); EINVAL for an empty file.
    pub fn mappable(&self) -> Result<(), Errno> {
        self.mapping(self.size()?).map(drop)
    }

    /// The mapping at this moment, for reports.
    pub fn region(&self) -> Option<Arc<Region>> {
        self.present_mapping()
    }

    /// Persistent advice of the file.
    pub fn persistent_advice(&self) -> Vec<PersistentRange> {
        self.persistent.lock().advice().to_vec()
    }

    /// Bytes locked in memory.
    pub fn locked_bytes(&self) -> u64 {
        self.persistent.lock().locked_bytes()
    }
}

/// Whole pages of a range. The last page of a file counts as whole, since its bytes behind the end
/// of the file hold no data.
pub fn whole_pages(range: ByteRange, page: u64, size: u64) -> ByteRange {
    let end = if range.end >= size { size.next_multiple_of(page) } else { range.end };
    ByteRange { start: range.start, end: end.max(range.start) }.inward(page)
}

/// Maps pages into this process's page table. Failures are ignored: a page may be gone by now.
fn enter(region: &Region, pages: Range<usize>) {
    if let Err(err) = sys::advise::populate_read(region, pages) {
        log::debug!("entering resident pages: {err}");
    }
}
