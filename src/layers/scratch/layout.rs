//! The parts of a scratch, and what a directory holds.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::opened::Opened;
use super::state::{NEW_STATE, State};
use crate::error::Failure;
use crate::shown::Show;
use crate::sys::walk;

pub(super) const UPPER: &CStr = c"upper";
pub(super) const WORK: &CStr = c"work";
pub(super) const INDEX: &CStr = c"index";
pub(super) const PAGES: &CStr = c"pages";
/// The frozen layers, by id.
pub(super) const LAYERS: &CStr = c"layers";
pub(super) const LOCK: &CStr = c"lock";
pub(super) const STATE: &CStr = c"state.json";

/// The directories of a scratch.
pub(super) const PARTS: [&CStr; 4] = [UPPER, WORK, INDEX, PAGES];

/// Where the parts of a scratch are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    dir: PathBuf,
}

/// What a directory holds.
#[derive(Debug, PartialEq)]
pub(super) enum Content {
    /// A scratch.
    Scratch(Box<State>),
    /// Nothing, or what is left of the making of a scratch.
    Empty,
    /// `upper/` of overlayfs, of fuse-overlayfs, or of a scratch whose state is lost.
    Upper,
    /// Something else, for instance this.
    Foreign(OsString),
    /// `work/` with something in it that overlayfs does not leave there.
    ForeignWork(OsString),
}

/// The names of a scratch, and what may lie beside `upper/` of overlayfs.
const OWN: [&CStr; 8] = [UPPER, WORK, INDEX, PAGES, LAYERS, LOCK, STATE, NEW_STATE];
/// What a filesystem has in its root.
const OF_FILESYSTEM: &CStr = c"lost+found";
/// An empty directory that a union is mounted on, as it usually lies beside its parts.
const MERGED: &CStr = c"merged";
/// What overlayfs and fuse-overlayfs leave in their work directory.
const OF_WORK: [&CStr; 2] = [WORK, INDEX];

impl Layout {
    /// Those of the scratch in a directory.
    pub fn at(dir: PathBuf) -> Layout {
        Layout { dir }
    }

    /// The scratch itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The upper directory: what is new, changed or gone.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// Files that are being made; empty when the scratch is opened. It is on the filesystem of
    /// `upper/`.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The hard links of the base, by inode.
    pub fn index(&self) -> PathBuf {
        self.dir.join("index")
    }

    /// The page maps of files of which only some pages are here.
    pub fn pages(&self) -> PathBuf {
        self.dir.join("pages")
    }

    /// The directory of a frozen layer, which has parts as the scratch has: `upper/`, `index/` and
    /// `pages/`.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.dir.join("layers").join(id)
    }

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// The lock file.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
}

impl Opened {
    /// Looks at what the directory holds.
    ///
    /// # Errors
    /// It cannot be read; its state file is broken or of a newer version.
    pub(super) fn content(&self) -> Result<Content, Failure> {
        let names = self.names(c".")?;
        if let Some(state) = State::read(self)? {
            return Ok(Content::Scratch(Box::new(state)));
        }
        let has = |name: &CStr| names.iter().any(|found| is(found, name));
        let known =
            |name: &OsStr| OWN.iter().chain(&[OF_FILESYSTEM, MERGED]).any(|own| is(name, own));
        if let Some(foreign) = names.iter().find(|name| !known(name)) {
            return Ok(Content::Foreign(foreign.clone()));
        }
        let filled = |name: &CStr| match has(name) {
            true => self.names(name).map(|names| !names.is_empty()),
            false => Ok(false),
        };
        if filled(MERGED)? {
            return Ok(Content::Foreign(shown(MERGED)));
        }
        if has(WORK) {
            let left = |name: &&OsString| !OF_WORK.iter().any(|own| is(name, own));
            if let Some(foreign) = self.names(WORK)?.iter().find(left) {
                return Ok(Content::ForeignWork(foreign.clone()));
            }
        }
        // Without the state nobody knows their order.
        if filled(LAYERS)? {
            return Ok(Content::Foreign(shown(LAYERS)));
        }
        if filled(UPPER)? {
            return Ok(Content::Upper);
        }
        for part in [INDEX, PAGES] {
            if filled(part)? {
                return Ok(Content::Foreign(shown(part)));
            }
        }
        Ok(Content::Empty)
    }

    /// Makes the parts that are missing.
    ///
    /// # Errors
    /// One is no directory, or somebody else's.
    pub(super) fn complete(&self) -> Result<(), Failure> {
        for part in PARTS {
            self.make_directory(part)?;
            self.directory(part)?;
        }
        Ok(())
    }

    /// Closes the directories for the daemon alone to everybody else, whoever made them, and takes
    /// away what they have inherited from where they are: it would be handed on to what is made in
    /// them.
    pub(super) fn close_to_others(&self) -> Result<(), Failure> {
        for part in [WORK, INDEX, PAGES] {
            let dir = self.directory(part)?;
            if let Err(errno) = rustix::fs::fchmod(&dir, Mode::RWXU) {
                let failure = self.told(part, "closing it to others", errno.into());
                log::warn!("{failure}");
            }
            drop_lists(&dir);
        }
        Ok(())
    }

    /// Refuses a copy of a scratch in whose index a file of a frozen layer is known by its inode
    /// number, which is another one in the copy: its names would be two files.
    pub(super) fn check_index(&self) -> Result<(), Failure> {
        let is_of_frozen = |name: &OsString| {
            let number = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            number.is_some_and(|number| number >> 48 != 0)
        };
        if !self.names(INDEX)?.iter().any(is_of_frozen) {
            return Ok(());
        }
        let reason = "it is a copy of a scratch in which files of a frozen layer with several names \
                      were changed, and a copy cannot tell these";
        Err(Failure::failed(self.path().shown(), reason))
    }

    /// Removes what is in `work/`.
    pub(super) fn empty_work(&self) -> Result<(), Failure> {
        let work = Arc::new(self.directory(WORK)?);
        let emptied = walk::names_in(&work)
            .and_then(|names| names.iter().try_for_each(|name| walk::remove(&*work, name)));
        emptied.map_err(|errno| self.told(WORK, "removing what a daemon left there", errno.into()))
    }

    /// Tries out what the files of a scratch need of their filesystem.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn probe(&self) -> Result<(), Failure> {
        let lacks = |what: &str, errno: Errno| match errno {
            Errno::ROFS => self.told(WORK, "making a file", errno.into()),
            _ => Failure::failed(
                self.path().shown(),
                format_args!(
                    "its filesystem {what} ({}): give scratch= a directory on one that does \
                     (ext4, xfs, btrfs, tmpfs)",
                    std::io::Error::from(errno)
                ),
            ),
        };
        let work = self.directory(WORK)?;
        let whiteout = c"whiteout";
        rustix::fs::mknodat(&work, whiteout, FileType::CharacterDevice, Mode::empty(), 0)
            .and_then(|()| rustix::fs::unlinkat(&work, whiteout, AtFlags::empty()))
            .map_err(|errno| lacks("takes no whiteouts (character devices 0:0)", errno))?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(&work, c".", flags, Mode::RUSR | Mode::WUSR)
            .map(drop)
            .map_err(|errno| lacks("makes no files without names (O_TMPFILE)", errno))
    }
}

impl Content {
    /// Refuses what can be no scratch.
    pub(super) fn acceptable(self, layout: &Layout) -> Result<(), Failure> {
        match self {
            Content::Scratch(_) | Content::Empty | Content::Upper => Ok(()),
            other => Err(other.refusal(layout)),
        }
    }

    pub(super) fn refusal(&self, layout: &Layout) -> Failure {
        let reason = match self {
            Content::Foreign(name) => format!(
                "it is neither empty nor a scratch: {} lies in it",
                name.to_string_lossy().escape_debug()
            ),
            Content::ForeignWork(name) => format!(
                "it is no scratch: work/ would be emptied, and {} lies in it",
                name.to_string_lossy().escape_debug()
            ),
            Content::Scratch(_) | Content::Empty | Content::Upper => "it has changed".into(),
        };
        Failure::failed(layout.dir.shown(), reason)
    }
}

fn is(name: &OsStr, own: &CStr) -> bool {
    name.as_bytes() == own.to_bytes()
}

fn shown(name: &CStr) -> OsString {
    OsStr::from_bytes(name.to_bytes()).to_owned()
}

/// Removes the access lists of an open directory, which it may have inherited.
pub(super) fn drop_lists(dir: impl AsFd) {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        // There is none, or the filesystem has none.
        let _ = rustix::fs::fremovexattr(&dir, name);
    }
}
