//! Reading and writing a backing file through its mapping.
//!
//! A read hands a slice of the mapping to the kernel. The pages are entered first by
//! MADV_POPULATE_READ, which reports an unreadable page instead of raising SIGBUS; pread(2) then
//! gives the result of a plain read. Only a file that is truncated between
//! the two makes the kernel answer EIO to the one request.
//!
//! Pages that are not in memory are read by pread(2), whose readahead follows the reader: a fault
//! in a mapping reads megabytes around every page, or with MADV_RANDOM a page at a time. Where
//! flags or advice ask for a mapping, pages are read by faults.
//!
//! A write inside the file copies into the mapping by the guarded copy. The bytes that it could not
//! copy (a page behind a new end of file, a hole on a full disk) and those that grow the file go
//! through pwrite(2), whose errno is exact. A mapped store does not move mtime once its page is
//! dirty, so the daemon sets it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::file::BackingFile;
use crate::error::cause::{because, when};
use crate::flags::PlaneChoice;
use crate::shown::Show;
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};
use crate::sys::region::Region;

/// Size in bytes up to which a file is read without a mapping: mmap, the first faults and munmap
/// cost about as much as one more copy of this length.
const SMALL_FILE: u64 = 128 << 10;

thread_local! {
    /// Buffer for reads without a mapping, as long as the longest request so far.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Whether all of a range is in memory, as far as the kernel tells (mincore(2)).
fn is_resident(region: &Region, range: Range<usize>) -> bool {
    let page = sys::page_size();
    let pages = range.start - range.start % page..range.end;
    let count = pages.len().div_ceil(page) as u64;
    sys::residency::resident_pages(region, pages).is_ok_and(|resident| resident == count)
}

/// The cause of an EIO of a write.
const CANNOT_BE_WRITTEN: &str = "the backing file cannot be written";

impl BackingFile {
    /// Reads up to `len` bytes from `offset` and hands them to `deliver`, which must only pass
    /// them on to the kernel. Fewer bytes mean the end of the file.
    ///
    /// # Errors
    /// Errors of pread(2).
    pub fn read<R>(
        &self,
        offset: u64,
        len: usize,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Errno> {
        let _no_resize = self.resizing.read();
        let resizes = self.resizes();
        let size = self.size()?;
        let end = offset.saturating_add(len as u64).min(size);
        if offset < end
            && self.is_worth_mapping(size)
            && let Some((region, start, stop)) = self.mapped_span(size, offset, end)
            && (self.is_about_mapping() || is_resident(&region, start..stop))
        {
            match sys::advise::populate_read(&region, start..stop) {
                Ok(()) => {
                    let delivered = region.lend(start..stop, deliver).ok_or(Errno::INVAL);
                    if resizes == self.resizes() {
                        self.notice_truncation(offset, end);
                    }
                    return delivered;
                }
                Err(Errno::INVAL) => {} // A kernel before 5.14 has no MADV_POPULATE_READ.
                Err(_) if resizes != self.resizes() => {}
                Err(err) => self.record_fault("reading", offset, end, &self.reason(end, err)),
            }
        }
        // Files of /proc and /sys have the size 0 and may have content: read(2) decides.
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let buffer = buffer.get_mut(..len).unwrap_or_default();
            let count = self.read_at(offset, buffer)?;
            Ok(deliver(buffer.get(..count).unwrap_or_default()))
        })
    }

    /// Whether reads go through the mapping. Mapping a small file costs more than one copy; it is
    /// read through a mapping if it has one already, or if its view is about the mapping.
    fn is_worth_mapping(&self, size: u64) -> bool {
        size > SMALL_FILE
            || self.mode().plane == PlaneChoice::Mapped
            || self.is_about_mapping()
            || self.present_mapping().is_some()
    }

    /// Whether flags or advice, of the view or given since, decide how pages are read.
    fn is_about_mapping(&self) -> bool {
        self.mode().asks_for_mapping() || self.persistent.lock().holds()
    }

    /// Counts a fault if the file is shorter than the pages that were just handed to the kernel,
    /// which may then have failed the read with EIO.
    fn notice_truncation(&self, offset: u64, end: u64) {
        if self.size().is_ok_and(|size| size < end) {
            self.record_fault("reading", offset, end, &self.reason(end, Errno::FAULT));
        }
    }

    /// Reason of a fault, in words.
    fn reason(&self, end: u64, err: Errno) -> String {
        match self.size() {
            Ok(size) if size < end => format!("the backing file was truncated to {size} bytes"),
            _ => format!("the backing file cannot be read: {err}"),
        }
    }

    /// Moves the time of last access as a plain read does: reading a mapping does not. The
    /// backing filesystem decides by its own rules (relatime, noatime) whether anything is due.
    pub fn note_access(&self) {
        let mut byte = [0];
        let read = self.descriptor().reader().and_then(|fd| rustix::io::pread(fd, &mut byte, 0));
        if let Err(err) = read {
            log::debug!("{}: moving its time of access: {err}", self.path().shown());
        }
    }

    fn mapped_span(
        &self,
        size: u64,
        offset: u64,
        end: u64,
    ) -> Option<(std::sync::Arc<Region>, usize, usize)> {
        let start = usize::try_from(offset).ok()?;
        let stop = usize::try_from(end).ok()?;
        match self.mapping(size) {
            Ok(region) => Some((region, start, stop)),
            Err(err) => {
                self.budget.note_refusal(self, err);
                None
            }
        }
    }

    /// Reads by pread(2) until the buffer is full or the file ends.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let descriptor = self.descriptor();
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(descriptor.reader()?, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(err) => {
                    self.record_fault("reading", offset, offset + 1, &err.to_string());
                    return Err(when(Errno::IO, "the backing file cannot be read")(err));
                }
            }
        }
        Ok(done)
    }

    /// Writes `data` at `offset` and returns how much arrived, at least one byte.
    ///
    /// # Errors
    /// Errors of pwrite(2), when nothing arrived.
    ///
    /// Blocks are allocated as the caller, to whom its quota and the blocks reserved for root
    /// apply; so a store for somebody else than root goes only to pages that are there.
    pub fn write(&self, offset: u64, data: &[u8], caller: &Caller) -> Result<usize, Errno> {
        let size = self.size()?;
        let end = offset.checked_add(data.len() as u64).ok_or(Errno::FBIG)?;
        let mapped = (end <= size && !data.is_empty())
            .then(|| self.write_mapped(size, offset, data, caller));
        let done = mapped.flatten().unwrap_or(0);
        let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) else {
            return Ok(done);
        };
        let start = offset + done as u64;
        let result = self.write_plainly(start, rest, caller);
        if mapped.flatten().is_some() {
            let reason = match &result {
                Ok(_) => String::from("the page was not to be had, and was written directly"),
                Err(err) => err.to_string(),
            };
            self.record_fault("writing", start, end, &reason);
        }
        match result {
            Ok(count) => Ok(done + count),
            Err(_) if done > 0 => Ok(done),
            Err(err) => Err(err),
        }
    }

    /// Writes `data` at `offset` by pwrite(2) alone, with all that the kernel does at a write.
    ///
    /// # Errors
    /// Errors of pwrite(2), when nothing arrived.
    pub fn write_plainly(&self, offset: u64, data: &[u8], caller: &Caller) -> Result<usize, Errno> {
        let _as_caller = AsCaller::enter_to_write(caller)?;
        self.write_at(offset, data)
    }

    /// Copies into the mapping up to the first fault, and returns the number of bytes; `None` if a
    /// mapped store is not possible or not worth it.
    fn write_mapped(&self, size: u64, offset: u64, data: &[u8], caller: &Caller) -> Option<usize> {
        if !self.may_touch.load(Ordering::Relaxed) || !sys::guard::GUARDED {
            return None;
        }
        let end = offset + data.len() as u64;
        let (region, start, stop) = self.mapped_span(size, offset, end)?;
        if !region.is_writable() || !worth_mapping(&region, start, stop, caller) {
            return None;
        }
        let done = sys::guard::copy_in(&region, start, data);
        if done > 0 && self.touch().is_err() {
            // The daemon may not set mtime, as it is not the owner. From now on writes go through
            // pwrite(2), which sets it; these bytes are written once more for the same reason.
            self.may_touch.store(false, Ordering::Relaxed);
            return None;
        }
        Some(done)
    }

    /// Sets mtime and ctime to now, as a write does.
    fn touch(&self) -> Result<(), Errno> {
        let now = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ },
        };
        rustix::fs::utimensat(self.descriptor().writer()?, c"", &now, AtFlags::EMPTY_PATH)
    }

    /// Writes by pwrite(2) until all is written or an error follows a part.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let descriptor = self.descriptor();
        if descriptor.append_only {
            return Err(Errno::PERM); // pwrite(2) on an O_APPEND descriptor ignores the offset.
        }
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(descriptor.writer()?, rest, offset + done as u64) {
                Ok(0) => return Err(because(Errno::IO, CANNOT_BE_WRITTEN)),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(err) => return Err(when(Errno::IO, CANNOT_BE_WRITTEN)(err)),
            }
        }
        Ok(done)
    }

    /// Appends `data` atomically at the present end of the file. Returns the number of bytes
    /// written, and whether they are at `expected`.
    ///
    /// # Errors
    /// Errors of pwritev2(2).
    pub fn append(
        &self,
        expected: u64,
        data: &[u8],
        caller: &Caller,
    ) -> Result<(usize, bool), Errno> {
        let _as_caller = AsCaller::enter_to_write(caller)?;
        let count = sys::file::append(self.descriptor().writer()?, data)?;
        let size = self.size()?;
        Ok((count, size == expected.saturating_add(count as u64)))
    }

    /// Calls fdatasync(2) if `data_only`, else fsync(2). Both cover stores through the mapping.
    ///
    /// # Errors
    /// Errors of fsync(2).
    pub fn sync(&self, data_only: bool) -> Result<(), Errno> {
        let descriptor = self.descriptor();
        if data_only {
            rustix::fs::fdatasync(descriptor.any()?)
        } else {
            rustix::fs::fsync(descriptor.any()?)
        }
    }
}

/// A store into a page that is not in memory reads it first; pwrite(2) of a whole page does not.
fn worth_mapping(region: &Region, start: usize, stop: usize, caller: &Caller) -> bool {
    let page = sys::page_size();
    if stop - start < page && caller.uid == 0 {
        return true;
    }
    let pages = start / page * page..stop.next_multiple_of(page).min(region.len());
    let count = (pages.len() / page) as u64;
    sys::residency::resident_pages(region, pages).is_ok_and(|resident| resident == count)
}
