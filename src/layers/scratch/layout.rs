//! The parts of a scratch, and what a directory holds.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::state::State;
use super::told;
use crate::error::Failure;
use crate::shown::Show;

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
const OWN: [&str; 7] = ["upper", "work", "index", "pages", "lock", "state.json", "state.json.new"];
/// What a filesystem has in its root.
const OF_FILESYSTEM: &str = "lost+found";
/// An empty directory that a union is mounted on, as it usually lies beside its parts.
const MERGED: &str = "merged";
/// What overlayfs and fuse-overlayfs leave in their work directory.
const OF_WORK: [&str; 2] = ["work", "index"];

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

    /// The state file.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    pub(super) fn new_state(&self) -> PathBuf {
        self.dir.join("state.json.new")
    }

    /// The lock file.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// Looks at what the directory holds.
    ///
    /// # Errors
    /// It cannot be read; its state file is broken or of a newer version.
    pub(super) fn content(&self) -> Result<Content, Failure> {
        let names = below(&self.dir)?;
        if let Some(state) = State::read(self)? {
            return Ok(Content::Scratch(Box::new(state)));
        }
        let has = |name: &str| names.iter().any(|found| found == name);
        let known = |name: &OsStr| {
            OWN.iter().any(|own| name == *own) || name == OF_FILESYSTEM || name == MERGED
        };
        if let Some(foreign) = names.iter().find(|name| !known(name)) {
            return Ok(Content::Foreign(foreign.clone()));
        }
        let filled = |name: &str| match has(name) {
            true => below(&self.dir.join(name)).map(|names| !names.is_empty()),
            false => Ok(false),
        };
        if filled(MERGED)? {
            return Ok(Content::Foreign(MERGED.into()));
        }
        if has("work") {
            let left = |name: &&OsString| !OF_WORK.iter().any(|own| *name == own);
            if let Some(foreign) = below(&self.work())?.iter().find(left) {
                return Ok(Content::ForeignWork(foreign.clone()));
            }
        }
        if filled("upper")? {
            return Ok(Content::Upper);
        }
        for part in ["index", "pages"] {
            if filled(part)? {
                return Ok(Content::Foreign(part.into()));
            }
        }
        Ok(Content::Empty)
    }

    /// Makes the parts that are missing.
    pub(super) fn complete(&self) -> Result<(), Failure> {
        for part in [self.upper(), self.work(), self.index(), self.pages()] {
            match fs::DirBuilder::new().mode(0o700).create(&part) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let is_dir = fs::symlink_metadata(&part).is_ok_and(|found| found.is_dir());
                    if !is_dir {
                        return Err(Failure::failed(part.shown(), "it is not a directory"));
                    }
                }
                Err(error) => return Err(told(&part, "making it", error)),
            }
        }
        Ok(())
    }

    /// Closes the directories for the daemon alone to everybody else, whoever made them, and takes
    /// away what they have inherited from where they are: it would be handed on to what is made in
    /// them.
    pub(super) fn close_to_others(&self) {
        use std::os::unix::fs::PermissionsExt;
        for dir in [self.work(), self.index(), self.pages()] {
            let closed = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
            if let Err(error) = closed {
                log::warn!("{}: closing it to others: {error}", dir.shown());
            }
            drop_lists(&dir);
        }
    }

    /// Removes what is in `work/`.
    pub(super) fn empty_work(&self) -> Result<(), Failure> {
        let work = self.work();
        for name in below(&work)? {
            let path = work.join(name);
            let is_dir = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            if is_dir { remove_tree(&path) } else { fs::remove_file(&path) }
                .map_err(|error| told(&path, "removing what a daemon left there", error))?;
        }
        Ok(())
    }

    /// Tries out what the files of a scratch need of their filesystem.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn probe(&self) -> Result<(), Failure> {
        let work = self.work();
        let lacks = |what: &str, errno: Errno| match errno {
            Errno::ROFS => told(&work, "making a file", errno.into()),
            _ => Failure::failed(
                self.dir.shown(),
                format_args!(
                    "its filesystem {what} ({}): give scratch= a directory on one that does \
                     (ext4, xfs, btrfs, tmpfs)",
                    std::io::Error::from(errno)
                ),
            ),
        };
        let whiteout = work.join("whiteout");
        rustix::fs::mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0)
            .and_then(|()| rustix::fs::unlinkat(CWD, &whiteout, AtFlags::empty()))
            .map_err(|errno| lacks("takes no whiteouts (character devices 0:0)", errno))?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(&work, flags, Mode::RUSR | Mode::WUSR)
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

/// The names in a directory, sorted.
fn below(dir: &Path) -> Result<Vec<OsString>, Failure> {
    let mut names = fs::read_dir(dir)
        .and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, _>>()
        })
        .map_err(|error| told(dir, "reading it", error))?;
    names.sort();
    Ok(names)
}

/// Removes a tree; directories without permissions, as overlayfs leaves in `work/`, do not hinder
/// their owner.
pub(super) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        result => result,
    }
}

fn open_up(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes the access lists of a directory, which it may have inherited.
pub(super) fn drop_lists(dir: &Path) {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        // There is none, or the filesystem has none.
        let _ = rustix::fs::removexattr(dir, name);
    }
}
