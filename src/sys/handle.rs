//! File handles: a file's identity that outlives names and descriptors (open_by_handle_at(2)).
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::last_errno;

#[cfg(test)]
mod tests;

/// The longest handle (MAX_HANDLE_SZ).
const LONGEST: usize = 128;

/// As long as the handles of most filesystems: ext4 has 8 bytes, tmpfs and xfs 12.
const INLINE: usize = 12;

/// A file handle, valid on the filesystem that it comes from. One is kept for every known inode,
/// hence the care for its size.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileHandle(Form);

/// Equal handles have the same form: which one is decided by the length alone, and the unused end
/// of a short one is zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Form {
    Short { len: u8, kind: i32, bytes: [u8; INLINE] },
    Long(Box<(i32, Box<[u8]>)>),
}

const _: () = assert!(size_of::<FileHandle>() <= 24);

/// struct file_handle of fcntl.h with room for the longest.
#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; LONGEST],
}

impl FileHandle {
    /// Handle with the bytes of the kernel.
    pub(super) fn new(kind: i32, bytes: &[u8]) -> FileHandle {
        let mut short = [0; INLINE];
        FileHandle(match (short.get_mut(..bytes.len()), u8::try_from(bytes.len())) {
            (Some(start), Ok(len)) => {
                start.copy_from_slice(bytes);
                Form::Short { len, kind, bytes: short }
            }
            _ => Form::Long(Box::new((kind, bytes.into()))),
        })
    }

    fn kind(&self) -> i32 {
        match &self.0 {
            Form::Short { kind, .. } => *kind,
            Form::Long(long) => long.0,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.0 {
            Form::Short { len, bytes, .. } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Form::Long(long) => &long.1,
        }
    }

    /// The numbers of which one is the inode's, on filesystems that put it into the handle: as 32
    /// bits at the start (ext4 and most others), as 64 bits there (xfs, btrfs), or as two halves
    /// behind a generation (tmpfs).
    pub fn inode_candidates(&self) -> [u64; 3] {
        let word = |at: usize| {
            let bytes = self.bytes().get(at * 4..at * 4 + 4).and_then(|word| word.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let long = self.bytes().get(..8).and_then(|bytes| bytes.try_into().ok());
        let halves = u64::from(word(2)) << 32 | u64::from(word(1));
        [u64::from(word(0)), long.map_or(0, u64::from_ne_bytes), halves]
    }

    /// 32 bits made of it (FNV-1a), for where a number is asked for.
    pub fn digest(&self) -> u32 {
        let bytes = self.kind().to_ne_bytes().into_iter().chain(self.bytes().iter().copied());
        bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    fn raw(&self) -> Result<Raw, Errno> {
        let bytes = self.bytes();
        let mut raw = Raw { len: bytes.len() as u32, kind: self.kind(), bytes: [0; LONGEST] };
        raw.bytes.get_mut(..bytes.len()).ok_or(Errno::OVERFLOW)?.copy_from_slice(bytes);
        Ok(raw)
    }
}

/// The handle of a name in an open directory, links not followed, or of the directory itself with
/// an empty name.
///
/// # Errors
/// EOPNOTSUPP on a filesystem without handles; errors of name_to_handle_at(2).
pub fn handle_of(dir: impl AsFd, name: &CStr) -> Result<FileHandle, Errno> {
    let mut raw = Raw { len: LONGEST as u32, kind: 0, bytes: [0; LONGEST] };
    let mut mount = 0;
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: `name` is a C string, `raw` has the kernel's layout with the room that it states,
    // and both outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            fd,
            name.as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    let bytes = raw.bytes.get(..raw.len as usize).ok_or(Errno::OVERFLOW)?;
    Ok(FileHandle::new(raw.kind, bytes))
}

/// Opens a file by its handle. `mount` is any descriptor on its filesystem without O_PATH.
///
/// ext4 and other filesystems answer ENOMEM while the inode number of the handle is being given to
/// a new file: iget_locked() of the kernel has no other error for an inode that is not ready
/// (`I_CREATING`). The file of the handle is gone then, and ESTALE is the answer. Memory for one
/// inode is never refused otherwise: such small requests of the kernel wait for it.
///
/// # Errors
/// EBADF for a `mount` that was opened with O_PATH; ESTALE when the file is gone; EPERM without
/// CAP_DAC_READ_SEARCH; errors of open(2).
pub fn open_handle(mount: impl AsFd, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut raw = handle.raw()?;
    let fd = mount.as_fd().as_raw_fd();
    let flags = flags.bits() as i32;
    // SAFETY: `raw` has the kernel's layout, states its length and outlives the call.
    let fd = unsafe { libc::open_by_handle_at(fd, (&raw mut raw).cast(), flags) };
    if fd < 0 {
        return Err(match last_errno() {
            Errno::NOMEM => Errno::STALE,
            err => err,
        });
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
