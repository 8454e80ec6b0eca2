//! Page maps after the machine has stopped: bits whose data never reached the disk are taken away.
//!
//! A page of the upper file whose blocks were never written is a hole then, since filesystems show
//! blocks only when their data is there (ext4 in its default mode, xfs, btrfs).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::disk::read_at;
use super::format::{HEADER, Header, STRIDE, decode, length_for};
use super::{Fingerprint, MapAccess, MapError, MapId, PAGE, PageMap, WORDS};
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
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(directory, id.to_string(), flags, Mode::empty())?;
        let mut header = [0; HEADER as usize];
        read_at(&file, 0, &mut header)?;
        if header == [0; HEADER as usize] {
            let base = base()?;
            return PageMap::anew(file, id, upper, base).map(|()| Recovered::Anew);
        }
        let said = decode(&header)?;
        let changed = ctime_of(upper)?;
        // What lowers the limit is on the disk with the time that it left on the upper file.
        let lowered = changed >= said.lowered;
        let base_limit = if lowered { said.base_limit } else { said.firm_limit };
        let mut map = PageMap::empty(file, MapAccess::Write, &Header { base_limit, ..said });
        map.check_id(id)?;
        let least = length_for(map.base_pages().max(said.firm_limit.div_ceil(PAGE)));
        if u64::try_from(rustix::fs::fstat(&map.file)?.st_size).unwrap_or(0) < least {
            rustix::fs::ftruncate(&map.file, least)?;
        }
        map.load(least)?;
        let lost = map.take_unwritten(upper)?;
        if base_limit == said.base_limit && lost == Some(0) {
            return Ok(Recovered::Whole);
        }
        map.limit_saved.store(base_limit == said.base_limit, Ordering::Release);
        map.sync(false)?;
        Ok(Recovered::Without(lost.unwrap_or(0)))
    }

    /// A map that says what the upper file has.
    fn anew(file: OwnedFd, id: MapId, upper: &OwnedFd, base: Fingerprint) -> Result<(), MapError> {
        let base_limit = base.size.min(size_of(upper)?);
        let lowered = (i64::MIN, 0);
        let header = Header { id, base_limit, base, firm_limit: base_limit, lowered };
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
        Ok(map.sync(false)?)
    }

    /// Sets the bits that are firm, and takes those away that are not and whose pages were not
    /// written. Returns how many went; `None` when nothing went and something was set.
    fn take_unwritten(&mut self, upper: &OwnedFd) -> Result<Option<u64>, Errno> {
        let pages = self.base_pages();
        let mut missing = Vec::new();
        for (number, firm) in &self.firm {
            let own = self.chunks.get(number).map_or([0; WORDS], |words| **words);
            for page in bits(*number, |word| firm[word] & !own[word]) {
                missing.push(page);
            }
        }
        missing.retain(|page| *page < pages);
        for page in &missing {
            self.set(*page..page + 1)?;
        }
        let mut unwritten = Vec::new();
        for number in &self.touched {
            let Some(own) = self.chunks.get(number) else { continue };
            let firm = self.firm.get(number).map_or([0; WORDS], |words| **words);
            let mut known = (false, 0);
            for page in bits(*number, |word| own[word] & !firm[word]) {
                if page >= known.1 {
                    known = written(upper, page, pages)?;
                }
                if !known.0 {
                    unwritten.push(page);
                }
            }
        }
        for page in &unwritten {
            self.clear(*page..page + 1)?;
        }
        let lost = unwritten.len() as u64;
        Ok((lost > 0 || missing.is_empty()).then_some(lost))
    }
}

/// The pages of a chunk whose bit is set.
fn bits(chunk: u64, word: impl Fn(usize) -> u64) -> impl Iterator<Item = u64> {
    let first = chunk * (STRIDE / 2) * 8;
    (0..WORDS).flat_map(move |index| {
        let word = word(index);
        let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
        set.map(move |bit| first + index as u64 * 64 + bit)
    })
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
