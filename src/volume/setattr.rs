//! Changing attributes: permissions, owner, size, times.

use std::os::fd::AsFd;

use rustix::fs::StatVfs;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::Volume;
use super::stat::stat_of;
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};
use crate::tree::{Attr, Attributes, HandleId, Ino, NewTime, SetAttr};

fn timespec(time: Option<NewTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        Some(NewTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ },
        Some(NewTime::At(time)) => {
            Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) as _ }
        }
    }
}

impl Attributes for Volume {
    fn attr(&self, ino: Ino, handle: Option<HandleId>) -> Result<Attr, Errno> {
        let stat = match handle.and_then(|id| self.handles.file(id).ok()) {
            Some(open) if open.ino == ino => stat_of(open.file.descriptor().any()?)?,
            _ => self.stat(&*self.node(ino)?)?,
        };
        Ok(self.shown(ino, stat))
    }

    fn set_attr(
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

    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno> {
        let node = self.node(ino)?;
        match self.pin(&node) {
            Ok(fd) => rustix::fs::fstatvfs(&*fd),
            Err(_) => rustix::fs::fstatvfs(&**self.devices.source()),
        }
    }
}
