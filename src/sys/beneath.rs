//! Opening names in a directory that other users may write to, without following anything.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Flags of every open: no symbolic link is followed, and the open of a FIFO does not wait.
const ALWAYS: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Opens one name of an open directory. Neither a symbolic link nor a mount point is passed.
///
/// # Errors
/// EINVAL for more than one name; ELOOP for a symbolic link; EXDEV for a mount point; errors of
/// open(2).
pub fn open(dir: impl AsFd, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes == b".." || bytes.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    let flags = if flags.contains(OFlags::PATH) {
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC
    } else {
        flags | ALWAYS
    };
    // openat2(2) refuses a mode without O_CREAT.
    let mode = if flags.contains(OFlags::CREATE) { mode } else { Mode::empty() };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(&dir, name, flags, mode, resolve) {
        // Linux before 5.6, or a sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => open_step(dir, name, flags, mode),
        opened => opened,
    }
}

/// Opens one name by openat(2), which is as strict except for mount points.
fn open_step(dir: impl AsFd, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let file = rustix::fs::openat(&dir, name, flags, mode)?;
    if rustix::fs::fstat(&file)?.st_dev != rustix::fs::fstat(dir)?.st_dev {
        return Err(Errno::XDEV);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    type Way = fn(&File, &CStr, OFlags, Mode) -> Result<OwnedFd, Errno>;

    #[test]
    fn a_name_opens_itself_without_links_and_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "content").unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        symlink("dir", dir.path().join("dirlink")).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), fifo, Mode::RUSR, 0).unwrap();
        let at = File::open(dir.path()).unwrap();
        let ways: [Way; 2] = [
            |dir, name, flags, mode| open(dir, name, flags, mode),
            |dir, name, flags, mode| open_step(dir, name, flags | ALWAYS, mode),
        ];
        for way in ways {
            let open = |name: &CStr, flags| way(&at, name, flags, Mode::empty()).map(drop);
            assert_eq!(open(c"file", OFlags::RDONLY), Ok(()));
            assert_eq!(open(c"dir", OFlags::RDONLY | OFlags::DIRECTORY), Ok(()));
            assert_eq!(open(c"link", OFlags::RDONLY), Err(Errno::LOOP));
            let of_link = open(c"dirlink", OFlags::RDONLY | OFlags::DIRECTORY);
            assert!(matches!(of_link, Err(Errno::LOOP | Errno::NOTDIR)), "{of_link:?}");
            assert_eq!(open(c"fifo", OFlags::RDONLY), Ok(()));
            assert_eq!(open(c"fifo", OFlags::WRONLY), Err(Errno::NXIO));
            assert_eq!(open(c"none", OFlags::RDONLY), Err(Errno::NOENT));
        }
        for name in [c"", c"..", c"dir/..", c"/etc"] {
            let opened = open(&at, name, OFlags::RDONLY, Mode::empty());
            assert_eq!(opened.map(drop), Err(Errno::INVAL), "{name:?}");
        }
    }
}
