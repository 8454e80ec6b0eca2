//! Open files: whole ones, which are passed on to the volume that they are of, and those with
//! pages in several layers, which are read and written here.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::Overlay;
use super::handles::Handle;
use super::merged_open::{SharedOpen, read_base};
use super::namespace_lock::{NamesRead, Step};
use super::node::{LayerStack, LowerInode, Node};
use super::share::SharedLower;
use crate::layers::pages::{MapAccess, MapId, PAGE, PageMap};
use crate::mapping::OpenMode;
use crate::sys;
use crate::sys::cred::Caller;
use crate::tree::{
    Attributes, DataOnly, Directories, Files, HandleId, Ino, Ioctl, Open, Opened, PageCache, Plane,
    RegisterBacking, SeekTo, Stat, WhyMapped, WriteRequest,
};
use crate::volume::Volume;

/// Progress of an open.
enum Opening {
    Done(Opened),
    /// The base file is to be lent to the kernel first.
    Share(LowerInode),
}

impl Files for Overlay {
    fn open(
        &self,
        ino: Ino,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno> {
        let node = self.node(ino)?;
        if !node.is_regular() {
            return Err(Errno::INVAL);
        }
        if node.is_write_through() {
            let (volume, at) = self.in_base_by_name(&node)?;
            let opened = volume.open(at.ino, how, caller, register)?;
            return Ok(self.handles.add_complete(node, Some(at), opened));
        }
        let cache = match self.has_just_changed(&node) {
            true => PageCache::Dropped,
            false => PageCache::Kept,
        };
        if how.write && !self.is_open(&node) {
            self.with_descriptors(|| self.clone_complete(&node))?;
            if self.is_worth_copying(&node)? {
                self.copy_complete(&node)?;
            }
        }
        let mut shared = None;
        loop {
            let opening = self.with_descriptors(|| {
                self.with_names(|names| {
                    let lent = (register, &mut shared);
                    self.open_locked(names, (&node, ino), (how, cache), caller, lent)
                })
            });
            match opening? {
                Opening::Done(opened) => {
                    self.guard.confirm(&node);
                    return Ok(opened);
                }
                Opening::Share(at) => shared = Some(self.open_shared(at, how, caller, register)?),
            }
        }
    }

    fn release(&self, id: HandleId) -> Result<(), Errno> {
        let outer = id;
        let handle = self.handles.files.write().remove(&id.0).ok_or(Errno::BADF)?;
        let (node, ended) = match &*handle {
            Handle::Complete { node, layer, id } => {
                node.complete_opens.fetch_sub(1, Ordering::AcqRel);
                let ended = match layer {
                    None => self.upper.release(*id),
                    Some(at) => {
                        node.lower_share.closed(outer);
                        self.layer(*at)?.release(*id)
                    }
                };
                (Arc::clone(node), ended)
            }
            Handle::Merged { .. } => {
                return match Arc::into_inner(handle) {
                    Some(Handle::Merged { node, content, .. }) => self.end_merged(node, content),
                    _ => Ok(()), // A request still uses it, and ends it.
                };
            }
        };
        drop(handle);
        self.closed(node);
        ended
    }

    fn read(
        &self,
        _: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        match self.using(id)?.open()? {
            Handle::Complete { node, layer, id } => {
                let (volume, inner) = self.complete(node, *layer)?;
                volume.read(inner, *id, offset, len, deliver)
            }
            Handle::Merged { read: false, .. } => Err(Errno::BADF),
            Handle::Merged { content, .. } => match content.merged() {
                Some(merged) => merged.read_with(offset, len, deliver),
                None => read_base(&content.base, offset, len, deliver),
            },
        }
    }

    fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        match self.using(id)?.open()? {
            Handle::Complete { node, id, layer: None } => {
                let upper = node.upper().ok_or(Errno::STALE)?;
                let at = || match request.append {
                    true => Ok(self.upper.attr(upper, Some(*id))?.stat.size),
                    false => Ok(offset),
                };
                let seek = |offset, to| self.upper.seek(upper, *id, offset, to);
                self.write_within(node, (at, data.len()), seek, |count| {
                    let data = data.get(..count).unwrap_or_default();
                    self.upper.write(*id, offset, data, request, caller)
                })
            }
            Handle::Complete { id, layer: Some(at), .. } => {
                self.layer(*at)?.write(*id, offset, data, request, caller)
            }
            Handle::Merged { node, content, write: true, .. } => {
                if content.merged().is_none() {
                    self.check_room_for_data()?;
                }
                let merged = self.merged_to_write(node, content)?;
                if request.kill_privileges {
                    self.kill_privileges(node, caller)?;
                }
                let at = || if request.append { merged.size() } else { Ok(offset) };
                let seek = |offset, to: SeekTo| {
                    rustix::fs::seek(&**merged.upper(), to.starting_at(offset))
                };
                let count = self.write_within(node, (at, data.len()), seek, |count| {
                    let data = data.get(..count).unwrap_or_default();
                    match request.append {
                        true => merged.append(data, caller).map(|(_, count)| count),
                        false => merged.write(offset, data, caller),
                    }
                })?;
                if let Some(data_only) = request.durable {
                    self.sync_merged(node, &merged, data_only)?;
                }
                Ok(count)
            }
            _ => Err(Errno::BADF),
        }
    }

    fn sync(&self, _: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        self.sync_open(id, data_only)
    }

    fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        self.allocate_open(id, offset, len, mode, caller)
    }

    fn seek(&self, _: Ino, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        match self.using(id)?.open()? {
            Handle::Complete { node, layer, id } => {
                let (volume, inner) = self.complete(node, *layer)?;
                volume.seek(inner, *id, offset, to)
            }
            Handle::Merged { content, .. } => match content.merged() {
                Some(merged) => merged.seek(offset, to),
                None => content.base.seek_from(offset, to),
            },
        }
    }

    fn copy_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        self.copy_between(from, to, len, caller)
    }

    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        request: &Ioctl<'_>,
        caller: &Caller,
    ) -> Result<(i32, Vec<u8>), Errno> {
        let node = self.node(ino)?;
        if let Ok(handle) = self.using(id)
            && let Ok(Handle::Complete { node, layer, id }) = handle.open()
        {
            let (volume, inner) = self.complete(node, *layer)?;
            return volume.ioctl(inner, *id, request, caller);
        }
        if sys::file::changes_attributes(request.command) && !node.is_write_through() {
            self.change_names(|names| self.ensure_upper(names, &node))?;
        }
        let (volume, inner) = self.top(&node)?;
        if node.is_dir() {
            let id = volume.open_dir(inner)?;
            let answered = volume.ioctl(inner, id, request, caller);
            volume.release_dir(id)?;
            return answered;
        }
        let descriptor = volume.open_descriptor(inner, OpenMode::Read)?;
        sys::file::ioctl_attr(descriptor.any()?, request.command, request.data, request.out_size)
    }
}

impl Overlay {
    fn open_locked(
        &self,
        names: &NamesRead<'_>,
        (node, ino): (&Arc<Node>, Ino),
        (how, cache): (Open, PageCache),
        caller: &Caller,
        (register, shared): (&RegisterBacking<'_>, &mut Option<SharedLower<'_>>),
    ) -> Step<Opening> {
        let stack = node.stack();
        let mut slot = node.shared_open.lock();
        self.check_number(node, ino)?; // Nobody else changes it meanwhile.
        let whole = stack.upper.filter(|_| stack.lowers.is_empty());
        if node.lower_share.is_open() && (how.write || whole.is_some()) {
            self.revoke_share_by(node, ino)?;
        }
        // A descriptor from the time when the file was partial stays merged, and so do later ones.
        if let Some(upper) = whole
            && slot.strong_count() == 0
        {
            let opened = Opened { cache, ..self.upper.open(upper, how, caller, register)? };
            return Ok(Opening::Done(self.handles.add_complete(Arc::clone(node), None, opened)));
        }
        if !how.write && self.share {
            // A shared file is shared by all opens: the kernel takes one plane of an inode at a time.
            let is_lent = node.lower_share.is_open();
            if is_lent || slot.strong_count() == 0 && self.may_be_shared(node) {
                let at = stack.lowers.first().copied().ok_or(Errno::STALE)?;
                match shared {
                    None => return Ok(Opening::Share(at)),
                    Some(shared) => {
                        if let Some(opened) = self.note_shared(node, shared) {
                            return Ok(Opening::Done(opened));
                        }
                    }
                }
                if is_lent {
                    self.revoke_share_by(node, ino)?;
                }
            }
        }
        let content = self.shared_open_in(names, node, &mut slot)?;
        drop(slot);
        let node = Arc::clone(node);
        let handle = Handle::Merged { node, content, read: how.read, write: how.write };
        let id = self.handles.add(handle);
        let plane = Plane::Mapped(WhyMapped::Merged);
        Ok(Opening::Done(Opened { id, plane, by_request: false, cache }))
    }

    /// Ends an open file with pages in several layers that nobody uses any more.
    pub(super) fn end_merged(
        &self,
        node: Arc<Node>,
        content: Arc<SharedOpen>,
    ) -> Result<(), Errno> {
        let ended = self.close_shared_open(&node, content);
        self.closed(node);
        ended
    }

    fn closed(&self, node: Arc<Node>) {
        self.count_stored(&node); // What was written back meanwhile may have taken more.
        let ino = node.ino;
        drop(node);
        self.drop_unused(ino);
    }

    /// Drops a node that nobody needs any more.
    pub(super) fn drop_unused(&self, ino: Ino) {
        self.gone(&self.nodes.drop_unused(ino));
    }

    /// Lets go of what nodes were made of that nobody knows any more.
    pub(super) fn gone(&self, nodes: &[Arc<Node>]) {
        for node in nodes {
            if !node.is_linked() {
                self.drop_pages_of(node);
                self.give_back(node);
            } else {
                self.count_stored(node); // What it takes may have changed when it was written back.
            }
            if node.is_dir() {
                drop(self.listings.take(node.ino)); // The number may be another's soon.
            }
            self.let_go(&node.stack());
        }
    }

    fn complete(&self, node: &Node, layer: Option<LowerInode>) -> Result<(&Volume, Ino), Errno> {
        match layer {
            Some(at) => Ok((self.layer(at)?, at.ino)),
            None => Ok((&self.upper, node.upper().ok_or(Errno::STALE)?)),
        }
    }

    pub(super) fn kill_privileges(&self, node: &Node, caller: &Caller) -> Result<(), Errno> {
        self.upper.kill_privileges(node.upper().ok_or(Errno::STALE)?, caller)
    }

    /// Sets the size of a file with pages below; false for a whole one.
    pub(super) fn truncate_merged(
        &self,
        (node, ino): (&Arc<Node>, Ino),
        size: u64,
        caller: &Caller,
    ) -> Result<bool, Errno> {
        if !node.is_regular() {
            return Ok(false);
        }
        let content = self.with_names(|names| {
            // It is not made whole between the look at it and the hold on it.
            let mut slot = node.shared_open.lock();
            if node.stack().lowers.is_empty() && slot.strong_count() == 0 {
                return Ok(None);
            }
            self.revoke_share_by(node, ino)?;
            self.shared_open_in(names, node, &mut slot).map(Some)
        })?;
        let Some(content) = content else { return Ok(false) };
        self.guard.confirm(node);
        let truncated = self.merged_to_write(node, &content).and_then(|merged| {
            if caller.uid != 0 {
                self.kill_privileges(node, caller)?;
            }
            self.with_room(node, 0, || merged.truncate(size, caller))
        });
        self.close_shared_open(node, content)?;
        truncated.map(|()| true)
    }

    /// Blocks of 512 bytes of a file with pages below: those of its upper file, and of those of the
    /// base the share of the pages that show. A base with holes has its blocks spread evenly then.
    pub(super) fn blocks(&self, node: &Node, stack: &LayerStack, upper: &Stat) -> u64 {
        let Some((size, blocks)) = self.blocks_below(stack) else { return upper.blocks };
        let pages = size.div_ceil(PAGE).max(1);
        let shown = self.shown_pages(node).unwrap_or(pages).min(pages);
        let share = u128::from(blocks) * u128::from(shown) / u128::from(pages);
        // In whole pages, as filesystems count.
        let share = u64::try_from(share).unwrap_or(u64::MAX).next_multiple_of(PAGE / 512);
        upper.blocks.saturating_add(share)
    }

    /// Size in bytes and blocks of a file in the lower layers: of several parts no more blocks than
    /// the size takes.
    pub(super) fn blocks_below(&self, stack: &LayerStack) -> Option<(u64, u64)> {
        let whole = *stack.lowers.last()?;
        let found = self.layer(whole).and_then(|volume| volume.attr(whole.ino, None));
        let found = found.map(|attr| attr.stat);
        match stack.frozen {
            None => found.ok().map(|stat| (stat.size, stat.blocks)),
            Some((size, blocks)) => {
                let blocks = blocks.saturating_add(found.map_or(0, |stat| stat.blocks));
                Some((size, blocks.min(size.div_ceil(PAGE) * (PAGE / 512))))
            }
        }
    }

    /// How many pages of the base show; `None` where all do, or where it cannot be told.
    fn shown_pages(&self, node: &Node) -> Option<u64> {
        if let Some(shown) = &*node.shown.lock() {
            return Some(shown.load(Ordering::Relaxed));
        }
        let map =
            PageMap::open(&self.top.pages, MapId(node.stack().pages?), MapAccess::Read).ok()?;
        let mut known = node.shown.lock();
        // Whoever has opened the file meanwhile knows better.
        let shown = known.get_or_insert_with(|| Arc::clone(map.shown()));
        Some(shown.load(Ordering::Relaxed))
    }
}
