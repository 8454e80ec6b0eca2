//! fsync(2). Besides the data it makes all parts of a copy durable that clients do not know of and
//! cannot synchronise: overlay xattrs, page map, entry in the index, and the directories that were
//! copied up to hold the copy.

use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::handles::Handle;
use super::ino::upper_only_ino;
use super::node::Node;
use crate::layers::merged::Merged;
use crate::tree::{DataOnly, Directories, Files, HandleId, Ino};

impl Overlay {
    /// Makes an open file durable; if it was copied up, also the directories on its path.
    ///
    /// # Errors
    /// EBADF for an unknown handle; those of fsync(2).
    pub(super) fn sync_open(&self, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        let using = self.using(id)?;
        let handle = using.open()?;
        let synced = match handle {
            Handle::Complete { node, layer: None, id } => {
                let upper = node.upper().ok_or(Errno::STALE)?;
                // A client that has made a file in the scratch synchronises its directory itself.
                let dirty =
                    if upper_only_ino(upper) == node.ino { 0 } else { node.namespace_dirty() };
                self.upper.sync(upper, *id, data_only && dirty == 0)?;
                self.sync_parents(node, dirty)
            }
            Handle::Complete { id, layer: Some(at), .. } => {
                self.layer(*at)?.sync(at.ino, *id, data_only)
            }
            Handle::Merged { node, content, .. } => match content.merged() {
                Some(merged) => self.sync_merged(node, &merged, data_only),
                None => Ok(()), // The file was not changed.
            },
        };
        self.count_stored(handle.node());
        synced
    }

    /// Makes a partial copy durable: map, data, synced bits, and the directories on its path.
    pub(super) fn sync_merged(
        &self,
        node: &Node,
        merged: &Merged,
        data_only: bool,
    ) -> Result<(), Errno> {
        let dirty = node.namespace_dirty();
        if dirty != 0 {
            // The map is durable first: no partial copy reaches the disk without it.
            merged.sync_map()?;
            rustix::fs::fsync(&self.top.pages)?;
        }
        merged.sync(data_only && dirty == 0)?;
        self.sync_parents(node, dirty)
    }

    /// Fsyncs the directories that were copied up to hold `node`, unless they are durable already
    /// (`dirty` is 0). `dirty` was read from the node before its own parts were synchronised.
    fn sync_parents(&self, node: &Node, dirty: u64) -> Result<(), Errno> {
        if dirty == 0 {
            return Ok(());
        }
        if node.stack().links.is_some() {
            self.sync_upper_dir(self.top.index.dir)?;
        }
        let mut synced = Vec::new();
        let mut next = node.parent();
        while let Some(dir) = next {
            let (dirty, upper) = (dir.namespace_dirty(), dir.upper());
            if let Some(upper) = upper {
                self.sync_upper_dir(upper)?;
            }
            next = dir.parent().filter(|_| dirty != 0);
            if upper.is_some() {
                synced.push((dir, dirty));
            }
        }
        synced.iter().for_each(|(dir, dirty)| dir.mark_durable(*dirty));
        node.mark_durable(dirty);
        Ok(())
    }

    /// Makes a directory that was copied up durable, and the directories on its path.
    ///
    /// # Errors
    /// ESTALE for an unknown directory; errors of fsync(2).
    pub(super) fn sync_dir_names(&self, ino: Ino) -> Result<(), Errno> {
        let node: Arc<Node> = self.node(ino)?;
        let dirty = node.namespace_dirty();
        match node.upper() {
            Some(upper) if dirty != 0 => {
                self.sync_upper_dir(upper)?;
                self.sync_parents(&node, dirty)
            }
            _ => Ok(()),
        }
    }

    fn sync_upper_dir(&self, upper: Ino) -> Result<(), Errno> {
        let id = self.upper.open_dir(upper)?;
        let synced = self.upper.sync_dir(upper, id, false);
        self.upper.release_dir(id)?;
        synced
    }
}
