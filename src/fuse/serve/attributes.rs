//! Attributes, extended attributes and statistics.

use std::ffi::OsStr;

use fuser::{FileHandle, INodeNo, ReplyAttr, ReplyEmpty, ReplyStatfs, ReplyXattr, TimeOrNow};

use crate::control::counters::Operation;
use crate::fuse::adapter::{Adapter, handle, reply_empty, reply_xattr};
use crate::fuse::convert::{self, ino};
use crate::sys::cred::Caller;
use crate::tree::{Attributes, SetAttr, XattrFlags, Xattrs};

// As in the trait: parameters across, not down, and as many as the request has.
#[rustfmt::skip]
#[allow(clippy::too_many_arguments)]
impl Adapter {
    pub(in crate::fuse) fn getattr(
        &self, who: &Caller, number: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr,
    ) {
        let trace = self.trace(Operation::GetAttr, who, number);
        match trace.end(self.tree.attr(ino(number), fh.map(handle))) {
            Ok(attr) => reply.attr(&self.options.timeouts.attr(attr.validity), &convert::attr(&attr)),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn setattr(
        &self, who: &Caller, number: INodeNo, mode: Option<u32>, uid: Option<u32>,
        gid: Option<u32>, size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>,
        fh: Option<FileHandle>, reply: ReplyAttr,
    ) {
        let trace = self.trace(Operation::SetAttr, who, number);
        let atime = atime.map(convert::new_time);
        let mtime = mtime.map(convert::new_time);
        let change = SetAttr { mode, uid, gid, size, atime, mtime };
        match trace.end(self.tree.set_attr(ino(number), fh.map(handle), change, who)) {
            Ok(attr) => reply.attr(&self.options.timeouts.attr(attr.validity), &convert::attr(&attr)),
            Err(err) => reply.error(err),
        }
    }

    pub(in crate::fuse) fn statfs(&self, who: &Caller, number: INodeNo, reply: ReplyStatfs) {
        let trace = self.trace(Operation::StatFs, who, number);
        match trace.end(self.tree.statistics(ino(number))) {
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

    pub(in crate::fuse) fn setxattr(
        &self, who: &Caller, number: INodeNo, name: &OsStr, value: &[u8], flags: i32,
        reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::SetXattr, who, number);
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let result = self.tree.set_xattr(ino(number), name, value, flags, who);
        reply_empty(trace.end(result), reply);
    }

    pub(in crate::fuse) fn getxattr(
        &self, who: &Caller, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr,
    ) {
        let trace = self.trace(Operation::GetXattr, who, number);
        reply_xattr(trace, size, reply, |buffer| self.tree.get_xattr(ino(number), name, buffer));
    }

    pub(in crate::fuse) fn listxattr(
        &self, who: &Caller, number: INodeNo, size: u32, reply: ReplyXattr,
    ) {
        let trace = self.trace(Operation::ListXattr, who, number);
        reply_xattr(trace, size, reply, |buffer| self.tree.list_xattr(ino(number), buffer, who));
    }

    pub(in crate::fuse) fn removexattr(
        &self, who: &Caller, number: INodeNo, name: &OsStr, reply: ReplyEmpty,
    ) {
        let trace = self.trace(Operation::RemoveXattr, who, number);
        reply_empty(trace.end(self.tree.remove_xattr(ino(number), name)), reply);
    }
}
