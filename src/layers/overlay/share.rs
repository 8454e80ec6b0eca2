//! Base files that are lent to the kernel to be read (`share`), and what becomes of them when
//! they are written.
//!
//! The kernel takes one way for an inode at a time: one whose reading goes to the base can not be
//! opened to be written here. So whoever wants to write gets another inode. The open is answered
//! with ESTALE, upon which the kernel looks the name up anew, and is told a new number. From then
//! on every open by the old number is answered so. Who has it open by that goes on reading the
//! base, which is the price of sharing. Attributes tell the number of the base throughout.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::ino::next_share_ino;
use super::node::{LowerInode, Node};
use crate::sys::cred::Caller;
use crate::volume::{HandleId, Ino, Open, Opened, Plane, RegisterBacking, Validity, Volume};

/// What is lent of a file.
pub(super) struct LowerShare {
    /// The number that the kernel is told.
    number: AtomicU64,
    /// What is open by that number and read in the base.
    open: Mutex<HashSet<u64>>,
}

impl LowerShare {
    pub(super) fn new(ino: Ino) -> LowerShare {
        LowerShare { number: AtomicU64::new(ino.0), open: Mutex::default() }
    }

    /// The number that the kernel is told.
    pub(super) fn number(&self) -> Ino {
        Ino(self.number.load(Ordering::Acquire))
    }

    /// Whether the kernel reads it in the base.
    pub(super) fn is_open(&self) -> bool {
        !self.open.lock().is_empty()
    }

    /// Notes that a handle is closed, which may be one of these.
    pub(super) fn closed(&self, id: HandleId) {
        self.open.lock().remove(&id.0);
    }
}

/// How long a file is not lent again that somebody was about to write.
const SHARED_AGAIN: Duration = Duration::from_secs(10);

/// The files that somebody was about to open to write, and was told to look up anew: once, since
/// the second time the open would fail. Meanwhile the kernel may forget all of their numbers, and
/// so may the table of nodes.
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

/// An open base file.
pub(super) struct SharedLower<'a> {
    volume: &'a Volume,
    at: LowerInode,
    /// Until it is noted as lent.
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
    /// Refuses to open or change the content of a file by a number that it had before.
    ///
    /// # Errors
    /// ESTALE, upon which its name is looked up anew; ETXTBSY when it has none.
    pub(super) fn check_number(&self, node: &Node, ino: Ino) -> Result<(), Errno> {
        match node.lower_share.number() == ino {
            true => Ok(()),
            false if node.is_linked() => Err(Errno::STALE),
            false => Err(Errno::TXTBSY),
        }
    }

    /// Gives a file whose content is about to be changed another number if it is lent. Whoever
    /// calls has locked its content, and nothing is lent meanwhile.
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
            // The kernel would trust them for long, and other names lead there.
            let _ = caches.inode(known, false); // It may have forgotten it.
        }
    }

    /// The same for an open file that is known by a number, or one that is to be opened.
    ///
    /// # Errors
    /// As [`Overlay::check_number`]; ETXTBSY too when it is lent and has no name.
    pub(super) fn revoke_share_by(&self, node: &Node, ino: Ino) -> Result<(), Errno> {
        self.revoke_share(node);
        self.check_number(node, ino)?;
        if node.lower_share.is_open() { Err(Errno::TXTBSY) } else { Ok(()) }
    }

    /// How long attributes may be used that were asked for by a number.
    pub(super) fn validity_by(&self, node: &Node, ino: Ino, validity: Validity) -> Validity {
        if node.lower_share.number() == ino || ino == Ino::ROOT {
            validity
        } else {
            Validity::Uncached
        }
    }

    /// Opens a base file to be lent to the kernel. It is closed where it is not noted as lent.
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

    /// Notes that the base file itself is lent to the kernel to be read; `None` where it is not.
    /// The caller holds its content locked.
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

    /// Whether a file may be lent that nobody has open otherwise.
    pub(super) fn may_be_shared(&self, node: &Node) -> bool {
        node.upper().is_none() && !self.revocations.has(node.ino)
    }
}
