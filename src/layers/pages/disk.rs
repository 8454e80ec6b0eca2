//! Page maps and their files: making, opening, writing, synchronising.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::format::{CHUNK, HEADER, decode, encode, length_for};
use super::{Fingerprint, MapAccess, MapError, MapId, PageMap, WORDS, ones, place};

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
        let map = PageMap {
            file: Arc::new(file),
            access: MapAccess::Write,
            base,
            base_limit,
            limit_saved: AtomicBool::new(false),
            dirty: AtomicBool::new(true),
            chunks: BTreeMap::new(),
            own: 0,
            tally: None,
        };
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
        let (base_limit, base) = decode(&header)?;
        let mut map = PageMap {
            file: Arc::new(file),
            access,
            base,
            base_limit,
            limit_saved: AtomicBool::new(true),
            dirty: AtomicBool::new(true),
            chunks: BTreeMap::new(),
            own: 0,
            tally: None,
        };
        let least = length_for(map.base_pages());
        if len < least {
            return Err(MapError::Short { len, least });
        }
        map.load(least)?;
        Ok(map)
    }

    /// Removes a map from its directory.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn remove(directory: impl AsFd, id: MapId) -> Result<(), Errno> {
        rustix::fs::unlinkat(directory, id.to_string(), AtFlags::empty())
    }

    /// Reads the bitmap, data only, up to `end` bytes.
    fn load(&mut self, end: u64) -> Result<(), MapError> {
        let mut at = HEADER;
        while at < end {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data - data % CHUNK,
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data.max(at))).unwrap_or(end);
            let stop = hole.next_multiple_of(CHUNK).min(end);
            at = data.max(at);
            while at < stop {
                self.load_chunk(at, end)?;
                at += CHUNK;
            }
        }
        let behind = self.base_pages();
        self.forget_from(behind);
        Ok(())
    }

    fn load_chunk(&mut self, at: u64, least: u64) -> Result<(), MapError> {
        let mut bytes = [0; CHUNK as usize];
        let count = read_at(&self.file, at, &mut bytes)?;
        if count < bytes.len() {
            return Err(MapError::Short { len: at + count as u64, least });
        }
        let mut chunk = [0; WORDS];
        for (word, bytes) in chunk.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if chunk != [0; WORDS] {
            self.own += ones(&chunk);
            self.chunks.insert((at - HEADER) / CHUNK, Box::new(chunk));
        }
        Ok(())
    }

    /// Sets or clears the pages `start..end`, which are not none and lie in one chunk.
    pub(super) fn change_in_chunk(&mut self, start: u64, end: u64, own: bool) -> Result<(), Errno> {
        let (number, first, start_bit) = place(start);
        let (_, last, end_bit) = place(end - 1);
        let before = self.chunks.get(&number).map_or([0; WORDS], |words| **words);
        let mut words = before;
        for (index, word) in words.iter_mut().enumerate().take(last + 1).skip(first) {
            let from = if index == first { start_bit } else { 0 };
            let to = if index == last { end_bit } else { 63 };
            let bits = u64::MAX << from & u64::MAX >> (63 - to);
            *word = if own { *word | bits } else { *word & !bits };
        }
        if words == before {
            return Ok(());
        }
        let bytes = words.map(u64::to_le_bytes);
        let changed = bytes.get(first..=last).unwrap_or_default().as_flattened();
        let offset = HEADER + number * CHUNK + first as u64 * 8;
        self.dirty.store(true, Ordering::Release);
        write_at(&self.file, offset, changed)?;
        self.count_change(ones(&before), ones(&words));
        match words == [0; WORDS] {
            true => self.chunks.remove(&number),
            false => self.chunks.insert(number, Box::new(words)),
        };
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
        write_at(&self.file, 0, &encode(self.base_limit, &self.base))?;
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
