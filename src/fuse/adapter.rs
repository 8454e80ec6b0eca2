//! The adapter between the kernel and a tree, and the replies that several handlers share.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BackingId, FileHandle, FopenFlags, Generation, INodeNo, ReplyCreate, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, ReplyXattr,
};
use rustix::io::Errno;

use super::convert;
use super::failures::Failures;
use super::timeouts::Timeouts;
use super::trace::Trace;
use crate::control::counters::{Counters, Operation};
use crate::control::own_thread;
use crate::control::router::Router;
use crate::error::cause;
use crate::sys::cred::Caller;
use crate::tree::{BackingRegistration, Entry, HandleId, Ino, Opened, PageCache, Plane};

/// The options of replies.
#[derive(Debug, Clone, Copy)]
pub struct AdapterOptions {
    /// Times for which the kernel may use them.
    pub timeouts: Timeouts,
    /// The kernel opens files without asking.
    pub silent_files: bool,
    /// The kernel opens directories without asking.
    pub silent_directories: bool,
}

/// A tree, served to the kernel.
pub struct Adapter {
    pub(super) tree: Arc<Router>,
    pub(super) counters: Arc<Counters>,
    pub(super) failures: Arc<Failures>,
    pub(super) options: AdapterOptions,
}

/// Open flags of a file without a cache: requests of one client do not wait for those of another.
const UNCACHED: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// Open flags of a file that was lent to the kernel: the kernel has no cache of its own for it, and
/// so nothing to write back at close. KEEP_CACHE would make every open fail.
fn lent_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_NOFLUSH;
    flags.set(UNCACHED, opened.by_request);
    flags
}

impl AdapterOptions {
    pub(super) fn reply_open(
        &self,
        opened: Result<Opened, fuser::Errno>,
        write: bool,
        reply: ReplyOpen,
    ) {
        match opened {
            Ok(opened) => {
                let handle = FileHandle(opened.id.0);
                match backing_of(&opened.plane) {
                    Some(id) => reply.opened_passthrough(handle, lent_flags(&opened), id),
                    None => reply.opened(handle, self.mapped_flags(&opened, write)),
                }
            }
            Err(err) => reply.error(err),
        }
    }

    /// Open flags of a file on the mapped plane. Cached data stays only while attributes may be
    /// trusted; otherwise every open starts anew. At close the kernel writes stores through a
    /// mapping back; after reading there is nothing to do.
    fn mapped_flags(&self, opened: &Opened, write: bool) -> FopenFlags {
        let keep = match opened.cache {
            PageCache::Bypassed => return UNCACHED,
            PageCache::Dropped => false,
            PageCache::Kept => self.timeouts.keep_data(),
        };
        let mut flags = FopenFlags::empty();
        flags.set(FopenFlags::FOPEN_NOFLUSH, !write);
        flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
        flags
    }
}

/// Lends a backing file to the kernel.
pub(super) fn register(reply: &ReplyOpen, file: BorrowedFd<'_>) -> io::Result<BackingRegistration> {
    reply.open_backing(file).map(|id| Arc::new(id) as BackingRegistration)
}

/// The kernel's id of a file that was lent to it by [`lend`].
fn backing_of(plane: &Plane) -> Option<&BackingId> {
    match plane {
        Plane::Passthrough(lent) => lent.downcast_ref(),
        Plane::Mapped(_) => None,
    }
}

/// A request that is answered on a thread of its own.
pub(super) struct Deferred {
    pub(super) tree: Arc<Router>,
    pub(super) options: AdapterOptions,
    counters: Arc<Counters>,
    failures: Arc<Failures>,
    operation: Operation,
    ino: Ino,
}

impl Deferred {
    /// Ends the request: counts and tells a failure, and turns its error into the kernel's.
    pub(super) fn end<T>(&self, result: Result<T, Errno>) -> Result<T, fuser::Errno> {
        result.map_err(|err| {
            self.counters.count_error(err);
            self.failures.note(&*self.tree, self.operation, (self.ino, None), err);
            convert::errno(err)
        })
    }
}

pub(super) fn handle(fh: FileHandle) -> HandleId {
    HandleId(fh.0)
}

impl Adapter {
    /// Serves `tree`.
    pub fn new(tree: Arc<Router>, counters: Arc<Counters>, options: AdapterOptions) -> Adapter {
        Adapter { tree, counters, failures: Arc::default(), options }
    }

    pub(super) fn trace(&self, operation: Operation, who: &Caller, ino: INodeNo) -> Trace<'_> {
        Trace::start(self, operation, who, ino)
    }

    pub(super) fn reply_created(
        &self,
        entry: &Entry,
        opened: &Opened,
        write: bool,
        reply: ReplyCreate,
    ) {
        let timeout = self.entry_timeout(entry);
        let attr = convert::attr(&entry.attr);
        let generation = Generation(u64::from(entry.generation));
        let handle = FileHandle(opened.id.0);
        match backing_of(&opened.plane) {
            Some(id) => {
                let flags = lent_flags(opened);
                reply.created_passthrough(&timeout, &attr, generation, handle, flags, id);
            }
            None => {
                let flags = self.options.mapped_flags(opened, write);
                reply.created(&timeout, &attr, generation, handle, flags);
            }
        }
    }

    /// Answers a request that may take long on a thread of its own.
    pub(super) fn defer(
        &self,
        operation: Operation,
        ino: Ino,
        answer: impl FnOnce(&Deferred) + Send + 'static,
    ) {
        let deferred = Deferred {
            tree: Arc::clone(&self.tree),
            counters: Arc::clone(&self.counters),
            failures: Arc::clone(&self.failures),
            options: self.options,
            operation,
            ino,
        };
        own_thread::run(operation.name(), move || {
            cause::clear();
            answer(&deferred);
        });
    }

    /// Time for which the kernel may use an entry whose two timeouts are one.
    pub(super) fn entry_timeout(&self, entry: &Entry) -> Duration {
        let timeouts = &self.options.timeouts;
        timeouts.attr(entry.attr.validity).min(timeouts.entry(entry.validity))
    }

    pub(super) fn reply_entry(&self, result: Result<Entry, fuser::Errno>, reply: ReplyEntry) {
        match result {
            Ok(entry) => reply.entry_with_ttls(
                &self.options.timeouts.attr(entry.attr.validity),
                &self.options.timeouts.entry(entry.validity),
                &convert::attr(&entry.attr),
                Generation(u64::from(entry.generation)),
            ),
            Err(err) => reply.error(err),
        }
    }

    /// "There is no such name" can be cached too: an entry with the inode number 0.
    pub(super) fn reply_no_entry(&self, timeout: Duration, reply: ReplyEntry) {
        reply.entry_with_ttls(&timeout, &timeout, &convert::no_entry(), Generation(0));
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
