//! Lock of a scratch, held by the daemon that serves it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::layout::{LOCK, Layout};
use super::opened::Opened;
use crate::error::Failure;
use crate::shown::Show;

/// Number of attempts to take a lock, and the pause between two: a listing holds it for a moment.
const PATIENCE: (u32, Duration) = (10, Duration::from_millis(10));

/// Largest number of bytes that are read from a lock file: enough for the longest mount point.
const LARGEST: u64 = 8192;

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// Holder of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id; `None` if the lock file does not have it.
    pub pid: Option<u32>,
    /// Mount point; `None` if the lock file does not have it.
    pub mountpoint: Option<PathBuf>,
}

impl Holder {
    /// Failure of another process that wants the lock.
    pub(super) fn refusal(&self, layout: &Layout) -> Failure {
        let mut reason = String::from("the scratch is in use");
        if let Some(mountpoint) = &self.mountpoint {
            reason += &format!(": it is mounted on {}", mountpoint.shown());
        }
        if let Some(pid) = self.pid {
            reason += &format!(" by process {pid}");
        }
        Failure::failed(layout.dir().shown(), reason)
    }

    /// Parses a lock file: the process id in the first line, the mount point in the rest.
    fn parse(text: &[u8]) -> Holder {
        let mut parts = text.splitn(2, |byte| *byte == b'\n');
        let pid = parts.next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok());
        let mountpoint = parts.next().and_then(|rest| rest.strip_suffix(b"\n"));
        let path = |bytes: &[u8]| std::ffi::OsString::from_vec(bytes.to_vec()).into();
        Holder { pid, mountpoint: mountpoint.filter(|bytes| !bytes.is_empty()).map(path) }
    }
}

impl Lock {
    /// Takes the lock of a scratch for a mount, and writes the holder into the lock file.
    ///
    /// # Errors
    /// Another process holds the lock; errors of the filesystem.
    pub(super) fn take(opened: &Opened, mountpoint: &Path) -> Result<Lock, Failure> {
        let lock = Lock::bare(opened)?;
        let text = [
            std::process::id().to_string().as_bytes(),
            b"\n",
            mountpoint.as_os_str().as_bytes(),
            b"\n",
        ]
        .concat();
        lock.file
            .set_len(0)
            .and_then(|()| lock.file.write_all_at(&text, 0))
            .map_err(|error| opened.told(LOCK, "writing it", error))?;
        Ok(lock)
    }

    /// Takes the lock without writing the holder.
    pub(super) fn bare(opened: &Opened) -> Result<Lock, Failure> {
        let failed = |error: io::Error| opened.told(LOCK, "locking the scratch", error);
        let (tries, pause) = PATIENCE;
        for _ in 0..tries {
            let file = opened.file(LOCK, OFlags::RDWR | OFlags::CREATE)?;
            let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The lock file may have been removed with its scratch before the lock was taken.
                Ok(()) if is_at(&file, opened) => return Ok(Lock { file }),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => thread::sleep(pause),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        let holder = holder(opened)?.unwrap_or(Holder { pid: None, mountpoint: None });
        Err(holder.refusal(opened.layout()))
    }

    /// Empties the lock file. The lock itself ends with the descriptor.
    pub(super) fn release(&mut self) {
        // The content of the file is ignored while nobody holds the lock.
        let _ = self.file.set_len(0).and_then(|()| self.file.flush());
    }
}

/// Whether a file is the present lock file of a scratch.
fn is_at(file: &File, opened: &Opened) -> bool {
    let own = file.metadata().map(|found| (found.dev(), found.ino()));
    let there = rustix::fs::statat(opened.fd(), LOCK, AtFlags::SYMLINK_NOFOLLOW);
    own.is_ok_and(|own| there.is_ok_and(|there| (there.st_dev, there.st_ino) == own))
}

/// Holder of the lock of a scratch; `None` if nobody holds it or there is no lock file.
///
/// # Errors
/// As [`Opened::file`].
pub(super) fn holder(opened: &Opened) -> Result<Option<Holder>, Failure> {
    let Some(file) = opened.file(LOCK, OFlags::RDONLY)? else { return Ok(None) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {
            let mut text = Vec::new();
            // The holder may be writing it: missing parts are unknown.
            let _ = file.take(LARGEST).read_to_end(&mut text);
            Ok(Some(Holder::parse(&text)))
        }
        _ => Ok(None),
    }
}
