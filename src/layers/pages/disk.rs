//! Page maps and their files: making, opening, writing, synchronising.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::format::{CHUNK, HEADER, Header, STRIDE, decode, encode, length_for};
use super::{
    Change, Chunk, Fingerprint, MapAccess, MapError, MapId, PageMap, Unsynced, WORDS, ones, place,
};

impl PageMap {
    /// Makes the map of a file that shows the first `base_limit` bytes of its base, and none of
    /// whose pages is its own. The file is named in the upper file only after this.
    ///
    /// # Errors
    /// EINVAL for a limit above the base's size; EEXIST when the name is taken; those of open(2)
    /// and pwrite(2).
    pub fn create(
        directory: impl AsFd,
        id: MapId,
        base: Fingerprint,
        base_limit: u64,
    ) -> Result<PageMap, Errno> {
        if base_limit > base.size || i64::try_from(base.size).is_err() {
            return Err(Errno::INVAL);
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&directory, id.to_string(), flags, mode)?;
        let lowered = (i64::MIN, 0);
        let header = Header { id, base_limit, base, firm_limit: base_limit, lowered };
        let map = PageMap::empty(file, MapAccess::Write, &header);
        let made = rustix::fs::ftruncate(&map.file, length_for(map.base_pages()));
        if let Err(err) = made.and_then(|()| map.save_limit()) {
            PageMap::remove(directory, id)?;
            return Err(err);
        }
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
        let flags = mode | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(directory, id.to_string(), flags, Mode::empty())?;
        let len = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        let mut header = [0; HEADER as usize];
        if read_at(&file, 0, &mut header)? < header.len() {
            return Err(MapError::Short { len, least: HEADER });
        }
        let mut map = PageMap::empty(file, access, &decode(&header)?);
        map.check_id(id)?;
        map.limit_saved = AtomicBool::new(true);
        let least = length_for(map.base_pages());
        if len < least {
            return Err(MapError::Short { len, least });
        }
        map.load(least)?;
        Ok(map)
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
            base_limit: header.base_limit,
            limit_saved: AtomicBool::new(false),
            dirty: AtomicBool::new(true),
            chunks: BTreeMap::new(),
            firm: BTreeMap::new(),
            touched: BTreeSet::new(),
            firm_limit: header.firm_limit,
            lowered: header.lowered,
            own: 0,
            tally: None,
        }
    }

    /// Removes a map from its directory.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn remove(directory: impl AsFd, id: MapId) -> Result<(), Errno> {
        rustix::fs::unlinkat(directory, id.to_string(), AtFlags::empty())
    }

    /// Reads the bitmaps, data only, up to `end` bytes.
    pub(super) fn load(&mut self, end: u64) -> Result<(), MapError> {
        let mut at = HEADER;
        while at < end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.max(at),
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).unwrap_or(end);
            let stop = hole.next_multiple_of(CHUNK).min(end);
            at = data - (data - HEADER) % STRIDE;
            while at < stop {
                self.load_chunk(at, end)?;
                at += STRIDE;
            }
        }
        let behind = self.base_pages();
        self.forget_from(behind);
        Ok(())
    }

    fn load_chunk(&mut self, at: u64, least: u64) -> Result<(), MapError> {
        let mut bytes = [0; STRIDE as usize];
        let count = read_at(&self.file, at, &mut bytes)?;
        if count < bytes.len() {
            return Err(MapError::Short { len: at + count as u64, least });
        }
        let (own, firm) = bytes.split_at(CHUNK as usize);
        let (own, firm) = (words_of(own), words_of(firm));
        let number = (at - HEADER) / STRIDE;
        if own != [0; WORDS] {
            self.own += ones(&own);
            self.chunks.insert(number, Box::new(own));
        }
        if firm != [0; WORDS] {
            self.firm.insert(number, Box::new(firm));
        }
        if own.iter().zip(&firm).any(|(own, firm)| own & !firm != 0) {
            self.touched.insert(number);
        }
        Ok(())
    }

    /// Changes the pages `start..end`, which are not none and lie in one chunk.
    pub(super) fn change_in_chunk(
        &mut self,
        start: u64,
        end: u64,
        change: Change,
    ) -> Result<(), Errno> {
        let (number, first, start_bit) = place(start);
        let (_, last, end_bit) = place(end - 1);
        let changed = |words: Option<&Box<Chunk>>, set: bool| {
            let mut words = words.map_or([0; WORDS], |words| **words);
            for (index, word) in words.iter_mut().enumerate().take(last + 1).skip(first) {
                let from = if index == first { start_bit } else { 0 };
                let to = if index == last { end_bit } else { 63 };
                let bits = u64::MAX << from & u64::MAX >> (63 - to);
                *word = if set { *word | bits } else { *word & !bits };
            }
            words
        };
        // Nothing is firm that is not set.
        if change == Change::Base {
            let words = changed(self.firm.get(&number), false);
            self.write_firm(number, words)?;
        }
        let before = self.chunks.get(&number).map_or([0; WORDS], |words| **words);
        let words = changed(self.chunks.get(&number), change != Change::Base);
        if words != before {
            let bytes = words.map(u64::to_le_bytes);
            let bytes = bytes.get(first..=last).unwrap_or_default().as_flattened();
            self.dirty.store(true, Ordering::Release);
            if before == [0; WORDS] && !self.firm.contains_key(&number) {
                // No fsync may fail for want of room for what it notes.
                write_at(&self.file, HEADER + number * STRIDE + CHUNK, &[0; CHUNK as usize])?;
            }
            write_at(&self.file, HEADER + number * STRIDE + first as u64 * 8, bytes)?;
            self.count_change(ones(&before), ones(&words));
            put(&mut self.chunks, number, words);
            if change == Change::Own {
                self.touched.insert(number);
            }
        }
        if change == Change::Zeros {
            let words = changed(self.firm.get(&number), true);
            self.write_firm(number, words)?;
        }
        Ok(())
    }

    fn write_firm(&mut self, number: u64, words: Chunk) -> Result<(), Errno> {
        let before = self.firm.get(&number).map_or([0; WORDS], |words| **words);
        if words == before {
            return Ok(());
        }
        self.dirty.store(true, Ordering::Release);
        let bytes = words.map(u64::to_le_bytes);
        write_at(&self.file, HEADER + number * STRIDE + CHUNK, bytes.as_flattened())?;
        put(&mut self.firm, number, words);
        Ok(())
    }

    /// What is not firm at this moment; the data is to be synchronised after it, and then
    /// [`PageMap::make_firm`] is due. `None` when there is nothing.
    pub fn unsynced(&self) -> Option<Unsynced> {
        let none = self.touched.is_empty() && self.firm_limit == self.base_limit;
        if none || self.access == MapAccess::Read {
            return None;
        }
        let chunk = |number: &u64| Some((*number, self.chunks.get(number)?.clone()));
        let chunks = self.touched.iter().filter_map(chunk).collect();
        Some(Unsynced { chunks, limit: self.base_limit })
    }

    /// Makes firm what was set when the synchronisation of the data began, and is still.
    ///
    /// # Errors
    /// Those of pwrite(2).
    pub fn make_firm(&mut self, seen: &Unsynced) -> Result<(), Errno> {
        if self.firm_limit != seen.limit {
            self.firm_limit = seen.limit;
            self.limit_saved.store(false, Ordering::Release);
            self.save_limit()?;
            let behind = seen.limit.div_ceil(super::PAGE);
            if let Err(err) = rustix::fs::ftruncate(&self.file, length_for(behind)) {
                log::debug!("shortening a page map: {err}"); // It is longer than it need be.
            }
        }
        for (number, then) in &seen.chunks {
            let now = self.chunks.get(number).map_or([0; WORDS], |words| **words);
            let mut words = self.firm.get(number).map_or([0; WORDS], |words| **words);
            for (word, (then, now)) in words.iter_mut().zip(then.iter().zip(&now)) {
                *word |= then & now;
            }
            self.write_firm(*number, words)?;
        }
        let (chunks, firm) = (&self.chunks, &self.firm);
        self.touched.retain(|number| {
            let Some(own) = chunks.get(number) else { return false };
            let Some(firm) = firm.get(number) else { return true };
            own.iter().zip(firm.iter()).any(|(own, firm)| own & !firm != 0)
        });
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
        self.dirty.store(true, Ordering::Release);
        write_at(&self.file, 0, &encode(&self.header()))?;
        self.limit_saved.store(true, Ordering::Release);
        Ok(())
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

fn words_of(bytes: &[u8]) -> Chunk {
    let mut chunk = [0; WORDS];
    for (word, bytes) in chunk.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    chunk
}

fn put(chunks: &mut BTreeMap<u64, Box<Chunk>>, number: u64, words: Chunk) {
    match words == [0; WORDS] {
        true => chunks.remove(&number),
        false => chunks.insert(number, Box::new(words)),
    };
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

/// fsync(2), or fdatasync(2) when only the data matters.
pub(in crate::layers) fn sync_file(file: &OwnedFd, data_only: bool) -> Result<(), Errno> {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
}
