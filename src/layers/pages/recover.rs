//! Page maps after the machine has stopped: bits whose data never reached the disk are taken away.
//!
//! A page of the upper file whose blocks were never written is a hole then, since filesystems show
//! blocks only when their data is there (ext4 in its default mode, xfs, btrfs).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use super::disk::{open_file, read_at, whole};
use super::format::{Bits, Header, RECORD, TURN_PAGES, WORDS, length_for};
use super::{Fingerprint, MapAccess, MapError, MapId, PAGE, PageMap, UpperId};
use crate::layers::base::{ctime_of, size_of};

/// What the disk had of a page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// All that counts.
    Whole,
    /// So many pages were not written before the machine stopped, and are the base's again; or the
    /// limit is what it was.
    Without(u64),
    /// Nothing: it had never been synchronised, and the pages of the upper file are all there is.
    Anew,
}

impl PageMap {
    /// Puts a map in order after the machine has stopped, for the upper file that it is of. `base`
    /// is asked for where the map itself is not on the disk.
    ///
    /// # Errors
    /// As [`PageMap::open`], and those of `base`, pwrite(2) and fsync(2).
    pub fn recover(
        directory: impl AsFd,
        id: MapId,
        upper: &OwnedFd,
        base: impl FnOnce() -> Result<Fingerprint, Errno>,
    ) -> Result<Recovered, MapError> {
        let file = open_file(directory, id, OFlags::RDWR)?;
        let mut headers = [[0; RECORD as usize]; 2];
        read_at(&file, 0, headers.as_flattened_mut())?;
        let (Some(said), both) = whole(&headers)? else {
            let base = base()?;
            return PageMap::anew(file, id, upper, base).map(|()| Recovered::Anew);
        };
        let changed = ctime_of(upper)?;
        // What lowers the limit is on the disk with the time that it left on the upper file.
        let lowered = changed >= said.lowered;
        let lower_visible_len = if lowered { said.lower_visible_len } else { said.firm_limit };
        let mut map = PageMap::empty(file, MapAccess::Write, &Header { lower_visible_len, ..said });
        map.check_id(id)?;
        let least = length_for(map.base_pages().max(said.firm_limit.div_ceil(PAGE)));
        if u64::try_from(rustix::fs::fstat(&map.file)?.st_size).unwrap_or(0) < least {
            rustix::fs::ftruncate(&map.file, least)?;
        }
        let torn = map.load(least)?;
        // Records that the header counts may not have reached the disk.
        let counted = map.written.len() as u64 >= said.turns;
        let (lost, changed) = map.take_unwritten(upper, &torn)?;
        if counted
            && lower_visible_len == said.lower_visible_len
            && both
            && torn.is_empty()
            && !changed
        {
            return Ok(Recovered::Whole);
        }
        map.write_headers()?;
        map.sync(false)?;
        Ok(Recovered::Without(lost))
    }

    /// A map that says what the upper file has.
    fn anew(file: OwnedFd, id: MapId, upper: &OwnedFd, base: Fingerprint) -> Result<(), MapError> {
        let lower_visible_len = base.size.min(size_of(upper)?);
        let lowered = (i64::MIN, 0);
        let owner = UpperId::of(&Fingerprint::of(upper)?);
        let header = Header {
            id,
            sequence: 0,
            lower_visible_len,
            base,
            upper: owner,
            firm_limit: lower_visible_len,
            lowered,
            turns: 0,
        };
        rustix::fs::ftruncate(&file, 0)?;
        let mut map = PageMap::empty(file, MapAccess::Write, &header);
        rustix::fs::ftruncate(&map.file, length_for(map.base_pages()))?;
        let (mut at, pages) = (0, map.base_pages());
        while at < pages {
            let (written, stop) = written(upper, at, pages)?;
            if written {
                map.set(at..stop)?;
            }
            at = stop;
        }
        map.write_headers()?;
        Ok(map.sync(false)?)
    }

    /// Sets the bits that are synced, and takes those away that are not and whose pages were not
    /// written. A turn that is `torn` is partly that before a change and partly that after it:
    /// there a synced bit without its bit says nothing. Returns how many bits went, and whether
    /// anything was changed.
    fn take_unwritten(&mut self, upper: &OwnedFd, torn: &[u64]) -> Result<(u64, bool), Errno> {
        let pages = self.base_pages();
        let (mut lost, mut changed) = (0, false);
        let numbers: Vec<u64> = self.turns.keys().copied().chain(torn.iter().copied()).collect();
        let mut known = Extent::default();
        for number in numbers {
            let mut turn = self.turn(number);
            let before = turn;
            let doubtful = torn.contains(&number);
            for page in bits(number, &before.own, &before.synced, |own, synced| own ^ synced) {
                let (word, bit) = ((page % TURN_PAGES / 64) as usize, 1 << (page % 64));
                if page >= pages {
                    continue;
                }
                let own = before.own[word] & bit != 0;
                let keeps = (!own && !doubtful) || known.has(upper, page, pages)?;
                match keeps {
                    true => turn.own[word] |= bit,
                    false => {
                        turn.own[word] &= !bit;
                        turn.synced[word] &= !bit;
                        lost += u64::from(own);
                    }
                }
            }
            if turn != before || doubtful {
                self.rewrite_turn(number, turn)?;
                changed = true;
            }
        }
        Ok((lost, changed))
    }

    /// Makes sure that pages which are not synced have data in the upper file. Where the machine has
    /// not stopped they have, unless somebody has damaged it.
    ///
    /// # Errors
    /// The first page that has none; those of lseek(2).
    pub fn check_data(&self, upper: &OwnedFd) -> Result<(), MapError> {
        let pages = self.base_pages().min(size_of(upper)?.div_ceil(PAGE));
        let mut data_to = 0;
        for number in &self.touched {
            let turn = self.turn(*number);
            for page in bits(*number, &turn.own, &turn.synced, |own, synced| own & !synced) {
                if page < data_to || page >= pages {
                    continue;
                }
                match data_at(upper, page)? {
                    Some(end) => data_to = end,
                    None => return Err(MapError::Missing { page }),
                }
            }
        }
        Ok(())
    }
}

/// The pages of a turn for which `word` of its bits and of the synced ones is set.
fn bits(
    number: u64,
    own: &Bits,
    synced: &Bits,
    word: impl Fn(u64, u64) -> u64,
) -> impl Iterator<Item = u64> {
    let words: Bits = std::array::from_fn(|index| word(own[index], synced[index]));
    (0..WORDS).flat_map(move |index| {
        let word = words[index];
        let first = number * TURN_PAGES + index as u64 * 64;
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
    })
}

/// The data or the hole that was found last.
#[derive(Default)]
struct Extent {
    data: bool,
    start: u64,
    end: u64,
}

impl Extent {
    /// Whether all of a page is there as data; the pages up to `stop` may be asked for next.
    fn has(&mut self, upper: &OwnedFd, page: u64, stop: u64) -> Result<bool, Errno> {
        if page < self.start || page >= self.end {
            let (data, end) = written(upper, page, stop)?;
            *self = Extent { data, start: page, end };
        }
        Ok(self.data)
    }
}

/// The end of the run of pages from this one on that have data, each of them some: a part of a page
/// may have been punched where blocks are smaller. `None` where the page has none.
fn data_at(upper: &OwnedFd, page: u64) -> Result<Option<u64>, Errno> {
    let data = match rustix::fs::seek(upper, SeekFrom::Data(page * PAGE)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // Without a way to ask all of it counts as data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(u64::MAX)),
        Err(errno) => return Err(errno),
    };
    if data >= (page + 1) * PAGE {
        return Ok(None);
    }
    let hole = rustix::fs::seek(upper, SeekFrom::Hole(data))?;
    Ok(Some(hole.div_ceil(PAGE)))
}

/// Whether all of a page is there as data, and up to which page, `stop` at most, that stays so.
fn written(upper: &OwnedFd, page: u64, stop: u64) -> Result<(bool, u64), Errno> {
    let size = size_of(upper)?;
    let start = page * PAGE;
    let end = (start + PAGE).min(size);
    if start >= size {
        return Ok((false, stop));
    }
    let hole = match rustix::fs::seek(upper, SeekFrom::Hole(start)) {
        Ok(hole) => hole,
        // Without a way to ask all of it counts as data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((true, stop)),
        Err(errno) => return Err(errno),
    };
    if hole >= end {
        let whole = if hole >= size { size.div_ceil(PAGE) } else { hole / PAGE };
        return Ok((true, whole.clamp(page + 1, stop.max(page + 1))));
    }
    let data = match rustix::fs::seek(upper, SeekFrom::Data(start)) {
        Ok(data) => data / PAGE,
        Err(Errno::NXIO) => stop,
        Err(errno) => return Err(errno),
    };
    Ok((false, data.clamp(page + 1, stop.max(page + 1))))
}
