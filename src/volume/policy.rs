//! Access by path: the mount's own mode, and the rules that differ from it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Volume;
use super::inode::Node;
use crate::config::rules::RuleSet;
use crate::flags::MapMode;
use crate::tree::Ino;

/// The modes of files, by path.
#[derive(Debug)]
pub struct Policy {
    /// For paths that no rule matches.
    pub mode: MapMode,
    /// The first that matches decides.
    pub rules: RuleSet,
}

impl Policy {
    /// Mode of the file at a path relative to the root.
    pub fn mode(&self, path: &Path) -> MapMode {
        self.rules.matching(path).map_or_else(|| self.mode, |rule| rule.mode)
    }
}

impl Volume {
    /// Mode of the file at a path relative to the root.
    pub(super) fn mode_for_path(&self, path: &Path) -> MapMode {
        self.policy.read().mode(path)
    }

    /// The mode of a node's mapping.
    pub(super) fn mode_of(&self, node: &Node) -> MapMode {
        let policy = self.policy.read();
        if policy.rules.is_empty() {
            return policy.mode;
        }
        self.path_of(node).map_or_else(|| policy.mode, |path| policy.mode(&path))
    }

    /// Whether rules allow writes to some paths and forbid them to others.
    pub(super) fn has_mixed_rules(&self) -> bool {
        let policy = self.policy.read();
        let writable = policy.mode.writable();
        policy.rules.rules().iter().any(|rule| rule.mode.writable() != writable)
    }

    /// Refuses a change of a file where it may not be written, as a read-only filesystem does.
    pub(super) fn check_changeable(&self, node: &Node) -> Result<(), Errno> {
        if node.ino == Ino::ROOT && self.shows_one_file() {
            return Err(Errno::PERM); // It is somebody else's directory.
        }
        if self.mode_of(node).writable() { Ok(()) } else { Err(Errno::ROFS) }
    }

    /// Refuses a change of a name that is to be made, replaced or removed, by the same rules.
    pub(super) fn check_name(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        if parent == Ino::ROOT {
            if self.shows_one_file() {
                return Err(Errno::PERM);
            }
            if self.reserved.as_deref() == Some(name) {
                return Err(Errno::PERM);
            }
        }
        let policy = self.policy.read();
        let writable = if policy.rules.is_empty() {
            policy.mode.writable()
        } else {
            let parent = self.node(parent)?;
            match self.path_of(&parent) {
                Some(path) => policy.mode(&path.join(name)).writable(),
                None => policy.mode.writable(),
            }
        };
        if writable { Ok(()) } else { Err(Errno::ROFS) }
    }

    /// Last known path of a node, relative to the root; `None` if a directory above it is not known
    /// any more.
    pub(super) fn path_of(&self, node: &Node) -> Option<PathBuf> {
        if self.root_is_file {
            return self.only.as_ref().map(PathBuf::from);
        }
        let mut names = Vec::new();
        let mut ino = node.ino;
        let mut above = None;
        while ino != Ino::ROOT {
            let (parent, name) = above.as_deref().unwrap_or(node).seen();
            names.push(name);
            if names.len() > MAX_DEPTH {
                return None;
            }
            ino = parent;
            above = Some(self.inodes.get(parent)?);
        }
        Some(names.iter().rev().map(|name| Path::new(&**name)).collect())
    }
}

/// Largest depth of a path: it ends a walk through names that a racing rename has made circular.
const MAX_DEPTH: usize = 100_000;
