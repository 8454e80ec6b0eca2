//! Where data and holes are.

use rustix::io::Errno;

use super::{Merged, run_of_bytes};
use crate::layers::base::{seek_in, size_of};
use crate::layers::pages::PageMap;
use crate::volume::SeekTo;

impl Merged {
    /// The next data or hole at or after an offset: in each page, where the layer has it that
    /// gives the page. The end of the file is a hole.
    ///
    /// # Errors
    /// ENXIO at or behind the end, and for data when only holes follow; those of lseek(2).
    pub fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let map = self.map.read();
        let size = size_of(&self.upper)?;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while at < size {
            let (own, stop) = run_of_bytes(&map, at, size);
            let found = match own {
                true => self.seek_own(at, stop, to)?,
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

    pub(super) fn seek_own(&self, at: u64, stop: u64, to: SeekTo) -> Result<Option<u64>, Errno> {
        match seek_in(&self.upper, at, to) {
            Ok(found) => Ok(Some(found).filter(|found| *found < stop)),
            Err(Errno::NXIO) => Ok(None), // No more data.
            Err(err) => Err(err),
        }
    }

    /// In pages of the base: behind the limit there are zeros.
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
            let sought = self.base.seek(at, shown, to);
            found = match self.check_base() {
                // Pages that are refused are data, so that whoever reads them is told.
                Err(Errno::IO) => Some(at).filter(|_| to == SeekTo::Data),
                checked => checked.and(sought)?,
            };
        }
        Ok(found.or((to == SeekTo::Hole && shown < stop).then(|| shown.max(at))))
    }
}
