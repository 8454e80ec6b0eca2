//! Making and undoing the mount.
//!
//! With CAP_SYS_ADMIN the daemon calls mount(2) itself; without, or where the kernel says EPERM, or
//! for `auto_unmount`, fusermount3 does it and hands over the `/dev/fuse` descriptor. Nothing here
//! serves a request, and nothing here touches a file of the mount: whether it is still there is
//! read from the table of mounts.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::config::{KernelOptions, MountConfig, MountTable, SourceKind, may_mount};
use crate::error::Failure;
use crate::shown::Show;

mod fusermount;
#[cfg(test)]
mod tests;

use fusermount::Keeper;
pub(super) use fusermount::PROGRAMS;

/// The device that a FUSE connection is.
const DEVICE: &str = "/dev/fuse";

/// A mount that this process made. Dropping it unmounts what is still mounted, lazily.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// Major and minor number of the mount's device.
    dev: (u32, u32),
    /// Whether this process could not mount, and so cannot unmount, by itself.
    needs_fusermount: bool,
    /// The fusermount3 that waits for the end of this process, with `auto_unmount`.
    keeper: Option<Keeper>,
}

/// Mounts. Requests wait in the descriptor until they are served.
///
/// # Errors
/// Why not, in the words of the kernel or of fusermount3. Nothing is mounted then.
pub fn mount(config: &MountConfig) -> Result<(OwnedFd, Mounted), Failure> {
    let by_kernel = may_mount() && !config.kernel.auto_unmount;
    let mut needs_fusermount = false;
    let (device, keeper) = match by_kernel.then(|| by_kernel_call(config)) {
        Some(Ok(device)) => (device, None),
        Some(Err(Refusal::Failure(failure))) => return Err(failure),
        Some(Err(Refusal::NotPermitted)) | None => {
            needs_fusermount = by_kernel || !may_mount();
            fusermount::mount(config)?
        }
    };
    let mountpoint = config.mountpoint.clone();
    match own_device(&mountpoint, &config.kernel.fstype()) {
        Ok(dev) => Ok((device, Mounted { mountpoint, dev, needs_fusermount, keeper })),
        Err(failure) => {
            drop(device);
            // The table of mounts has failed: the mount is undone blindly, and the first failure is
            // the one to tell.
            let _ = unmount(&mountpoint, true);
            Err(failure)
        }
    }
}

fn own_device(mountpoint: &Path, fstype: &str) -> Result<(u32, u32), Failure> {
    let failed = |reason: String| Failure::failed(mountpoint.shown(), reason);
    let table = MountTable::read()
        .map_err(|error| failed(format!("reading the table of mounts: {error}")))?;
    match table.at(mountpoint) {
        Some(mount) if mount.fstype == fstype => Ok(mount.dev),
        _ => Err(failed("mounting it: the table of mounts does not show it".into())),
    }
}

/// Why mount(2) did not do it.
enum Refusal {
    /// fusermount3 may be allowed to (EPERM).
    NotPermitted,
    /// Nobody can.
    Failure(Failure),
}

fn by_kernel_call(config: &MountConfig) -> Result<OwnedFd, Refusal> {
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Refusal::Failure(no_device(errno)))?;
    let mountpoint = config.mountpoint.shown();
    let data = CString::new(kernel_data(config, device.as_raw_fd()))
        .map_err(|_| Refusal::Failure(Failure::failed(mountpoint, "an option holds a NUL byte")))?;
    let kernel = &config.kernel;
    let fsname = kernel.fsname.as_os_str();
    let mounted = rustix::mount::mount(
        fsname,
        &config.mountpoint,
        kernel.fstype(),
        kernel.flags,
        data.as_c_str(),
    );
    match mounted {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => Err(Refusal::NotPermitted),
        Err(errno) => {
            let reason = format_args!("mounting it: {}", io::Error::from(errno));
            Err(Refusal::Failure(Failure::failed(mountpoint, reason)))
        }
    }
}

fn no_device(errno: Errno) -> Failure {
    let error = io::Error::from(errno);
    let advice = match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            ": run `modprobe fuse`, or give the container the device"
        }
        Errno::PERM | Errno::ACCESS => ": this process, or its container, may not use the device",
        _ => "",
    };
    Failure::failed(DEVICE, format_args!("opening it: {error}{advice}"))
}

/// The data argument of mount(2) (Documentation/filesystems/fuse.rst, "Mount options").
fn kernel_data(config: &MountConfig, device: i32) -> Vec<u8> {
    let rootmode = match config.mountpoint_kind {
        SourceKind::Directory => libc::S_IFDIR,
        SourceKind::File => libc::S_IFREG,
    };
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data =
        format!("fd={device},rootmode={rootmode:o},user_id={user},group_id={group}").into_bytes();
    for word in shared_words(&config.kernel) {
        data.push(b',');
        data.extend_from_slice(&word);
    }
    data
}

/// The options that mount(2) and fusermount3 take in the same words.
fn shared_words(kernel: &KernelOptions) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    if kernel.default_permissions {
        words.push(b"default_permissions".to_vec());
    }
    if kernel.allow_other || kernel.allow_root {
        words.push(b"allow_other".to_vec());
    }
    if let Some(bytes) = kernel.max_read {
        words.push(format!("max_read={bytes}").into_bytes());
    }
    for (name, label) in &kernel.contexts {
        words.push([name.as_bytes(), b"=", &quoted(label)].concat());
    }
    words
}

/// SELinux takes the commas of a label for its own only between quotes.
fn quoted(label: &OsStr) -> Vec<u8> {
    let bytes = label.as_bytes();
    let bare = !bytes.contains(&b',') || bytes.starts_with(b"\"");
    if bare { bytes.to_vec() } else { [b"\"", bytes, b"\""].concat() }
}

impl Mounted {
    /// Major and minor number of the mount's device.
    pub fn device(&self) -> (u32, u32) {
        self.dev
    }

    /// Whether fusermount3 is needed to unmount.
    pub fn needs_fusermount(&self) -> bool {
        self.needs_fusermount
    }

    /// Whether the mount is still in the table of mounts.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn is_mounted(&self) -> io::Result<bool> {
        Ok(MountTable::read()?.has(&self.mountpoint, self.dev))
    }

    /// Sets how much the kernel reads ahead in files of this mount that it has a cache for, in
    /// KiB (Documentation/ABI/testing/sysfs-class-bdi). To be called when the session has begun:
    /// its start sets it too.
    ///
    /// # Errors
    /// That of writing to /sys, which only root may.
    pub fn raise_readahead(&self, kib: u32) -> io::Result<()> {
        let (major, minor) = self.dev;
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }

    /// Unmounts; nothing happens where somebody else has done so already. `lazy` frees the mount
    /// point at once, and the mount goes when the last file in it is closed.
    ///
    /// # Errors
    /// The mount is in use (without `lazy`), another mount lies on it, or why else not.
    pub fn unmount(&mut self, lazy: bool) -> Result<(), Failure> {
        let failed = |reason: String| Failure::failed(self.mountpoint.shown(), reason);
        let table = MountTable::read()
            .map_err(|error| failed(format!("reading the table of mounts: {error}")))?;
        if table.has(&self.mountpoint, self.dev) {
            if table.at(&self.mountpoint).is_none_or(|top| top.dev != self.dev) {
                return Err(failed("unmounting it: another mount lies on it".into()));
            }
            unmount(&self.mountpoint, lazy)?;
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.release();
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(failure) = self.unmount(true) {
            log::error!("{failure}");
        }
    }
}

/// Unmounts the topmost mount at a path (absolute, without symbolic links), by umount2(2) with
/// CAP_SYS_ADMIN and by fusermount3 without. `lazy` as in [`Mounted::unmount`].
///
/// # Errors
/// The mount is in use (without `lazy`), or why else not.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    if !may_mount() {
        return fusermount::unmount(mountpoint, lazy);
    }
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount::unmount(mountpoint, lazy),
        Err(Errno::BUSY) => Err(busy(mountpoint)),
        Err(errno) => {
            let reason = format_args!("unmounting it: {}", io::Error::from(errno));
            Err(Failure::failed(mountpoint.shown(), reason))
        }
    }
}

/// Aborts the connection of the mount at a path, so that every request in it fails, and unmounts.
/// `lazy` as in [`Mounted::unmount`].
///
/// # Errors
/// It is in use all the same (without `lazy`), or why else not.
pub fn abort_and_unmount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let detach = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let flags = UnmountFlags::FORCE | detach | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(mountpoint)),
        Err(errno) => {
            let reason = format_args!("unmounting it: {}", io::Error::from(errno));
            Err(Failure::failed(mountpoint.shown(), reason))
        }
    }
}

fn busy(mountpoint: &Path) -> Failure {
    Failure::busy(mountpoint.shown(), "unmounting it: files or directories in it are in use")
}

/// The flags of mount(2) as words of fusermount3, which has no word for `MS_SILENT`, and sets
/// `nosuid` and `nodev` unless it is told otherwise.
fn flag_words(kernel: &KernelOptions) -> Vec<&'static str> {
    let flags = kernel.flags.difference(MountFlags::SILENT);
    let unset = [(MountFlags::NOSUID, "suid"), (MountFlags::NODEV, "dev")];
    let cleared = unset.into_iter().filter(|(flag, _)| !flags.contains(*flag));
    let mut words = KernelOptions { flags, ..kernel.clone() }.flag_words();
    words.extend(cleared.map(|(_, word)| word));
    words
}
