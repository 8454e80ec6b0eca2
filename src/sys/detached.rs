//! Detached mounts, which no other process sees (open_tree(2), mount_setattr(2), fsopen(2); Linux
//! 5.12).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use super::last_errno;

/// The permitted use of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Reading, which does not change access times.
    Read,
    /// Reading and writing; reading does not change access times.
    Write,
}

/// Clones the mount of a directory, with all mounts below it, as a detached mount. Only the
/// returned descriptor leads to it, and its close ends the mount.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOSYS before Linux 5.12; errors of open_tree(2).
pub fn clone_mount(directory: &Path, may: Use) -> Result<OwnedFd, Errno> {
    let tree =
        rustix::mount::open_tree(rustix::fs::CWD, directory, CLONE | OpenTreeFlags::AT_RECURSIVE)?;
    let read_only = if may == Use::Read { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_attributes(&tree, read_only | libc::MOUNT_ATTR_NOATIME, libc::AT_RECURSIVE)?;
    Ok(tree)
}

/// Clones the mount of an open file or directory, without the mounts below it. Reads through the
/// clone do not change access times.
///
/// # Errors
/// As [`clone_mount`]; EINVAL if a locked mount below would be uncovered.
pub fn clone_without_access_times(place: impl AsFd) -> Result<OwnedFd, Errno> {
    let tree = rustix::mount::open_tree(place, c"", CLONE | OpenTreeFlags::AT_EMPTY_PATH)?;
    set_attributes(&tree, libc::MOUNT_ATTR_NOATIME, 0)?;
    Ok(tree)
}

/// Makes a detached mount of /proc for this PID namespace, which hides no process.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, and in user namespaces where parts of /proc are covered; ENOSYS
/// before Linux 5.2.
pub fn mount_proc() -> Result<OwnedFd, Errno> {
    let proc = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(proc.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(proc.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Whether reads through the mount on which a file is open do not change access times.
pub fn is_without_access_times(file: impl AsFd) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::NOATIME))
}

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Sets attributes of a mount, which becomes private.
fn set_attributes(tree: &OwnedFd, attr_set: u64, recursive: libc::c_int) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let size = std::mem::size_of::<libc::mount_attr>();
    let fd = tree.as_raw_fd();
    // SAFETY: the path is an empty string with its end, and the attributes live through the call,
    // which reads `size` bytes of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd_path;

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

    #[test]
    fn a_clone_of_a_file_alone_can_be_written_and_leaves_its_time_of_access_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        file.set_times(std::fs::FileTimes::new().set_accessed(long_ago)).unwrap();
        let tree = match clone_without_access_times(&file) {
            Ok(tree) => tree,
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => return,
            Err(err) => panic!("{err}"),
        };
        assert!(is_without_access_times(&tree));
        let clone = fd_path(tree.as_fd());
        assert_eq!(std::fs::read(&clone).unwrap(), b"content");
        assert_eq!(file.metadata().unwrap().accessed().unwrap(), long_ago);
        std::fs::write(&clone, "other").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }
}
