//! Base of a merged file: a complete file, or a file with pages in several frozen layers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::frozen_file::FrozenFile;
use super::pages::read_at;
use crate::error::cause::because;
use crate::tree::SeekTo;

/// File below a merged file. It is read with pread(2) and never written. The caller opens it so
/// that reading does not change its atime (O_NOATIME).
#[derive(Debug, Clone)]
pub enum Base {
    /// A complete file of one layer.
    File(Arc<OwnedFd>),
    /// Pages in several layers, all of them frozen.
    Layers(Arc<FrozenFile>),
}

impl Base {
    /// Size in bytes at this moment.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn size(&self) -> Result<u64, Errno> {
        match self {
            Base::File(file) => size_of(file),
            Base::Layers(frozen) => Ok(frozen.size()),
        }
    }

    /// `st_blocks` in units of 512 bytes.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn blocks(&self) -> Result<u64, Errno> {
        match self {
            Base::File(file) => blocks_of(file),
            Base::Layers(frozen) => frozen.blocks(),
        }
    }

    /// The complete file below all layers that have some of the pages.
    ///
    /// # Errors
    /// EIO, which does not come.
    pub fn whole(&self) -> Result<&Arc<OwnedFd>, Errno> {
        match self {
            Base::File(file) => Ok(file),
            Base::Layers(frozen) => frozen.whole(),
        }
    }

    /// Reads into a buffer, and returns how many bytes: fewer at the end of the file.
    ///
    /// # Errors
    /// Errors of pread(2).
    pub fn read_some(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Base::File(file) => read_at(file, offset, buffer),
            Base::Layers(frozen) => frozen.read(offset, buffer),
        }
    }

    /// lseek(2) for data or a hole.
    ///
    /// # Errors
    /// ENXIO at or behind the end, and for data if only holes follow; errors of lseek(2).
    pub fn seek_from(&self, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        match self {
            Base::File(file) => rustix::fs::seek(file, to.starting_at(offset)),
            Base::Layers(frozen) => frozen.seek(offset, to),
        }
    }

    /// Fills a buffer from `offset`.
    ///
    /// # Errors
    /// EIO when the base ends before the buffer is full; errors of pread(2).
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        if buffer.is_empty() {
            return Ok(());
        }
        let count = self.read_some(offset, buffer)?;
        match count < buffer.len() {
            true => Err(because(Errno::IO, "its base is gone or shorter than at the first touch")),
            false => Ok(()),
        }
    }

    /// Offset of the next data or hole in `offset..end`; `None` when there is none. A range behind
    /// the end of a base that is too short counts as data, so that it is read and the read fails.
    pub(super) fn seek(&self, offset: u64, end: u64, to: SeekTo) -> Result<Option<u64>, Errno> {
        let size = self.size()?;
        let found = match self {
            _ if size <= offset => Err(Errno::NXIO),
            Base::File(file) => seek_in(file, offset, to),
            Base::Layers(frozen) => frozen.seek(offset, to),
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

/// Calls lseek(2) for data or a hole. A file is all data where the filesystem cannot tell.
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

/// Ctime of a file, in seconds and nanoseconds.
pub(super) fn ctime_of(file: &OwnedFd) -> Result<(i64, u32), Errno> {
    let stat = rustix::fs::fstat(file)?;
    Ok((stat.st_ctime as i64, stat.st_ctime_nsec as u32))
}
