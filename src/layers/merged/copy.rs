//! Copying pages of the base into the upper file.

use std::ops::Range;

use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Merged, run_of_bytes};
use crate::layers::base::{Base, size_of};
use crate::layers::pages::{PAGE, PageMap};
use crate::tree::SeekTo;

/// Bytes that are copied before the bits of their pages are set.
pub const STEP: u64 = 8 << 20;

/// Xattr that the kernel removes at each write. A copy is no write by a client, and restores it.
const CAPABILITY: &str = "security.capability";

/// Size of the copy buffer where copy_file_range(2) fails, in bytes.
const BUFFER: u64 = 256 << 10;

impl Merged {
    /// Copies all visible pages of the base, so that the upper file becomes a complete copy. Holes
    /// stay holes; the times and capabilities of the file stay. Pages that were copied before an
    /// error stay present.
    ///
    /// # Errors
    /// ENOSPC and other errors of pwrite(2); errors of reading the base.
    pub fn materialize(&self) -> Result<(), Errno> {
        let mut map = self.map_to_write();
        let end = map.lower_visible_len();
        match &self.base_state {
            _ if map.is_complete() => Ok(()),
            Some(state) if map.count() == 0 => {
                state.during_first_copy(|| self.copy_with_times(&mut map, 0, end))
            }
            _ => self.copy_with_times(&mut map, 0, end),
        }
    }

    /// Copies the first run of visible pages of the base from byte `start` on, at most [`STEP`]
    /// bytes. Returns the start for the next call and the number of bytes copied; `None` when
    /// no page of the base is visible behind `start`. Between two calls others read and write.
    ///
    /// # Errors
    /// As [`Merged::materialize`].
    pub fn materialize_part(&self, start: u64) -> Result<Option<(u64, u64)>, Errno> {
        let mut map = self.map_to_write();
        let end = map.lower_visible_len();
        let mut at = start - start % PAGE;
        while at < end {
            let (present, stop) = run_of_bytes(&map, at, end);
            if !present {
                let (before, stop) = (map.count(), end.min(at + STEP));
                self.copy_with_times(&mut map, at, stop)?;
                return Ok(Some((stop, (map.count() - before) * PAGE)));
            }
            at = stop;
        }
        Ok(None)
    }

    /// Makes every page of a byte range present, as a write of the same bytes would. The times of
    /// the file stay.
    ///
    /// # Errors
    /// ENOSPC and other errors of pwrite(2); errors of reading the base.
    pub fn own(&self, range: Range<u64>) -> Result<(), Errno> {
        let mut map = self.map_to_write();
        let end = range.end.min(size_of(&self.upper)?);
        match range.start < end {
            true => self.copy_with_times(&mut map, range.start, end),
            false => Ok(()),
        }
    }

    /// Calls [`Merged::copy_in`], and restores times and capabilities.
    fn copy_with_times(&self, map: &mut PageMap, start: u64, end: u64) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(&self.upper)?;
        let mut capability = [0; 256];
        let has = rustix::fs::fgetxattr(&self.upper, CAPABILITY, &mut capability[..]).ok();
        let copied = self.copy_in(map, start, end);
        if let Some(value) = has.and_then(|len| capability.get(..len)) {
            let none = XattrFlags::empty();
            if let Err(err) = rustix::fs::fsetxattr(&self.upper, CAPABILITY, value, none) {
                log::warn!("restoring the capabilities of a copied file: {err}");
            }
        }
        let times = Timestamps {
            last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
            last_modification: Timespec {
                tv_sec: stat.st_mtime as _,
                tv_nsec: stat.st_mtime_nsec as _,
            },
        };
        let restored = rustix::fs::utimensat(&self.upper, c"", &times, AtFlags::EMPTY_PATH);
        copied.and(restored)
    }

    /// Makes every page with a byte in `start..end` present.
    pub(super) fn copy_in(&self, map: &mut PageMap, start: u64, end: u64) -> Result<(), Errno> {
        let size = size_of(&self.upper)?;
        let end = end.div_ceil(PAGE).min(map.base_pages()) * PAGE;
        let mut at = start - start % PAGE;
        while at < end {
            let (present, stop) = run_of_bytes(map, at, end);
            if !present {
                self.copy_run(map, at, stop, size)?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Copies a run of pages of the base, none of which is present.
    fn copy_run(&self, map: &mut PageMap, start: u64, end: u64, size: u64) -> Result<(), Errno> {
        // The page that contains the limit ends in zeros: `complete` copies it. All others are
        // copied from the base as they are.
        let whole = end.min(map.lower_visible_len() / PAGE * PAGE);
        let mut at = start;
        while at < whole {
            let data = self.base.seek(at, whole, SeekTo::Data)?.unwrap_or(whole);
            let data = data - data % PAGE;
            if at < data {
                self.check_base()?;
                if self.seek_upper(at, data, SeekTo::Data)?.is_some() {
                    self.clear_unseen(at, data)?;
                }
                map.set_zeros(at / PAGE..data / PAGE)?;
                at = data;
                continue;
            }
            let hole = self.base.seek(at, whole, SeekTo::Hole)?.unwrap_or(whole);
            let stop = hole.max(at + 1).next_multiple_of(PAGE).min(whole).min(at + STEP);
            self.copy_bytes(at, stop)?;
            self.check_base()?;
            map.set(at / PAGE..stop / PAGE)?;
            at = stop;
        }
        if whole < end { self.complete(map, whole.max(start) / PAGE, size) } else { Ok(()) }
    }

    /// Copies a byte range of the base to the same offsets of the upper file.
    fn copy_bytes(&self, start: u64, end: u64) -> Result<(), Errno> {
        let at = match &self.base {
            Base::File(file) => {
                let (mut from, mut to) = (start, start);
                while to < end {
                    let left = (end - to) as usize;
                    let count = rustix::fs::copy_file_range(
                        file,
                        Some(&mut from),
                        &self.upper,
                        Some(&mut to),
                        left,
                    );
                    match count {
                        Err(Errno::INTR) => {}
                        Err(err @ (Errno::NOSPC | Errno::DQUOT)) => return Err(err),
                        // The copy is not supported, or the base ends here: reading it reports it.
                        Ok(0) | Err(_) => break,
                        Ok(_) => {}
                    }
                }
                to
            }
            Base::Layers(_) => start,
        };
        self.copy_through_memory(at, end)
    }

    fn copy_through_memory(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut buffer = vec![0; (end - start).min(BUFFER) as usize];
        let mut at = start;
        while at < end {
            let len = (end - at).min(BUFFER) as usize;
            let part = buffer.get_mut(..len).unwrap_or_default();
            self.base.read(at, part)?;
            if let (_, Some(err)) = self.write_parts(at, [part, &[], &[]]) {
                return Err(err);
            }
            at += len as u64;
        }
        Ok(())
    }
}
