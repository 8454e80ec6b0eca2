//! The lock of a scratch: held by the daemon that serves it.

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

/// How often and how long a lock is waited for: a listing holds it for a moment.
const PATIENCE: (u32, Duration) = (10, Duration::from_millis(10));

/// The most that is read of who holds a lock: a path of any length that can be mounted on.
const LARGEST: u64 = 8192;

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process, where it has said so.
    pub pid: Option<u32>,
    /// Where it serves the scratch, where it has said so.
    pub mountpoint: Option<PathBuf>,
}

impl Holder {
    /// Why nobody else can have it.
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

    /// The process in the first line, the mount point in the rest.
    fn parse(text: &[u8]) -> Holder {
        let mut parts = text.splitn(2, |byte| *byte == b'\n');
        let pid = parts.next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok());
        let mountpoint = parts.next().and_then(|rest| rest.strip_suffix(b"\n"));
        let path = |bytes: &[u8]| std::ffi::OsString::from_vec(bytes.to_vec()).into();
        Holder { pid, mountpoint: mountpoint.filter(|bytes| !bytes.is_empty()).map(path) }
    }
}

impl Lock {
    /// Takes the lock of a scratch for a mount, and writes down who has it.
    ///
    /// # Errors
    /// Another daemon holds it; those of the filesystem.
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

    /// Takes the lock and writes nothing.
    pub(super) fn bare(opened: &Opened) -> Result<Lock, Failure> {
        let failed = |error: io::Error| opened.told(LOCK, "locking the scratch", error);
        let (tries, pause) = PATIENCE;
        for _ in 0..tries {
            let file = opened.file(LOCK, OFlags::RDWR | OFlags::CREATE)?;
            let file = file.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The file may have been removed with its scratch before the lock was had.
                Ok(()) if is_at(&file, opened) => return Ok(Lock { file }),
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => thread::sleep(pause),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        let holder = holder(opened)?.unwrap_or(Holder { pid: None, mountpoint: None });
        Err(holder.refusal(opened.layout()))
    }

    /// Says that nobody has it any more. It goes with the descriptor.
    pub(super) fn release(&mut self) {
        // What is left in it is not looked at while nobody holds it.
        let _ = self.file.set_len(0).and_then(|()| self.file.flush());
    }
}

fn is_at(file: &File, opened: &Opened) -> bool {
    let own = file.metadata().map(|found| (found.dev(), found.ino()));
    let there = rustix::fs::statat(opened.fd(), LOCK, AtFlags::SYMLINK_NOFOLLOW);
    own.is_ok_and(|own| there.is_ok_and(|there| (there.st_dev, there.st_ino) == own))
}

/// Who holds the lock of a scratch; `None` where nobody does, or where there is none.
///
/// # Errors
/// What lies there is no lock.
pub(super) fn holder(opened: &Opened) -> Result<Option<Holder>, Failure> {
    let Some(file) = opened.file(LOCK, OFlags::RDONLY)? else { return Ok(None) };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {
            let mut text = Vec::new();
            // Whoever holds it may be writing: what is not there is unknown.
            let _ = file.take(LARGEST).read_to_end(&mut text);
            Ok(Some(Holder::parse(&text)))
        }
        _ => Ok(None),
    }
}
