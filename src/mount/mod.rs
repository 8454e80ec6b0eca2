//! A mount that this process serves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::mountinfo;
use crate::error::Failure;
use crate::fuse::Connection;
use crate::fuse::mount::Mounted;
use crate::shown::Show;

mod builder;
pub(crate) mod serving;
mod source;

pub use builder::MountBuilder;
use serving::{End, Serving};

/// Time to wait for the end of the serving before it is asked who still uses the mount.
const MOMENT: Duration = Duration::from_millis(300);

/// The number of such moments after which the mount is given up.
const MOST_MOMENTS: u32 = 100;

/// A mount that threads of this process serve, until it is unmounted or dropped.
///
/// [`Mount::builder`] begins one. Dropping it unmounts: where files in it are in use, the mount
/// point is free at once, and they are served until they are closed, as long as the process lives.
/// [`Mount::unmount`] tells that they are in use.
///
/// The mount belongs to the process: when that ends without dropping it, the mount point stays,
/// and every access says `Transport endpoint is not connected`, unless the mount was made with
/// `option("auto_unmount")`.
///
/// The process may use its own mount as any other does, by system calls. It should not touch
/// mappings (mmap(2)) of files in it: a fault waits for a thread of the same address space, which
/// may itself wait for the fault.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mmapfs::{Access, Mount};
/// # if !std::path::Path::new("/dev/fuse").exists() { return Ok(()); }
///
/// let dir = tempfile::tempdir()?;
/// let (source, mountpoint) = (dir.path().join("source"), dir.path().join("mnt"));
/// std::fs::create_dir(&source)?;
/// std::fs::create_dir(&mountpoint)?;
/// std::fs::write(source.join("file"), "of the base")?;
///
/// let mount = Mount::builder(&source)
///     .access(Access::Copy)
///     .scratch(dir.path().join("scratch"))
///     .spawn(&mountpoint)?;
/// std::fs::write(mountpoint.join("file"), "of the scratch")?;
/// mount.unmount()?;
///
/// // The base was not written.
/// assert_eq!(std::fs::read_to_string(source.join("file"))?, "of the base");
/// # Ok(())
/// # }
/// ```
pub struct Mount {
    mountpoint: PathBuf,
    mounted: Arc<Mutex<Mounted>>,
    connection: Connection,
    end: Arc<End>,
}

impl Mount {
    /// Begins a mount of `source`, a directory or a regular file.
    pub fn builder(source: impl AsRef<Path>) -> MountBuilder {
        MountBuilder::new(source.as_ref())
    }

    fn new(mountpoint: PathBuf, serving: Serving) -> Mount {
        let Serving { mounted, connection, end, .. } = serving;
        Mount { mountpoint, mounted, connection, end }
    }

    /// The mount point: absolute, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Unmounts, and waits until the source and the scratch are closed. A mount that somebody else
    /// has unmounted is no error.
    ///
    /// # Errors
    /// Files or directories in it are in use ([`ErrorKind::Busy`](crate::ErrorKind)), another
    /// mount lies on it, or it is mounted in another mount namespace too, where it is served on.
    /// The error gives the mount back; dropping the error drops the mount.
    pub fn unmount(self) -> Result<(), UnmountError> {
        match self.try_unmount() {
            Ok(()) => Ok(()),
            Err(failure) => Err(UnmountError { mount: self, failure }),
        }
    }

    fn try_unmount(&self) -> Result<(), Failure> {
        self.mounted.lock().unmount(false)?;
        let device = self.mounted.lock().device();
        for _ in 0..MOST_MOMENTS {
            if let Some(ended) = self.end.wait_for(MOMENT) {
                return ended;
            }
            if !self.connection.is_open() {
                return self.end.wait();
            }
            // The number of the device is not given anew before the connection ends.
            if let Some(user) = mountinfo::user_of(device) {
                return Err(self.served_on(&user));
            }
        }
        Err(self.served_on("for an unknown reason"))
    }

    fn served_on(&self, why: &str) -> Failure {
        let reason = format_args!("it is unmounted here, and served on: {why}");
        Failure::busy(self.mountpoint.shown(), reason)
    }

    /// Waits until somebody unmounts it: `umount`, `mmapfs umount`, `fusermount3 -u`.
    ///
    /// # Errors
    /// Serving it has failed. It is unmounted then.
    pub fn wait(self) -> Result<(), Failure> {
        self.end.wait()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.end.wait_for(Duration::ZERO).is_some() {
            return;
        }
        let Err(failure) = self.try_unmount() else { return };
        log::warn!(
            "{failure}; the mount point is freed now, open files are served until they are closed"
        );
        if let Err(failure) = self.mounted.lock().unmount(true) {
            log::error!("{failure}");
        }
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

/// A mount that could not be unmounted, with the reason.
#[derive(Debug)]
pub struct UnmountError {
    mount: Mount,
    failure: Failure,
}

impl UnmountError {
    /// The mount, which is served on.
    pub fn into_mount(self) -> Mount {
        self.mount
    }

    /// The reason.
    pub fn error(&self) -> &Failure {
        &self.failure
    }
}

impl fmt::Display for UnmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl std::error::Error for UnmountError {}

impl From<UnmountError> for Failure {
    /// Drops the mount, which frees the mount point at once.
    fn from(error: UnmountError) -> Failure {
        error.failure
    }
}
