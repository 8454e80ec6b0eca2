//! What all descriptors of a file with pages in several layers share, and when such a file is whole.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::Overlay;
use super::lower_answers::Answers;
use super::namespace_lock::{Halt, NamesRead, NamesWrite, Step};
use super::node::{LayerStack, LowerInode, Node};
use super::quota::TWO_PAGES;
use crate::error::cause::because;
use crate::layers::frozen_file::{FrozenFile, FrozenPart};
use crate::layers::merged::{Base, Merged};
use crate::layers::pages::{Fingerprint, MapAccess, MapError, MapId, PageMap, UpperId};
use crate::mapping::OpenMode;
use crate::shown::Show;
use crate::tree::{Attributes, Ino, Xattrs};

const CAPABILITY: &str = "security.capability";

/// What all descriptors of a file with pages below share, from its first open to its last.
pub(super) struct SharedOpen {
    pub(super) base: Base,
    /// Once it has an upper file.
    merged: RwLock<Option<Arc<Merged>>>,
}

impl SharedOpen {
    /// The merged file, once there is an upper one. Nobody waits for whoever reads it.
    pub(super) fn merged(&self) -> Option<Arc<Merged>> {
        self.merged.read().clone()
    }
}

impl Node {
    /// The base of a file with pages below that is open.
    pub(super) fn open_base(&self) -> Option<Arc<OwnedFd>> {
        // The last user waits for this lock before it ends the file.
        let slot = self.shared_open.lock();
        slot.upgrade().and_then(|content| content.base.whole().ok().cloned())
    }
}

impl Overlay {
    /// Whether anybody has a file open.
    pub(super) fn is_open(&self, node: &Node) -> bool {
        node.complete_opens.load(Ordering::Acquire) > 0
            || node.shared_open.lock().strong_count() > 0
    }

    /// Clones a file that is about to be opened for writing and is only below, where that can be.
    pub(super) fn clone_complete(&self, node: &Arc<Node>) -> Result<(), Errno> {
        if !self.may_clone() || node.upper().is_some() {
            return Ok(());
        }
        let answers = Answers::cloning(self);
        self.change_names_and(&answers, |names| self.ensure_upper(names, node)).map(drop)
    }

    pub(super) fn is_worth_copying(&self, node: &Node) -> Result<bool, Errno> {
        if matches!(node.stack().lowers[..], [] | [.., LowerInode::GONE]) {
            return Ok(false);
        }
        let (volume, inner) = self.top(node)?;
        if volume.attr(inner, None)?.stat.size > self.copy_up {
            return Ok(false);
        }
        // Copying would drop the capabilities, as every write does, and nobody has written yet.
        match volume.get_xattr(inner, OsStr::new(CAPABILITY), &mut [0; 256]) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(true),
            found => found.map(|_| false),
        }
    }

    /// Copies a small file as a whole. Nobody else waits for that: the file is in pieces meanwhile,
    /// and stays so as long as others have it open by then.
    pub(super) fn copy_complete(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let content =
            self.with_names(|names| match node.stack().lowers.is_empty() || self.is_open(node) {
                true => Ok(None),
                false => self.shared_open(names, node).map(Some),
            })?;
        let Some(content) = content else { return Ok(()) };
        self.guard.confirm(node);
        let copied = self.merged_to_write(node, &content).and_then(|merged| {
            let size = merged.size()?;
            self.with_room(node, size + TWO_PAGES, || merged.materialize())
        });
        self.close_shared_open(node, content).and(copied)
    }

    /// The same as [`Overlay::content`], for somebody who has not locked the names.
    pub(super) fn shared_open_of(&self, node: &Arc<Node>) -> Result<Arc<SharedOpen>, Errno> {
        let content = self.with_names(|names| self.shared_open(names, node))?;
        self.guard.confirm(node);
        Ok(content)
    }

    /// What the descriptors of a file with pages below share.
    pub(super) fn shared_open(
        &self,
        names: &NamesRead<'_>,
        node: &Arc<Node>,
    ) -> Step<Arc<SharedOpen>> {
        self.shared_open_in(names, node, &mut node.shared_open.lock())
    }

    pub(super) fn shared_open_in(
        &self,
        names: &NamesRead<'_>,
        node: &Arc<Node>,
        slot: &mut Weak<SharedOpen>,
    ) -> Step<Arc<SharedOpen>> {
        if let Some(content) = slot.upgrade() {
            return Ok(content);
        }
        let stack = node.stack();
        // A copy of another overlay that has no page of its own yet needs no map to be read.
        let all_below = stack.pages.is_none() && node.is_linked();
        let upper = stack.upper.filter(|_| !all_below);
        let opened = self.open_lowers(names, node, &stack).and_then(|base| {
            let content = Arc::new(SharedOpen { base, merged: RwLock::new(None) });
            if let Some(upper) = upper {
                self.merged(names, node, &content, upper)?;
            }
            Ok(content)
        });
        let content = opened.inspect_err(|_| names.drop_later(self.guard.closed(node)))?;
        *slot = Arc::downgrade(&content);
        Ok(content)
    }

    /// The parts of a file below the upper one, open to be read.
    fn open_lowers(
        &self,
        names: &NamesRead<'_>,
        node: &Arc<Node>,
        stack: &LayerStack,
    ) -> Step<Base> {
        let (whole, parts) = stack.lowers.split_last().ok_or(Errno::STALE)?;
        // The held file is that of first touch, wherever its name leads to by now.
        let file = match self.guard.file(node) {
            Some(file) => file,
            None if *whole == LowerInode::GONE && stack.pages.is_none() && parts.is_empty() => {
                return Err(Halt::Failed(because(Errno::IO, "its base is gone")));
            }
            // Each page of it that shows is behind its end, which is an error.
            None if *whole == LowerInode::GONE => {
                Arc::new(rustix::fs::memfd_create("gone", MemfdFlags::CLOEXEC)?)
            }
            None if self.is_plain(*whole) => names.below().reader(*whole)?,
            None => self.open_below(*whole)?,
        };
        if self.is_plain(*whole) {
            self.guard.opened(node, &file);
        }
        if parts.is_empty() {
            return Ok(Base::File(file));
        }
        let mut opened = Vec::new();
        let mut expected = None;
        for at in parts {
            let layer = self.layer_of(*at)?;
            let overlay = layer.overlay().ok_or(Errno::IO)?;
            let pages =
                overlay.xattrs.read(&layer.volume, at.ino).map_err(|err| err.errno())?.pages;
            // A copy of another overlay without a page of its own has no page map.
            let Some(id) = pages.map(MapId) else { continue };
            let told = |err: MapError| {
                log::error!("{}: page map {id}: {err}", self.path_of(node).shown());
                err.errno()
            };
            if overlay.contested.contains(&id) {
                return Err(Halt::Failed(told(MapError::Damaged {
                    what: "another file names it",
                })));
            }
            let map = PageMap::open(&overlay.pages, id, MapAccess::Read).map_err(told)?;
            expected = Some(*map.base());
            opened.push(FrozenPart { file: self.open_below(*at)?, map });
        }
        let Some(expected) = expected else { return Ok(Base::File(file)) };
        let changes = self.is_plain(*whole) || *whole == LowerInode::GONE;
        let state = changes.then(|| self.base_state(node, &expected));
        Ok(Base::Layers(Arc::new(FrozenFile::new(opened, file, state)?)))
    }

    /// Whether a file is a copy right over one of a plain layer, which others may change.
    pub(super) fn is_over_plain(&self, stack: &LayerStack) -> bool {
        matches!(stack.lowers[..], [at] if self.is_plain(at) || at == LowerInode::GONE)
    }

    /// The merged file of a content that has an upper file.
    pub(super) fn merged(
        &self,
        names: &NamesRead<'_>,
        node: &Node,
        content: &SharedOpen,
        upper: Ino,
    ) -> Step<Arc<Merged>> {
        let mut slot = content.merged.write();
        if let Some(merged) = &*slot {
            return Ok(Arc::clone(merged));
        }
        let id = match node.stack().pages {
            Some(id) => id,
            None => self.map_of_others(names, node, upper)?,
        };
        if self.top.contested.contains(&MapId(id)) {
            log::error!(
                "{}: another file names its page map {}",
                self.path_of(node).shown(),
                MapId(id)
            );
            let cause = "another file has its page map";
            return Err(Halt::Failed(because(Errno::IO, cause)));
        }
        let told = |err: MapError| {
            log::error!("{}: page map {}: {err}", self.path_of(node).shown(), MapId(id));
            err.errno()
        };
        let map = PageMap::open(&self.top.pages, MapId(id), MapAccess::Write).map_err(told)?;
        let file = self.upper.open_descriptor(upper, OpenMode::Write)?.shared_writer()?;
        if !self.used_maps.lock().contains(&id) {
            // Everything since is this daemon's own.
            map.check_data(&file).map_err(told)?;
            self.used_maps.lock().insert(id);
        }
        *node.shown.lock() = Some(Arc::clone(map.shown()));
        let state = self.is_over_plain(&node.stack()).then(|| self.base_state(node, map.base()));
        let merged = Merged::new(content.base.clone(), file, self.counted(map))?;
        let merged = Arc::new(match state {
            Some(state) => merged.over(state),
            None => merged,
        });
        *slot = Some(Arc::clone(&merged));
        Ok(merged)
    }

    /// A page map for an upper file of another overlay whose data is all below.
    fn map_of_others(&self, names: &NamesRead<'_>, node: &Node, upper: Ino) -> Step<u64> {
        let below = node.stack().lowers.first().copied().filter(|_| node.is_linked());
        let below = below.ok_or(Errno::IO)?;
        let base = names.below().fingerprint(below)?;
        let pages = self.new_page_map(&base, base.size, upper)?;
        self.top
            .xattrs
            .write(&self.upper, upper, "mmapfs.pages", pages.to_string().as_bytes())
            .inspect_err(|_| self.drop_page_map(pages))?;
        node.change_stack(|stack| stack.pages = Some(pages));
        node.set_namespace_dirty();
        Ok(pages)
    }

    /// The same for one that is about to be changed.
    pub(super) fn merged_to_write(
        &self,
        node: &Arc<Node>,
        content: &SharedOpen,
    ) -> Result<Arc<Merged>, Errno> {
        if let Some(merged) = content.merged() {
            return Ok(merged);
        }
        let merged = self.change_names(|names| {
            let upper = self.ensure_upper(names, node)?;
            self.merged(names, node, content, upper)
        })?;
        self.guard.confirm(node);
        Ok(merged)
    }

    /// The merged file of a node with parts in several layers.
    pub(super) fn merged_if_any(&self, node: &Arc<Node>) -> Result<Option<Arc<Merged>>, Errno> {
        let content = self.shared_open_of(node)?;
        let merged = content.merged();
        self.close_shared_open(node, content)?;
        Ok(merged)
    }

    /// Changes pages of a file that is not whole, for the daemon itself.
    pub(super) fn change_pages(
        &self,
        node: &Arc<Node>,
        change: impl FnOnce(&Merged) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let content = self.with_names(|names| {
            let mut slot = node.shared_open.lock();
            self.revoke_share(node);
            self.shared_open_in(names, node, &mut slot)
        })?;
        self.guard.confirm(node);
        let changed = self.merged_to_write(node, &content).and_then(|merged| change(&merged));
        self.close_shared_open(node, content).and(changed)
    }

    /// A new page map for a copy of a lower file, whose pages up to `limit`, in bytes, are those of
    /// the base.
    pub(super) fn new_page_map(
        &self,
        base: &Fingerprint,
        limit: u64,
        upper: Ino,
    ) -> Result<u64, Errno> {
        let upper = UpperId::of(&Fingerprint::of(self.upper.open_path(upper)?)?);
        loop {
            let id = MapId::random();
            match PageMap::create(&self.top.pages, id, *base, limit, upper) {
                Ok(_) => {
                    self.used_maps.lock().insert(id.0);
                    self.stats.partial_files.fetch_add(1, Ordering::Relaxed);
                    return Ok(id.0);
                }
                Err(Errno::EXIST) => {}
                Err(err) => return Err(err),
            }
        }
    }

    pub(super) fn drop_page_map(&self, id: u64) {
        self.uncount_map(id);
        self.used_maps.lock().remove(&id);
        if let Err(err) = PageMap::remove(&self.top.pages, MapId(id)) {
            log::warn!("page map {}: removing it: {err}", MapId(id));
        }
        self.count_own();
    }

    /// Notes in the maps that were in use that all of their pages are durable, when they are.
    pub(super) fn sync_page_maps(&self) -> Result<(), Errno> {
        let used = std::mem::take(&mut *self.used_maps.lock());
        for id in used {
            match PageMap::open(&self.top.pages, MapId(id), MapAccess::Write) {
                Ok(mut map) => {
                    if let Some(seen) = map.unsynced() {
                        map.sync_bits(&seen)?;
                        map.save_limit()?;
                    }
                }
                Err(MapError::Io(err)) if err != Errno::NOENT => return Err(err),
                // Whoever opens its file is told.
                Err(err) => log::warn!("page map {}: {err}", MapId(id)),
            }
        }
        Ok(())
    }

    /// Drops the page map of a file that is gone.
    pub(super) fn drop_pages_of(&self, node: &Node) {
        let (mut pages, mut path) = (None, None);
        node.change_stack(|stack| (pages, path) = (stack.pages.take(), stack.path.take()));
        path.into_iter().for_each(|id| self.drop_path(id));
        if let Some(pages) = pages {
            self.drop_page_map(pages);
        }
    }

    /// Makes a file whole of which nothing below is seen any more, at its last close. Returns the
    /// number of the page map, which is to go when that is durable.
    fn finish(
        &self,
        _: &NamesWrite<'_>,
        node: &Node,
        content: &Arc<SharedOpen>,
    ) -> Step<Option<u64>> {
        let mut slot = node.shared_open.lock();
        // While somebody else has it open it may be that its base is just being read.
        if Arc::strong_count(content) > 1 {
            return Ok(None);
        }
        if !content.merged().is_some_and(|merged| merged.is_complete()) {
            return Ok(None);
        }
        let Some(upper) = node.upper() else { return Ok(None) };
        if let Some(merged) = content.merged.write().take() {
            merged.sync_written()?; // The map that says where its pages are is about to go.
        }
        for mark in ["overlay.metacopy", "overlay.redirect", "mmapfs.path", "mmapfs.pages"] {
            self.top.xattrs.remove(&self.upper, upper, mark)?;
        }
        let mut left = LayerStack::default();
        let mut pages = None;
        node.change_stack(|stack| {
            left.lowers = std::mem::take(&mut stack.lowers);
            pages = stack.pages.take();
            stack.path = None; // The path goes at the next mount, when that is durable.
        });
        self.nodes.note_not_below(node.ino, &left.lowers);
        node.set_namespace_dirty();
        *slot = Weak::new();
        drop(slot);
        self.let_go(&left);
        self.count_stored(node);
        Ok(pages)
    }

    /// Ends one use of what the descriptors of a file share.
    pub(super) fn close_shared_open(
        &self,
        node: &Arc<Node>,
        content: Arc<SharedOpen>,
    ) -> Result<(), Errno> {
        let closed = self.make_complete(node, content);
        let slot = node.shared_open.lock();
        let base = match slot.strong_count() {
            0 => self.guard.closed(node),
            _ => None,
        };
        drop(slot);
        drop(base);
        self.evict_bases();
        closed
    }

    /// Makes a file whole of which nothing below is seen any more, if this was its last use.
    fn make_complete(&self, node: &Arc<Node>, content: Arc<SharedOpen>) -> Result<(), Errno> {
        let merged = content.merged();
        let whole = merged.as_ref().is_some_and(|merged| merged.is_complete());
        // The page map of a file without a name goes with the node: it may be opened by its
        // descriptor again.
        if !node.is_linked() || !whole {
            return Ok(());
        }
        if let Some(merged) = merged {
            // Its data must not come later than the word that all of it is there. Nobody waits for
            // this but who closes it.
            merged.sync_written()?;
        }
        let mut last = Some(content);
        let finished = self.change_names(|names| {
            let Some(content) = last.take() else { return Ok(None) };
            let finished = match node.is_linked() {
                true => self.finish(names, node, &content),
                false => Ok(None),
            };
            // Let go of with the names locked: of two who close it, the later one is the last.
            names.drop_later(Arc::into_inner(content));
            finished
        })?;
        let (Some(pages), Some(upper)) = (finished, node.upper()) else { return Ok(()) };
        // No power cut leaves a file that names a map which is gone.
        let durable = self.upper.open_descriptor(upper, OpenMode::Read);
        let durable = durable.and_then(|file| rustix::fs::fsync(file.any()?));
        match durable {
            Ok(()) => self.drop_page_map(pages),
            // It goes when the scratch is opened again.
            Err(err) => log::warn!("page map {}: it stays: {err}", MapId(pages)),
        }
        Ok(())
    }
}

thread_local! {
    /// What is read of a file without pages of its own.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn read_base(
    base: &Base,
    offset: u64,
    len: usize,
    deliver: &mut dyn FnMut(&[u8]),
) -> Result<(), Errno> {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        let count = base.read_some(offset, buffer)?;
        deliver(buffer.get(..count).unwrap_or_default());
        Ok(())
    })
}
