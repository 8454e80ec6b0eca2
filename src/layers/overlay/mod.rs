//! The tree of a scratch mount: a writable volume over volumes that are never written.
//!
//! Every object is made of parts, each an inode of one volume, and most of what is asked is passed
//! on to the topmost. The upper volume is the scratch directory itself: `upper/` in it is the tree
//! as it was changed, in the format of overlayfs, and a change of what is only below copies it up
//! first, without its data. A name is looked for in the upper directory and then in those below;
//! a whiteout there says that it is gone.
//!
//! All changes of names hold the lock of the names for writing, which makes each of them one step
//! for everybody else; bytes are read and written without it. No lower layer is asked with it held
//! ([`namespace_lock`]).

mod allocate;
mod as_tree;
mod attributes;
mod base_changes;
mod base_guard;
mod control_impl;
mod control_ops;
mod copy_up;
mod covered_names;
mod data;
mod dir_offset;
mod fsync;
mod handles;
mod hardlink_index;
mod held_node;
mod ino;
mod lease_break;
mod lookup;
mod lower_answers;
mod merged_dir;
mod merged_open;
mod names;
mod namespace_lock;
mod node;
mod overlay_xattrs;
mod quota;
mod readdir;
mod rename;
mod share;
mod stats;
mod write_through;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use crate::config::BaseChanged;
use crate::layers::changed::{self, Changed};
use crate::layers::pages::MapId;
use crate::layers::scratch::{MetadataReserve, Scratch, TEMPORARY};
use crate::sys::cred::Caller;
use crate::volume::short_lived_fds::{ShortLived, Sweeper};
use crate::volume::{BackingRegistration, Ino, Invalidate, NewNode, Policy, Volume};
use node::{LayerStack, LowerInode, NodeTable};
use overlay_xattrs::XattrStore;
use stats::ScratchStats;

/// How to build an [`Overlay`].
pub struct OverlayOptions {
    /// The scratch, which is held as long as the overlay.
    pub scratch: Scratch,
    /// A volume over the directory of the scratch.
    pub upper: Arc<Volume>,
    /// What is below, topmost first. The last one is the base.
    pub lowers: Vec<Arc<Volume>>,
    /// A name in the root that belongs to the control directory.
    pub reserved: Option<OsString>,
    /// Which paths are copied on write.
    pub policy: Policy,
    /// Unchanged files that are opened to be read are read in the base itself.
    pub share: bool,
    /// What becomes of partial copies whose base has changed.
    pub base_changed: BaseChanged,
}

/// A tree of layers.
pub struct Overlay {
    upper: Arc<Volume>,
    /// The directory of the upper volume where copies are made, of which one lookup is held.
    work: Ino,
    index: hardlink_index::Index,
    pages: OwnedFd,
    /// Page maps that several files name.
    contested: HashSet<MapId>,
    lowers: Vec<Arc<Volume>>,
    nodes: NodeTable,
    /// The lock of the names, with the number of their changes; see [`namespace_lock`].
    names: RwLock<u64>,
    handles: handles::HandleTable,
    /// Listings under way of directories that the kernel has opened without asking.
    listings: ShortLived<readdir::OpenDir>,
    sweeper: Sweeper,
    xattrs: XattrStore,
    policy: RwLock<Policy>,
    share: bool,
    revocations: share::Revocations,
    copy_up: u64,
    /// Files of the base can be cloned into the scratch, as far as it is known.
    clones: AtomicBool,
    /// Where the bound is kept by counting.
    quota: Option<quota::Quota>,
    /// Where the bound is that of a tmpfs.
    reserve: Option<Arc<MetadataReserve>>,
    /// Until the end, when it is left or removed.
    scratch: Mutex<Option<Scratch>>,
    /// The daemon itself.
    me: Caller,
    reserved: Option<OsString>,
    serial: AtomicU64,
    stats: ScratchStats,
    guard: base_guard::Guard,
    outdated: base_changes::Outdated,
    /// Pages of a base that has changed are shown as they are.
    mixes_bases: bool,
    /// The page maps that were in use since the start.
    used_maps: Mutex<HashSet<u64>>,
    /// The way to the kernel's caches, once there is one.
    caches: OnceLock<Arc<dyn Invalidate>>,
}

fn never_registered(_: BorrowedFd<'_>) -> std::io::Result<BackingRegistration> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
}

impl Overlay {
    /// Puts the layers on each other.
    ///
    /// # Errors
    /// Those of looking up the directories of the scratch; E2BIG with too many layers.
    pub fn new(options: OverlayOptions) -> Result<Overlay, Errno> {
        let OverlayOptions { scratch, upper, lowers, reserved, policy, share, base_changed } =
            options;
        if lowers.len() > dir_offset::MOST_LOWERS {
            return Err(Errno::TOOBIG);
        }
        let volumes: Vec<_> = lowers.iter().chain([&upper]).cloned().collect();
        Volume::share_descriptors(&volumes);
        let find =
            |name: &str| upper.lookup(Ino::ROOT, OsStr::new(name)).map(|entry| entry.attr.ino);
        let (top, work, index) = (find("upper")?, find("work")?, find("index")?);
        let pages = scratch.pages()?;
        let roots = (0..lowers.len()).map(|layer| LowerInode { layer, ino: Ino::ROOT }).collect();
        let root = LayerStack { upper: Some(top), lowers: roots, ..LayerStack::default() };
        let overlay = Overlay {
            work,
            index: hardlink_index::Index::read(&upper, index)?,
            pages,
            contested: scratch.contested().clone(),
            nodes: NodeTable::new(root),
            names: RwLock::new(0),
            handles: handles::HandleTable::default(),
            listings: ShortLived::new(64),
            sweeper: Sweeper::default(),
            xattrs: XattrStore { namespace: scratch.xattr_namespace() },
            policy: RwLock::new(policy),
            share,
            me: Caller {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                pid: 0,
            },
            reserved,
            // Not where a daemon began that was killed: names that it left would be met.
            serial: AtomicU64::new(MapId::random().0),
            stats: ScratchStats::of(&scratch)?,
            guard: base_guard::Guard::default(),
            outdated: base_changes::Outdated::default(),
            mixes_bases: base_changed == BaseChanged::Mix,
            used_maps: Mutex::default(),
            caches: OnceLock::new(),
            lowers,
            upper,
            revocations: share::Revocations::default(),
            copy_up: scratch.copy_up(),
            clones: AtomicBool::new(true),
            quota: quota::Quota::new(scratch.quota_ledger()),
            reserve: scratch.reserve().cloned(),
            scratch: Mutex::new(Some(scratch)),
        };
        overlay.start_counting()?;
        Ok(overlay)
    }

    /// The partial copies whose base has changed since, or may have. They are told by `status`.
    #[must_use]
    pub fn changed_bases(&self) -> Vec<Changed> {
        let scratch = self.scratch.lock();
        let (Some(scratch), Some(base)) = (&*scratch, self.lowers.last()) else {
            return Vec::new();
        };
        let found = changed::find(scratch, &self.pages, base.watch_point());
        self.guard.note_changed(&found);
        found
    }

    /// A lower layer, which is asked something. It may be long before it answers: nothing that
    /// others need is locked by the caller.
    fn layer(&self, at: LowerInode) -> Result<&Volume, Errno> {
        namespace_lock::may_ask();
        self.lower(at)
    }

    /// A lower layer, for what needs no answer of it.
    fn lower(&self, at: LowerInode) -> Result<&Volume, Errno> {
        self.lowers.get(at.layer).map(|volume| &**volume).ok_or(Errno::IO)
    }

    fn lower_roots(&self) -> Vec<LowerInode> {
        (0..self.lowers.len()).map(|layer| LowerInode { layer, ino: Ino::ROOT }).collect()
    }

    /// The path of a node from the root, for messages.
    fn path_of(&self, node: &node::Node) -> PathBuf {
        let mut names = Vec::new();
        let mut next = node.seen();
        while let Some((parent, name)) = next {
            names.push(name);
            next = parent.seen();
        }
        names.iter().rev().collect()
    }

    fn node(&self, ino: Ino) -> Result<Arc<node::Node>, Errno> {
        let missing =
            if ino.0 >= crate::volume::FIRST_RESERVED { Errno::PERM } else { Errno::STALE };
        self.nodes.get(ino).ok_or(missing)
    }

    /// Whether a name in a directory belongs to the tree.
    fn visible(&self, parent: Ino, name: &OsStr) -> bool {
        let reserved = parent == Ino::ROOT && self.reserved.as_deref() == Some(name);
        !reserved && !name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
    }

    /// Something of the daemon's own in the scratch.
    fn own(&self, mode: u32) -> NewNode<'_> {
        NewNode { mode, umask: 0, caller: &self.me }
    }
}
