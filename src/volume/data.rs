//! Open files: read, write, synchronise, allocate, seek, copy.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Volume;
use super::handle::OpenFile;
use super::inode::Node;
use super::plane_table::Candidate;
use super::stat::stat_of;
use crate::flags::{MapMode, PlaneChoice};
use crate::mapping::{BackingFile, Descriptor, OpenMode};
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};
use crate::tree::{
    DataOnly, Files, HandleId, Ino, Ioctl, Open, Opened, PageCache, Plane, RegisterBacking, SeekTo,
    Stat, WriteRequest,
};

impl Files for Volume {
    fn open(
        &self,
        ino: Ino,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno> {
        let node = self.node(ino)?;
        let (file, mode) = self.open_file(&node, &how)?;
        let opened = self.add_handle(&node, file, &how, &mode, (caller, register), None)?;
        if how.write
            && matches!(opened.plane, Plane::Passthrough(_))
            && let Some(caches) = self.invalidate.get().filter(|_| !node.had_set_id())
        {
            // They were told for long: see `attr_validity`. An inode that is forgotten has none.
            let _ = caches.inode(ino, false);
        }
        self.checked_for_direct(opened, how)
    }

    fn release(&self, id: HandleId) -> Result<(), Errno> {
        self.close(&*self.handles.remove_file(id)?);
        Ok(())
    }

    fn read(
        &self,
        ino: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let open = self.file_of(ino, id)?;
        if !open.readable {
            return Err(Errno::ACCESS);
        }
        if self.access_times.are_kept() && open.first_access() {
            open.file.note_access();
        }
        let result = open.file.read(offset, len, deliver);
        self.files.trim();
        result
    }

    fn write(
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

    fn sync(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        self.file_of(ino, id)?.file.sync(data_only)
    }

    fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        let open = self.writable_handle(id)?;
        let descriptor = open.file.descriptor();
        let fd = descriptor.writer()?;
        let set_id = libc::S_ISUID | libc::S_ISGID;
        let had_bits = caller.uid != 0 && stat_of(fd)?.mode & set_id != 0;
        let result = {
            // The filesystem takes setuid and setgid away, if it does what it is asked for.
            let _as_caller = AsCaller::enter(caller, had_bits)?;
            rustix::fs::fallocate(fd, FallocateFlags::from_bits_retain(mode), offset, len)
        };
        if had_bits {
            // The kernel goes on with the mode that it knows.
            self.invalidate_soon(open.ino);
        }
        result
    }

    fn seek(&self, ino: Ino, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        let open = self.file_of(ino, id)?;
        rustix::fs::seek(open.file.descriptor().any()?, to.starting_at(offset))
    }

    fn copy_range(
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

    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        request: &Ioctl<'_>,
        _: &Caller,
    ) -> Result<(i32, Vec<u8>), Errno> {
        let Ioctl { command, data, out_size, .. } = *request;
        let node = self.node(ino)?;
        if sys::file::changes_attributes(command) {
            self.check_changeable(&node)?;
        }
        if node.is_dir() {
            let dir = self.dir_of(ino, id)?;
            return sys::file::ioctl_attr(&dir.fd, command, data, out_size);
        }
        let file = Arc::clone(&self.file_of(ino, id)?.file);
        sys::file::ioctl_attr(file.descriptor().any()?, command, data, out_size)
    }
}

impl Volume {
    /// Opens the backing file of an inode for somebody who reads and writes it by himself.
    ///
    /// # Errors
    /// EINVAL for what is no regular file; errors of open(2).
    pub fn open_descriptor(&self, ino: Ino, mode: OpenMode) -> Result<Descriptor, Errno> {
        let node = self.node(ino)?;
        if mode.writes() {
            self.check_changeable(&node)?;
        }
        self.with_a_descriptor(|| self.open_backing(&node, mode, true))
    }

    /// Takes setuid, setgid and file capabilities away, as a write by the caller does.
    ///
    /// # Errors
    /// Errors of chmod(2).
    pub fn kill_privileges(&self, ino: Ino, caller: &Caller) -> Result<(), Errno> {
        let node = self.node(ino)?;
        if stat_of(&*self.pin(&node)?)?.mode & (libc::S_ISUID | libc::S_ISGID | 0o111) == 0 {
            return Ok(());
        }
        kill_privileges(self.open_backing(&node, OpenMode::Write, true)?.any()?, caller).map(drop)
    }

    /// Takes a backing file into use.
    fn open_file(&self, node: &Node, how: &Open) -> Result<(Arc<BackingFile>, MapMode), Errno> {
        let mode = self.mode_of(node);
        if how.write && !mode.writable() {
            return Err(Errno::ROFS);
        }
        if how.read && !mode.readable() {
            return Err(Errno::ACCESS);
        }
        let open = how.mode();
        // Held until it is reopened: what is in use by the number is this very file then.
        let used = self.in_use_by(node);
        let reopened = used.as_ref().and_then(|_| self.files.reopen(node.key(), open, &mode));
        let file = match reopened {
            Some(file) => {
                check_guards(&file, open).inspect_err(|_| self.files.release(&file, open))?;
                file
            }
            None => {
                let opened = || self.open_backing(node, open, how.wait);
                let descriptor = self.with_a_descriptor(|| self.planes.past_probes(opened))?;
                self.files.open(node.key(), descriptor, open, &mode)
            }
        };
        Ok((file, mode))
    }

    /// Makes a handle of a file in use, on the plane of its inode. `stat` is what was just read of
    /// its attributes, if anything was.
    pub(super) fn add_handle(
        &self,
        node: &Node,
        file: Arc<BackingFile>,
        how: &Open,
        mode: &MapMode,
        candidate: (&Caller, &RegisterBacking<'_>),
        stat: Option<&Stat>,
    ) -> Result<Opened, Errno> {
        let open = how.mode();
        let (caller, register) = candidate;
        let descriptor = file.descriptor();
        let fd = descriptor.any().inspect_err(|_| self.files.release(&file, open))?.as_fd();
        let reader = || self.reader_to_lend(node, fd, descriptor.writer().is_ok());
        let candidate = Candidate {
            ino: node.ino,
            lent: &node.lent,
            unlent: how.unlent,
            mode,
            file: fd,
            stat,
            reader: &reader,
            caller,
            register,
        };
        let (hold, plane) = self.planes.hold(&candidate);
        if how.write && matches!(plane, Plane::Passthrough(_)) {
            self.planes.note_writer(&node.stored_to);
        }
        let handle = OpenFile::new(node.ino, file, open, mode.readable(), Some(hold));
        let by_request = (how.append || how.direct) && mode.plane != PlaneChoice::Passthrough;
        let id = self.handles.add_file(handle);
        Ok(Opened { id, plane, by_request, cache: PageCache::Kept })
    }

    /// The kernel opens the backing file with the caller's flags, and makes EIO of whatever goes
    /// wrong: that its filesystem has no direct I/O is said here.
    pub(super) fn checked_for_direct(&self, opened: Opened, how: Open) -> Result<Opened, Errno> {
        if !how.direct || !matches!(opened.plane, Plane::Passthrough(_)) {
            return Ok(opened);
        }
        let file = Arc::clone(&self.handles.file(opened.id)?.file);
        let descriptor = file.descriptor();
        let path = sys::fd_path(descriptor.any()?.as_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::INVAL) => {
                self.release(opened.id)?;
                Err(Errno::INVAL)
            }
            _ => Ok(opened),
        }
    }

    pub(super) fn close(&self, open: &OpenFile) {
        self.files.release(&open.file, open.mode);
    }

    /// The file that a request is about: an open one, or one that the kernel has opened without
    /// asking ([`HandleId::NONE`]), which is then held open for a moment.
    fn file_of(&self, ino: Ino, id: HandleId) -> Result<Arc<OpenFile>, Errno> {
        if id != HandleId::NONE {
            return self.handles.file(id);
        }
        if let Some(open) = self.unopened.get(ino) {
            return Ok(open);
        }
        let how = Open { read: true, wait: true, ..Open::default() };
        let (file, mode) = self.open_file(&*self.node(ino)?, &how)?;
        let open = Arc::new(OpenFile::new(ino, file, how.mode(), mode.readable(), None));
        self.unopened.put(ino, Arc::clone(&open)).iter().for_each(|gone| self.close(gone));
        self.sweeper.note();
        Ok(open)
    }

    fn writable_handle(&self, id: HandleId) -> Result<Arc<OpenFile>, Errno> {
        let open = self.handles.file(id)?;
        if open.mode.writes() { Ok(open) } else { Err(Errno::BADF) }
    }

    fn invalidate_soon(&self, ino: Ino) {
        if let Some(invalidate) = self.invalidate.get().filter(|_| self.is_told_of(ino)) {
            invalidate.soon(ino);
        }
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
        let file = self.in_use_by(node).map(|(file, _)| file);
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

/// Whether a file in use may be opened once more: what chattr(1) has made of it meanwhile, its
/// descriptor does not know.
fn check_guards(file: &BackingFile, open: OpenMode) -> Result<(), Errno> {
    if !open.writes() {
        return Ok(());
    }
    let stat = stat_of(file.descriptor().any()?)?;
    let refused = stat.immutable || stat.append_only && !matches!(open, OpenMode::Append);
    if refused { Err(Errno::PERM) } else { Ok(()) }
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
