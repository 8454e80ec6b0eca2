//! Paths that a rule does not copy: they are read and written in the base itself.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::lookup::LookupResult;
use super::namespace_lock::{NamesRead, Step};
use super::node::{LayerStack, LowerInode, Node};
use crate::sys::cred::Caller;
use crate::volume::{Entry, Ino, NewNode, Open, Opened, RegisterBacking, Validity, Volume};

/// Told apart by this from numbers of files that are copied.
pub(super) const WRITE_THROUGH: u64 = 1 << 60;

/// Where a name is that is not copied: the base, and the directory there.
pub(super) struct WriteThroughDir<'a> {
    pub(super) volume: &'a Volume,
    pub(super) dir: LowerInode,
}

impl Overlay {
    /// Whether a name in a directory is of the base itself.
    pub(super) fn is_write_through(&self, parent: &Node, name: &OsStr) -> bool {
        let policy = self.policy.read();
        if policy.rules.is_empty() {
            return !policy.mode.copies();
        }
        !policy.mode(&self.path_of(parent).join(name)).copies()
    }

    /// Whether some paths are copied and others not.
    pub(super) fn is_mixed(&self) -> bool {
        let policy = self.policy.read();
        !policy.rules.is_empty() || !policy.mode.copies()
    }

    /// The directory of the base that a name is in which is not copied.
    ///
    /// # Errors
    /// EROFS where the directory itself is not in the base.
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

    /// A file of the base itself, which is used by the name that it has here: another one may be under
    /// another rule.
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

    /// What a node has in the base.
    pub(super) fn in_base(&self, node: &Node) -> Option<LowerInode> {
        node.stack().lowers.last().copied().filter(|at| self.is_base(*at))
    }

    /// Finds a name in the base alone.
    pub(super) fn find_write_through(
        &self,
        names: &NamesRead<'_>,
        parent: &Node,
        name: &OsStr,
    ) -> Step<LookupResult> {
        let dir = self.in_base(parent).ok_or(Errno::NOENT)?;
        let entry = names.below().lookup(dir, name)?;
        Ok(self.sought_in_base(dir, &entry))
    }

    /// The node of a name that is in the base alone, with a lookup of it counted.
    fn child_in_base(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>, Errno> {
        self.with_names(|names| {
            let found = self.find_write_through(names, parent, name)?;
            Ok(self.enter_node(names, found, parent, name))
        })
    }

    fn sought_in_base(&self, dir: LowerInode, entry: &Entry) -> LookupResult {
        let at = LowerInode { layer: dir.layer, ino: entry.attr.ino };
        let stack = LayerStack { lowers: vec![at], write_through: true, ..LayerStack::default() };
        let stat = entry.attr.stat;
        // Another name of the same file may be copied: they are two files here.
        let ino = if stat.is_dir() { at.ino } else { Ino(at.ino.0 ^ WRITE_THROUGH) };
        LookupResult { ino, stack, stat, validity: Validity::Timeout }
    }

    /// The node of something that was just made in the base.
    pub(super) fn made_in_base(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        dir: LowerInode,
        entry: &Entry,
    ) -> Result<(Arc<Node>, Entry), Errno> {
        let (stat, validity) = (entry.attr.stat, Validity::Timeout);
        let node = self.with_names(|names| {
            Ok(self.enter_node(names, self.sought_in_base(dir, entry), parent, name))
        })?;
        let entry = self.entry(&node, stat, validity);
        Ok((node, entry))
    }

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

    /// link(2) in the base: of a file that is of the base itself.
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

    /// renameat2(2) in the base; none leads from there into the scratch, or back.
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
            true => Err(Errno::XDEV), // What is in it would come under other rules.
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
