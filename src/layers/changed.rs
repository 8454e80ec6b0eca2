//! Detection of partial copies whose base has changed while the scratch was not mounted.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::pages::{Comparison, Doubt, Fingerprint, MapAccess, MapId, PageMap};
use super::scratch::{Partial, Scratch};
use crate::config::BaseChanged;
use crate::error::Failure;
use crate::shown::Show;

/// Largest number of files that a message names.
const NAMED: usize = 3;

/// Fate of the base of a partial copy, or of a base file that the scratch covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was written, resized or replaced.
    Changed,
    /// Its path leads to nothing in the base.
    Missing,
    /// A change cannot be ruled out.
    Unknown(Doubt),
    /// The scratch has a file or directory in its place, and it has changed.
    CoveredChanged,
    /// The scratch has a file or directory in its place, and it is gone.
    CoveredMissing,
    /// The scratch has removed it, and it has changed.
    RemovedChanged,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::Changed => "its base has changed",
            Fate::Missing => "its base is gone",
            Fate::Unknown(Doubt::Racy) => "its base was written just before the first touch",
            Fate::Unknown(Doubt::OnlyCtime) => "attributes of its base have changed, or more",
            Fate::CoveredChanged => "the file of the base that it replaces has changed",
            Fate::CoveredMissing => "the file of the base that it replaces is gone",
            Fate::RemovedChanged => "it is removed here, and has changed in the base",
        })
    }
}

/// Path under the mount of a partial copy, and the fate of its base.
pub type Changed = (PathBuf, Fate);

/// Compares the base of each partial copy with its fingerprint at first touch. Returns the files
/// whose base is not known to be unchanged, sorted by path. A file whose page map cannot be read is
/// left out: its open fails with a message.
pub fn find(scratch: &Scratch, pages: impl AsFd, base: BorrowedFd<'_>) -> Vec<Changed> {
    let mut found = Vec::new();
    for Partial { path, below, pages: id } in scratch.partial() {
        let fate = fate(&pages, *id, fingerprint(base, below));
        found.extend(fate.map(|fate| (path.clone(), fate)));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// The fate of the base of a partial copy, by its page map and the base as it is now; `None` where
/// it is as it was, or nothing of it shows.
pub fn fate(pages: impl AsFd, id: MapId, now: Result<Fingerprint, Errno>) -> Option<Fate> {
    let expected = PageMap::fingerprint(&pages, id).ok()?;
    let fate = match now.map(|now| expected.compare(&now)) {
        Ok(Comparison::Same) => return None,
        Ok(Comparison::Changed) => Fate::Changed,
        Ok(Comparison::Unknown(doubt)) => Fate::Unknown(doubt),
        Err(_) => Fate::Missing,
    };
    let map = PageMap::open(&pages, id, MapAccess::Read);
    let is_complete = map.is_ok_and(|map| map.is_complete());
    Some(fate).filter(|_| !is_complete)
}

/// Fingerprint of the file at a path below the base. No symbolic link is followed.
fn fingerprint(base: BorrowedFd<'_>, below: &Path) -> Result<Fingerprint, Errno> {
    let below = below.strip_prefix("/").unwrap_or(below);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Fingerprint::of(rustix::fs::openat2(base, below, flags, Mode::empty(), resolve)?)
}

/// Logs the files that were found, or refuses the mount, by `base_changed=`.
///
/// # Errors
/// With `base_changed=refuse`, when `found` is not empty.
pub fn judge(found: &[Changed], choice: BaseChanged, scratch: &Path) -> Result<(), Failure> {
    if found.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> =
        found.iter().take(NAMED).map(|(path, fate)| format!("{} ({fate})", path.shown())).collect();
    if found.len() > NAMED {
        named.push(format!("and {} more", found.len() - NAMED));
    }
    let what = format!(
        "{} files were copied in part over a base that is not known to be the same: {}",
        found.len(),
        named.join(", ")
    );
    match choice {
        BaseChanged::Refuse => Err(Failure::failed(
            scratch.shown(),
            format!("{what}; mount with base_changed=eio to read what the scratch has of them"),
        )),
        BaseChanged::Eio => {
            log::warn!(
                "{}: {what}; where it has changed its pages are refused (EIO), and those of the \
                 scratch are shown; base_changed=mix shows both, `status` lists the files",
                scratch.shown()
            );
            Ok(())
        }
        BaseChanged::Mix => {
            log::warn!("{}: {what}; base_changed=mix: both are shown", scratch.shown());
            Ok(())
        }
    }
}
