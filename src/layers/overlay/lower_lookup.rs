//! What a name leads to in the lower layers, merged from the answers of each of them.
//!
//! The layers of a directory are asked topmost first; a layer that does not have the directory is
//! not asked. The first one that has an entry at a name decides. A directory goes on in those below
//! unless it is opaque, and in another place where it has a redirect. A file with part of its pages
//! goes on with the file below it, down to a whole one.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::ino::upper_only_ino;
use super::layer::{LayerEntry, LayerKind, OverlayParts};
use super::lookup::{LookupResult, LookupScope};
use super::namespace_lock::NamesRead;
use super::namespace_lock::{Halt, Step};
use super::node::{LayerStack, LowerInode, Node};
use super::overlay_xattrs::{OverlayXattrs, XattrError};
use crate::layers::changed::{self, Changed};
use crate::layers::pages::Fingerprint;
use crate::layers::scratch::Scratch;
use crate::shown::Show;
use crate::tree::{Attributes, Entry, Ino, Stat};

/// The parts of a file or directory in the layers below one, topmost first.
#[derive(Default)]
pub(super) struct Below {
    /// The inode number that they are shown with; none where nothing is below.
    pub(super) ino: Option<Ino>,
    pub(super) lowers: Vec<LowerInode>,
    /// A frozen layer tells where a directory goes on by a redirect.
    pub(super) redirected: bool,
    /// See [`LayerStack::frozen`].
    pub(super) frozen: Option<(u64, u64)>,
}

impl Below {
    /// The parts that were found at a name.
    pub(super) fn of(found: LookupResult) -> Below {
        let LayerStack { lowers, redirected, frozen, .. } = found.stack;
        Below { ino: Some(found.ino), lowers, redirected, frozen }
    }
}

/// The end of a walk in one layer.
#[derive(Default)]
struct Walked {
    /// A lookup is held of it.
    found: Option<Entry>,
    /// The path in the layers below, after the redirects of this layer.
    below: PathBuf,
    /// Nothing of the layers below shows at the path.
    ended: bool,
    redirected: bool,
}

impl Overlay {
    /// The entry at a name in the directories of a scope. A lookup is held of each part of it.
    ///
    /// # Errors
    /// ENOENT; EIO for an entry whose overlay xattrs cannot be right, or whose data is not where
    /// they say.
    pub(super) fn directly_below(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
    ) -> Step<LookupResult> {
        for (index, dir) in whence.dirs.iter().enumerate() {
            let rest = whence.dirs.get(index + 1..).unwrap_or_default();
            let scope = LookupScope { dirs: rest, layer: dir.layer, ..whence };
            let layer = self.layer_of(*dir)?;
            let found = match &layer.kind {
                LayerKind::Plain => match whence.names.below().lookup(*dir, name) {
                    Err(Halt::Failed(Errno::NOENT)) => continue,
                    entry => self.join_plain(scope, name, &entry?)?,
                },
                LayerKind::Overlay(parts) => match layer.lookup(dir.ino, name)? {
                    LayerEntry::Absent => continue,
                    LayerEntry::Whiteout => break,
                    LayerEntry::Present(entry) => {
                        self.join_frozen(parts, scope, name, &entry, false)?
                    }
                },
            };
            return self.copied_between(whence, dir.layer, name, found);
        }
        Err(Halt::Failed(Errno::NOENT))
    }

    /// The copy of a file with several names that was found in a layer, which was made by another
    /// name in a layer between that one and the scope's.
    fn copied_between(
        &self,
        whence: LookupScope<'_>,
        found_in: usize,
        name: &OsStr,
        mut found: LookupResult,
    ) -> Step<LookupResult> {
        if found.stat.is_dir() {
            return Ok(found);
        }
        for layer in (whence.layer + 1..found_in).rev() {
            let Some(parts) = self.layers.get(layer).and_then(|layer| layer.overlay()) else {
                continue;
            };
            let dirs = whence.dirs.partition_point(|dir| dir.layer <= layer);
            let dirs = whence.dirs.get(dirs..).unwrap_or_default();
            let scope = LookupScope { dirs, layer, ..whence };
            found = self.copy_in_index(parts, scope, name, found)?;
        }
        Ok(found)
    }

    /// An entry of a plain layer of which a lookup is held, with the directories below it.
    fn join_plain(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        entry: &Entry,
    ) -> Step<LookupResult> {
        let at = LowerInode { layer: whence.layer, ino: entry.attr.ino };
        let (stat, validity) = (entry.attr.stat, entry.attr.validity);
        let may_merge = !whence.dirs.is_empty() || whence.path.is_some();
        let below = match stat.is_dir() && may_merge {
            true => self.directories_below(whence, name, None),
            false => Ok(Below::default()),
        };
        let below = below.inspect_err(|_| self.let_go_below(at))?;
        let lowers = [at].into_iter().chain(below.lowers).collect();
        let stack = LayerStack { lowers, redirected: below.redirected, ..LayerStack::default() };
        Ok(LookupResult { ino: self.number_below(at), stack, stat, validity })
    }

    /// An entry of a frozen layer of which a lookup is held, with what is below it; `known` as in
    /// [`Overlay::lower_data`].
    pub(super) fn join_frozen(
        &self,
        parts: &OverlayParts,
        whence: LookupScope<'_>,
        name: &OsStr,
        entry: &Entry,
        known: bool,
    ) -> Step<LookupResult> {
        let at = LowerInode { layer: whence.layer, ino: entry.attr.ino };
        let (stat, validity) = (entry.attr.stat, entry.attr.validity);
        let joined = self
            .frozen_xattrs(parts, at.ino, &stat)
            .map_err(|err| Halt::Failed(self.tell_of(whence, name, err)))
            .and_then(|xattrs| {
                let below = self.joined_below((parts, whence), name, &stat, (&xattrs, known))?;
                Ok((xattrs, below))
            });
        let (xattrs, below) = joined.inspect_err(|_| self.let_go_below(at))?;
        let redirected = below.redirected || xattrs.redirect.is_some() && stat.is_dir();
        let links = xattrs.more_links(&stat);
        let number = xattrs.number().map(Ino).or(below.ino);
        let is_partial = !stat.is_dir() && !below.lowers.is_empty();
        let more = below.frozen.map_or(0, |(_, blocks)| blocks);
        let frozen = is_partial.then(|| (stat.size, stat.blocks.saturating_add(more)));
        let stack = LayerStack {
            lowers: [at].into_iter().chain(below.lowers).collect(),
            links,
            null_device: xattrs.null_device,
            redirected,
            frozen,
            ..LayerStack::default()
        };
        let ino = number.unwrap_or_else(|| upper_only_ino(at.ino));
        Ok(LookupResult { ino, stack, stat, validity })
    }

    /// The overlay xattrs of a file of a frozen layer.
    fn frozen_xattrs(
        &self,
        parts: &OverlayParts,
        ino: Ino,
        stat: &Stat,
    ) -> Result<Arc<OverlayXattrs>, XattrError> {
        parts.known.get(ino, || self.xattrs_in(parts, ino, stat))
    }

    /// The parts below an entry of an overlay layer, as its overlay xattrs tell.
    pub(super) fn joined_below(
        &self,
        (parts, whence): (&OverlayParts, LookupScope<'_>),
        name: &OsStr,
        stat: &Stat,
        (xattrs, known): (&OverlayXattrs, bool),
    ) -> Step<Below> {
        match stat.kind() {
            libc::S_IFDIR => self.merged_below(whence, name, xattrs),
            libc::S_IFREG if xattrs.metacopy => self.lower_data(whence, name, xattrs, known),
            libc::S_IFREG => {
                let complete = |id| self.check_complete(parts, whence, name, id);
                xattrs.pages.map_or(Ok(()), complete)?;
                Ok(Below::default())
            }
            _ => Ok(Below::default()),
        }
    }

    /// The directories that one of an overlay layer is merged with.
    pub(super) fn merged_below(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        xattrs: &OverlayXattrs,
    ) -> Step<Below> {
        if xattrs.opaque {
            return Ok(Below::default());
        }
        if xattrs.redirect.is_some() {
            self.note_redirect();
        }
        self.directories_below(whence, name, xattrs.redirect.as_deref())
    }

    fn directories_below(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        redirect: Option<&Path>,
    ) -> Step<Below> {
        let found = match redirect {
            None => self.in_scope(whence, name),
            Some(path) => self.below_path(whence, path),
        };
        match found {
            Ok(found) if found.stat.is_dir() => Ok(Below::of(found)),
            Ok(found) => {
                self.let_go(&found.stack);
                Ok(Below::default())
            }
            Err(Halt::Failed(Errno::NOENT | Errno::NOTDIR)) => Ok(Below::default()),
            Err(halt) => Err(halt),
        }
    }

    /// The file below one of which only some pages are in a layer. With `known` the name itself
    /// leads to it, whatever became of the one by which it was copied.
    fn lower_data(
        &self,
        whence: LookupScope<'_>,
        name: &OsStr,
        xattrs: &OverlayXattrs,
        known: bool,
    ) -> Step<Below> {
        let found = match &xattrs.redirect {
            Some(path) if !known || whence.path.is_some() => self.below_path(whence, path),
            _ => self.in_scope(whence, name),
        };
        let reason = match found {
            Ok(found) if found.stat.kind() == libc::S_IFREG => return Ok(Below::of(found)),
            Ok(found) => {
                self.let_go(&found.stack);
                String::from("no regular file is in its place")
            }
            Err(Halt::Failed(err @ (Errno::NOENT | Errno::NOTDIR))) => err.to_string(),
            Err(halt) => return Err(halt),
        };
        log::debug!(
            "{}: its data is not below it: {reason}",
            self.path_of(whence.parent).join(name).shown()
        );
        Ok(Below { lowers: vec![LowerInode::GONE], ..Below::default() })
    }

    /// The entry that a redirect leads to: a path from the root of the layers below the scope's, or
    /// another name in the same directory.
    pub(super) fn below_path(&self, whence: LookupScope<'_>, path: &Path) -> Step<LookupResult> {
        match (path.is_absolute(), whence.path) {
            (true, _) => self.at_path(whence, path),
            (false, Some(of_name)) => self.at_path(whence, &of_name.with_file_name(path)),
            (false, None) => self.directly_below(whence, path.as_os_str()),
        }
    }

    /// The entry of a scope at a name.
    fn in_scope(&self, whence: LookupScope<'_>, name: &OsStr) -> Step<LookupResult> {
        match whence.path {
            Some(path) => self.at_path(whence, path),
            None => self.directly_below(whence, name),
        }
    }

    /// The entry at a path from the root of the layers below the scope's. Each layer is asked once
    /// for each name, until one has the path.
    fn at_path(&self, whence: LookupScope<'_>, path: &Path) -> Step<LookupResult> {
        let mut path = path.to_owned();
        let mut redirected = false;
        for layer in whence.layer + 1..self.layers.len() {
            let walked = self.walk_in(whence, layer, &path)?;
            redirected |= walked.redirected;
            path = walked.below;
            let Some(entry) = walked.found else {
                if walked.ended {
                    break;
                }
                continue;
            };
            let name = path.file_name().ok_or(Errno::IO)?;
            // Nothing is below a directory that is in an opaque one.
            let rest = if walked.ended { Path::new("") } else { &path };
            let scope = LookupScope { dirs: &[], path: Some(rest), layer, ..whence };
            let mut found = match &self.layers.get(layer).ok_or(Errno::IO)?.kind {
                LayerKind::Plain => self.join_plain(scope, name, &entry)?,
                LayerKind::Overlay(parts) => self.join_frozen(parts, scope, name, &entry, false)?,
            };
            found.stack.redirected |= redirected;
            let whence = LookupScope { dirs: &[], path: Some(rest), ..whence };
            return self.copied_between(whence, layer, name, found);
        }
        Err(Halt::Failed(Errno::NOENT))
    }

    /// Walks a path from the root of one layer.
    fn walk_in(&self, whence: LookupScope<'_>, layer: usize, path: &Path) -> Step<Walked> {
        let of = self.layers.get(layer).ok_or(Errno::IO)?;
        let mut at = LowerInode { layer, ino: of.root };
        let mut walked = Walked { below: PathBuf::from("/"), ..Walked::default() };
        let mut held: Option<LowerInode> = None;
        let mut steps = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        while let Some(name) = steps.next() {
            let entry = match &of.kind {
                LayerKind::Plain => match whence.names.below().lookup(at, name) {
                    Err(Halt::Failed(Errno::NOENT)) => Ok(LayerEntry::Absent),
                    entry => entry.map(LayerEntry::Present),
                },
                LayerKind::Overlay(_) => of.lookup(at.ino, name).map_err(Halt::Failed),
            };
            if entry.as_ref().is_err_and(|halt| *halt == Halt::Ask) {
                whence.names.below().go_on(steps.clone());
            }
            held.take().into_iter().for_each(|at| self.let_go_below(at));
            let entry = match entry {
                Ok(LayerEntry::Present(entry)) => entry,
                Ok(LayerEntry::Absent) => {
                    walked.below.push(name);
                    walked.below.extend(steps);
                    return Ok(walked);
                }
                Ok(LayerEntry::Whiteout) | Err(Halt::Failed(Errno::NOTDIR)) => {
                    return Ok(Walked { ended: true, ..walked });
                }
                Err(halt) => return Err(halt),
            };
            if steps.clone().next().is_none() {
                walked.below.push(name);
                return Ok(Walked { found: Some(entry), ..walked });
            }
            at = LowerInode { layer, ino: entry.attr.ino };
            let stat = entry.attr.stat;
            let xattrs = match of.overlay().filter(|_| stat.is_dir()) {
                Some(parts) => self.frozen_xattrs(parts, at.ino, &stat).map_err(|err| {
                    self.let_go_below(at);
                    self.tell_of(whence, name, err)
                })?,
                None => Arc::default(),
            };
            held = Some(at);
            walked.ended |= xattrs.opaque;
            walked.redirected |= xattrs.redirect.is_some();
            match &xattrs.redirect {
                Some(path) if path.is_absolute() => walked.below.clone_from(path),
                Some(other) => walked.below.push(other),
                None => walked.below.push(name),
            }
        }
        held.into_iter().for_each(|at| self.let_go_below(at));
        Ok(Walked { ended: true, ..walked })
    }

    /// The lower directories of a directory at a name, with a lookup held of each.
    ///
    /// # Errors
    /// Errors of reading the upper directory, and of lookups in the lower layers.
    pub(super) fn merged_with(
        &self,
        names: &NamesRead<'_>,
        (parent, name): (&Node, &OsStr),
        upper: Option<Ino>,
    ) -> Step<Below> {
        let stack = parent.stack();
        let whence = LookupScope { names, parent, dirs: &stack.lowers, layer: 0, path: None };
        let Some(upper) = upper else {
            return Ok(Below::of(self.directly_below(whence, name)?));
        };
        let stat = self.upper.attr(upper, None)?.stat;
        let xattrs = self.xattrs_of(upper, &stat).map_err(|err| self.tell_of(whence, name, err))?;
        self.merged_below(whence, name, &xattrs)
    }

    /// Whether the topmost part of a file or directory is of a frozen layer.
    pub(super) fn is_frozen(&self, stack: &LayerStack) -> bool {
        let first = stack.lowers.first().filter(|_| stack.upper.is_none());
        first.and_then(|at| self.layer_of(*at).ok()).is_some_and(|layer| !layer.is_plain())
    }

    /// The partial copies of all layers whose base has changed since, or may have.
    pub(super) fn changed_below(&self, scratch: &Scratch) -> Vec<Changed> {
        let frozen = scratch.frozen().iter().map(|layer| &layer.partial[..]);
        let mut found = Vec::new();
        for (layer, partial) in [scratch.partial()].into_iter().chain(frozen).enumerate() {
            let parts = self.layers.get(layer).and_then(|layer| layer.overlay());
            for (file, parts) in partial.iter().zip(std::iter::repeat(parts)) {
                let Some(parts) = parts else { continue };
                let fate = match self.fingerprint_below(layer, &file.below) {
                    Ok(None) => None,
                    Ok(Some(now)) => changed::fate(&parts.pages, file.pages, Ok(now)),
                    Err(err) => changed::fate(&parts.pages, file.pages, Err(err)),
                };
                found.extend(fate.map(|fate| (file.path.clone(), fate)));
            }
        }
        found.sort_by(|one: &Changed, other| one.0.cmp(&other.0));
        found
    }

    /// The fingerprint of a file of a plain layer, by a path from the root of the layers below one;
    /// `None` where the path leads to a frozen layer, which never changes.
    fn fingerprint_below(&self, layer: usize, path: &Path) -> Result<Option<Fingerprint>, Errno> {
        let (root, path) = (self.node(Ino::ROOT)?, Path::new("/").join(path));
        self.with_names(|names| {
            let scope = LookupScope { names, parent: &root, dirs: &[], layer, path: None };
            let found = self.below_path(scope, &path)?;
            let print = match found.stack.lowers[..] {
                [at] if self.is_plain(at) => names.below().fingerprint(at).map(Some),
                _ => Ok(None),
            };
            self.let_go(&found.stack);
            print
        })
    }

    /// The number that a file of a plain layer is shown with.
    pub(super) fn number_below(&self, at: LowerInode) -> Ino {
        if at.ino == Ino::ROOT { Ino::ROOT } else { at.ino }
    }
}
