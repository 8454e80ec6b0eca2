//! Covered names: names of the scratch that hide a file of the base. The fingerprint of the hidden
//! file is kept, so that a change of the base under the scratch is detected.
//!
//! A copy at its own name covers its origin, whose fingerprint is in the xattr `mmapfs.origin`. A
//! whiteout, and a file that has come to another name of the base, has the xattr `mmapfs.covers`. A
//! rename writes it afterwards: if it is missing, the covered file is unknown. A file with several
//! names may cover more files than one xattr can hold; it is compared with its origin alone.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::io::Errno;

use super::Overlay;
use super::layer::is_whiteout;
use super::namespace_lock::{NamesRead, Step};
use super::node::{LowerInode, Node};
use crate::layers::changed::Fate;
use crate::layers::pages::{Comparison, Fingerprint};
use crate::shown::Show;
use crate::tree::{Attributes, Directories, Ino, Names};

/// Xattr with the packed fingerprint of the covered file; empty if no file is covered.
const COVERS: &str = "mmapfs.covers";

/// Number of files that the log names.
const NAMED: usize = 3;

impl Overlay {
    /// Fingerprint of the file that a node covers at its name; `None` if it is unknown.
    pub(super) fn cover_of(&self, names: &NamesRead<'_>, node: &Node) -> Step<Option<Fingerprint>> {
        let stack = node.stack();
        match (stack.upper, stack.lowers.first()) {
            (Some(upper), _) => Ok(self.cover_by_marks(upper)),
            (None, Some(at)) => Ok(Some(names.below().fingerprint(*at)?)),
            (None, None) => Ok(None),
        }
    }

    /// Fingerprint of the covered file by the xattrs of an upper file or whiteout; `None` if they
    /// cannot be read.
    fn cover_by_marks(&self, upper: Ino) -> Option<Fingerprint> {
        let marks = self.top.xattrs.read(&self.upper, upper).ok()?;
        marks.covers.unwrap_or(marks.origin)
    }

    /// Fingerprint of the file that the whiteout at a name of an upper directory covers.
    pub(super) fn cover_at(&self, above: Ino, name: &OsStr) -> Option<Fingerprint> {
        let entry = self.upper.lookup(above, name).ok()?;
        let cover = self.cover_by_marks(entry.attr.ino);
        self.upper.forget(entry.attr.ino, 1);
        cover
    }

    /// Sets the fingerprint of the file that an upper file or whiteout covers from now on; `None`
    /// if it covers no file or an unknown one. A failure to write it is logged.
    pub(super) fn note_cover(&self, upper: Ino, cover: Option<&Fingerprint>) {
        let packed = cover.map(Fingerprint::pack).unwrap_or_default();
        if let Err(err) = self.top.xattrs.write(&self.upper, upper, COVERS, &packed) {
            log::debug!("marking what is covered: {err}");
        }
    }

    /// As [`Overlay::note_cover`], for a file that has come to another name. A file with several
    /// names covers an unknown file.
    pub(super) fn note_cover_moved(&self, upper: Ino, cover: Option<&Fingerprint>) {
        let found = self.upper.attr(upper, None);
        let one_name = found.is_ok_and(|found| found.stat.is_dir() || found.stat.nlink == 1);
        self.note_cover(upper, cover.filter(|_| one_name));
    }

    /// Marks the covered file of an upper file as unknown if it had one: the file has got another
    /// name, and the fingerprint is for one name alone.
    pub(super) fn note_another_name(&self, upper: Ino) {
        if self.cover_by_marks(upper).is_some() {
            self.note_cover(upper, None);
        }
    }

    /// As [`Overlay::note_cover`], for the entry at a name of an upper directory.
    pub(super) fn note_cover_at(&self, above: Ino, name: &OsStr, cover: Option<&Fingerprint>) {
        if let Ok(entry) = self.upper.lookup(above, name) {
            self.note_cover(entry.attr.ino, cover);
            self.upper.forget(entry.attr.ino, 1);
        }
    }

    /// Makes a whiteout with the fingerprint of the file that it covers.
    pub(super) fn make_whiteout(
        &self,
        above: Ino,
        name: &OsStr,
        cover: Option<&Fingerprint>,
    ) -> Result<(), Errno> {
        let entry = self.upper.make_node(above, name, &self.own(libc::S_IFCHR), 0)?;
        if cover.is_some() {
            self.note_cover(entry.attr.ino, cover);
        }
        self.upper.forget(entry.attr.ino, 1);
        Ok(())
    }

    /// Starts a thread that compares all covered files with their fingerprints.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start_comparing(self: &Arc<Overlay>) -> Result<(), Errno> {
        let found = self.scratch.lock().as_ref().map(|scratch| scratch.found());
        if found.is_none_or(|found| found.copied_files + found.whiteouts == 0) {
            self.guard.compared.store(true, Ordering::Release);
            return Ok(());
        }
        let overlay = Arc::clone(self);
        let compare = move || overlay.compare_covered();
        let started = thread::Builder::new().name(String::from("compare")).spawn(compare);
        started.map(drop).map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::AGAIN))
    }

    /// Compares all covered files with their fingerprints, and notes the changed ones.
    fn compare_covered(&self) {
        let mut changed = Vec::new();
        let mut left = vec![Ino::ROOT];
        while let Some(dir) = left.pop() {
            if self.scratch.lock().is_some()
                && let Err(err) = self.compare_in(dir, &mut left, &mut changed)
            {
                log::debug!("comparing the covered names of a directory: {err}");
            }
            self.forget(dir, 1); // The root is never forgotten.
        }
        self.guard.compared.store(true, Ordering::Release);
        if changed.is_empty() {
            return;
        }
        let named: Vec<String> =
            changed.iter().take(NAMED).map(|(path, _)| path.shown().to_string()).collect();
        let more = if changed.len() > NAMED { ", ..." } else { "" };
        log::warn!(
            "{}{more}: the base has changed under what the scratch has in its place ({} files): \
             `status` lists them",
            named.join(", "),
            changed.len(),
        );
    }

    /// Compares the files that the entries of a directory cover. Its subdirectories are added to
    /// `left`, with a lookup count.
    fn compare_in(
        &self,
        dir: Ino,
        left: &mut Vec<Ino>,
        changed: &mut Vec<(PathBuf, Fate)>,
    ) -> Result<(), Errno> {
        let node = self.node(dir)?;
        let stack = node.stack();
        let Some(upper) = stack.upper.filter(|_| !stack.lowers.is_empty()) else { return Ok(()) };
        let mut names = Vec::new();
        let id = self.upper.open_dir(upper)?;
        let listed = self.upper.list((upper, id), 0, false, &mut |item| {
            if item.name != "." && item.name != ".." && self.visible(dir, item.name) {
                names.push((item.name.to_owned(), item.kind));
            }
            false
        });
        self.upper.release_dir(id)?;
        listed?;
        for (name, kind) in names {
            if kind == libc::S_IFDIR
                && let Ok(entry) = self.lookup(dir, &name)
            {
                left.push(entry.attr.ino);
            }
            let fate = || self.fate_of(upper, &stack.lowers, &name);
            // The names are not locked: a fate counts if it is found twice.
            if let Some(fate) = fate().filter(|found| fate().as_ref() == Some(found)) {
                let path = self.path_of(&node).join(&name);
                self.guard.changed().note_also(&path, fate);
                changed.push((path, fate));
            }
        }
        Ok(())
    }

    /// Fate of the base file that an upper entry covers; `None` if it is unchanged or unknown.
    pub(super) fn fate_of(&self, upper: Ino, lowers: &[LowerInode], name: &OsStr) -> Option<Fate> {
        let entry = self.upper.lookup(upper, name).ok()?;
        let marks = self.top.xattrs.read(&self.upper, entry.attr.ino);
        self.upper.forget(entry.attr.ino, 1);
        let (marks, stat) = (marks.ok()?, entry.attr.stat);
        if marks.pages.is_some() && marks.covers.is_none() {
            return None; // The base of a partial copy is compared elsewhere.
        }
        let then = marks.covers.unwrap_or(marks.origin)?;
        let is_whiteout = is_whiteout(&stat);
        let Some(now) = self.print_below(lowers, name)? else {
            // A file that is removed on both sides is no conflict.
            return Some(Fate::CoveredMissing).filter(|_| !is_whiteout);
        };
        let differs = match () {
            () if stat.is_dir() && !marks.opaque => !then.is_of_file(&now),
            () if !stat.is_dir() && stat.nlink > 1 && then.ino != now.ino => false,
            () => then.compare(&now) == Comparison::Changed,
        };
        let fate = if is_whiteout { Fate::RemovedChanged } else { Fate::CoveredChanged };
        Some(fate).filter(|_| differs)
    }

    /// The fingerprint of the entry of a plain layer that shows at a name, `Some(None)` for
    /// nothing;
    /// `None` where it cannot be told, or a frozen layer has an entry there, which never changes.
    fn print_below(&self, lowers: &[LowerInode], name: &OsStr) -> Option<Option<Fingerprint>> {
        for dir in lowers {
            let volume = self.layer(*dir).ok()?;
            if !self.is_plain(*dir) {
                match volume.peek(dir.ino, name) {
                    Err(Errno::NOENT) => continue,
                    _ => return None,
                }
            }
            let entry = match volume.lookup(dir.ino, name) {
                Err(Errno::NOENT) => continue,
                entry => entry.ok()?,
            };
            let print = volume.open_path(entry.attr.ino).and_then(Fingerprint::of);
            volume.forget(entry.attr.ino, 1);
            return print.ok().map(Some);
        }
        Some(None)
    }
}
