//! Open files and directories of an overlay by number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rustix::io::Errno;

use super::Overlay;
use super::merged_open::SharedOpen;
use super::node::{LowerInode, Node};
use super::readdir::OpenDir;
use crate::tree::{HandleId, Ino, Opened};

/// An open file.
pub(super) enum Handle {
    /// Of one volume: the upper one without a layer.
    Complete {
        node: Arc<Node>,
        layer: Option<LowerInode>,
        id: HandleId,
    },
    Merged {
        node: Arc<Node>,
        content: Arc<SharedOpen>,
        read: bool,
        write: bool,
    },
}

impl Handle {
    pub(super) fn node(&self) -> &Arc<Node> {
        match self {
            Handle::Complete { node, .. } | Handle::Merged { node, .. } => node,
        }
    }
}

/// An open file while a request uses it. A reader has the answer before the request has ended, and may
/// have closed the file by then: whoever is the last to use it ends it.
pub(super) struct Using<'a> {
    overlay: &'a Overlay,
    /// Until the end.
    handle: Option<Arc<Handle>>,
    id: HandleId,
}

impl Using<'_> {
    /// What is open.
    ///
    /// # Errors
    /// EBADF, which does not come before the end.
    pub(super) fn open(&self) -> Result<&Handle, Errno> {
        self.handle.as_deref().ok_or(Errno::BADF)
    }
}

impl Drop for Using<'_> {
    fn drop(&mut self) {
        let last = self.handle.take().and_then(Arc::into_inner);
        if let Some(Handle::Merged { node, content, .. }) = last
            && let Err(err) = self.overlay.end_merged(node, content)
        {
            log::warn!("closing file {}: {err}", self.id.0);
        }
    }
}

impl Overlay {
    /// An open file, for a request. The names are not locked when that ends.
    pub(super) fn using(&self, id: HandleId) -> Result<Using<'_>, Errno> {
        Ok(Using { overlay: self, handle: Some(self.handles.file(id)?), id })
    }
}

/// Open files and directories by number.
#[derive(Default)]
pub(super) struct HandleTable {
    next: AtomicU64,
    pub(super) files: RwLock<HashMap<u64, Arc<Handle>>>,
    dirs: RwLock<HashMap<u64, Arc<OpenDir>>>,
}

impl HandleTable {
    pub(super) fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn add(&self, handle: Handle) -> HandleId {
        let id = self.id();
        self.files.write().insert(id, Arc::new(handle));
        HandleId(id)
    }

    pub(super) fn add_complete(
        &self,
        node: Arc<Node>,
        layer: Option<LowerInode>,
        inner: Opened,
    ) -> Opened {
        node.complete_opens.fetch_add(1, Ordering::AcqRel);
        let id = self.add(Handle::Complete { node, layer, id: inner.id });
        Opened { id, ..inner }
    }

    pub(super) fn add_dir(&self, dir: OpenDir) -> HandleId {
        let id = self.id();
        self.dirs.write().insert(id, Arc::new(dir));
        HandleId(id)
    }

    fn file(&self, id: HandleId) -> Result<Arc<Handle>, Errno> {
        self.files.read().get(&id.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn dir(&self, id: HandleId) -> Result<Arc<OpenDir>, Errno> {
        self.dirs.read().get(&id.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn remove_dir(&self, id: HandleId) -> Result<Arc<OpenDir>, Errno> {
        self.dirs.write().remove(&id.0).ok_or(Errno::BADF)
    }

    /// The handle of a whole file in the volume of the node's topmost part.
    pub(super) fn inner(&self, id: HandleId) -> Option<HandleId> {
        match &**self.files.read().get(&id.0)? {
            Handle::Complete { id, layer: None, .. } => Some(*id),
            Handle::Complete { id, node, .. } if node.is_write_through() => Some(*id),
            _ => None,
        }
    }

    /// How often a file is open.
    pub(super) fn opens_of(&self, ino: Ino) -> u64 {
        self.files.read().values().filter(|handle| handle.node().ino == ino).count() as u64
    }

    /// Every file that is open, with how often.
    pub(super) fn open_nodes(&self) -> Vec<(Arc<Node>, u64)> {
        let mut open = std::collections::BTreeMap::new();
        for handle in self.files.read().values() {
            let node = handle.node();
            open.entry(node.ino).or_insert_with(|| (Arc::clone(node), 0)).1 += 1;
        }
        open.into_values().collect()
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.files.read().len() as u64, self.dirs.read().len() as u64)
    }
}
