//! SEEK_DATA and SEEK_HOLE.

use rustix::io::Errno;

use super::{Merged, run_of_bytes};
use crate::layers::base::{seek_in, size_of};
use crate::layers::pages::PageMap;
use crate::tree::SeekTo;

impl Merged {
    /// Offset of the next data or hole at or after `offset`. Each page counts as in the layer that
    /// gives it. The end of the file is a hole.
    ///
    /// # Errors
    /// ENXIO at or behind the end, and for data if only holes follow; errors of lseek(2).
    pub fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let map = self.map.read();
        let size = size_of(&self.upper)?;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while at < size {
            let (present, stop) = run_of_bytes(&map, at, size);
            let found = match present {
                true => self.seek_upper(at, stop, to)?,
                false => self.seek_below(&map, at, stop, to)?,
            };
            if let Some(found) = found {
                return Ok(found);
            }
            at = stop;
        }
        match to {
            SeekTo::Data => Err(Errno::NXIO),
            SeekTo::Hole => Ok(size),
        }
    }

    /// The next data or hole of the upper file in `at..stop`.
    pub(super) fn seek_upper(&self, at: u64, stop: u64, to: SeekTo) -> Result<Option<u64>, Errno> {
        match seek_in(&self.upper, at, to) {
            Ok(found) => Ok(Some(found).filter(|found| *found < stop)),
            Err(Errno::NXIO) => Ok(None), // No more data.
            Err(err) => Err(err),
        }
    }

    /// The next data or hole in `at..stop`, a run of pages of the base. Behind the limit is a hole.
    fn seek_below(
        &self,
        map: &PageMap,
        at: u64,
        stop: u64,
        to: SeekTo,
    ) -> Result<Option<u64>, Errno> {
        let shown = map.lower_visible_len().min(stop);
        let mut found = None;
        if at < shown {
            let in_base = self.base.seek(at, shown, to);
            found = match self.check_base() {
                // Pages of a changed base count as data, so that they are read and the read fails.
                Err(Errno::IO) => Some(at).filter(|_| to == SeekTo::Data),
                checked => checked.and(in_base)?,
            };
        }
        Ok(found.or((to == SeekTo::Hole && shown < stop).then(|| shown.max(at))))
    }
}
