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
use crate::control::directory::ControlDir;
use crate::sys::cred::Caller;
use crate::tree::{BackingRegistration, DirItem, Entry, HandleId, Ino, Open, Opened, Plane, Tree};

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

/// A tree and its control directory, served to the kernel.
pub struct Adapter {
    pub(super) tree: Arc<dyn Tree>,
    pub(super) control: Arc<ControlDir>,
    pub(super) counters: Arc<Counters>,
    pub(super) failures: Arc<Failures>,
    pub(super) options: AdapterOptions,
}

/// Above every cookie of a backing filesystem: the control directory's place in the root.
const AFTER_LAST: u64 = i64::MAX as u64 - 15;

/// Open flags of a file of the control directory: nothing is cached, and one client does not wait
/// for another's command.
pub(super) const CONTROL_FLAGS: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

/// Open flags of a file that was lent to the kernel: the kernel has no cache of its own for it, and
/// so nothing to write back at close. KEEP_CACHE would make every open fail.
fn lent_flags(opened: &Opened) -> FopenFlags {
    let by_request = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    let mut flags = FopenFlags::FOPEN_NOFLUSH;
    flags.set(by_request, opened.by_request);
    flags
}

impl AdapterOptions {
    /// Open flags of a file that the kernel has a cache for. Cached data stays only while
    /// attributes may be trusted; otherwise every open starts anew. At close the kernel writes back
    /// what was stored through a mapping; after reading there is nothing to do.
    fn cached_flags(&self, opened: &Opened, write: bool) -> FopenFlags {
        let mut flags = FopenFlags::empty();
        let keep = self.timeouts.keep_data() && !opened.begins_anew;
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

fn answer_open(opened: &Opened, cached: FopenFlags, reply: ReplyOpen) {
    let handle = FileHandle(opened.id.0);
    match backing_of(&opened.plane) {
        Some(id) => reply.opened_passthrough(handle, lent_flags(opened), id),
        None => reply.opened(handle, cached),
    }
}

pub(super) fn handle(fh: FileHandle) -> HandleId {
    HandleId(fh.0)
}

impl Adapter {
    /// Serves `tree`, with `control` in its root.
    pub fn new(
        tree: Arc<dyn Tree>,
        control: Arc<ControlDir>,
        counters: Arc<Counters>,
        options: AdapterOptions,
    ) -> Adapter {
        Adapter { tree, control, counters, failures: Arc::default(), options }
    }

    pub(super) fn trace(&self, operation: Operation, who: &Caller, ino: INodeNo) -> Trace<'_> {
        Trace::start(self, operation, who, ino)
    }

    pub(super) fn reply_open(
        &self,
        opened: Result<Opened, fuser::Errno>,
        write: bool,
        reply: ReplyOpen,
    ) {
        match opened {
            Ok(opened) => answer_open(&opened, self.options.cached_flags(&opened, write), reply),
            Err(err) => reply.error(err),
        }
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
                let flags = self.options.cached_flags(opened, write);
                reply.created(&timeout, &attr, generation, handle, flags);
            }
        }
    }

    /// Opens a file on a thread of its own, since somebody holds a lease on it and may take up to
    /// /proc/sys/fs/lease-break-time to give way.
    pub(super) fn open_later(&self, ino: Ino, how: Open, who: Caller, reply: ReplyOpen) {
        let (tree, options) = (Arc::clone(&self.tree), self.options);
        let (counters, failures) = (Arc::clone(&self.counters), Arc::clone(&self.failures));
        let open = move || {
            let opened = tree.open(ino, how, &who, &|fd| register(&reply, fd));
            match opened {
                Ok(opened) => {
                    answer_open(&opened, options.cached_flags(&opened, how.write), reply);
                }
                Err(err) => {
                    counters.count_error(err);
                    failures.note(&*tree, Operation::Open, ino, err);
                    reply.error(convert::errno(err));
                }
            }
        };
        // Without a thread the reply is dropped, and fuser answers EIO.
        if let Err(err) = std::thread::Builder::new().name(String::from("open")).spawn(open) {
            log::error!("open ino={ino}: starting a thread: {err}");
        }
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
                let entry =
                    look_up.then_some(Entry { attr, generation: 0, validity: attr.validity });
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
        let ended = self.tree.list((ino, handle), offset, look_up, add)?;
        if ended
            && ino == Ino::ROOT
            && let Some((name, ino)) = self.control.listed()
        {
            let entry = self.control.attr(ino).filter(|_| look_up);
            let entry = entry.map(|attr| Entry { attr, generation: 0, validity: attr.validity });
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
