//! The index: the copies of base files that had several names, under the number of the base file,
//! so that each of its names leads to the one copy.
//!
//! A number is given to a later file again. So an entry is the copy of the file that its mark
//! `mmapfs.origin` tells, and an entry of a file that is gone makes room for the next one.

use std::collections::HashSet;
use std::ffi::OsStr;

use parking_lot::RwLock;
use rustix::io::Errno;

use super::Overlay;
use super::ino::original;
use super::lookup::{LookupResult, LookupScope};
use super::namespace_lock::{Halt, NamesRead, NamesWrite, Step};
use super::node::Node;
use super::overlay_xattrs::Links;
use crate::shown::Show;
use crate::volume::{Entry, Ino, Volume};

/// The directory of the index, and which entries it has.
pub(super) struct Index {
    /// Its number in the upper volume.
    pub(super) dir: Ino,
    entries: RwLock<HashSet<Ino>>,
}

/// The name in the index of the copy of a lower file.
fn key(ino: Ino) -> String {
    format!("{:016x}", original(ino).0)
}

impl Index {
    /// Reads which entries a directory has.
    ///
    /// # Errors
    /// Errors of readdir(2).
    pub(super) fn read(upper: &Volume, dir: Ino) -> Result<Index, Errno> {
        let mut entries = HashSet::new();
        let id = upper.open_dir(dir)?;
        let listed = upper.list((dir, id), 0, false, &mut |item| {
            let number = item.name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            // Another form of the same number is no entry.
            entries.extend(number.map(Ino).filter(|number| *item.name == *key(*number)));
            false
        });
        upper.release_dir(id)?;
        listed?;
        Ok(Index { dir, entries: RwLock::new(entries) })
    }

    fn has(&self, ino: Ino) -> bool {
        self.entries.read().contains(&original(ino))
    }
}

impl Overlay {
    /// What a name leads to in the lower layers, or the copy of that, which was made by another of
    /// its names: one that it may have lost since in the base.
    pub(super) fn below(&self, whence: LookupScope<'_>, name: &OsStr) -> Step<LookupResult> {
        let sought = self.directly_below(whence.names, whence.dirs, name)?;
        if sought.stat.is_dir() || !self.top.index.has(sought.ino) {
            return Ok(sought);
        }
        let joined = match self.upper.lookup(self.top.index.dir, OsStr::new(&key(sought.ino))) {
            Ok(entry) => self.in_index(whence, name, &entry, &sought),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(Halt::Failed(err)),
        };
        if let Ok(None) = joined {
            return Ok(sought);
        }
        self.let_go(&sought.stack);
        joined.map(|joined| joined.unwrap_or(sought))
    }

    /// What an entry of the index is made of; `None` where it is the copy of an earlier file with
    /// the number of what was found below. The lookup of the entry is handed over.
    fn in_index(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        entry: &Entry,
        below: &LookupResult,
    ) -> Step<Option<LookupResult>> {
        let refuse = |reason: &dyn std::fmt::Display| {
            let path = self.path_of(whence.parent).join(name);
            log::error!("{}: index/{}: {reason}", path.shown(), key(below.ino));
        };
        let inner = entry.attr.ino;
        let is_same = match self.is_of_file(whence.names, inner, below) {
            Ok(Some(false)) => {
                self.upper.forget(inner, 1);
                return Ok(None);
            }
            Ok(is_same) => is_same == Some(true),
            Err(halt) => {
                if let Halt::Failed(err) = halt {
                    refuse(&err);
                }
                self.upper.forget(inner, 1);
                return Err(halt);
            }
        };
        if entry.attr.stat.kind() != below.stat.kind() {
            refuse(&"it is a file of another type");
            self.upper.forget(inner, 1);
            return Err(Halt::Failed(Errno::IO));
        }
        let joined = self.above(whence, name, entry, is_same)?;
        // Other files than regular ones may have no marks.
        if original(joined.ino) != original(below.ino) && below.stat.kind() == libc::S_IFREG {
            refuse(&"it is the copy of another file");
            self.let_go(&joined.stack);
            return Err(Halt::Failed(Errno::IO));
        }
        Ok(Some(joined))
    }

    /// Whether an entry is the copy of the file that was found below, and not of an earlier one;
    /// `None` where its marks do not tell.
    fn is_of_file(
        &self,
        names: &NamesRead<'_>,
        inner: Ino,
        below: &LookupResult,
    ) -> Step<Option<bool>> {
        let origin = self.top.xattrs.origin(&self.upper, inner).map_err(|err| err.errno())?;
        let (Some(origin), Some(at)) = (origin, below.stack.lowers.first()) else {
            return Ok(None);
        };
        Ok(Some(origin.is_of_file(&names.below().fingerprint(*at)?)))
    }

    /// Enters the copy of a node, which is not in its place yet.
    pub(super) fn enter_in_index(
        &self,
        names: &NamesWrite<'_>,
        node: &Node,
        upper: Ino,
    ) -> Result<(), Errno> {
        let name = key(node.ino);
        let linked = match self.upper.link(upper, self.top.index.dir, OsStr::new(&name)) {
            // All names of the file that it is of are gone, and so is its inode.
            Err(Errno::EXIST) => {
                self.retire(names, OsStr::new(&name))?;
                self.upper.link(upper, self.top.index.dir, OsStr::new(&name))
            }
            linked => linked,
        };
        self.upper.forget(linked?.attr.ino, 1);
        self.top.index.entries.write().insert(original(node.ino));
        Ok(())
    }

    /// Takes the copy of a node out again.
    ///
    /// # Errors
    /// Errors of unlink(2).
    pub(super) fn leave_index(&self, node: &Node, upper: Ino) -> Result<(), Errno> {
        let name = key(node.ino);
        match self.upper.peek(self.top.index.dir, OsStr::new(&name)) {
            // It made room for the copy of a later file.
            Ok((_, inner)) if inner != Some(upper) => return Ok(()),
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        self.upper.remove(self.top.index.dir, OsStr::new(&name), false)?;
        self.top.index.entries.write().remove(&original(node.ino));
        Ok(())
    }

    /// Removes an entry whose file is gone from the base: the copy keeps the names that it has of
    /// its own, and is a file like any other then.
    fn retire(&self, names: &NamesWrite<'_>, name: &OsStr) -> Result<(), Errno> {
        let entry = self.upper.lookup(self.top.index.dir, name)?;
        let (inner, links) = (entry.attr.ino, i64::from(entry.attr.stat.nlink) - 1);
        let retired = self.retire_copy(names, name, inner, links);
        self.upper.forget(inner, 1);
        retired
    }

    fn retire_copy(
        &self,
        names: &NamesWrite<'_>,
        name: &OsStr,
        inner: Ino,
        links: i64,
    ) -> Result<(), Errno> {
        let shown = self.nodes.numbers().shown(inner);
        let node = self.nodes.get(shown).filter(|node| node.upper() == Some(inner));
        let marks = self.top.xattrs.read(&self.upper, inner).ok();
        self.top.xattrs.write_links(&self.upper, inner, Links::All(links))?;
        self.upper.remove(self.top.index.dir, name, false)?;
        log::debug!("index/{}: its file is gone from the base", name.shown());
        match node {
            Some(node) => {
                node.change_stack(|stack| stack.links = None);
                if links == 0 {
                    return self.lost_a_name(names, &node, Some(0));
                }
            }
            None if links == 0 => {
                let marks = marks.unwrap_or_default();
                marks.path.into_iter().for_each(|id| self.drop_path(id));
                marks.pages.into_iter().for_each(|id| self.drop_page_map(id));
                return Ok(());
            }
            None => {}
        }
        self.top.xattrs.remove(&self.upper, inner, "mmapfs.links")
    }
}
