//! Hard link index: links to the copies of base files that had several names, each named by the
//! inode number of the base file, so that all names of the file lead to the one copy.
//!
//! Inode numbers are reused. So the xattr `mmapfs.origin` says which file an entry is the copy of,
//! and the entry of a file that is gone is replaced by the copy of the next one.

use std::collections::HashSet;
use std::ffi::OsStr;

use parking_lot::RwLock;
use rustix::io::Errno;

use super::Overlay;
use super::ino::original;
use super::layer::OverlayParts;
use super::lookup::{LookupResult, LookupScope};
use super::namespace_lock::{Halt, NamesRead, NamesWrite, Step};
use super::node::Node;
use super::overlay_xattrs::Links;
use crate::error::cause::because;
use crate::shown::Show;
use crate::tree::{Directories, Entry, Ino, Names};
use crate::volume::Volume;

/// Directory of the index, with the set of its entries.
pub(super) struct Index {
    /// Inode number of the directory in the upper volume.
    pub(super) dir: Ino,
    /// Inode numbers of the base files that have an entry.
    entries: RwLock<HashSet<Ino>>,
}

/// Name of the index entry for a lower file.
fn key(ino: Ino) -> String {
    format!("{:016x}", original(ino).0)
}

impl Index {
    /// Reads the entries of an index directory.
    ///
    /// # Errors
    /// Errors of readdir(2).
    pub(super) fn read(upper: &Volume, dir: Ino) -> Result<Index, Errno> {
        let mut entries = HashSet::new();
        let id = upper.open_dir(dir)?;
        let listed = upper.list((dir, id), 0, false, &mut |item| {
            let number = item.name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            // A name is an entry only in the form that `key` gives it.
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

/// The cause of an error for an index entry that cannot be right.
const WRONG: &str = "the index of hard links has another file in its place";

impl Overlay {
    /// Result of a lookup in the lower layers. If the file found was copied up by another of its
    /// names, the result is the copy; the base may have lost that name since.
    pub(super) fn below(&self, whence: LookupScope<'_>, name: &OsStr) -> Step<LookupResult> {
        let found = self.directly_below(whence, name)?;
        self.copy_in_index(&self.top, whence, name, found)
    }

    /// The copy in the index of an overlay layer, the scope's, of a file that was found below it;
    /// else the file itself.
    pub(super) fn copy_in_index(
        &self,
        parts: &OverlayParts,
        whence: LookupScope<'_>,
        name: &OsStr,
        found: LookupResult,
    ) -> Step<LookupResult> {
        if found.stat.is_dir() || !parts.index.has(found.ino) {
            return Ok(found);
        }
        let joined = match self.upper.lookup(parts.index.dir, OsStr::new(&key(found.ino))) {
            Ok(entry) => self.in_index(parts, whence, name, (&entry, &found)),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(Halt::Failed(err)),
        };
        if let Ok(None) = joined {
            return Ok(found);
        }
        self.let_go(&found.stack);
        joined.map(|joined| joined.unwrap_or(found))
    }

    /// Result for an index entry; `None` if it is the copy of an earlier file with the inode number
    /// of the file found below. The lookup count of `entry` passes to this call.
    fn in_index(
        &self,
        parts: &OverlayParts,
        whence: LookupScope<'_>,
        name: &OsStr,
        (entry, below): (&Entry, &LookupResult),
    ) -> Step<Option<LookupResult>> {
        let refuse = |reason: &dyn std::fmt::Display| {
            let path = self.path_of(whence.parent).join(name);
            log::error!("{}: index/{}: {reason}", path.shown(), key(below.ino));
        };
        let inner = entry.attr.ino;
        let is_same = match self.is_of_file(parts, whence.names, inner, below) {
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
            return Err(Halt::Failed(because(Errno::IO, WRONG)));
        }
        let joined = match whence.layer {
            0 => self.above(whence, name, entry, is_same)?,
            _ => self.join_frozen(parts, whence, name, entry, is_same)?,
        };
        // Files other than regular ones may have no overlay xattrs.
        if original(joined.ino) != original(below.ino) && below.stat.kind() == libc::S_IFREG {
            refuse(&"it is the copy of another file");
            self.let_go(&joined.stack);
            return Err(Halt::Failed(because(Errno::IO, WRONG)));
        }
        Ok(Some(joined))
    }

    /// Whether an entry is the copy of the file found below, and not of an earlier one; `None` if
    /// it has no origin.
    fn is_of_file(
        &self,
        parts: &OverlayParts,
        names: &NamesRead<'_>,
        inner: Ino,
        below: &LookupResult,
    ) -> Step<Option<bool>> {
        let origin = parts.xattrs.origin(&self.upper, inner).map_err(|err| err.errno())?;
        let (Some(origin), Some(at)) = (origin, below.stack.lowers.first()) else {
            return Ok(None);
        };
        let is_same = origin.is_of_file(&names.below().fingerprint(*at)?);
        if is_same || self.is_plain(*at) {
            return Ok(Some(is_same));
        }
        // In a copy of the scratch the file of the frozen layer has another inode number.
        Ok(Some(origin.ino != original(below.ino).0))
    }

    /// Adds the copy of a node to the index. The copy has no name of its own yet.
    pub(super) fn enter_in_index(
        &self,
        names: &NamesWrite<'_>,
        node: &Node,
        upper: Ino,
    ) -> Result<(), Errno> {
        let name = key(node.ino);
        let linked = match self.upper.link(upper, self.top.index.dir, OsStr::new(&name)) {
            // The base file of the old entry is gone: its inode number was reused.
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

    /// Removes the copy of a node from the index.
    ///
    /// # Errors
    /// Errors of unlink(2).
    pub(super) fn leave_index(&self, node: &Node, upper: Ino) -> Result<(), Errno> {
        let name = key(node.ino);
        match self.upper.peek(self.top.index.dir, OsStr::new(&name)) {
            // The entry is the copy of a later file.
            Ok((_, inner)) if inner != Some(upper) => return Ok(()),
            Err(Errno::NOENT) => return Ok(()),
            found => found?,
        };
        self.upper.remove(self.top.index.dir, OsStr::new(&name), false)?;
        self.top.index.entries.write().remove(&original(node.ino));
        Ok(())
    }

    /// Removes an entry whose base file is gone. The copy keeps its names in the upper volume, and
    /// becomes a plain upper file.
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
