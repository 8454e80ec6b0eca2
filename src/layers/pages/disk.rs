//! Files of page maps: creation, opening, writing, synchronisation.

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
use crate::error::cause::when;
use crate::sys::beneath;

impl PageMap {
    /// Creates a map without a present page for a file that shows the first `lower_visible_len`
    /// bytes of its base. The caller sets the overlay xattr that names the map after this call.
    ///
    /// # Errors
    /// EINVAL for a limit above the base's size; EEXIST when a map has this id; errors of open(2)
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
            synced_limit: lower_visible_len,
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
    /// ENOENT when there is none; errors of open(2) and read(2); another [`MapError`] when the file
    /// is not a valid map.
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
        let header = sound(&headers)?;
        let mut map = PageMap::empty(file, access, &header);
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
            None if found < header.turns => Err(MapError::Gone { written: header.turns, found }),
            None => Ok(map),
        }
    }

    /// Refuses a map whose header has another id than its file name.
    pub(super) fn check_id(&self, id: MapId) -> Result<(), MapError> {
        match self.id == id {
            true => Ok(()),
            false => Err(MapError::Damaged { what: "it is the map of another file" }),
        }
    }

    /// Map with this header and no bit set.
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
            synced_limit: header.synced_limit,
            lowered: header.lowered,
            present: 0,
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

    /// Reads the turns before byte `end` of the file, skipping holes. Returns the numbers of the
    /// turns whose checksum is wrong; their bits are taken as they are.
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

    /// Reads one turn. Returns its number if its checksum is wrong.
    fn load_turn(&mut self, number: u64, record: &Record) -> Option<u64> {
        let (turn, sound) = Turn::decode(record, self.id, number);
        if *record != NEVER_WRITTEN && Turn::is_never_zeros(self.id, number) {
            self.written.insert(number);
        }
        self.present += ones(&turn.present);
        if has_unsynced(&turn) {
            self.touched.insert(number);
        }
        if turn != Turn::NONE {
            self.turns.insert(number, Box::new(turn));
        }
        (!sound).then_some(number)
    }

    /// Changes the pages `start..end`, a range that is not empty and lies in one turn.
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
            let (present, synced) = (&mut turn.present[index], &mut turn.synced[index]);
            match change {
                Change::Present => *present |= bits,
                Change::Zeros => (*present, *synced) = (*present | bits, *synced | bits),
                // A page that is not present is not synced.
                Change::Base => (*present, *synced) = (*present & !bits, *synced & !bits),
            }
        }
        self.write_turn(number, turn)
    }

    /// Bits of a turn.
    pub(super) fn turn(&self, number: u64) -> Turn {
        self.turns.get(&number).map_or(Turn::NONE, |turn| **turn)
    }

    /// Writes a turn if it differs from the one in memory.
    fn write_turn(&mut self, number: u64, turn: Turn) -> Result<(), Errno> {
        if turn == self.turn(number) { Ok(()) } else { self.rewrite_turn(number, turn) }
    }

    /// Writes a turn with its checksum, changed or not.
    pub(super) fn rewrite_turn(&mut self, number: u64, turn: Turn) -> Result<(), Errno> {
        self.dirty.store(true, Ordering::Release);
        write_at(&self.file, offset_of(number), &turn.encode(self.id, number))?;
        self.count_turn(number);
        self.count_change(ones(&self.turn(number).present), ones(&turn.present));
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

    /// Counts a turn in the header at its first write, so that zeros in its place are detected. If
    /// the header cannot be written, the next one has the count.
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
            log::debug!("writing the number of turns to a page map: {err}");
        }
    }

    /// Present bits and limit that are not synced; `None` when all are. The caller synchronises the
    /// data of the upper file after this call, and then calls [`PageMap::sync_bits`].
    pub fn unsynced(&self) -> Option<Unsynced> {
        let none = self.touched.is_empty() && self.synced_limit == self.lower_visible_len;
        if none || self.access == MapAccess::Read {
            return None;
        }
        let turns =
            self.touched.iter().map(|number| (*number, self.turn(*number).present)).collect();
        Some(Unsynced { turns, limit: self.lower_visible_len })
    }

    /// Sets the synced bits of pages that are in `seen` and still present, and the synced limit.
    ///
    /// # Errors
    /// Errors of pwrite(2).
    pub fn sync_bits(&mut self, seen: &Unsynced) -> Result<(), Errno> {
        if self.synced_limit != seen.limit {
            self.synced_limit = seen.limit;
            self.limit_saved.store(false, Ordering::Release);
            self.save_limit()?;
            let behind = seen.limit.div_ceil(super::PAGE);
            if let Err(err) = rustix::fs::ftruncate(&self.file, length_for(behind)) {
                log::debug!("shortening a page map: {err}"); // A longer map is valid.
            }
        }
        for (number, then) in &seen.turns {
            let mut turn = self.turn(*number);
            let present = then.iter().zip(&turn.present);
            for (synced, (then, now)) in turn.synced.iter_mut().zip(present) {
                *synced |= then & now;
            }
            self.write_turn(*number, turn)?;
        }
        Ok(())
    }

    /// Writes a header if the one on disk is out of date. The limit on disk has to be up to date
    /// before the upper file grows again.
    ///
    /// # Errors
    /// Errors of pwrite(2).
    pub fn save_limit(&self) -> Result<(), Errno> {
        if self.limit_saved.load(Ordering::Acquire) {
            return Ok(());
        }
        // The older header is overwritten, so the other one stays valid if the machine stops in the
        // middle of the write. The sequence number moves after the write has succeeded.
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

    /// Makes a changed map durable. The caller has synchronised the data of the upper file.
    ///
    /// # Errors
    /// Errors of pwrite(2) and fsync(2).
    pub fn sync(&self, data_only: bool) -> Result<(), Errno> {
        let Some(file) = self.take_unsynced()? else { return Ok(()) };
        let synced = sync_file(&file, data_only);
        if synced.is_err() {
            self.still_unsynced();
        }
        synced
    }

    /// Returns the file of the map if it was changed since the last call. The caller synchronises
    /// it without holding the map, and calls [`PageMap::still_unsynced`] if that fails.
    pub(in crate::layers) fn take_unsynced(&self) -> Result<Option<Arc<OwnedFd>>, Errno> {
        self.save_limit()?;
        let taken = self.dirty.swap(false, Ordering::AcqRel);
        Ok(taken.then(|| Arc::clone(&self.file)))
    }

    /// Marks the map as changed since its last synchronisation.
    pub(in crate::layers) fn still_unsynced(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// Allocated size of the map's file, in bytes.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn stored(&self) -> Result<u64, Errno> {
        Ok(u64::try_from(rustix::fs::fstat(&self.file)?.st_blocks).unwrap_or(0) * 512)
    }
}

fn has_unsynced(turn: &Turn) -> bool {
    turn.present.iter().zip(&turn.synced).any(|(present, synced)| present & !synced != 0)
}

/// The later of two valid headers of one map.
///
/// # Errors
/// One of them is not valid, or they do not belong together.
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

/// The later valid header after the machine has stopped, and whether both are valid. The header is
/// `None` if neither was ever written.
pub(super) fn latest_valid(headers: &[Record; 2]) -> Result<(Option<Header>, bool), MapError> {
    let found = [decode(&headers[0]), decode(&headers[1])];
    let both = sound(headers).is_ok();
    let later = found.iter().flatten().flatten().max_by_key(|header| header.sequence).copied();
    match (later, found) {
        (Some(later), _) => Ok((Some(later), both)),
        (None, [Err(err), _] | [_, Err(err)]) => Err(err),
        (None, _) => Ok((None, false)),
    }
}

/// Reads with pread(2) until the buffer is full or the file ends; returns the bytes read.
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
            Err(err) => return Err(when(Errno::IO, "a file of a layer cannot be read")(err)),
        }
    }
    Ok(done)
}

/// Writes with pwrite(2) until all is written.
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

/// Opens the file of a map. Its file type and link count are checked: anything may lie there.
///
/// # Errors
/// `Damaged` if it is not a regular file or has another hard link; errors of open(2).
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

/// Calls fdatasync(2) if `data_only`, else fsync(2).
pub(in crate::layers) fn sync_file(file: &OwnedFd, data_only: bool) -> Result<(), Errno> {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
}
