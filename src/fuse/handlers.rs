//! The FUSE handlers. Each decodes its request, makes one call and sends one reply.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::adapter::{
    Adapter, CONTROL_FLAGS, caller, handle, reply_empty, reply_written, reply_xattr,
};
use super::convert::{self, ino};
use super::features;
use crate::control::counters::Operation;
use crate::control::report::Kernel;
use crate::sys;
use crate::sys::cred::Caller;
use crate::volume::{HandleId, NewNode, Open, SeekTo, SetAttr, WriteRequest, XattrFlags};

// The parameters of a request are written across, not down: so the whole trait fits on a few
// pages.
#[rustfmt::skip]
impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let features = features::negotiate(config);
        self.control.session_started(Kernel {
            protocol: config.kernel_abi().to_string(),
            max_write: u64::from(features::MAX_REQUEST),
            features,
        });
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let trace = self.trace(Operation::Lookup, req, parent);
        let found = match self.control.lookup(ino(parent), name) {
            Some(found) => found,
            None => self.volume.lookup(ino(parent), name),
        };
        match found {
            Err(Errno::NOENT) if !self.options.negative_timeout.is_zero() => {
                self.reply_no_entry(reply);
            }
            found => self.reply_entry(trace.end(found), reply),
        }
    }

    fn forget(&self, req: &Request, number: INodeNo, lookups: u64) {
        let trace = self.trace(Operation::Forget, req, number);
        if !self.control.owns(ino(number)) {
            self.volume.forget(ino(number), lookups);
        }
        trace.handed_over();
    }

    fn getattr(&self, req: &Request, number: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let trace = self.trace(Operation::GetAttr, req, number);
        let attr = match self.control.attr(ino(number)) {
            Some(attr) => Ok(attr),
            None => self.volume.attr(ino(number), fh.map(handle)),
        };
        match trace.end(attr) {
            Ok(attr) => reply.attr(&self.options.attr_timeout, &convert::attr(&attr)),
            Err(err) => reply.error(err),
        }
    }

    fn setattr(
        &self, req: &Request, number: INodeNo, mode: Option<u32>, uid: Option<u32>,
        gid: Option<u32>, size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>, fh: Option<FileHandle>, _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>, _bkuptime: Option<SystemTime>, _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let trace = self.trace(Operation::SetAttr, req, number);
        let atime = atime.map(convert::new_time);
        let mtime = mtime.map(convert::new_time);
        let change = SetAttr { mode, uid, gid, size, atime, mtime };
        let attr = match self.control.attr(ino(number)) {
            Some(attr) => self.control.set_attr(&change).map(|()| attr),
            None => self.volume.set_attr(ino(number), fh.map(handle), change, &caller(req)),
        };
        match trace.end(attr) {
            Ok(attr) => reply.attr(&self.options.attr_timeout, &convert::attr(&attr)),
            Err(err) => reply.error(err),
        }
    }

    fn readlink(&self, req: &Request, number: INodeNo, reply: ReplyData) {
        let trace = self.trace(Operation::ReadLink, req, number);
        match trace.end(self.volume.read_link(ino(number))) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(err) => reply.error(err),
        }
    }

    fn mknod(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::MkNod, req, parent);
        let device = convert::device_from(rdev);
        let new = NewNode { mode, umask, caller: &caller(req) };
        let made = self.volume.make_node(ino(parent), name, &new, device);
        self.reply_entry(trace.end(made), reply);
    }

    fn mkdir(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::MkDir, req, parent);
        let new = NewNode { mode, umask, caller: &caller(req) };
        let made = self.volume.make_dir(ino(parent), name, &new);
        self.reply_entry(trace.end(made), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let trace = self.trace(Operation::Unlink, req, parent);
        reply_empty(trace.end(self.volume.remove(ino(parent), name, false)), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let trace = self.trace(Operation::RmDir, req, parent);
        reply_empty(trace.end(self.volume.remove(ino(parent), name, true)), reply);
    }

    fn symlink(
        &self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::Symlink, req, parent);
        let target = target.as_os_str();
        let made = self.volume.make_symlink(ino(parent), name, target, &caller(req));
        self.reply_entry(trace.end(made), reply);
    }

    fn rename(
        &self, req: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo,
        new_name: &OsStr, flags: fuser::RenameFlags, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Rename, req, parent);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let (from, to) = ((ino(parent), name), (ino(new_parent), new_name));
        reply_empty(trace.end(self.volume.rename(from, to, flags, &caller(req))), reply);
    }

    fn link(
        &self, req: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::Link, req, number);
        let made = self.volume.link(ino(number), ino(parent), name);
        self.reply_entry(trace.end(made), reply);
    }

    fn open(&self, req: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let trace = self.trace(Operation::Open, req, number);
        let mode = flags.acc_mode();
        let (read, write) = (mode != OpenAccMode::O_WRONLY, mode != OpenAccMode::O_RDONLY);
        if self.control.owns(ino(number)) {
            match trace.end(self.control.open(ino(number), read, write)) {
                Ok(id) => reply.opened(FileHandle(id.0), CONTROL_FLAGS),
                Err(err) => reply.error(err),
            }
            return;
        }
        let append = flags.0 & libc::O_APPEND != 0;
        let how = Open { read, write, append, wait: false };
        match self.volume.open(ino(number), how) {
            Err(Errno::AGAIN) => {
                trace.handed_over();
                self.open_later(ino(number), Open { wait: true, ..how }, reply);
            }
            opened => self.reply_open(trace.end(opened), write, reply),
        }
    }

    fn create(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32,
        reply: ReplyCreate,
    ) {
        let trace = self.trace(Operation::Create, req, parent);
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let exclusive = flags & libc::O_EXCL != 0;
        let new = NewNode { mode, umask, caller: &caller(req) };
        let made = self.volume.create(ino(parent), name, &new, write, exclusive);
        match trace.end(made) {
            Ok((entry, id)) => reply.created(
                &self.options.attr_timeout.min(self.options.entry_timeout),
                &convert::attr(&entry.attr),
                Generation(u64::from(entry.generation)),
                FileHandle(id.0),
                self.open_flags(write),
            ),
            Err(err) => reply.error(err),
        }
    }

    fn read(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, size: u32,
        _flags: OpenFlags, _lock: Option<LockOwner>, reply: ReplyData,
    ) {
        let trace = self.trace(Operation::Read, req, number).range(offset, u64::from(size));
        if self.control.owns(ino(number)) {
            match trace.end(self.control.read(handle(fh), offset, size as usize)) {
                Ok(bytes) => reply.data(&bytes),
                Err(err) => reply.error(err),
            }
            return;
        }
        // The reply is sent while the mapping is held, and is left over when nothing was read.
        let mut slot = Some(reply);
        let sent = self.volume.read(handle(fh), offset, size as usize, |bytes| {
            if let Some(reply) = slot.take() {
                reply.data(bytes);
            }
        });
        if let Err(err) = trace.end(sent)
            && let Some(reply) = slot
        {
            reply.error(err);
        }
    }

    fn write(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, data: &[u8],
        write_flags: WriteFlags, flags: OpenFlags, lock: Option<LockOwner>, reply: ReplyWrite,
    ) {
        let trace = self.trace(Operation::Write, req, number).range(offset, data.len() as u64);
        if self.control.owns(ino(number)) {
            // A command may take long and may make the kernel write back: it gets a thread.
            self.control.write(handle(fh), data.to_vec(), lock.map(|lock| lock.0), |result| {
                reply_written(result.map_err(convert::errno), reply);
            });
            return trace.handed_over();
        }
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let request = WriteRequest {
            append: flags.0 & libc::O_APPEND != 0 && !from_cache,
            durable: convert::durability(flags.0),
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        // Whose store it was that is written back from the page cache is not known.
        let who = if from_cache { Caller { uid: 0, gid: 0, pid: 0 } } else { caller(req) };
        let written = self.volume.write(handle(fh), offset, data, request, &who);
        reply_written(trace.end(written), reply);
    }

    fn flush(
        &self, req: &Request, number: INodeNo, fh: FileHandle, lock: LockOwner,
        reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Flush, req, number);
        if !self.control.owns(ino(number)) {
            return reply_empty(trace.end(Ok(())), reply);
        }
        self.control.finish(handle(fh), lock.0, |result| {
            reply_empty(result.map_err(convert::errno), reply);
        });
        trace.handed_over();
    }

    fn release(
        &self, req: &Request, number: INodeNo, fh: FileHandle, _flags: OpenFlags,
        _lock: Option<LockOwner>, _flush: bool, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Release, req, number);
        let result = match self.control.owns(ino(number)) {
            true => self.control.release(handle(fh)),
            false => self.volume.release(handle(fh)),
        };
        reply_empty(trace.end(result), reply);
    }

    fn fsync(
        &self, req: &Request, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Fsync, req, number);
        let result = match self.control.owns(ino(number)) {
            true => Ok(()),
            false => self.volume.sync(handle(fh), data_only),
        };
        reply_empty(trace.end(result), reply);
    }

    fn opendir(&self, req: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let trace = self.trace(Operation::OpenDir, req, number);
        let opened = match self.control.owns(ino(number)) {
            true => Ok(HandleId(0)),
            false => self.volume.open_dir(ino(number)),
        };
        match trace.end(opened) {
            Ok(id) => reply.opened(FileHandle(id.0), FopenFlags::empty()),
            Err(err) => reply.error(err),
        }
    }

    fn readdir(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let trace = self.trace(Operation::ReadDir, req, number).range(offset, 0);
        let listed = self.list(ino(number), handle(fh), offset, false, &mut |item| {
            reply.add(INodeNo(item.ino.0), item.next, convert::kind(item.kind), item.name)
        });
        match trace.end(listed) {
            Ok(()) => reply.ok(),
            Err(err) => reply.error(err),
        }
    }

    fn readdirplus(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let trace = self.trace(Operation::ReadDirPlus, req, number).range(offset, 0);
        let timeout = self.options.attr_timeout.min(self.options.entry_timeout);
        let listed = self.list(ino(number), handle(fh), offset, true, &mut |item| {
            let (attr, generation) = match &item.entry {
                Some(entry) => (convert::attr(&entry.attr), u64::from(entry.generation)),
                None => (convert::bare_attr(item), 0),
            };
            let timeout = if item.known { timeout } else { Duration::ZERO };
            reply.add(attr.ino, item.next, item.name, &timeout, &attr, Generation(generation))
        });
        match trace.end(listed) {
            Ok(()) => reply.ok(),
            Err(err) => reply.error(err),
        }
    }

    fn releasedir(
        &self, req: &Request, number: INodeNo, fh: FileHandle, _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::ReleaseDir, req, number);
        let result = match self.control.owns(ino(number)) {
            true => Ok(()),
            false => self.volume.release_dir(handle(fh)),
        };
        reply_empty(trace.end(result), reply);
    }

    fn fsyncdir(
        &self, req: &Request, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::FsyncDir, req, number);
        let result = match self.control.owns(ino(number)) {
            true => Ok(()),
            false => self.volume.sync_dir(handle(fh), data_only),
        };
        reply_empty(trace.end(result), reply);
    }

    fn statfs(&self, req: &Request, number: INodeNo, reply: ReplyStatfs) {
        let trace = self.trace(Operation::StatFs, req, number);
        let number = if self.control.owns(ino(number)) { INodeNo::ROOT } else { number };
        match trace.end(self.volume.statistics(ino(number))) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namemax).unwrap_or(255),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(err) => reply.error(err),
        }
    }

    fn setxattr(
        &self, req: &Request, number: INodeNo, name: &OsStr, value: &[u8], flags: i32,
        _position: u32, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::SetXattr, req, number);
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let result = self.volume.set_xattr(ino(number), name, value, flags, &caller(req));
        reply_empty(trace.end(result), reply);
    }

    fn getxattr(&self, req: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let trace = self.trace(Operation::GetXattr, req, number);
        reply_xattr(trace, size, reply, |buffer| match self.control.xattr(ino(number), name) {
            Some(value) => convert::copy_value(value?, buffer),
            None => self.volume.get_xattr(ino(number), name, buffer),
        });
    }

    fn listxattr(&self, req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let trace = self.trace(Operation::ListXattr, req, number);
        reply_xattr(trace, size, reply, |buffer| match self.control.owns(ino(number)) {
            true => Ok(0),
            false => self.volume.list_xattr(ino(number), buffer, &caller(req)),
        });
    }

    fn removexattr(&self, req: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let trace = self.trace(Operation::RemoveXattr, req, number);
        reply_empty(trace.end(self.volume.remove_xattr(ino(number), name)), reply);
    }

    fn ioctl(
        &self, req: &Request, number: INodeNo, fh: FileHandle, _flags: IoctlFlags, command: u32,
        data: &[u8], out_size: u32, reply: ReplyIoctl,
    ) {
        let trace = self.trace(Operation::Ioctl, req, number);
        if self.control.owns(ino(number)) && sys::file::is_command(command) {
            self.control.write(handle(fh), data.to_vec(), None, |result| match result {
                Ok(_) => reply.ioctl(0, &[]),
                Err(err) => reply.error(convert::errno(err)),
            });
            return trace.handed_over();
        }
        let result = match self.control.owns(ino(number)) {
            true => Err(Errno::NOTTY),
            false => self.volume.ioctl(handle(fh), command, data, out_size as usize),
        };
        match trace.end(result) {
            Ok((value, data)) => reply.ioctl(value, &data),
            Err(err) => reply.error(err),
        }
    }

    /// Files are always ready. Refusing would turn poll off for the control file too.
    fn poll(
        &self, req: &Request, number: INodeNo, _fh: FileHandle, _notifier: PollNotifier,
        events: PollEvents, _flags: PollFlags, reply: ReplyPoll,
    ) {
        let trace = self.trace(Operation::Poll, req, number);
        trace.handed_over();
        reply.poll(events & convert::READY);
    }

    fn fallocate(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, len: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Fallocate, req, number).range(offset, len);
        let result = self.volume.allocate(handle(fh), offset, len, mode as u32, &caller(req));
        reply_empty(trace.end(result), reply);
    }

    fn lseek(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        let trace = self.trace(Operation::Lseek, req, number);
        let found = match (whence, u64::try_from(offset)) {
            (libc::SEEK_DATA, Ok(offset)) => self.volume.seek(handle(fh), offset, SeekTo::Data),
            (libc::SEEK_HOLE, Ok(offset)) => self.volume.seek(handle(fh), offset, SeekTo::Hole),
            (libc::SEEK_DATA | libc::SEEK_HOLE, Err(_)) => Err(Errno::NXIO),
            _ => Err(Errno::INVAL),
        };
        match trace.end(found) {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(err) => reply.error(err),
        }
    }

    fn copy_file_range(
        &self, req: &Request, number: INodeNo, fh_in: FileHandle, offset_in: u64,
        _ino_out: INodeNo, fh_out: FileHandle, offset_out: u64, len: u64,
        _flags: CopyFileRangeFlags, reply: ReplyWrite,
    ) {
        let trace = self.trace(Operation::CopyFileRange, req, number).range(offset_in, len);
        // The reply has 32 bits for the count.
        let len = len.min(1 << 30) as usize;
        let (from, to) = ((handle(fh_in), offset_in), (handle(fh_out), offset_out));
        reply_written(trace.end(self.volume.copy_range(from, to, len, &caller(req))), reply);
    }
}
