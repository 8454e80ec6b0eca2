//! Directories: open, list, synchronise.
//!
//! What is listed where is in [`super::merged_dir`], what a place in a listing is in
//! [`super::dir_offset`]. Where places are good in every listing, nothing depends on what a client has
//! open, and the kernel may keep listings; what is open only saves time. Elsewhere a listing goes
//! on in the open directory that it was begun in.

use std::ffi::OsStr;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::dir_offset::{AFTER_DOT, AFTER_DOTS};
use super::ino::unknown_entry;
use super::lookup::LookupResult;
use super::lower_answers::Answers;
use super::merged_dir::{Found, Listed, Reading};
use super::names::Upper;
use super::node::{LayerStack, LowerInode, Node};
use crate::tree::{Attr, DataOnly, DirItem, Directories, Entry, HandleId, Ino, Names, Validity};

/// An open directory, or one that was listed a moment ago by somebody who has not opened it.
pub(super) struct OpenDir {
    ino: Ino,
    reading: Mutex<Reading>,
}

impl Directories for Overlay {
    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno> {
        if !self.node(ino)?.is_dir() {
            return Err(Errno::NOTDIR);
        }
        Ok(self.handles.add_dir(OpenDir { ino, reading: Mutex::default() }))
    }

    fn release_dir(&self, id: HandleId) -> Result<(), Errno> {
        self.handles.remove_dir(id).map(drop)
    }

    fn list(
        &self,
        (ino, id): (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let listed = self.list_open((ino, id), offset, look_up, add);
        self.merge_outdated();
        listed
    }

    fn sync_dir(&self, ino: Ino, _: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        let node = self.node(ino)?;
        // The upper directory has all changes; without one there are none.
        if node.upper().is_some() || node.is_write_through() {
            let (volume, inner) = self.top(&node)?;
            let open = volume.open_dir(inner)?;
            let synced = volume.sync_dir(inner, open, data_only);
            volume.release_dir(open)?;
            synced?;
        }
        self.sync_dir_names(ino)
    }
}

impl Overlay {
    fn list_open(
        &self,
        (ino, id): (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        if id != HandleId::NONE {
            let dir = self.handles.dir(id)?;
            let node = self.node(dir.ino)?;
            return self.list_from(&node, &mut dir.reading.lock(), offset, look_up, add);
        }
        let node = self.node(ino)?;
        if !node.is_dir() {
            return Err(Errno::NOTDIR);
        }
        let left = if offset == 0 { None } else { self.listings.take(ino) };
        let dir = left
            .filter(|dir| dir.reading.lock().at == offset)
            .unwrap_or_else(|| Arc::new(OpenDir { ino, reading: Mutex::default() }));
        let mut reading = dir.reading.lock();
        let listed = self.list_from(&node, &mut reading, offset, look_up, add);
        let more = reading.at != offset;
        drop(reading);
        // The kernel asks once more after the end, which it learns by an empty answer.
        if more {
            drop(self.listings.put(ino, dir));
            self.sweeper.note();
        }
        listed
    }

    /// Has the kernel ask again what is in a directory.
    pub(super) fn drop_listing(&self, dir: Ino) {
        if let Some(caches) = self.caches.get() {
            caches.soon(dir);
        }
    }

    /// Closes what is kept open of listings that do not go on, until the end.
    pub(super) fn expire_listings(&self) {
        while self.sweeper.wait() {
            drop(self.listings.sweep());
            if !self.listings.is_empty() {
                self.sweeper.note();
            }
        }
        drop(self.listings.clear());
    }

    fn list_from(
        &self,
        node: &Arc<Node>,
        reading: &mut Reading,
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        if offset == 0 {
            *reading = Reading::default(); // As it is now, also where a stream keeps what was.
        }
        reading.at = offset;
        let above = node.parent();
        let above = above.as_ref().unwrap_or(node);
        for (name, node, next) in [(".", node, AFTER_DOT), ("..", above, AFTER_DOTS)] {
            if reading.at + 1 == next {
                let (name, kind) = (OsStr::new(name), libc::S_IFDIR);
                let item = DirItem { name, ino: node.ino, kind, next, entry: None, known: true };
                if add(&item) {
                    return Ok(false);
                }
                reading.at = next;
            }
        }
        let mut at = reading.at;
        let listed = self.each_entry(node, reading, at, look_up, &mut |item, found, next| {
            let step = self.give(node, (item, found, next), look_up, add);
            if step == Listed::Given {
                at = next;
            }
            step
        });
        reading.at = at;
        // What was listed is told first, and why no more is told when it is asked for.
        if at != offset { listed.or(Ok(false)) } else { listed }
    }

    /// Hands an entry on.
    fn give(
        &self,
        node: &Arc<Node>,
        (item, found, next): (&DirItem<'_>, Found, u64),
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Listed {
        let Found::Below(dir, generation) = found else {
            return self.emit(node, (item, next), look_up, add);
        };
        match &item.entry {
            Some(entry) => self.add_base(node, (item, entry), (dir, generation), next, add),
            None if look_up => self.emit(node, (item, next), look_up, add),
            None => {
                let ino = self.number_below(LowerInode { ino: item.ino, ..dir });
                let (name, kind) = (item.name, item.kind);
                match add(&DirItem { name, ino, kind, next, entry: None, known: true }) {
                    true => Listed::Full,
                    false => Listed::Given,
                }
            }
        }
    }

    /// Hands on an entry that is only below, of which one lookup is held: by what the layer itself
    /// says of it. The lookup is still held when there was no room for it.
    fn add_base(
        &self,
        node: &Arc<Node>,
        (item, entry): (&DirItem<'_>, &Entry),
        (dir, generation): (LowerInode, u64),
        next: u64,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Listed {
        let below = LowerInode { ino: entry.attr.ino, ..dir };
        let (stat, validity) = (entry.attr.stat, entry.attr.validity);
        let number = self.number_below(below);
        let several = !stat.is_dir() && stat.nlink > 1;
        let attr = Attr { ino: number, stat, validity };
        let is_told = self.base().is_of_source(&stat);
        let named = if is_told { self.validity_below(node) } else { Validity::Timeout };
        let entry = Entry { attr, generation: 0, validity: named };
        let shown = DirItem {
            name: item.name,
            ino: number,
            kind: stat.kind(),
            next,
            entry: Some(entry),
            known: true,
        };
        let handed_on = self.with_names(|names| {
            let is_raised = || self.nodes.get(number).is_some_and(|node| node.upper().is_some());
            let is_above = || {
                let at = |upper| self.upper_at(upper, item.name) != Ok(Upper::Nothing);
                // It may have been merged anew, too.
                names.generation() != generation
                    && (node.upper().is_some_and(at) || !node.has_below(dir))
            };
            // What it is depends on more than its name here.
            if several || !item.known || is_raised() || is_above() {
                return Ok(None);
            }
            let stack = LayerStack { lowers: vec![below], ..LayerStack::default() };
            let found = LookupResult { ino: number, stack, stat, validity };
            let found = self.enter_node(names, found, node, item.name);
            // A file of the scratch may have got its number just now.
            let listed = match found.lower_share.number() == number {
                true if add(&shown) => Listed::Full,
                true => Listed::Given,
                false => Listed::Passed,
            };
            Ok(Some((listed, found)))
        });
        if let Ok(Some((listed, found))) = handed_on {
            if listed == Listed::Given {
                return listed;
            }
            // The lookup of what is below went to the node.
            if !self.lower(below).is_ok_and(|volume| volume.look_up_again(below.ino)) {
                log::error!("inode {}: it is listed and not known", below.ino);
            }
            self.forget_node(found);
            if listed == Listed::Full {
                return listed;
            }
        }
        let listed = self.emit(node, (item, next), true, add);
        if listed == Listed::Given {
            self.let_go_below(below);
        }
        listed
    }

    /// Hands on what a name leads to, by its number there; a name that is there and cannot be looked
    /// at as what its directory says of it.
    fn emit(
        &self,
        node: &Arc<Node>,
        (item, next): (&DirItem<'_>, u64),
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Listed {
        let name = item.name;
        // Whoever lists must be told the number that it is shown with.
        let known = match self.is_mixed() {
            true => None,
            false => {
                self.with_names(|names| Ok(self.known_child(names, node, name))).ok().flatten()
            }
        };
        let found = match known {
            Some((node, inner, stat)) => {
                Ok(self.entry(&node, stat, self.upper.attr_validity(inner, &stat)))
            }
            None => self.look_up(&Answers::none(self), node, name),
        };
        let entry = match found {
            Ok(entry) => entry,
            Err(Errno::NOENT) => return Listed::Passed,
            Err(_) => {
                // By the number of its layer the kernel would ask for another file, and forget it.
                let (ino, kind) = (unknown_entry(self.offsets.decode(next).0, item.ino), item.kind);
                let full = add(&DirItem { name, ino, kind, next, entry: None, known: false });
                return if full { Listed::Full } else { Listed::Given };
            }
        };
        let (ino, kind) = (entry.attr.ino, entry.attr.stat.kind());
        let shown = look_up.then_some(entry);
        let full = add(&DirItem { name, ino, kind, next, entry: shown, known: true });
        if !look_up || full {
            self.forget(ino, 1);
        }
        if full { Listed::Full } else { Listed::Given }
    }
}
