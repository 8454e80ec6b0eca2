//! A file with pages in several layers.
//!
//! The upper file is sparse, has its pages at the offsets of the base, and its size is the size of
//! the whole. Its page map says which pages it holds; the rest are the base's, up to the map's
//! limit, and zeros behind it. What the upper file has below a clear bit is never looked at: it may
//! be what a write left that was killed, or found no room for the rest of its page.
//!
//! No operation moves a page that it need not move:
//!
//! | operation                  | read from the base            | written to the upper file        |
//! |----------------------------|-------------------------------|----------------------------------|
//! | write of whole pages       | nothing                       | the pages, one pwrite(2)         |
//! | write of parts of pages    | the rest of those pages       | the whole pages, one pwritev(2)  |
//! | truncate, punch to the end | nothing                       | nothing: the limit is lowered    |
//! | growth, plain fallocate    | nothing                       | nothing, or what is reserved     |
//! | punch or zero in between   | at most two pages at its ends | these two                        |
//!
//! Each page is the old one or the new one whenever the process is killed, and after any error.
//! Growing writes finish the page that the base ends in before the size moves.
//!
//! A base that is shorter than the limit was truncated behind our back: what it should have and
//! has not is EIO, never zeros. So is a page that is completed from there, and every page of a base
//! that [`BaseState`] finds changed.
//!
//! Descriptors: the upper file is open for reading and writing, without O_APPEND.

use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{RwLock, RwLockWriteGuard};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

pub use super::base::Base;
use super::base::{blocks_of, ctime_of, size_of};
pub use super::base_state::BaseState;
use super::pages::{Fingerprint, MapId, PAGE, PageMap, UpperId, read_at, sync_file};
use crate::sys::cred::{AsCaller, Caller};
pub use copy::STEP;

mod allocate;
mod copy;
mod seek;
mod write;

thread_local! {
    /// What is read, as long as the longest request so far.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A file over a base. Reads go on side by side; what changes anything is alone.
#[derive(Debug)]
pub struct Merged {
    base: Base,
    /// Whether the base is as it was; none where nothing but this can change it.
    base_state: Option<Arc<BaseState>>,
    upper: Arc<OwnedFd>,
    /// Held for reading while bytes are read, for writing while they or the size change.
    map: RwLock<PageMap>,
    /// Something was changed since the last synchronisation, or may have been.
    written: AtomicBool,
}

impl Merged {
    /// Takes an upper file and its map, as they were left. A truncation that was not finished is.
    ///
    /// # Errors
    /// Those of fstat(2), and of pwrite(2) to the map.
    pub fn new(base: Base, upper: Arc<OwnedFd>, mut map: PageMap) -> Result<Merged, Errno> {
        map.set_base_limit(size_of(&upper)?, ctime_of(&upper)?)?;
        let written = AtomicBool::new(true);
        Ok(Merged { base, base_state: None, upper, map: RwLock::new(map), written })
    }

    /// The same with a base that others may change: its pages are shown as long as this says that
    /// it is as it was.
    #[must_use]
    pub fn over(self, base_state: Arc<BaseState>) -> Merged {
        Merged { base_state: Some(base_state), ..self }
    }

    /// Puts an empty upper file over a whole base: gives it the base's size, and makes its map.
    /// The caller then names the map in the upper file.
    ///
    /// # Errors
    /// Those of fstat(2), ftruncate(2) and [`PageMap::create`].
    pub fn start(
        base: Base,
        fingerprint: Fingerprint,
        upper: Arc<OwnedFd>,
        maps: impl AsFd,
        id: MapId,
    ) -> Result<Merged, Errno> {
        rustix::fs::ftruncate(&upper, fingerprint.size)?;
        let owner = UpperId::of(&Fingerprint::of(&upper)?);
        let map = PageMap::create(maps, id, fingerprint, fingerprint.size, owner)?;
        Merged::new(base, upper, map)
    }

    /// The upper file, for attributes: its size, times, owner and mode are those of the whole.
    pub fn upper(&self) -> &Arc<OwnedFd> {
        &self.upper
    }

    /// The file below.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn size(&self) -> Result<u64, Errno> {
        size_of(&self.upper)
    }

    /// The base as it was at first touch.
    pub fn fingerprint(&self) -> Fingerprint {
        *self.map.read().base()
    }

    /// Whether nothing of the base shows any more, so that the upper file alone is the whole.
    pub fn is_complete(&self) -> bool {
        self.map.read().is_complete()
    }

    /// The pages below the map's limit: how many are the upper file's own, and how many there are.
    pub fn own_pages(&self) -> (u64, u64) {
        let map = self.map.read();
        (map.count(), map.base_pages())
    }

    /// The parts of a range in turn, each the upper file's own or the base's.
    pub fn runs(&self, range: Range<u64>) -> Vec<(bool, Range<u64>)> {
        let map = self.map.read();
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (own, stop) = run_of_bytes(&map, at, range.end);
            let stop = stop.min(range.end);
            runs.push((own, at..stop));
            at = stop;
        }
        runs
    }

    /// Drops what was written in whole pages: they show the base again, and zeros where that has
    /// nothing to show. The map is durable before the data goes, so that no power cut leaves a
    /// page that is told to be there and is not.
    ///
    /// # Errors
    /// Those of pwrite(2) and fdatasync(2) of the map, and of fallocate(2).
    pub fn revert(&self, pages: Range<u64>) -> Result<(), Errno> {
        if pages.is_empty() {
            return Ok(());
        }
        let mut map = self.map_to_write();
        map.clear(pages.clone())?;
        map.sync(true)?;
        let end = pages.end.saturating_mul(PAGE).min(i64::MAX as u64);
        self.clear_unseen(pages.start * PAGE, end)
    }

    /// Bytes that the upper file and its map take.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn stored(&self) -> Result<u64, Errno> {
        Ok(blocks_of(&self.upper)? * 512 + self.map.read().stored()?)
    }

    /// What `st_blocks` is to say, in units of 512 bytes: those of the upper file, and of those of
    /// the base the share of its pages that show.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn blocks(&self) -> Result<u64, Errno> {
        let map = self.map.read();
        let own = blocks_of(&self.upper)?;
        let shown = map.base_pages() - map.count();
        if shown == 0 {
            return Ok(own);
        }
        let pages = u128::from(map.base().size.div_ceil(PAGE).max(1));
        let share = u128::from(self.base.blocks()?) * u128::from(shown) / pages;
        Ok(own.saturating_add(u64::try_from(share).unwrap_or(u64::MAX)))
    }

    /// Reads up to `len` bytes from `offset` and hands them to `deliver`. Fewer bytes mean the end
    /// of the file.
    ///
    /// # Errors
    /// EIO when the base is too short; those of pread(2).
    pub fn read_with<R>(
        &self,
        offset: u64,
        len: usize,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Errno> {
        // Taken, not borrowed: `deliver` may read another file.
        let mut buffer = BUFFER.take();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let part = buffer.get_mut(..len).unwrap_or_default();
        let count = self.read(offset, part);
        let delivered = count.map(|count| deliver(part.get(..count).unwrap_or_default()));
        BUFFER.set(buffer);
        delivered
    }

    /// Reads into a buffer, and returns how many bytes: fewer at the end of the file.
    ///
    /// # Errors
    /// As [`Merged::read_with`].
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let map = self.map.read();
        let left = size_of(&self.upper)?.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.fill(&map, offset, buffer.get_mut(..count).unwrap_or_default())?;
        Ok(count)
    }

    /// Fills a buffer from a range inside the file, run by run.
    fn fill(&self, map: &PageMap, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let end = offset + buffer.len() as u64;
        let mut rest = buffer;
        let mut at = offset;
        while at < end {
            let (own, stop) = run_of_bytes(map, at, end);
            let (part, behind) = rest.split_at_mut((stop - at) as usize);
            if own {
                if read_at(&self.upper, at, part)? < part.len() {
                    return Err(Errno::IO); // Somebody has truncated it without us.
                }
            } else {
                let shown = map.lower_visible_len().clamp(at, stop) - at;
                let (shown, zeros) = part.split_at_mut(shown as usize);
                if !shown.is_empty() {
                    let read = self.base.read(at, shown);
                    self.check_base()?; // It says why there is less to read than there was.
                    read?;
                }
                zeros.fill(0);
            }
            rest = behind;
            at = stop;
        }
        Ok(())
    }

    /// Sets the size in bytes for a caller. What is cut off is gone: growing again shows zeros.
    ///
    /// # Errors
    /// Those of ftruncate(2), and of pwrite(2) to the map.
    pub fn truncate(&self, size: u64, caller: &Caller) -> Result<(), Errno> {
        let mut map = self.map_to_write();
        let _as_caller = AsCaller::enter_to_write(caller)?;
        if size > size_of(&self.upper)? {
            map.save_limit()?;
        }
        rustix::fs::ftruncate(&self.upper, size)?;
        map.set_base_limit(size, ctime_of(&self.upper)?)
    }

    /// Makes the map durable as it is, with the bits that it has on disk so far. Before a file is
    /// synchronised for the first time that is due, so that no file is without its map.
    ///
    /// # Errors
    /// Those of pwrite(2) and fsync(2).
    pub fn sync_map(&self) -> Result<(), Errno> {
        self.map.read().sync(false)
    }

    /// Checks that what was just read of the base is of the base as it was.
    fn check_base(&self) -> Result<(), Errno> {
        match (&self.base, &self.base_state) {
            (Base::File(file), Some(state)) => state.check(file),
            _ => Ok(()),
        }
    }

    fn map_to_write(&self) -> RwLockWriteGuard<'_, PageMap> {
        let map = self.map.write();
        self.written.store(true, Ordering::Relaxed);
        map
    }

    /// The same as [`Merged::sync`] where anything was changed since.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync_written(&self) -> Result<(), Errno> {
        if self.written.load(Ordering::Relaxed) { self.sync(false) } else { Ok(()) }
    }

    /// Makes data and map durable, in this order.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self, data_only: bool) -> Result<(), Errno> {
        let synced = self.sync_both(data_only);
        if synced.is_err() {
            self.written.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn sync_both(&self, data_only: bool) -> Result<(), Errno> {
        // Nothing is held meanwhile: others read and write.
        let seen = {
            let map = self.map.write();
            self.written.store(false, Ordering::Relaxed);
            map.unsynced()
        };
        sync_file(&self.upper, data_only)?;
        if let Some(seen) = seen {
            self.map.write().sync_bits(&seen)?;
        }
        let Some(file) = self.map.read().take_unsynced()? else { return Ok(()) };
        let synced = sync_file(&file, data_only);
        if synced.is_err() {
            self.map.read().still_unsynced();
        }
        synced
    }

    /// Gives back what the upper file has in a range of which nothing shows.
    fn clear_unseen(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.upper, mode, start, end - start)
    }
}

/// Whether the byte at `at` lies in a page of the upper file's own, and up to which byte, `end` at
/// most, that stays so.
fn run_of_bytes(map: &PageMap, at: u64, end: u64) -> (bool, u64) {
    let page = at / PAGE;
    let (own, count) = map.run(page, end.div_ceil(PAGE) - page);
    (own, (page + count).saturating_mul(PAGE).min(end))
}
