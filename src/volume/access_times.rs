//! Times of access, where the mount keeps none (`noatime`).
//!
//! The kernel moves the time of access of a backing file by the flags of the mount on which it is
//! open, and not for a descriptor with O_NOATIME. The daemon reads by such descriptors, which the
//! owner of a file and root may have. The descriptor that the kernel opens of a file that is lent
//! to it has the client's flags: there it is the mount that counts, so such a file is lent from a
//! mount of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Volume;
use super::inode::Node;
use crate::sys;
use crate::sys::detached;

/// The treatment of times of access.
pub(super) enum AccessTimes {
    /// They move as the backing mount has it.
    Kept,
    /// They stay; with the source's mount once more, for what is lent.
    Left(Option<Apart>),
}

/// The mount of the source, without those below it and without times of access.
pub(super) struct Apart {
    directory: OwnedFd,
    /// The mount ends with it.
    _mount: OwnedFd,
}

impl AccessTimes {
    /// For the open directory `source`.
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

    /// Whether reading moves them.
    pub(super) fn are_kept(&self) -> bool {
        matches!(self, AccessTimes::Kept)
    }

    /// Makes a descriptor for reading leave them alone, as far as that is permitted: to the owner
    /// of the file and with CAP_FOWNER.
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
    /// Opens a node of the source's own mount through the one without times of access; `None`
    /// where there is none, or no file handle.
    pub(super) fn open_apart(&self, node: &Node, flags: OFlags) -> Option<OwnedFd> {
        let AccessTimes::Left(Some(apart)) = &self.access_times else { return None };
        let handle = node.handle.as_ref().filter(|_| self.by_handle)?;
        sys::handle::open_handle(&apart.directory, handle, flags | OFlags::CLOEXEC).ok()
    }

    /// Another descriptor of an open file, for reading, to be lent in its place: where it is open
    /// for writing, since what is only read can be executed (the kernel opens one of its own for
    /// each client, with the client's flags), and where its time of access is to stay. A file that
    /// has no handle, or is of another mount, is mounted by itself for that.
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
