//! Changing attributes: permissions, owner, size, times.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::attr::{Attr, Time, stat_of};
use super::inode::Ino;
use super::{HandleId, Volume};
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The time at which it is set.
    Now,
    /// This time.
    At(Time),
}

/// The changes of setattr; `None` leaves the attribute.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits, as in chmod(2).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<NewTime>,
    /// Time of last change.
    pub mtime: Option<NewTime>,
}

impl SetAttr {
    /// Whether it changes nothing that it names: a chown(2) of neither owner nor group, which takes
    /// setuid, setgid and file capabilities away.
    pub fn is_empty(&self) -> bool {
        let owner = self.uid.is_some() || self.gid.is_some();
        let times = self.atime.is_some() || self.mtime.is_some();
        !owner && !times && self.mode.is_none() && self.size.is_none()
    }

    /// Whether it has no effect for this caller on a file of this owner. The kernel sends an empty
    /// change not only for chown(2) but before a change of the content as well, which takes away
    /// what has to go: by a user who may not keep the bits, and by root, who keeps them, of a file
    /// that has capabilities. The two cannot be told apart; so it is obeyed for those only who may
    /// change the owner, and for root while nobody `may_write`.
    pub fn is_idle(&self, caller: &Caller, owner: u32, may_write: impl FnOnce() -> bool) -> bool {
        let is_a_write = || if caller.uid == 0 { may_write() } else { caller.uid != owner };
        self.is_empty() && is_a_write()
    }
}

impl Volume {
    /// Changes attributes and returns them all.
    ///
    /// # Errors
    /// EROFS where the view does not allow it; errors of truncate(2), chown(2), chmod(2) and
    /// utimensat(2).
    pub fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        caller: &Caller,
    ) -> Result<Attr, Errno> {
        let node = self.node(ino)?;
        self.check_changeable(&node)?;
        if let Some(size) = change.size {
            self.truncate(&node, handle, size, caller)?;
        }
        let owner = change.uid.is_some() || change.gid.is_some();
        let times = change.atime.is_some() || change.mtime.is_some();
        let empty = change.is_empty();
        if !owner && !times && change.mode.is_none() && !empty {
            return self.attr(ino, handle);
        }
        let fd = self.pin(&node)?;
        if empty {
            let is_written = || self.files.get(node.key()).is_some_and(|file| file.is_written());
            if change.is_idle(caller, stat_of(&*fd)?.uid, is_written) {
                return self.attr(ino, handle);
            }
        }
        if owner || empty {
            // chown(2) takes setuid and setgid away by itself, by the caller's groups.
            let _as_caller = AsCaller::enter(caller, true)?;
            let uid = change.uid.map(Uid::from_raw);
            let gid = change.gid.map(Gid::from_raw);
            rustix::fs::chownat(&*fd, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            if node.kind() == libc::S_IFLNK {
                return Err(Errno::OPNOTSUPP);
            }
            let path = sys::fd_path(fd.as_fd());
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if times {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            rustix::fs::utimensat(&*fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        self.attr(ino, handle)
    }
}

fn timespec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ },
        Some(NewTime::At(time)) => {
            Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) as _ }
        }
    }
}
