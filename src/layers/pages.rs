//! Which pages of an upper file are its own, on disk and in memory.
//!
//! A page map is one file, `pages/ID` of a scratch, ID being 16 lower case hexadecimal digits.
//! docs/scratch-format.md has its layout: two headers, of which the later one counts, and turns of
//! both bitmaps, each of them a record of 512 bytes with a checksum. A record is written by one
//! pwrite(2) inside a block, so that it is the old one or the new one whenever this process is
//! killed, and a sector, so that it is after most power cuts. A page is 4096 bytes on every machine.
//!
//! There are two bitmaps: the bits themselves, and those that are synced. The base may show itself
//! below `lower_visible_len` only. A page that starts there or behind is the upper file's own without a
//! bit, and bits of such pages mean nothing. In a page below whose bit is clear, the bytes before
//! `lower_visible_len` are the base's and those behind it are zeros, whatever the upper file has there.
//! So truncating is one number, and growth needs no bits.
//!
//! A set bit promises that the page's data is in the upper file: data is written first, the bit
//! after it. Both are written by pwrite(2), so they are in the page cache when the call returns and
//! outlive this process. A map that is killed at any moment is a good one. A `lower_visible_len` behind
//! the end of the upper file is that of a truncation which was not finished, and counts as the
//! file's size.
//!
//! When the machine stops, a bit may have reached the disk before its data. A synced bit says that
//! the data had been synchronised, or that the page is zeros, which a hole is as well. A page with
//! a bit that is not synced, and a hole in the upper file, was never written for good: then
//! [`PageMap::recover`] takes the bit away. Found at any other time, it is an error
//! ([`PageMap::check_data`]).
//!
//! Zeros are a turn that was never written. The header counts those that were, each after it was
//! written for the first time, so that zeros in the place of one are told.
//!
//! In memory there are the turns that have a bit set: 512 bytes for 8 MiB of file.
//! Nothing is mapped, so nothing here raises SIGBUS.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
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
use format::{Bits, Header, TURN_PAGES, Turn};
pub use format::{MapError, MapId, PAGE, UpperId};
pub use recover::Recovered;

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
    turns: Vec<(u64, Bits)>,
    limit: u64,
}

/// Which pages of an upper file are its own.
#[derive(Debug)]
pub struct PageMap {
    file: Arc<OwnedFd>,
    id: MapId,
    access: MapAccess,
    base: Fingerprint,
    upper: UpperId,
    /// That of the header which counts.
    sequence: AtomicU64,
    /// Held while a header is written.
    saving: Mutex<()>,
    lower_visible_len: u64,
    /// The header on disk says what is here.
    limit_saved: AtomicBool,
    /// The headers were written, and count the turns that are written from then on.
    has_headers: bool,
    /// The numbers of the turns below the limit that are on disk and no zeros there, whatever bits
    /// they have.
    written: BTreeSet<u64>,
    /// Something was written since the last synchronisation.
    dirty: AtomicBool,
    /// By their number: the turns that have a bit set. No bit of their own at or behind
    /// `base_pages` is set; those that are synced are there as they are on disk.
    turns: BTreeMap<u64, Box<Turn>>,
    /// The turns with bits that are not synced.
    touched: BTreeSet<u64>,
    /// The limit at the last synchronisation.
    firm_limit: u64,
    /// The ctime of the upper file when the limit was lowered.
    lowered: (i64, u32),
    /// Bits that are set.
    own: u64,
    /// Pages of the base that show, for who asks without the map at hand.
    shown: Arc<AtomicU64>,
    /// Where the bits of all maps are counted.
    tally: Option<Arc<AtomicU64>>,
}

impl PageMap {
    /// Its name.
    pub fn id(&self) -> MapId {
        self.id
    }

    /// The upper file that it was made for.
    pub fn upper(&self) -> UpperId {
        self.upper
    }

    /// The base as it was at first touch.
    pub fn base(&self) -> &Fingerprint {
        &self.base
    }

    /// The bytes of the base that may show.
    pub fn lower_visible_len(&self) -> u64 {
        self.lower_visible_len
    }

    /// The pages of which some byte of the base may show; those behind have no bit.
    pub fn base_pages(&self) -> u64 {
        self.lower_visible_len.div_ceil(PAGE)
    }

    /// How many pages below the limit are the upper file's own.
    pub fn count(&self) -> u64 {
        self.own
    }

    /// How many pages of the base show, now and after every change of this map.
    pub fn shown(&self) -> &Arc<AtomicU64> {
        &self.shown
    }

    /// Whether nothing of the base shows any more.
    pub fn is_complete(&self) -> bool {
        self.own == self.base_pages()
    }

    /// Whether a page is the upper file's own.
    pub fn is_present(&self, page: u64) -> bool {
        self.run(page, 1).0
    }

    /// Whether a page is the upper file's own, and for how many pages from it on, `max` at most,
    /// that stays so.
    pub fn run(&self, page: u64, max: u64) -> (bool, u64) {
        let pages = self.base_pages();
        if page >= pages {
            return (true, max);
        }
        let (number, word, bit) = place(page);
        let own = self.turns.get(&number).is_some_and(|turn| turn.own[word] >> bit & 1 == 1);
        let stop = page.saturating_add(max).min(pages);
        let end = self.end_of_run(page, stop, own);
        // What is behind the limit goes on with the run.
        if own && end == pages { (own, max) } else { (own, end - page) }
    }

    /// The first page from `from` on, below `stop`, that is not as `own` says; else `stop`.
    fn end_of_run(&self, from: u64, stop: u64, own: bool) -> u64 {
        let mut at = from;
        while at < stop {
            let (number, word, bit) = place(at);
            let Some(turn) = self.turns.get(&number) else {
                if own {
                    return at;
                }
                let next = self.turns.range(number..).next();
                at = next.map_or(stop, |(number, _)| number * TURN_PAGES);
                continue;
            };
            let others = if own { !turn.own[word] } else { turn.own[word] } >> bit;
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
            let end = stop.min((at / TURN_PAGES + 1) * TURN_PAGES);
            self.change_in_turn(at, end, change)?;
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
        if limit >= self.lower_visible_len {
            return Ok(());
        }
        self.lower_visible_len = limit;
        self.lowered = changed;
        let behind = self.base_pages();
        self.forget_from(behind);
        if self.access == MapAccess::Read {
            return Ok(());
        }
        self.limit_saved.store(false, Ordering::Release);
        self.save_limit()
    }

    /// Notes how the base is by now, whose content is what it was.
    ///
    /// # Errors
    /// As [`PageMap::save_limit`].
    pub fn set_base(&mut self, base: Fingerprint) -> Result<(), Errno> {
        self.base = base;
        self.limit_saved.store(false, Ordering::Release);
        self.save_limit()
    }

    fn header(&self) -> Header {
        Header {
            id: self.id,
            sequence: self.sequence.load(Ordering::Relaxed),
            upper: self.upper,
            lower_visible_len: self.lower_visible_len,
            base: self.base,
            firm_limit: self.firm_limit,
            lowered: self.lowered,
            turns: self.written.len() as u64,
        }
    }

    /// Drops the bits from a page on, in memory. Those that are synced stay: the limit may be what it
    /// was after a power cut.
    fn forget_from(&mut self, page: u64) {
        drop(self.written.split_off(&format::turns_for(page)));
        let (first, word, bit) = place(page);
        let (mut before, mut after) = (0, 0);
        for (number, turn) in self.turns.range_mut(first..) {
            before += ones(&turn.own);
            let (word, bit) = if *number == first { (word, bit) } else { (0, 0) };
            turn.own[word] &= !(u64::MAX << bit);
            turn.own.iter_mut().skip(word + 1).for_each(|word| *word = 0);
            after += ones(&turn.own);
        }
        let behind = self.turns.range(first..).filter(|(_, turn)| ***turn == Turn::NONE);
        let empty: Vec<u64> = behind.map(|(number, _)| *number).collect();
        for number in empty {
            self.turns.remove(&number);
        }
        self.count_change(before, after);
    }

    /// Counts the bits of this map in a sum that has them already: what is set and cleared from
    /// now on.
    pub fn tally(&mut self, sum: &Arc<AtomicU64>) {
        self.tally = Some(Arc::clone(sum));
    }

    fn count_change(&mut self, before: u64, after: u64) {
        self.own = self.own + after - before;
        self.shown.store(self.base_pages().saturating_sub(self.own), Ordering::Relaxed);
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

/// The turn of a page, the word in it, and the bit in that.
fn place(page: u64) -> (u64, usize, u64) {
    (page / TURN_PAGES, (page % TURN_PAGES / 64) as usize, page % 64)
}

fn ones(bits: &Bits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}
