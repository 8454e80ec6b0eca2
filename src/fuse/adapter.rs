//! The adapter between the kernel and a volume, and the replies that several handlers share.

use std::sync::Arc;
use std::time::Duration;

use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    ReplyXattr, Request,
};
use rustix::io::Errno;

use super::convert;
use super::trace::Trace;
use crate::control::counters::{Counters, Operation};
use crate::control::directory::ControlDir;
use crate::sys::cred::Caller;
use crate::volume::{DirItem, Entry, HandleId, Ino, Open, Volume};

/// How replies are made.
#[derive(Debug, Clone, Copy)]
pub struct AdapterOptions {
    /// How long the kernel may trust a name.
    pub entry_timeout: Duration,
    /// How long the kernel may trust attributes, and cached data with them.
    pub attr_timeout: Duration,
    /// How long the kernel may trust that a name does not exist.
    pub negative_timeout: Duration,
}

/// A volume and its control directory, served to the kernel.
pub struct Adapter {
    pub(super) volume: Arc<Volume>,
    pub(super) control: Arc<ControlDir>,
    pub(super) counters: Arc<Counters>,
    pub(super) options: AdapterOptions,
}

/// Above every cookie of a backing filesystem: the control directory's place in the root.
const AFTER_LAST: u64 = i64::MAX as u64 - 15;

/// How the kernel treats a file of the control directory: nothing is cached, and one client does
/// not wait for another's command.
pub(super) const CONTROL_FLAGS: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

pub(super) fn handle(fh: FileHandle) -> HandleId {
    HandleId(fh.0)
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

impl Adapter {
    /// Serves `volume`, with `control` in its root.
    pub fn new(
        volume: Arc<Volume>,
        control: Arc<ControlDir>,
        counters: Arc<Counters>,
        options: AdapterOptions,
    ) -> Adapter {
        Adapter { volume, control, counters, options }
    }

    pub(super) fn trace(&self, operation: Operation, req: &Request, ino: INodeNo) -> Trace<'_> {
        Trace::start(&self.counters, operation, req, ino)
    }

    /// How the kernel treats an open file. Cached data stays only while attributes may be
    /// trusted; otherwise every open starts anew. At close the kernel writes back what was stored
    /// through a mapping; after reading there is nothing to do.
    pub(super) fn open_flags(&self, write: bool) -> FopenFlags {
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_NOFLUSH, !write);
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, !self.options.attr_timeout.is_zero());
        flags
    }

    pub(super) fn reply_open(
        &self,
        opened: Result<HandleId, fuser::Errno>,
        write: bool,
        reply: ReplyOpen,
    ) {
        match opened {
            Ok(id) => reply.opened(FileHandle(id.0), self.open_flags(write)),
            Err(err) => reply.error(err),
        }
    }

    /// Opens a file on a thread of its own, since somebody holds a lease on it and may take up to
    /// /proc/sys/fs/lease-break-time to give way.
    pub(super) fn open_later(&self, ino: Ino, how: Open, reply: ReplyOpen) {
        let (volume, flags) = (Arc::clone(&self.volume), self.open_flags(how.write));
        let open = move || match volume.open(ino, how) {
            Ok(id) => reply.opened(FileHandle(id.0), flags),
            Err(err) => reply.error(convert::errno(err)),
        };
        // Without a thread the reply is dropped, and fuser answers EIO.
        if let Err(err) = std::thread::Builder::new().name(String::from("open")).spawn(open) {
            log::error!("open ino={ino}: starting a thread: {err}");
        }
    }

    pub(super) fn reply_entry(&self, result: Result<Entry, fuser::Errno>, reply: ReplyEntry) {
        match result {
            Ok(entry) => reply.entry_with_ttls(
                &self.options.attr_timeout,
                &self.options.entry_timeout,
                &convert::attr(&entry.attr),
                Generation(u64::from(entry.generation)),
            ),
            Err(err) => reply.error(err),
        }
    }

    /// "There is no such name" can be cached too: an entry with the inode number 0.
    pub(super) fn reply_no_entry(&self, reply: ReplyEntry) {
        let timeout = self.options.negative_timeout;
        reply.entry_with_ttls(&timeout, &timeout, &convert::no_entry(), Generation(0));
    }

    /// Lists a directory of the tree, with the control directory at the end of the root if it is
    /// to be seen, or the control directory itself.
    pub(super) fn list(
        &self,
        ino: Ino,
        handle: HandleId,
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<(), Errno> {
        if self.control.owns(ino) {
            for (name, attr, next) in self.control.entries(offset) {
                let kind = attr.stat.kind();
                let entry = look_up.then_some(Entry { attr, generation: 0 });
                let name = name.as_ref();
                if add(&DirItem { name, ino: attr.ino, kind, next, entry, known: true }) {
                    break;
                }
            }
            return Ok(());
        }
        if offset == AFTER_LAST {
            return Ok(());
        }
        let ended = self.volume.list(handle, offset, look_up, add)?;
        if ended
            && ino == Ino::ROOT
            && let Some((name, ino)) = self.control.listed()
        {
            let entry = self.control.attr(ino).filter(|_| look_up);
            let entry = entry.map(|attr| Entry { attr, generation: 0 });
            add(&DirItem { name, ino, kind: libc::S_IFDIR, next: AFTER_LAST, entry, known: true });
        }
        Ok(())
    }
}

pub(super) fn reply_empty(result: Result<(), fuser::Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(err) => reply.error(err),
    }
}

pub(super) fn reply_written(result: Result<usize, fuser::Errno>, reply: ReplyWrite) {
    match result {
        Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
        Err(err) => reply.error(err),
    }
}

/// getxattr and listxattr: a size of 0 asks how much there is.
pub(super) fn reply_xattr(
    trace: Trace<'_>,
    size: u32,
    reply: ReplyXattr,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) {
    let mut buffer = vec![0; size as usize];
    match trace.end(read(&mut buffer)) {
        Ok(count) if size == 0 => reply.size(u32::try_from(count).unwrap_or(u32::MAX)),
        Ok(count) => reply.data(buffer.get(..count).unwrap_or_default()),
        Err(err) => reply.error(err),
    }
}
