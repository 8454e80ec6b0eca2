//! One layer of a stack of layers.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::hardlink_index::Index;
use super::overlay_xattrs::{OverlayXattrs, XattrError, XattrStore};
use crate::layers::pages::MapId;
use crate::tree::{Entry, Ino, Names, Stat};
use crate::volume::Volume;

/// A directory tree of the stack. Index 0 of a stack is on top and takes the writes; no other layer
/// is ever written.
pub(super) struct Layer {
    /// The volume that the tree lies in. Overlay layers of one scratch share the volume over the
    /// directory of the scratch, so that an inode number means one file in all of them.
    pub(super) volume: Arc<Volume>,
    /// The root of the tree in the volume, of which one lookup is held.
    pub(super) root: Ino,
    pub(super) kind: LayerKind,
}

/// The format of a layer.
pub(super) enum LayerKind {
    /// A directory as it is: no whiteouts, no overlay xattrs. It may lie on a filesystem that does
    /// not answer, and is asked with no lock of the overlay held.
    Plain,
    /// An upper directory of overlayfs with page maps. It lies in the scratch and is asked with the
    /// names locked.
    Overlay(Arc<OverlayParts>),
}

/// The parts of a layer in the overlay format besides its tree.
pub(super) struct OverlayParts {
    pub(super) xattrs: XattrStore,
    /// The directory of the page maps and long paths.
    pub(super) pages: OwnedFd,
    /// The copies of files with several names.
    pub(super) index: Index,
    /// Page maps that several files name.
    pub(super) contested: HashSet<MapId>,
    /// The overlay xattrs of files of a frozen layer that were read.
    pub(super) known: FrozenXattrs,
}

/// Number of files whose overlay xattrs are kept.
const MOST_KNOWN: usize = 8192;

/// Overlay xattrs of a frozen layer, which do not change, by inode number.
#[derive(Default)]
pub(super) struct FrozenXattrs(Mutex<HashMap<Ino, Arc<OverlayXattrs>>>);

impl FrozenXattrs {
    /// The overlay xattrs of a file, read where they are not known.
    pub(super) fn get(
        &self,
        ino: Ino,
        read: impl FnOnce() -> Result<OverlayXattrs, XattrError>,
    ) -> Result<Arc<OverlayXattrs>, XattrError> {
        if let Some(known) = self.0.lock().get(&ino) {
            return Ok(Arc::clone(known));
        }
        let found = Arc::new(read()?);
        let mut known = self.0.lock();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(ino, Arc::clone(&found));
        Ok(found)
    }
}

/// The entry of a layer at a name, as its type tells it.
pub(super) enum LayerEntry {
    Absent,
    /// Nothing of the layers below is shown at the name.
    Whiteout,
    /// A file or directory, of which one lookup is held. Its overlay xattrs say whether a directory
    /// is opaque or redirected and a file complete or partial.
    Present(Entry),
}

impl Layer {
    /// The parts of an overlay layer; `None` for a plain directory.
    pub(super) fn overlay(&self) -> Option<&Arc<OverlayParts>> {
        match &self.kind {
            LayerKind::Plain => None,
            LayerKind::Overlay(parts) => Some(parts),
        }
    }

    /// Whether it is a directory as it is.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.kind, LayerKind::Plain)
    }

    /// Whether an entry of the layer is a whiteout. A plain directory has none.
    pub(super) fn hides(&self, stat: &Stat) -> bool {
        !self.is_plain() && is_whiteout(stat)
    }

    /// The entry at a name in a directory of the layer. A lookup is held of a file or directory.
    ///
    /// # Errors
    /// Errors of statx(2) except ENOENT.
    pub(super) fn lookup(&self, dir: Ino, name: &OsStr) -> Result<LayerEntry, Errno> {
        match self.volume.lookup(dir, name) {
            Ok(entry) if self.hides(&entry.attr.stat) => {
                self.volume.forget(entry.attr.ino, 1);
                Ok(LayerEntry::Whiteout)
            }
            Ok(entry) => Ok(LayerEntry::Present(entry)),
            Err(Errno::NOENT) => Ok(LayerEntry::Absent),
            Err(err) => Err(err),
        }
    }
}

/// Whether a file is a whiteout by its type (a character device 0/0).
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    stat.kind() == libc::S_IFCHR && stat.rdev == 0
}
