//! A file of layers that are never written, with pages in several of them.
//!
//! The owner of each page is found once, when the file is opened ([`PageOwners`]). So a read costs
//! as much as one of a single layer, whatever the number of layers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::base::{Base, blocks_of, ctime_of, size_of};
use super::base_state::BaseState;
use super::page_owners::{MOST_PARTS, PageOwners};
use super::pages::{PAGE, PageMap, read_at};
use crate::error::cause::because;
use crate::tree::SeekTo;

/// A part of a file in a frozen layer: the sparse file and its page map, open for reading.
#[derive(Debug)]
pub struct FrozenPart {
    /// The file, whose size is the size of the whole.
    pub file: Arc<OwnedFd>,
    /// Its page map.
    pub map: PageMap,
}

/// A file with pages in several frozen layers.
#[derive(Debug)]
pub struct FrozenFile {
    /// Topmost first; the last one is whole.
    files: Vec<Arc<OwnedFd>>,
    owners: PageOwners,
    size: u64,
    /// Whether the whole file is as it was; none where it never changes.
    base_state: Option<Arc<BaseState>>,
}

impl FrozenFile {
    /// Puts parts, topmost first, over a whole file. What `base_state` says of that is heeded.
    ///
    /// # Errors
    /// E2BIG for too many parts; those of fstat(2); EIO for a part whose data is damaged.
    pub fn new(
        parts: Vec<FrozenPart>,
        whole: Arc<OwnedFd>,
        base_state: Option<Arc<BaseState>>,
    ) -> Result<FrozenFile, Errno> {
        if parts.len() > MOST_PARTS {
            return Err(Errno::TOOBIG);
        }
        let size = size_of(parts.first().map_or(&whole, |part| &part.file))?;
        let mut owners = PageOwners::new();
        let mut files = Vec::with_capacity(parts.len() + 1);
        for FrozenPart { file, mut map } in parts {
            map.check_data(&file).map_err(|err| err.errno())?;
            // A truncation that was not finished is, in memory.
            map.set_base_limit(size_of(&file)?, ctime_of(&file)?)?;
            owners.push(&map);
            files.push(file);
        }
        files.push(whole);
        Ok(FrozenFile { files, owners, size, base_state })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The whole file below all parts.
    pub fn whole(&self) -> Result<&Arc<OwnedFd>, Errno> {
        self.files.last().ok_or(Errno::IO)
    }

    /// `st_blocks` of the file, in units of 512 bytes, by the blocks of all of its parts: no more
    /// than the size takes.
    ///
    /// # Errors
    /// Errors of fstat(2).
    pub fn blocks(&self) -> Result<u64, Errno> {
        let mut blocks: u64 = 0;
        for file in &self.files {
            blocks = blocks.saturating_add(blocks_of(file)?);
        }
        Ok(blocks.min(self.size.div_ceil(PAGE) * (PAGE / 512)))
    }

    /// Reads into a buffer, and returns how many bytes: fewer at the end of the file.
    ///
    /// # Errors
    /// EIO where a part is too short, and for pages of a base that has changed; those of pread(2).
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let left = self.size.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let end = offset + count as u64;
        let mut rest = buffer.get_mut(..count).unwrap_or_default();
        let mut at = offset;
        while at < end {
            let (part, stop) = self.run(at, end);
            let (run, behind) = rest.split_at_mut((stop - at) as usize);
            let shown = self.owners.visible(part).clamp(at, stop) - at;
            let (shown, zeros) = run.split_at_mut(shown as usize);
            if !shown.is_empty() {
                let read = read_at(self.files.get(part).ok_or(Errno::IO)?, at, shown);
                if part == self.owners.whole() {
                    self.check()?;
                }
                if read? < shown.len() {
                    return Err(because(Errno::IO, "its file in a frozen layer is too short"));
                }
            }
            zeros.fill(0);
            rest = behind;
            at = stop;
        }
        Ok(count)
    }

    /// The part that has the byte at `at`, and up to which byte, `end` at most, that stays so.
    fn run(&self, at: u64, end: u64) -> (usize, u64) {
        let page = at / PAGE;
        let (part, count) = self.owners.run(page, end.div_ceil(PAGE) - page);
        (part, page.saturating_add(count).saturating_mul(PAGE).min(end))
    }

    /// Checks that what was just read of the whole file is of the file as it was.
    fn check(&self) -> Result<(), Errno> {
        match &self.base_state {
            Some(state) => state.check(self.whole()?),
            None => Ok(()),
        }
    }

    /// The next data or hole at or after an offset. The end of the file is a hole.
    ///
    /// # Errors
    /// ENXIO at or behind the end, and for data when only holes follow; those of lseek(2).
    pub fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        if offset >= self.size {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while at < self.size {
            let (part, stop) = self.run(at, self.size);
            if let Some(found) = self.seek_in_part(part, at, stop, to)? {
                return Ok(found);
            }
            at = stop;
        }
        match to {
            SeekTo::Data => Err(Errno::NXIO),
            SeekTo::Hole => Ok(self.size),
        }
    }

    fn seek_in_part(
        &self,
        part: usize,
        at: u64,
        stop: u64,
        to: SeekTo,
    ) -> Result<Option<u64>, Errno> {
        let shown = self.owners.visible(part).min(stop);
        let mut found = None;
        if at < shown {
            let file = self.files.get(part).ok_or(Errno::IO)?;
            let sought = Base::File(Arc::clone(file)).seek(at, shown, to);
            let checked = if part == self.owners.whole() { self.check() } else { Ok(()) };
            found = match checked {
                // Refused pages are data, so that a reader is told.
                Err(Errno::IO) => Some(at).filter(|_| to == SeekTo::Data),
                checked => checked.and(sought)?,
            };
        }
        Ok(found.or((to == SeekTo::Hole && shown < stop).then(|| shown.max(at))))
    }
}
