//! Mounts of one's own that nobody else sees (open_tree(2), mount_setattr(2); Linux 5.12).
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::last_errno;

/// What may be done through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Reading, which leaves the times of access alone.
    Read,
    /// Writing as well; reading still leaves them alone.
    Write,
}

/// Mounts a directory once more, with all that is mounted below it, nowhere: it is reached by the
/// descriptor alone, and gone with it.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOSYS before Linux 5.12; those of open_tree(2).
pub fn clone_mount(directory: &Path, may: Use) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, directory, flags)?;
    let read_only = if may == Use::Read { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: read_only | libc::MOUNT_ATTR_NOATIME,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let size = std::mem::size_of::<libc::mount_attr>();
    let recursive = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let fd = tree.as_raw_fd();
    // SAFETY: the path is an empty string with its end, and the attributes live through the call,
    // which reads `size` bytes of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            recursive,
            &raw const attributes,
            size,
        )
    };
    if result == 0 { Ok(tree) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd_path;
    use std::os::fd::AsFd;

    #[test]
    fn a_clone_for_reading_can_not_be_written_and_leaves_times_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "content").unwrap();
        let tree = match clone_mount(dir.path(), Use::Read) {
            Ok(tree) => tree,
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => return,
            Err(err) => panic!("{err}"),
        };
        let root = fd_path(tree.as_fd());
        let accessed = || std::fs::metadata(dir.path().join("file")).unwrap().accessed().unwrap();
        let before = accessed();
        assert_eq!(std::fs::read(root.join("file")).unwrap(), b"content");
        assert_eq!(accessed(), before);
        let refused = std::fs::write(root.join("file"), "other").unwrap_err();
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::ROFS));
    }
}
