//! Making a scratch.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, Uid, XattrFlags};

use super::layout::{Layout, remove_tree};
use super::lock::Lock;
use super::marks::Marks;
use super::place::{self, Places};
use super::state::{BaseId, Kind, State};
use super::{Scratch, limit_on_disk, registry, told};
use crate::config::ScratchConfig;
use crate::error::Failure;
use crate::shown::Show;

/// The largest attribute that Linux has (`XATTR_SIZE_MAX`), in bytes, which is the longest list
/// of names too.
const LARGEST_XATTR: usize = 65_536;

/// Makes a scratch in memory for one mount.
pub(super) fn in_memory(
    config: &ScratchConfig,
    base: &Path,
    mountpoint: &Path,
    places: &Places,
) -> Result<Scratch, Failure> {
    let id = new_id()?;
    let max = place::limit_in_memory(config.max)?;
    let base_id = BaseId::of(base)?;
    let (layout, kind) = places.make_in_memory(&id, max, base, mountpoint)?;
    let mut state = State::new(id, base_id, Marks::User, kind);
    state.max = max;
    state.copy_up = config.copy_up.unwrap_or(state.copy_up);
    let filled = Lock::take(&layout, mountpoint).and_then(|lock| {
        prepare(&layout, base).and_then(|marks| {
            state.marks = marks;
            state.write(&layout)?;
            Ok(lock)
        })
    });
    let started = filled.and_then(|lock| Scratch::start(layout.clone(), state.clone(), lock, true));
    if started.is_err() {
        // The first failure is the one to tell.
        let _ = registry::take_down(&layout, &state);
    }
    started
}

/// Makes a scratch in a directory that is empty, and takes away what it made where that fails.
pub(super) fn fill(
    layout: &Layout,
    config: &ScratchConfig,
    base: &Path,
    kind: Kind,
) -> Result<State, Failure> {
    let write = || {
        let marks = prepare(layout, base)?;
        let mut state = State::new(new_id()?, BaseId::of(base)?, marks, kind);
        state.max = config.max.map_or(Ok(None), |max| limit_on_disk(max, layout.dir()))?;
        state.copy_up = config.copy_up.unwrap_or(state.copy_up);
        state.write(layout)?;
        Ok(state)
    };
    write().inspect_err(|_| {
        for part in [layout.upper(), layout.work(), layout.index(), layout.pages()] {
            // The first failure is the one to tell.
            let _ = remove_tree(&part);
        }
        let _ = fs::remove_file(layout.lock());
    })
}

/// Makes the directories and tries out what they have to be able to do.
fn prepare(layout: &Layout, base: &Path) -> Result<Marks, Failure> {
    layout.complete()?;
    layout.probe()?;
    let marks = Marks::that_work(&layout.upper())?;
    dress(&layout.upper(), base)?;
    Ok(marks)
}

/// A name of 12 hexadecimal digits.
pub(super) fn new_id() -> Result<String, Failure> {
    const RANDOM: &str = "/dev/urandom";
    let mut bytes = [0; 6];
    File::open(RANDOM)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| told(Path::new(RANDOM), "reading it", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives `upper/` the attributes of the root of the base, which it stands for from now on. What
/// this user may not set stays as it is made: the directory of a user who may not give it away.
fn dress(upper: &Path, base: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| told(upper, "giving it the attributes of the base", error);
    let whole = fs::metadata(base).map_err(failed)?;
    let base = if whole.is_dir() { base } else { base.parent().unwrap_or(base) };
    let found = fs::metadata(base).map_err(failed)?;
    let (user, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    let owner = rustix::fs::chownat(CWD, upper, Some(user), Some(group), AtFlags::empty());
    if let Err(errno) = owner {
        log::debug!("{}: owner of the base: {errno}", upper.shown());
    }
    // What the place of the scratch hands down is no part of the tree.
    super::layout::drop_lists(upper);
    fs::set_permissions(upper, fs::Permissions::from_mode(found.mode() & 0o7777))
        .map_err(failed)?;
    copy_xattrs(base, upper);
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(found.atime(), found.atime_nsec()),
        last_modification: time(found.mtime(), found.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, upper, &times, AtFlags::empty())
        .map_err(|errno| failed(errno.into()))
}

/// Copies attributes and access lists under the names that a scratch stores them by. An attribute
/// that cannot be had is passed over.
fn copy_xattrs(from: &Path, to: &Path) {
    let mut names = vec![0; LARGEST_XATTR];
    let Ok(len) = rustix::fs::listxattr(from, &mut names[..]) else { return };
    let names = names.get(..len).unwrap_or_default();
    let mut value = vec![0; LARGEST_XATTR];
    for name in names.split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let stored = Marks::escape(name);
        let stored = std::ffi::OsStr::from_bytes(&stored);
        let name = std::ffi::OsStr::from_bytes(name);
        let copied = rustix::fs::getxattr(from, name, &mut value[..]).and_then(|len| {
            let value = value.get(..len).unwrap_or_default();
            rustix::fs::setxattr(to, stored, value, XattrFlags::empty())
        });
        if let Err(errno) = copied {
            log::debug!("{}: {} of the base: {errno}", to.shown(), name.shown());
        }
    }
}
