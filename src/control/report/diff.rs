//! The differences between a scratch and its base.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::shown::{Clean, Name};
use crate::tree::{Change, ChangeKind};

/// The answer to `diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReport {
    /// The path that was asked for, relative to the root of the mount; empty for all.
    pub path: Name,
    /// The differences, sorted by path.
    pub changes: Vec<ChangeReport>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReport {
    /// Its kind.
    pub change: ChangeWord,
    /// The path relative to the root of the mount; of a deletion the path in the base.
    pub path: Name,
    /// The path in the base of what was renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Name>,
    /// The type of the file, in the base if it is deleted.
    pub file_type: FileType,
    /// The type in the base, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_type: Option<FileType>,
    /// Size in the base, in bytes; of regular files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_size: Option<u64>,
    /// Size in the scratch, in bytes; of regular files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_size: Option<u64>,
    /// Whether the content differs.
    pub content: bool,
    /// Whether owner, mode, access lists or extended attributes differ.
    pub metadata: bool,
    /// The ranges of bytes that differ, with `ranges`; END is exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<[u64; 2]>>,
    /// The change of the base below the change since the first touch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The reason that kept the two from being compared. They count as different.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The kind of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeWord {
    /// `A`: it is not in the base.
    Added,
    /// `M`: the content differs.
    Modified,
    /// `D`: it is in the base only.
    Deleted,
    /// `R`: it has another path in the base. The content may differ as well.
    Renamed,
    /// `T`: the type differs.
    Type,
    /// `m`: owner, mode, access lists or extended attributes differ, and nothing else.
    Metadata,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // The types of inode(7).
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    BlockDevice,
    CharacterDevice,
    Fifo,
    Socket,
}

impl FileType {
    /// The type by `S_IFMT` bits.
    fn of(kind: u32) -> FileType {
        match kind {
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFLNK => FileType::Symlink,
            libc::S_IFBLK => FileType::BlockDevice,
            libc::S_IFCHR => FileType::CharacterDevice,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            _ => FileType::Regular,
        }
    }
}

impl ChangeWord {
    /// Every kind.
    pub const ALL: [ChangeWord; 6] = [
        ChangeWord::Added,
        ChangeWord::Modified,
        ChangeWord::Deleted,
        ChangeWord::Renamed,
        ChangeWord::Type,
        ChangeWord::Metadata,
    ];

    /// The letter that stands for it.
    pub fn letter(self) -> char {
        match self {
            ChangeWord::Added => 'A',
            ChangeWord::Modified => 'M',
            ChangeWord::Deleted => 'D',
            ChangeWord::Renamed => 'R',
            ChangeWord::Type => 'T',
            ChangeWord::Metadata => 'm',
        }
    }

    /// Its name in a sentence.
    pub fn name(self) -> &'static str {
        match self {
            ChangeWord::Added => "added",
            ChangeWord::Modified => "modified",
            ChangeWord::Deleted => "deleted",
            ChangeWord::Renamed => "renamed",
            ChangeWord::Type => "of another type",
            ChangeWord::Metadata => "with other metadata",
        }
    }
}

impl From<ChangeKind> for ChangeWord {
    fn from(kind: ChangeKind) -> ChangeWord {
        match kind {
            ChangeKind::Added => ChangeWord::Added,
            ChangeKind::Modified => ChangeWord::Modified,
            ChangeKind::Deleted => ChangeWord::Deleted,
            ChangeKind::Renamed => ChangeWord::Renamed,
            ChangeKind::Type => ChangeWord::Type,
            ChangeKind::Metadata => ChangeWord::Metadata,
        }
    }
}

impl ChangeReport {
    /// The report of a difference, with the ranges where they were asked for.
    pub(in crate::control) fn of(change: &Change, ranges: bool) -> ChangeReport {
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let kind = |stat: &crate::tree::Stat| FileType::of(stat.kind());
        let (old_type, new_type) = (old.map(kind), new.map(kind));
        let size = |stat: Option<&crate::tree::Stat>| {
            stat.filter(|stat| stat.kind() == libc::S_IFREG).map(|stat| stat.size)
        };
        ChangeReport {
            change: change.kind.into(),
            path: Name::from(&change.path),
            from: change.from.as_ref().map(Name::from),
            file_type: new_type.or(old_type).unwrap_or(FileType::Regular),
            old_type: old_type.filter(|old| new_type.is_some_and(|new| new != *old)),
            old_size: size(old),
            new_size: size(new),
            content: change.content,
            metadata: change.metadata,
            ranges: ranges
                .then(|| change.ranges.iter().map(|range| [range.start, range.end]).collect()),
            base: change.base.clone(),
            error: change.error.map(|err| err.to_string()),
        }
    }

    /// Number of bytes that differ, as the ranges tell.
    pub fn bytes(&self) -> u64 {
        match (self.change, &self.ranges) {
            (ChangeWord::Added | ChangeWord::Type, _) => self.new_size.unwrap_or(0),
            (ChangeWord::Deleted, _) => self.old_size.unwrap_or(0),
            (_, Some(ranges)) => ranges.iter().map(|[start, end]| end.saturating_sub(*start)).sum(),
            (_, None) => 0,
        }
    }

    /// `C` where the base has changed below it, else a blank.
    pub fn mark(&self) -> char {
        if self.base.is_some() { 'C' } else { ' ' }
    }
}

impl Display for ChangeReport {
    /// One line without a newline.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} ", self.change.letter(), self.mark())?;
        if let Some(from) = &self.from {
            write!(f, "{from} -> ")?;
        }
        let root = self.path.as_path().as_os_str().is_empty();
        if root {
            f.write_str(".")?
        } else {
            write!(f, "{}", self.path)?
        }
        let is_dir = self.file_type == FileType::Directory && !root;
        f.write_str(if is_dir { "/" } else { "" })?;
        if let Some(error) = &self.error {
            write!(f, ": not compared: {}", Clean(error))?;
        }
        Ok(())
    }
}

impl Display for DiffReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
            for [start, end] in change.ranges.iter().flatten() {
                writeln!(f, "   {start}-{end}")?;
            }
        }
        Ok(())
    }
}
