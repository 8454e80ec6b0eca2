//! Page maps and their files: making, opening, writing, synchronising.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::format::{
    HEADER, Header, NEVER_WRITTEN, RECORD, Record, TURN_PAGES, Turn, decode, encode, length_for,
    offset_of,
};
use super::{Change, Fingerprint, MapAccess, MapError, MapId, PageMap, Unsynced, UpperId};
use super::{ones, place};
use crate::sys::beneath;

impl PageMap {
    /// Makes the map of a file that shows the first `lower_visible_len` bytes of its base, and none of
    /// whose pages is its own. The file is named in the upper file only after this.
    ///
    /// # Errors
    /// EINVAL for a limit above the base's size; EEXIST when the name is taken; those of open(2)
    /// and pwrite(2).
    pub fn create(
        directory: impl AsFd,
        id: MapId,
        base: Fingerprint,
        lower_visible_len: u64,
        upper: UpperId,
    ) -> Result<PageMap, Errno> {
        if lower_visible_len > base.size || i64::try_from(base.size).is_err() {
            return Err(Errno::INVAL);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&directory, id.to_string(), flags, mode)?;
        let lowered = (i64::MIN, 0);
        let header = Header {
            id,
            sequence: 0,
            lower_visible_len,
            base,
            upper,
            firm_limit: lower_visible_len,
            lowered,
            turns: 0,
        };
        let mut map = PageMap::empty(file, MapAccess::Write, &header);
        let made = rustix::fs::ftruncate(&map.file, length_for(map.base_pages()));
        if let Err(err) = made.and_then(|()| map.write_headers()) {
            PageMap::remove(directory, id)?;
            return Err(err);
        }
        map.has_headers = true;
        Ok(map)
    }

    /// Opens a map.
    ///
    /// # Errors
    /// ENOENT when there is none, those of open(2) and read(2); that it is not a map, or not a
    /// whole one.
    pub fn open(directory: impl AsFd, id: MapId, access: MapAccess) -> Result<PageMap, MapError> {
        let mode = match access {
            MapAccess::Read => OFlags::RDONLY,
            MapAccess::Write => OFlags::RDWR,
        };
        let file = open_file(directory, id, mode)?;
        let len = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let mut headers = [[0; RECORD as usize]; 2];
        if read_at(&file, 0, headers.as_flattened_mut())? < HEADER as usize {
            return match decode(&headers[0]) {
                // A map of another version may be shorter.
                Err(err @ (MapError::Older { .. } | MapError::Newer { .. })) => Err(err),
                _ => Err(MapError::Short { len, least: HEADER }),
            };
        }
        let said = sound(&headers)?;
        let mut map = PageMap::empty(file, access, &said);
        map.check_id(id)?;
        map.limit_saved = AtomicBool::new(true);
        map.has_headers = true;
        let least = length_for(map.base_pages());
        if len < least {
            return Err(MapError::Short { len, least });
        }
        let torn = map.load(least)?;
        let found = map.written.len() as u64;
        match torn.first() {
            Some(number) => Err(MapError::Turn { page: number * TURN_PAGES }),
            None if found < said.turns => Err(MapError::Gone { written: said.turns, found }),
            None => Ok(map),
        }
    }

    /// A map under the name of another is that of another file.
    pub(super) fn check_id(&self, id: MapId) -> Result<(), MapError> {
        match self.id == id {
            true => Ok(()),
            false => Err(MapError::Damaged { what: "it is the map of another file" }),
        }
    }

    /// A map without a bit.
    pub(super) fn empty(file: OwnedFd, access: MapAccess, header: &Header) -> PageMap {
        PageMap {
            file: Arc::new(file),
            access,
            id: header.id,
            base: header.base,
            upper: header.upper,
            sequence: AtomicU64::new(header.sequence),
            saving: Mutex::new(()),
            lower_visible_len: header.lower_visible_len,
            limit_saved: AtomicBool::new(false),
            has_headers: false,
            written: BTreeSet::new(),
            dirty: AtomicBool::new(true),
            turns: BTreeMap::new(),
            touched: BTreeSet::new(),
            firm_limit: header.firm_limit,
            lowered: header.lowered,
            own: 0,
            shown: Arc::new(AtomicU64::new(header.lower_visible_len.div_ceil(super::PAGE))),
            tally: None,
        }
    }

    /// Removes a map from its directory.
    ///
    /// # Errors
    /// Errors of unlink(2).
    pub fn remove(directory: impl AsFd, id: MapId) -> Result<(), Errno> {
        rustix::fs::unlinkat(directory, id.to_string(), AtFlags::empty())
    }

    /// Reads the turns, data only, up to `end` bytes. Returns the numbers of those whose checksum
    /// is wrong, which are read as they are.
    pub(super) fn load(&mut self, end: u64) -> Result<Vec<u64>, MapError> {
        let (mut at, mut torn) = (HEADER, Vec::new());
        while at < end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.max(at),
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).unwrap_or(end);
            let stop = hole.max(data + 1).next_multiple_of(RECORD).min(end);
            at = data - data % RECORD;
            while at < stop {
                let mut record = [0; RECORD as usize];
                let count = read_at(&self.file, at, &mut record)?;
                if count < record.len() {
                    return Err(MapError::Short { len: at + count as u64, least: end });
                }
                torn.extend(self.load_turn((at - HEADER) / RECORD, &record));
                at += RECORD;
            }
        }
        let behind = self.base_pages();
        self.forget_from(behind);
        Ok(torn)
    }

    /// Returns the number of the turn where its checksum is wrong.
    fn load_turn(&mut self, number: u64, record: &Record) -> Option<u64> {
        let (turn, sound) = Turn::decode(record, self.id, number);
        if *record != NEVER_WRITTEN && Turn::is_never_zeros(self.id, number) {
            self.written.insert(number);
        }
        self.own += ones(&turn.own);
        if has_unsynced(&turn) {
            self.touched.insert(number);
        }
        if turn != Turn::NONE {
            self.turns.insert(number, Box::new(turn));
        }
        (!sound).then_some(number)
    }

    /// Changes the pages `start..end`, which are not none and lie in one turn.
    pub(super) fn change_in_turn(
        &mut self,
        start: u64,
        end: u64,
        change: Change,
    ) -> Result<(), Errno> {
        let (number, first, start_bit) = place(start);
        let (_, last, end_bit) = place(end - 1);
        let mut turn = self.turn(number);
        for index in first..=last {
            let from = if index == first { start_bit } else { 0 };
            let to = if index == last { end_bit } else { 63 };
            let bits = u64::MAX << from & u64::MAX >> (63 - to);
            let (own, synced) = (&mut turn.own[index], &mut turn.synced[index]);
            match change {
                Change::Own => *own |= bits,
                Change::Zeros => (*own, *synced) = (*own | bits, *synced | bits),
                // Nothing is synced that is not set.
                Change::Base => (*own, *synced) = (*own & !bits, *synced & !bits),
            }
        }
        self.write_turn(number, turn)
    }

    /// The bits of a turn.
    pub(super) fn turn(&self, number: u64) -> Turn {
        self.turns.get(&number).map_or(Turn::NONE, |turn| **turn)
    }

    /// Writes a turn where it has changed.
    fn write_turn(&mut self, number: u64, turn: Turn) -> Result<(), Errno> {
        if turn == self.turn(number) { Ok(()) } else { self.rewrite_turn(number, turn) }
    }

    /// Writes a turn, with its checksum.
    pub(super) fn rewrite_turn(&mut self, number: u64, turn: Turn) -> Result<(), Errno> {
        self.dirty.store(true, Ordering::Release);
        write_at(&self.file, offset_of(number), &turn.encode(self.id, number))?;
        self.count_turn(number);
        self.count_change(ones(&self.turn(number).own), ones(&turn.own));
        match has_unsynced(&turn) {
            true => self.touched.insert(number),
            false => self.touched.remove(&number),
        };
        match turn == Turn::NONE {
            true => self.turns.remove(&number),
            false => self.turns.insert(number, Box::new(turn)),
        };
        Ok(())
    }

    /// Notes in the header that a turn was written for the first time, which zeros in its place would
    /// say it was not. Where that fails the next header has it.
    fn count_turn(&mut self, number: u64) {
        if self.written.contains(&number) || !Turn::is_never_zeros(self.id, number) {
            return;
        }
        self.written.insert(number);
        if !self.has_headers {
            return;
        }
        self.limit_saved.store(false, Ordering::Release);
        if let Err(err) = self.save_limit() {
            log::debug!("counting the records of a page map: {err}");
        }
    }

    /// What is not synced at this moment; the data is to be synchronised after it, and then
    /// [`PageMap::sync_bits`] is due. `None` when there is nothing.
    pub fn unsynced(&self) -> Option<Unsynced> {
        let none = self.touched.is_empty() && self.firm_limit == self.lower_visible_len;
        if none || self.access == MapAccess::Read {
            return None;
        }
        let turns = self.touched.iter().map(|number| (*number, self.turn(*number).own)).collect();
        Some(Unsynced { turns, limit: self.lower_visible_len })
    }

    /// Makes synced what was set when the synchronisation of the data began, and is still.
    ///
    /// # Errors
    /// Those of pwrite(2).
    pub fn sync_bits(&mut self, seen: &Unsynced) -> Result<(), Errno> {
        if self.firm_limit != seen.limit {
            self.firm_limit = seen.limit;
            self.limit_saved.store(false, Ordering::Release);
            self.save_limit()?;
            let behind = seen.limit.div_ceil(super::PAGE);
            if let Err(err) = rustix::fs::ftruncate(&self.file, length_for(behind)) {
                log::debug!("shortening a page map: {err}"); // It is longer than it need be.
            }
        }
        for (number, then) in &seen.turns {
            let mut turn = self.turn(*number);
            for (synced, (then, own)) in turn.synced.iter_mut().zip(then.iter().zip(&turn.own)) {
                *synced |= then & own;
            }
            self.write_turn(*number, turn)?;
        }
        Ok(())
    }

    /// Sees to it that the limit on disk is the present one, as it has to be before the upper file
    /// grows again.
    ///
    /// # Errors
    /// Those of pwrite(2).
    pub fn save_limit(&self) -> Result<(), Errno> {
        if self.limit_saved.load(Ordering::Acquire) {
            return Ok(());
        }
        // One header at a time: the other stays what it is, should the machine stop in the middle
        // of this one, and a number counts once its header is written.
        let _saving = self.saving.lock();
        if self.limit_saved.load(Ordering::Acquire) {
            return Ok(());
        }
        self.dirty.store(true, Ordering::Release);
        let mut header = self.header();
        header.sequence += 1;
        write_at(&self.file, header.sequence % 2 * RECORD, &encode(&header))?;
        self.sequence.store(header.sequence, Ordering::Relaxed);
        self.limit_saved.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes both headers.
    pub(super) fn write_headers(&self) -> Result<(), Errno> {
        self.limit_saved.store(false, Ordering::Release);
        self.save_limit()?;
        self.limit_saved.store(false, Ordering::Release);
        self.save_limit()
    }

    /// Makes the map durable, if it was changed. The data of the upper file comes first.
    ///
    /// # Errors
    /// Those of pwrite(2) and fsync(2).
    pub fn sync(&self, data_only: bool) -> Result<(), Errno> {
        let Some(file) = self.take_unsynced()? else { return Ok(()) };
        let synced = sync_file(&file, data_only);
        if synced.is_err() {
            self.still_unsynced();
        }
        synced
    }

    /// The file, if it was changed since it was taken the last time: to be synchronised by who
    /// does not want to hold the map so long. When that fails, [`PageMap::still_unsynced`] is due.
    pub(in crate::layers) fn take_unsynced(&self) -> Result<Option<Arc<OwnedFd>>, Errno> {
        self.save_limit()?;
        let taken = self.dirty.swap(false, Ordering::AcqRel);
        Ok(taken.then(|| Arc::clone(&self.file)))
    }

    pub(in crate::layers) fn still_unsynced(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Bytes that the map takes on its filesystem.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn stored(&self) -> Result<u64, Errno> {
        Ok(u64::try_from(rustix::fs::fstat(&self.file)?.st_blocks).unwrap_or(0) * 512)
    }
}

fn has_unsynced(turn: &Turn) -> bool {
    turn.own.iter().zip(&turn.synced).any(|(own, synced)| own & !synced != 0)
}

/// The header that counts, of a map of which both are whole.
pub(super) fn sound(headers: &[Record; 2]) -> Result<Header, MapError> {
    let missing = MapError::Damaged { what: "one of its headers is missing" };
    let first = decode(&headers[0])?.ok_or(MapError::Magic)?;
    let second = decode(&headers[1])?.ok_or(missing)?;
    let (older, later) = match first.sequence < second.sequence {
        true => (first, second),
        false => (second, first),
    };
    let follows = older.sequence + 1 == later.sequence && first.sequence % 2 == 0;
    let alike = (older.id, older.upper) == (later.id, later.upper)
        && older.base.is_of_file(&later.base)
        && older.base.size == later.base.size;
    match follows && alike {
        true => Ok(later),
        false => Err(MapError::Damaged { what: "its headers do not belong together" }),
    }
}

/// The later header of those that are whole, after the machine has stopped; `None` where neither
/// was ever written. And whether both are.
pub(super) fn whole(headers: &[Record; 2]) -> Result<(Option<Header>, bool), MapError> {
    let found = [decode(&headers[0]), decode(&headers[1])];
    let both = sound(headers).is_ok();
    let later = found.iter().flatten().flatten().max_by_key(|header| header.sequence).copied();
    match (later, found) {
        (Some(later), _) => Ok((Some(later), both)),
        (None, [Err(err), _] | [_, Err(err)]) => Err(err),
        (None, _) => Ok((None, false)),
    }
}

/// pread(2) until the buffer is full or the file ends.
pub(in crate::layers) fn read_at(
    file: &OwnedFd,
    offset: u64,
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(file, rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(done)
}

/// pwrite(2) until all is written.
fn write_at(file: &OwnedFd, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pwrite(file, rest, offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// Opens the file of a map: somebody may have put anything in its place.
///
/// # Errors
/// It is not a regular file, or one that has other names; those of open(2).
pub(super) fn open_file(
    directory: impl AsFd,
    id: MapId,
    mode: OFlags,
) -> Result<OwnedFd, MapError> {
    let damaged = MapError::Damaged { what: "it is not a regular file of one name" };
    let name = CString::new(id.to_string()).map_err(|_| Errno::INVAL)?;
    let file = match beneath::open(directory, &name, mode, Mode::empty()) {
        Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Err(damaged),
        file => file?,
    };
    let found = rustix::fs::fstat(&file)?;
    let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
    if is_file && found.st_nlink <= 1 { Ok(file) } else { Err(damaged) }
}

/// fsync(2), or fdatasync(2) when only the data matters.
pub(in crate::layers) fn sync_file(file: &OwnedFd, data_only: bool) -> Result<(), Errno> {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
}
