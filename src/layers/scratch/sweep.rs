//! What a daemon or a machine that stopped left behind, put in order when a scratch is opened; and
//! what is in it, counted by the same walk.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::layout::{INDEX, LAYERS, PAGES, UPPER};
use super::long_path::PathId;
use super::opened::Opened;
use super::state::{State, Whereabouts};
use super::told;
use super::usage::{Usage, visit};
use super::xattr_namespace::XattrNamespace;
use super::xattr_values::{is_copy, number, value};
use crate::error::Failure;
use crate::layers::pages::{Fingerprint, MapAccess, MapError, MapId, PageMap, Recovered, UpperId};
use crate::shown::Show;
use crate::sys::{self, beneath, walk};

/// How names begin that are there only within one request; hexadecimal digits follow.
pub const TEMPORARY: &str = ".mmapfs-tmp-";

/// A file of which only some pages are in the scratch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// Where it is shown; of a file with several names, where its base is.
    pub path: PathBuf,
    /// Where its base is, from the root of that.
    pub below: PathBuf,
    /// Its page map.
    pub pages: MapId,
}

/// One look at a whole scratch.
pub(super) struct Sweep<'a> {
    opened: &'a Opened,
    marks: XattrNamespace,
    /// Where `upper/` is, to say where a file is shown.
    upper: PathBuf,
    pages: Arc<OwnedFd>,
    /// Number of the directory of the index.
    index: u64,
    /// Numbers of everything in the directory of the scratch itself.
    parts: HashSet<u64>,
    /// Number of `upper/` itself, and whether what is seen lies in it.
    top: u64,
    in_upper: bool,
    /// Number of `layers/`, and whether what is seen lies in it: nothing there is changed.
    layers: Option<u64>,
    in_layers: bool,
    /// The frozen layers, topmost first.
    frozen: Vec<PathBuf>,
    /// The base, where the machine may have stopped since the scratch was in use.
    base: Option<&'a Path>,
    usage: Usage,
    partial: Vec<Partial>,
    /// The files in `pages/` that no file was seen to name, with their bytes.
    unnamed: HashMap<MapId, u64>,
    /// Those that one file was seen to name, and those that several were.
    named: HashSet<MapId>,
    contested: HashSet<MapId>,
    /// Paths that no file was seen to name.
    paths: HashSet<PathId>,
}

/// What a sweep has found.
pub(super) struct Swept<'a> {
    opened: &'a Opened,
    usage: Usage,
    /// The files of which only some pages are in the scratch.
    partial: Vec<Partial>,
    /// The page maps whose files have lost the marks that name them.
    lost: Vec<MapId>,
    /// Those that several files name.
    contested: HashSet<MapId>,
}

impl Swept<'_> {
    /// What is in the scratch, the files that have a page map, and the page maps that several name.
    ///
    /// # Errors
    /// Overlay xattrs were lost: a file of which only some pages are here cannot be told from a
    /// whole one with holes.
    pub(super) fn found(self) -> Result<(Usage, Vec<Partial>, HashSet<MapId>), Failure> {
        let Some(first) = self.lost.first() else {
            return Ok((self.usage, self.partial, self.contested));
        };
        let map = self.opened.layout().pages().join(first.to_string());
        let reason = format_args!(
            "{} of its page maps belong to no file, {} for one: the extended attributes of its \
             files are lost, as by a copy without them. Copy it again with its attributes (cp -a, \
             rsync -aX). To give up what was written to these files, remove the maps and the \
             files in upper/ that they are of",
            self.lost.len(),
            map.shown(),
        );
        Err(Failure::failed(self.opened.path().shown(), reason))
    }
}

impl<'a> Sweep<'a> {
    /// Takes away names that were there within one request, page maps of files that are gone, paths
    /// that no file names, and entries of the index whose names are all gone; nothing else. Where
    /// the scratch may be cut, its page maps are put in order. Page maps whose files have lost
    /// their marks stay.
    ///
    /// # Errors
    /// Those of reading the directories. What cannot be removed is told in the log.
    pub(super) fn run(
        opened: &'a Opened,
        state: &'a State,
        here: &Whereabouts,
    ) -> Result<Swept<'a>, Failure> {
        let failed = |errno: Errno| told(opened.path(), "counting what is in it", errno.into());
        let pages = Arc::new(opened.directory(PAGES)?);
        let index = rustix::fs::fstat(opened.directory(INDEX)?).map_err(failed)?.st_ino;
        let mut sweep = Sweep {
            opened,
            marks: state.marks,
            upper: opened.layout().upper(),
            pages,
            index,
            parts: HashSet::new(),
            top: rustix::fs::fstat(opened.directory(UPPER)?).map_err(failed)?.st_ino,
            in_upper: false,
            layers: rustix::fs::statat(opened.fd(), LAYERS, AtFlags::SYMLINK_NOFOLLOW)
                .ok()
                .map(|found| found.st_ino),
            in_layers: false,
            frozen: state.frozen().iter().map(|id| opened.layout().layer(id)).collect(),
            base: state.may_be_cut(here).then_some(state.base.path.as_path()),
            usage: Usage::default(),
            partial: Vec::new(),
            unnamed: HashMap::new(),
            named: HashSet::new(),
            contested: HashSet::new(),
            paths: HashSet::new(),
        };
        sweep.note_parts().map_err(failed)?;
        sweep.note_maps().map_err(failed)?;
        visit(opened.fd(), |dir, name, stat| {
            sweep.see(dir, name, stat);
            Ok(())
        })
        .map_err(failed)?;
        let lost = sweep.remove_unnamed(state, here).map_err(failed)?;
        // Where marks were lost, those that name the paths may be as well.
        let unnamed =
            if lost.is_empty() { std::mem::take(&mut sweep.paths) } else { HashSet::new() };
        for id in unnamed {
            if let Err(errno) = id.remove(&*sweep.pages) {
                log::warn!("path {id}: nothing names it: {errno}");
            }
        }
        let Sweep { usage, partial, contested, .. } = sweep;
        Ok(Swept { opened, usage, partial, lost, contested })
    }

    /// The files of a frozen layer of which only some pages are in it, and the page maps that
    /// several of them name.
    ///
    /// # Errors
    /// Those of reading its directories.
    pub(super) fn partial_in(
        layer: &Opened,
        marks: XattrNamespace,
    ) -> Result<(Vec<Partial>, HashSet<MapId>), Errno> {
        let pages = layer.directory(PAGES).map_err(|_| Errno::IO)?;
        let mut sweep = Sweep {
            opened: layer,
            marks,
            upper: layer.layout().upper(),
            pages: Arc::new(pages),
            index: 0,
            parts: HashSet::new(),
            top: 0,
            in_upper: false,
            layers: None,
            in_layers: false,
            frozen: Vec::new(),
            base: None,
            usage: Usage::default(),
            partial: Vec::new(),
            unnamed: HashMap::new(),
            named: HashSet::new(),
            contested: HashSet::new(),
            paths: HashSet::new(),
        };
        sweep.note_maps()?;
        if sweep.has_maps() {
            visit(layer.fd(), |dir, name, stat| {
                if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    sweep.see_pages(dir, name);
                }
                Ok(())
            })?;
        }
        Ok((sweep.partial, sweep.contested))
    }

    /// Removes the page maps of files that are gone. Returns those whose files have lost their
    /// marks.
    fn remove_unnamed(&mut self, state: &State, here: &Whereabouts) -> Result<Vec<MapId>, Errno> {
        let mut lost = Vec::new();
        let unmarked = self.unmarked()?;
        for (id, bytes) in std::mem::take(&mut self.unnamed) {
            let is_lost = match PageMap::open(&*self.pages, id, MapAccess::Read) {
                // The file became whole, and has lost its marks for that.
                Ok(map) if map.is_complete() => false,
                // Nothing is left behind by a daemon that has left it in order.
                _ if state.in_order => true,
                // Its bits may be damaged.
                _ if state.is_in_place(here) => {
                    PageMap::owner(&*self.pages, id).is_ok_and(|owner| unmarked.contains(&owner))
                }
                // A copy: with attributes all of the files have them.
                _ => self.named.is_empty(),
            };
            if is_lost {
                lost.push(id);
                continue;
            }
            match rustix::fs::unlinkat(&*self.pages, id.to_string(), AtFlags::empty()) {
                Ok(()) => self.usage.bytes = self.usage.bytes.saturating_sub(bytes),
                Err(errno) => log::warn!("page map {id}: nothing names it: {errno}"),
            }
        }
        lost.sort();
        Ok(lost)
    }

    /// The files without the mark of a page map that maps were made for which no file names.
    fn unmarked(&self) -> Result<HashSet<UpperId>, Errno> {
        let mut found = HashSet::new();
        let owner = |id: &MapId| PageMap::owner(&*self.pages, *id).ok();
        let sought: HashSet<u64> =
            self.unnamed.keys().filter_map(owner).map(|owner| owner.ino).collect();
        if sought.is_empty() {
            return Ok(found);
        }
        visit(self.opened.fd(), |dir, name, stat| {
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if is_file
                && sought.contains(&stat.st_ino)
                && self.named_maps(&place(dir, name)).is_empty()
            {
                let file = beneath::open(dir, name, OFlags::PATH, Mode::empty())?;
                found.insert(UpperId::of(&Fingerprint::of(file)?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn note_parts(&mut self) -> Result<(), Errno> {
        let dir = Arc::new(self.opened.fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?);
        for name in walk::names_in(&dir)? {
            let found = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.parts.insert(found.st_ino);
        }
        Ok(())
    }

    fn note_maps(&mut self) -> Result<(), Errno> {
        for name in walk::names_in(&self.pages)? {
            self.paths.extend(name.to_str().ok().and_then(PathId::of_file));
            let Some(id) = name.to_str().ok().and_then(|name| name.parse().ok()) else { continue };
            let found = rustix::fs::statat(&*self.pages, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.unnamed.insert(id, (found.st_blocks as u64).saturating_mul(512));
        }
        Ok(())
    }

    fn see(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) {
        // Seen before what is in it, and that before the next one.
        let is_part = self.parts.contains(&stat.st_ino);
        if is_part {
            self.in_upper = stat.st_ino == self.top;
            self.in_layers = Some(stat.st_ino) == self.layers;
        }
        if self.in_layers {
            self.usage.bytes += (stat.st_blocks as u64).saturating_mul(512);
            return;
        }
        let path = place(dir, name);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_temporary(name) && kind == FileType::CharacterDevice {
            match self.put_in_place(dir, name, &path) {
                Ok(true) => {
                    self.usage.new_files += 1;
                    return;
                }
                Ok(false) => {}
                Err(errno) => log::warn!("{}: finishing a rename: {errno}", name.to_string_lossy()),
            }
        }
        if is_temporary(name) || self.is_nameless(dir, &path, stat) {
            match walk::remove(dir, name) {
                Ok(()) => return log::debug!("{}: taken away", name.to_string_lossy()),
                Err(error) => log::warn!("{}: taking it away: {error}", name.to_string_lossy()),
            }
        }
        self.usage.bytes += (stat.st_blocks as u64).saturating_mul(512);
        if !self.paths.is_empty() && matches!(kind, FileType::RegularFile | FileType::Directory) {
            self.see_path(&path);
        }
        match kind {
            FileType::CharacterDevice if stat.st_rdev == 0 => self.usage.whiteouts += 1,
            FileType::Directory => {
                let is_new = self.in_upper && !is_part && !is_copy(&path);
                self.usage.new_directories += u64::from(is_new);
            }
            _ => {
                let counted = if is_copy(&path) {
                    Some(&mut self.usage.copied_files)
                } else {
                    Some(&mut self.usage.new_files).filter(|_| self.in_upper && !is_part)
                };
                counted.into_iter().for_each(|count| *count += 1);
                if kind == FileType::RegularFile && self.has_maps() {
                    self.see_pages(dir, name);
                }
            }
        }
    }

    /// Finishes a rename that was to leave a device of the user (RENAME_WHITEOUT) and has left a
    /// whiteout. Returns whether the device was one for that.
    fn put_in_place(&self, dir: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<bool, Errno> {
        let Some(place) = self.mark(path, "mmapfs.place") else { return Ok(false) };
        let place = OsStr::from_bytes(&place);
        if place.is_empty() || place == "." || place == ".." || place.as_bytes().contains(&b'/') {
            return Ok(false);
        }
        let there = match rustix::fs::statat(dir, place, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            found => found?,
        };
        let kind = FileType::from_raw_mode(there.st_mode);
        if kind != FileType::CharacterDevice || there.st_rdev != 0 {
            return Ok(false); // It was not renamed.
        }
        rustix::fs::renameat(dir, name, dir, place)?;
        rustix::fs::lremovexattr(sys::fd_path(dir).join(place), self.marks.name("mmapfs.place"))?;
        Ok(true)
    }

    fn has_maps(&self) -> bool {
        !(self.unnamed.is_empty() && self.named.is_empty())
    }

    /// The path that is too long for a mark is named by the file or directory.
    fn see_path(&mut self, path: &Path) {
        if let Some(id) = number(self.mark(path, "mmapfs.path")) {
            self.paths.remove(&id);
        }
    }

    /// Where a file is in the base.
    fn redirect(&self, path: &Path) -> Option<Vec<u8>> {
        match number::<PathId>(self.mark(path, "mmapfs.path")) {
            Some(id) => id.read(&*self.pages).ok(),
            None => self.mark(path, "overlay.redirect"),
        }
    }

    /// The page map of a file is named by it.
    fn see_pages(&mut self, dir: BorrowedFd<'_>, name: &CStr) {
        let path = &place(dir, name);
        let ids = self.named_maps(path);
        for id in &ids {
            self.unnamed.remove(id);
            if !self.named.insert(*id) && self.contested.insert(*id) {
                log::error!("{}: another file names its page map {id}", name.to_string_lossy());
            }
        }
        let Some(id) = ids.first().copied() else { return };
        self.note_partial(dir, path, name, id);
        let Some(base) = self.base else { return };
        match self.recover(id, (dir, name), base) {
            Ok(Recovered::Whole) => {}
            Ok(how) => log::info!("{}: after a stop: {how:?}", name.to_string_lossy()),
            // Whoever opens it is told.
            Err(err) => log::warn!("{}: page map {id}: {err}", name.to_string_lossy()),
        }
    }

    /// The page maps that a file names, the one that counts first: both kinds of marks are read by
    /// whoever serves it.
    fn named_maps(&self, path: &Path) -> Vec<MapId> {
        let other = match self.marks {
            XattrNamespace::Trusted => XattrNamespace::User,
            XattrNamespace::User => XattrNamespace::Trusted,
        };
        let by_other = value(path, &other.name("mmapfs.pages"));
        let mut ids: Vec<MapId> = [self.mark(path, "mmapfs.pages"), by_other]
            .into_iter()
            .filter_map(|mark| number(mark).map(MapId))
            .collect();
        ids.dedup();
        ids
    }

    /// Notes where a file with a page map is shown, and where its base is.
    fn note_partial(&mut self, dir: BorrowedFd<'_>, path: &Path, name: &CStr, pages: MapId) {
        let name = OsStr::from_bytes(name.to_bytes());
        let place = std::fs::read_link(sys::fd_path(dir)).unwrap_or_default();
        let shown = place.strip_prefix(&self.upper).ok().map(|above| above.join(name));
        let below = self.redirect(path);
        let below = below.map(|below| PathBuf::from(OsStr::from_bytes(&below)));
        let below = match (below, &shown) {
            (Some(below), _) if below.is_absolute() => below,
            // Another name in the same directory, or the same: an overlay of somebody else.
            (below, Some(shown)) => match below {
                Some(below) => shown.with_file_name(below),
                None => shown.clone(),
            },
            _ => return,
        };
        let path = shown.unwrap_or_else(|| below.strip_prefix("/").unwrap_or(&below).to_owned());
        self.partial.push(Partial { path, below, pages });
    }

    fn recover(
        &self,
        id: MapId,
        (dir, name): (BorrowedFd<'_>, &CStr),
        base: &Path,
    ) -> Result<Recovered, MapError> {
        let upper = beneath::open(dir, name, OFlags::RDONLY, Mode::empty())?;
        let path = place(dir, name);
        PageMap::recover(&*self.pages, id, &upper, || {
            let below = self.redirect(&path).ok_or(Errno::NODATA)?;
            let below = Path::new(OsStr::from_bytes(&below));
            // A frozen layer has it at the same path, unless a directory was renamed there.
            let frozen = self.frozen.iter().map(|layer| open_below(&layer.join("upper"), below));
            let found = frozen.chain([open_below(base, below)]).find(Result::is_ok);
            Fingerprint::of(found.ok_or(Errno::NOENT)??)
        })
    }

    /// Whether it is a file in the index that has no other name.
    fn is_nameless(&self, dir: BorrowedFd<'_>, path: &Path, stat: &Stat) -> bool {
        if stat.st_nlink != 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return false;
        }
        let more: Option<i64> = number(self.mark(path, "mmapfs.links"));
        let is_index = || rustix::fs::fstat(dir).is_ok_and(|above| above.st_ino == self.index);
        more.is_some_and(|more| more < 0) && is_index()
    }

    fn mark(&self, path: &Path, mark: &str) -> Option<Vec<u8>> {
        value(path, &self.marks.name(mark))
    }
}

/// Opens what a path from the root of the base leads to, name by name: a path may be longer than a
/// system call takes.
fn open_below(base: &Path, below: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut found = rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    for part in below.components() {
        if let Component::Normal(name) = part {
            found = rustix::fs::openat(found.as_fd(), name, flags, Mode::empty())?;
        }
    }
    Ok(found)
}

/// Path of bounded length to a name in an open directory.
fn place(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    sys::fd_path(dir).join(OsStr::from_bytes(name.to_bytes()))
}

fn is_temporary(name: &CStr) -> bool {
    let digits = name.to_bytes().strip_prefix(TEMPORARY.as_bytes());
    digits.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit))
}
