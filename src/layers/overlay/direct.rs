//! Paths that a rule does not copy: they are read and written in the base itself.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::locate::Sought;
use super::namespace::{Names, Step};
use super::node::{At, Node, Parts};
use crate::sys::cred::Caller;
use crate::volume::{Entry, Ino, Lend, NewNode, Open, Opened, Trust, Volume};

/// Told apart by this from numbers of files that are copied.
pub(super) const DIRECT: u64 = 1 << 60;

/// Where a name is that is not copied: the base, and the directory there.
pub(super) struct Direct<'a> {
    pub(super) volume: &'a Volume,
    pub(super) dir: At,
}

impl Overlay {
    /// Whether a name in a directory is of the base itself.
    pub(super) fn is_direct(&self, parent: &Node, name: &OsStr) -> bool {
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
    pub(super) fn direct(&self, parent: &Node, name: &OsStr) -> Result<Option<Direct<'_>>, Errno> {
        if !self.is_direct(parent, name) {
            return Ok(None);
        }
        let dir = self.in_base(parent).ok_or(Errno::ROFS)?;
        Ok(Some(Direct { volume: self.layer(dir)?, dir }))
    }

    /// A file of the base itself, which is used by the name that it has here: another one may be under
    /// another rule.
    pub(super) fn in_base_by_name(&self, node: &Node) -> Result<(&Volume, At), Errno> {
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
    pub(super) fn in_base(&self, node: &Node) -> Option<At> {
        node.parts().lowers.last().copied().filter(|at| at.layer + 1 == self.lowers.len())
    }

    /// Finds a name in the base alone.
    pub(super) fn find_direct(
        &self,
        names: &Names<'_>,
        parent: &Node,
        name: &OsStr,
    ) -> Step<Sought> {
        let dir = self.in_base(parent).ok_or(Errno::NOENT)?;
        let entry = names.below().lookup(dir, name)?;
        Ok(self.sought_in_base(dir, &entry))
    }

    /// The node of a name that is in the base alone, with a lookup of it counted.
    fn child_in_base(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Arc<Node>, Errno> {
        self.with_names(|names| {
            let found = self.find_direct(names, parent, name)?;
            Ok(self.adopt(names, found, parent, name))
        })
    }

    fn sought_in_base(&self, dir: At, entry: &Entry) -> Sought {
        let at = At { layer: dir.layer, ino: entry.attr.ino };
        let parts = Parts { lowers: vec![at], direct: true, ..Parts::default() };
        let stat = entry.attr.stat;
        // Another name of the same file may be copied: they are two files here.
        let ino = if stat.is_dir() { at.ino } else { Ino(at.ino.0 ^ DIRECT) };
        Sought { ino, parts, stat, trust: Trust::Briefly }
    }

    /// The node of something that was just made in the base.
    pub(super) fn made_in_base(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        dir: At,
        entry: &Entry,
    ) -> Result<(Arc<Node>, Entry), Errno> {
        let (stat, trust) = (entry.attr.stat, Trust::Briefly);
        let node = self.with_names(|names| {
            Ok(self.adopt(names, self.sought_in_base(dir, entry), parent, name))
        })?;
        let entry = self.entry(&node, stat, trust);
        Ok((node, entry))
    }

    pub(super) fn create_in_base(
        &self,
        (parent, name): (&Arc<Node>, &OsStr),
        direct: &Direct<'_>,
        new: &NewNode<'_>,
        (how, exclusive): (&Open, bool),
        lend: &Lend<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        let (entry, opened) =
            direct.volume.create(direct.dir.ino, name, new, how, exclusive, lend)?;
        let (node, entry) = self.made_in_base(parent, name, direct.dir, &entry)?;
        let at = self.in_base(&node);
        Ok((entry, self.handles.add_whole(node, at, opened)))
    }

    /// link(2) in the base: of a file that is of the base itself.
    pub(super) fn link_in_base(
        &self,
        node: &Arc<Node>,
        (parent, name): (&Arc<Node>, &OsStr),
        direct: &Direct<'_>,
    ) -> Result<Entry, Errno> {
        let at = self.in_base(node).filter(|_| node.is_direct()).ok_or(Errno::XDEV)?;
        let entry = direct.volume.link(at.ino, direct.dir.ino, name)?;
        self.made_in_base(parent, name, direct.dir, &entry).map(|(_, entry)| entry)
    }

    pub(super) fn remove_in_base(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        direct: &Direct<'_>,
        directory: bool,
    ) -> Result<(), Errno> {
        let node = self.child_in_base(parent, name)?;
        let removed = direct.volume.remove(direct.dir.ino, name, directory);
        if removed.is_ok()
            && let Some(at) = self.in_base(&node)
            && direct.volume.attr(at.ino, None).map_or(0, |attr| attr.stat.nlink) == 0
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
        let (old, new) = (self.direct(from.0, from.1)?, self.direct(to.0, to.1)?);
        let (Some(old), Some(new)) = (old, new) else { return Err(Errno::XDEV) };
        let moved = self.child_in_base(from.0, from.1)?;
        let renamed = match moved.is_dir() {
            true => Err(Errno::XDEV), // What is in it would come under other rules.
            false => {
                let (old, new) = ((old.dir.ino, from.1), (new.dir.ino, to.1));
                self.layer(At { layer: self.lowers.len() - 1, ino: old.0 })?
                    .rename(old, new, flags, caller)
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
