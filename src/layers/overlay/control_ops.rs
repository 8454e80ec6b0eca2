//! Control verbs on a file of several layers. Each run of a range goes to the layer that gives its
//! pages.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::Overlay;
use super::node::{LowerInode, Node};
use super::quota::{NEW_FILE, TWO_PAGES};
use crate::advice::{Advice, Effect};
use crate::layers::merged::Merged;
use crate::layers::pages::PAGE;
use crate::mapping::{AdviceEffect, BackingFile, FlushEffect, whole_pages};
use crate::range::ByteRange;
use crate::sys;
use crate::sys::advise::SyncMode;
use crate::tree::{
    Advise, Attributes, Found, Ino, Inspect, NotAdvised, OpenInode, PageState, WhyMapped,
};
use crate::volume::{PinnedFile, Volume};

/// Pinned file of one layer.
pub(super) struct Part<'a> {
    volume: &'a Volume,
    found: Found,
    view: PinnedFile,
}

/// Layers of a regular file; at least one is present.
pub(super) struct Stack<'a> {
    upper: Option<Part<'a>>,
    /// The base file; `None` for a complete upper file.
    below: Option<Part<'a>>,
    /// The merged file; `None` if one layer gives all pages.
    merged: Option<Arc<Merged>>,
    /// The base of visible pages is gone.
    lacks_base: bool,
}

/// Whether an advice drops pages that no lower layer has.
fn drops_pages(advice: Advice) -> bool {
    matches!(
        advice,
        Advice::DontNeed
            | Advice::DontNeedLocked
            | Advice::Free
            | Advice::Remove
            | Advice::WipeOnFork
    )
}

impl<'a> Stack<'a> {
    /// Runs of a range, each with its layer; `true` for the upper layer.
    fn runs(&self, range: ByteRange) -> Vec<(&Part<'a>, bool, ByteRange)> {
        let run = |is_upper: bool, start, end| {
            let part = if is_upper { self.upper.as_ref() } else { self.below.as_ref() };
            part.map(|part| (part, is_upper, ByteRange { start, end }))
        };
        let runs = match &self.merged {
            Some(merged) => merged.runs(range.start..range.end),
            None => vec![(self.upper.is_some(), range.start..range.end)],
        };
        runs.into_iter().filter_map(|(upper, part)| run(upper, part.start, part.end)).collect()
    }

    fn parts(&self) -> impl Iterator<Item = &Part<'a>> {
        self.upper.iter().chain(&self.below)
    }

    /// Number of pages of a range that the upper file gives.
    pub(super) fn at_stake(&self, range: ByteRange) -> u64 {
        let upper = self.runs(range).into_iter().filter(|(_, is_upper, _)| *is_upper);
        upper.map(|(_, _, part)| part.len().div_ceil(sys::page_size() as u64)).sum()
    }

    /// State of the pages of a range. Resident pages of all layers count. Dirty pages of the base
    /// do not: a flush of the scratch does not write them.
    pub(super) fn page_state(&self, range: ByteRange) -> PageState {
        let states = self.runs(range).into_iter().map(|(part, is_upper, run)| {
            let state = part.view.page_state(run);
            let resident = PageState { resident: state.resident, ..PageState::NONE };
            if is_upper { state } else { resident }
        });
        states.fold(PageState::NONE, PageState::and)
    }

    /// Checks that the base exists if pages of it are visible.
    ///
    /// # Errors
    /// EIO if it is gone.
    fn check_base(&self) -> Result<(), Errno> {
        if self.lacks_base { Err(Errno::IO) } else { Ok(()) }
    }

    pub(super) fn mappable(&self) -> Result<(), Errno> {
        self.parts().try_for_each(|part| part.view.mappable())
    }

    pub(super) fn set_locked(&self, range: ByteRange, lock: bool) -> Result<ByteRange, Errno> {
        let page = sys::page_size() as u64;
        if lock {
            self.check_base()?;
            let range = range.outward(page);
            for (part, _, run) in self.runs(range) {
                if let Err(err) = part.view.set_locked(run, true) {
                    self.parts()
                        .try_for_each(|part| part.view.set_locked(range, false).map(drop))?;
                    return Err(err);
                }
            }
            return Ok(range);
        }
        let mut unlocked = range.inward(page);
        for part in self.parts() {
            unlocked = part.view.set_locked(range, false)?;
        }
        Ok(unlocked)
    }

    /// Gives a harmless advice to the layers of a range. A persistent advice goes to all layers, so
    /// that pages which are written later have it too.
    fn hint(&self, range: ByteRange, advice: Advice) -> Result<(), Errno> {
        if advice.is_persistent() {
            return self.parts().try_for_each(|part| {
                part.volume.advise_pinned(&part.view, range, advice).map(drop)
            });
        }
        self.runs(range).into_iter().try_for_each(|(part, _, run)| {
            part.volume.advise_pinned(&part.view, run, advice).map(drop)
        })
    }
}

impl Advise for Overlay {
    fn advise(
        &self,
        found: &Found,
        range: ByteRange,
        advice: Advice,
        destroy: bool,
    ) -> Result<AdviceEffect, NotAdvised> {
        self.at_node(found, |node| self.give_advice(node, found, range, (advice, destroy)))
    }

    fn flush(&self, found: &Found, range: ByteRange, mode: SyncMode) -> Result<FlushEffect, Errno> {
        self.at_node(found, |node| self.flush_node(node, found, range, mode))
    }

    fn set_locked(&self, found: &Found, range: ByteRange, lock: bool) -> Result<ByteRange, Errno> {
        self.at_node(found, |node| self.stack(node, &found.path)?.set_locked(range, lock))
    }
}

impl Overlay {
    /// Files that clients have open. No lower layer is accessed.
    pub(super) fn open_nodes(&self) -> Vec<OpenInode> {
        let open = self.handles.open_nodes();
        let asks = open.iter().any(|(node, _)| node.is_write_through());
        let in_base = if asks { self.base().open_files() } else { Vec::new() };
        let in_base: HashMap<Ino, Option<WhyMapped>> =
            in_base.into_iter().map(|file| (file.ino, file.why_mapped)).collect();
        let listed = open.into_iter().map(|(node, handles)| {
            let mut path = self.path_of(&node);
            if !node.is_linked() {
                path.as_mut_os_string().push(" (deleted)");
            }
            let why_mapped = match self.in_base(&node).filter(|_| node.is_write_through()) {
                Some(at) => in_base.get(&at.ino).copied().flatten(),
                None => self.reason(&node, &path).unwrap_or(None),
            };
            OpenInode { ino: node.ino, path, why_mapped, handles }
        });
        listed.collect()
    }

    /// Pins a file of one layer.
    fn part<'a>(
        &self,
        volume: &'a Volume,
        inner: Ino,
        path: &Path,
        write: bool,
    ) -> Result<Part<'a>, Errno> {
        let fd = volume.open_path(inner)?;
        let stat = volume.attr(inner, None)?.stat;
        let found = Found { ino: inner, stat, path: path.to_owned(), fd };
        let view = volume.pin_file(&found, write)?;
        Ok(Part { volume, found, view })
    }

    /// Layers of a file, pinned.
    ///
    /// # Errors
    /// EISDIR for a directory, EINVAL for other files that are not regular; errors of opening.
    pub(super) fn stack(&self, node: &Arc<Node>, path: &Path) -> Result<Stack<'_>, Errno> {
        if !node.is_regular() {
            return Err(if node.is_dir() { Errno::ISDIR } else { Errno::INVAL });
        }
        let parts = node.stack();
        let below = |at: &LowerInode| self.part(self.layer(*at)?, at.ino, path, false);
        let lacks_base = parts.lowers.last() == Some(&LowerInode::GONE);
        // Advice for pages of frozen layers goes to the whole file below them.
        let below = parts.lowers.last().filter(|_| !lacks_base).map(below).transpose()?;
        let upper = parts.upper.map(|upper| self.part(&self.upper, upper, path, false));
        let upper = upper.transpose()?;
        let merged = match (&upper, parts.lowers.first()) {
            (Some(_), Some(_)) => self.merged_if_any(node)?,
            _ => None,
        };
        Ok(Stack { upper, below, merged, lacks_base })
    }

    /// Backing files of a node that are in use already.
    pub(super) fn parts_in_use(&self, node: &Arc<Node>) -> Result<Vec<Arc<BackingFile>>, Errno> {
        let parts = node.stack();
        let mut files = Vec::new();
        if let Some(upper) = parts.upper {
            let stat = self.upper.attr(upper, None)?.stat;
            files.extend(self.upper.file_in_use(&stat));
        }
        for at in &parts.lowers {
            let volume = self.layer(*at)?;
            files.extend(volume.file_in_use(&volume.attr(at.ino, None)?.stat));
        }
        Ok(files)
    }

    /// Reason why the daemon copies the bytes of a file; `None` for passthrough.
    pub(super) fn reason(&self, node: &Arc<Node>, path: &Path) -> Result<Option<WhyMapped>, Errno> {
        if let Some((volume, inner)) = self.found_in_base(node, path)? {
            return Ok(volume.why_mapped(&inner));
        }
        let parts = node.stack();
        let passes_through = node.complete_opens.load(std::sync::atomic::Ordering::Acquire) > 0;
        match (parts.upper, parts.lowers.first()) {
            (Some(_), Some(_)) => Ok(Some(WhyMapped::Merged)),
            (None, Some(_)) if passes_through => Ok(None),
            (None, Some(_)) => Ok(Some(WhyMapped::Below)),
            (Some(upper), None) => {
                Ok(self.upper.why_mapped(&self.part(&self.upper, upper, path, false)?.found))
            }
            (None, None) => Err(Errno::STALE),
        }
    }

    /// Volume and file of the base for a write-through file; `None` for other files.
    pub(super) fn found_in_base(
        &self,
        node: &Arc<Node>,
        path: &Path,
    ) -> Result<Option<(&Volume, Found)>, Errno> {
        if !node.is_write_through() {
            return Ok(None);
        }
        let at = self.in_base(node).ok_or(Errno::STALE)?;
        let volume = self.layer(at)?;
        let fd = volume.open_path(at.ino)?;
        let stat = volume.attr(at.ino, None)?.stat;
        Ok(Some((volume, Found { ino: at.ino, stat, path: path.to_owned(), fd })))
    }

    /// Makes the kernel write back and drop its cached pages of a range.
    fn drop_cached(&self, node: &Node, range: ByteRange) {
        if !range.is_empty()
            && let Some(caches) = self.caches.get()
            && let Err(err) = caches.now(node.lower_share.number(), range.start, range.len())
        {
            log::debug!("inode {}: dropping the kernel's cached pages: {err}", node.ino);
        }
    }

    /// Gives an advice. Pages of the scratch behave like written pages of a private mapping in
    /// madvise(2): when they are dropped, the pages of the base are visible again.
    pub(super) fn give_advice(
        &self,
        node: &Arc<Node>,
        found: &Found,
        range: ByteRange,
        (advice, destroy): (Advice, bool),
    ) -> Result<AdviceEffect, NotAdvised> {
        if let Some((volume, inner)) = self.found_in_base(node, &found.path)? {
            return volume.advise(&inner, range, advice, destroy);
        }
        let page = sys::page_size() as u64;
        let range = match advice.effect() {
            Effect::Hint => range.outward(page),
            _ => whole_pages(range, page, found.stat.size),
        };
        if drops_pages(advice) || advice == Advice::PageOut {
            // Dirty pages of client mappings are written back first, and count as written.
            self.drop_cached(node, range);
        }
        let stack = self.stack(node, &found.path)?;
        stack.check_base()?;
        if drops_pages(advice) && !destroy {
            match stack.at_stake(range) {
                0 if advice.effect() == Effect::Destroy => return Err(NotAdvised::Destroys),
                0 => {}
                pages => return Err(NotAdvised::AtStake(pages)),
            }
        }
        let resident_before = stack.page_state(range).resident;
        let started = Instant::now();
        let most = match advice {
            Advice::PopulateWrite => NEW_FILE + TWO_PAGES + range.len(),
            Advice::Remove => NEW_FILE + TWO_PAGES,
            _ => 0,
        };
        self.with_room(node, most, || self.carry_out(node, &stack, range, (advice, destroy)))?;
        let elapsed = started.elapsed();
        if drops_pages(advice) {
            self.drop_cached(node, range);
        }
        let after = self.stack(node, &found.path)?.page_state(range);
        Ok(AdviceEffect { range, resident_before, resident_after: after.resident, elapsed })
    }

    /// Carries an advice out on the layers of a file.
    fn carry_out(
        &self,
        node: &Arc<Node>,
        stack: &Stack<'_>,
        range: ByteRange,
        (advice, destroy): (Advice, bool),
    ) -> Result<(), Errno> {
        let Some(below) = &stack.below else {
            let Some(upper) = &stack.upper else { return Err(Errno::STALE) };
            let write = matches!(advice, Advice::Remove | Advice::PopulateWrite);
            let view = self.upper.pin_file(&upper.found, write)?;
            return self.upper.advise_pinned(&view, range, advice).map(drop);
        };
        if range.is_empty() {
            return Ok(());
        }
        match advice {
            Advice::DontNeed | Advice::DontNeedLocked | Advice::Free => {
                if let Some(merged) = stack.merged.as_ref().filter(|_| destroy) {
                    merged.revert(range.start / PAGE..range.end.div_ceil(PAGE))?;
                }
                // MADV_FREE exists for anonymous memory alone. It may free pages at any time: here
                // it does so at once.
                let advice = if advice == Advice::Free { Advice::DontNeed } else { advice };
                let mut runs = stack.runs(range).into_iter().filter(|(_, is_upper, _)| !is_upper);
                runs.try_for_each(|(_, _, run)| {
                    below.volume.advise_pinned(&below.view, run, advice).map(drop)
                })
            }
            Advice::Remove => self.change_pages(node, |merged| {
                let mode =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                merged.allocate(range.start, range.len(), mode, &self.me)
            }),
            Advice::PopulateWrite => {
                self.change_pages(node, |merged| merged.own(range.start..range.end))
            }
            _ => stack.hint(range, advice),
        }
    }

    /// Flushes a range of a file: makes pages of the scratch durable. Pages of the base are not
    /// flushed.
    pub(super) fn flush_node(
        &self,
        node: &Arc<Node>,
        found: &Found,
        range: ByteRange,
        mode: SyncMode,
    ) -> Result<FlushEffect, Errno> {
        if let Some((volume, inner)) = self.found_in_base(node, &found.path)? {
            return volume.flush(&inner, range, mode);
        }
        let range = range.outward(sys::page_size() as u64);
        let started = Instant::now();
        if mode != SyncMode::Async {
            self.drop_cached(node, range);
        }
        let stack = self.stack(node, &found.path)?;
        let Some(upper) = &stack.upper else {
            let nothing = Some(0);
            let elapsed = started.elapsed();
            return Ok(FlushEffect { range, dirty_before: nothing, dirty_after: nothing, elapsed });
        };
        let Some(merged) = &stack.merged else {
            return self.upper.flush_pinned(&upper.view, range, mode);
        };
        let dirty = || upper.view.cache_stat(range).map(|stat| stat.dirty);
        let dirty_before = dirty();
        if mode != SyncMode::Async {
            self.sync_merged(node, merged, false)?;
        }
        let elapsed = started.elapsed();
        Ok(FlushEffect { range, dirty_before, dirty_after: dirty(), elapsed })
    }
}
