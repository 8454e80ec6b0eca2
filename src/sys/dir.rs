//! Directory streams with the kernel's own cookies (getdents64(2)).
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::last_errno;

#[cfg(test)]
mod tests;

/// Enough for some hundred entries in a call, and the same as libc's.
const BUFFER: usize = 32 << 10;

/// Where the fields of struct linux_dirent64 are: inode and cookie of 8 bytes each, then two
/// bytes of length, one of type, and the name.
const LENGTH_AT: usize = 16;
const KIND_AT: usize = 18;
const NAME_AT: usize = 19;

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// The cookie at which a listing goes on after this entry.
    pub next: u64,
    /// Type (DT_*); 0 if the filesystem does not give it.
    pub kind: u8,
    /// Name.
    pub name: &'a OsStr,
}

/// An open directory that is being listed.
#[derive(Debug)]
pub struct DirStream {
    fd: Arc<OwnedFd>,
    buffer: Vec<u8>,
    /// Where in the buffer the next entry is.
    at: usize,
    /// The cookie of the next entry.
    cookie: u64,
    /// The kernel was asked for entries before.
    begun: bool,
}

impl DirStream {
    /// Stream from the start of a directory that is open for reading.
    pub fn new(fd: Arc<OwnedFd>) -> DirStream {
        DirStream { fd, buffer: Vec::new(), at: 0, cookie: 0, begun: false }
    }

    /// Goes to a cookie that an entry gave, or to the start with 0. Going to the start lists
    /// anew, as rewinddir(3) does.
    ///
    /// # Errors
    /// Errors of lseek(2) and getdents(2).
    pub fn seek(&mut self, cookie: u64) -> Result<(), Errno> {
        if cookie == self.cookie && cookie != 0 {
            return Ok(());
        }
        if cookie != 0 && !self.begun {
            // On ext4 a descriptor that was never read from its start cannot be rewound: it counts
            // as at the start already, and lists nothing.
            self.fill()?;
        }
        rustix::fs::seek(&self.fd, SeekFrom::Start(cookie))?;
        self.buffer.clear();
        self.at = 0;
        self.cookie = cookie;
        Ok(())
    }

    /// The cookie at which it goes on.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The next entry, which stays the next one; `None` at the end.
    ///
    /// # Errors
    /// Errors of getdents(2), ENOENT for a directory that was removed among them; EIO when the
    /// kernel's answer is malformed.
    pub fn peek(&mut self) -> Result<Option<DirEntry<'_>>, Errno> {
        if self.at >= self.buffer.len() && self.fill()? == 0 {
            return Ok(None);
        }
        entry(self.buffer.get(self.at..).unwrap_or_default()).map(|(entry, _)| Some(entry))
    }

    /// Goes past the entry that [`DirStream::peek`] gave.
    pub fn advance(&mut self) {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        if let Ok((next, len)) = entry(rest).map(|(entry, len)| (entry.next, len)) {
            self.at += len;
            self.cookie = next;
        }
    }

    fn fill(&mut self) -> Result<usize, Errno> {
        self.buffer.resize(BUFFER, 0);
        self.at = 0;
        self.begun = true;
        let fd = self.fd.as_raw_fd();
        let buffer = self.buffer.as_mut_ptr();
        // SAFETY: the buffer has BUFFER bytes and lives through the call, which fills it.
        let count = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer, BUFFER) };
        let filled = usize::try_from(count).map_err(|_| last_errno());
        self.buffer.truncate(*filled.as_ref().unwrap_or(&0));
        filled
    }
}

/// Parses the first entry of a getdents64(2) buffer, with its length.
fn entry(bytes: &[u8]) -> Result<(DirEntry<'_>, usize), Errno> {
    let number = |at: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let len = bytes.get(LENGTH_AT..LENGTH_AT + 2).and_then(|len| len.try_into().ok());
    let len = usize::from(u16::from_ne_bytes(len.ok_or(Errno::IO)?));
    let name = bytes.get(NAME_AT..len).ok_or(Errno::IO)?;
    let name = CStr::from_bytes_until_nul(name).map_err(|_| Errno::IO)?;
    let entry = DirEntry {
        ino: number(0).ok_or(Errno::IO)?,
        next: number(8).ok_or(Errno::IO)?,
        kind: *bytes.get(KIND_AT).ok_or(Errno::IO)?,
        name: OsStr::from_bytes(name.to_bytes()),
    };
    Ok((entry, len))
}
