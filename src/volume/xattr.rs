//! Extended attributes and statistics of the filesystem.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

pub use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Volume;
use super::inode::Node;
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};
use crate::tree::{Ino, Xattrs};

/// The access list, whose change may take the setgid bit away.
const ACCESS_ACL: &str = "system.posix_acl_access";

/// The longest list of names that the kernel passes on (XATTR_LIST_MAX), in bytes.
const LONGEST_LIST: usize = 65_536;

/// Path that leads to a node's file, for calls that take only a path, with the descriptor that
/// keeps it valid.
struct Reach {
    path: PathBuf,
    _open: Arc<OwnedFd>,
}

impl Xattrs for Volume {
    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        let node = self.node(ino)?;
        let path = &self.reach(&node)?.path;
        if buffer.is_empty() {
            rustix::fs::getxattr_query(path, name)
        } else {
            rustix::fs::getxattr(path, name, buffer)
        }
    }

    /// Only root is shown `trusted.` names, as on the backing filesystem.
    fn list_xattr(&self, ino: Ino, buffer: &mut [u8], caller: &Caller) -> Result<usize, Errno> {
        if caller.uid == 0 {
            return self.list_all_xattr(ino, buffer);
        }
        let mut all = vec![0; LONGEST_LIST];
        let len = self.list_all_xattr(ino, &mut all)?;
        let names = all.get(..len).unwrap_or_default();
        let shown: Vec<u8> = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| !name.starts_with(b"trusted."))
            .flatten()
            .copied()
            .collect();
        if !buffer.is_empty() {
            buffer.get_mut(..shown.len()).ok_or(Errno::RANGE)?.copy_from_slice(&shown);
        }
        Ok(shown.len())
    }

    /// An access list is set as the caller, so that setgid goes where the caller is not of the
    /// group.
    fn set_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let node = self.node(ino)?;
        self.check_changeable(&node)?;
        let reach = self.reach(&node)?;
        let acl = name.as_bytes() == ACCESS_ACL.as_bytes();
        let _as_caller = if acl { AsCaller::enter(caller, true)? } else { None };
        rustix::fs::setxattr(&reach.path, name, value, flags)
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        let node = self.node(ino)?;
        self.check_changeable(&node)?;
        rustix::fs::removexattr(&self.reach(&node)?.path, name)
    }
}

impl Volume {
    /// The descriptor's own link in /proc ends at the very file, also when that is a symbolic
    /// link: it is not followed any further.
    fn reach(&self, node: &Node) -> Result<Reach, Errno> {
        let fd = self.pin(node)?;
        Ok(Reach { path: sys::fd_path(fd.as_fd()), _open: fd })
    }

    fn list_all_xattr(&self, ino: Ino, buffer: &mut [u8]) -> Result<usize, Errno> {
        let node = self.node(ino)?;
        let path = &self.reach(&node)?.path;
        if buffer.is_empty() {
            rustix::fs::listxattr_query(path)
        } else {
            rustix::fs::listxattr(path, buffer)
        }
    }
}
