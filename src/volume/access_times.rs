//! Access times with `noatime`: reads through the mount do not change them.
//!
//! The kernel updates the access time of a backing file by the flags of the mount on which it is
//! open, and never for a descriptor with O_NOATIME. The daemon reads through such descriptors,
//! which the owner of a file and root may have. For passthrough the kernel opens a descriptor with
//! the client's flags: only the mount counts there, so a backing file is registered from a separate
//! mount without access times.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Volume;
use super::inode::Node;
use crate::sys;
use crate::sys::detached;

/// Treatment of access times.
pub(super) enum AccessTimes {
    /// They change by the rules of the backing mount.
    Kept,
    /// They stay; with a second mount of the source for backing files that are registered.
    Left(Option<Apart>),
}

/// Second mount of the source, without the mounts below it and without access times.
pub(super) struct Apart {
    directory: OwnedFd,
    /// The mount ends with it.
    _mount: OwnedFd,
}

impl AccessTimes {
    /// Treatment for the open directory `source`.
    pub(super) fn new(are_kept: bool, source: &OwnedFd) -> AccessTimes {
        if are_kept {
            return AccessTimes::Kept;
        }
        if detached::is_without_access_times(source) {
            return AccessTimes::Left(None);
        }
        let apart = Apart::new(source)
            .inspect_err(|err| log::info!("noatime: a mount of its own for what is lent: {err}"));
        AccessTimes::Left(apart.ok())
    }

    /// Whether reads change access times.
    pub(super) fn are_kept(&self) -> bool {
        matches!(self, AccessTimes::Kept)
    }

    /// Sets O_NOATIME on a descriptor for reading where it is permitted: to the owner of the file,
    /// and with CAP_FOWNER.
    pub(super) fn leave(&self, fd: &OwnedFd) {
        if self.are_kept() {
            return;
        }
        let left = rustix::fs::fcntl_getfl(fd)
            .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NOATIME));
        if let Err(err) = left {
            log::debug!("noatime: O_NOATIME on a backing file: {err}");
        }
    }
}

impl Apart {
    fn new(source: &OwnedFd) -> Result<Apart, Errno> {
        let mount = detached::clone_without_access_times(source)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&mount, c".", flags, Mode::empty())?;
        Ok(Apart { directory, _mount: mount })
    }
}

impl Volume {
    /// Opens a node of the source's own mount through the mount without access times; `None` if
    /// there is no such mount, or the node has no file handle.
    pub(super) fn open_apart(&self, node: &Node, flags: OFlags) -> Option<OwnedFd> {
        let AccessTimes::Left(Some(apart)) = &self.access_times else { return None };
        let handle = node.handle.as_ref().filter(|_| self.by_handle)?;
        sys::handle::open_handle(&apart.directory, handle, flags | OFlags::CLOEXEC).ok()
    }

    /// Another descriptor of an open file, for reading, to be registered in its place. It is needed
    /// if the file is open for writing, since a file that is open only for reading can be executed
    /// (the kernel opens a descriptor for each client with the client's flags), and if its access
    /// time is to stay. A file without a handle or of another mount is mounted by itself for that.
    pub(super) fn reader_to_lend(
        &self,
        node: &Node,
        file: BorrowedFd<'_>,
        writable: bool,
    ) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open =
            |file: BorrowedFd<'_>| rustix::fs::open(sys::fd_path(file), flags, Mode::empty());
        let alone = || {
            detached::clone_without_access_times(file)
                .and_then(|mount| open(mount.as_fd()))
                .inspect_err(|err| log::info!("noatime: a mount of its own for a file: {err}"))
                .ok()
        };
        let as_it_is = || if writable { open(file).ok() } else { None };
        match self.access_times.are_kept() || detached::is_without_access_times(file) {
            true => as_it_is(),
            false => self.open_apart(node, flags).or_else(alone).or_else(as_it_is),
        }
    }
}
