//! Shares of lower files: base files that the kernel reads directly (`share`), and their revocation
//! when the file is about to be written.
//!
//! The kernel uses one I/O mode for an inode at a time: an inode that is open with a passthrough
//! registration of the base file cannot be opened for a partial copy. So a writer gets another
//! inode. Its open fails with ESTALE; the kernel then looks the name up again, and gets a new inode
//! number. From then on every open by the old number fails with ESTALE. A handle that was opened by
//! the old number goes on reading the base, which is the price of sharing. Attributes always have
//! the node's number, which does not change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::ino::next_share_ino;
use super::node::{LowerInode, Node};
use crate::error::cause::because;
use crate::sys::cred::Caller;
use crate::tree::{Files, HandleId, Ino, Open, Opened, Plane, RegisterBacking, Validity};
use crate::volume::Volume;

/// Share of one file.
pub(super) struct LowerShare {
    /// Inode number in replies to lookups.
    number: AtomicU64,
    /// Open handles by this number that read the base.
    open: Mutex<HashSet<u64>>,
}

impl LowerShare {
    pub(super) fn new(ino: Ino) -> LowerShare {
        LowerShare { number: AtomicU64::new(ino.0), open: Mutex::default() }
    }

    /// Inode number in replies to lookups.
    pub(super) fn number(&self) -> Ino {
        Ino(self.number.load(Ordering::Acquire))
    }

    /// Whether a handle is open that reads the base.
    pub(super) fn is_open(&self) -> bool {
        !self.open.lock().is_empty()
    }

    /// Removes a closed handle, which may not belong to the share.
    pub(super) fn closed(&self, id: HandleId) {
        self.open.lock().remove(&id.0);
    }
}

/// Time for which a file is not shared again after its share was revoked.
const SHARED_AGAIN: Duration = Duration::from_secs(10);

/// Files whose share was revoked lately. They are not shared again for a while: the kernel repeats
/// an open after ESTALE only once. They are kept apart from the nodes, which the kernel may forget
/// meanwhile.
#[derive(Default)]
pub(super) struct Revocations(Mutex<HashMap<Ino, Instant>>);

impl Revocations {
    fn note(&self, ino: Ino) {
        let mut all = self.0.lock();
        all.retain(|_, since| since.elapsed() < SHARED_AGAIN);
        all.insert(ino, Instant::now());
    }

    fn has(&self, ino: Ino) -> bool {
        self.0.lock().get(&ino).is_some_and(|since| since.elapsed() < SHARED_AGAIN)
    }
}

/// Open base file that may become a share. It is closed on drop unless it was noted as one.
pub(super) struct SharedLower<'a> {
    volume: &'a Volume,
    at: LowerInode,
    /// `None` once it is noted as a share.
    opened: Option<Opened>,
}

impl Drop for SharedLower<'_> {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take()
            && let Err(err) = self.volume.release(opened.id)
        {
            log::warn!("inode {}: closing the base: {err}", self.at.ino);
        }
    }
}

impl Overlay {
    /// Checks that `ino` is the present number of a file, whose content is to be opened or changed.
    ///
    /// # Errors
    /// ESTALE, so that the kernel looks the name up again; ETXTBSY if the file has no name.
    pub(super) fn check_number(&self, node: &Node, ino: Ino) -> Result<(), Errno> {
        match node.lower_share.number() == ino {
            true => Ok(()),
            false if node.is_linked() => {
                Err(because(Errno::STALE, "its inode number is that of the shared base"))
            }
            false => Err(Errno::TXTBSY),
        }
    }

    /// Revokes the share of a file whose content is about to change: gives it another inode number.
    /// The caller holds [`Node::shared_open`] locked, so no new share is made meanwhile.
    pub(super) fn revoke_share(&self, node: &Node) {
        let mut open = node.lower_share.open.lock();
        if open.is_empty() || !node.is_linked() {
            return;
        }
        open.clear();
        self.revocations.note(node.ino);
        let (known, other) = (node.lower_share.number(), next_share_ino());
        self.nodes.renumber(node, other);
        node.lower_share.number.store(other.0, Ordering::Release);
        drop(open);
        if let Some(caches) = self.caches.get() {
            // The cached attributes of the old number are valid for long, and other names lead to
            // it.
            let _ = caches.inode(known, false); // The kernel may have forgotten it.
        }
    }

    /// Revokes the share of a file, and checks the number by which it is open or to be opened.
    ///
    /// # Errors
    /// As [`Overlay::check_number`]; ETXTBSY also if the file is shared and has no name.
    pub(super) fn revoke_share_by(&self, node: &Node, ino: Ino) -> Result<(), Errno> {
        self.revoke_share(node);
        self.check_number(node, ino)?;
        if node.lower_share.is_open() { Err(Errno::TXTBSY) } else { Ok(()) }
    }

    /// Validity of attributes that are asked for by `ino`.
    pub(super) fn validity_by(&self, node: &Node, ino: Ino, validity: Validity) -> Validity {
        if node.lower_share.number() == ino || ino == Ino::ROOT {
            validity
        } else {
            Validity::Uncached
        }
    }

    /// Opens a base file that is to be shared. It is closed on drop unless it is noted as a share.
    pub(super) fn open_shared(
        &self,
        at: LowerInode,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<SharedLower<'_>, Errno> {
        let volume = self.layer(at)?;
        Ok(SharedLower { volume, at, opened: Some(volume.open(at.ino, how, caller, register)?) })
    }

    /// Makes an open base file a share; `None` if it is not registered for passthrough. The caller
    /// holds [`Node::shared_open`] locked.
    pub(super) fn note_shared(
        &self,
        node: &Arc<Node>,
        shared: &mut SharedLower<'_>,
    ) -> Option<Opened> {
        let is_registered = |opened: &mut Opened| matches!(opened.plane, Plane::Passthrough(_));
        let opened = shared.opened.take_if(is_registered)?;
        let mut open = node.lower_share.open.lock();
        let opened = self.handles.add_complete(Arc::clone(node), Some(shared.at), opened);
        open.insert(opened.id.0);
        Some(opened)
    }

    /// Whether a file may be shared that is not open in another way.
    pub(super) fn may_be_shared(&self, node: &Node) -> bool {
        let stack = node.stack();
        stack.upper.is_none() && stack.lowers.len() == 1 && !self.revocations.has(node.ino)
    }
}
