//! Changes that other processes make in the base, and their effect on the mount.
//!
//! A watch reports each change by inode numbers of the base's volume. Most nodes that are only in
//! the base have the same number; a table maps the others. A changed name of the base is visible
//! unless the upper directory has an entry for it. The pages of a partial copy stay those of first
//! touch ([`super::base_guard`]); the kernel's cache of them is invalidated all the same, since it
//! may be older.
//!
//! A directory that is also in the upper volume stays when its lower directory is removed, replaced
//! or moved. Its lower directories, and those of the directories in it, are looked up again by
//! their path in the base, as at a new mount of the scratch, and the kernel's cache of its names is
//! invalidated.
//!
//! Locks: the names are held shared while the affected nodes are found, and exclusively while the
//! lower directories of a node are replaced. No lock is held while the kernel's cache is
//! invalidated.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::held_node::HeldNode;
use super::inspect::MOST_LINKS;
use super::lower_lookup::Below;
use super::names::Upper;
use super::namespace_lock::{NamesWrite, Step};
use super::node::{LowerInode, Node, NodeTable};
use super::write_through::WRITE_THROUGH;
use crate::shown::Show;
use crate::tree::{Attributes, Caching, Ino, Invalidate, Names, Stat, Validity};
use crate::volume::{ChangeSink, Volume};

/// Seconds after a change of the base within which the watch is assumed to report it.
const LATE: i64 = 2;

/// Whether the watch may not have reported the last change of a file yet.
fn is_recent(stat: &Stat) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    stat.ctime.sec.saturating_add(LATE) >= now as i64
}

/// Nodes whose lower inode has another number than the node, by layer and lower number.
#[derive(Default)]
pub(super) struct Over(Mutex<HashMap<(usize, u64), Vec<Ino>>>);

/// Merged directories whose lower directories are out of date.
#[derive(Default)]
pub(super) struct Outdated {
    /// `nodes` is not empty.
    any: AtomicBool,
    nodes: Mutex<HashSet<Ino>>,
    /// A directory of the upper volume has a redirect.
    redirects: AtomicBool,
    /// Number of reported changes of the base.
    changes: AtomicU64,
}

impl Outdated {
    /// Number of reported changes of the base.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that lower layers may answer differently now. With the names locked exclusively, every
    /// step that used earlier answers has ended, and no later step uses them.
    fn has_changed(&self, _: &NamesWrite<'_>) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether a node's number follows from its lower inode, so that the table does not need it.
fn has_its_number(ino: Ino, below: LowerInode) -> bool {
    below == LowerInode::GONE || ino == below.ino || ino.0 == below.ino.0 ^ WRITE_THROUGH
}

impl NodeTable {
    /// Adds the lower inodes of a node to the table.
    pub(super) fn note_below(&self, ino: Ino, lowers: &[LowerInode]) {
        for at in lowers.iter().filter(|at| !has_its_number(ino, **at)) {
            let mut over = self.over.0.lock();
            let known = over.entry((at.layer, at.ino.0)).or_default();
            if !known.contains(&ino) {
                known.push(ino);
            }
        }
    }

    /// Removes former lower inodes of a node from the table.
    pub(super) fn note_not_below(&self, ino: Ino, lowers: &[LowerInode]) {
        for at in lowers.iter().filter(|at| !has_its_number(ino, **at)) {
            let mut over = self.over.0.lock();
            let key = (at.layer, at.ino.0);
            let Some(known) = over.get_mut(&key) else { continue };
            known.retain(|known| *known != ino);
            if known.is_empty() {
                over.remove(&key);
            }
        }
    }

    /// Inode numbers of the nodes that may have `at` as a lower inode.
    fn over(&self, at: LowerInode) -> impl Iterator<Item = Ino> + use<> {
        let others = self.over.0.lock().get(&(at.layer, at.ino.0)).cloned().unwrap_or_default();
        [at.ino, Ino(at.ino.0 ^ WRITE_THROUGH)].into_iter().chain(others)
    }
}

/// Kernel caches to invalidate after lower directories were replaced.
struct Forgotten {
    /// Names in directories, with everything below them.
    names: Vec<(Ino, OsString)>,
    /// Directories whose listings are invalidated.
    directories: Vec<Ino>,
}

impl Overlay {
    /// Volume of the base.
    #[must_use]
    pub fn base(&self) -> Arc<Volume> {
        Arc::clone(self.plain_volumes().last().unwrap_or(&self.upper))
    }

    /// Nodes that may have `at` as a lower inode. They are dropped with no lock held.
    fn over(&self, at: LowerInode) -> Vec<HeldNode<'_>> {
        self.nodes.over(at).filter_map(|ino| self.held(ino)).collect()
    }

    pub(super) fn at_base(&self, ino: Ino) -> LowerInode {
        LowerInode { layer: self.layers.len().saturating_sub(1), ino }
    }

    /// Validity of the names that a directory has in its lower directories.
    pub(super) fn validity_below(&self, dir: &Node) -> Validity {
        self.validity_in(&dir.stack().lowers)
    }

    fn validity_in(&self, dirs: &[LowerInode]) -> Validity {
        let in_layer = |at: &LowerInode| {
            self.lower(*at).map_or(Validity::Timeout, |of| of.names_validity(at.ino))
        };
        dirs.iter().map(in_layer).min().unwrap_or(Validity::UntilInvalidated)
    }

    /// Whether the watch reports every change in these lower directories.
    pub(super) fn is_told(&self, dirs: &[LowerInode]) -> bool {
        self.validity_in(dirs) == Validity::UntilInvalidated
    }

    /// Validity of a node's name; `stat` has the attributes of the node's topmost layer.
    pub(super) fn name_validity(&self, node: &Node, stat: &Stat) -> Validity {
        let Some(parent) = node.parent() else { return Validity::UntilInvalidated };
        let stack = node.stack();
        match stack.upper {
            _ if stack.write_through => Validity::Timeout,
            Some(_) if !node.is_dir() => Validity::UntilInvalidated,
            None if !node.is_dir() && self.is_frozen(&stack) => Validity::UntilInvalidated,
            // The lower directory at the redirect may change.
            _ if stack.redirect.is_some() || stack.redirected => {
                let told = |volume: &Arc<Volume>| volume.watches_filesystem();
                if self.plain_volumes().all(told) {
                    Validity::UntilInvalidated
                } else {
                    Validity::Timeout
                }
            }
            Some(_) => self.validity_below(&parent),
            None if self.is_frozen(&stack) => self.validity_below(&parent),
            None if self.base().is_of_source(stat) => self.validity_below(&parent),
            None => Validity::Timeout,
        }
    }

    /// Whether the base of a file has changed so lately that the watch may not have reported it.
    /// The kernel may have older pages of it then. False if the attributes cannot be read.
    pub(super) fn has_just_changed(&self, node: &Node) -> bool {
        let below = node.stack().lowers.last().copied();
        let stat = below.and_then(|at| Some(self.layer(at).ok()?.attr(at.ino, None).ok()?.stat));
        stat.is_some_and(|stat| is_recent(&stat))
    }

    /// Invalidates the kernel's cache of a file that has just become complete, if its base has
    /// changed so lately that the watch may not have reported it.
    pub(super) fn note_complete(&self, node: &Node, base: &Stat) {
        if is_recent(base)
            && let Some(caches) = self.caches.get()
        {
            caches.soon(node.lower_share.number());
        }
    }

    /// Notes that a directory has a redirect, before its lower directory is looked up.
    pub(super) fn note_redirect(&self) {
        self.outdated.redirects.store(true, Ordering::SeqCst);
    }

    /// Notes that the lower directories of a node are out of date.
    pub(super) fn note_outdated(&self, node: &Node) {
        self.outdated.nodes.lock().insert(node.ino);
        self.outdated.any.store(true, Ordering::Release);
    }

    /// Looks the lower directories of outdated nodes up again. The caller has not locked the names.
    /// It may be answering a request, so another thread invalidates the kernel's cache.
    pub(super) fn merge_outdated(&self) {
        if !self.outdated.any.swap(false, Ordering::AcqRel) {
            return;
        }
        let nodes: Vec<Ino> = self.outdated.nodes.lock().drain().collect();
        let nodes = nodes.into_iter().filter_map(|ino| self.held(ino)).collect();
        let (forgotten, Some(caches)) = (self.merge_anew(nodes), self.caches.get()) else { return };
        if forgotten.directories.is_empty() {
            return;
        }
        let (caches, base) = (Arc::clone(caches), self.base());
        let tell = move || forgotten.tell(&*caches, &base);
        if let Err(err) = std::thread::Builder::new().name(String::from("merge")).spawn(tell) {
            log::error!("invalidating merged directories: starting a thread: {err}");
        }
    }

    /// Looks the lower directories of nodes up again; if they have changed, also those of the
    /// directories below the node. Returns the kernel caches to invalidate.
    fn merge_anew<'a>(&'a self, mut nodes: Vec<HeldNode<'a>>) -> Forgotten {
        let mut changed = HashMap::new();
        self.discard_answers();
        while let Some(node) = nodes.pop() {
            match self.change_names(|names| self.merge_again(names, &node)) {
                Ok(false) => {}
                Ok(true) => {
                    let inside = |other: &Node| {
                        let stack = other.stack();
                        other.is_dir()
                            && (stack.upper.is_some() || self.is_frozen(&stack))
                            && other.is_in(&node)
                    };
                    nodes.extend(self.all_held(inside));
                    changed.insert(node.ino, node);
                }
                Err(err) => {
                    let path = self.path_of(&node);
                    log::warn!("{}: merging it with the base again: {err}", path.shown());
                }
            }
        }
        let mut forgotten = Forgotten { names: Vec::new(), directories: Vec::new() };
        if changed.is_empty() {
            return forgotten;
        }
        let is_inside =
            |node: &Node| node.parent().is_some_and(|parent| changed.contains_key(&parent.ino));
        // Every lookup with an earlier answer has ended then, and has made its node.
        self.discard_answers();
        let inside = self.all_held(is_inside);
        // Names in the directories come first: the name of a directory drops all cached names below
        // it.
        for node in inside.iter().chain(changed.values()) {
            let seen = node.seen().map(|(parent, name)| (self.hold(parent).ino, name));
            forgotten.names.extend(seen);
        }
        forgotten.directories = changed.into_keys().collect();
        forgotten
    }

    /// Discards all earlier answers of lower layers.
    fn discard_answers(&self) {
        let noted = self.change_names(|names| {
            self.outdated.has_changed(names);
            Ok(())
        });
        debug_assert_eq!(noted, Ok(()));
    }

    /// Looks the lower directories of one node up again. Returns whether they have changed.
    fn merge_again(&self, names: &NamesWrite<'_>, node: &Arc<Node>) -> Step<bool> {
        let (stack, Some((parent, name))) = (node.stack(), node.seen()) else {
            return Ok(false);
        };
        if stack.upper.is_none() && !self.is_frozen(&stack) {
            return Ok(false);
        }
        if !node.is_dir() || !node.is_linked() || node.is_write_through() {
            return Ok(false);
        }
        let Below { lowers: now, redirected, .. } =
            self.merged_with(names, (&parent, &name), stack.upper)?;
        let before = stack.lowers;
        // The topmost part makes the node what it is.
        let is_other = stack.upper.is_none() && now.first() != before.first();
        if now == before || is_other {
            now.into_iter().for_each(|at| self.let_go_below(at));
            return Ok(false);
        }
        self.nodes.note_not_below(node.ino, &before);
        self.nodes.note_below(node.ino, &now);
        node.change_stack(|stack| (stack.lowers, stack.redirected) = (now, redirected));
        before.into_iter().for_each(|at| self.let_go_below(at));
        Ok(true)
    }
}

impl Forgotten {
    fn tell(&self, caches: &dyn Invalidate, base: &Volume) {
        // The kernel has no entry `.`. It looks for it after lookups and listings of the directory
        // that are under way, so their results are in its cache afterwards.
        for dir in &self.directories {
            let _ = caches.entry(*dir, OsStr::new("."));
        }
        // With other mounts inside of this one, names are expired and not dropped.
        let holds_mounts = base.holds_mounts();
        for (parent, name) in &self.names {
            base.note_sent(match holds_mounts {
                true => caches.expire(*parent, name),
                false => caches.entry(*parent, name),
            });
        }
        for dir in &self.directories {
            let _ = caches.inode(*dir, true); // The kernel may not know the inode.
        }
    }
}

impl Overlay {
    fn tell(&self, forgotten: &Forgotten) {
        if let Some(caches) = self.caches.get() {
            forgotten.tell(&**caches, &self.base());
        }
    }

    /// The entry of the overlay layers of a directory at a name, by the topmost that has one;
    /// nothing where the base alone is shown.
    fn overrides(&self, dir: &Node, name: &OsStr) -> Upper {
        if self.is_write_through(dir, name) {
            return Upper::Nothing;
        }
        let stack = dir.stack();
        let frozen = stack.lowers.iter().filter(|at| !self.is_plain(**at)).map(|at| at.ino);
        let mut found = stack.upper.into_iter().chain(frozen).map(|dir| self.upper_at(dir, name));
        let found = found.find(|found| *found != Ok(Upper::Nothing));
        found.unwrap_or(Ok(Upper::Nothing)).unwrap_or(Upper::Nothing)
    }

    /// Nodes of the upper directories at a name in the directories over one of the base. Every
    /// lookup that has seen the earlier state of the base has ended when they are collected.
    fn known_directories(&self, at: LowerInode, name: &OsStr) -> Vec<HeldNode<'_>> {
        let numbers = self.nodes.numbers();
        // Each with its topmost part: in the upper volume, or a frozen layer.
        let named = |dir: &HeldNode<'_>| {
            let stack = dir.stack();
            let mut known = Vec::new();
            if let Some(Ok((_, Some(inner)))) = stack.upper.map(|dir| self.upper.peek(dir, name)) {
                let part = LowerInode { layer: 0, ino: inner };
                known.extend(self.held(numbers.shown(inner)).map(|node| (node, part)));
            }
            for at in stack.lowers.iter().filter(|at| !self.is_plain(**at)) {
                if let Ok((_, Some(ino))) = self.upper.peek(at.ino, name) {
                    let part = LowerInode { ino, ..*at };
                    known.extend(self.over(part).into_iter().map(|node| (node, part)));
                }
            }
            known
        };
        let found = self.change_names(|names| {
            self.outdated.has_changed(names);
            let over = self.over(at);
            let dirs = over.iter().filter(|dir| dir.has_below(at));
            let known: Vec<_> = dirs.flat_map(named).collect();
            Ok((over, known))
        });
        // Nodes are let go of with nothing locked.
        let known = found.map(|(_, known)| known).unwrap_or_default().into_iter();
        let has = |node: &Node, part: LowerInode| match part.layer {
            0 => node.upper() == Some(part.ino),
            _ => node.has_below(part),
        };
        known.filter(|(node, part)| has(node, *part)).map(|(node, _)| node).collect()
    }
}

impl ChangeSink for Overlay {
    fn name(&self, parent: Ino, name: &OsStr, leads_on: bool) {
        let (at, Some(caches)) = (self.at_base(parent), self.caches.get()) else { return };
        let found = self.with_names(|_| {
            let (mut shown, mut merged) = (Vec::new(), false);
            let over = self.over(at);
            for dir in over.iter().filter(|dir| dir.has_below(at)) {
                match self.overrides(dir, name) {
                    Upper::Nothing => shown.push(dir.ino),
                    Upper::Directory => merged = true,
                    Upper::Whiteout | Upper::Other => {}
                }
            }
            Ok((shown, merged, over))
        });
        let Ok((shown, merged, _)) = found else { return };
        for dir in shown {
            self.base().note_sent(match leads_on {
                true => caches.expire(dir, name),
                false => caches.entry(dir, name),
            });
        }
        if merged {
            self.tell(&self.merge_anew(self.known_directories(at, name)));
        }
    }

    fn inode(&self, ino: Ino, data: bool) -> bool {
        let (base, Some(caches)) = (self.base(), self.caches.get()) else { return false };
        let at = self.at_base(ino);
        let mut nodes = self.over(at);
        nodes.retain(|node| node.has_below(at));
        if nodes.is_empty() {
            return base.is_known(ino); // Another thread is about to make its node.
        }
        let mut again = false;
        for node in nodes {
            // The attributes of a merged directory are those of the upper directory: only its
            // listing depends on the base.
            let stack = node.stack();
            let above = stack.upper.is_some() || self.is_frozen(&stack);
            let merged = node.is_dir() && above && !stack.write_through;
            if if merged { !data } else { !base.is_told_of(ino) } {
                continue;
            }
            let mut known = false;
            let now = node.lower_share.number();
            for number in [Some(now), Some(node.ino).filter(|before| *before != now)] {
                match number.map(|number| caches.inode(number, data)) {
                    None | Some(Err(Errno::NOENT)) => {}
                    Some(result) => {
                        known = true;
                        base.note_sent(result);
                    }
                }
            }
            // A node that is only in the base has the base's attributes. A lookup may be under way
            // that has read earlier ones; the kernel knows the inode after its reply, and is asked
            // again.
            again |= !known && (node.is_looked_up() || node.upper().is_none());
        }
        again
    }

    fn directories(&self, names: &HashSet<OsString>) {
        if !self.outdated.redirects.load(Ordering::SeqCst) {
            return;
        }
        let leads_there = |node: &Node| {
            let (redirect, redirected) = node.redirects();
            redirected || redirect.is_some_and(|path| path.iter().any(|name| names.contains(name)))
        };
        // Every lookup that has seen the earlier state of the base has ended then.
        self.discard_answers();
        let concerned = self.all_held(leads_there);
        if !concerned.is_empty() {
            self.tell(&self.merge_anew(concerned));
        }
    }

    fn everything(&self) {
        let merged = |node: &Node| {
            let stack = node.stack();
            node.is_dir() && (stack.upper.is_some() || self.is_frozen(&stack))
        };
        for node in self.all_held(merged) {
            // One node at a time, so that requests can lock the names in between.
            self.tell(&self.merge_anew(vec![node]));
        }
    }

    fn place_of(&self, path: &Path) -> Option<(Ino, OsString)> {
        let (parent, _) = self.walk(path.parent()?, MOST_LINKS).ok()?;
        let below = self.nodes.get(parent).and_then(|node| self.in_base(&node));
        self.forget(parent, 1);
        Some((below?.ino, path.file_name()?.to_owned()))
    }
}
