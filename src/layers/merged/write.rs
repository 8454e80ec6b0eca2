//! Writes. A partly written page is completed with bytes of the base.

use std::io::IoSlice;

use rustix::io::Errno;

use super::Merged;
use crate::layers::base::size_of;
use crate::layers::pages::{PAGE, PageMap};
use crate::sys::cred::{AsCaller, Caller};

/// The largest size of a file, in bytes.
const LARGEST: u64 = i64::MAX as u64;

impl Merged {
    /// Writes with the caller's credentials. Returns the number of bytes written, which is smaller
    /// after a failure in the middle.
    ///
    /// # Errors
    /// Only if no byte was written: EFBIG, ENOSPC and other errors of pwrite(2); errors of reading
    /// the base.
    pub fn write(&self, offset: u64, data: &[u8], caller: &Caller) -> Result<usize, Errno> {
        let mut map = self.map_to_write();
        let _as_caller = AsCaller::enter_to_write(caller)?;
        self.write_any(&mut map, offset, data)
    }

    /// Appends with the caller's credentials; concurrent appends do not overlap. Returns the offset
    /// and the number of bytes.
    ///
    /// # Errors
    /// As [`Merged::write`].
    pub fn append(&self, data: &[u8], caller: &Caller) -> Result<(u64, usize), Errno> {
        let mut map = self.map_to_write();
        let _as_caller = AsCaller::enter_to_write(caller)?;
        let offset = size_of(&self.upper)?;
        Ok((offset, self.write_any(&mut map, offset, data)?))
    }

    fn write_any(&self, map: &mut PageMap, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if data.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= LARGEST);
        let end = end.ok_or(Errno::FBIG)?;
        let size = size_of(&self.upper)?;
        if end <= size {
            return self.write_pages(map, offset, data, size);
        }
        map.save_limit()?;
        // The page in which the base ends becomes present before the size changes. Otherwise a
        // process killed between data and bit would leave the new size with zeros.
        let last = map.base_pages().saturating_sub(1);
        let last_end = (last + 1) * PAGE;
        if map.is_present(last) || size >= last_end || offset >= last_end {
            return self.write_pages(map, offset, data, size);
        }
        let (inside, behind) = data.split_at(size.saturating_sub(offset) as usize);
        if inside.is_empty() {
            self.complete(map, last, size)?;
            return self.write_pages(map, offset, behind, size);
        }
        let done = self.write_pages(map, offset, inside, size)?;
        if done < inside.len() {
            return Ok(done);
        }
        Ok(done + self.write_pages(map, size, behind, size).unwrap_or(0))
    }

    /// Writes `data`, which is not empty, and marks the pages of its range present. `size` is the
    /// size of the file before.
    fn write_pages(
        &self,
        map: &mut PageMap,
        offset: u64,
        data: &[u8],
        size: u64,
    ) -> Result<usize, Errno> {
        let end = offset + data.len() as u64;
        let (first, last) = (offset / PAGE, (end - 1) / PAGE);
        let start = if map.is_present(first) { offset } else { first * PAGE };
        let stop = if map.is_present(last) { end } else { end.max(size.min((last + 1) * PAGE)) };

        let (mut front, mut back) = ([0; PAGE as usize], [0; PAGE as usize]);
        let (head, tail) = if first == last && start < offset && end < stop {
            let page = front.get_mut(..(stop - start) as usize).unwrap_or_default();
            self.fill(map, start, page)?;
            let (before, behind) = page.split_at((end - start) as usize);
            (before.get(..(offset - start) as usize).unwrap_or_default(), behind)
        } else {
            let head = front.get_mut(..(offset - start) as usize).unwrap_or_default();
            let tail = back.get_mut(..(stop - end) as usize).unwrap_or_default();
            self.fill(map, start, head)?;
            self.fill(map, end, tail)?;
            (&*head, &*tail)
        };
        let (done, failure) = self.write_parts(start, [head, data, tail]);
        let reached = start + done as u64;
        let complete = if reached == stop { last + 1 } else { reached / PAGE };
        let promised = map.set(first..complete.max(first));
        let promised = promised.and_then(|()| self.note_zeros(map, offset, data, complete));
        let broken = reached / PAGE;
        if reached < stop && !map.is_present(broken) && reached > broken * PAGE {
            // The page is not present, so its bytes are not visible. Their block is given back.
            let cleared = self.clear_unseen(broken * PAGE, (broken + 1) * PAGE);
            log::debug!("incomplete page at {}: punched: {cleared:?}", broken * PAGE);
        }
        let shown = match map.run(first, last + 1 - first) {
            (true, count) => reached.min((first + count).saturating_mul(PAGE)),
            (false, _) => offset,
        };
        match (shown.clamp(offset, end) - offset, promised, failure) {
            (0, Err(err), _) | (0, Ok(()), Some(err)) => Err(err),
            (count, _, _) => Ok(count as usize),
        }
    }

    /// Marks pages before page `stop` present and synced that were fully written with zeros.
    /// Archivers and filesystems may turn such a page into a hole, which must not count as
    /// unwritten.
    fn note_zeros(
        &self,
        map: &mut PageMap,
        offset: u64,
        data: &[u8],
        stop: u64,
    ) -> Result<(), Errno> {
        let first = offset.div_ceil(PAGE);
        let aligned = data.get((first * PAGE - offset) as usize..).unwrap_or_default();
        let mut zeros = first..first;
        for (page, bytes) in (first..stop).zip(aligned.chunks_exact(PAGE as usize)) {
            if bytes.iter().any(|byte| *byte != 0) {
                continue;
            }
            if zeros.end != page {
                map.set_zeros(zeros)?;
                zeros = page..page;
            }
            zeros.end = page + 1;
        }
        map.set_zeros(zeros)
    }

    /// Copies one page of the base into the upper file, unless it is present.
    pub(super) fn complete(&self, map: &mut PageMap, page: u64, size: u64) -> Result<(), Errno> {
        if map.is_present(page) {
            return Ok(());
        }
        let start = page * PAGE;
        let mut buffer = [0; PAGE as usize];
        let len = size.saturating_sub(start).min(PAGE) as usize;
        let part = buffer.get_mut(..len).unwrap_or_default();
        self.fill(map, start, part)?;
        let (done, failure) = self.write_parts(start, [part, &[], &[]]);
        if let Some(err) = failure.filter(|_| done < len) {
            if done > 0 {
                self.clear_unseen(start, start + PAGE)?;
            }
            return Err(err);
        }
        match part.iter().all(|byte| *byte == 0) {
            true => map.set_zeros(page..page + 1),
            false => map.set(page..page + 1),
        }
    }

    /// Writes parts one after the other to the upper file. Returns the number of bytes written, and
    /// the error if it is smaller than their sum.
    pub(super) fn write_parts(&self, offset: u64, parts: [&[u8]; 3]) -> (usize, Option<Errno>) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        while done < len {
            let mut skip = done;
            let left = parts.map(|part| {
                let gone = skip.min(part.len());
                skip -= gone;
                IoSlice::new(part.get(gone..).unwrap_or_default())
            });
            match rustix::io::pwritev(&self.upper, &left, offset + done as u64) {
                Ok(0) => return (done, Some(Errno::IO)),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(err) => return (done, Some(err)),
            }
        }
        (done, None)
    }
}
