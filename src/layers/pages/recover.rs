//! Recovery of page maps after the machine has stopped: clears the present bits of pages whose data
//! never reached the disk.
//!
//! A page of the upper file whose data never reached the disk is a hole then, since filesystems
//! expose blocks only after their data is written (ext4 in its default mode, xfs, btrfs).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use super::disk::{latest_valid, open_file, read_at};
use super::format::{Bits, Header, RECORD, TURN_PAGES, Turn, WORDS, length_for};
use super::{Fingerprint, MapAccess, MapError, MapId, PAGE, PageMap, UpperId};
use crate::layers::base::{ctime_of, size_of};

/// Result of the recovery of a page map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The map was valid as it was.
    Whole,
    /// The map was corrected. This many present pages had no data on the disk, and are the base's
    /// again; it is 0 where only a header, a turn or the limit was corrected.
    Without(u64),
    /// No header was on the disk; the map was made anew from the data of the upper file.
    Anew,
}

impl PageMap {
    /// Recovers the map of `upper` after the machine has stopped. `base` gives the fingerprint of
    /// the base if no header of the map is on the disk.
    ///
    /// # Errors
    /// As [`PageMap::open`]; errors of `base`, pwrite(2) and fsync(2).
    pub fn recover(
        directory: impl AsFd,
        id: MapId,
        upper: &OwnedFd,
        base: impl FnOnce() -> Result<Fingerprint, Errno>,
    ) -> Result<Recovered, MapError> {
        let file = open_file(directory, id, OFlags::RDWR)?;
        let mut headers = [[0; RECORD as usize]; 2];
        read_at(&file, 0, headers.as_flattened_mut())?;
        let (Some(header), both) = latest_valid(&headers)? else {
            let base = base()?;
            return PageMap::anew(file, id, upper, base).map(|()| Recovered::Anew);
        };
        let changed = ctime_of(upper)?;
        // The change that lowered the limit is on the disk if its ctime is.
        let lowered = changed >= header.lowered;
        let lower_visible_len =
            if lowered { header.lower_visible_len } else { header.synced_limit };
        let mut map =
            PageMap::empty(file, MapAccess::Write, &Header { lower_visible_len, ..header });
        map.check_id(id)?;
        let least = length_for(map.base_pages().max(header.synced_limit.div_ceil(PAGE)));
        if u64::try_from(rustix::fs::fstat(&map.file)?.st_size).unwrap_or(0) < least {
            rustix::fs::ftruncate(&map.file, least)?;
        }
        let torn = map.load(least)?;
        // Turns that the header counts may not have reached the disk.
        let counted = map.written.len() as u64 >= header.turns;
        let (lost, changed) = map.clear_unwritten(upper, &torn)?;
        if counted
            && lower_visible_len == header.lower_visible_len
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

    /// Makes the map anew: each page that is data in the upper file is present.
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
            synced_limit: lower_visible_len,
            lowered,
            turns: 0,
        };
        rustix::fs::ftruncate(&file, 0)?;
        let mut map = PageMap::empty(file, MapAccess::Write, &header);
        rustix::fs::ftruncate(&map.file, length_for(map.base_pages()))?;
        let (mut at, pages) = (0, map.base_pages());
        while at < pages {
            let (is_data, stop) = data_run(upper, at, pages)?;
            if is_data {
                map.set(at..stop)?;
            }
            at = stop;
        }
        map.write_headers()?;
        Ok(map.sync(false)?)
    }

    /// Sets the present bit of each synced page, and clears it for each page that is neither synced
    /// nor data in the upper file. A `torn` turn is a mix of its old and its new version: there a
    /// synced bit without its present bit proves nothing. Returns the number of present bits that
    /// were cleared, and whether a turn was rewritten.
    fn clear_unwritten(&mut self, upper: &OwnedFd, torn: &[u64]) -> Result<(u64, bool), Errno> {
        let pages = self.base_pages();
        let (mut lost, mut changed) = (0, false);
        let numbers: Vec<u64> = self.turns.keys().copied().chain(torn.iter().copied()).collect();
        let mut known = Extent::default();
        for number in numbers {
            let mut turn = self.turn(number);
            let before = turn;
            let doubtful = torn.contains(&number);
            for page in bits(number, &before, |present, synced| present ^ synced) {
                let (word, bit) = ((page % TURN_PAGES / 64) as usize, 1 << (page % 64));
                if page >= pages {
                    continue;
                }
                let present = before.present[word] & bit != 0;
                let keeps = (!present && !doubtful) || known.has(upper, page, pages)?;
                match keeps {
                    true => turn.present[word] |= bit,
                    false => {
                        turn.present[word] &= !bit;
                        turn.synced[word] &= !bit;
                        lost += u64::from(present);
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

    /// Checks that present pages which are not synced have data in the upper file. They have it
    /// unless the machine has stopped or the scratch is damaged.
    ///
    /// # Errors
    /// [`MapError::Missing`] for the first page without data; errors of lseek(2).
    pub fn check_data(&self, upper: &OwnedFd) -> Result<(), MapError> {
        let pages = self.base_pages().min(size_of(upper)?.div_ceil(PAGE));
        let mut data_to = 0;
        for number in &self.touched {
            let turn = self.turn(*number);
            for page in bits(*number, &turn, |present, synced| present & !synced) {
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

/// Pages of turn `number` whose bit is set in `word(present bits, synced bits)`.
fn bits(number: u64, turn: &Turn, word: impl Fn(u64, u64) -> u64) -> impl Iterator<Item = u64> {
    let words: Bits = std::array::from_fn(|index| word(turn.present[index], turn.synced[index]));
    (0..WORDS).flat_map(move |index| {
        let word = words[index];
        let first = number * TURN_PAGES + index as u64 * 64;
        (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
    })
}

/// Run of data pages or other pages that was found last.
#[derive(Default)]
struct Extent {
    data: bool,
    start: u64,
    end: u64,
}

impl Extent {
    /// Whether all of a page is data. Runs are looked up as far as page `stop`.
    fn has(&mut self, upper: &OwnedFd, page: u64, stop: u64) -> Result<bool, Errno> {
        if page < self.start || page >= self.end {
            let (data, end) = data_run(upper, page, stop)?;
            *self = Extent { data, start: page, end };
        }
        Ok(self.data)
    }
}

/// End of the run of pages from `page` on each of which has some data; `None` if `page` has none.
/// Where blocks are smaller than pages, a part of a page may be a hole.
fn data_at(upper: &OwnedFd, page: u64) -> Result<Option<u64>, Errno> {
    let data = match rustix::fs::seek(upper, SeekFrom::Data(page * PAGE)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // A filesystem without SEEK_DATA: the whole file counts as data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(u64::MAX)),
        Err(errno) => return Err(errno),
    };
    if data >= (page + 1) * PAGE {
        return Ok(None);
    }
    let hole = rustix::fs::seek(upper, SeekFrom::Hole(data))?;
    Ok(Some(hole.div_ceil(PAGE)))
}

/// Whether all of a page is data, and the end of the run of pages for which that is equal, at most
/// `stop`.
fn data_run(upper: &OwnedFd, page: u64, stop: u64) -> Result<(bool, u64), Errno> {
    let size = size_of(upper)?;
    let start = page * PAGE;
    let end = (start + PAGE).min(size);
    if start >= size {
        return Ok((false, stop));
    }
    let hole = match rustix::fs::seek(upper, SeekFrom::Hole(start)) {
        Ok(hole) => hole,
        // A filesystem without SEEK_HOLE: the whole file counts as data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((true, stop)),
        Err(errno) => return Err(errno),
    };
    if hole >= end {
        let end = if hole >= size { size.div_ceil(PAGE) } else { hole / PAGE };
        return Ok((true, end.clamp(page + 1, stop.max(page + 1))));
    }
    let data = match rustix::fs::seek(upper, SeekFrom::Data(start)) {
        Ok(data) => data / PAGE,
        Err(Errno::NXIO) => stop,
        Err(errno) => return Err(errno),
    };
    Ok((false, data.clamp(page + 1, stop.max(page + 1))))
}
