//! A file with pages in several layers.
//!
//! The upper file is sparse, has its pages at the same offsets as the base, and its size is the
//! size of the merged file. Its page map lists the present pages; the others are the base's up to
//! the map's limit, and zeros behind it. Bytes of the upper file in a page that is not present are
//! never read: they may be left over from a write that was killed or found no room.
//!
//! No operation copies a page without need:
//!
//! | operation                  | read from the base            | written to the upper file       |
//! |----------------------------|-------------------------------|---------------------------------|
//! | write of whole pages       | nothing                       | the pages, one pwrite(2)        |
//! | write of parts of pages    | the rest of those pages       | the whole pages, one pwritev(2) |
//! | truncate, punch to the end | nothing                       | nothing: the limit is lowered   |
//! | growth, plain fallocate    | nothing                       | nothing, or reserved blocks     |
//! | punch or zero in between   | at most two pages at its ends | these two                       |
//!
//! Each page has its old or its new content whenever the process is killed, and after any error. A
//! write that grows the file makes the page present in which the base ends before the size changes.
//!
//! A base that is shorter than the limit was truncated by others. Reading its missing part fails
//! with EIO, and never gives zeros; so does a write that needs bytes of this part for the rest of a
//! page. Reading any page of a base fails with EIO once [`BaseState`] finds the base changed.
//!
//! The upper file is open for reading and writing, without O_APPEND.

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
use crate::error::cause::because;
use crate::sys::cred::{AsCaller, Caller};
pub use copy::STEP;

mod allocate;
mod copy;
mod seek;
mod write;

thread_local! {
    /// Read buffer, as long as the longest request so far.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Merged file: an upper file with a page map over a base. Reads run in parallel; a change excludes
/// all other calls.
#[derive(Debug)]
pub struct Merged {
    base: Base,
    /// Detects changes of the base; `None` for a base that nobody else can change.
    base_state: Option<Arc<BaseState>>,
    upper: Arc<OwnedFd>,
    /// Held shared while bytes are read, exclusively while bytes or the size change.
    map: RwLock<PageMap>,
    /// Data or map may have changed since the last synchronisation.
    written: AtomicBool,
}

impl Merged {
    /// Merged file of an upper file and its map as found on disk. An unfinished truncation is
    /// finished.
    ///
    /// # Errors
    /// Errors of fstat(2), and of pwrite(2) to the map.
    pub fn new(base: Base, upper: Arc<OwnedFd>, mut map: PageMap) -> Result<Merged, Errno> {
        map.set_base_limit(size_of(&upper)?, ctime_of(&upper)?)?;
        let written = AtomicBool::new(true);
        Ok(Merged { base, base_state: None, upper, map: RwLock::new(map), written })
    }

    /// Adds the detection of changes to a base that others may change. Its pages are shown until
    /// `base_state` finds a change.
    #[must_use]
    pub fn over(self, base_state: Arc<BaseState>) -> Merged {
        Merged { base_state: Some(base_state), ..self }
    }

    /// Puts an empty upper file over a base: gives it the base's size, and creates its page map.
    /// The caller then sets the overlay xattr of the upper file that names the map.
    ///
    /// # Errors
    /// Errors of fstat(2), ftruncate(2) and [`PageMap::create`].
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

    /// Upper file. Its size, times, owner and mode are those of the merged file.
    pub fn upper(&self) -> &Arc<OwnedFd> {
        &self.upper
    }

    /// Base of the file.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn size(&self) -> Result<u64, Errno> {
        size_of(&self.upper)
    }

    /// Fingerprint of the base at first touch.
    pub fn fingerprint(&self) -> Fingerprint {
        *self.map.read().base()
    }

    /// Whether no page of the base is visible any more: the upper file is a complete copy.
    pub fn is_complete(&self) -> bool {
        self.map.read().is_complete()
    }

    /// Number of present pages and number of all pages below the map's limit.
    pub fn own_pages(&self) -> (u64, u64) {
        let map = self.map.read();
        (map.count(), map.base_pages())
    }

    /// Bytes of the base that may show, from the start of the file.
    pub fn lower_visible_len(&self) -> u64 {
        self.map.read().lower_visible_len()
    }

    /// Runs of a byte range in order; `true` for a run of present pages.
    pub fn runs(&self, range: Range<u64>) -> Vec<(bool, Range<u64>)> {
        let map = self.map.read();
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (present, stop) = run_of_bytes(&map, at, range.end);
            let stop = stop.min(range.end);
            runs.push((present, at..stop));
            at = stop;
        }
        runs
    }

    /// Drops present pages: they show the base again, and zeros behind the limit. The map is made
    /// durable before the data is punched, so no power cut leaves a present page without data.
    ///
    /// # Errors
    /// Errors of pwrite(2) and fdatasync(2) of the map, and of fallocate(2).
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

    /// Allocated size of the upper file and its map, in bytes.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn stored(&self) -> Result<u64, Errno> {
        Ok(blocks_of(&self.upper)? * 512 + self.map.read().stored()?)
    }

    /// Value for `st_blocks`, in units of 512 bytes: the blocks of the upper file, and the blocks
    /// of the base in proportion to its visible pages.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn blocks(&self) -> Result<u64, Errno> {
        let map = self.map.read();
        let upper = blocks_of(&self.upper)?;
        let shown = map.base_pages() - map.count();
        if shown == 0 {
            return Ok(upper);
        }
        let pages = u128::from(map.base().size.div_ceil(PAGE).max(1));
        let share = u128::from(self.base.blocks()?) * u128::from(shown) / pages;
        Ok(upper.saturating_add(u64::try_from(share).unwrap_or(u64::MAX)))
    }

    /// Reads up to `len` bytes from `offset` and passes them to `deliver`. Fewer bytes mean the end
    /// of the file.
    ///
    /// # Errors
    /// EIO if the base is too short or has changed; errors of pread(2).
    pub fn read_with<R>(
        &self,
        offset: u64,
        len: usize,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Errno> {
        // The buffer is taken and not borrowed: `deliver` may read another file.
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

    /// Reads into a buffer. Returns the number of bytes, which is smaller at the end of the file.
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

    /// Fills a buffer from a range inside the file.
    fn fill(&self, map: &PageMap, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        let end = offset + buffer.len() as u64;
        let mut rest = buffer;
        let mut at = offset;
        while at < end {
            let (present, stop) = run_of_bytes(map, at, end);
            let (part, behind) = rest.split_at_mut((stop - at) as usize);
            if present {
                if read_at(&self.upper, at, part)? < part.len() {
                    let cause = "its file in the scratch was truncated directly";
                    return Err(because(Errno::IO, cause));
                }
            } else {
                let shown = map.lower_visible_len().clamp(at, stop) - at;
                let (shown, zeros) = part.split_at_mut(shown as usize);
                if !shown.is_empty() {
                    let read = self.base.read(at, shown);
                    self.check_base()?; // Its log line explains a short read, so it comes first.
                    read?;
                }
                zeros.fill(0);
            }
            rest = behind;
            at = stop;
        }
        Ok(())
    }

    /// Sets the size in bytes with the caller's credentials. Bytes that are cut off are zeros when
    /// the file grows again.
    ///
    /// # Errors
    /// Errors of ftruncate(2), and of pwrite(2) to the map.
    pub fn truncate(&self, size: u64, caller: &Caller) -> Result<(), Errno> {
        let mut map = self.map_to_write();
        let _as_caller = AsCaller::enter_to_write(caller)?;
        if size > size_of(&self.upper)? {
            map.save_limit()?;
        }
        rustix::fs::ftruncate(&self.upper, size)?;
        map.set_base_limit(size, ctime_of(&self.upper)?)
    }

    /// Makes the map durable without new synced bits. It precedes the first synchronisation of the
    /// upper file, so that no upper file reaches the disk without its map.
    ///
    /// # Errors
    /// Errors of pwrite(2) and fsync(2).
    pub fn sync_map(&self) -> Result<(), Errno> {
        self.map.read().sync(false)
    }

    /// Checks that bytes which were just read from the base are of the unchanged base.
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

    /// Calls [`Merged::sync`] if the file may have changed since the last synchronisation.
    ///
    /// # Errors
    /// Errors of fsync(2).
    pub fn sync_written(&self) -> Result<(), Errno> {
        if self.written.load(Ordering::Relaxed) { self.sync(false) } else { Ok(()) }
    }

    /// Makes data and map durable, in this order.
    ///
    /// # Errors
    /// Errors of fsync(2).
    pub fn sync(&self, data_only: bool) -> Result<(), Errno> {
        let synced = self.sync_both(data_only);
        if synced.is_err() {
            self.written.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn sync_both(&self, data_only: bool) -> Result<(), Errno> {
        // The map is not locked during fsync(2): others read and write.
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

    /// Punches a range of the upper file that is not visible.
    fn clear_unseen(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.upper, mode, start, end - start)
    }
}

/// Whether the byte at `at` lies in a present page, and the end of the run of equal pages, at most
/// `end`.
fn run_of_bytes(map: &PageMap, at: u64, end: u64) -> (bool, u64) {
    let page = at / PAGE;
    let (present, count) = map.run(page, end.div_ceil(PAGE) - page);
    (present, (page + count).saturating_mul(PAGE).min(end))
}
