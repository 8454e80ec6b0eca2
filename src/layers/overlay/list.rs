//! Directories: open, list, synchronise.
//!
//! A listing is that of the upper directory, which is taken in whole at the start since it holds
//! only what was changed, and then those below as streams, without what was listed before. The
//! place of an entry is its number in the upper directory, or above all of those its number in the
//! streams, which no change moves; where each request ended is remembered with the cookie of the
//! layer below, so that a listing goes on from there. The numbers are those of one open directory:
//! another one that is begun after a change counts anew, so that the kernel must not mix two.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::locate::{Sought, is_whiteout};
use super::node::{At, Node, Parts};
use crate::volume::{Attr, DataOnly, DirItem, Entry, HandleId, Ino, Trust};

/// The number of the first entry that is only below.
const BELOW: u64 = 1 << 32;

/// An open directory.
pub(super) struct OpenDir {
    node: Arc<Node>,
    listing: Mutex<Listing>,
}

/// A directory of a layer that is open for listing.
struct Stream {
    at: At,
    id: HandleId,
}

#[derive(Default)]
struct Listing {
    /// Entries of the upper directory, and what is everywhere: `.` and `..`.
    first: Vec<(OsString, u32)>,
    /// Names that are not taken from a directory below.
    known: HashSet<OsString>,
    streams: Vec<Stream>,
    /// Where requests have ended: the number of the next entry, the stream and its cookie.
    places: Vec<(u64, usize, u64)>,
    begun: bool,
    /// The last change of the directory when it was begun.
    change: u64,
}

impl Overlay {
    /// Opens a directory for listing.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno> {
        let node = self.node(ino)?;
        if !node.is_dir() {
            return Err(Errno::NOTDIR);
        }
        Ok(self.handles.add_dir(OpenDir { node, listing: Mutex::default() }))
    }

    /// Ends an open directory.
    ///
    /// # Errors
    /// EBADF for an unknown handle.
    pub fn release_dir(&self, id: HandleId) -> Result<(), Errno> {
        let dir = self.handles.remove_dir(id)?;
        self.close_streams(&mut dir.listing.lock());
        let ino = dir.node.ino;
        drop(dir);
        self.drop_unused(ino);
        Ok(())
    }

    /// fsync(2) of a directory: of the upper one, where all changes are.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync_dir(&self, ino: Ino, data_only: DataOnly) -> Result<(), Errno> {
        let node = self.node(ino)?;
        let (volume, ino) = self.top(&node)?;
        if node.upper().is_none() && !node.is_direct() {
            return Ok(()); // Nothing was changed.
        }
        let inner = volume.open_dir(ino)?;
        let synced = volume.sync_dir(ino, inner, data_only);
        volume.release_dir(inner)?;
        synced
    }

    fn close_streams(&self, listing: &mut Listing) {
        for stream in listing.streams.drain(..) {
            if let Ok(volume) = self.layer(stream.at) {
                let _ = volume.release_dir(stream.id);
            }
        }
    }

    /// Lists a directory from `offset` (0 is the start) until `add` says that it is full. With
    /// `look_up` every entry counts as a lookup, which is taken back for the one that did not
    /// fit. Returns whether the end was reached.
    ///
    /// # Errors
    /// Those of getdents(2), when nothing was listed.
    pub fn list(
        &self,
        id: HandleId,
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let _names = self.names.read();
        let dir = self.handles.dir(id)?;
        self.list_from(&dir.node, &mut dir.listing.lock(), offset, look_up, add)
    }

    fn list_from(
        &self,
        node: &Arc<Node>,
        listing: &mut Listing,
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        if offset == 0 || !listing.begun {
            self.begin(node, listing)?;
        }
        let mut next = offset;
        while let Some((name, kind)) =
            listing.first.get(usize::try_from(next).unwrap_or(usize::MAX))
        {
            if self.emit(node, (name, *kind, Ino(0), next + 1), look_up, add) {
                return Ok(false);
            }
            next += 1;
        }
        let next = next.max(BELOW);
        if look_up && self.lists_as_it_is(node, listing) {
            return self.list_base(node, listing, next, add);
        }
        self.list_below(listing, next, &mut |name, kind, ino, next| {
            self.emit(node, (name, kind, ino, next), look_up, add)
        })
    }

    /// Whether everything that the listing still has to show is of the base alone: what was known
    /// of the directory above it when it was begun is still true.
    fn lists_as_it_is(&self, node: &Node, listing: &Listing) -> bool {
        let base = |stream: &Stream| stream.at.layer + 1 == self.lowers.len();
        listing.streams.len() == 1
            && !self.is_mixed()
            && listing.streams.iter().all(base)
            && listing.change == node.last_change()
    }

    /// Lists what is only in the base, by what the base itself says of its entries.
    fn list_base(
        &self,
        node: &Arc<Node>,
        listing: &mut Listing,
        from: u64,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let Listing { known, streams, places, .. } = listing;
        let place = places.iter().rposition(|(next, ..)| *next <= from).unwrap_or(0);
        let (Some((mut next, index, mut cookie)), Some(stream)) =
            (places.get(place).copied(), streams.first())
        else {
            return Ok(true);
        };
        if index > 0 {
            return Ok(true);
        }
        let volume = self.layer(stream.at)?;
        let ended = volume.list((stream.at.ino, stream.id), cookie, true, &mut |item| {
            if let Some(entry) = &item.entry {
                let below = At { layer: stream.at.layer, ino: entry.attr.ino };
                if next < from || known.contains(item.name) {
                    volume.forget(below.ino, 1);
                } else if self.add_base(node, (item, entry), below, next + 1, add) {
                    return true; // Its lookup is taken back by the volume.
                }
                next += 1;
            }
            cookie = item.next;
            false
        })?;
        note_place(places, if ended { (next, 1, 0) } else { (next, 0, cookie) });
        Ok(ended)
    }

    /// Hands on an entry of the base, of which one lookup is held. Returns whether there was no
    /// room for it, with the lookup still held.
    fn add_base(
        &self,
        node: &Arc<Node>,
        (item, entry): (&DirItem<'_>, &Entry),
        below: At,
        next: u64,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> bool {
        let (stat, trust) = (entry.attr.stat, entry.attr.trust);
        let number = self.number_below(below);
        let several = !stat.is_dir() && stat.nlink > 1;
        let raised = || self.nodes.get(number).is_some_and(|node| node.upper().is_some());
        if several || !item.known || raised() {
            // What it is depends on more than its name here.
            let full = self.emit(node, (item.name, item.kind, Ino(0), next), true, add);
            if !full {
                self.let_go_below(below);
            }
            return full;
        }
        let attr = Attr { ino: number, stat, trust };
        let entry = Entry { attr, generation: 0, trust: Trust::UntilTold };
        let shown = DirItem {
            name: item.name,
            ino: number,
            kind: stat.kind(),
            next,
            entry: Some(entry),
            known: true,
        };
        if add(&shown) {
            return true;
        }
        let parts = Parts { lowers: vec![below], ..Parts::default() };
        self.adopt(Sought { ino: number, parts, stat, trust }, node, item.name);
        false
    }

    /// Takes the upper directory in.
    fn begin(&self, node: &Arc<Node>, listing: &mut Listing) -> Result<(), Errno> {
        self.close_streams(listing);
        let change = node.last_change();
        *listing = Listing { begun: true, change, ..Listing::default() };
        listing.first.push((".".into(), libc::S_IFDIR));
        listing.first.push(("..".into(), libc::S_IFDIR));
        if !node.is_linked() {
            return Ok(());
        }
        let parts = node.parts();
        if let Some(upper) = parts.upper {
            let merged = !parts.lowers.is_empty();
            for (name, kind) in self.upper_entries(upper)? {
                if kind != 0 && self.visible(node.ino, &name) {
                    listing.first.push((name.clone(), kind));
                }
                if merged {
                    listing.known.insert(name);
                }
            }
        }
        for at in &parts.lowers {
            let id = self.layer(*at)?.open_dir(at.ino)?;
            listing.streams.push(Stream { at: *at, id });
        }
        listing.places.push((BELOW, 0, 0));
        Ok(())
    }

    /// The entries of an upper directory with their types, 0 for a whiteout.
    pub(super) fn upper_entries(&self, upper: Ino) -> Result<Vec<(OsString, u32)>, Errno> {
        let mut entries = Vec::new();
        let id = self.upper.open_dir(upper)?;
        let listed = self.upper.list((upper, id), 0, false, &mut |item| {
            if item.name != "." && item.name != ".." {
                entries.push((item.name.to_owned(), item.kind));
            }
            false
        });
        self.upper.release_dir(id)?;
        listed?;
        for (name, kind) in &mut entries {
            if *kind == libc::S_IFCHR
                && let Ok(entry) = self.upper.lookup(upper, name)
            {
                self.upper.forget(entry.attr.ino, 1);
                if is_whiteout(&entry.attr.stat) {
                    *kind = 0;
                }
            }
        }
        Ok(entries)
    }

    fn list_below(
        &self,
        listing: &mut Listing,
        from: u64,
        emit: &mut dyn FnMut(&OsStr, u32, Ino, u64) -> bool,
    ) -> Result<bool, Errno> {
        let Listing { known, streams, places, .. } = listing;
        let place = places.iter().rposition(|(next, ..)| *next <= from).unwrap_or(0);
        let Some((mut next, mut index, mut cookie)) = places.get(place).copied() else {
            return Ok(true);
        };
        let (several, mixed) = (streams.len() > 1, self.is_mixed());
        while let Some(stream) = streams.get(index) {
            let volume = self.layer(stream.at)?;
            let mut names = Vec::new();
            let ended = volume.list((stream.at.ino, stream.id), cookie, false, &mut |item| {
                let dots = item.name == "." || item.name == "..";
                if !dots && known.contains(item.name) {
                    next += 1;
                } else if !dots {
                    let ino = if several || mixed { Ino(0) } else { item.ino };
                    if next >= from && emit(item.name, item.kind, ino, next + 1) {
                        return true;
                    }
                    next += 1;
                    if index + 1 < streams.len() {
                        names.push(item.name.to_owned());
                    }
                }
                cookie = item.next;
                false
            })?;
            known.extend(names);
            if !ended {
                note_place(places, (next, index, cookie));
                return Ok(false);
            }
            (index, cookie) = (index + 1, 0);
        }
        note_place(places, (next, index, 0));
        Ok(true)
    }

    /// Hands an entry on. Returns whether there was no room for it.
    fn emit(
        &self,
        node: &Arc<Node>,
        (name, kind, ino, next): (&OsStr, u32, Ino, u64),
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> bool {
        let mut item = DirItem { name, ino, kind, next, entry: None, known: true };
        let dots = name == "." || name == "..";
        if dots {
            let above = if name == ".." { node.parent() } else { None };
            item.ino = above.as_ref().unwrap_or(node).ino;
            return add(&item);
        }
        if !look_up && ino != Ino(0) {
            return add(&item);
        }
        // Whoever lists must be told the number that it is shown with.
        let known = if self.is_mixed() { None } else { self.known_child(node, name) };
        let found = match known {
            Some((node, inner, stat)) => {
                Ok(self.entry(&node, stat, self.upper.trust_in_attr(inner, &stat)))
            }
            None => self.lookup_locked(node, name),
        };
        let Ok(entry) = found else { return false };
        item.ino = entry.attr.ino;
        item.kind = entry.attr.stat.kind();
        if look_up {
            item.entry = Some(entry);
        }
        let full = add(&item);
        if !look_up || full {
            self.forget(entry.attr.ino, 1);
        }
        full
    }

    /// Whether nothing is to be seen in a directory.
    pub(super) fn is_empty(&self, node: &Arc<Node>) -> Result<bool, Errno> {
        let mut listing = Listing::default();
        self.begin(node, &mut listing)?;
        let mut empty = listing.first.len() == 2;
        let listed = match empty {
            true => self.list_below(&mut listing, BELOW, &mut |_, _, _, _| {
                empty = false;
                true
            }),
            false => Ok(false),
        };
        self.close_streams(&mut listing);
        listed.map(|_| empty)
    }
}

/// Remembers where a request has ended.
fn note_place(places: &mut Vec<(u64, usize, u64)>, place: (u64, usize, u64)) {
    match places.last_mut() {
        Some(last) if last.0 == place.0 => *last = place,
        Some(last) if last.0 > place.0 => {}
        _ => places.push(place),
    }
}
