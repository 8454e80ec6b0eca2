//! Names: look up, make, link, rename, remove.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use fuser::{INodeNo, ReplyData, ReplyEmpty, ReplyEntry};
use rustix::io::Errno;

use crate::control::counters::Operation;
use crate::fuse::adapter::{Adapter, reply_empty};
use crate::fuse::convert::{self, ino};
use crate::sys::cred::Caller;
use crate::tree::{Caching, Names, NewNode};

// As in the trait: parameters across, not down, and as many as the request has.
#[rustfmt::skip]
#[allow(clippy::too_many_arguments)]
impl Adapter {
    pub(in crate::fuse) fn lookup(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::Lookup, who, parent).name(name);
        match self.tree.lookup(ino(parent), name) {
            found @ Err(Errno::NOENT) => {
                let validity = self.tree.names_validity(ino(parent));
                match self.options.timeouts.negative(validity, self.tree.drops_all_names()) {
                    Duration::ZERO => self.reply_entry(trace.end(found), reply),
                    timeout => self.reply_no_entry(timeout, reply),
                }
            }
            found => self.reply_entry(trace.end(found), reply),
        }
    }

    pub(in crate::fuse) fn forget(&self, who: &Caller, number: INodeNo, lookups: u64) {
        let trace = self.trace(Operation::Forget, who, number);
        self.tree.forget(ino(number), lookups);
        trace.handed_over();
    }

    pub(in crate::fuse) fn readlink(&self, who: &Caller, number: INodeNo, reply: ReplyData) {
        let trace = self.trace(Operation::ReadLink, who, number);
        match trace.end(self.tree.read_link(ino(number))) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn mknod(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32,
        reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::MkNod, who, parent).name(name);
        let device = convert::device_from(rdev);
        let new = NewNode { mode, umask, caller: who };
        let made = self.tree.make_node(ino(parent), name, &new, device);
        self.reply_entry(trace.end(made), reply);
    }

    pub(in crate::fuse) fn mkdir(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, mode: u32, umask: u32,
        reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::MkDir, who, parent).name(name);
        let new = NewNode { mode, umask, caller: who };
        let made = self.tree.make_dir(ino(parent), name, &new);
        self.reply_entry(trace.end(made), reply);
    }

    pub(in crate::fuse) fn unlink(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Unlink, who, parent).name(name);
        reply_empty(trace.end(self.tree.remove(ino(parent), name, false)), reply);
    }

    pub(in crate::fuse) fn rmdir(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::RmDir, who, parent).name(name);
        reply_empty(trace.end(self.tree.remove(ino(parent), name, true)), reply);
    }

    pub(in crate::fuse) fn symlink(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::Symlink, who, parent).name(name);
        let target = target.as_os_str();
        let made = self.tree.make_symlink(ino(parent), name, target, who);
        self.reply_entry(trace.end(made), reply);
    }

    pub(in crate::fuse) fn rename(
        &self, who: &Caller, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr,
        flags: fuser::RenameFlags, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::Rename, who, parent).name(name);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let (from, to) = ((ino(parent), name), (ino(new_parent), new_name));
        reply_empty(trace.end(self.tree.rename(from, to, flags, who)), reply);
    }

    pub(in crate::fuse) fn link(
        &self, who: &Caller, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry,
    ) {
        let trace = self.trace(Operation::Link, who, number);
        let made = self.tree.link(ino(number), ino(parent), name);
        self.reply_entry(trace.end(made), reply);
    }
}
