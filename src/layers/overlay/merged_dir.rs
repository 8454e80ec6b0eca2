//! The entries of a merged directory, layer by layer.
//!
//! A name is listed where it is in the lower layers, when it is there, also while the upper
//! directory has something in its place: so it stays where it is in a listing when it is copied
//! up. The upper directory adds the names that are nowhere below. Nothing is remembered between
//! two requests but the open directories, and what a request costs goes with what it lists.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::dir_offset::{self, Cookies, OffsetFormat};
use super::lower_answers::{Answers, LowerNames};
use super::lower_names::FrozenNames;
use super::names::Upper;
use super::namespace_lock::{NamesRead, Step};
use super::node::{LayerStack, LowerInode, Node};
use crate::tree::{DirItem, Directories, HandleId, Ino, Names};
use crate::volume::Volume;

/// Upper directories of at most so many entries are read in whole by a request, which takes no
/// longer than to look for some hundred names there; in larger ones every name is looked for.
const FEW: usize = 1024;

/// An open directory of a layer.
struct Stream {
    volume: Arc<Volume>,
    ino: Ino,
    id: HandleId,
    cookies: Cookies,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.volume.release_dir(self.id);
    }
}

/// How far a directory has been listed, and what is open for it.
#[derive(Default)]
pub(super) struct Reading {
    /// By the numbers of their parts.
    streams: Vec<(u64, Stream)>,
    /// Where it goes on.
    pub(super) at: u64,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// It was listed.
    Given,
    /// It is not to be seen.
    Passed,
    /// There was no room for it.
    Full,
}

/// Where an entry was found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found {
    /// In this lower directory, and nothing of it was elsewhere when the names had been changed so
    /// often.
    Below(LowerInode, u64),
    /// What it is depends on more than one layer, or on rules.
    ByName,
}

/// Gets an entry, where it was found and the place after it. A lookup of it that is held is handed
/// over with an entry that is [`Found::Below`] and given.
pub(super) type Visit<'a> = dyn FnMut(&DirItem<'_>, Found, u64) -> Listed + 'a;

impl Reading {
    fn stream(
        &mut self,
        (format, part): (OffsetFormat, u64),
        volume: &Arc<Volume>,
        ino: Ino,
    ) -> Result<&mut Stream, Errno> {
        let known = |(of, stream): &(u64, Stream)| *of == part && stream.ino == ino;
        let index = match self.streams.iter().position(known) {
            Some(index) => index,
            None => {
                let id = volume.open_dir(ino)?;
                let cookies = Cookies::new(format, volume.keeps_offsets(ino));
                let stream = Stream { volume: Arc::clone(volume), ino, id, cookies };
                self.streams.retain(|(of, _)| *of != part);
                self.streams.push((part, stream));
                self.streams.len() - 1
            }
        };
        self.streams.get_mut(index).map(|(_, stream)| stream).ok_or(Errno::IO)
    }
}

impl Stream {
    /// Lists from a place of the part on. Returns whether the end was reached.
    fn each(
        &mut self,
        (part, short): (u64, u64),
        look_up: bool,
        visit: &mut dyn FnMut(&DirItem<'_>, u64) -> Listed,
    ) -> Result<bool, Errno> {
        let Stream { volume, ino, id, cookies } = self;
        let format = cookies.format();
        let cookie = cookies.decode_cookie(short).ok_or(Errno::INVAL)?;
        cookies.begin(short, cookie);
        volume.list((*ino, *id), cookie, look_up, &mut |item| {
            let dots = item.name == "." || item.name == "..";
            let next = cookies.encode_cookie(item.next);
            match if dots { Listed::Passed } else { visit(item, format.encode(part, next)) } {
                Listed::Full => return true,
                Listed::Given => cookies.begin(next, item.next),
                Listed::Passed => cookies.pass(item.next),
            }
            false
        })
    }
}

/// The names of an upper directory with their types.
enum UpperNames {
    Unread,
    /// As they were when the names were changed so often.
    Few(HashMap<OsString, u32>, u64),
    /// Every name is looked for.
    Many,
}

/// What an upper directory has at the names of those below.
struct Above<'a> {
    overlay: &'a Overlay,
    dir: &'a Node,
    /// Read when the first is asked for.
    names: UpperNames,
}

impl Above<'_> {
    fn at(&mut self, names: &NamesRead<'_>, name: &OsStr) -> Upper {
        let Some(upper) = self.dir.upper() else { return Upper::Nothing };
        let now = names.generation();
        match self.names {
            UpperNames::Unread => {
                let few = self.overlay.few_names(upper);
                self.names = few.map_or(UpperNames::Many, |few| UpperNames::Few(few, now));
            }
            UpperNames::Few(_, then) if then != now => self.names = UpperNames::Many,
            _ => {}
        }
        match &self.names {
            UpperNames::Few(few, _) => match few.get(name) {
                None => return Upper::Nothing,
                Some(kind) if *kind != libc::S_IFCHR && *kind != 0 => return Upper::Other,
                Some(_) => {}
            },
            UpperNames::Unread | UpperNames::Many => {}
        }
        // Of an entry that cannot be read its lookup says what it is.
        self.overlay.upper_at(upper, name).unwrap_or(Upper::Other)
    }
}

impl Overlay {
    /// Visits the entries of a directory from a place on, without `.` and `..`. With `look_up` a
    /// lookup may be held of those that are only below. Nothing is locked meanwhile but `reading`.
    /// Returns whether the end was reached.
    pub(super) fn each_entry(
        &self,
        node: &Node,
        reading: &mut Reading,
        from: u64,
        look_up: bool,
        visit: &mut Visit<'_>,
    ) -> Result<bool, Errno> {
        if !node.is_linked() {
            return Ok(true);
        }
        // It may be merged anew meanwhile: what it is made of now stays known until the end.
        let (held, mixed) = (Answers::none(self), self.is_mixed());
        let stack = self.with_names(|_| {
            let stack = node.stack();
            stack.lowers.iter().try_for_each(|at| held.hold(*at))?;
            Ok(stack)
        })?;
        let mut known = FrozenNames::default();
        let (start, short) = self.offsets.decode(from);
        let begin = |part: u64| (part, if part == start { short } else { 0 });
        if let Some(upper) = stack.upper.filter(|_| start <= dir_offset::UPPER) {
            let stream = reading.stream((self.offsets, dir_offset::UPPER), &self.upper, upper)?;
            let merged = !stack.lowers.is_empty();
            let ended =
                stream.each(begin(dir_offset::UPPER), false, &mut |item, next| match self
                    .is_only_above(node, (upper, &mut known), item, (merged, mixed))
                {
                    true => visit(item, Found::ByName, next),
                    false => Listed::Passed,
                })?;
            if !ended {
                return Ok(false);
            }
        }
        let mut above = Above { overlay: self, dir: node, names: UpperNames::Unread };
        for index in 0..stack.lowers.len() {
            let Some(at) = stack.lowers.get(index) else { break };
            let part = dir_offset::lower(at.layer);
            if part < start {
                continue;
            }
            let whole = look_up && !mixed && stack.lowers.len() == 1 && self.is_base(*at);
            let volume = &self.layer_of(*at)?.volume;
            let stream = reading.stream((self.offsets, part), volume, at.ino)?;
            let ended = stream.each(begin(part), whole, &mut |item, next| {
                let above = (&mut above, &mut known);
                let found = self.found_below(node, (&stack, index), item, above, mixed);
                let step = found.map_or(Listed::Passed, |found| visit(item, found, next));
                let handed_over = matches!(found, Some(Found::Below(..))) && step == Listed::Given;
                if let Some(entry) = &item.entry
                    && !handed_over
                    && step != Listed::Full
                {
                    volume.forget(entry.attr.ino, 1);
                }
                step
            })?;
            if !ended {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a file or directory is of the base, the lowest layer.
    pub(super) fn is_base(&self, at: LowerInode) -> bool {
        at.layer + 1 == self.layers.len()
    }

    /// Whether an entry of an upper directory is listed as such: it is to be seen, and nowhere
    /// below.
    fn is_only_above(
        &self,
        node: &Node,
        (upper, known): (Ino, &mut FrozenNames),
        item: &DirItem<'_>,
        (merged, mixed): (bool, bool),
    ) -> bool {
        let mut shows = || self.shows_below(known, &node.stack().lowers, item.name);
        self.is_seen_above(node, upper, item, mixed) && !(merged && shows().unwrap_or(false))
    }

    /// Whether an entry of an upper directory is to be seen.
    fn is_seen_above(&self, node: &Node, upper: Ino, item: &DirItem<'_>, mixed: bool) -> bool {
        if !self.visible(node.ino, item.name) {
            return false;
        }
        let may_be_whiteout = item.kind == libc::S_IFCHR || item.kind == 0;
        if may_be_whiteout && self.upper_at(upper, item.name) == Ok(Upper::Whiteout) {
            return false;
        }
        !(mixed && self.is_write_through(node, item.name))
    }

    /// The names that lower directories show, up to one that nothing above hides.
    pub(super) fn names_below(&self, node: &Node) -> Result<LowerNames, Errno> {
        let (stack, mixed) = (node.stack(), self.is_mixed());
        let (mut names, mut known) = (Vec::new(), FrozenNames::default());
        for (index, at) in stack.lowers.iter().enumerate() {
            let volume = self.layer(*at)?;
            let id = volume.open_dir(at.ino)?;
            let listed = volume.list((at.ino, id), 0, false, &mut |item| {
                let dots = item.name == "." || item.name == "..";
                if dots || !self.is_shown_by(&mut known, &stack.lowers, index, item) {
                    return false;
                }
                names.push(item.name.to_owned());
                !self.is_hidden(node, item.name, mixed)
            });
            volume.release_dir(id)?;
            if !listed? {
                return Ok(LowerNames { names, all: false });
            }
        }
        Ok(LowerNames { names, all: true })
    }

    /// Whether a name that is below is hidden by a whiteout.
    fn is_hidden(&self, node: &Node, name: &OsStr, mixed: bool) -> bool {
        let is_whiteout = |upper| self.upper_at(upper, name) == Ok(Upper::Whiteout);
        !(mixed && self.is_write_through(node, name)) && node.upper().is_some_and(is_whiteout)
    }

    /// Whether nothing is to be seen in a directory.
    pub(super) fn is_empty(&self, names: &NamesRead<'_>, node: &Node) -> Step<bool> {
        if !node.is_linked() {
            return Ok(true);
        }
        let (stack, mixed) = (node.stack(), self.is_mixed());
        if let Some(upper) = stack.upper {
            let id = self.upper.open_dir(upper)?;
            let mut seen = false;
            let listed = self.upper.list((upper, id), 0, false, &mut |item| {
                let dots = item.name == "." || item.name == "..";
                seen = !dots && self.is_seen_above(node, upper, item, mixed);
                seen
            });
            self.upper.release_dir(id)?;
            listed?;
            if seen {
                return Ok(false);
            }
        }
        if stack.lowers.is_empty() {
            return Ok(true);
        }
        let below = names.below().names(node)?;
        if below.names.iter().any(|name| !self.is_hidden(node, name, mixed)) {
            return Ok(false);
        }
        // Else something was removed since the names were read.
        if below.all { Ok(true) } else { names.below().need_names(node) }
    }

    /// Where the entry of a lower directory is to be found that is listed there; `None` where it is
    /// not to be seen, or listed elsewhere.
    fn found_below(
        &self,
        node: &Node,
        (stack, index): (&LayerStack, usize),
        item: &DirItem<'_>,
        (above, known): (&mut Above<'_>, &mut FrozenNames),
        mixed: bool,
    ) -> Option<Found> {
        let (at, name) = (stack.lowers.get(index)?, item.name);
        if mixed && self.is_write_through(node, name) {
            return self.is_base(*at).then_some(Found::ByName);
        }
        if !self.is_shown_by(known, &stack.lowers, index, item) {
            return None;
        }
        let found = self.with_names(|names| Ok((above.at(names, name), names.generation())));
        match found.unwrap_or((Upper::Other, 0)) {
            (Upper::Whiteout, _) => None,
            (Upper::Nothing, generation)
                if stack.lowers.len() == 1 && !mixed && self.is_plain(*at) =>
            {
                Some(Found::Below(*at, generation))
            }
            _ => Some(Found::ByName),
        }
    }

    /// All entries of a directory of an overlay layer with their types, unless there are many.
    pub(super) fn few_names(&self, upper: Ino) -> Option<HashMap<OsString, u32>> {
        let mut names = HashMap::new();
        let id = self.upper.open_dir(upper).ok()?;
        let listed = self.upper.list((upper, id), 0, false, &mut |item| {
            names.insert(item.name.to_owned(), item.kind);
            names.len() > FEW
        });
        let _ = self.upper.release_dir(id);
        (listed == Ok(true)).then_some(names)
    }
}
