//! Open directories.

use std::time::Duration;

use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyOpen,
};
use rustix::io::Errno;

use crate::control::counters::Operation;
use crate::fuse::adapter::{Adapter, handle, reply_empty};
use crate::fuse::convert::{self, ino};
use crate::sys::cred::Caller;
use crate::tree::{Caching, Directories, Validity};

// As in the trait: parameters across, not down.
#[rustfmt::skip]
impl Adapter {
    pub(in crate::fuse) fn opendir(&self, who: &Caller, number: INodeNo, reply: ReplyOpen) {
        let trace = self.trace(Operation::OpenDir, who, number);
        if self.options.silent_directories {
            // The kernel opens directories without asking from now on, and keeps their listings.
            return reply.error(trace.refuse(Errno::NOSYS));
        }
        match trace.end(self.tree.open_dir(ino(number))) {
            Ok(id) => {
                // A listing is kept as long as somebody tells when it is not true any more.
                let kept = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                let told = self.tree.names_validity(ino(number)) == Validity::UntilInvalidated
                    && self.tree.keeps_listings(ino(number));
                let mut flags = FopenFlags::empty();
                flags.set(kept, told);
                reply.opened(FileHandle(id.0), flags);
            }
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn readdir(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let trace = self.trace(Operation::ReadDir, who, number).range(offset, 0);
        let listed = self.tree.list((ino(number), handle(fh)), offset, false, &mut |item| {
            reply.add(INodeNo(item.ino.0), item.next, convert::kind(item.kind), item.name)
        });
        match trace.end(listed) {
            Ok(_) => reply.ok(),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn readdirplus(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let trace = self.trace(Operation::ReadDirPlus, who, number).range(offset, 0);
        let listed = self.tree.list((ino(number), handle(fh)), offset, true, &mut |item| {
            // Without a number of the inode the kernel takes the name alone.
            let (number, attr, generation) = match &item.entry {
                Some(entry) => {
                    let attr = convert::attr(&entry.attr);
                    (attr.ino, attr, u64::from(entry.generation))
                }
                None => (INodeNo(0), convert::bare_attr(item), 0),
            };
            let timeout = match &item.entry {
                Some(entry) if item.known => self.entry_timeout(entry),
                _ => Duration::ZERO,
            };
            reply.add(number, item.next, item.name, &timeout, &attr, Generation(generation))
        });
        match trace.end(listed) {
            Ok(_) => reply.ok(),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn releasedir(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::ReleaseDir, who, number);
        reply_empty(trace.end(self.tree.release_dir(handle(fh))), reply);
    }

    pub(in crate::fuse) fn fsyncdir(
        &self, who: &Caller, number: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::FsyncDir, who, number);
        let synced = self.tree.sync_dir(ino(number), handle(fh), data_only);
        reply_empty(trace.end(synced), reply);
    }
}
