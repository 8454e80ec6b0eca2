//! Inode table: the inodes that the kernel knows, with their lookup counts.
//!
//! An inode has the number of its backing file, so that no map of numbers is needed. A node costs
//! its own size, its name and its file handle, and holds no descriptor unless its last name is gone
//! while the kernel still knows it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::device::{FIRST_SUBSTITUTE, Origin, PLACE_SHIFT};
use super::identity::{Identity, Seen};
use crate::mapping::FileKey;
use crate::sys::handle::FileHandle;
use crate::tree::{Ino, Stat};

#[cfg(test)]
mod tests;

/// The parent of what nobody has seen since it left its name: no inode has this number.
const NOWHERE: Ino = Ino(0);

/// Where an inode was seen last.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: Ino,
    pub(super) name: Box<OsStr>,
    /// Keeps a removed file reachable, and its inode number from being given to another.
    pub(super) pinned: Option<Arc<OwnedFd>>,
}

/// Where the type bits of a mode begin (S_IFMT).
const KIND_SHIFT: u32 = 12;

/// The time of birth of a node may be another file's too.
const AMBIGUOUS: u8 = 1;
/// It was seen with setuid or setgid: its attributes are asked for at every use.
const HAD_SET_ID: u8 = 2;

/// A file that the kernel knows.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: Ino,
    /// The backing file: its place, and its number there.
    origin: &'static Origin,
    number: u64,
    /// Type bits of the mode: the four from the 12th on.
    kind: u8,
    /// See [`Identity`].
    birth: u32,
    pub(super) handle: Option<FileHandle>,
    /// [`AMBIGUOUS`] and [`HAD_SET_ID`].
    flags: AtomicU8,
    /// It was registered before: a client may still map it, though all descriptors are closed.
    pub(super) lent: AtomicBool,
    /// It was lent to somebody who writes, and may still map it.
    pub(super) stored_to: AtomicBool,
    lookups: AtomicU64,
    pub(super) place: Mutex<Place>,
}

impl Node {
    pub(super) fn new(
        ino: Ino,
        stat: &Stat,
        identity: Identity,
        parent: Ino,
        name: &OsStr,
    ) -> Node {
        let Identity { birth, handle, ambiguous } = identity;
        Node {
            ino,
            origin: Origin::from(stat).kept(),
            number: stat.ino,
            kind: (stat.kind() >> KIND_SHIFT) as u8,
            birth,
            handle,
            flags: AtomicU8::new(if ambiguous { AMBIGUOUS } else { 0 }),
            lent: AtomicBool::new(false),
            stored_to: AtomicBool::new(false),
            lookups: AtomicU64::new(1),
            place: Mutex::new(Place { parent, name: name.into(), pinned: None }),
        }
    }

    /// The backing file.
    pub(super) fn key(&self) -> FileKey {
        let Origin { dev, mount } = *self.origin;
        FileKey { dev, ino: self.number, mount }
    }

    /// Type bits of the mode.
    pub(super) fn kind(&self) -> u32 {
        u32::from(self.kind) << KIND_SHIFT
    }

    /// Whether what was found is this very file and not another one that took its number.
    pub(super) fn is(&self, seen: &Seen<'_>) -> bool {
        let stat = &seen.stat;
        self.key() == stat.key()
            && self.kind() == stat.kind()
            && (self.birth == 0 || self.birth == stat.birth)
            && (!self.is_ambiguous() || self.handle.as_ref() == seen.handle())
    }

    /// Whether attributes alone do not tell this file from another one.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.flags.load(Ordering::Acquire) & AMBIGUOUS != 0
    }

    /// Notes that it was found once more.
    pub(super) fn confirm(&self, seen: &Seen<'_>) {
        if self.is_ambiguous() && self.birth != 0 && seen.has_outlived_its_birth() {
            self.flags.fetch_and(!AMBIGUOUS, Ordering::AcqRel);
        }
    }

    /// Tells the kernel's inode from that of an earlier file with the same number.
    pub(super) fn generation(&self) -> u32 {
        self.birth ^ self.handle.as_ref().map_or(0, FileHandle::digest)
    }

    /// Notes that it was seen with setuid or setgid.
    pub(super) fn note_set_id(&self) {
        self.flags.fetch_or(HAD_SET_ID, Ordering::AcqRel);
    }

    /// Whether it ever was, while the kernel knows it.
    pub(super) fn had_set_id(&self) -> bool {
        self.flags.load(Ordering::Acquire) & HAD_SET_ID != 0
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Notes the name under which it was just seen.
    pub(super) fn seen_at(&self, parent: Ino, name: &OsStr, linked: bool) {
        if self.ino == Ino::ROOT {
            return;
        }
        let mut place = self.place.lock();
        if place.parent != parent || *place.name != *name {
            place.parent = parent;
            place.name = name.into();
        }
        if linked {
            place.pinned = None;
        }
    }

    /// The directory and name under which it was seen last.
    pub(super) fn seen(&self) -> (Ino, Box<OsStr>) {
        let place = self.place.lock();
        (place.parent, place.name.clone())
    }

    /// Notes that it is no longer where it was seen.
    pub(super) fn left(&self, parent: Ino, name: &OsStr) {
        let mut place = self.place.lock();
        if place.parent == parent && *place.name == *name {
            (place.parent, place.name) = (NOWHERE, OsStr::new("").into());
        }
    }

    pub(super) fn pinned(&self) -> Option<Arc<OwnedFd>> {
        self.place.lock().pinned.clone()
    }
}

const SHARDS: usize = 64;

/// Nodes by number, in shards so that lookups in parallel seldom meet.
pub(super) struct InodeTable {
    shards: Vec<RwLock<HashMap<u64, Arc<Node>>>>,
    /// Some file has, or had, another number than its own.
    substituted: AtomicBool,
    /// Held while such a number is chosen.
    reuse: Mutex<()>,
}

/// The numbers for a file whose own is taken. They are above those of all places.
pub fn substitutes(number: Ino) -> impl Iterator<Item = Ino> {
    let small = number.0 >> PLACE_SHIFT == 0;
    (0..SUBSTITUTES)
        .filter(move |_| small)
        .map(move |index| Ino((FIRST_SUBSTITUTE + index) << PLACE_SHIFT | number.0))
}

/// The number of the file itself where it is known by a substitute.
pub fn unsubstituted(number: Ino) -> Ino {
    let first = FIRST_SUBSTITUTE << PLACE_SHIFT;
    let end = (FIRST_SUBSTITUTE + SUBSTITUTES) << PLACE_SHIFT;
    match number.0 {
        substitute if (first..end).contains(&substitute) => {
            Ino(substitute & ((1 << PLACE_SHIFT) - 1))
        }
        _ => number,
    }
}

/// Number of files with the same number that the kernel may know at a time, beyond the first.
const SUBSTITUTES: u64 = 64;

impl InodeTable {
    /// A table that knows the root, which is never forgotten.
    pub(super) fn new(root: &Stat, fd: OwnedFd) -> InodeTable {
        let table = InodeTable {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            substituted: AtomicBool::new(false),
            reuse: Mutex::new(()),
        };
        let identity = Identity { birth: root.birth, ..Identity::default() };
        let node = Node::new(Ino::ROOT, root, identity, Ino::ROOT, OsStr::new(""));
        node.place.lock().pinned = Some(Arc::new(fd));
        table.shard(Ino::ROOT).write().insert(Ino::ROOT.0, Arc::new(node));
        table
    }

    fn shard(&self, ino: Ino) -> &RwLock<HashMap<u64, Arc<Node>>> {
        // Inode numbers of one directory are often neighbours: spread them by their low bits.
        let index = (ino.0 ^ (ino.0 >> 16)) as usize % SHARDS;
        &self.shards[index]
    }

    /// The node with this number.
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        self.shard(ino).read().get(&ino.0).cloned()
    }

    /// Counts one more lookup of a known file.
    fn acquire(&self, ino: Ino, seen: &Seen<'_>) -> Option<Arc<Node>> {
        let shard = self.shard(ino).read();
        let node = shard.get(&ino.0).filter(|node| node.is(seen))?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        node.confirm(seen);
        Some(Arc::clone(node))
    }

    /// Counts one more lookup of a file if it is known, by whatever number it has.
    pub(super) fn look_up_known(&self, number: Ino, seen: &Seen<'_>) -> Option<Arc<Node>> {
        self.find_and(number, seen, InodeTable::acquire)
    }

    /// Counts a lookup of a file, which `make` makes a node of when it is not known. Its number is
    /// `number`, unless the kernel still knows an earlier file by that: what was said of the one
    /// may reach the kernel after what is said of the other, so they need numbers of their own.
    pub(super) fn remember(
        &self,
        number: Ino,
        seen: &Seen<'_>,
        make: impl FnOnce(Ino) -> Node,
    ) -> Arc<Node> {
        if let Some(node) = self.look_up_known(number, seen) {
            return node;
        }
        let node = make(number);
        let mut node = match self.insert_if_vacant(node, seen) {
            Ok(node) => return node,
            Err(node) => node,
        };
        let _one_at_a_time = self.reuse.lock();
        for ino in substitutes(number) {
            node.ino = ino;
            node = match self.insert_if_vacant(node, seen) {
                Ok(known) => {
                    self.substituted.store(true, Ordering::Release);
                    return known;
                }
                Err(node) => node,
            };
        }
        node.ino = number;
        self.replace(node)
    }

    /// The node of a file, by whatever number it has.
    pub(super) fn find(&self, number: Ino, seen: &Seen<'_>) -> Option<Arc<Node>> {
        self.find_and(number, seen, |table, ino, seen| table.get(ino).filter(|node| node.is(seen)))
    }

    /// Whether some file may be known by a number: none is, where this says so.
    pub(super) fn may_know(&self, number: Ino) -> bool {
        self.substituted.load(Ordering::Acquire) || self.get(number).is_some()
    }

    /// The node with this number, or one instead of it, that is the one looked for.
    pub(super) fn find_where(&self, number: Ino, is: impl Fn(&Node) -> bool) -> Option<Arc<Node>> {
        if let Some(node) = self.get(number).filter(|node| is(node)) {
            return Some(node);
        }
        if !self.substituted.load(Ordering::Acquire) {
            return None;
        }
        substitutes(number).find_map(|ino| self.get(ino).filter(|node| is(node)))
    }

    /// Calls `visit` with every node.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Node)) {
        for shard in &self.shards {
            shard.read().values().for_each(|node| visit(node));
        }
    }

    fn find_and(
        &self,
        number: Ino,
        seen: &Seen<'_>,
        get: impl Fn(&InodeTable, Ino, &Seen<'_>) -> Option<Arc<Node>>,
    ) -> Option<Arc<Node>> {
        if let Some(node) = get(self, number, seen) {
            return Some(node);
        }
        if !self.substituted.load(Ordering::Acquire) {
            return None;
        }
        substitutes(number).find_map(|ino| get(self, ino, seen))
    }

    /// Adds a node with its first lookup, or counts one of the same file that another thread has
    /// added. Gives the node back when its number is another file's.
    fn insert_if_vacant(&self, node: Node, seen: &Seen<'_>) -> Result<Arc<Node>, Node> {
        let mut shard = self.shard(node.ino).write();
        if let Some(known) = shard.get(&node.ino.0) {
            if !known.is(seen) {
                return Err(node);
            }
            known.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(known));
        }
        let node = Arc::new(node);
        shard.insert(node.ino.0, Arc::clone(&node));
        Ok(node)
    }

    /// Puts a node in the place of one of an earlier file with the same number. The lookups of
    /// that, which the kernel will take back under the number, are carried over.
    fn replace(&self, node: Node) -> Arc<Node> {
        let mut shard = self.shard(node.ino).write();
        if let Some(known) = shard.get(&node.ino.0) {
            let lookups = known.lookups.load(Ordering::Relaxed) + 1;
            node.lookups.store(lookups, Ordering::Relaxed);
        }
        let node = Arc::new(node);
        shard.insert(node.ino.0, Arc::clone(&node));
        node
    }

    /// Counts one more lookup of whatever is known by a number. False where nothing is.
    pub(super) fn look_up_again(&self, ino: Ino) -> bool {
        let shard = self.shard(ino).read();
        let Some(node) = shard.get(&ino.0) else { return false };
        node.lookups.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Takes back `count` lookups; the node is dropped with its last. Returns it then.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> Option<Arc<Node>> {
        if ino == Ino::ROOT {
            return None;
        }
        let mut shard = self.shard(ino).write();
        let Some(node) = shard.get(&ino.0) else {
            log::error!("forget ino={ino}: the inode is not known");
            return None;
        };
        let before = node.lookups.load(Ordering::Relaxed);
        if count > before {
            log::error!("forget ino={ino}: {count} of {before} lookups");
        }
        let left = before.saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        if left > 0 {
            return None;
        }
        let node = shard.remove(&ino.0);
        if shard.capacity() > 1024 && shard.len() < shard.capacity() / 8 {
            shard.shrink_to_fit();
        }
        node
    }

    /// Number of known nodes, and the sum of their lookups.
    pub(super) fn counts(&self) -> (u64, u64) {
        let mut counts = (0, 0);
        for shard in &self.shards {
            let shard = shard.read();
            counts.0 += shard.len() as u64;
            counts.1 +=
                shard.values().map(|node| node.lookups.load(Ordering::Relaxed)).sum::<u64>();
        }
        counts
    }
}
