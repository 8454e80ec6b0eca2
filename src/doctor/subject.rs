//! The directory that an examination is about.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::config::MountTable;
use crate::config::mountinfo::Answer;
use crate::error::Failure;
use crate::shown::{Name, Show};

/// Number of names that are looked at in search of a file that can be read.
const MOST_NAMES: usize = 1000;

/// An open directory, and what can be had in it.
pub(super) struct Subject {
    path: PathBuf,
    dir: OwnedFd,
    /// The type of its filesystem.
    pub fstype: Option<String>,
    /// Two files in it without names, to write to; or why not.
    pub scratch: Result<(File, File), Errno>,
    /// A file that is in it already.
    sample: Option<OwnedFd>,
}

impl Subject {
    /// Opens it.
    ///
    /// # Errors
    /// Kind `Failed`: it is missing, no directory, not to be read, or its filesystem does not
    /// answer.
    pub fn open(path: &Path) -> Result<Subject, Failure> {
        let failed = |reason: String| Failure::failed(path.shown(), reason);
        let opening = |error: std::io::Error| failed(format!("opening the directory: {error}"));
        let absolute = std::path::absolute(path).map_err(opening)?;
        let table = MountTable::read()
            .map_err(|error| failed(format!("reading the table of mounts: {error}")))?;
        let silent = table
            .above(&absolute)
            .is_some_and(|mount| mount.is_fuse() && mount.answer() == Answer::Silent);
        if silent {
            return Err(failed("the mount that it lies in does not answer".into()));
        }
        let absolute = absolute.canonicalize().map_err(opening)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&absolute, flags, Mode::empty())
            .map_err(|errno| opening(errno.into()))?;
        let scratch = scratch_file(&dir).and_then(|one| Ok((one, scratch_file(&dir)?)));
        let sample = if scratch.is_ok() { None } else { sample_file(&dir) };
        let fstype = table.above(&absolute).map(|mount| mount.fstype.clone());
        Ok(Subject { path: absolute, dir, fstype, scratch, sample })
    }

    /// Its path, absolute.
    pub fn name(&self) -> Name {
        Name::from(&self.path)
    }

    /// The directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A file on its filesystem.
    pub fn backing(&self) -> Option<BorrowedFd<'_>> {
        match &self.scratch {
            Ok((file, _)) => Some(file.as_fd()),
            Err(_) => self.sample.as_ref().map(AsFd::as_fd),
        }
    }
}

/// A file without a name.
fn scratch_file(dir: &OwnedFd) -> Result<File, Errno> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match rustix::fs::openat(dir, ".", flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        // Filesystems that do not know it, and kernels that take it for opening a directory.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let name = format!(".mmapfs-doctor-{}", std::process::id());
    let file = rustix::fs::openat(dir, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
    Ok(file.into())
}

/// Any regular file that can be read.
fn sample_file(dir: &OwnedFd) -> Option<OwnedFd> {
    let names = Dir::read_from(dir).ok()?.take(MOST_NAMES).flatten();
    let regular = names.filter(|entry| entry.file_type() == FileType::RegularFile);
    // Not to wait for anything, should a name mean another file by now.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    regular
        .filter_map(|entry| rustix::fs::openat(dir, entry.file_name(), flags, Mode::empty()).ok())
        .find(|file| {
            rustix::fs::fstat(file)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        })
}
