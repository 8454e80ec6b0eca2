//! Renames, and what a file with several names needs for them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::lower_answers::Answers;
use super::names::Upper;
use super::namespace_lock::{Halt, NamesRead, NamesWrite, Step};
use super::node::Node;
use super::overlay_xattrs::Links;
use crate::layers::pages::Fingerprint;
use crate::shown::Show;
use crate::sys::cred::Caller;
use crate::tree::{Attributes, Ino, Names, NewNode};

impl Overlay {
    /// renameat2(2).
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub(super) fn rename_entry(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        if !self.visible(from.0, from.1) {
            return Err(Errno::NOENT);
        }
        if !self.visible(to.0, to.1) {
            return Err(Errno::PERM);
        }
        let (old, new) = (self.node(from.0)?, self.node(to.0)?);
        if !new.is_linked() {
            return Err(Errno::NOENT);
        }
        if self.is_write_through(&old, from.1) || self.is_write_through(&new, to.1) {
            return self.rename_in_base((&old, from.1), (&new, to.1), flags, caller);
        }
        let answers = Answers::none(self);
        answers.expect_peek(&old.stack().lowers, from.1);
        self.change_names_and(&answers, |names| {
            self.rename_locked(names, (&old, from.1), (&new, to.1), (flags, caller))
        })
    }

    fn rename_locked(
        &self,
        names: &NamesWrite<'_>,
        from: (&Arc<Node>, &OsStr),
        to: (&Arc<Node>, &OsStr),
        how: (RenameFlags, &Caller),
    ) -> Step<()> {
        if !to.0.is_linked() {
            return Err(Halt::Failed(Errno::NOENT));
        }
        let (moved, _) = self.child(names, from.0, from.1)?;
        let there = match self.child(names, to.0, to.1) {
            Ok((there, _)) => Some(there),
            Err(Halt::Failed(Errno::NOENT)) => None,
            Err(halt) => {
                self.forget_node(moved);
                return Err(halt);
            }
        };
        let renamed = self.rename_nodes(names, from, to, (&moved, &there), how);
        if renamed.is_err_and(|halt| halt != Halt::Ask) {
            // It may have failed when the names had changed.
            [from.0, to.0].iter().for_each(|dir| self.drop_listing(dir.ino));
        }
        self.count_stored(&moved); // It may have got marks.
        self.forget_node(moved);
        there.into_iter().for_each(|node| self.forget_node(node));
        self.count_names(&[from.0, to.0]);
        renamed
    }

    pub(super) fn rename_nodes(
        &self,
        names: &NamesWrite<'_>,
        from: (&Arc<Node>, &OsStr),
        to: (&Arc<Node>, &OsStr),
        (moved, there): (&Arc<Node>, &Option<Arc<Node>>),
        (flags, caller): (RenameFlags, &Caller),
    ) -> Step<()> {
        let failed = |err| Err(Halt::Failed(err));
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        match there {
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return failed(Errno::EXIST),
            None if exchange => return failed(Errno::NOENT),
            Some(there) if Arc::ptr_eq(there, moved) => return Ok(()), // Two names of one file.
            Some(there) if !exchange => match (moved.is_dir(), there.is_dir()) {
                (true, false) => return failed(Errno::NOTDIR),
                (false, true) => return failed(Errno::ISDIR),
                (true, true) if !self.is_empty(names, there)? => return failed(Errno::NOTEMPTY),
                _ => {}
            },
            _ => {}
        }
        if moved.is_dir() && self.is_mixed() {
            return failed(Errno::XDEV); // What is in it would come under other rules.
        }
        if moved.is_dir() && self.is_above(moved, to.0) {
            return failed(Errno::INVAL);
        }
        if exchange {
            let there = there.as_ref().ok_or(Errno::NOENT)?;
            if there.is_dir() && self.is_above(there, from.0) {
                return failed(Errno::INVAL);
            }
            let covers = [self.covered(names, from, moved)?, self.covered(names, to, there)?];
            let (old, new) = (self.ensure_upper(names, from.0)?, self.ensure_upper(names, to.0)?);
            let uppers = [self.ensure_upper(names, there)?, self.ensure_upper(names, moved)?];
            self.prepare_to_move(moved, from)?;
            self.prepare_to_move(there, to)?;
            self.upper.rename((old, from.1), (new, to.1), RenameFlags::EXCHANGE, &self.me)?;
            if covers != [None, None] {
                let each = uppers.into_iter().zip(covers.iter());
                each.for_each(|(upper, cover)| {
                    self.note_cover_moved(upper, cover.flatten().as_ref())
                });
            }
            there.seen_at(from.0, from.1);
            moved.seen_at(to.0, to.1);
            return Ok(());
        }
        let uncovered = self.covered(names, from, moved)?;
        let uncovers = uncovered.is_some();
        let covered = match there {
            Some(there) => self.covered(names, to, there)?.flatten(),
            None => None,
        };
        let (old, new) = (self.ensure_upper(names, from.0)?, self.ensure_upper(names, to.0)?);
        let upper = self.ensure_upper(names, moved)?;
        if let Some(there) = there
            && self.has_other_names(names, there)?
        {
            self.ensure_upper(names, there)?;
        }
        self.prepare_to_move(moved, from)?;
        if let Some(there) = there {
            self.give_link(there, new, to.1)?;
        }
        let at = self.upper_at(new, to.1)?;
        if at == Upper::Directory
            && let Some(there) = there
        {
            self.clear_whiteouts(there)?;
        }
        let onto_whiteout = at == Upper::Whiteout;
        let covered = if onto_whiteout { self.cover_at(new, to.1) } else { covered };
        let move_it = |uncovers| {
            let (from, to) = ((old, from.1), (new, to.1));
            self.move_upper(from, to, (moved.is_dir(), uncovers, onto_whiteout))
        };
        match flags.contains(RenameFlags::WHITEOUT) {
            true => self.leave_device((old, from.1), caller, || move_it(true))?,
            false => move_it(uncovers)?,
        }
        if let Some(uncovered) = uncovered {
            self.note_cover_at(old, from.1, uncovered.as_ref());
        }
        if uncovers || covered.is_some() {
            self.note_cover_moved(upper, covered.as_ref());
        }
        if let Some(there) = there {
            self.lost_a_name(names, there, None)?;
        }
        moved.seen_at(to.0, to.1);
        Ok(())
    }

    /// The cover of a node at its name, as far as it is known; `None` where nothing is below.
    fn covered(
        &self,
        names: &NamesWrite<'_>,
        (dir, name): (&Arc<Node>, &OsStr),
        node: &Node,
    ) -> Step<Option<Option<Fingerprint>>> {
        match self.is_below(names, dir, name)? {
            true => self.cover_of(names, node).map(Some),
            false => Ok(None),
        }
    }

    /// Renames in the upper volume. Leaves a whiteout where the old name `uncovers` a lower one.
    fn move_upper(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        (directory, uncovers, onto_whiteout): (bool, bool, bool),
    ) -> Result<(), Errno> {
        if directory && onto_whiteout {
            self.upper.rename(from, to, RenameFlags::EXCHANGE, &self.me)?;
            if !uncovers {
                self.upper.remove(from.0, from.1, false)?;
                self.stats.whiteouts(-1);
            }
            return Ok(());
        }
        let flags = if uncovers { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
        self.upper.rename(from, to, flags, &self.me)?;
        self.stats.whiteouts(i64::from(uncovers) - i64::from(onto_whiteout));
        Ok(())
    }

    /// Puts a character device 0/0 of the caller in the place of the whiteout that `rename` leaves
    /// at a name (RENAME_WHITEOUT). The device is made first and names the place that it is for:
    /// where the daemon is killed in between, the next mount puts it there.
    fn leave_device(
        &self,
        (dir, name): (Ino, &OsStr),
        caller: &Caller,
        rename: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let beside = self.temporary_name();
        let before = self.upper.attr(dir, None)?.stat;
        let new = NewNode { mode: libc::S_IFCHR, umask: 0, caller };
        let device = self.make_device(dir, &beside, &new, 0)?.attr.ino;
        let moved = self
            .top
            .xattrs
            .write(&self.upper, device, "mmapfs.place", name.as_bytes())
            .and_then(|()| rename())
            .and_then(|()| {
                let none = RenameFlags::empty();
                self.upper.rename((dir, &beside), (dir, name), none, &self.me)
            });
        match moved {
            Ok(()) => {
                self.stats.whiteouts(-1);
                self.stats.made(libc::S_IFCHR, 1);
                if let Err(err) = self.top.xattrs.remove(&self.upper, device, "mmapfs.place") {
                    log::warn!("{}: removing a mark: {err}", name.shown()); // It says nothing now.
                }
            }
            Err(_) => {
                let removed = self.upper.remove(dir, &beside, false);
                // A rename that fails leaves the times of the directory.
                if let Err(err) = removed.and_then(|()| self.set_times(dir, &before)) {
                    log::warn!("{}: taking a device back: {err}", name.shown());
                }
            }
        }
        self.upper.forget(device, 1);
        moved
    }

    /// XattrStore where what is below something that is to be moved stays. It has been copied up, and so
    /// has the directory that it is in.
    fn prepare_to_move(&self, node: &Arc<Node>, at: (&Arc<Node>, &OsStr)) -> Result<(), Errno> {
        let upper = node.upper().ok_or(Errno::STALE)?;
        if node.is_dir() {
            if node.stack().lowers.is_empty() {
                return self.top.xattrs.make_opaque(&self.upper, upper);
            }
            let path = self.path_below(node);
            if node.stack().redirect.as_ref() == Some(&path) {
                return Ok(()); // It was moved before.
            }
            let id = self.write_redirect(upper, &path)?;
            self.note_redirect();
            node.change_stack(|stack| (stack.redirect, stack.path) = (Some(path), id));
            return Ok(());
        }
        let above = at.0.upper().ok_or(Errno::STALE)?;
        self.give_link(node, above, at.1)
    }

    /// Whether a directory is above another, or the same.
    pub(super) fn is_above(&self, node: &Arc<Node>, other: &Arc<Node>) -> bool {
        let mut next = Some(Arc::clone(other));
        while let Some(at) = next {
            if Arc::ptr_eq(&at, node) {
                return true;
            }
            next = at.parent();
        }
        false
    }

    /// Whether a file that is only below has more names than one.
    pub(super) fn has_other_names(&self, names: &NamesRead<'_>, node: &Node) -> Step<bool> {
        let stack = node.stack();
        match (stack.upper, stack.lowers.first()) {
            (None, Some(at)) if !node.is_dir() => {
                let links = i64::from(names.below().stat(*at)?.nlink);
                Ok(links + stack.links.unwrap_or(0) > 1)
            }
            _ => Ok(false),
        }
    }

    /// Gives an upper file that is found at a name by the index a link of its own there, so that
    /// the name and the link go in one step.
    pub(super) fn give_link(&self, node: &Node, above: Ino, name: &OsStr) -> Result<(), Errno> {
        let stack = node.stack();
        let (Some(upper), Some(more)) = (stack.upper, stack.links) else { return Ok(()) };
        if self.upper_at(above, name)? != Upper::Nothing {
            return Ok(());
        }
        let all = i64::from(self.upper.attr(upper, None)?.stat.nlink) + more;
        self.top.xattrs.write_links(&self.upper, upper, Links::All(all))?;
        let linked = self.upper.link(upper, above, name);
        let more = if linked.is_ok() { more - 1 } else { more };
        node.change_stack(|stack| stack.links = Some(more));
        self.top.xattrs.write_links(&self.upper, upper, Links::More(more))?;
        self.upper.forget(linked?.attr.ino, 1);
        Ok(())
    }

    /// Notes that a name of a node is gone; with the last one it is out of the index.
    /// `left` is how many it has left, where that is known.
    pub(super) fn lost_a_name(
        &self,
        names: &NamesWrite<'_>,
        node: &Arc<Node>,
        left: Option<i64>,
    ) -> Result<(), Errno> {
        let stack = node.stack();
        let has = match (stack.upper, stack.links) {
            (Some(_), None) if !node.is_dir() && left.is_some() => left.unwrap_or(0),
            (Some(upper), links) if !node.is_dir() => {
                let stat = self.upper.attr(upper, None)?.stat;
                i64::from(stat.nlink) + links.unwrap_or(0)
            }
            _ => 0,
        };
        if has > 0 {
            return Ok(());
        }
        node.unlinked();
        names.drop_later(self.guard.unlinked(node));
        self.uncount(node);
        match (stack.links, stack.upper) {
            (Some(_), Some(upper)) => self.leave_index(node, upper),
            _ => Ok(()),
        }
    }
}
