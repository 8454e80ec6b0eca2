//! Comparison of two files: the bytes that may differ, and attributes.

use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use super::{New, Old, Walk};
use crate::layers::merged::{Base, Merged};
use crate::layers::overlay::merged_open::SharedOpen;
use crate::layers::overlay::node::LowerInode;
use crate::layers::pages::{MapAccess, MapId, PAGE, PageMap};
use crate::tree::{Names, SeekTo};

/// Bytes that are compared at once.
const STEP: usize = 256 << 10;

/// The most ranges of a file that are kept, 16 bytes each.
const MOST_RANGES: usize = 1 << 20;

/// The content of a file of the new tree, open to be read.
enum Content {
    Complete(Base),
    Shared(Arc<SharedOpen>),
    Merged(Arc<SharedOpen>, Arc<Merged>),
}

impl Content {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Content::Complete(base) => base.read_some(offset, buffer),
            Content::Shared(open) => open.base.read_some(offset, buffer),
            Content::Merged(_, merged) => merged.read(offset, buffer),
        }
    }

    fn seek(&self, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        match self {
            Content::Complete(base) => base.seek_from(offset, to),
            Content::Shared(open) => open.base.seek_from(offset, to),
            Content::Merged(_, merged) => merged.seek(offset, to),
        }
    }
}

impl<'a> Walk<'a> {
    /// Whether the content differs, and the ranges that do where they are asked for. One range is
    /// enough to know that it does.
    pub(super) fn content_differs(
        &self,
        new: &New<'a>,
        old: &Old<'a>,
    ) -> Result<(bool, Vec<Range<u64>>), Errno> {
        let at = old.lowers.first().copied();
        let differs = match new.stat.kind() {
            libc::S_IFREG => {
                let ranges = self.differing_ranges(new, old)?;
                return Ok((!ranges.is_empty(), ranges));
            }
            libc::S_IFLNK => {
                let at = at.ok_or(Errno::STALE)?;
                let target = self.overlay.layer(at)?.read_link(at.ino)?;
                self.overlay.read_link(new.node.ino)? != target
            }
            libc::S_IFCHR | libc::S_IFBLK => new.stat.rdev != old.stat.rdev,
            _ => false,
        };
        Ok((differs, Vec::new()))
    }

    /// Whether owner, mode, access lists or extended attributes differ.
    pub(super) fn metadata_differs(&self, new: &New<'a>, old: &Old<'a>) -> Result<bool, Errno> {
        let of = |stat: &crate::tree::Stat| (stat.uid, stat.gid, stat.mode & 0o7777);
        if of(&new.stat) != of(&old.stat) {
            return Ok(true);
        }
        let stack = new.node.stack();
        let mut parts = self.above(&stack).into_iter().chain(self.below(&stack));
        let top = parts.next().ok_or(Errno::STALE)?;
        let below = old.lowers.first().copied().ok_or(Errno::STALE)?;
        let sorted = |at: LowerInode| {
            let mut found = self.overlay.xattrs_below(at)?;
            found.sort();
            Ok::<_, Errno>(found)
        };
        Ok(sorted(top)? != sorted(below)?)
    }

    fn differing_ranges(&self, new: &New<'a>, old: &Old<'a>) -> Result<Vec<Range<u64>>, Errno> {
        let (old_size, new_size) = (old.stat.size, new.stat.size);
        let common = old_size.min(new_size);
        let mut found = Ranges { all: self.query.ranges, found: Vec::new() };
        if old_size != new_size && !self.query.ranges {
            return Ok(std::iter::once(common..old_size.max(new_size)).collect());
        }
        let content = self.open_new(new)?;
        let compared = self.candidates((new, old), &content, common).and_then(|candidates| {
            if candidates.is_empty() {
                return Ok(());
            }
            let old = self.open_old(old)?;
            candidates.into_iter().try_for_each(|range| found.compare(&content, &old, range))
        });
        self.close(new, content).and(compared)?;
        if old_size != new_size {
            found.add(common..old_size.max(new_size));
        }
        Ok(found.found)
    }

    fn open_new(&self, new: &New<'a>) -> Result<Content, Errno> {
        let (overlay, stack) = (self.overlay, new.node.stack());
        match (stack.upper, &stack.lowers[..]) {
            (Some(ino), []) => {
                let file = overlay.open_below(LowerInode { layer: 0, ino })?;
                Ok(Content::Complete(Base::File(file)))
            }
            _ => {
                let open = overlay.shared_open_of(&new.node)?;
                Ok(match open.merged() {
                    Some(merged) => Content::Merged(open, merged),
                    None => Content::Shared(open),
                })
            }
        }
    }

    fn close(&self, new: &New<'a>, content: Content) -> Result<(), Errno> {
        let open = match content {
            Content::Complete(_) => return Ok(()),
            Content::Shared(open) => open,
            Content::Merged(open, merged) => {
                drop(merged);
                open
            }
        };
        self.overlay.close_shared_open(&new.node, open)
    }

    fn open_old(&self, old: &Old<'a>) -> Result<Base, Errno> {
        match &old.lowers[..] {
            [at] => Ok(Base::File(self.overlay.open_below(*at)?)),
            _ => Err(Errno::IO),
        }
    }

    /// The ranges below `end` that may differ: the pages of the layers above the old tree, unless
    /// the file is a copy of another one.
    fn candidates(
        &self,
        (new, old): (&New<'a>, &Old<'a>),
        content: &Content,
        end: u64,
    ) -> Result<Vec<Range<u64>>, Errno> {
        let stack = new.node.stack();
        let all = std::iter::once(0..end).collect();
        if self.below(&stack) != old.lowers {
            return Ok(all);
        }
        let mut runs = Vec::new();
        if let Content::Merged(_, merged) = content {
            let own = merged.runs(0..end).into_iter().filter(|(own, _)| *own);
            runs.extend(own.map(|(_, range)| range));
            runs.push(merged.lower_visible_len().min(end)..end);
        }
        for at in stack.lowers.iter().filter(|at| at.layer < self.first) {
            let layer = self.overlay.layer_of(*at)?;
            let parts = layer.overlay().ok_or(Errno::IO)?;
            let xattrs = parts.xattrs.read(&layer.volume, at.ino).map_err(|err| err.errno())?;
            let Some(id) = xattrs.pages.map(MapId) else { continue };
            let map = PageMap::open(&parts.pages, id, MapAccess::Read);
            let map = map.map_err(|err| err.errno())?;
            runs.extend(own_runs(&map, end));
            // Zeros show in the page in which the file below was cut off.
            runs.push(map.lower_visible_len().min(end)..end);
        }
        runs.retain(|range| !range.is_empty());
        runs.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(runs.len());
        for run in runs {
            match merged.last_mut().filter(|last| last.end >= run.start) {
                Some(last) => last.end = last.end.max(run.end),
                None => merged.push(run),
            }
        }
        Ok(merged)
    }
}

/// The byte ranges below `end` of the pages that are present in a page map.
fn own_runs(map: &PageMap, end: u64) -> Vec<Range<u64>> {
    let (mut runs, mut page, stop) = (Vec::new(), 0, end.div_ceil(PAGE));
    while page < stop {
        let (own, count) = map.run(page, stop - page);
        let next = page.saturating_add(count.max(1)).min(stop);
        if own {
            runs.push(page * PAGE..(next * PAGE).min(end));
        }
        page = next;
    }
    runs
}

/// Ranges that differ.
struct Ranges {
    /// All of them, not only the first.
    all: bool,
    found: Vec<Range<u64>>,
}

impl Ranges {
    fn add(&mut self, range: Range<u64>) {
        match self.found.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => self.found.push(range),
        }
    }

    /// Compares a range of both files. Holes of both are passed over.
    ///
    /// # Errors
    /// EAGAIN if one of them is truncated meanwhile; E2BIG with more than [`MOST_RANGES`]; errors
    /// of reading them.
    fn compare(&mut self, new: &Content, old: &Base, range: Range<u64>) -> Result<(), Errno> {
        let mut at = range.start;
        let (mut one, mut other) = (vec![0; STEP], vec![0; STEP]);
        while at < range.end && (self.all || self.found.is_empty()) {
            let data = next_data(|offset| new.seek(offset, SeekTo::Data), at, range.end)?
                .min(next_data(|offset| old.seek_from(offset, SeekTo::Data), at, range.end)?);
            at = data;
            let len = usize::try_from(range.end - at).unwrap_or(STEP).min(STEP);
            let (one, other) =
                (one.get_mut(..len).unwrap_or_default(), other.get_mut(..len).unwrap_or_default());
            if new.read(at, one)? < len || old.read_some(at, other)? < len {
                return Err(Errno::AGAIN);
            }
            if one != other {
                self.add_bytes(at, one, other);
            }
            if self.found.len() > MOST_RANGES {
                return Err(Errno::TOOBIG);
            }
            at += len as u64;
        }
        Ok(())
    }

    fn add_bytes(&mut self, at: u64, one: &[u8], other: &[u8]) {
        let mut start = None;
        for (index, (one, other)) in one.iter().zip(other).enumerate() {
            match (start, one != other) {
                (None, true) => start = Some(index),
                (Some(from), false) => {
                    self.add(at + from as u64..at + index as u64);
                    start = None;
                }
                _ => {}
            }
        }
        if let Some(from) = start {
            self.add(at + from as u64..at + one.len() as u64);
        }
    }
}

/// The offset of the next data at or after `at`, `end` at most.
fn next_data(
    seek: impl FnOnce(u64) -> Result<u64, Errno>,
    at: u64,
    end: u64,
) -> Result<u64, Errno> {
    match seek(at) {
        Ok(found) => Ok(found.clamp(at, end)),
        Err(Errno::NXIO) => Ok(end),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
        Err(err) => Err(err),
    }
}
