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
use crate::fuse::adapter::{Adapter, handle, register, reply_empty, reply_written};
use crate::fuse::convert::{self, how, ino};
use crate::sys::cred::Caller;
use crate::tree::{BackingRegistration, Files, Ioctl, Names, NewNode, Open, SeekTo, WriteRequest};

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
        match self.tree.open(ino(number), how, who, &|fd| register(&reply, fd)) {
            // The holder of a lease may take up to /proc/sys/fs/lease-break-time to give way.
            Err(Errno::AGAIN) if flags.0 & libc::O_NONBLOCK == 0 => {
                trace.handed_over();
                let (number, how, who) = (ino(number), Open { wait: true, ..how }, *who);
                self.defer(Operation::Open, number, move |late| {
                    let opened = late.tree.open(number, how, &who, &|fd| register(&reply, fd));
                    late.options.reply_open(late.end(opened), how.write, reply);
                });
            }
            opened => self.options.reply_open(trace.end(opened), how.write, reply),
        }
    }

    pub(in crate::fuse) fn create(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32,
        reply: ReplyCreate,
    ) {
        let trace = self.trace(Operation::Create, who, parent).name(name);
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
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let request = WriteRequest {
            append: flags.0 & libc::O_APPEND != 0 && !from_cache,
            durable: convert::durability(flags.0),
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            lock_owner: lock.map(|lock| lock.0),
            wait: false,
        };
        // The writer of a store that is written back from the page cache is not known.
        let who = if from_cache { Caller { uid: 0, gid: 0, pid: 0 } } else { *who };
        let mut written = self.tree.write(handle(fh), offset, data, request, &who);
        if written == Err(Errno::AGAIN) {
            trace.handed_over();
            let (request, data) = (WriteRequest { wait: true, ..request }, data.to_vec());
            return self.defer(Operation::Write, ino(number), move |late| {
                let written = late.tree.write(handle(fh), offset, &data, request, &who);
                reply_written(late.end(written), reply);
            });
        }
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
        let number = ino(number);
        match self.tree.close(number, handle(fh), lock.0, false) {
            Err(Errno::AGAIN) => {
                trace.handed_over();
                self.defer(Operation::Flush, number, move |late| {
                    let closed = late.tree.close(number, handle(fh), lock.0, true);
                    reply_empty(late.end(closed), reply);
                });
            }
            closed => reply_empty(trace.end(closed), reply),
        }
    }

    pub(in crate::fuse) fn release(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Release, who, number);
        reply_empty(trace.end(self.tree.release(handle(fh))), reply);
    }

    pub(in crate::fuse) fn fsync(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Fsync, who, number);
        let synced = self.tree.sync(ino(number), handle(fh), data_only);
        reply_empty(trace.end(synced), reply);
    }

    pub(in crate::fuse) fn ioctl(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, command: u32, data: &[u8],
        out_size: u32, reply: ReplyIoctl,
    ) {
        let trace = self.trace(Operation::Ioctl, who, number);
        let (number, out_size) = (ino(number), out_size as usize);
        let request = Ioctl { command, data, out_size, wait: false };
        match self.tree.ioctl(number, handle(fh), &request, who) {
            Err(Errno::AGAIN) => {
                trace.handed_over();
                let (data, who) = (data.to_vec(), *who);
                self.defer(Operation::Ioctl, number, move |late| {
                    let request = Ioctl { command, data: &data, out_size, wait: true };
                    let answer = late.tree.ioctl(number, handle(fh), &request, &who);
                    reply_ioctl(late.end(answer), reply);
                });
            }
            answer => reply_ioctl(trace.end(answer), reply),
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

fn reply_ioctl(answer: Result<(i32, Vec<u8>), fuser::Errno>, reply: ReplyIoctl) {
    match answer {
        Ok((value, data)) => reply.ioctl(value, &data),
        Err(err) => reply.error(err),
    }
}
