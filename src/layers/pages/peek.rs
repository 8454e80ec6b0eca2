//! A look at the header of a page map alone.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};

use super::format::{HEADER, decode};
use super::{Fingerprint, MapError, MapId, PageMap, read_at};

impl PageMap {
    /// The base at first touch, as a map says it whose bits are not looked at.
    ///
    /// # Errors
    /// Those of open(2) and read(2); that it is not a map.
    pub fn fingerprint(directory: impl AsFd, id: MapId) -> Result<Fingerprint, MapError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(directory, id.to_string(), flags, Mode::empty())?;
        let mut header = [0; HEADER as usize];
        let len = read_at(&file, 0, &mut header)? as u64;
        if len < HEADER {
            return Err(MapError::Short { len, least: HEADER });
        }
        Ok(decode(&header)?.base)
    }
}
