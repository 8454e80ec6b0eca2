//! Reading the header of a page map without its bits.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

use super::disk::sound;
use super::format::{HEADER, Header, RECORD};
use super::{Fingerprint, MapError, MapId, PageMap, UpperId, read_at};

impl PageMap {
    /// Fingerprint of the base at first touch, from the header. The bits are not checked.
    ///
    /// # Errors
    /// Errors of open(2) and read(2); another [`MapError`] when the headers are not valid.
    pub fn fingerprint(directory: impl AsFd, id: MapId) -> Result<Fingerprint, MapError> {
        Ok(peek(directory, id)?.base)
    }

    /// Identity of the upper file of a map, from the header. The bits are not checked.
    ///
    /// # Errors
    /// As [`PageMap::fingerprint`].
    pub fn owner(directory: impl AsFd, id: MapId) -> Result<UpperId, MapError> {
        Ok(peek(directory, id)?.upper)
    }
}

fn peek(directory: impl AsFd, id: MapId) -> Result<Header, MapError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(directory, id.to_string(), flags, Mode::empty())?;
    let mut headers = [[0; RECORD as usize]; 2];
    let len = read_at(&file, 0, headers.as_flattened_mut())? as u64;
    if len < HEADER {
        return Err(MapError::Short { len, least: HEADER });
    }
    sound(&headers)
}
