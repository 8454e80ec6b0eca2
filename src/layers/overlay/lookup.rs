//! What a name in a directory of the overlay leads to.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::ino::{FIRST_NUMBER, TWIN, upper_only_ino};
use super::layer::{LayerEntry, is_whiteout};
use super::namespace_lock::{Halt, NamesRead, Step};
use super::node::{LayerStack, LowerInode, Node};
use super::overlay_xattrs::{Links, MOST_NAMES, NO_NUMBER, OverlayXattrs, XattrError};
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

/// Where a name is looked for in the lower layers.
#[derive(Clone, Copy)]
pub(super) struct LookupScope<'a> {
    pub(super) names: &'a NamesRead<'a>,
    pub(super) parent: &'a Node,
    pub(super) dirs: &'a [LowerInode],
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
        let whence = LookupScope { names, parent, dirs: &stack.lowers };
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
        let lowers = match stat.kind() {
            libc::S_IFDIR => self.merged_below(whence, name, &marks)?,
            libc::S_IFREG if marks.metacopy => vec![self.lower_data(whence, name, &marks, known)?],
            libc::S_IFREG => {
                marks.pages.map_or(Ok(()), |id| self.check_complete(whence, name, id))?;
                Vec::new()
            }
            _ => Vec::new(),
        };
        let number = match marks.number() {
            Some(number) => Ino(number),
            None => match (self.nodes.of_upper(inner), lowers.first()) {
                // Made here, before there was anything below.
                (Some(known), _) if stat.is_dir() => known.ino,
                // Made by another overlay, which has its own way to remember.
                (_, Some(at)) if *at != LowerInode::GONE => self.number_below(*at),
                (_, _) => upper_only_ino(inner),
            },
        };
        let links = match marks.links {
            None => None,
            Some(Links::More(more)) => Some(more),
            Some(Links::All(all)) => {
                // The daemon was killed in between.
                let more = all - i64::from(stat.nlink);
                self.top.xattrs.write_links(&self.upper, inner, Links::More(more))?;
                Some(more)
            }
        };
        let stack = LayerStack {
            upper: Some(inner),
            lowers,
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

    /// The marks of an upper file, which fit each other and its attributes.
    pub(super) fn xattrs_of(&self, inner: Ino, stat: &Stat) -> Result<OverlayXattrs, XattrError> {
        let bad = |mark, reason| Err(XattrError::Bad { mark, reason });
        let mut marks = self.top.xattrs.read(&self.upper, inner)?;
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
            let path = id.read(&self.top.pages);
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

    pub(super) fn merged_below(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        marks: &OverlayXattrs,
    ) -> Step<Vec<LowerInode>> {
        if marks.opaque {
            return Ok(Vec::new());
        }
        if marks.redirect.is_some() {
            self.note_redirect();
        }
        self.lower_directories(whence, name, marks)
    }

    fn lower_directories(
        &self,
        LookupScope { names, dirs, .. }: LookupScope<'_>,
        name: &OsStr,
        marks: &OverlayXattrs,
    ) -> Step<Vec<LowerInode>> {
        let found = match &marks.redirect {
            None => self.directly_below(names, dirs, name),
            Some(path) => self.below_path(names, dirs, path),
        };
        match found {
            Ok(sought) if sought.stat.is_dir() => Ok(sought.stack.lowers),
            Ok(sought) => {
                self.let_go(&sought.stack);
                Ok(Vec::new())
            }
            Err(Halt::Failed(Errno::NOENT | Errno::NOTDIR)) => Ok(Vec::new()),
            Err(halt) => Err(halt),
        }
    }

    /// Where the data of a file is that is not in its upper file. With `known` the name itself leads
    /// to it in the lower layers, whatever became of the one by which it was copied.
    fn lower_data(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        marks: &OverlayXattrs,
        known: bool,
    ) -> Step<LowerInode> {
        let LookupScope { names, dirs, .. } = whence;
        let sought = match &marks.redirect {
            Some(path) if !known => self.below_path(names, dirs, path),
            _ => self.directly_below(names, dirs, name),
        };
        let reason = match sought {
            Ok(LookupResult { stat, stack, .. }) if stat.kind() == libc::S_IFREG => {
                return stack.lowers.first().copied().ok_or(Halt::Failed(Errno::IO));
            }
            Ok(sought) => {
                self.let_go(&sought.stack);
                String::from("no regular file is in its place")
            }
            Err(Halt::Failed(err @ (Errno::NOENT | Errno::NOTDIR))) => err.to_string(),
            Err(halt) => return Err(halt),
        };
        log::debug!(
            "{}: its data is not below it: {reason}",
            self.path_of(whence.parent).join(name).shown()
        );
        Ok(LowerInode::GONE)
    }

    /// A file that names its page map and nothing below is whole, and was to lose the name of the
    /// map next. Else a mark was lost.
    fn check_complete(&self, whence: LookupScope<'_>, name: &OsStr, id: u64) -> Result<(), Errno> {
        let map = PageMap::open(&self.top.pages, MapId(id), MapAccess::Read);
        let reason = match map {
            _ if self.top.contested.contains(&MapId(id)) => "another file names it".to_owned(),
            Ok(map) if map.is_complete() => return Ok(()),
            Ok(_) => "the mark of what is below it is lost".to_owned(),
            Err(err) => err.to_string(),
        };
        let path = self.path_of(whence.parent).join(name);
        log::error!("{}: page map {}: {reason}", path.shown(), MapId(id));
        Err(Errno::IO)
    }

    /// What a redirect leads to: a path from the root of the lower layers, or another name in the
    /// same directory.
    pub(super) fn below_path(
        &self,
        names: &NamesRead<'_>,
        dirs: &[LowerInode],
        path: &Path,
    ) -> Step<LookupResult> {
        let root: Vec<LowerInode>;
        let mut dirs = match path.is_absolute() {
            true => {
                root = self.roots_below(0);
                &root[..]
            }
            false => dirs,
        };
        let mut held: Option<LayerStack> = None;
        let mut found = Err(Halt::Failed(Errno::NOENT));
        let mut steps = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let mut next = steps.next();
        let mut owned;
        while let Some(name) = next {
            next = steps.next();
            found = self.directly_below(names, dirs, name);
            if matches!(found, Err(Halt::Ask)) && dirs.len() == 1 {
                names.below().go_on(next.into_iter().chain(steps.clone()));
            }
            if let Some(stack) = held.take() {
                self.let_go(&stack);
            }
            match (&found, next) {
                (Ok(sought), Some(_)) => {
                    owned = sought.stack.lowers.clone();
                    held = Some(sought.stack.clone());
                    dirs = &owned;
                }
                _ => break,
            }
        }
        found
    }

    pub(super) fn directly_below(
        &self,
        names: &NamesRead<'_>,
        dirs: &[LowerInode],
        name: &OsStr,
    ) -> Step<LookupResult> {
        let mut sought: Option<LookupResult> = None;
        for dir in dirs {
            let entry = match names.below().lookup(*dir, name) {
                Ok(entry) => entry,
                Err(Halt::Failed(Errno::NOENT)) => continue,
                Err(halt) => {
                    sought.iter().for_each(|sought| self.let_go(&sought.stack));
                    return Err(halt);
                }
            };
            let (ino, stat, validity) = (entry.attr.ino, entry.attr.stat, entry.attr.validity);
            let at = LowerInode { layer: dir.layer, ino };
            let ends = self.hides(at, &stat) || sought.is_some() && !stat.is_dir();
            if ends {
                self.let_go_below(at);
                break;
            }
            match &mut sought {
                Some(sought) => sought.stack.lowers.push(at),
                None => {
                    let stack = LayerStack { lowers: vec![at], ..LayerStack::default() };
                    sought =
                        Some(LookupResult { ino: self.number_below(at), stack, stat, validity });
                }
            }
            if !stat.is_dir() {
                break;
            }
        }
        sought.ok_or(Halt::Failed(Errno::NOENT))
    }

    /// Whether it says that there is nothing: the base, which is no overlay, has no whiteouts.
    pub(super) fn hides(&self, at: LowerInode, stat: &Stat) -> bool {
        self.layer_of(at).is_ok_and(|layer| layer.hides(stat))
    }

    /// The number that a file of a lower layer is shown with.
    pub(super) fn number_below(&self, at: LowerInode) -> Ino {
        if at.ino == Ino::ROOT {
            return Ino::ROOT;
        }
        if self.is_plain(at) { at.ino } else { upper_only_ino(at.ino) }
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
        if node.is_dir() && left.upper.is_some() && !node.has_lowers(&left.lowers) {
            self.note_outdated(&node);
        }
        self.let_go(&left);
        node
    }
}
