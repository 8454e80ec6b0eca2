//! List of all scratches of a user, in use or not, and their removal.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::Serialize;

use super::layout::{INDEX, LAYERS, LOCK, Layout, PAGES, STATE, UPPER, WORK};
use super::lock::{self, Lock};
use super::opened::Opened;
use super::place::{self, Places};
use super::state::{Kind, NEW_STATE, State};
use super::{bytes_used, told};
use crate::error::Failure;
use crate::shown::{Name, Show};
use crate::sys::walk;

/// Least number of leading digits that abbreviate an id.
const LEAST_DIGITS: usize = 4;

/// A scratch in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Id.
    pub id: String,
    /// Directory.
    pub place: Name,
    /// Whether it is in memory, and lost when the machine goes down.
    pub in_memory: bool,
    /// Reason why the other fields may be unknown: its directory is gone, or its state cannot be
    /// read.
    pub trouble: Option<String>,
    /// Directory or file that it was made over.
    pub base: Option<Name>,
    /// Allocated bytes on its filesystem; null where it cannot be read.
    pub bytes: Option<u64>,
    /// Limit in bytes; null without one.
    pub max_bytes: Option<u64>,
    /// Creation time, in seconds since 1970.
    pub created: Option<u64>,
    /// Time since its creation, in seconds.
    pub age_s: Option<u64>,
    /// Whether a daemon serves it.
    pub mounted: bool,
    /// Mount point.
    pub mountpoint: Option<Name>,
    /// Process id of the daemon.
    pub pid: Option<u32>,
    #[serde(skip)]
    dir: PathBuf,
}

impl Listed {
    fn at(dir: PathBuf, id: String, in_memory: bool) -> Listed {
        let layout = Layout::at(dir);
        let mut listed = Listed {
            id,
            place: Name::from(layout.dir()),
            in_memory,
            trouble: None,
            base: None,
            bytes: None,
            max_bytes: None,
            created: None,
            age_s: None,
            mounted: false,
            mountpoint: None,
            pid: None,
            dir: layout.dir().to_owned(),
        };
        match read(&layout) {
            Ok(Some((opened, state))) => listed.fill(&opened, &state),
            Ok(None) if may_be_unmounted(layout.dir()) => {
                listed.trouble = Some("it is not there: its filesystem may not be mounted".into());
            }
            Ok(None) => listed.trouble = Some("it is gone".into()),
            Err(failure) => listed.trouble = Some(failure.reason),
        }
        listed
    }

    fn fill(&mut self, opened: &Opened, state: &State) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.in_memory = state.kind.in_memory();
        self.id.clone_from(&state.id);
        self.base = Some(Name::from(&state.base.path));
        self.bytes = bytes_used(opened.fd()).ok();
        self.max_bytes = state.max;
        self.created = Some(state.created);
        self.age_s = Some(now.saturating_sub(state.created));
        match lock::holder(opened) {
            Ok(None) => {}
            Ok(Some(holder)) => {
                self.mounted = true;
                self.mountpoint = holder.mountpoint.map(Name::from);
                self.pid = holder.pid;
            }
            Err(failure) => self.trouble = Some(failure.reason),
        }
    }

    /// Whether its directory, or the scratch in it, does not exist any more.
    pub fn is_gone(&self) -> bool {
        self.trouble.is_some() && !Layout::at(self.dir.clone()).state().exists()
    }
}

/// All scratches of this user, oldest first. The link to a removed directory is removed from the
/// registry, unless the directory may lie on a filesystem that is not mounted.
pub fn list(places: &Places) -> Vec<Listed> {
    let mut all = look(places);
    all.retain(|listed| {
        let is_lost = listed.is_gone() && !listed.dir.exists() && !may_be_unmounted(&listed.dir);
        !is_lost || !unlink(places, &listed.dir)
    });
    all
}

/// Whether a missing or empty directory may lie on a filesystem that is not mounted: the deepest
/// existing directory of its path is empty, as a mount point is; or the path is below a directory
/// for removable disks; or fstab(5) has a mount point on the path that is not mounted.
fn may_be_unmounted(dir: &Path) -> bool {
    const REMOVABLE: [&str; 3] = ["/media", "/mnt", "/run/media"];
    let there = dir.ancestors().find(|above| above.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("/"));
    let is_filled = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut names| names.next().is_some());
    let planned = fs::read_to_string("/etc/fstab").unwrap_or_default();
    let mut points = planned.lines().filter_map(|line| line.split_whitespace().nth(1));
    !is_filled(there)
        || REMOVABLE.iter().any(|place| dir.starts_with(place))
        || points.any(|point| point != "/" && dir.starts_with(point) && !is_mounted(point))
}

/// Whether a directory is a mount point, as far as its device number shows.
fn is_mounted(point: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    let point = Path::new(point);
    point.parent().is_some_and(|above| device(point) != device(above))
}

/// All known scratches, also those whose directory is gone.
fn look(places: &Places) -> Vec<Listed> {
    let mut all: Vec<Listed> = Vec::new();
    for dir in places.in_memory() {
        for (id, dir) in entries(dir) {
            if Layout::at(dir.clone()).state().symlink_metadata().is_ok() {
                all.push(Listed::at(dir, id, true));
            }
        }
    }
    for (id, link) in places.registry().map(entries).unwrap_or_default() {
        if let Ok(dir) = fs::read_link(&link)
            && !all.iter().any(|other| other.dir == dir)
        {
            all.push(Listed::at(dir, id, false));
        }
    }
    all.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    all
}

/// Names in a directory with their paths; empty if it cannot be read.
fn entries(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(found) = fs::read_dir(dir) else { return Vec::new() };
    found
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect()
}

/// Directories of scratches that a daemon left behind: scratches in memory that are not mounted,
/// and scratches whose directory is gone.
pub fn unused(places: &Places) -> Vec<PathBuf> {
    let mut all = look(places);
    all.retain(|listed| listed.is_gone() || (listed.in_memory && !listed.mounted));
    all.into_iter().map(|listed| listed.dir).collect()
}

/// Removes a scratch with all its content. `word` is its id, the first four or more digits of the
/// id, or its directory. Returns the directory.
///
/// # Errors
/// The scratch is unknown, the digits fit several ids, the directory is no scratch, the scratch is
/// in use, or its removal fails.
pub fn remove(places: &Places, word: &OsStr) -> Result<PathBuf, Failure> {
    let dir = find(places, word)?;
    let layout = Layout::at(dir);
    let (opened, state) = match read(&layout) {
        Ok(Some(found)) => found,
        Ok(None) if unlink(places, layout.dir()) => return Ok(layout.dir().to_owned()),
        Ok(None) => return Err(Failure::failed(layout.dir().shown(), "it is not a scratch")),
        Err(failure) => return Err(failure),
    };
    let mut lock = Lock::bare(&opened)?;
    lock.release();
    take_down(&opened, &state)?;
    unlink(places, layout.dir());
    Ok(layout.dir().to_owned())
}

/// Opens a scratch and reads its state; `None` if there is none.
fn read(layout: &Layout) -> Result<Option<(Opened, State)>, Failure> {
    let opened = match Opened::try_at(layout) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened.map_err(|errno| told(layout.dir(), "opening it", errno.into()))?,
    };
    let state = State::read(&opened)?;
    Ok(state.map(|state| (opened, state)))
}

/// Directory of the scratch that `word` names.
fn find(places: &Places, word: &OsStr) -> Result<PathBuf, Failure> {
    let shown = word.to_string_lossy();
    let all = look(places);
    let is_path = shown.contains('/');
    if is_path || (Path::new(word).is_dir() && !all.iter().any(|listed| listed.id == shown)) {
        let path = std::path::absolute(word).map_err(|error| told(Path::new(word), "", error))?;
        return Ok(fs::canonicalize(&path).unwrap_or(path));
    }
    let begins = |listed: &&Listed| shown.len() >= LEAST_DIGITS && listed.id.starts_with(&*shown);
    let mut found = all.iter().filter(|listed| listed.id == shown);
    if let Some(exact) = found.next() {
        return Ok(exact.dir.clone());
    }
    let near: Vec<&Listed> = all.iter().filter(begins).collect();
    match near.as_slice() {
        [one] => Ok(one.dir.clone()),
        [] => {
            Err(Failure::failed(shown, "there is no such scratch: `mmapfs scratches` lists them"))
        }
        _ => Err(Failure::failed(shown, "several scratches begin so: give more of the id")),
    }
}

/// Removes all links to a directory from the registry. Returns whether there was one.
fn unlink(places: &Places, dir: &Path) -> bool {
    let links = places.registry().map(entries).unwrap_or_default();
    let to_it = |link: &Path| fs::read_link(link).is_ok_and(|target| target == dir);
    links
        .iter()
        .filter(|(_, link)| to_it(link))
        .filter(|(_, link)| fs::remove_file(link).is_ok())
        .count()
        > 0
}

/// Removes a scratch that is not in use.
pub(super) fn take_down(opened: &Opened, state: &State) -> Result<(), Failure> {
    let layout = opened.layout();
    if state.kind == Kind::OwnTmpfs && place::unmount(layout).is_ok() {
        return Ok(());
    }
    let failed = |name, errno: Errno| Err(opened.told(name, "removing it", errno.into()));
    // The parts are moved to `work/`, which is emptied when a scratch is opened: an interrupted
    // removal leaves a scratch without changes, and never one with half of them.
    opened.make_directory(WORK)?;
    opened.empty_work()?;
    let work = opened.directory(WORK)?;
    // The frozen layers first: without them the rest is refused, and half of them never shown.
    for part in [LAYERS, UPPER, INDEX, PAGES] {
        match rustix::fs::renameat(opened.fd(), part, &work, part) {
            Err(errno) if errno != Errno::NOENT => return failed(part, errno),
            _ => {}
        }
    }
    if let Err(errno) = walk::remove(opened.fd(), WORK) {
        return failed(WORK, errno);
    }
    for file in [STATE, NEW_STATE, LOCK] {
        opened.remove_file(file)?;
    }
    match rustix::fs::unlinkat(rustix::fs::CWD, layout.dir(), AtFlags::REMOVEDIR) {
        // Files that do not belong to the scratch stay; so does the root of a filesystem.
        Err(errno) if !matches!(errno, Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {
            Err(told(layout.dir(), "removing it", errno.into()))
        }
        _ => Ok(()),
    }
}
