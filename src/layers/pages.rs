//! Which pages of an upper file are its own, on disk and in memory.
//!
//! A page map is one file, `pages/ID` of a scratch, ID being 16 lower case hexadecimal digits.
//! All numbers are little endian; a page is 4096 bytes on every machine.
//!
//! | offset | bytes | what                                                              |
//! |-------:|------:|-------------------------------------------------------------------|
//! |      0 |     8 | magic: `mmapfspm`                                                 |
//! |      8 |     4 | version: 3; any other is refused                                   |
//! |     12 |     4 | page size in bytes: 4096                                          |
//! |     16 |     8 | `base_limit` in bytes, at most the base's size; it only shrinks   |
//! |     24 |     8 | `base_limit` at the last synchronisation                          |
//! |     32 |     8 | ctime of the upper file when `base_limit` was lowered: seconds    |
//! |     40 |     4 | the same: nanoseconds                                             |
//! |     44 |     4 | zeros                                                             |
//! |     48 |     8 | ID                                                                |
//! |     56 |    56 | the base at first touch: see [`Fingerprint::encode`]              |
//! |    112 |   400 | zeros                                                             |
//! |    512 |     n | the bitmaps                                                       |
//!
//! There are two bitmaps, in turns of 512 bytes for 4096 pages each: the bits themselves, and those
//! that are firm. Page `p` is bit `p % 8` (1 << it) of byte `q = p / 8`, which is at
//! `512 + q / 512 * 1024 + q % 512`, and 512 further on in the other. They have
//! `n = 1024 * ceil(ceil(base_limit / 4096) / 4096)` bytes at least, mostly holes: a
//! map that is shorter is an error, since pages would be missing from it. The base may show itself
//! below `base_limit` only. A page that starts there or behind is the upper file's own without a
//! bit, and bits of such pages mean nothing. In a page below whose bit is clear, the bytes before
//! `base_limit` are the base's and those behind it are zeros, whatever the upper file has there.
//! So truncating is one number, and growth needs no bits.
//!
//! A set bit promises that the page's data is in the upper file: data is written first, the bit
//! after it. Both are written by pwrite(2), so they are in the page cache when the call returns and
//! outlive this process. A map that is killed at any moment is a good one. A `base_limit` behind
//! the end of the upper file is that of a truncation which was not finished, and counts as the
//! file's size.
//!
//! When the machine stops, a bit may have reached the disk before its data. A firm bit says that
//! the data had been synchronised, or that the page is zeros, which a hole is as well. A page with
//! a bit that is not firm, and a hole in the upper file, was never written for good: then
//! [`PageMap::recover`] takes the bit away.
//!
//! In memory there are the parts of the bitmaps that have a bit set: 1 KiB for 16 MiB of file.
//! Nothing is mapped, so nothing here raises SIGBUS.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;

mod disk;
mod fingerprint;
mod format;
mod peek;
mod recover;
#[cfg(test)]
mod tests;

pub(super) use disk::{read_at, sync_file};
pub use fingerprint::{Comparison, Doubt, Fingerprint};
use format::{CHUNK, CHUNK_PAGES, Header};
pub use format::{MapError, MapId, PAGE};
pub use recover::Recovered;

const WORDS: usize = CHUNK as usize / 8;

/// The bits of [`CHUNK_PAGES`] pages.
type Chunk = [u64; WORDS];

/// Whether a page map is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapAccess {
    /// That of a frozen layer: every change fails with EBADF.
    Read,
    /// That of the top layer.
    Write,
}

/// What becomes of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Their data is in the upper file.
    Own,
    /// They are zeros, in the upper file or in no file.
    Zeros,
    /// They are the base's.
    Base,
}

/// The bits and the limit at a moment, before the data is synchronised.
#[derive(Debug)]
pub struct Unsynced {
    chunks: Vec<(u64, Box<Chunk>)>,
    limit: u64,
}

/// Which pages of an upper file are its own.
#[derive(Debug)]
pub struct PageMap {
    file: Arc<OwnedFd>,
    id: MapId,
    access: MapAccess,
    base: Fingerprint,
    base_limit: u64,
    /// The limit on disk is the one here.
    limit_saved: AtomicBool,
    /// Something was written since the last synchronisation.
    dirty: AtomicBool,
    /// By their number: the parts of the bitmap that have a bit set. No bit at or behind
    /// `base_pages` is set.
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// The same of the bits that are firm. Those at and behind `base_pages` are as they are on
    /// disk.
    firm: BTreeMap<u64, Box<Chunk>>,
    /// The parts of which bits were set since the last synchronisation that are not firm.
    touched: BTreeSet<u64>,
    /// The limit at the last synchronisation.
    firm_limit: u64,
    /// The ctime of the upper file when the limit was lowered.
    lowered: (i64, u32),
    /// Bits that are set.
    own: u64,
    /// Where the bits of all maps are counted.
    tally: Option<Arc<AtomicU64>>,
}

impl PageMap {
    /// The base as it was at first touch.
    pub fn base(&self) -> &Fingerprint {
        &self.base
    }

    /// The bytes of the base that may show.
    pub fn base_limit(&self) -> u64 {
        self.base_limit
    }

    /// The pages of which some byte of the base may show; those behind have no bit.
    pub fn base_pages(&self) -> u64 {
        self.base_limit.div_ceil(PAGE)
    }

    /// How many pages below the limit are the upper file's own.
    pub fn count(&self) -> u64 {
        self.own
    }

    /// Whether nothing of the base shows any more.
    pub fn is_whole(&self) -> bool {
        self.own == self.base_pages()
    }

    /// Whether a page is the upper file's own.
    pub fn own(&self, page: u64) -> bool {
        self.run(page, 1).0
    }

    /// Whether a page is the upper file's own, and for how many pages from it on, `max` at most,
    /// that stays so.
    pub fn run(&self, page: u64, max: u64) -> (bool, u64) {
        let pages = self.base_pages();
        if page >= pages {
            return (true, max);
        }
        let (chunk, word, bit) = place(page);
        let own = self.chunks.get(&chunk).is_some_and(|words| words[word] >> bit & 1 == 1);
        let stop = page.saturating_add(max).min(pages);
        let end = self.end_of_run(page, stop, own);
        // What is behind the limit goes on with the run.
        if own && end == pages { (own, max) } else { (own, end - page) }
    }

    /// The first page from `from` on, below `stop`, that is not as `own` says; else `stop`.
    fn end_of_run(&self, from: u64, stop: u64, own: bool) -> u64 {
        let mut at = from;
        while at < stop {
            let (chunk, word, bit) = place(at);
            let Some(words) = self.chunks.get(&chunk) else {
                if own {
                    return at;
                }
                let next = self.chunks.range(chunk..).next();
                at = next.map_or(stop, |(number, _)| number * CHUNK_PAGES);
                continue;
            };
            let others = if own { !words[word] } else { words[word] } >> bit;
            if others != 0 {
                return stop.min(at + u64::from(others.trailing_zeros()));
            }
            at += 64 - bit;
        }
        stop
    }

    /// Makes pages the upper file's own, whose data is there. Pages behind the limit need no bit
    /// and get none.
    ///
    /// # Errors
    /// Those of pwrite(2): a part of the pages, from the first on, may be set then.
    pub fn set(&mut self, pages: Range<u64>) -> Result<(), Errno> {
        self.change(pages, Change::Own)
    }

    /// Makes pages the upper file's own that are zeros, whether it has a hole there or data.
    ///
    /// # Errors
    /// As [`PageMap::set`].
    pub fn set_zeros(&mut self, pages: Range<u64>) -> Result<(), Errno> {
        self.change(pages, Change::Zeros)
    }

    fn change(&mut self, pages: Range<u64>, change: Change) -> Result<(), Errno> {
        let stop = pages.end.min(self.base_pages());
        let mut at = pages.start;
        while at < stop {
            let end = stop.min((at / CHUNK_PAGES + 1) * CHUNK_PAGES);
            self.change_in_chunk(at, end, change)?;
            at = end;
        }
        Ok(())
    }

    /// Lowers the limit to so many bytes; a higher one than the present changes nothing. From this
    /// moment on it counts, also when it could not be saved. It is not saved in a map that is open
    /// for reading. `changed` is the ctime that the upper file has by the change that lowers it:
    /// where that is not on the disk when the machine stops, the limit does not count.
    ///
    /// # Errors
    /// As [`PageMap::save_limit`].
    pub fn set_base_limit(&mut self, limit: u64, changed: (i64, u32)) -> Result<(), Errno> {
        if limit >= self.base_limit {
            return Ok(());
        }
        self.base_limit = limit;
        self.lowered = changed;
        let behind = self.base_pages();
        self.forget_from(behind);
        if self.access == MapAccess::Read {
            return Ok(());
        }
        self.limit_saved.store(false, Ordering::Release);
        self.save_limit()
    }

    fn header(&self) -> Header {
        Header {
            id: self.id,
            base_limit: self.base_limit,
            base: self.base,
            firm_limit: self.firm_limit,
            lowered: self.lowered,
        }
    }

    /// Drops the bits from a page on, in memory.
    fn forget_from(&mut self, page: u64) {
        let (chunk, word, bit) = place(page);
        let mut behind = self.chunks.split_off(&chunk);
        if let Some(mut words) = behind.remove(&chunk) {
            let before = ones(&words);
            words[word] &= !(u64::MAX << bit);
            words.iter_mut().skip(word + 1).for_each(|word| *word = 0);
            self.count_change(before, ones(&words));
            if *words != [0; WORDS] {
                self.chunks.insert(chunk, words);
            }
        }
        self.count_change(behind.values().map(|words| ones(words)).sum(), 0);
    }

    /// Counts the bits of this map in a sum that has them already: what is set and cleared from
    /// now on.
    pub fn tally(&mut self, sum: &Arc<AtomicU64>) {
        self.tally = Some(Arc::clone(sum));
    }

    fn count_change(&mut self, before: u64, after: u64) {
        self.own = self.own + after - before;
        if let Some(tally) = &self.tally {
            tally.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Makes pages the base's again, of which no byte of the upper file shows from then on. Pages
    /// behind the limit have no bit and stay as they are.
    ///
    /// # Errors
    /// Those of pwrite(2): a part of the pages, from the first on, may be cleared then.
    pub fn clear(&mut self, pages: Range<u64>) -> Result<(), Errno> {
        self.change(pages, Change::Base)
    }
}

/// The chunk of a page, the word in it, and the bit in that.
fn place(page: u64) -> (u64, usize, u64) {
    (page / CHUNK_PAGES, (page % CHUNK_PAGES / 64) as usize, page % 64)
}

fn ones(words: &Chunk) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}
