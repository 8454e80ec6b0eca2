//! A look at the header of a page map alone.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

use super::disk::sound;
use super::format::{HEADER, Header, RECORD};
use super::{Fingerprint, MapError, MapId, PageMap, UpperId, read_at};

impl PageMap {
    /// The base at first touch, as a map says it whose bits are not looked at.
    ///
    /// # Errors
    /// Those of open(2) and read(2); that it is not a map.
    pub fn fingerprint(directory: impl AsFd, id: MapId) -> Result<Fingerprint, MapError> {
        Ok(peek(directory, id)?.base)
    }

    /// The upper file that a map was made for, as a map says it whose bits are not looked at.
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
