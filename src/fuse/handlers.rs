//! The requests of the kernel. Each is passed on to the part of the adapter that serves it, on this
//! thread or on another.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::adapter::Adapter;
use super::busy_poll::BusyPoll;
use super::features;
use super::worker_pool::WorkerPool;
use crate::control::report::Kernel;
use crate::sys::cred::Caller;
use crate::tree::Passthrough;

/// Called with the parameters of the session when the kernel has agreed on them.
pub type OnSession = Box<dyn Fn(Kernel) + Send + Sync>;

/// Takes the requests of the kernel.
pub struct Handlers {
    adapter: Arc<Adapter>,
    workers: WorkerPool,
    polling: BusyPoll,
    on_session: OnSession,
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

impl Handlers {
    /// Serves by `adapter`, on as many event loops, which stay awake as `polling` says.
    pub fn new(
        adapter: Adapter,
        loops: usize,
        polling: BusyPoll,
        on_session: OnSession,
    ) -> Handlers {
        let workers = WorkerPool::new(loops);
        Handlers { adapter: Arc::new(adapter), workers, polling, on_session }
    }

    /// Answers a request. Data borrowed from the request is copied only when it is answered on
    /// another thread.
    fn answer<B>(
        &self,
        req: &Request,
        borrowed: &B,
        answer: impl FnOnce(&Adapter, &Caller, &B) + Send + 'static,
    ) where
        B: ToOwned<Owned: Send + 'static> + ?Sized,
    {
        let who = caller(req);
        self.polling.arrived();
        if let Some(busy) = self.workers.enter() {
            answer(&self.adapter, &who, borrowed);
            drop(busy);
            return self.polling.answered();
        }
        let (adapter, owned) = (Arc::clone(&self.adapter), borrowed.to_owned());
        self.workers.elsewhere(move || answer(&adapter, &who, owned.borrow()));
    }
}

// The parameters of a request are written across, not down: so the whole trait fits on a few
// pages.
#[rustfmt::skip]
impl Filesystem for Handlers {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let features = features::negotiate(config, &*self.adapter.tree);
        if self.adapter.options.silent_files {
            let reason = "open=none: the kernel does not ask when a file is opened";
            self.adapter.tree.close_passthrough(Some(reason.into()));
        }
        (self.on_session)(Kernel {
            protocol: config.kernel_abi().to_string(),
            max_write: u64::from(features::MAX_REQUEST),
            features,
        });
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(req, name, move |adapter, who, name| adapter.lookup(who, parent, name, reply));
    }

    fn forget(&self, req: &Request, number: INodeNo, lookups: u64) {
        self.adapter.forget(&caller(req), number, lookups);
    }

    fn getattr(&self, req: &Request, number: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(req, &(), move |adapter, who, ()| adapter.getattr(who, number, fh, reply));
    }

    fn setattr(
        &self, req: &Request, number: INodeNo, mode: Option<u32>, uid: Option<u32>,
        gid: Option<u32>, size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>, fh: Option<FileHandle>, _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>, _bkuptime: Option<SystemTime>, _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.answer(req, &(), move |adapter, who, ()| {
            adapter.setattr(who, number, mode, uid, gid, size, atime, mtime, fh, reply);
        });
    }

    fn readlink(&self, req: &Request, number: INodeNo, reply: ReplyData) {
        self.answer(req, &(), move |adapter, who, ()| adapter.readlink(who, number, reply));
    }

    fn mknod(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        self.answer(req, name, move |adapter, who, name| {
            adapter.mknod(who, parent, name, mode, umask, rdev, reply);
        });
    }

    fn mkdir(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        self.answer(req, name, move |adapter, who, name| {
            adapter.mkdir(who, parent, name, mode, umask, reply);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answer(req, name, move |adapter, who, name| adapter.unlink(who, parent, name, reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answer(req, name, move |adapter, who, name| adapter.rmdir(who, parent, name, reply));
    }

    fn symlink(
        &self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        self.answer(req, target, move |adapter, who, target| {
            adapter.symlink(who, parent, &name, target, reply);
        });
    }

    fn rename(
        &self, req: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo,
        new_name: &OsStr, flags: fuser::RenameFlags, reply: ReplyEmpty,
    ) {
        let name = name.to_owned();
        self.answer(req, new_name, move |adapter, who, new_name| {
            adapter.rename(who, parent, &name, new_parent, new_name, flags, reply);
        });
    }

    fn link(
        &self, req: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry,
    ) {
        self.answer(req, name, move |adapter, who, name| adapter.link(who, number, parent, name, reply));
    }

    fn open(&self, req: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.answer(req, &(), move |adapter, who, ()| adapter.open(who, number, flags, reply));
    }

    fn create(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32,
        reply: ReplyCreate,
    ) {
        self.answer(req, name, move |adapter, who, name| {
            adapter.create(who, parent, name, mode, umask, flags, reply);
        });
    }

    fn read(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, size: u32,
        _flags: OpenFlags, _lock: Option<LockOwner>, reply: ReplyData,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.read(who, number, fh, offset, size, reply));
    }

    fn write(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, data: &[u8],
        write_flags: WriteFlags, flags: OpenFlags, lock: Option<LockOwner>, reply: ReplyWrite,
    ) {
        self.answer(req, data, move |adapter, who, data| {
            adapter.write(who, number, fh, offset, data, write_flags, flags, lock, reply);
        });
    }

    fn flush(
        &self, req: &Request, number: INodeNo, fh: FileHandle, lock: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.flush(who, number, fh, lock, reply));
    }

    fn release(
        &self, req: &Request, number: INodeNo, fh: FileHandle, _flags: OpenFlags,
        _lock: Option<LockOwner>, _flush: bool, reply: ReplyEmpty,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.release(who, number, fh, reply));
    }

    fn fsync(
        &self, req: &Request, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.fsync(who, number, fh, data_only, reply));
    }

    fn opendir(&self, req: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answer(req, &(), move |adapter, who, ()| adapter.opendir(who, number, reply));
    }

    fn readdir(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64,
        reply: ReplyDirectory,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.readdir(who, number, fh, offset, reply));
    }

    fn readdirplus(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.readdirplus(who, number, fh, offset, reply));
    }

    fn releasedir(
        &self, req: &Request, number: INodeNo, fh: FileHandle, _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.releasedir(who, number, fh, reply));
    }

    fn fsyncdir(
        &self, req: &Request, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.fsyncdir(who, number, fh, data_only, reply));
    }

    fn statfs(&self, req: &Request, number: INodeNo, reply: ReplyStatfs) {
        self.answer(req, &(), move |adapter, who, ()| adapter.statfs(who, number, reply));
    }

    fn setxattr(
        &self, req: &Request, number: INodeNo, name: &OsStr, value: &[u8], flags: i32,
        _position: u32, reply: ReplyEmpty,
    ) {
        let name = name.to_owned();
        self.answer(req, value, move |adapter, who, value| {
            adapter.setxattr(who, number, &name, value, flags, reply);
        });
    }

    fn getxattr(&self, req: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.answer(req, name, move |adapter, who, name| adapter.getxattr(who, number, name, size, reply));
    }

    fn listxattr(&self, req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(req, &(), move |adapter, who, ()| adapter.listxattr(who, number, size, reply));
    }

    fn removexattr(&self, req: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answer(req, name, move |adapter, who, name| adapter.removexattr(who, number, name, reply));
    }

    fn ioctl(
        &self, req: &Request, number: INodeNo, fh: FileHandle, _flags: IoctlFlags, command: u32,
        data: &[u8], out_size: u32, reply: ReplyIoctl,
    ) {
        self.answer(req, data, move |adapter, who, data| {
            adapter.ioctl(who, number, fh, command, data, out_size, reply);
        });
    }

    fn poll(
        &self, req: &Request, number: INodeNo, _fh: FileHandle, _notifier: PollNotifier,
        events: PollEvents, _flags: PollFlags, reply: ReplyPoll,
    ) {
        self.adapter.poll(&caller(req), number, events, reply);
    }

    fn fallocate(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: u64, len: u64, mode: i32,
        reply: ReplyEmpty,
    ) {
        self.answer(req, &(), move |adapter, who, ()| {
            adapter.fallocate(who, number, fh, offset, len, mode, reply);
        });
    }

    fn lseek(
        &self, req: &Request, number: INodeNo, fh: FileHandle, offset: i64, whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer(req, &(), move |adapter, who, ()| adapter.lseek(who, number, fh, offset, whence, reply));
    }

    fn copy_file_range(
        &self, req: &Request, number: INodeNo, fh_in: FileHandle, offset_in: u64,
        _ino_out: INodeNo, fh_out: FileHandle, offset_out: u64, len: u64,
        _flags: CopyFileRangeFlags, reply: ReplyWrite,
    ) {
        self.answer(req, &(), move |adapter, who, ()| {
            adapter.copy_file_range(who, number, fh_in, offset_in, fh_out, offset_out, len, reply);
        });
    }
}
