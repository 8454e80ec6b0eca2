//! fallocate(2): reservation of blocks, punching and zeroing of ranges.

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Merged;
use crate::layers::base::{ctime_of, size_of};
use crate::layers::pages::{PAGE, PageMap};
use crate::sys::cred::{AsCaller, Caller};

impl Merged {
    /// Calls fallocate(2) with the caller's credentials. Blocks are reserved in the upper file,
    /// also for pages that the base gives.
    ///
    /// # Errors
    /// EOPNOTSUPP for a mode that the upper filesystem does not support, and for COLLAPSE_RANGE and
    /// INSERT_RANGE, which would move all pages behind the range (FUSE does not pass them on).
    /// EINVAL for an empty range, EFBIG for a range that ends behind the largest file size; errors
    /// of fallocate(2).
    pub fn allocate(
        &self,
        offset: u64,
        len: u64,
        mode: FallocateFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let end = match offset.checked_add(len) {
            _ if len == 0 => return Err(Errno::INVAL),
            Some(end) if i64::try_from(end).is_ok() => end,
            _ => return Err(Errno::FBIG),
        };
        const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
        const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;
        const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
        let mut map = self.map_to_write();
        let _as_caller = AsCaller::enter_to_write(caller)?;
        let size = size_of(&self.upper)?;
        if end > size {
            map.save_limit()?;
        }
        match mode {
            _ if mode == PUNCH => self.zero(&mut map, offset..end, size, Self::punch),
            _ if mode == ZERO | KEEP => self.zero(&mut map, offset..end, size, Self::zero_upper),
            _ if mode == ZERO => {
                self.zero(&mut map, offset..end, size, Self::zero_upper)?;
                if end > size { rustix::fs::ftruncate(&self.upper, end) } else { Ok(()) }
            }
            _ if (KEEP | FallocateFlags::UNSHARE_RANGE).contains(mode) => {
                if mode.contains(FallocateFlags::UNSHARE_RANGE) {
                    self.copy_in(&mut map, offset, end.min(size))?;
                }
                let mode = mode - FallocateFlags::UNSHARE_RANGE;
                rustix::fs::fallocate(&self.upper, mode, offset, len)
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.upper, mode, offset, len)
    }

    /// Zeroes a range and reserves its blocks. tmpfs has no ZERO_RANGE: there it takes two calls.
    fn zero_upper(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.upper, mode, offset, len) {
            Err(Errno::OPNOTSUPP) => {
                self.punch(offset, len)?;
                rustix::fs::fallocate(&self.upper, FallocateFlags::KEEP_SIZE, offset, len)
            }
            other => other,
        }
    }

    /// Zeroes a range. `clear` zeroes it in the upper file; the size stays.
    fn zero(
        &self,
        map: &mut PageMap,
        range: std::ops::Range<u64>,
        size: u64,
        clear: impl Fn(&Merged, u64, u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let (start, end) = (range.start, range.end);
        if end >= map.lower_visible_len() {
            // The last page of the base may become present by the lower limit: all of it is
            // cleared.
            let last = map.base_pages().saturating_sub(1);
            let stop = if map.is_present(last) { end } else { end.max((last + 1) * PAGE) };
            clear(self, start, stop - start)?;
            return map.set_base_limit(start, ctime_of(&self.upper)?);
        }
        // The pages at the ends of the range keep some bytes: they become present first.
        if start % PAGE != 0 {
            self.complete(map, start / PAGE, size)?;
        }
        if end % PAGE != 0 {
            self.complete(map, end / PAGE, size)?;
        }
        clear(self, start, end - start)?;
        map.set_zeros(start.div_ceil(PAGE)..end / PAGE)
    }
}
