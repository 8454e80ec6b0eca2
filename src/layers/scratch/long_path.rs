//! Paths that are too long for an xattr, each in a file `pages/ID.path`.
//!
//! The value of an xattr has at most 65,536 bytes, and on ext4 all xattrs of a file share one
//! block.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::str::FromStr;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::layers::pages::{MapError, MapId};
use crate::sys::beneath;

/// Longest path that is stored in an overlay xattr, in bytes. It leaves room for the other xattrs.
pub const LONGEST_IN_MARK: usize = 1024;

/// Longest path that is read from a file, in bytes.
const LONGEST: u64 = 64 << 20;

const SUFFIX: &str = ".path";

/// Id of a stored path: its file is `pages/ID.path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathId(pub u64);

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", MapId(self.0))
    }
}

impl FromStr for PathId {
    type Err = MapError;

    fn from_str(digits: &str) -> Result<PathId, MapError> {
        digits.parse().map(|MapId(id)| PathId(id))
    }
}

impl PathId {
    /// Id for a file name in `pages/`; `None` if the file stores no path.
    pub(super) fn of_file(name: &str) -> Option<PathId> {
        name.strip_suffix(SUFFIX)?.parse().ok()
    }

    fn file(self) -> Result<CString, Errno> {
        CString::new(format!("{self}{SUFFIX}")).map_err(|_| Errno::INVAL)
    }

    /// Stores a path durably under a new id.
    ///
    /// # Errors
    /// Errors of the filesystem; the file is removed then.
    pub fn store(pages: impl AsFd, path: &[u8]) -> Result<PathId, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let (id, file) = loop {
            let id = PathId(MapId::random().0);
            match beneath::open(&pages, &id.file()?, flags, Mode::RUSR | Mode::WUSR) {
                Err(Errno::EXIST) => {}
                file => break (id, file?),
            }
        };
        let mut file = File::from(file);
        let written = file.write_all(path).and_then(|()| file.sync_all());
        let written = written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let durable = written.and_then(|()| rustix::fs::fsync(&pages));
        if let Err(errno) = durable {
            let _ = PathId::remove(id, pages); // The first failure is the one to report.
            return Err(errno);
        }
        Ok(id)
    }

    /// Reads the stored path.
    ///
    /// # Errors
    /// EIO if it is no regular file with one link; errors of open(2) and read(2).
    pub fn read(self, pages: impl AsFd) -> Result<Vec<u8>, Errno> {
        let file = beneath::open(pages, &self.file()?, OFlags::RDONLY, Mode::empty())?;
        let found = rustix::fs::fstat(&file)?;
        let is_file = rustix::fs::FileType::from_raw_mode(found.st_mode).is_file();
        if !is_file || found.st_nlink > 1 {
            return Err(Errno::IO);
        }
        let mut path = Vec::new();
        File::from(file)
            .take(LONGEST)
            .read_to_end(&mut path)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(path)
    }

    /// Removes the stored path.
    ///
    /// # Errors
    /// Errors of unlink(2).
    pub fn remove(self, pages: impl AsFd) -> Result<(), Errno> {
        rustix::fs::unlinkat(pages, self.file()?, AtFlags::empty())
    }
}
