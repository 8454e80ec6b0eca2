//! Notices of changes in a filesystem, by file handle and name (fanotify(7)).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::io::Errno;

use super::handle::FileHandle;
use super::{check, fd_path, last_errno};

#[cfg(test)]
mod tests;

/// All changes of names, attributes and content, also of directories. A store to a mapping gives no
/// notice until the file is closed.
const CHANGES: u64 = libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_MOVE_SELF
    | libc::FAN_ONDIR;

/// The length of struct fanotify_event_metadata.
const METADATA: usize = 24;

/// Notice of a change, or of changes that were lost because the queue was full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The changes: bits `FAN_...` of fanotify(7).
    pub mask: u64,
    /// Process that made the change; 0 for another process whose id the kernel hides.
    pub pid: u32,
    /// The changed object: the file, or the directory itself.
    pub object: Option<FileHandle>,
    /// A directory and a name in it; `.` is the directory itself.
    pub name: Option<(FileHandle, OsString)>,
}

impl Event {
    /// Whether changes were lost.
    pub fn is_overflow(&self) -> bool {
        self.mask & libc::FAN_Q_OVERFLOW != 0
    }

    /// Whether it is about a name in a directory.
    pub fn is_of_a_name(&self) -> bool {
        let names = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
        self.mask & names != 0
    }

    /// Whether it is about the content of a file.
    pub fn is_of_content(&self) -> bool {
        self.mask & (libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE) != 0
    }
}

/// A queue of notices.
#[derive(Debug)]
pub struct Fanotify(OwnedFd);

impl Fanotify {
    /// Makes a queue, read without waiting. With `targets`, notices of names tell the file too.
    ///
    /// # Errors
    /// EINVAL before Linux 5.9 (5.17 with `targets`), EPERM before 5.13 without CAP_SYS_ADMIN,
    /// ENOSYS where the kernel has no fanotify; errors of fanotify_init(2).
    pub fn new(targets: bool) -> Result<Fanotify, Errno> {
        let mut flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_FID
            | libc::FAN_REPORT_DFID_NAME;
        if targets {
            flags |= libc::FAN_REPORT_TARGET_FID;
        }
        let event_flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u32;
        // SAFETY: both arguments are plain numbers.
        let fd = unsafe { libc::fanotify_init(flags, event_flags) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just given this descriptor to us alone.
        Ok(Fanotify(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks for the changes in the whole filesystem of an open directory.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; ENODEV, EOPNOTSUPP and EXDEV if files cannot be reported by
    /// handle; errors of fanotify_mark(2).
    pub fn mark_filesystem(&self, dir: impl AsFd) -> Result<(), Errno> {
        self.mark(libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, CHANGES, dir.as_fd())
    }

    /// Asks for the changes in one open directory, and of the files that are reached through it.
    ///
    /// # Errors
    /// As [`Fanotify::mark_filesystem`], and ENOSPC when the user has no marks left.
    pub fn mark_directory(&self, dir: impl AsFd) -> Result<(), Errno> {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_ONLYDIR;
        self.mark(flags, CHANGES | libc::FAN_EVENT_ON_CHILD, dir.as_fd())
    }

    /// Takes [`Fanotify::mark_directory`] back.
    ///
    /// # Errors
    /// ENOENT when it was not asked for; errors of fanotify_mark(2).
    pub fn unmark_directory(&self, dir: impl AsFd) -> Result<(), Errno> {
        let flags = libc::FAN_MARK_REMOVE | libc::FAN_MARK_ONLYDIR;
        self.mark(flags, CHANGES | libc::FAN_EVENT_ON_CHILD, dir.as_fd())
    }

    /// Asks for no more notices of writes to an open file. It stays in memory meanwhile.
    ///
    /// # Errors
    /// Errors of fanotify_mark(2).
    pub fn throttle(&self, file: impl AsFd) -> Result<(), Errno> {
        let flags =
            libc::FAN_MARK_ADD | libc::FAN_MARK_IGNORED_MASK | libc::FAN_MARK_IGNORED_SURV_MODIFY;
        self.mark_file(flags, file.as_fd())
    }

    /// Takes [`Fanotify::throttle`] back.
    ///
    /// # Errors
    /// Errors of fanotify_mark(2).
    pub fn unthrottle(&self, file: impl AsFd) -> Result<(), Errno> {
        self.mark_file(libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORED_MASK, file.as_fd())
    }

    fn mark_file(&self, flags: u32, file: BorrowedFd<'_>) -> Result<(), Errno> {
        // By its link in /proc, so that an O_PATH descriptor is enough.
        let path = CString::new(fd_path(file).into_os_string().into_vec());
        let path = path.map_err(|_| Errno::INVAL)?;
        let queue = self.0.as_raw_fd();
        let (mask, here) = (libc::FAN_MODIFY, libc::AT_FDCWD);
        // SAFETY: the path is a C string that outlives the call.
        check(unsafe { libc::fanotify_mark(queue, flags, mask, here, path.as_ptr()) })
    }

    fn mark(&self, flags: u32, mask: u64, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        // By the name `.`, so that an O_PATH descriptor is enough.
        let (queue, dir): (RawFd, RawFd) = (self.0.as_raw_fd(), dir.as_raw_fd());
        // SAFETY: the path is a C string that outlives the call.
        check(unsafe { libc::fanotify_mark(queue, flags, mask, dir, c".".as_ptr()) })
    }

    /// Reads notices from the queue into `buffer`, and passes each to `take`. Returns false if the
    /// queue was empty.
    ///
    /// # Errors
    /// Errors of read(2).
    pub fn read(&self, buffer: &mut [u8], mut take: impl FnMut(Event)) -> Result<bool, Errno> {
        match rustix::io::read(&self.0, &mut *buffer) {
            Ok(0) | Err(Errno::AGAIN) => Ok(false),
            Ok(count) => {
                parse(buffer.get(..count).unwrap_or_default(), &mut take);
                Ok(true)
            }
            Err(err) => Err(err),
        }
    }
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads a number at an offset.
fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// Splits a read from the queue into notices. It ends at a notice that is cut short or of another
/// version.
fn parse(mut bytes: &[u8], take: &mut impl FnMut(Event)) {
    while let Some((event, rest)) = first(bytes) {
        take(event);
        bytes = rest;
    }
}

fn first(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let len = u32::from_ne_bytes(at(bytes, 0)?) as usize;
    let version = *bytes.get(4)?;
    let metadata = usize::from(u16::from_ne_bytes(at(bytes, 6)?));
    if version != libc::FANOTIFY_METADATA_VERSION || metadata < METADATA || len < metadata {
        return None;
    }
    let mut event = Event {
        mask: u64::from_ne_bytes(at(bytes, 8)?),
        pid: u32::from_ne_bytes(at(bytes, 20)?),
        object: None,
        name: None,
    };
    let mut records = bytes.get(metadata..len)?;
    while let Some((kind, body, rest)) = record(records) {
        match kind {
            libc::FAN_EVENT_INFO_TYPE_FID => event.object = handle(body).map(|(found, _)| found),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
                event.name = handle(body).map(|(found, rest)| (found, name(rest)));
            }
            _ => {}
        }
        records = rest;
    }
    Some((event, bytes.get(len..)?))
}

/// One struct fanotify_event_info_fid: its type, what is behind its header and its fsid, and what
/// is behind it.
fn record(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let kind = *bytes.first()?;
    let len = usize::from(u16::from_ne_bytes(at(bytes, 2)?));
    Some((kind, bytes.get(12..len)?, bytes.get(len..)?))
}

/// A struct file_handle and what is behind it.
fn handle(bytes: &[u8]) -> Option<(FileHandle, &[u8])> {
    let len = u32::from_ne_bytes(at(bytes, 0)?) as usize;
    let kind = i32::from_ne_bytes(at(bytes, 4)?);
    let (handle, rest) = bytes.get(8..)?.split_at_checked(len)?;
    Some((FileHandle::new(kind, handle), rest))
}

fn name(bytes: &[u8]) -> OsString {
    CStr::from_bytes_until_nul(bytes)
        .map_or_else(|_| OsString::new(), |name| OsStr::from_bytes(name.to_bytes()).to_owned())
}
