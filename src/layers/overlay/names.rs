//! NamesRead: look up, make, link, rename, remove.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::layer::is_whiteout;
use super::lookup::LookupResult;
use super::lower_answers::Answers;
use super::namespace_lock::{Halt, NamesRead, NamesWrite, Step};
use super::node::Node;
use crate::layers::pages::Fingerprint;
use crate::shown::Show;
use crate::sys::cred::Caller;
use crate::tree::{Directories, Entry, Ino, Names, NewNode, Open, Opened, RegisterBacking, Stat};

/// What the upper directory itself has at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upper {
    Nothing,
    Whiteout,
    Directory,
    Other,
}

impl Names for Overlay {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        if !self.visible(parent, name) {
            return Err(Errno::NOENT);
        }
        let parent = self.node(parent)?;
        let found = self.with_descriptors(|| {
            let answers = Answers::none(self);
            if parent.asks_below_first() {
                answers.expect_entry(&parent.stack().lowers, name);
            }
            self.look_up(&answers, &parent, name)
        });
        self.merge_outdated();
        found
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.gone(&self.nodes.forget(ino, count));
    }

    fn path_of_inode(&self, ino: Ino) -> Option<PathBuf> {
        self.nodes.get(ino).map(|node| self.path_of(&node))
    }

    fn read_link(&self, ino: Ino) -> Result<OsString, Errno> {
        let stack = self.node(ino)?.stack();
        match (stack.upper, stack.lowers.first()) {
            (Some(upper), _) => self.upper.read_link(upper),
            (None, Some(at)) => self.layer(*at)?.read_link(at.ino),
            (None, None) => Err(Errno::STALE),
        }
    }

    fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno> {
        let parent = self.node(parent)?;
        if let Some(through) = self.write_through_dir(&parent, name)? {
            let entry = through.volume.make_node(through.dir.ino, name, new, device)?;
            return self.made_in_base(&parent, name, through.dir, &entry).map(|(_, entry)| entry);
        }
        self.make_new(&parent, name, |names| {
            let (above, whiteout) = self.prepare(names, &parent, name)?;
            let (entry, ()) = self.make_at((above, name), whiteout, |name| {
                self.make_device(above, name, new, device).map(|entry| (entry, ()))
            })?;
            self.made(names, &parent, name, &entry)
        })
    }

    fn make_dir(&self, parent: Ino, name: &OsStr, new: &NewNode<'_>) -> Result<Entry, Errno> {
        let parent = self.node(parent)?;
        if let Some(through) = self.write_through_dir(&parent, name)? {
            let entry = through.volume.make_dir(through.dir.ino, name, new)?;
            return self.made_in_base(&parent, name, through.dir, &entry).map(|(_, entry)| entry);
        }
        self.make_new(&parent, name, |names| {
            let (above, whiteout) = self.prepare(names, &parent, name)?;
            let (entry, ()) = self.make_at((above, name), whiteout, |name| {
                self.upper.make_dir(above, name, new).map(|entry| (entry, ()))
            })?;
            self.made(names, &parent, name, &entry)
        })
    }

    fn make_symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let parent = self.node(parent)?;
        if let Some(through) = self.write_through_dir(&parent, name)? {
            let entry = through.volume.make_symlink(through.dir.ino, name, target, caller)?;
            return self.made_in_base(&parent, name, through.dir, &entry).map(|(_, entry)| entry);
        }
        self.make_new(&parent, name, |names| {
            let (above, whiteout) = self.prepare(names, &parent, name)?;
            let (entry, ()) = self.make_at((above, name), whiteout, |name| {
                self.upper.make_symlink(above, name, target, caller).map(|entry| (entry, ()))
            })?;
            self.made(names, &parent, name, &entry)
        })
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        how: &Open,
        exclusive: bool,
        register: &RegisterBacking<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        let parent = self.node(parent)?;
        if let Some(through) = self.write_through_dir(&parent, name)? {
            let how = (how, exclusive);
            return self.create_in_base((&parent, name), &through, new, how, register);
        }
        self.make_new(&parent, name, |names| {
            let (above, whiteout) = match self.prepare(names, &parent, name) {
                Err(Halt::Failed(Errno::EXIST)) if !exclusive => {
                    return Err(Halt::Failed(Errno::STALE));
                }
                prepared => prepared?,
            };
            let (entry, opened) = self.make_at((above, name), whiteout, |name| {
                self.upper.create(above, name, new, how, exclusive, register)
            })?;
            let sought = self.own_sought(&entry);
            let (stat, validity) = (sought.stat, entry.attr.validity);
            let node = self.enter_node(names, sought, &parent, name);
            self.count_names(&[&parent, &node]);
            let entry = self.entry(&node, stat, validity);
            Ok((entry, self.handles.add_complete(node, None, opened)))
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        let (node, parent) = (self.node(ino)?, self.node(parent)?);
        if !node.is_linked() {
            return Err(Errno::NOENT);
        }
        if let Some(through) = self.write_through_dir(&parent, name)? {
            return self.link_in_base(&node, (&parent, name), &through);
        }
        if node.is_write_through() {
            return Err(Errno::XDEV);
        }
        let (stat, validity) = self.make_new(&parent, name, |names| {
            if !node.is_linked() {
                return Err(Halt::Failed(Errno::NOENT));
            }
            let (above, whiteout) = self.prepare(names, &parent, name)?;
            let upper = self.ensure_upper(names, &node)?;
            let (entry, ()) = self.make_at((above, name), whiteout, |name| {
                self.upper.link(upper, above, name).map(|entry| (entry, ()))
            })?;
            self.note_another_name(upper);
            self.upper.forget(entry.attr.ino, 1);
            self.count_names(&[&parent]);
            self.nodes.named(names, &node, (&parent, name));
            Ok((entry.attr.stat, entry.attr.validity))
        })?;
        Ok(self.entry(&node, stat, validity))
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        if !self.visible(parent, name) {
            return Err(Errno::NOENT);
        }
        let parent = self.node(parent)?;
        if let Some(through) = self.write_through_dir(&parent, name)? {
            return self.remove_in_base(&parent, name, &through, directory);
        }
        let (answers, stack) = (Answers::none(self), parent.stack());
        match stack.upper {
            Some(_) => answers.expect_peek(&stack.lowers, name),
            None => answers.expect_entry(&stack.lowers, name),
        }
        self.change_names_and(&answers, |names| {
            let (node, stat) = self.child(names, &parent, name)?;
            let removed = match (directory, node.is_dir()) {
                (true, false) => Err(Halt::Failed(Errno::NOTDIR)),
                (false, true) => Err(Halt::Failed(Errno::ISDIR)),
                _ => self.remove_node(names, &parent, name, &node, stat),
            };
            self.forget_node(node);
            if removed == Err(Halt::Ask) {
                return removed;
            }
            if removed.is_err_and(|halt| halt != Halt::Failed(Errno::NOTEMPTY)) {
                self.drop_listing(parent.ino); // It may have failed when the name was gone.
            }
            self.count_names(&[&parent]);
            removed
        })
    }

    fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        self.rename_entry(from, to, flags, caller)
    }
}

impl Overlay {
    pub(super) fn look_up(
        &self,
        answers: &Answers<'_>,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<Entry, Errno> {
        let (node, stat, validity) = self.with_names_and(answers, |names| {
            let sought = self.find_child(names, parent, name)?;
            let (stat, validity) = (sought.stat, sought.validity);
            Ok((self.enter_node(names, sought, parent, name), stat, validity))
        })?;
        Ok(self.entry(&node, stat, validity))
    }

    pub(super) fn upper_at(&self, parent: Ino, name: &OsStr) -> Result<Upper, Errno> {
        match self.upper.peek(parent, name) {
            Ok((stat, _)) => Ok(match stat.is_dir() {
                true => Upper::Directory,
                false if is_whiteout(&stat) => Upper::Whiteout,
                false => Upper::Other,
            }),
            Err(Errno::NOENT) => Ok(Upper::Nothing),
            Err(err) => Err(err),
        }
    }

    /// Checks that a name can be made in a directory. Returns the directory in the upper volume
    /// and whether a whiteout is at the name.
    fn prepare(
        &self,
        names: &NamesWrite<'_>,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Step<(Ino, bool)> {
        if !self.visible(parent.ino, name) {
            return Err(Halt::Failed(Errno::PERM));
        }
        if !parent.is_linked() {
            return Err(Halt::Failed(Errno::NOENT));
        }
        self.check_room()?;
        let above = self.ensure_upper(names, parent)?;
        if parent.stack().lowers.is_empty() {
            return Ok((above, false));
        }
        match self.upper_at(above, name)? {
            Upper::Whiteout => Ok((above, true)),
            Upper::Nothing if !self.is_below(names, parent, name)? => Ok((above, false)),
            _ => Err(Halt::Failed(Errno::EXIST)),
        }
    }

    /// Makes something at a name of the scratch.
    fn make_new<T>(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        mut make: impl FnMut(&NamesWrite<'_>) -> Step<T>,
    ) -> Result<T, Errno> {
        let answers = Answers::none(self);
        // A name in the scratch alone, or under a whiteout, asks nothing.
        let stack = parent.stack();
        if stack.upper.is_none_or(|above| self.upper_at(above, name) == Ok(Upper::Nothing)) {
            answers.expect_peek(&stack.lowers, name);
        }
        self.change_names_and(&answers, |names| make(names))
    }

    /// Makes something at a name: beside it and moved there where a whiteout is in its place.
    fn make_at<T>(
        &self,
        (above, name): (Ino, &OsStr),
        whiteout: bool,
        make: impl FnOnce(&OsStr) -> Result<(Entry, T), Errno>,
    ) -> Result<(Entry, T), Errno> {
        if !whiteout {
            return make(name);
        }
        let cover = self.cover_at(above, name);
        let beside = self.temporary_name();
        let (entry, more) = make(&beside)?;
        if cover.is_some() && (entry.attr.stat.is_dir() || entry.attr.stat.nlink == 1) {
            self.note_cover(entry.attr.ino, cover.as_ref());
        }
        let moved = match entry.attr.stat.is_dir() {
            false => {
                let none = RenameFlags::empty();
                self.upper.rename((above, &beside), (above, name), none, &self.me)
            }
            // A directory takes the whiteout's place, and not what that stands for.
            true => self.top.xattrs.make_opaque(&self.upper, entry.attr.ino).and_then(|()| {
                let exchange = RenameFlags::EXCHANGE;
                self.upper.rename((above, &beside), (above, name), exchange, &self.me)?;
                if let Err(err) = self.upper.remove(above, &beside, false) {
                    // It is made, and what is left of the whiteout is swept at the next mount.
                    log::warn!("{}: removing a whiteout: {err}", beside.shown());
                }
                Ok(())
            }),
        };
        match moved {
            Ok(()) => {
                self.stats.whiteouts(-1);
                Ok((entry, more))
            }
            Err(err) => {
                let _ = self.upper.remove(above, &beside, entry.attr.stat.is_dir());
                self.upper.forget(entry.attr.ino, 1);
                Err(err)
            }
        }
    }

    /// The node of something that was just made in the upper volume.
    fn made(
        &self,
        names: &NamesRead<'_>,
        parent: &Arc<Node>,
        name: &OsStr,
        entry: &Entry,
    ) -> Step<Entry> {
        let sought = self.own_sought(entry);
        let (stat, validity) = (sought.stat, sought.validity);
        let node = self.enter_node(names, sought, parent, name);
        self.count_names(&[parent, &node]);
        Ok(self.entry(&node, stat, validity))
    }

    /// Removes a name. `just_read` is what was just read of the attributes of an upper file or directory
    /// that is all there is of it.
    fn remove_node(
        &self,
        names: &NamesWrite<'_>,
        parent: &Arc<Node>,
        name: &OsStr,
        node: &Arc<Node>,
        just_read: Option<Stat>,
    ) -> Step<()> {
        let whole_dir = just_read.is_some() && node.is_dir();
        if node.is_dir() && !whole_dir && !self.is_empty(names, node)? {
            return Err(Halt::Failed(Errno::NOTEMPTY));
        }
        let below = self.is_below(names, parent, name)?;
        let cover = if below { self.cover_of(names, node)? } else { None };
        if self.has_other_names(names, node)? {
            self.ensure_upper(names, node)?; // The other names are to know that there is one less.
        }
        let above = self.ensure_upper(names, parent)?;
        self.give_link(node, above, name)?;
        let at = match just_read {
            Some(stat) if stat.is_dir() => Upper::Directory,
            Some(_) => Upper::Other,
            None => self.upper_at(above, name)?,
        };
        match (at, below) {
            (Upper::Nothing | Upper::Whiteout, _) => {
                self.make_whiteout(above, name, cover.as_ref())?;
                self.stats.whiteouts(1);
            }
            (_, false) if whole_dir => match self.upper.remove(above, name, true) {
                // It may be that nothing of what is in it is to be seen.
                Err(Errno::NOTEMPTY) if self.is_empty(names, node)? => {
                    self.clear_whiteouts(node)?;
                    self.upper.remove(above, name, true)?;
                }
                removed => removed?,
            },
            (_, false) => {
                if at == Upper::Directory {
                    self.clear_whiteouts(node)?;
                }
                self.upper.remove(above, name, at == Upper::Directory)?;
            }
            (_, true) => {
                if whole_dir && !self.is_empty(names, node)? {
                    return Err(Halt::Failed(Errno::NOTEMPTY));
                }
                if at == Upper::Directory {
                    self.clear_whiteouts(node)?;
                }
                self.replace_by_whiteout((above, name), at == Upper::Directory, cover.as_ref())?;
            }
        }
        Ok(self.lost_a_name(names, node, just_read.map(|stat| i64::from(stat.nlink) - 1))?)
    }

    /// Puts a whiteout in the place of what the upper directory has at a name, in one step.
    fn replace_by_whiteout(
        &self,
        (above, name): (Ino, &OsStr),
        dir: bool,
        cover: Option<&Fingerprint>,
    ) -> Result<(), Errno> {
        let work = self.work;
        let temporary = self.temporary_name();
        self.make_whiteout(work, &temporary, cover)?;
        let flags = if dir { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        let moved = self.upper.rename((work, &temporary), (above, name), flags, &self.me);
        if moved.is_err() {
            let _ = self.upper.remove(work, &temporary, false);
            return moved;
        }
        self.stats.whiteouts(1);
        if dir { self.upper.remove(work, &temporary, true) } else { Ok(()) }
    }

    /// Removes what is left in an upper directory that shows nothing.
    pub(super) fn clear_whiteouts(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let Some(upper) = node.upper() else { return Ok(()) };
        let mut left = Vec::new();
        let id = self.upper.open_dir(upper)?;
        let listed = self.upper.list((upper, id), 0, false, &mut |item| {
            if item.name != "." && item.name != ".." {
                left.push((item.name.to_owned(), item.kind == libc::S_IFDIR));
            }
            false
        });
        self.upper.release_dir(id)?;
        listed?;
        if left.is_empty() {
            return Ok(());
        }
        self.top.xattrs.make_opaque(&self.upper, upper)?;
        // What a daemon that was killed was about to make is among them.
        left.iter().try_for_each(|(name, dir)| self.upper.remove(upper, name, *dir))?;
        let whiteouts = left.iter().filter(|(name, _)| self.visible(upper, name)).count();
        self.stats.whiteouts(-(whiteouts as i64));
        Ok(())
    }

    pub(super) fn forget_node(&self, node: Arc<Node>) {
        let ino = node.ino;
        drop(node);
        self.forget(ino, 1);
    }

    /// What was found when something was made: nothing but itself.
    fn own_sought(&self, entry: &Entry) -> LookupResult {
        self.count_new(entry.attr.stat.blocks);
        self.stats.made(entry.attr.stat.kind(), 1);
        self.just_made(entry.attr.ino, entry.attr.stat)
    }
}
