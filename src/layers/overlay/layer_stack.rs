//! The parts of a file or directory in the layers.

use std::path::PathBuf;

use crate::layers::scratch::PathId;
use crate::tree::Ino;

/// A file or directory in a lower layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LowerInode {
    /// Index of the layer in the stack, 0 is the one on top.
    pub(super) layer: usize,
    /// Its number in that layer's volume, of which one lookup is held.
    pub(super) ino: Ino,
}

impl LowerInode {
    /// The place of a base file that is gone: a file without a byte, of which no lookup is held.
    pub(super) const GONE: LowerInode = LowerInode { layer: usize::MAX, ino: Ino(0) };
}

/// The parts of a node. One lookup is held of each, in the volume that it is of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LayerStack {
    /// Its number in the upper volume.
    pub(super) upper: Option<Ino>,
    /// Of a directory: the lower ones that are merged, topmost first; layers without it are left
    /// out. Of a file: the parts with data that is not in the upper file, topmost first, the last
    /// of them whole; none when the upper file is whole.
    pub(super) lowers: Vec<LowerInode>,
    /// Of a file with entries in an index: names that it has in addition to the links of its
    /// topmost part, negative when some of those are none of its names.
    pub(super) links: Option<i64>,
    /// Of the base itself, where it is written too.
    pub(super) write_through: bool,
    /// It was made in the scratch: its overlay xattrs do not say that it is of a layer below.
    pub(super) new: bool,
    /// A character device 0/0, which is stored as another, since it would be a whiteout.
    pub(super) null_device: bool,
    /// The page map of an upper file that has data below.
    pub(super) pages: Option<u64>,
    /// The place of its redirect that is too long for an xattr.
    pub(super) path: Option<PathId>,
    /// Of a directory that was renamed: its path in the lower layers, from their root, or another
    /// name in the same directory.
    pub(super) redirect: Option<PathBuf>,
    /// A frozen layer tells by a redirect where the directory goes on.
    pub(super) redirected: bool,
    /// Of a file with some pages in frozen layers: its size there, in bytes, and the blocks of all
    /// parts but the whole one.
    pub(super) frozen: Option<(u64, u64)>,
}

impl LayerStack {
    /// Number of parts in all layers.
    pub(super) fn parts(&self) -> usize {
        usize::from(self.upper.is_some()) + self.lowers.len()
    }
}
