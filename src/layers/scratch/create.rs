//! Making a scratch.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::layout::{LOCK, PARTS, UPPER};
use super::lock::Lock;
use super::opened::Opened;
use super::place::{self, Places};
use super::state::{BaseId, Kind, State};
use super::xattr_namespace::XattrNamespace;
use super::{Scratch, limit_on_disk, registry, told};
use crate::config::ScratchConfig;
use crate::error::Failure;
use crate::shown::Show;
use crate::sys::walk;

/// The largest attribute that Linux has (`XATTR_SIZE_MAX`), in bytes, which is the longest list
/// of names too.
pub(super) const LARGEST_XATTR: usize = 65_536;

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
    let mut state = State::new(id, base_id, XattrNamespace::User, kind);
    state.max = max;
    state.copy_up = config.copy_up.unwrap_or(state.copy_up);
    let filled = Opened::at(&layout).and_then(|opened| {
        let lock = Lock::take(&opened, mountpoint)?;
        state.marks = prepare(&opened, base)?;
        state.write(&opened)?;
        Ok((opened, lock))
    });
    let started =
        filled.and_then(|(opened, lock)| Scratch::start(opened, state.clone(), lock, true));
    if started.is_err()
        && let Ok(opened) = Opened::at(&layout)
    {
        // The first failure is the one to tell.
        let _ = registry::take_down(&opened, &state);
    }
    started
}

/// Makes a scratch in a directory that is empty, and takes away what it made where that fails.
pub(super) fn fill(
    opened: &Opened,
    config: &ScratchConfig,
    base: &Path,
    kind: Kind,
) -> Result<State, Failure> {
    let write = || {
        let marks = prepare(opened, base)?;
        let mut state = State::new(new_id()?, BaseId::of(base)?, marks, kind);
        state.max = config.max.map_or(Ok(None), |max| limit_on_disk(max, opened))?;
        state.copy_up = config.copy_up.unwrap_or(state.copy_up);
        state.write(opened)?;
        Ok(state)
    };
    write().inspect_err(|_| {
        for part in PARTS.into_iter().chain([LOCK]) {
            // The first failure is the one to tell.
            let _ = walk::remove(opened.fd(), part);
        }
    })
}

/// Makes the directories and tries out what they have to be able to do.
fn prepare(opened: &Opened, base: &Path) -> Result<XattrNamespace, Failure> {
    opened.complete()?;
    opened.probe()?;
    let (upper, path) = (opened.directory(UPPER)?, opened.layout().upper());
    let marks = XattrNamespace::that_work(&upper, &path)?;
    dress((upper.as_fd(), &path), base)?;
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
fn dress((upper, path): (BorrowedFd<'_>, &Path), base: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| told(path, "giving it the attributes of the base", error);
    let whole = fs::metadata(base).map_err(failed)?;
    let base = if whole.is_dir() { base } else { base.parent().unwrap_or(base) };
    let found = fs::metadata(base).map_err(failed)?;
    let (user, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
    let owner = rustix::fs::fchown(upper, Some(user), Some(group));
    if let Err(errno) = owner {
        log::debug!("{}: owner of the base: {errno}", path.shown());
    }
    // What the place of the scratch hands down is no part of the tree.
    super::layout::drop_lists(upper);
    rustix::fs::fchmod(upper, Mode::from_raw_mode(found.mode() & 0o7777))
        .map_err(|errno| failed(errno.into()))?;
    copy_xattrs(base, (upper, path));
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(found.atime(), found.atime_nsec()),
        last_modification: time(found.mtime(), found.mtime_nsec()),
    };
    rustix::fs::futimens(upper, &times).map_err(|errno| failed(errno.into()))
}

/// Copies attributes and access lists under the names that a scratch stores them by. An attribute
/// that cannot be had is passed over.
fn copy_xattrs(from: &Path, (to, path): (BorrowedFd<'_>, &Path)) {
    let mut names = vec![0; LARGEST_XATTR];
    let Ok(len) = rustix::fs::listxattr(from, &mut names[..]) else { return };
    let names = names.get(..len).unwrap_or_default();
    let mut value = vec![0; LARGEST_XATTR];
    for name in names.split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let stored = XattrNamespace::escape(name);
        let stored = std::ffi::OsStr::from_bytes(&stored);
        let name = std::ffi::OsStr::from_bytes(name);
        let copied = rustix::fs::getxattr(from, name, &mut value[..]).and_then(|len| {
            let value = value.get(..len).unwrap_or_default();
            rustix::fs::fsetxattr(to, stored, value, XattrFlags::empty())
        });
        if let Err(errno) = copied {
            log::debug!("{}: {} of the base: {errno}", path.shown(), name.shown());
        }
    }
}
