//! Open files.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fuser::{
    FileHandle, INodeNo, LockOwner, OpenFlags, PollEvents, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyWrite, WriteFlags,
};
use rustix::io::Errno;

use crate::control::counters::Operation;
use crate::fuse::adapter::{Adapter, CONTROL_FLAGS, handle, register, reply_empty, reply_written};
use crate::fuse::convert::{self, how, ino};
use crate::sys;
use crate::sys::cred::Caller;
use crate::tree::{BackingRegistration, NewNode, Open, SeekTo, WriteRequest};

// As in the trait: parameters across, not down, and as many as the request has.
#[rustfmt::skip]
#[allow(clippy::too_many_arguments)]
impl Adapter {
    pub(in crate::fuse) fn open(
        &self, who: &Caller, number: INodeNo, flags: OpenFlags, reply: ReplyOpen,
    ) {
        let trace = self.trace(Operation::Open, who, number);
        if self.options.silent_files {
            // The kernel opens files without asking from now on.
            return reply.error(trace.refuse(Errno::NOSYS));
        }
        let how = how(flags);
        if self.control.owns(ino(number)) {
            match trace.end(self.control.open(ino(number), how.read, how.write)) {
                Ok(id) => reply.opened(FileHandle(id.0), CONTROL_FLAGS),
                Err(err) => reply.error(err),
            }
            return;
        }
        let opened = self.tree.open(ino(number), how, who, &|fd| register(&reply, fd));
        match opened {
            Err(Errno::AGAIN) if flags.0 & libc::O_NONBLOCK == 0 => {
                trace.handed_over();
                self.open_later(ino(number), Open { wait: true, ..how }, *who, reply);
            }
            opened => self.reply_open(trace.end(opened), how.write, reply),
        }
    }

    pub(in crate::fuse) fn create(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32,
        reply: ReplyCreate,
    ) {
        let trace = self.trace(Operation::Create, who, parent);
        let how = how(OpenFlags(flags));
        let exclusive = flags & libc::O_EXCL != 0;
        let new = NewNode { mode, umask, caller: who };
        let register = |fd: BorrowedFd<'_>| reply.open_backing(fd).map(|id| Arc::new(id) as BackingRegistration);
        let made = self.tree.create(ino(parent), name, &new, &how, exclusive, &register);
        match trace.end(made) {
            Ok((entry, opened)) => self.reply_created(&entry, &opened, how.write, reply),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn read(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, offset: u64, size: u32,
        reply: ReplyData,
    ) {
        let trace = self.trace(Operation::Read, who, number).range(offset, u64::from(size));
        if self.control.owns(ino(number)) {
            match trace.end(self.control.read(ino(number), handle(fh), offset, size as usize)) {
                Ok(bytes) => reply.data(&bytes),
                Err(err) => reply.error(err),
            }
            return;
        }
        // The reply is sent while the mapping is held, and is left over when nothing was read.
        let mut slot = Some(reply);
        let sent = self.tree.read(ino(number), handle(fh), offset, size as usize, &mut |bytes| {
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

    pub(in crate::fuse) fn write(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, offset: u64, data: &[u8],
        write_flags: WriteFlags, flags: OpenFlags, lock: Option<LockOwner>, reply: ReplyWrite,
    ) {
        let trace = self.trace(Operation::Write, who, number).range(offset, data.len() as u64);
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
        // The writer of a store that is written back from the page cache is not known.
        let who = if from_cache { Caller { uid: 0, gid: 0, pid: 0 } } else { *who };
        let mut written = self.tree.write(handle(fh), offset, data, request, &who);
        // The kernel looks at the count of what a client writes. A write-back from its cache is
        // done or failed: of a part nobody would ever hear.
        while let Ok(count @ 1..) = written
            && from_cache
            && let Some(rest) = data.get(count..).filter(|rest| !rest.is_empty())
        {
            let more = self.tree.write(handle(fh), offset + count as u64, rest, request, &who);
            written = match more {
                Ok(0) => Err(Errno::IO),
                more => more.map(|more| count + more),
            };
        }
        reply_written(trace.end(written), reply);
    }

    pub(in crate::fuse) fn flush(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, lock: LockOwner, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Flush, who, number);
        if self.options.silent_files {
            return reply.error(trace.refuse(Errno::NOSYS));
        }
        if !self.control.owns(ino(number)) {
            return reply_empty(trace.end(Ok(())), reply);
        }
        self.control.finish(handle(fh), lock.0, |result| {
            reply_empty(result.map_err(convert::errno), reply);
        });
        trace.handed_over();
    }

    pub(in crate::fuse) fn release(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Release, who, number);
        let result = match self.control.owns(ino(number)) {
            true => self.control.release(handle(fh)),
            false => self.tree.release(handle(fh)),
        };
        reply_empty(trace.end(result), reply);
    }

    pub(in crate::fuse) fn fsync(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Fsync, who, number);
        let result = match self.control.owns(ino(number)) {
            true => Ok(()),
            false => self.tree.sync(ino(number), handle(fh), data_only),
        };
        reply_empty(trace.end(result), reply);
    }

    pub(in crate::fuse) fn ioctl(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, command: u32, data: &[u8],
        out_size: u32, reply: ReplyIoctl,
    ) {
        let trace = self.trace(Operation::Ioctl, who, number);
        let ours = self.control.owns(ino(number));
        if ours && sys::file::is_command(command) {
            let id = self.control.door(handle(fh), who.pid);
            self.control.write(id, data.to_vec(), None, |result| match result {
                Ok(_) => reply.ioctl(0, &[]),
                Err(err) => reply.error(convert::errno(err)),
            });
            return trace.handed_over();
        }
        let result = match ours {
            true if command == sys::file::ANSWER => {
                self.control.answer(handle(fh), who.pid, out_size as usize)
                    .map(|bytes| (bytes.len() as i32, bytes))
            }
            true => Err(Errno::NOTTY),
            false => self.tree.ioctl(ino(number), handle(fh), command, data, out_size as usize),
        };
        match trace.end(result) {
            Ok((value, data)) => reply.ioctl(value, &data),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn poll(
        &self, who: &Caller, number: INodeNo, events: PollEvents, reply: ReplyPoll,
    ) {
        let trace = self.trace(Operation::Poll, who, number);
        trace.handed_over();
        reply.poll(events & convert::READY);
    }

    pub(in crate::fuse) fn fallocate(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, offset: u64, len: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Fallocate, who, number).range(offset, len);
        let result = self.tree.allocate(handle(fh), offset, len, mode as u32, who);
        reply_empty(trace.end(result), reply);
    }

    pub(in crate::fuse) fn lseek(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        let trace = self.trace(Operation::Lseek, who, number);
        let (ino, id) = (ino(number), handle(fh));
        let found = match (whence, u64::try_from(offset)) {
            (libc::SEEK_DATA, Ok(offset)) => self.tree.seek(ino, id, offset, SeekTo::Data),
            (libc::SEEK_HOLE, Ok(offset)) => self.tree.seek(ino, id, offset, SeekTo::Hole),
            (libc::SEEK_DATA | libc::SEEK_HOLE, Err(_)) => Err(Errno::NXIO),
            _ => Err(Errno::INVAL),
        };
        match trace.end(found) {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn copy_file_range(
        &self, who: &Caller, number: INodeNo, fh_in: FileHandle, offset_in: u64,
        fh_out: FileHandle, offset_out: u64, len: u64, reply: ReplyWrite,
    ) {
        let trace = self.trace(Operation::CopyFileRange, who, number).range(offset_in, len);
        // The reply has 32 bits for the count.
        let len = len.min(1 << 30) as usize;
        let (from, to) = ((handle(fh_in), offset_in), (handle(fh_out), offset_out));
        reply_written(trace.end(self.tree.copy_range(from, to, len, who)), reply);
    }
}
