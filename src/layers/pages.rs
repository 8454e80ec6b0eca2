//! Page maps: the set of pages that a partial copy has, on disk and in memory.
//!
//! A page map is one file, `pages/ID` of a scratch, where ID is 16 lower case hexadecimal digits.
//! docs/scratch-format.md has its layout: two headers, of which the later one counts, and turns. A
//! turn holds both bits of 1984 pages. Headers and turns are records of 512 bytes with a checksum.
//! One pwrite(2) writes a record. The record lies inside one block, so a killed process leaves it
//! old or new; it is one sector, so most power cuts do the same. A page is 4096 bytes on every
//! machine.
//!
//! Each page has a present bit and a synced bit. The base is visible below `lower_visible_len`
//! only. A page that starts at this limit or behind it is present without a bit, and its bits are
//! ignored. In a page below the limit whose present bit is clear, the bytes before
//! `lower_visible_len` are the base's and the bytes behind it are zeros; the upper file's bytes in
//! that page are ignored. So a truncation changes one number, and growth needs no bits.
//!
//! A present bit promises that the page's data is in the upper file: data is written first, the
//! bit after it. Both are written by pwrite(2), so they are in the page cache when the call
//! returns and outlive this process. The map is valid at whichever moment the process is killed. A
//! `lower_visible_len` behind the end of the upper file belongs to an unfinished truncation, and
//! counts as the file's size.
//!
//! When the machine stops, a present bit may have reached the disk before its data. A synced bit
//! says that the data had been synchronised, or that the page is zeros, as a hole is too. A page
//! that is present and not synced, and is a hole in the upper file, never reached the disk: after
//! the machine has stopped [`PageMap::recover`] clears its bit. At any other time such a page is an
//! error ([`PageMap::check_data`]).
//!
//! A turn that was never written is all zeros. The header counts the turns that were written, each
//! after its first write, so zeros in place of a written turn are detected.
//!
//! Memory holds the turns that have a bit set: 512 bytes for 8 MiB of file. Nothing is mapped, so
//! nothing here raises SIGBUS.

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

/// Access mode of an open page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapAccess {
    /// For a frozen layer: every change fails with EBADF.
    Read,
    /// For the top layer.
    Write,
}

/// New state of a range of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Present: the data is in the upper file.
    Present,
    /// Present and zeros: the upper file has a hole there, or zeros.
    Zeros,
    /// Not present: the base gives the pages.
    Base,
}

/// Present bits and limit that a synchronisation of the data makes durable, as it begins.
#[derive(Debug)]
pub struct Unsynced {
    turns: Vec<(u64, Bits)>,
    limit: u64,
}

/// Page map of one partial copy: the pages that its upper file holds.
#[derive(Debug)]
pub struct PageMap {
    file: Arc<OwnedFd>,
    id: MapId,
    access: MapAccess,
    base: Fingerprint,
    upper: UpperId,
    /// Sequence number of the header that counts.
    sequence: AtomicU64,
    /// Held while a header is written.
    saving: Mutex<()>,
    lower_visible_len: u64,
    /// The header on disk is up to date.
    limit_saved: AtomicBool,
    /// Both headers were written; from then on they count the turns that are written.
    has_headers: bool,
    /// Numbers of the turns below the limit whose record on disk is not all zeros. Their bits may
    /// all be clear.
    written: BTreeSet<u64>,
    /// Something was written since the last synchronisation.
    dirty: AtomicBool,
    /// Turns that have a bit set, by number. No present bit at or behind `base_pages` is set; the
    /// synced bits there are as on disk.
    turns: BTreeMap<u64, Box<Turn>>,
    /// Numbers of the turns with a present bit that is not synced.
    touched: BTreeSet<u64>,
    /// Limit at the last synchronisation.
    synced_limit: u64,
    /// Ctime of the upper file after the change that lowered the limit.
    lowered: (i64, u32),
    /// Number of present bits.
    present: u64,
    /// Number of visible pages of the base, for readers that do not lock the map.
    shown: Arc<AtomicU64>,
    /// Number of present bits in all maps of the scratch.
    tally: Option<Arc<AtomicU64>>,
}

impl PageMap {
    /// Id of the map, which is its file name.
    pub fn id(&self) -> MapId {
        self.id
    }

    /// Identity of the upper file that the map was made for.
    pub fn upper(&self) -> UpperId {
        self.upper
    }

    /// Fingerprint of the base at first touch.
    pub fn base(&self) -> &Fingerprint {
        &self.base
    }

    /// Length in bytes of the part of the base that may be visible.
    pub fn lower_visible_len(&self) -> u64 {
        self.lower_visible_len
    }

    /// Number of pages in which a byte of the base may be visible. Pages behind have no bit.
    pub fn base_pages(&self) -> u64 {
        self.lower_visible_len.div_ceil(PAGE)
    }

    /// Number of present pages below the limit.
    pub fn count(&self) -> u64 {
        self.present
    }

    /// Number of visible pages of the base; every change of this map updates the counter.
    pub fn shown(&self) -> &Arc<AtomicU64> {
        &self.shown
    }

    /// Whether no page of the base is visible any more.
    pub fn is_complete(&self) -> bool {
        self.present == self.base_pages()
    }

    /// Whether a page is present.
    pub fn is_present(&self, page: u64) -> bool {
        self.run(page, 1).0
    }

    /// Whether a page is present, and the length in pages of the run of equal pages that it
    /// begins, at most `max`.
    pub fn run(&self, page: u64, max: u64) -> (bool, u64) {
        let pages = self.base_pages();
        if page >= pages {
            return (true, max);
        }
        let (number, word, bit) = place(page);
        let turn = self.turns.get(&number);
        let present = turn.is_some_and(|turn| turn.present[word] >> bit & 1 == 1);
        let stop = page.saturating_add(max).min(pages);
        let end = self.end_of_run(page, stop, present);
        // Pages behind the limit are present: they go on with the run.
        if present && end == pages { (present, max) } else { (present, end - page) }
    }

    /// First page in `from..stop` whose present bit differs from `present`; else `stop`.
    fn end_of_run(&self, from: u64, stop: u64, present: bool) -> u64 {
        let mut at = from;
        while at < stop {
            let (number, word, bit) = place(at);
            let Some(turn) = self.turns.get(&number) else {
                if present {
                    return at;
                }
                let next = self.turns.range(number..).next();
                at = next.map_or(stop, |(number, _)| number * TURN_PAGES);
                continue;
            };
            let others = if present { !turn.present[word] } else { turn.present[word] } >> bit;
            if others != 0 {
                return stop.min(at + u64::from(others.trailing_zeros()));
            }
            at += 64 - bit;
        }
        stop
    }

    /// Marks pages present whose data is in the upper file. Pages behind the limit need no bit and
    /// get none.
    ///
    /// # Errors
    /// Errors of pwrite(2): a part of the pages, from the first on, may be present then.
    pub fn set(&mut self, pages: Range<u64>) -> Result<(), Errno> {
        self.change(pages, Change::Present)
    }

    /// Marks pages present and synced that are zeros, as a hole or as data.
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

    /// Lowers `lower_visible_len` to `limit` bytes; a limit that is not lower changes nothing. The
    /// new limit holds from this call on, also when it could not be saved. A map that is open for
    /// reading does not save it. `changed` is the ctime of the upper file after the change that
    /// lowers the limit: if the disk has an earlier ctime after a power cut, the limit does not
    /// count.
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

    /// Replaces the fingerprint of the base, whose content is unchanged.
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
            synced_limit: self.synced_limit,
            lowered: self.lowered,
            turns: self.written.len() as u64,
        }
    }

    /// Clears the present bits from a page on, in memory. The synced bits stay: a power cut may
    /// bring the old limit back.
    fn forget_from(&mut self, page: u64) {
        drop(self.written.split_off(&format::turns_for(page)));
        let (first, word, bit) = place(page);
        let (mut before, mut after) = (0, 0);
        for (number, turn) in self.turns.range_mut(first..) {
            before += ones(&turn.present);
            let (word, bit) = if *number == first { (word, bit) } else { (0, 0) };
            turn.present[word] &= !(u64::MAX << bit);
            turn.present.iter_mut().skip(word + 1).for_each(|word| *word = 0);
            after += ones(&turn.present);
        }
        let behind = self.turns.range(first..).filter(|(_, turn)| ***turn == Turn::NONE);
        let empty: Vec<u64> = behind.map(|(number, _)| *number).collect();
        for number in empty {
            self.turns.remove(&number);
        }
        self.count_change(before, after);
    }

    /// Adds every later change of the number of present bits to `sum`, which includes the present
    /// number already.
    pub fn tally(&mut self, sum: &Arc<AtomicU64>) {
        self.tally = Some(Arc::clone(sum));
    }

    fn count_change(&mut self, before: u64, after: u64) {
        self.present = self.present + after - before;
        self.shown.store(self.base_pages().saturating_sub(self.present), Ordering::Relaxed);
        if let Some(tally) = &self.tally {
            tally.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Marks pages not present: the base gives them again. Pages behind the limit have no bit and
    /// stay present.
    ///
    /// # Errors
    /// Errors of pwrite(2): a part of the pages, from the first on, may be cleared then.
    pub fn clear(&mut self, pages: Range<u64>) -> Result<(), Errno> {
        self.change(pages, Change::Base)
    }
}

/// Turn of a page, word in the turn, and bit in the word.
fn place(page: u64) -> (u64, usize, u64) {
    (page / TURN_PAGES, (page % TURN_PAGES / 64) as usize, page % 64)
}

fn ones(bits: &Bits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}
