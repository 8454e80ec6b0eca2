//! The differences between a scratch and the layers below it.

use std::ops::Range;
use std::path::PathBuf;

use rustix::io::Errno;

use super::Stat;

/// The kind of a difference between two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// The path is in the new tree only.
    Added,
    /// The content differs: bytes, the target of a symbolic link, the number of a device.
    Modified,
    /// The path is in the old tree only.
    Deleted,
    /// The file or directory is at another path. Its content may differ as well.
    Renamed,
    /// The type of the file differs.
    Type,
    /// Owner, mode, access lists or extended attributes differ, and nothing else.
    Metadata,
}

/// One difference between two trees. Times alone are no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The kind.
    pub kind: ChangeKind,
    /// The path in the new tree, relative to the root; of a deletion the path in the old tree.
    pub path: PathBuf,
    /// The path in the old tree of what was renamed.
    pub from: Option<PathBuf>,
    /// Attributes in the old tree.
    pub old: Option<Stat>,
    /// Attributes in the new tree.
    pub new: Option<Stat>,
    /// Whether the content differs; of a directory whether it is added or deleted.
    pub content: bool,
    /// Whether owner, mode, access lists or extended attributes differ.
    pub metadata: bool,
    /// The ranges of bytes that differ, in order and apart from each other, where they were asked
    /// for. The bytes behind the end of the shorter file differ.
    pub ranges: Vec<Range<u64>>,
    /// The change of the base below this change, in words, since the first touch.
    pub base: Option<String>,
    /// The error that kept the two from being compared: they count as different.
    pub error: Option<Errno>,
}

/// The differences that are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeQuery {
    /// Paths relative to the root; the differences at and below them. Empty means all.
    pub paths: Vec<PathBuf>,
    /// With the ranges of bytes.
    pub ranges: bool,
    /// With everything that is below a deleted directory.
    pub expand: bool,
}

impl ChangeQuery {
    /// Whether differences at or below a path may be asked for.
    pub fn reaches(&self, path: &std::path::Path) -> bool {
        let related = |asked: &PathBuf| asked.starts_with(path) || path.starts_with(asked);
        self.paths.is_empty() || self.paths.iter().any(related)
    }

    /// Whether a difference at a path is asked for.
    pub fn covers(&self, path: &std::path::Path) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|asked| path.starts_with(asked))
    }
}
