//! The tree of a scratch mount: one writable layer over any number of layers that are never written.
//!
//! A node has an inode of each layer that contains it, topmost first, and most requests go to the
//! topmost one. The top layer is `upper/` in the scratch directory, in the format of overlayfs; a
//! change of a lower file copies the file up first, without its data. A name is looked up layer by
//! layer from the top; a whiteout ends the search.
//!
//! Every change of names holds the namespace lock for writing, so that it is one step for all others;
//! bytes are read and written without it. No plain lower layer is asked under it
//! ([`namespace_lock`]).

mod allocate;
mod attributes;
mod base_changes;
mod base_guard;
mod coherence;
mod control_ops;
mod copy_up;
mod covered_names;
mod data;
mod diff;
mod dir_offset;
mod fsync;
mod handles;
mod hardlink_index;
mod held_node;
mod ino;
mod inspect;
mod layer;
mod layer_stack;
mod lease_break;
mod lifecycle;
mod lookup;
mod lower_answers;
mod lower_lookup;
mod lower_names;
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
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use crate::config::BaseChanged;
use crate::error::cause::{UNKNOWN_INODE, because};
use crate::layers::changed::{self, Changed};
use crate::layers::pages::MapId;
use crate::layers::scratch::{MetadataReserve, Scratch, TEMPORARY};
use crate::sys::cred::Caller;
use crate::tree::{Attributes, BackingRegistration, Ino, Invalidate, Names, NewNode};
use crate::volume::short_lived_fds::{ShortLived, Sweeper};
use crate::volume::{Policy, Volume};
use dir_offset::OffsetFormat;
use layer::{Layer, LayerKind, OverlayParts};
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
    /// The volume over the directory of the scratch, in which all overlay layers lie.
    upper: Arc<Volume>,
    /// The layers, topmost first. The first one is written, no other ever is.
    layers: Vec<Arc<Layer>>,
    /// The parts of the topmost layer.
    top: Arc<OverlayParts>,
    /// The number that the root is shown with: that of the root of the lowest overlay layer, which
    /// stays when layers are frozen.
    root_number: Ino,
    /// The directory of the upper volume where copies are made, of which one lookup is held.
    work: Ino,
    nodes: NodeTable,
    /// The lock of the names, with the number of their changes; see [`namespace_lock`].
    names: RwLock<u64>,
    handles: handles::HandleTable,
    /// Listings under way of directories that the kernel has opened without asking.
    listings: ShortLived<readdir::OpenDir>,
    offsets: OffsetFormat,
    sweeper: Sweeper,
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

/// The roots of the layers below one.
fn roots_below(layers: &[Arc<Layer>], layer: usize) -> Vec<LowerInode> {
    let below = layers.iter().enumerate().skip(layer + 1);
    below.map(|(layer, found)| LowerInode { layer, ino: found.root }).collect()
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
        if lowers.len() + scratch.frozen().len() > dir_offset::MOST_LOWERS {
            return Err(Errno::TOOBIG);
        }
        let volumes: Vec<_> = lowers.iter().chain([&upper]).cloned().collect();
        Volume::share_descriptors(&volumes);
        let find =
            |name: &str| upper.lookup(Ino::ROOT, OsStr::new(name)).map(|entry| entry.attr.ino);
        let step = |at: Ino, name: &str| upper.lookup(at, OsStr::new(name));
        let find_below = |id: &str, part: &str| {
            let way = ["layers", id, part].into_iter();
            let found =
                way.into_iter().try_fold(Ino::ROOT, |at, name| Ok(step(at, name)?.attr.ino));
            found.inspect_err(|err: &Errno| log::error!("layers/{id}/{part}: {err}"))
        };
        let (root, work, index) = (find("upper")?, find("work")?, find("index")?);
        let top = Arc::new(OverlayParts {
            xattrs: XattrStore { namespace: scratch.xattr_namespace() },
            pages: scratch.pages()?,
            index: hardlink_index::Index::read(&upper, index)?,
            contested: scratch.contested().clone(),
            known: layer::FrozenXattrs::default(),
        });
        let kind = LayerKind::Overlay(Arc::clone(&top));
        let mut layers = vec![Arc::new(Layer { volume: Arc::clone(&upper), root, kind })];
        for frozen in scratch.frozen() {
            let kind = LayerKind::Overlay(Arc::new(OverlayParts {
                xattrs: top.xattrs,
                pages: frozen.pages()?,
                index: hardlink_index::Index::read(&upper, find_below(&frozen.id, "index")?)?,
                contested: frozen.contested.clone(),
                known: layer::FrozenXattrs::default(),
            }));
            let root = find_below(&frozen.id, "upper")?;
            layers.push(Arc::new(Layer { volume: Arc::clone(&upper), root, kind }));
        }
        let lowest = layers.last().map_or(root, |layer| layer.root);
        let root_number = Ino(upper.attr(lowest, None)?.stat.ino);
        let plain = |volume| Layer { volume, root: Ino::ROOT, kind: LayerKind::Plain };
        layers.extend(lowers.into_iter().map(|volume| Arc::new(plain(volume))));
        let root = LayerStack {
            upper: Some(root),
            lowers: roots_below(&layers, 0),
            ..LayerStack::default()
        };
        let overlay = Overlay {
            work,
            nodes: NodeTable::new(root),
            names: RwLock::new(0),
            handles: handles::HandleTable::default(),
            listings: ShortLived::new(64),
            offsets: OffsetFormat::of(layers.len() - 1),
            sweeper: Sweeper::default(),
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
            layers,
            top,
            root_number,
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
        let Some(scratch) = &*scratch else { return Vec::new() };
        let found = match scratch.frozen().is_empty() {
            true => changed::find(scratch, &self.top.pages, self.base().watch_point()),
            false => self.changed_below(scratch),
        };
        self.guard.note_changed(&found);
        found
    }

    /// The layer of a file or directory.
    fn layer_of(&self, at: LowerInode) -> Result<&Arc<Layer>, Errno> {
        self.layers.get(at.layer).ok_or(Errno::IO)
    }

    /// The volume of a lower layer, which is asked something. A plain layer may take long to
    /// answer: the caller holds no lock that others need.
    fn layer(&self, at: LowerInode) -> Result<&Volume, Errno> {
        let layer = self.layer_of(at)?;
        if layer.is_plain() {
            namespace_lock::may_ask();
        }
        Ok(&layer.volume)
    }

    /// The volume of a lower layer, for calls that need no answer of its filesystem.
    fn lower(&self, at: LowerInode) -> Result<&Volume, Errno> {
        self.layer_of(at).map(|layer| &*layer.volume)
    }

    /// The volumes of the plain layers, topmost first.
    fn plain_volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.layers.iter().filter(|layer| layer.is_plain()).map(|layer| &layer.volume)
    }

    /// Whether a file or directory is of a plain layer.
    fn is_plain(&self, at: LowerInode) -> bool {
        self.layer_of(at).is_ok_and(|layer| layer.is_plain())
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
        self.nodes.get(ino).ok_or_else(|| because(Errno::STALE, UNKNOWN_INODE))
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
