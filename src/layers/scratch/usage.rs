//! What a tree takes on its filesystem.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// What is in a scratch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the blocks of everything, hard links once.
    pub bytes: u64,
    /// Names of the base that are gone.
    pub whiteouts: u64,
    /// Files that were copied from the base, in part or whole.
    pub copied_files: u64,
}

/// The bytes of the blocks of everything below a directory, itself included; hard links count
/// once, other filesystems not at all.
///
/// # Errors
/// Those of reading the directories. What vanishes meanwhile is not counted.
pub fn bytes_used(dir: &Path) -> io::Result<u64> {
    let mut used = 0;
    visit(dir, |_, _, stat| {
        used += (stat.st_blocks as u64).saturating_mul(512);
        Ok(())
    })?;
    Ok(used)
}

/// Calls `see` for a directory and everything below it, once for each file: with the directory
/// that it lies in, its name there, and its attributes.
pub(super) fn visit(
    top: &Path,
    mut see: impl FnMut(std::os::fd::BorrowedFd<'_>, &std::ffi::CStr, &Stat) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let first = rustix::fs::openat(CWD, top, flags, Mode::empty())?;
    let whole = rustix::fs::fstat(&first)?;
    see(std::os::fd::AsFd::as_fd(&first), c".", &whole)?;
    let mut linked = HashSet::new();
    // One open directory for each step of the way down.
    let mut open = vec![Dir::read_from(&first)?];
    while let Some(dir) = open.last_mut() {
        let Some(entry) = dir.next() else {
            open.pop();
            continue;
        };
        let name: CString = entry?.file_name().to_owned();
        if name.as_c_str() == c"." || name.as_c_str() == c".." {
            continue;
        }
        let fd = dir.fd()?;
        let stat = match rustix::fs::statat(fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            result => result?,
        };
        if stat.st_dev != whole.st_dev {
            continue;
        }
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_dir && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
            continue;
        }
        see(fd, &name, &stat)?;
        if is_dir {
            match rustix::fs::openat(fd, &name, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                below => open.push(Dir::new(below?)?),
            }
        }
    }
    Ok(())
}
