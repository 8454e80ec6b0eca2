//! What a merged file lies over: a plain file, or another merged one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::merged::Merged;
use super::pages::read_at;
use crate::volume::SeekTo;

/// The file below a merged file. It is read only, and by pread(2): whoever opens it sees to it that
/// reading moves no times (O_NOATIME).
#[derive(Debug, Clone)]
pub enum Base {
    /// One whole layer.
    File(Arc<OwnedFd>),
    /// A stack of layers, the topmost of them frozen.
    Layers(Arc<Merged>),
}

impl Base {
    /// Size in bytes at this moment.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn size(&self) -> Result<u64, Errno> {
        match self {
            Base::File(file) => size_of(file),
            Base::Layers(merged) => merged.size(),
        }
    }

    /// What `st_blocks` of it says, in units of 512 bytes.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn blocks(&self) -> Result<u64, Errno> {
        match self {
            Base::File(file) => blocks_of(file),
            Base::Layers(merged) => merged.blocks(),
        }
    }

    /// Fills a buffer from `offset`.
    ///
    /// # Errors
    /// EIO when the base ends before the buffer is full; those of pread(2).
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        if buffer.is_empty() {
            return Ok(());
        }
        let count = match self {
            Base::File(file) => read_at(file, offset, buffer)?,
            Base::Layers(merged) => merged.read(offset, buffer)?,
        };
        if count < buffer.len() { Err(Errno::IO) } else { Ok(()) }
    }

    /// The next data or hole at or after an offset inside `offset..end`; None when there is none
    /// before `end`. What a base that is too short should have is taken for data, so that somebody
    /// reads it and is told.
    pub(super) fn seek(&self, offset: u64, end: u64, to: SeekTo) -> Result<Option<u64>, Errno> {
        let size = self.size()?;
        let found = match self {
            _ if size <= offset => Err(Errno::NXIO),
            Base::File(file) => seek_in(file, offset, to),
            Base::Layers(merged) => merged.seek(offset, to),
        };
        let found = match (found, to) {
            (Ok(found), SeekTo::Hole) if found >= size => end,
            (Ok(found), _) => found,
            (Err(Errno::NXIO), SeekTo::Data) if size < end => size.max(offset),
            (Err(Errno::NXIO), _) => end,
            (Err(err), _) => return Err(err),
        };
        Ok(Some(found).filter(|found| *found < end))
    }
}

/// lseek(2) for data or a hole. A filesystem that does not know holes has none.
pub(super) fn seek_in(file: &OwnedFd, offset: u64, to: SeekTo) -> Result<u64, Errno> {
    match (rustix::fs::seek(file, to.starting_at(offset)), to) {
        (Err(Errno::INVAL | Errno::OPNOTSUPP), SeekTo::Data) => Ok(offset),
        (Err(Errno::INVAL | Errno::OPNOTSUPP), SeekTo::Hole) => size_of(file),
        (found, _) => found,
    }
}

pub(super) fn size_of(file: &OwnedFd) -> Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

pub(super) fn blocks_of(file: &OwnedFd) -> Result<u64, Errno> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_blocks).unwrap_or(0))
}

/// The ctime of a file, in seconds and nanoseconds.
pub(super) fn ctime_of(file: &OwnedFd) -> Result<(i64, u32), Errno> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_ctime as i64, stat.st_ctime_nsec as u32))
}
