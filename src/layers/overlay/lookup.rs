//! What a name in a directory of the overlay leads to.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::ino::{FIRST_NUMBER, TWIN, upper_only_ino};
use super::layer::{LayerEntry, OverlayParts, is_whiteout};
use super::namespace_lock::{Halt, NamesRead, Step};
use super::node::{LayerStack, LowerInode, Node};
use super::overlay_xattrs::{Links, MOST_NAMES, NO_NUMBER, OverlayXattrs, XattrError};
use crate::error::cause::because;
use crate::layers::pages::{MapAccess, MapId, PageMap};
use crate::shown::Show;
use crate::tree::{Entry, Ino, Names, Stat, Validity};

/// What was found at a name, with a lookup held of each part.
pub(super) struct LookupResult {
    /// Number and type.
    pub(super) ino: Ino,
    pub(super) stack: LayerStack,
    /// Attributes of the topmost part, and how long they may be used.
    pub(super) stat: Stat,
    pub(super) validity: Validity,
}

/// The place in the lower layers where a name is looked for.
#[derive(Clone, Copy)]
pub(super) struct LookupScope<'a> {
    pub(super) names: &'a NamesRead<'a>,
    pub(super) parent: &'a Node,
    /// The directories to look in, topmost first.
    pub(super) dirs: &'a [LowerInode],
    /// The layer above all that are asked.
    pub(super) layer: usize,
    /// The place is not told by directories but by the path of the entry from the root of the
    /// layers below; an empty one leads nowhere.
    pub(super) path: Option<&'a Path>,
}

impl Overlay {
    /// Finds what a name leads to.
    ///
    /// # Errors
    /// ENOENT; EIO when the data of an upper file is not where it says.
    pub(super) fn find_child(
        &self,
        names: &NamesRead<'_>,
        parent: &Node,
        name: &OsStr,
    ) -> Step<LookupResult> {
        if self.is_write_through(parent, name) {
            return self.find_write_through(names, parent, name);
        }
        let stack = parent.stack();
        let whence = LookupScope { names, parent, dirs: &stack.lowers, layer: 0, path: None };
        if let Some(upper) = stack.upper {
            match self.layers.first().ok_or(Errno::IO)?.lookup(upper, name)? {
                LayerEntry::Whiteout => return Err(Halt::Failed(Errno::NOENT)),
                LayerEntry::Present(entry) => return self.above(whence, name, &entry, false),
                LayerEntry::Absent => {}
            }
        }
        self.below(whence, name)
    }

    /// What a name leads to, with a lookup of it counted; and the attributes of its upper file
    /// where that is all there is of it and it is known. Whoever calls knows that the name is not of
    /// the base itself.
    ///
    /// # Errors
    /// As [`Overlay::find_child`].
    pub(super) fn child(
        &self,
        names: &NamesRead<'_>,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Step<(Arc<Node>, Option<Stat>)> {
        if let Some((node, _, stat)) = self.known_child(names, parent, name) {
            return Ok((node, Some(stat)));
        }
        let sought = self.find_child(names, parent, name)?;
        Ok((self.enter_node(names, sought, parent, name), None))
    }

    /// A file or directory that is known and of the upper volume alone, with a lookup of it
    /// counted, its number in that volume, and its attributes.
    pub(super) fn known_child(
        &self,
        names: &NamesRead<'_>,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Option<(Arc<Node>, Ino, Stat)> {
        let (stat, inner) = self.upper.peek(parent.upper()?, name).ok()?;
        let inner = inner?;
        let is = |node: &Node| node.is_upper_only(inner, stat.kind());
        let node = self.nodes.known(names, upper_only_ino(inner), (parent, name), is)?;
        Some((node, inner, stat))
    }

    /// Whether a name is to be seen in the lower layers alone.
    pub(super) fn is_below(
        &self,
        names: &NamesRead<'_>,
        parent: &Node,
        name: &OsStr,
    ) -> Step<bool> {
        for dir in parent.stack().lowers {
            match names.below().peek(dir, name) {
                Ok(stat) => return Ok(!self.hides(dir, &stat)),
                Err(Halt::Failed(Errno::NOENT)) => {}
                Err(halt) => return Err(halt),
            }
        }
        Ok(false)
    }

    /// An upper file or directory of which a lookup is held, with what is below it; `known` as in
    /// [`Overlay::lower_data`].
    pub(super) fn above(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        entry: &Entry,
        known: bool,
    ) -> Step<LookupResult> {
        let (inner, stat) = (entry.attr.ino, entry.attr.stat);
        self.join((whence, name), inner, (&stat, entry.attr.validity), known)
            .inspect_err(|_| self.upper.forget(inner, 1))
    }

    fn join(
        &self,
        (whence, name): (LookupScope<'_>, &OsStr),
        inner: Ino,
        (stat, validity): (&Stat, Validity),
        known: bool,
    ) -> Step<LookupResult> {
        let node = self.nodes.get(upper_only_ino(inner)).filter(|node| {
            let told = || whence.dirs.is_empty() || self.is_told(whence.dirs);
            node.is_upper_only(inner, stat.kind()) && (!stat.is_dir() || told())
        });
        if let Some(node) = node {
            let (ino, stack) = (node.ino, node.stack());
            return Ok(LookupResult { ino, stack, stat: *stat, validity });
        }
        let marks = self.xattrs_of(inner, stat).map_err(|err| self.tell_of(whence, name, err))?;
        let below = self.joined_below((&self.top, whence), name, stat, (&marks, known))?;
        let number = match marks.number() {
            Some(number) => Ino(number),
            None => match (self.nodes.of_upper(inner), below.ino) {
                // Made here, before there was anything below.
                (Some(known), _) if stat.is_dir() => known.ino,
                // Made by another overlay, which has its own way to remember.
                (_, Some(number)) => number,
                (_, None) => upper_only_ino(inner),
            },
        };
        let links = marks.more_links(stat);
        if let (Some(Links::All(_)), Some(more)) = (marks.links, links) {
            // The daemon was killed in between.
            self.top.xattrs.write_links(&self.upper, inner, Links::More(more))?;
        }
        let stack = LayerStack {
            upper: Some(inner),
            lowers: below.lowers,
            redirected: below.redirected,
            frozen: below.frozen,
            links,
            null_device: marks.null_device,
            new: marks.is_new(),
            write_through: false,
            pages: marks.pages,
            path: marks.path,
            redirect: marks.redirect.filter(|_| stat.is_dir()),
        };
        Ok(LookupResult { ino: number, stack, stat: *stat, validity })
    }

    /// The overlay xattrs of an upper file, which fit each other and its attributes.
    pub(super) fn xattrs_of(&self, inner: Ino, stat: &Stat) -> Result<OverlayXattrs, XattrError> {
        self.xattrs_in(&self.top, inner, stat)
    }

    /// The same of a file of any overlay layer.
    pub(super) fn xattrs_in(
        &self,
        parts: &OverlayParts,
        inner: Ino,
        stat: &Stat,
    ) -> Result<OverlayXattrs, XattrError> {
        let bad = |mark, reason| Err(XattrError::Bad { mark, reason });
        let mut marks = parts.xattrs.read(&self.upper, inner)?;
        if let Some(links) = marks.links {
            let names = match links {
                Links::More(more) => i64::from(stat.nlink) + more,
                Links::All(all) => all,
            };
            if stat.is_dir() || !(0..=MOST_NAMES).contains(&names) {
                return bad("mmapfs.links", "no file has so many names");
            }
        }
        if marks.number().is_some_and(|number| !(FIRST_NUMBER..TWIN).contains(&number)) {
            return bad("mmapfs.ino", NO_NUMBER);
        }
        if marks.pages.is_some() && stat.kind() != libc::S_IFREG {
            return bad("mmapfs.pages", "it is not on a regular file");
        }
        if let Some(id) = marks.path {
            let reason = "the file with the path cannot be read";
            let path = id.read(&parts.pages);
            let path = path.map_err(|_| XattrError::Bad { mark: "mmapfs.path", reason })?;
            marks.redirect = Some(super::overlay_xattrs::redirect(path)?);
        }
        Ok(marks)
    }

    /// Tells why a file cannot be used.
    pub(super) fn tell_of(&self, whence: LookupScope<'_>, name: &OsStr, err: XattrError) -> Errno {
        log::error!("{}: {err}", self.path_of(whence.parent).join(name).shown());
        err.errno()
    }

    /// A file that names its page map and nothing below is whole, and was to lose the name of the
    /// map next. Else a mark was lost.
    pub(super) fn check_complete(
        &self,
        parts: &OverlayParts,
        whence: LookupScope<'_>,
        name: &OsStr,
        id: u64,
    ) -> Result<(), Errno> {
        let map = PageMap::open(&parts.pages, MapId(id), MapAccess::Read);
        let reason = match map {
            _ if parts.contested.contains(&MapId(id)) => "another file names it".to_owned(),
            Ok(map) if map.is_complete() => return Ok(()),
            Ok(_) => "the mark of what is below it is lost".to_owned(),
            Err(err) => err.to_string(),
        };
        let path = self.path_of(whence.parent).join(name);
        log::error!("{}: page map {}: {reason}", path.shown(), MapId(id));
        Err(because(Errno::IO, "its page map or overlay attributes are damaged"))
    }

    /// Whether an entry of a lower layer is a whiteout.
    pub(super) fn hides(&self, at: LowerInode, stat: &Stat) -> bool {
        self.layer_of(at).is_ok_and(|layer| layer.hides(stat))
    }

    /// The path from the root of the lower layers of what a node has below: where it was before
    /// all renames, which leave their marks.
    pub(super) fn path_below(&self, node: &Node) -> PathBuf {
        let mut names = Vec::new();
        let mut start = PathBuf::from("/");
        let mut next = Some((node.stack(), node.seen()));
        while let Some((stack, seen)) = next.take() {
            let Some((parent, name)) = seen else { break };
            match stack.redirect {
                Some(path) if path.is_absolute() => {
                    start = path;
                    break;
                }
                Some(path) => names.push(path),
                None => names.push(PathBuf::from(name)),
            }
            next = Some((parent.stack(), parent.seen()));
        }
        start.extend(names.iter().rev());
        start
    }

    /// What was just made in the upper volume, and is of that alone.
    pub(super) fn just_made(&self, inner: Ino, stat: Stat) -> LookupResult {
        let null_device = is_whiteout(&stat);
        let stack =
            LayerStack { upper: Some(inner), null_device, new: true, ..LayerStack::default() };
        let validity = self.upper.attr_validity(inner, &stat);
        LookupResult { ino: upper_only_ino(inner), stack, stat, validity }
    }

    /// Takes the lookups of parts back.
    pub(super) fn let_go(&self, stack: &LayerStack) {
        if let Some(ino) = stack.upper {
            self.upper.forget(ino, 1);
        }
        stack.lowers.iter().for_each(|at| self.let_go_below(*at));
    }

    /// Takes the lookup of a part in a lower layer back.
    pub(super) fn let_go_below(&self, at: LowerInode) {
        if let Ok(volume) = self.lower(at) {
            volume.forget(at.ino, 1);
        }
    }

    /// Makes a node of what was found and counts its lookup.
    pub(super) fn enter_node(
        &self,
        names: &NamesRead<'_>,
        sought: LookupResult,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Arc<Node> {
        let key = (sought.ino, sought.stat.kind());
        let stored = match sought.stack.upper {
            Some(_) => self.bytes_of(sought.stat.blocks, sought.stack.pages),
            None => 0,
        };
        let (node, left) = self.nodes.enter(names, key, (parent, name), sought.stack, stored);
        let is_merged = node.is_dir() && left.parts() > 0 && !left.write_through;
        if is_merged && !node.has_lowers(&left.lowers) {
            self.note_outdated(&node);
        }
        self.let_go(&left);
        node
    }
}
