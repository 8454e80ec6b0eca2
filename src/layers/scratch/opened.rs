//! Open directory of a scratch, through which all its parts are opened.
//!
//! Other users may have made the content, and may change it at any moment. So each part is opened
//! by one name relative to an open directory, without following symbolic links, crossing mounts or
//! blocking. An opened part has to be a directory, or a regular file with one link that belongs to
//! this user or root. Paths are used in messages only.

use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::layout::{LAYERS, Layout};
use super::told;
use crate::error::Failure;
use crate::shown::Show;
use crate::sys::{beneath, walk};

/// The f_type of a tmpfs (linux/magic.h).
pub(super) const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Flags to open a directory.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Open directory of a scratch.
#[derive(Debug)]
pub(super) struct Opened {
    layout: Layout,
    dir: Arc<OwnedFd>,
}

impl Opened {
    /// Opens the directory at the place of a scratch.
    ///
    /// # Errors
    /// Errors of open(2).
    pub(super) fn at(layout: &Layout) -> Result<Opened, Failure> {
        Opened::try_at(layout).map_err(|errno| told(layout.dir(), "opening it", errno.into()))
    }

    /// As [`Opened::at`], with an errno as the error.
    pub(super) fn try_at(layout: &Layout) -> Result<Opened, Errno> {
        let dir = rustix::fs::open(layout.dir(), DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Opened { layout: layout.clone(), dir: Arc::new(dir) })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn path(&self) -> &Path {
        self.layout.dir()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Failure of `doing` on the part `name`.
    pub(super) fn told(&self, name: &CStr, doing: &str, error: io::Error) -> Failure {
        told(&self.path().join(shown(name)), doing, error)
    }

    fn refused(&self, name: &CStr, reason: impl std::fmt::Display) -> Failure {
        Failure::failed(self.path().join(shown(name)).shown(), reason)
    }

    /// Sorted names in the directory `part` of the scratch (`.` for the scratch itself).
    pub(super) fn names(&self, part: &CStr) -> Result<Vec<OsString>, Failure> {
        let failed = |errno: Errno| match part {
            part if part == c"." => told(self.path(), "reading it", errno.into()),
            part => self.told(part, "reading it", errno.into()),
        };
        let dir = beneath::open(self.fd(), part, DIRECTORY, Mode::empty()).map_err(failed)?;
        let names = walk::names_in(&Arc::new(dir)).map_err(failed)?;
        let text = |name: CString| OsString::from_vec(name.into_bytes());
        let mut names: Vec<OsString> = names.into_iter().map(text).collect();
        names.sort();
        Ok(names)
    }

    /// Opens the file `name` of the scratch; `None` if there is none.
    ///
    /// # Errors
    /// It is no regular file, belongs to another user, or has another link; errors of open(2).
    pub(super) fn file(&self, name: &CStr, flags: OFlags) -> Result<Option<File>, Failure> {
        let file = match beneath::open(self.fd(), name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(self.refused(name, "it is a symbolic link, and no file of a scratch"));
            }
            // A FIFO without a reader, a socket, or a device without a driver.
            Err(Errno::NXIO) => return Err(self.refused(name, "it is not a regular file")),
            Err(errno) => return Err(self.told(name, "opening it", errno.into())),
        };
        let found = rustix::fs::fstat(&file)
            .map_err(|errno| self.told(name, "looking at it", errno.into()))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(self.refused(name, "it is not a regular file"));
        }
        self.check_owner(name, found.st_uid)?;
        if found.st_nlink > 1 {
            let reason =
                format_args!("it has {} names, and may be a file of others", found.st_nlink);
            return Err(self.refused(name, reason));
        }
        Ok(Some(file.into()))
    }

    fn check_owner(&self, name: &CStr, owner: u32) -> Result<(), Failure> {
        let me = rustix::process::geteuid().as_raw();
        if owner == me || owner == 0 {
            return Ok(());
        }
        let reason = format_args!("it belongs to user {owner}, not to user {me} or root");
        Err(self.refused(name, reason))
    }

    /// Content of the file `name`; `None` if there is none.
    ///
    /// # Errors
    /// As [`Opened::file`]; the file is larger than `largest` bytes; errors of read(2).
    pub(super) fn read(&self, name: &CStr, largest: u64) -> Result<Option<Vec<u8>>, Failure> {
        let Some(file) = self.file(name, OFlags::RDONLY)? else { return Ok(None) };
        let mut content = Vec::new();
        file.take(largest + 1)
            .read_to_end(&mut content)
            .map_err(|error| self.told(name, "reading it", error))?;
        if content.len() as u64 > largest {
            let reason = format_args!("it is larger than {largest} bytes");
            return Err(self.refused(name, reason));
        }
        Ok(Some(content))
    }

    /// Replaces the file `name` by one with this content, atomically and durably. `new` is the name
    /// of the temporary file.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn replace(
        &self,
        (name, new): (&CStr, &CStr),
        content: &[u8],
    ) -> Result<(), Failure> {
        let failed = |errno: Errno| self.told(name, "writing it", errno.into());
        self.remove_file(new)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = beneath::open(self.fd(), new, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let mut file = File::from(file);
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(|error| self.told(name, "writing it", error))?;
        rustix::fs::renameat(self.fd(), new, self.fd(), name).map_err(failed)?;
        rustix::fs::fsync(&*self.dir).map_err(failed)
    }

    /// Removes the file `name` if it exists.
    pub(super) fn remove_file(&self, name: &CStr) -> Result<(), Failure> {
        match rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.told(name, "removing it", errno.into())),
        }
    }

    /// Opens the directory `name` of the scratch. It has to belong to this user or root, except
    /// `upper`, which has the owner of the base.
    ///
    /// # Errors
    /// It is no directory, is a mount point, or belongs to another user; errors of open(2).
    pub(super) fn directory(&self, name: &CStr) -> Result<OwnedFd, Failure> {
        let dir = match beneath::open(self.fd(), name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(self.refused(name, "it is not a directory"));
            }
            Err(Errno::XDEV) => return Err(self.refused(name, "something is mounted on it")),
            dir => dir.map_err(|errno| self.told(name, "opening it", errno.into()))?,
        };
        if name != super::layout::UPPER {
            let found = rustix::fs::fstat(&dir)
                .map_err(|errno| self.told(name, "looking at it", errno.into()))?;
            self.check_owner(name, found.st_uid)?;
        }
        Ok(dir)
    }

    /// Opens the directory of a frozen layer.
    ///
    /// # Errors
    /// There is none; it is no directory, or somebody else's; those of open(2).
    pub(super) fn layer(&self, id: &str) -> Result<Opened, Failure> {
        let layers = self.directory(LAYERS)?;
        let layout = Layout::at(self.layout.layer(id));
        let failed = |errno: Errno| told(layout.dir(), "opening it", errno.into());
        let name = CString::new(id).map_err(|_| failed(Errno::INVAL))?;
        let dir = beneath::open(&layers, &name, DIRECTORY, Mode::empty()).map_err(failed)?;
        let owner = rustix::fs::fstat(&dir).map_err(failed)?.st_uid;
        self.check_owner(LAYERS, owner)?;
        Ok(Opened { layout, dir: Arc::new(dir) })
    }

    /// The same of a layer that is made where there is none.
    pub(super) fn make_layer(&self, id: &str) -> Result<Opened, Failure> {
        match rustix::fs::mkdirat(self.directory(LAYERS)?, id, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => self.layer(id),
            Err(errno) => Err(told(&self.layout.layer(id), "making it", errno.into())),
        }
    }

    /// Makes the directory `name` with mode 0700, unless the name exists.
    pub(super) fn make_directory(&self, name: &CStr) -> Result<(), Failure> {
        match rustix::fs::mkdirat(self.fd(), name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(self.told(name, "making it", errno.into())),
        }
    }

    /// Whether the scratch is in a tmpfs, and whether it is the root of the tmpfs.
    pub(super) fn in_tmpfs(&self) -> (bool, bool) {
        let is_tmpfs =
            rustix::fs::fstatfs(&*self.dir).is_ok_and(|found| found.f_type == TMPFS_MAGIC);
        let device = |name: &CStr| {
            let found = rustix::fs::statat(&*self.dir, name, AtFlags::empty());
            found.map(|found| found.st_dev)
        };
        let is_root = device(c".").is_ok_and(|here| device(c"..").is_ok_and(|above| above != here));
        (is_tmpfs, is_tmpfs && is_root)
    }
}

fn shown(name: &CStr) -> OsString {
    OsString::from_vec(name.to_bytes().to_vec())
}
