//! Open files: read, write, synchronise, allocate, seek, copy.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, SeekFrom};
use rustix::io::Errno;

use super::attr::stat_of;
use super::handle::OpenFile;
use super::inode::{Ino, Node};
use super::{HandleId, Volume};
use crate::mapping::OpenMode;
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};

/// How a file is to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// With O_APPEND.
    pub append: bool,
    /// As long as it takes, on a thread that may wait.
    pub wait: bool,
}

/// A write as the caller's descriptor asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteRequest {
    /// Opened with O_APPEND, and not written back from the page cache.
    pub append: bool,
    /// Opened with O_SYNC or O_DSYNC: durable before the answer. The flag says that only the
    /// data has to be.
    pub durable: Option<DataOnly>,
    /// The caller has no right to leave setuid and setgid bits in place.
    pub kill_privileges: bool,
}

/// Whether a synchronisation may leave out attributes that are not needed to read the data.
pub type DataOnly = bool;

/// A search for data or holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The first byte of data at or after the offset.
    Data,
    /// The first byte of a hole at or after the offset; the end of the file is one.
    Hole,
}

impl Volume {
    /// Opens a file. Without [`Open::wait`] it does not wait for the holder of a lease.
    ///
    /// # Errors
    /// EROFS or EACCES where the view does not allow it; EAGAIN when it would have to wait; those
    /// of open(2) on the backing file.
    pub fn open(&self, ino: Ino, how: Open) -> Result<HandleId, Errno> {
        let node = self.node(ino)?;
        let mode = self.mode_of(&node);
        if how.write && !mode.writable() {
            return Err(Errno::ROFS);
        }
        if how.read && !mode.readable() {
            return Err(Errno::ACCESS);
        }
        let open = match (how.write, how.append) {
            (false, _) => OpenMode::Read,
            (true, false) => OpenMode::Write,
            (true, true) => OpenMode::Append,
        };
        let file = match self.files.reopen(node.key, open, &mode) {
            Some(file) => file,
            None => {
                let descriptor = self.open_backing(&node, open, how.wait)?;
                self.files.open(node.key, descriptor, open, &mode)
            }
        };
        Ok(self.handles.add_file(OpenFile::new(ino, file, open, mode.readable())))
    }

    /// Ends an open file.
    ///
    /// # Errors
    /// EBADF for an unknown handle.
    pub fn release(&self, id: HandleId) -> Result<(), Errno> {
        let open = self.handles.remove_file(id)?;
        self.files.release(&open.file, open.mode);
        Ok(())
    }

    /// Reads up to `len` bytes at `offset`; fewer mean the end of the file. `deliver` must only
    /// hand the bytes to the kernel.
    ///
    /// # Errors
    /// EBADF for an unknown handle; those of pread(2).
    pub fn read<R>(
        &self,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, Errno> {
        let open = self.handles.file(id)?;
        if !open.readable {
            return Err(Errno::ACCESS);
        }
        if self.keeps_atime && open.first_access() {
            open.file.note_access();
        }
        let result = open.file.read(offset, len, deliver);
        self.files.trim();
        result
    }

    /// Writes `data` and returns how much arrived.
    ///
    /// # Errors
    /// EBADF for an unknown handle or one that was not opened for writing; those of pwrite(2).
    pub fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        let open = self.writable_handle(id)?;
        let file = &open.file;
        let cleared =
            !request.kill_privileges || kill_privileges(file.descriptor().any()?, caller)?;
        let count = if request.append {
            let (count, expected) = file.append(offset, data, caller)?;
            if !expected {
                // Somebody else appended directly: the kernel has these bytes at a wrong place.
                self.invalidate_soon(open.ino);
            }
            count
        } else if cleared {
            file.write(offset, data, caller)?
        } else {
            file.write_plainly(offset, data, caller)?
        };
        if let Some(data_only) = request.durable {
            file.sync(data_only)?;
        }
        self.files.trim();
        Ok(count)
    }

    fn writable_handle(&self, id: HandleId) -> Result<Arc<OpenFile>, Errno> {
        let open = self.handles.file(id)?;
        if open.mode.writes() { Ok(open) } else { Err(Errno::BADF) }
    }

    fn invalidate_soon(&self, ino: Ino) {
        if let Some(invalidate) = self.invalidate.get() {
            invalidate.soon(ino);
        }
    }

    /// Makes a file durable.
    ///
    /// # Errors
    /// EBADF for an unknown handle; those of fsync(2).
    pub fn sync(&self, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        self.handles.file(id)?.file.sync(data_only)
    }

    /// fallocate(2) in any mode that the backing filesystem has.
    ///
    /// # Errors
    /// EBADF for a handle that cannot write; those of fallocate(2).
    pub fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let open = self.writable_handle(id)?;
        if caller.uid != 0 {
            kill_privileges(open.file.descriptor().any()?, caller)?;
        }
        let mode = FallocateFlags::from_bits_retain(mode);
        let descriptor = open.file.descriptor();
        let _as_caller = AsCaller::enter_to_write(caller)?;
        rustix::fs::fallocate(descriptor.writer()?, mode, offset, len)
    }

    /// Finds the next data or hole.
    ///
    /// # Errors
    /// ENXIO behind the end of the file; those of lseek(2).
    pub fn seek(&self, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let open = self.handles.file(id)?;
        let from = match to {
            SeekTo::Data => SeekFrom::Data(offset),
            SeekTo::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(open.file.descriptor().any()?, from)
    }

    /// Copies a range from one open file to another in the backing filesystem, by sharing blocks
    /// where it can.
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    pub fn copy_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        let source = self.handles.file(from.0)?;
        let target = self.writable_handle(to.0)?;
        if !source.readable {
            return Err(Errno::ACCESS);
        }
        if caller.uid != 0 {
            kill_privileges(target.file.descriptor().any()?, caller)?;
        }
        let (mut start, mut end) = (from.1, to.1);
        let (source, target) = (source.file.descriptor(), target.file.descriptor());
        let (source, target) = (source.reader()?, target.writer()?);
        let _as_caller = AsCaller::enter_to_write(caller)?;
        rustix::fs::copy_file_range(source, Some(&mut start), target, Some(&mut end), len)
    }

    /// One of the attribute ioctls (FS_IOC_GETFLAGS and the like) on an open file or directory.
    ///
    /// # Errors
    /// ENOTTY for any other; those of ioctl(2).
    pub fn ioctl(
        &self,
        id: HandleId,
        command: u32,
        data: &[u8],
        out_size: usize,
    ) -> Result<(i32, Vec<u8>), Errno> {
        let file = self.handles.file(id);
        if sys::file::changes_attributes(command) {
            let ino = match &file {
                Ok(open) => open.ino,
                Err(_) => self.handles.dir(id)?.ino,
            };
            self.check_changeable(&*self.node(ino)?)?;
        }
        if let Ok(open) = file {
            return sys::file::ioctl_attr(open.file.descriptor().any()?, command, data, out_size);
        }
        let dir = self.handles.dir(id)?;
        let stream = dir.stream.lock();
        sys::file::ioctl_attr(&stream.fd(), command, data, out_size)
    }

    /// Sets the size of a file, by an open handle that can write where there is one.
    pub(super) fn truncate(
        &self,
        node: &Node,
        handle: Option<HandleId>,
        size: u64,
        caller: &Caller,
    ) -> Result<(), Errno> {
        self.check_changeable(node)?;
        let file = self.files.get(node.key);
        let open = handle
            .and_then(|id| self.writable_handle(id).ok())
            .map(|open| open.file.descriptor())
            .or_else(|| file.as_ref().map(|file| file.descriptor()))
            .filter(|descriptor| descriptor.writer().is_ok());
        let descriptor = match open {
            Some(descriptor) => descriptor,
            None => self.open_backing(node, OpenMode::Write, true)?,
        };
        let fd = descriptor.writer()?;
        if caller.uid != 0 {
            kill_privileges(fd, caller)?;
        }
        let truncate = || rustix::fs::ftruncate(fd, size);
        match file {
            Some(file) => file.resize(truncate),
            None => truncate(),
        }
    }
}

/// Takes setuid, setgid and file capabilities away, as the kernel does when somebody without
/// CAP_FSETID changes a file's content (FUSE_HANDLE_KILLPRIV_V2). Setgid of a group that cannot
/// execute stays for a member of that group (setattr_should_drop_sgid of the kernel).
///
/// False when it is not ours to do: then we have no CAP_FSETID either, and the kernel does it at
/// the system call that changes the content.
fn kill_privileges(fd: impl AsFd, caller: &Caller) -> Result<bool, Errno> {
    let stat = stat_of(&fd)?;
    let mode = stat.mode;
    let mut kept = mode & 0o7777 & !libc::S_ISUID;
    if mode & libc::S_ISGID != 0 && (mode & libc::S_IXGRP != 0 || !caller.is_in_group(stat.gid)) {
        kept &= !libc::S_ISGID;
    }
    if kept != mode & 0o7777 {
        match rustix::fs::fchmod(&fd, Mode::from_raw_mode(kept)) {
            Ok(()) => {}
            Err(Errno::PERM) => return Ok(false),
            Err(err) => return Err(err),
        }
    }
    if mode & 0o111 == 0 {
        return Ok(true); // Capabilities matter only to what can be executed.
    }
    match rustix::fs::fremovexattr(&fd, c"security.capability") {
        // There are none, or the filesystem has no such attribute.
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(err) => Err(err),
    }
}
