//! What a daemon or a machine that stopped left behind, put in order when a scratch is opened; and
//! what is in it, counted by the same walk.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::layout::{Layout, remove_tree};
use super::marks::Marks;
use super::state::{State, Whereabouts};
use super::usage::{Usage, visit};
use crate::error::Failure;
use crate::layers::pages::{Fingerprint, MapAccess, MapError, MapId, PageMap, Recovered, UpperId};
use crate::shown::Show;
use crate::sys;

/// How names begin that are there only within one request; hexadecimal digits follow.
pub const TEMPORARY: &str = ".mmapfs-tmp-";

/// The longest value of a mark, in bytes.
const LONGEST: usize = 4096;

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
    layout: &'a Layout,
    marks: Marks,
    /// The base, where the machine may have stopped since the scratch was in use.
    base: Option<&'a Path>,
    usage: Usage,
    partial: Vec<Partial>,
    /// The files in `pages/` that no file was seen to name, with their bytes.
    unnamed: HashMap<MapId, u64>,
    /// Files were seen that name a page map.
    names_maps: bool,
}

/// What a sweep has found.
pub(super) struct Swept<'a> {
    layout: &'a Layout,
    usage: Usage,
    /// The files of which only some pages are in the scratch.
    partial: Vec<Partial>,
    /// The page maps whose files have lost the marks that name them.
    lost: Vec<MapId>,
}

impl Swept<'_> {
    /// What is in the scratch, and the files that have a page map.
    ///
    /// # Errors
    /// Marks were lost: a file of which only some pages are here cannot be told from a whole one
    /// with holes.
    pub(super) fn usage(self) -> Result<(Usage, Vec<Partial>), Failure> {
        let Some(first) = self.lost.first() else {
            return Ok((self.usage, self.partial));
        };
        let map = self.layout.pages().join(first.to_string());
        let reason = format_args!(
            "{} of its page maps belong to no file, {} for one: the extended attributes of its \
             files are lost, as by a copy without them. Copy it again with its attributes (cp -a, \
             rsync -aX). To give up what was written to these files, remove the maps and the \
             files in upper/ that they are of",
            self.lost.len(),
            map.shown(),
        );
        Err(Failure::failed(self.layout.dir().shown(), reason))
    }
}

impl<'a> Sweep<'a> {
    /// Takes away names that were there within one request, page maps of files that are gone, and
    /// entries of the index whose names are all gone; nothing else. Where the scratch may be cut,
    /// its page maps are put in order. Page maps whose files have lost their marks stay.
    ///
    /// # Errors
    /// Those of reading the directories. What cannot be removed is told in the log.
    pub(super) fn run(
        layout: &'a Layout,
        state: &'a State,
        here: &Whereabouts,
    ) -> std::io::Result<Swept<'a>> {
        let mut unnamed = HashMap::new();
        for entry in fs::read_dir(layout.pages())? {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                unnamed.insert(id, entry.metadata()?.blocks().saturating_mul(512));
            }
        }
        let base = state.may_be_cut(here).then_some(state.base.path.as_path());
        let partial = Vec::new();
        let usage = Usage::default();
        let marks = state.marks;
        let mut sweep = Sweep { layout, marks, base, usage, partial, unnamed, names_maps: false };
        visit(layout.dir(), |dir, name, stat| {
            sweep.see(dir, name, stat);
            Ok(())
        })?;
        let mut lost = Vec::new();
        let unmarked = sweep.unmarked()?;
        for (id, bytes) in std::mem::take(&mut sweep.unnamed) {
            let is_lost = match sweep.map(id) {
                // The file became whole, and has lost its marks for that.
                Ok(map) if map.is_whole() => false,
                // Nothing is left behind by a daemon that has left it in order.
                _ if state.in_order => true,
                Ok(map) if state.is_in_place(here) => unmarked.contains(&map.upper()),
                Err(_) if state.is_in_place(here) => false,
                // A copy: with attributes all of the files have them.
                _ => !sweep.names_maps,
            };
            if is_lost {
                lost.push(id);
                continue;
            }
            let path = layout.pages().join(id.to_string());
            match fs::remove_file(&path) {
                Ok(()) => sweep.usage.bytes = sweep.usage.bytes.saturating_sub(bytes),
                Err(error) => log::warn!("{}: nothing names it: {error}", path.shown()),
            }
        }
        lost.sort();
        Ok(Swept { layout, usage: sweep.usage, partial: sweep.partial, lost })
    }

    fn map(&self, id: MapId) -> Result<PageMap, MapError> {
        let pages = File::open(self.layout.pages())
            .map_err(|error| MapError::Io(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        PageMap::open(pages, id, MapAccess::Read)
    }

    /// The files without the mark of a page map that maps were made for which no file names.
    fn unmarked(&self) -> Result<HashSet<UpperId>, Errno> {
        let mut found = HashSet::new();
        let maps = self.unnamed.keys().filter_map(|id| self.map(*id).ok());
        let sought: HashSet<u64> = maps.map(|map| map.upper().ino).collect();
        if sought.is_empty() {
            return Ok(found);
        }
        visit(self.layout.dir(), |dir, name, stat| {
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
                || !sought.contains(&stat.st_ino)
            {
                return Ok(());
            }
            let path = sys::fd_path(dir).join(OsStr::from_bytes(name.to_bytes()));
            if self.named_map(&path).is_none() {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::open(&path, flags, Mode::empty())?;
                found.insert(UpperId::of(&Fingerprint::of(file)?));
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn see(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) {
        let path = sys::fd_path(dir).join(OsStr::from_bytes(name.to_bytes()));
        let kind = FileType::from_raw_mode(stat.st_mode);
        if is_temporary(name) && kind == FileType::CharacterDevice {
            match self.put_in_place(dir, name, &path) {
                Ok(true) => return,
                Ok(false) => {}
                Err(errno) => log::warn!("{}: finishing a rename: {errno}", name.to_string_lossy()),
            }
        }
        if is_temporary(name) || self.is_nameless(dir, &path, stat) {
            let removed = match kind {
                FileType::Directory => remove_tree(&path),
                _ => fs::remove_file(&path),
            };
            match removed {
                Ok(()) => return log::debug!("{}: taken away", name.to_string_lossy()),
                Err(error) => log::warn!("{}: taking it away: {error}", name.to_string_lossy()),
            }
        }
        self.usage.bytes += (stat.st_blocks as u64).saturating_mul(512);
        match kind {
            FileType::CharacterDevice if stat.st_rdev == 0 => self.usage.whiteouts += 1,
            FileType::Directory => {}
            _ => {
                self.usage.copied_files += u64::from(self.mark(&path, "mmapfs.ino").is_some());
                if kind == FileType::RegularFile && !self.unnamed.is_empty() {
                    self.see_pages(dir, &path, name);
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

    /// The page map of a file is named by it.
    fn see_pages(&mut self, dir: BorrowedFd<'_>, path: &Path, name: &CStr) {
        let Some(id) = self.named_map(path) else { return };
        self.names_maps = true;
        self.note_partial(dir, path, name, id);
        self.unnamed.remove(&id);
        let Some(base) = self.base else { return };
        match self.recover(id, path, base) {
            Ok(Recovered::Whole) => {}
            Ok(how) => log::info!("{}: after a stop: {how:?}", name.to_string_lossy()),
            // Whoever opens it is told.
            Err(err) => log::warn!("{}: page map {id}: {err}", name.to_string_lossy()),
        }
    }

    /// The page map that a file names. Both kinds of marks are read by whoever serves it.
    fn named_map(&self, path: &Path) -> Option<MapId> {
        let other = match self.marks {
            Marks::Trusted => Marks::User,
            Marks::User => Marks::Trusted,
        };
        let by_other = || number(value(path, &other.name("mmapfs.pages")));
        number(self.mark(path, "mmapfs.pages")).or_else(by_other).map(MapId)
    }

    /// Notes where a file with a page map is shown, and where its base is.
    fn note_partial(&mut self, dir: BorrowedFd<'_>, path: &Path, name: &CStr, pages: MapId) {
        let name = OsStr::from_bytes(name.to_bytes());
        let place = fs::read_link(sys::fd_path(dir)).unwrap_or_default();
        let shown = place.strip_prefix(self.layout.upper()).ok().map(|above| above.join(name));
        let below = self.mark(path, "overlay.redirect");
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

    fn recover(&self, id: MapId, path: &Path, base: &Path) -> Result<Recovered, MapError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let upper = rustix::fs::open(path, flags, Mode::empty())?;
        let pages = File::open(self.layout.pages())
            .map_err(|error| MapError::Io(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        PageMap::recover(pages, id, &upper, || {
            let below = self.mark(path, "overlay.redirect").ok_or(Errno::NODATA)?;
            let below = PathBuf::from(OsStr::from_bytes(&below));
            // Redirects of files lead from the root.
            let names = below.components().filter(|part| matches!(part, Component::Normal(_)));
            let found = rustix::fs::open(
                names.fold(base.to_owned(), |path, name| path.join(name)),
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            Fingerprint::of(found)
        })
    }

    /// Whether it is a file in the index that has no other name.
    fn is_nameless(&self, dir: BorrowedFd<'_>, path: &Path, stat: &Stat) -> bool {
        if stat.st_nlink != 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return false;
        }
        let more: Option<i64> = number(self.mark(path, "mmapfs.links"));
        let is_index = || {
            let index = fs::metadata(self.layout.index());
            let above = rustix::fs::fstat(dir);
            index.is_ok_and(|index| above.is_ok_and(|above| above.st_ino == index.ino()))
        };
        more.is_some_and(|more| more < 0) && is_index()
    }

    fn mark(&self, path: &Path, mark: &str) -> Option<Vec<u8>> {
        value(path, &self.marks.name(mark))
    }
}

/// The value of an attribute, if it can be had.
fn value(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; LONGEST];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value.get(..len)?.to_vec())
}

fn number<T: std::str::FromStr>(value: Option<Vec<u8>>) -> Option<T> {
    String::from_utf8(value?).ok()?.parse().ok()
}

fn is_temporary(name: &CStr) -> bool {
    let digits = name.to_bytes().strip_prefix(TEMPORARY.as_bytes());
    digits.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit))
}
