//! The contract of a tree, and the words that all parts share.
//!
//! A [`Tree`] answers the requests of the kernel, a [`Managed`] one the control verbs and the
//! daemon as well. Each is a sum of small traits, which an implementer has beside its code.
//! [`Volume`](crate::volume::Volume) is the plain tree: one directory, every file a backing file
//! of its own. [`Overlay`](crate::layers::overlay::Overlay) merges layers.
//!
//! A method that stands for a system call fails with the errno of that call. Besides, every method
//! with an inode number fails with ESTALE for an unknown one, every method with a handle with EBADF
//! for one that is not open, and every change with EROFS where the view does not allow it. A method
//! that is told not to wait fails with EAGAIN where it would, and has changed nothing. Methods are called by many threads at a time, and one
//! call that waits keeps no other waiting.

mod attr;
mod caches;
mod changes;
mod managed;
mod number;
mod open;
mod plane;
mod report;
mod requests;

pub use attr::{Attr, DirItem, Entry, NewNode, NewTime, SetAttr, Stat, Time, Validity, XattrFlags};
pub use caches::Invalidate;
pub use changes::{Change, ChangeKind, ChangeQuery};
pub use managed::{Advise, Coherence, Inspect, Lifecycle, Managed};
pub use number::{FIRST_RESERVED, HandleId, Ino};
pub use open::{DataOnly, Ioctl, Open, Opened, PageCache, SeekTo, WriteRequest};
pub use plane::{BackingRegistration, OpenInode, Plane, RegisterBacking, WhyMapped};
pub use report::{
    Found, GuardCounts, NotAdvised, PageState, ScratchCounts, TreeCounts, WatchCounts,
};
pub use requests::{Attributes, Caching, Directories, Files, Names, Passthrough, Tree, Xattrs};
