//! The nodes of an overlay: what the kernel knows, and what each is made of.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::base_changes::Over;
use super::ino::{is_unknown_entry, next_share_ino, twins, upper_only_ino};
pub(super) use super::layer_stack::{LayerStack, LowerInode};
use super::merged_open::SharedOpen;
use super::namespace_lock::{Brief, NamesRead};
use super::share::LowerShare;
use crate::shown::Show;
use crate::tree::Ino;

/// Where a node was seen last.
pub(super) struct Place {
    /// Only the root has none.
    pub(super) parent: Option<Arc<Node>>,
    pub(super) name: OsString,
    /// It has a name.
    pub(super) linked: bool,
}

/// A file or directory that the kernel knows, or above one.
pub(super) struct Node {
    pub(super) ino: Ino,
    /// Type bits of the mode.
    pub(super) kind: u32,
    lookups: AtomicU64,
    place: Mutex<Place>,
    stack: RwLock<LayerStack>,
    /// What all open descriptors of a file with parts in several layers share.
    pub(super) shared_open: Brief<Weak<SharedOpen>>,
    /// How many pages of the base show, of a file with a page map that was looked at.
    pub(super) shown: Mutex<Option<Arc<AtomicU64>>>,
    /// Bytes that its upper file and its page map were last counted with; see [`super::quota`].
    pub(super) stored: Mutex<u64>,
    /// What the kernel reads of it in the base itself.
    pub(super) lower_share: LowerShare,
    /// How often it is open as a whole file.
    pub(super) complete_opens: AtomicU64,
    /// When it came to where it is and got its marks, as a number; 0 when all of that is durable.
    namespace_dirty: AtomicU64,
}

/// What the next move is numbered.
static CHANGES_OF_NAMES: AtomicU64 = AtomicU64::new(1);

impl Node {
    pub(super) fn stack(&self) -> LayerStack {
        self.stack.read().clone()
    }

    /// It is nothing but this file or directory of the upper volume, which was made in it.
    pub(super) fn is_upper_only(&self, inner: Ino, kind: u32) -> bool {
        let stack = self.stack.read();
        self.kind == kind
            && stack.upper == Some(inner)
            && stack.lowers.is_empty()
            && stack.links.is_none()
    }

    /// Whether what was found is this file or directory: made of the same upper file, or of the same
    /// lower one alone. One of the base itself is the directory that has that below.
    fn is_made_of(&self, stack: &LayerStack) -> bool {
        let own = self.stack.read();
        match (own.upper, stack.upper) {
            (Some(own), Some(found)) => own == found,
            (None, None) => own.lowers.first() == stack.lowers.first(),
            (Some(_), None) => stack.write_through && own.lowers.last() == stack.lowers.last(),
            (None, Some(_)) => false,
        }
    }

    /// Whether it would be below itself in a directory. No directory of a good scratch is.
    fn is_around(&self, parent: &Arc<Node>) -> bool {
        let is_there =
            self.place.lock().parent.as_ref().is_some_and(|known| Arc::ptr_eq(known, parent));
        let mut next = Some(Arc::clone(parent)).filter(|_| self.is_dir() && !is_there);
        while let Some(above) = next {
            if std::ptr::eq(&*above, self) {
                return true;
            }
            next = above.parent();
        }
        false
    }

    pub(super) fn upper(&self) -> Option<Ino> {
        self.stack.read().upper
    }

    /// Whether a lookup in the directory mostly needs an answer of a lower layer.
    pub(super) fn asks_below_first(&self) -> bool {
        let stack = self.stack.read();
        stack.upper.is_none() || stack.lowers.len() > 1
    }

    /// Whether it has this below.
    pub(super) fn has_below(&self, at: LowerInode) -> bool {
        self.stack.read().lowers.contains(&at)
    }

    /// Whether pages of a lower layer may show beside those of one above it.
    pub(super) fn is_partial(&self) -> bool {
        let stack = self.stack.read();
        let is_partial = stack.pages.is_some() && !stack.lowers.is_empty();
        !self.is_dir() && (is_partial || stack.lowers.len() > 1)
    }

    /// Whether it has this below, and nothing else.
    pub(super) fn has_lowers(&self, lowers: &[LowerInode]) -> bool {
        self.stack.read().lowers == lowers
    }

    /// Its redirect, and whether a frozen layer has one.
    pub(super) fn redirects(&self) -> (Option<PathBuf>, bool) {
        let stack = self.stack.read();
        (stack.redirect.clone(), stack.redirected)
    }

    /// Whether it was seen last in a directory.
    pub(super) fn is_in(&self, dir: &Arc<Node>) -> bool {
        self.place.lock().parent.as_ref().is_some_and(|parent| Arc::ptr_eq(parent, dir))
    }

    /// Whether the kernel knows it, or is about to.
    pub(super) fn is_looked_up(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) > 0
    }

    pub(super) fn change_stack(&self, change: impl FnOnce(&mut LayerStack)) {
        change(&mut self.stack.write());
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// It is of the base itself, where it is written too.
    pub(super) fn is_write_through(&self) -> bool {
        self.stack.read().write_through
    }

    pub(super) fn is_regular(&self) -> bool {
        self.kind == libc::S_IFREG
    }

    /// The directory and the name where it was seen last; `None` for the root.
    pub(super) fn seen(&self) -> Option<(Arc<Node>, OsString)> {
        let place = self.place.lock();
        Some((Arc::clone(place.parent.as_ref()?), place.name.clone()))
    }

    pub(super) fn parent(&self) -> Option<Arc<Node>> {
        self.place.lock().parent.clone()
    }

    pub(super) fn is_linked(&self) -> bool {
        self.place.lock().linked
    }

    /// Notes the name under which it was just seen, or that it has got.
    pub(super) fn seen_at(&self, parent: &Arc<Node>, name: &OsStr) {
        let mut place = self.place.lock();
        let same = place.parent.as_ref().is_some_and(|known| Arc::ptr_eq(known, parent));
        if !same || place.name != name {
            place.parent = Some(Arc::clone(parent));
            place.name = name.to_owned();
            self.set_namespace_dirty();
        }
        place.linked = true;
    }

    /// Notes that its marks or the names that lead to it have changed.
    pub(super) fn set_namespace_dirty(&self) {
        self.namespace_dirty
            .store(CHANGES_OF_NAMES.fetch_add(1, Ordering::Relaxed), Ordering::Release);
    }

    /// When that was; 0 when it is durable.
    pub(super) fn namespace_dirty(&self) -> u64 {
        self.namespace_dirty.load(Ordering::Acquire)
    }

    /// Notes that what was so at that time is durable.
    pub(super) fn mark_durable(&self, moved: u64) {
        // It may have moved again.
        let _ =
            self.namespace_dirty.compare_exchange(moved, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Notes that its last name is gone.
    pub(super) fn unlinked(&self) {
        self.place.lock().linked = false;
    }
}

/// The numbers of nodes that have been copied up, by those in the upper volume. All others there
/// have numbers that follow from it.
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<HashMap<Ino, Ino>>);

impl Numbers {
    fn note(&self, upper: Ino, shown: Ino) {
        if upper_only_ino(upper) != shown {
            self.0.lock().insert(upper, shown);
        }
    }

    fn let_go(&self, upper: Ino) {
        self.0.lock().remove(&upper);
    }

    /// The number that the kernel knows of one in the upper volume.
    pub(super) fn shown(&self, upper: Ino) -> Ino {
        self.0.lock().get(&upper).copied().unwrap_or_else(|| upper_only_ino(upper))
    }
}

impl Drop for NodeTable {
    /// Takes the nodes apart from each other first: each holds the one above it, and a chain of
    /// them would be dropped by recursion.
    fn drop(&mut self) {
        let nodes = std::mem::take(&mut *self.nodes.lock());
        let above: Vec<_> = nodes.values().map(|node| node.place.lock().parent.take()).collect();
        drop(above);
    }
}

/// The nodes by number. One stays while the kernel knows it, something below it, or has it open.
#[derive(Default)]
pub(super) struct NodeTable {
    nodes: Mutex<HashMap<u64, Arc<Node>>>,
    /// Nodes by other numbers that the kernel knows of them; see [`super::share`].
    others: Mutex<HashMap<u64, Ino>>,
    numbers: Arc<Numbers>,
    /// Some node has a number of [`twins`].
    has_twins: AtomicBool,
    pub(super) over: Over,
}

impl NodeTable {
    /// A table with the root, which is never forgotten.
    pub(super) fn new(stack: LayerStack) -> NodeTable {
        let table = NodeTable::default();
        let place = Place { parent: None, name: OsString::new(), linked: true };
        insert(&mut table.nodes.lock(), (Ino::ROOT, libc::S_IFDIR), place, stack, 0);
        table
    }

    /// Notes that a node has got a number in the upper volume.
    pub(super) fn copied_up(&self, node: &Node, upper: Ino) {
        self.numbers.note(upper, node.lower_share.number());
    }

    /// Has a node found by another number as well, by which it is shown from now on.
    pub(super) fn renumber(&self, node: &Node, other: Ino) {
        self.others.lock().insert(other.0, node.ino);
        if let Some(upper) = node.upper() {
            self.numbers.note(upper, other);
        }
    }

    pub(super) fn numbers(&self) -> Arc<Numbers> {
        Arc::clone(&self.numbers)
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        if let Some(node) = self.nodes.lock().get(&ino.0) {
            return Some(Arc::clone(node));
        }
        let known = self.others.lock().get(&ino.0).copied()?;
        self.nodes.lock().get(&known.0).cloned()
    }

    /// Counts a lookup of a node that is known to be at a name, if it is as `is` says.
    pub(super) fn known(
        &self,
        _: &NamesRead<'_>,
        ino: Ino,
        (parent, name): (&Arc<Node>, &OsStr),
        is: impl FnOnce(&Node) -> bool,
    ) -> Option<Arc<Node>> {
        let node = self.get(ino).filter(|node| is(node))?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        node.seen_at(parent, name);
        Some(node)
    }

    /// Counts a lookup of what was found at a name. Returns the node and the parts that are left
    /// over, whose lookups are to be taken back.
    pub(super) fn enter(
        &self,
        _: &NamesRead<'_>,
        (ino, kind): (Ino, u32),
        (parent, name): (&Arc<Node>, &OsStr),
        stack: LayerStack,
        stored: u64,
    ) -> (Arc<Node>, LayerStack) {
        let mut nodes = self.nodes.lock();
        let own = stack.upper.map(upper_only_ino);
        let plain = || [Some(ino), own].into_iter().flatten().filter(|ino| *ino != Ino::ROOT);
        let twins = || own.into_iter().chain([ino]).flat_map(twins);
        // It may be known by any of its numbers, whichever of them is free by now.
        let known = {
            let of = |ino: Ino| {
                nodes.get(&ino.0).filter(|node| {
                    node.kind == kind && node.is_made_of(&stack) && !node.is_around(parent)
                })
            };
            let as_twin =
                || twins().filter(|_| self.has_twins.load(Ordering::Relaxed)).find_map(of);
            plain().find_map(of).or_else(as_twin).cloned()
        };
        if let Some(node) = known {
            node.lookups.fetch_add(1, Ordering::Relaxed);
            node.seen_at(parent, name);
            return (node, stack);
        }
        let is_free = |ino: &Ino| !nodes.contains_key(&ino.0);
        let number = plain().find(is_free).unwrap_or_else(|| {
            self.has_twins.store(true, Ordering::Relaxed);
            twins().find(is_free).unwrap_or_else(next_share_ino)
        });
        if number != ino {
            log::warn!(
                "{}: another file of the scratch has its inode number {ino}: it is shown with {number}",
                name.shown()
            );
        }
        let ino = number;
        let place = Place { parent: Some(Arc::clone(parent)), name: name.to_owned(), linked: true };
        if let Some(upper) = stack.upper {
            self.numbers.note(upper, ino);
        }
        self.note_below(ino, &stack.lowers);
        (insert(&mut nodes, (ino, kind), place, stack, stored), LayerStack::default())
    }

    /// Counts a lookup of a node that has just got a name.
    pub(super) fn named(
        &self,
        _: &NamesRead<'_>,
        node: &Node,
        (parent, name): (&Arc<Node>, &OsStr),
    ) {
        node.lookups.fetch_add(1, Ordering::Relaxed);
        node.seen_at(parent, name);
    }

    /// Takes back `count` lookups. Returns all nodes that went with it.
    #[must_use]
    pub(super) fn forget(&self, ino: Ino, count: u64) -> Vec<Arc<Node>> {
        if ino == Ino::ROOT {
            return Vec::new();
        }
        let mut known = ino;
        match self.get(ino) {
            Some(node) => {
                known = node.ino;
                let before = node.lookups.fetch_sub(count, Ordering::Relaxed);
                if count > before {
                    log::error!("forget ino={ino}: {count} of {before} lookups");
                    node.lookups.store(0, Ordering::Relaxed);
                }
                drop(node);
            }
            None if is_unknown_entry(ino) => {}
            None => log::error!("forget ino={ino}: the inode is not known"),
        }
        self.drop_unused(known)
    }

    /// Drops a node that nobody needs any more, and those above it that were there for it.
    #[must_use]
    pub(super) fn drop_unused(&self, ino: Ino) -> Vec<Arc<Node>> {
        let mut gone = Vec::new();
        let mut next = Some(ino);
        let mut nodes = self.nodes.lock();
        while let Some(ino) = next.take() {
            let Some(node) = nodes.get(&ino.0) else { break };
            let unused = ino != Ino::ROOT
                && node.lookups.load(Ordering::Relaxed) == 0
                && Arc::strong_count(node) == 1;
            if !unused {
                break;
            }
            let Some(node) = nodes.remove(&ino.0) else { break };
            // Let go of here, so that the directory above is seen to be unused as well.
            if node.lower_share.number() != node.ino {
                self.others.lock().retain(|_, known| *known != node.ino);
            }
            next = node.place.lock().parent.take().map(|parent| parent.ino);
            if let Some(upper) = node.upper() {
                self.numbers.let_go(upper);
            }
            self.note_not_below(node.ino, &node.stack.read().lowers);
            gone.push(node);
        }
        gone
    }

    /// The node of something in the upper volume.
    pub(super) fn of_upper(&self, inner: Ino) -> Option<Arc<Node>> {
        self.get(self.numbers.shown(inner)).filter(|node| node.upper() == Some(inner))
    }

    /// The nodes that are as `is` says.
    pub(super) fn all_where(&self, is: impl Fn(&Node) -> bool) -> Vec<Arc<Node>> {
        let nodes = self.nodes.lock();
        nodes.values().filter(|node| is(node)).cloned().collect()
    }

    /// The numbers of all directories.
    pub(super) fn directories(&self) -> Vec<Ino> {
        let nodes = self.nodes.lock();
        nodes.values().filter(|node| node.is_dir()).map(|node| node.ino).collect()
    }

    /// How many nodes there are, and the sum of their lookups.
    pub(super) fn counts(&self) -> (u64, u64) {
        let nodes = self.nodes.lock();
        let lookups = nodes.values().map(|node| node.lookups.load(Ordering::Relaxed)).sum();
        (nodes.len() as u64, lookups)
    }
}

fn insert(
    nodes: &mut HashMap<u64, Arc<Node>>,
    (ino, kind): (Ino, u32),
    place: Place,
    stack: LayerStack,
    stored: u64,
) -> Arc<Node> {
    let node = Arc::new(Node {
        ino,
        kind,
        lookups: AtomicU64::new(1),
        place: Mutex::new(place),
        stack: RwLock::new(stack),
        shared_open: Brief::default(),
        shown: Mutex::default(),
        stored: Mutex::new(stored),
        lower_share: LowerShare::new(ino),
        complete_opens: AtomicU64::new(0),
        namespace_dirty: AtomicU64::new(CHANGES_OF_NAMES.fetch_add(1, Ordering::Relaxed)),
    });
    nodes.insert(ino.0, Arc::clone(&node));
    node
}
