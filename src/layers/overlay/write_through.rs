//! Write-through: paths that by a rule are not copied, and are read and written in the base.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::lookup::LookupResult;
use super::namespace_lock::{NamesRead, Step};
use super::node::{LayerStack, LowerInode, Node};
use crate::sys::cred::Caller;
use crate::tree::{
    Attributes, Entry, Ino, Names, NewNode, Open, Opened, RegisterBacking, Validity,
};
use crate::volume::Volume;

/// Bit that distinguishes inode numbers of write-through files from those of copied files.
pub(super) const WRITE_THROUGH: u64 = 1 << 60;

/// Directory of the base that holds a write-through name.
pub(super) struct WriteThroughDir<'a> {
    pub(super) volume: &'a Volume,
    pub(super) dir: LowerInode,
}

impl Overlay {
    /// Whether a name in a directory is written through to the base.
    pub(super) fn is_write_through(&self, parent: &Node, name: &OsStr) -> bool {
        let policy = self.policy.read();
        if policy.rules.is_empty() {
            return !policy.mode.copies();
        }
        !policy.mode(&self.path_of(parent).join(name)).copies()
    }

    /// Whether some path may be written through.
    pub(super) fn is_mixed(&self) -> bool {
        let policy = self.policy.read();
        !policy.rules.is_empty() || !policy.mode.copies()
    }

    /// Directory of the base for a write-through name; `None` for a name that is copied.
    ///
    /// # Errors
    /// EROFS if the parent directory is not in the base.
    pub(super) fn write_through_dir(
        &self,
        parent: &Node,
        name: &OsStr,
    ) -> Result<Option<WriteThroughDir<'_>>, Errno> {
        if !self.is_write_through(parent, name) {
            return Ok(None);
        }
        let dir = self.in_base(parent).ok_or(Errno::ROFS)?;
        Ok(Some(WriteThroughDir { volume: self.layer(dir)?, dir }))
    }

    /// Volume and inode of a write-through file. The volume uses it by its name in the mount, since
    /// another name may be under another rule.
    pub(super) fn in_base_by_name(&self, node: &Node) -> Result<(&Volume, LowerInode), Errno> {
        let at = self.in_base(node).ok_or(Errno::STALE)?;
        let volume = self.layer(at)?;
        if let Some((parent, name)) = node.seen().filter(|_| node.is_linked())
            && let Some(dir) = self.in_base(&parent)
        {
            volume.used_by(at.ino, dir.ino, &name);
        }
        Ok((volume, at))
    }

    /// Inode of a node in the base.
    pub(super) fn in_base(&self, node: &Node) -> Option<LowerInode> {
        node.stack().lowers.last().copied().filter(|at| self.is_base(*at))
    }

    /// Looks a name up in the base alone.
    pub(super) fn find_write_through(
        &self,
        names: &NamesRead<'_>,
        parent: &Node,
        name: &OsStr,
    ) -> Step<LookupResult> {
        let dir = self.in_base(parent).ok_or(Errno::NOENT)?;
        let entry = names.below().lookup(dir, name)?;
        Ok(self.result_in_base(dir, &entry))
    }

    /// Node of a name in the base alone, with a lookup count.
    fn child_in_base(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>, Errno> {
        self.with_names(|names| {
            let found = self.find_write_through(names, parent, name)?;
            Ok(self.enter_node(names, found, parent, name))
        })
    }

    /// Lookup result for an entry of the base.
    fn result_in_base(&self, dir: LowerInode, entry: &Entry) -> LookupResult {
        let at = LowerInode { layer: dir.layer, ino: entry.attr.ino };
        let stack = LayerStack { lowers: vec![at], write_through: true, ..LayerStack::default() };
        let stat = entry.attr.stat;
        // Another name of the same file may be copied: the two names are two files of the mount.
        let ino = if stat.is_dir() { at.ino } else { Ino(at.ino.0 ^ WRITE_THROUGH) };
        LookupResult { ino, stack, stat, validity: Validity::Timeout }
    }

    /// Node and reply for an entry that was just made in the base.
    pub(super) fn made_in_base(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        dir: LowerInode,
        entry: &Entry,
    ) -> Result<(Arc<Node>, Entry), Errno> {
        let (stat, validity) = (entry.attr.stat, Validity::Timeout);
        let node = self.with_names(|names| {
            Ok(self.enter_node(names, self.result_in_base(dir, entry), parent, name))
        })?;
        let entry = self.entry(&node, stat, validity);
        Ok((node, entry))
    }

    /// Creates and opens a file in the base.
    pub(super) fn create_in_base(
        &self,
        (parent, name): (&Arc<Node>, &OsStr),
        through: &WriteThroughDir<'_>,
        new: &NewNode<'_>,
        (how, exclusive): (&Open, bool),
        register: &RegisterBacking<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        let (entry, opened) =
            through.volume.create(through.dir.ino, name, new, how, exclusive, register)?;
        let (node, entry) = self.made_in_base(parent, name, through.dir, &entry)?;
        let at = self.in_base(&node);
        Ok((entry, self.handles.add_complete(node, at, opened)))
    }

    /// Links a write-through file to another name in the base.
    ///
    /// # Errors
    /// EXDEV for a file that is not written through; errors of link(2).
    pub(super) fn link_in_base(
        &self,
        node: &Arc<Node>,
        (parent, name): (&Arc<Node>, &OsStr),
        through: &WriteThroughDir<'_>,
    ) -> Result<Entry, Errno> {
        let at = self.in_base(node).filter(|_| node.is_write_through()).ok_or(Errno::XDEV)?;
        let entry = through.volume.link(at.ino, through.dir.ino, name)?;
        self.made_in_base(parent, name, through.dir, &entry).map(|(_, entry)| entry)
    }

    /// Removes a name from the base.
    pub(super) fn remove_in_base(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        through: &WriteThroughDir<'_>,
        directory: bool,
    ) -> Result<(), Errno> {
        let node = self.child_in_base(parent, name)?;
        let removed = through.volume.remove(through.dir.ino, name, directory);
        if removed.is_ok()
            && let Some(at) = self.in_base(&node)
            && through.volume.attr(at.ino, None).map_or(0, |attr| attr.stat.nlink) == 0
        {
            node.unlinked();
        }
        self.forget_node(node);
        removed
    }

    /// Renames within the base.
    ///
    /// # Errors
    /// EXDEV for a directory, and if one of the names is copied; errors of renameat2(2).
    pub(super) fn rename_in_base(
        &self,
        from: (&Arc<Node>, &OsStr),
        to: (&Arc<Node>, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let (old, new) =
            (self.write_through_dir(from.0, from.1)?, self.write_through_dir(to.0, to.1)?);
        let (Some(old), Some(new)) = (old, new) else { return Err(Errno::XDEV) };
        let moved = self.child_in_base(from.0, from.1)?;
        let renamed = match moved.is_dir() {
            true => Err(Errno::XDEV), // Other rules would apply to the paths in it.
            false => {
                let (old, new) = ((old.dir.ino, from.1), (new.dir.ino, to.1));
                self.layer(self.at_base(old.0))?.rename(old, new, flags, caller)
            }
        };
        if renamed.is_ok() && !flags.contains(RenameFlags::EXCHANGE) {
            self.change_names(|_| {
                moved.seen_at(to.0, to.1);
                Ok(())
            })?;
        }
        self.forget_node(moved);
        renamed
    }
}
