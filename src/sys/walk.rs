//! Walks through a tree of directories of any depth and width.
//!
//! A directory is read as a whole and its names are kept; the next level opens one of them. A few
//! of the directories on the way stay open, and a level that is no longer open is reached again by
//! `..`, or by the names from the top where it was moved meanwhile. So a walk needs a fixed number
//! of descriptors and no stack, whatever clients have made.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::dir::DirStream;

#[cfg(test)]
mod tests;

/// The most directories of the way down that stay open. A directory without the right to pass
/// through it is left by the one above it, so there are two at least.
const KEPT: usize = 8;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The work at each file and directory of a walk.
pub trait Visitor {
    /// Sees a file or directory, before what is in it: the open directory that it lies in, its name
    /// there, and its attributes. It may be removed.
    ///
    /// # Errors
    /// Any, which end the walk.
    fn see(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno>;

    /// Leaves a directory, after what is in it.
    ///
    /// # Errors
    /// Any, which end the walk.
    fn leave(&mut self, _dir: BorrowedFd<'_>, _name: &CStr) -> Result<(), Errno> {
        Ok(())
    }
}

impl<F: FnMut(BorrowedFd<'_>, &CStr, &Stat) -> Result<(), Errno>> Visitor for F {
    fn see(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        self(dir, name, stat)
    }
}

/// A directory on the way down.
struct Level {
    /// Its name in the one above.
    name: CString,
    id: (u64, u64),
    /// The names in it that were not seen yet.
    names: Vec<CString>,
}

struct Walk {
    top: OwnedFd,
    levels: Vec<Level>,
    /// The last levels, open.
    open: VecDeque<Arc<OwnedFd>>,
}

/// Visits everything below an open directory, itself not, and no other filesystem.
///
/// # Errors
/// Errors of reading the directories and of the visitor. A name that vanishes meanwhile is passed
/// over.
pub fn walk(top: impl AsFd, visitor: &mut impl Visitor) -> Result<(), Errno> {
    let whole = rustix::fs::fstat(&top)?;
    // A stream of its own: the position of the other may be in use.
    let top = rustix::fs::openat(top, c".", DIRECTORY, Mode::empty())?;
    let mut walk = Walk { top, levels: Vec::new(), open: VecDeque::new() };
    let first = rustix::fs::openat(&walk.top, c".", DIRECTORY, Mode::empty())?;
    walk.enter(c"".to_owned(), first)?;
    while let (Some(level), Some(dir)) = (walk.levels.last_mut(), walk.open.back()) {
        let Some(name) = level.names.pop() else {
            walk.leave(visitor)?;
            continue;
        };
        let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        if stat.st_dev != whole.st_dev {
            continue;
        }
        visitor.see(dir.as_fd(), &name, &stat)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        match rustix::fs::openat(dir, &name, DIRECTORY, Mode::empty()) {
            // It was removed, or something else is there by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            below => walk.enter(name, below?)?,
        }
    }
    Ok(())
}

impl Walk {
    fn enter(&mut self, name: CString, dir: OwnedFd) -> Result<(), Errno> {
        let dir = Arc::new(dir);
        let names = match names_in(&dir) {
            Err(Errno::NOENT) => Vec::new(), // It was removed.
            names => names?,
        };
        self.levels.push(Level { name, id: identity(&dir)?, names });
        self.open.push_back(dir);
        if self.open.len() > KEPT {
            self.open.pop_front();
        }
        Ok(())
    }

    fn leave(&mut self, visitor: &mut impl Visitor) -> Result<(), Errno> {
        let (Some(left), Some(dir)) = (self.levels.pop(), self.open.pop_back()) else {
            return Ok(());
        };
        let Some(above) = self.levels.last() else { return Ok(()) };
        if self.open.is_empty() {
            let up = rustix::fs::openat(&*dir, c"..", DIRECTORY, Mode::empty());
            match up {
                Ok(up) if identity(&up)? == above.id => self.open.push_back(Arc::new(up)),
                _ => return self.find_again(),
            }
        }
        match self.open.back() {
            Some(above) => visitor.leave(above.as_fd(), &left.name),
            None => Ok(()),
        }
    }

    /// Goes on in the lowest directory of the way that is still where it was.
    fn find_again(&mut self) -> Result<(), Errno> {
        let mut dir = rustix::fs::openat(&self.top, c".", DIRECTORY, Mode::empty())?;
        let mut there = 1;
        for level in self.levels.iter().skip(1) {
            match rustix::fs::openat(&dir, &level.name, DIRECTORY, Mode::empty()) {
                Ok(below) if identity(&below)? == level.id => dir = below,
                _ => break,
            }
            there += 1;
        }
        self.levels.truncate(there);
        self.open.push_back(Arc::new(dir));
        Ok(())
    }
}

fn identity(dir: impl AsFd) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// The names in an open directory that was not read yet, without `.` and `..`.
///
/// # Errors
/// Errors of getdents(2).
pub fn names_in(dir: &Arc<OwnedFd>) -> Result<Vec<CString>, Errno> {
    let mut stream = DirStream::new(Arc::clone(dir));
    let mut names = Vec::new();
    while let Some(entry) = stream.peek()? {
        let name = entry.name.as_bytes();
        if name != b"." && name != b".." {
            names.push(CString::new(name).map_err(|_| Errno::IO)?);
        }
        stream.advance();
    }
    Ok(names)
}

/// Removes a name of an open directory with everything below it. Directories without permissions,
/// as overlayfs leaves them, do not hinder their owner.
///
/// # Errors
/// Errors of unlink(2) and rmdir(2). The rest is then as it was.
pub fn remove(dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let dir = dir.as_fd();
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Removal.see(dir, name, &stat)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(());
    }
    walk(rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())?, &mut Removal)?;
    Removal.leave(dir, name)
}

struct Removal;

impl Visitor for Removal {
    fn see(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        let needed = Mode::RWXU;
        if !Mode::from_raw_mode(stat.st_mode).contains(needed) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let closed = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            rustix::fs::chmod(super::fd_path(closed.as_fd()), needed)?;
        }
        Ok(())
    }

    fn leave(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
    }
}
