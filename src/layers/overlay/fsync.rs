//! What fsync(2) makes durable: besides the data all that the copy of a file consists of, which no
//! client knows of and could synchronise itself: its marks, its page map, its entry in the index,
//! and the directories that were copied up to hold it.

use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::handles::Handle;
use super::ino::upper_only_ino;
use super::node::Node;
use crate::layers::merged::Merged;
use crate::volume::{DataOnly, HandleId, Ino};

impl Overlay {
    /// Makes a file durable, and the names that lead to it where it was copied up.
    ///
    /// # Errors
    /// EBADF for an unknown handle; those of fsync(2).
    pub fn sync(&self, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        let using = self.using(id)?;
        let handle = using.open()?;
        let synced = match handle {
            Handle::Complete { node, layer: None, id } => {
                let upper = node.upper().ok_or(Errno::STALE)?;
                // What was made here has the name that the client gave it, who synchronises that.
                let moved =
                    if upper_only_ino(upper) == node.ino { 0 } else { node.namespace_dirty() };
                self.upper.sync(upper, *id, data_only && moved == 0)?;
                self.settle(node, moved)
            }
            Handle::Complete { id, layer: Some(at), .. } => {
                self.layer(*at)?.sync(at.ino, *id, data_only)
            }
            Handle::Merged { node, content, .. } => match content.merged() {
                Some(merged) => self.sync_merged(node, &merged, data_only),
                None => Ok(()), // Nothing was changed.
            },
        };
        self.count_stored(handle.node());
        synced
    }

    pub(super) fn sync_merged(
        &self,
        node: &Node,
        merged: &Merged,
        data_only: bool,
    ) -> Result<(), Errno> {
        let moved = node.namespace_dirty();
        if moved != 0 {
            // No file comes to the disk without its map.
            merged.sync_map()?;
            rustix::fs::fsync(&self.top.pages)?;
        }
        merged.sync(data_only && moved == 0)?;
        self.settle(node, moved)
    }

    /// Makes durable what leads to a node of which the rest is, and which was where it is since
    /// `moved`.
    fn settle(&self, node: &Node, moved: u64) -> Result<(), Errno> {
        if moved == 0 {
            return Ok(());
        }
        if node.stack().links.is_some() {
            self.sync_upper_dir(self.top.index.dir)?;
        }
        let mut settled = Vec::new();
        let mut next = node.parent();
        while let Some(dir) = next {
            let (moved, upper) = (dir.namespace_dirty(), dir.upper());
            if let Some(upper) = upper {
                self.sync_upper_dir(upper)?;
            }
            next = dir.parent().filter(|_| moved != 0);
            if upper.is_some() {
                settled.push((dir, moved));
            }
        }
        settled.iter().for_each(|(dir, moved)| dir.mark_durable(*moved));
        node.mark_durable(moved);
        Ok(())
    }

    /// Makes a directory durable that was copied up, with the names that lead to it.
    ///
    /// # Errors
    /// ESTALE for an unknown directory; those of fsync(2).
    pub(super) fn sync_dir_names(&self, ino: Ino) -> Result<(), Errno> {
        let node: Arc<Node> = self.node(ino)?;
        let moved = node.namespace_dirty();
        match node.upper() {
            Some(upper) if moved != 0 => {
                self.sync_upper_dir(upper)?;
                self.settle(&node, moved)
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
