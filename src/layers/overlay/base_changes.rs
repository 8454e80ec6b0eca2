//! Changes that were made directly in the base, and what they concern of the tree.
//!
//! A watch tells of them by the numbers of the base's volume. What is only below is mostly shown
//! with that number; the others are kept in a table. A name of the base is the tree's unless the
//! upper directory has something there. Pages of a partial copy stay those of first touch
//! ([`super::base_guard`]): the kernel forgets them all the same, since it may have them from before.
//!
//! A directory that is also in the upper volume stays when what is below it goes, is replaced or
//! moved: what is merged is found out anew for it and for those in it, and what the kernel knows of
//! its names is dropped. That goes by the path in the base, as when the scratch is mounted anew.
//!
//! Locks: the names, for reading while it is looked which nodes are concerned, for writing while a
//! directory is merged anew by what was answered. Nothing is locked while the kernel is told.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Overlay;
use super::control_impl::MOST_LINKS;
use super::held_node::HeldNode;
use super::lookup::LookupScope;
use super::names::Upper;
use super::namespace_lock::{NamesRead, NamesWrite, Step};
use super::node::{LowerInode, Node, NodeTable};
use super::write_through::WRITE_THROUGH;
use crate::shown::Show;
use crate::volume::{Ino, Invalidate, Stat, Told, Validity, Volume};

/// Seconds after a change of the base by which every notice of it is taken to have come.
const LATE: i64 = 2;

/// Whether a change may not have been told yet.
fn is_recent(stat: &Stat) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    stat.ctime.sec.saturating_add(LATE) >= now as i64
}

/// The nodes that have something below by another number than their own.
#[derive(Default)]
pub(super) struct Over(Mutex<HashMap<(usize, u64), Vec<Ino>>>);

/// Directories that are not merged as they should be.
#[derive(Default)]
pub(super) struct Outdated {
    any: AtomicBool,
    nodes: Mutex<HashSet<Ino>>,
    /// Some directory of the upper volume says where what is below it is.
    redirects: AtomicBool,
    /// Number of changes of the base that were told.
    changes: AtomicU64,
}

impl Outdated {
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Notes that lower layers may answer differently now. Every step that was answered before has
    /// ended by then, and none is taken any more with these answers.
    fn has_changed(&self, _: &NamesWrite<'_>) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether it is known by the number that what is below has anyhow.
fn has_its_number(ino: Ino, below: LowerInode) -> bool {
    below == LowerInode::GONE || ino == below.ino || ino.0 == below.ino.0 ^ WRITE_THROUGH
}

impl NodeTable {
    /// Notes what a node has below.
    pub(super) fn note_below(&self, ino: Ino, lowers: &[LowerInode]) {
        for at in lowers.iter().filter(|at| !has_its_number(ino, **at)) {
            let mut over = self.over.0.lock();
            let known = over.entry((at.layer, at.ino.0)).or_default();
            if !known.contains(&ino) {
                known.push(ino);
            }
        }
    }

    /// Notes what a node has below no longer.
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

    /// The numbers of the nodes that may have something below.
    fn over(&self, at: LowerInode) -> impl Iterator<Item = Ino> + use<> {
        let others = self.over.0.lock().get(&(at.layer, at.ino.0)).cloned().unwrap_or_default();
        [at.ino, Ino(at.ino.0 ^ WRITE_THROUGH)].into_iter().chain(others)
    }
}

/// What the kernel is to forget of directories that were merged anew.
struct Forgotten {
    /// NamesRead in directories; with what is below them.
    names: Vec<(Ino, OsString)>,
    directories: Vec<Ino>,
}

impl Overlay {
    /// The volume of the base.
    #[must_use]
    pub fn base(&self) -> Arc<Volume> {
        Arc::clone(self.plain_volumes().last().unwrap_or(&self.upper))
    }

    /// The nodes that may have something below, to be let go of with no lock held.
    fn over(&self, at: LowerInode) -> Vec<HeldNode<'_>> {
        self.nodes.over(at).filter_map(|ino| self.held(ino)).collect()
    }

    pub(super) fn at_base(&self, ino: Ino) -> LowerInode {
        LowerInode { layer: self.layers.len().saturating_sub(1), ino }
    }

    /// How long the kernel may use which names a directory has below.
    pub(super) fn validity_below(&self, dir: &Node) -> Validity {
        self.validity_in(&dir.stack().lowers)
    }

    fn validity_in(&self, dirs: &[LowerInode]) -> Validity {
        let in_layer = |at: &LowerInode| {
            self.lower(*at).map_or(Validity::Timeout, |of| of.names_validity(at.ino))
        };
        dirs.iter().map(in_layer).min().unwrap_or(Validity::UntilInvalidated)
    }

    /// Whether all that changes in directories below is told.
    pub(super) fn is_told(&self, dirs: &[LowerInode]) -> bool {
        self.validity_in(dirs) == Validity::UntilInvalidated
    }

    /// How long the kernel may use that a name leads to a node, whose attributes are these.
    pub(super) fn name_validity(&self, node: &Node, stat: &Stat) -> Validity {
        let Some(parent) = node.parent() else { return Validity::UntilInvalidated };
        let stack = node.stack();
        match stack.upper {
            _ if stack.write_through => Validity::Timeout,
            Some(_) if !node.is_dir() => Validity::UntilInvalidated,
            // What is merged may change, and with it what is in it.
            Some(_) if stack.redirect.is_some() => {
                let told = |volume: &Arc<Volume>| volume.watches_filesystem();
                if self.plain_volumes().all(told) {
                    Validity::UntilInvalidated
                } else {
                    Validity::Timeout
                }
            }
            Some(_) => self.validity_below(&parent),
            None if self.base().is_of_source(stat) => self.validity_below(&parent),
            None => Validity::Timeout,
        }
    }

    /// Whether the base of a file has changed so lately that it may not be told yet, as far as it is
    /// known. The kernel may have pages of it from before.
    pub(super) fn has_just_changed(&self, node: &Node) -> bool {
        let below = node.stack().lowers.first().copied();
        let stat = below.and_then(|at| Some(self.layer(at).ok()?.attr(at.ino, None).ok()?.stat));
        stat.is_some_and(|stat| is_recent(&stat))
    }

    /// The same of a file that has become whole just now, by its base.
    pub(super) fn note_complete(&self, node: &Node, base: &Stat) {
        if is_recent(base)
            && let Some(caches) = self.caches.get()
        {
            caches.soon(node.lower_share.number());
        }
    }

    /// Notes that some directory says where what is below it is; before that is looked for.
    pub(super) fn note_redirect(&self) {
        self.outdated.redirects.store(true, Ordering::SeqCst);
    }

    /// Notes that a directory was found with something else below than it has.
    pub(super) fn note_outdated(&self, node: &Node) {
        self.outdated.nodes.lock().insert(node.ino);
        self.outdated.any.store(true, Ordering::Release);
    }

    /// Merges directories anew that were found outdated. Whoever calls may answer a request, and
    /// has not locked the names.
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
            log::error!("merging anew: starting a thread: {err}");
        }
    }

    /// The directories that an upper one is merged with at a name, with a lookup held of each.
    ///
    /// # Errors
    /// Those of looking at it and at what is below.
    fn merged_with(
        &self,
        names: &NamesRead<'_>,
        parent: &Node,
        name: &OsStr,
        upper: Ino,
    ) -> Step<Vec<LowerInode>> {
        let stack = parent.stack();
        let whence = LookupScope { names, parent, dirs: &stack.lowers };
        let stat = self.upper.attr(upper, None)?.stat;
        let marks = self.xattrs_of(upper, &stat).map_err(|err| self.tell_of(whence, name, err))?;
        self.merged_below(whence, name, &marks)
    }

    /// Finds out anew what is below directories of the upper volume, and below those in them.
    fn merge_anew<'a>(&'a self, mut nodes: Vec<HeldNode<'a>>) -> Forgotten {
        let mut changed = HashMap::new();
        self.no_answer_is_good();
        while let Some(node) = nodes.pop() {
            match self.change_names(|names| self.merge_again(names, &node)) {
                Ok(false) => {}
                Ok(true) => {
                    let inside = |other: &Node| {
                        other.upper().is_some() && other.is_dir() && other.is_in(&node)
                    };
                    nodes.extend(self.all_held(inside));
                    changed.insert(node.ino, node);
                }
                Err(err) => {
                    let path = self.path_of(&node);
                    log::warn!("{}: merging it with the base anew: {err}", path.shown());
                }
            }
        }
        let mut forgotten = Forgotten { names: Vec::new(), directories: Vec::new() };
        if changed.is_empty() {
            return forgotten;
        }
        let is_inside =
            |node: &Node| node.parent().is_some_and(|parent| changed.contains_key(&parent.ino));
        // Whoever has found something below as it was has made a node of it by then.
        self.no_answer_is_good();
        let inside = self.all_held(is_inside);
        // Those below first: a name takes along what is known below it.
        for node in inside.iter().chain(changed.values()) {
            let seen = node.seen().map(|(parent, name)| (self.hold(parent).ino, name));
            forgotten.names.extend(seen);
        }
        forgotten.directories = changed.into_keys().collect();
        forgotten
    }

    /// Has all that lower layers have answered asked for anew.
    fn no_answer_is_good(&self) {
        let noted = self.change_names(|names| {
            self.outdated.has_changed(names);
            Ok(())
        });
        debug_assert_eq!(noted, Ok(()));
    }

    /// The same for one directory alone. Returns whether anything is different.
    fn merge_again(&self, names: &NamesWrite<'_>, node: &Arc<Node>) -> Step<bool> {
        let (Some(upper), Some((parent, name))) = (node.upper(), node.seen()) else {
            return Ok(false);
        };
        if !node.is_dir() || !node.is_linked() || node.is_write_through() {
            return Ok(false);
        }
        let now = self.merged_with(names, &parent, &name, upper)?;
        let before = node.stack().lowers;
        if now == before {
            now.into_iter().for_each(|at| self.let_go_below(at));
            return Ok(false);
        }
        self.nodes.note_not_below(node.ino, &before);
        self.nodes.note_below(node.ino, &now);
        node.change_stack(|stack| stack.lowers = now);
        before.into_iter().for_each(|at| self.let_go_below(at));
        Ok(true)
    }
}

impl Forgotten {
    fn tell(&self, caches: &dyn Invalidate, base: &Volume) {
        // What was found before is in the kernel's cache by then: it has no entry of this name, and
        // looks for it when no lookup or listing of the directory is under way.
        for dir in &self.directories {
            let _ = caches.entry(*dir, OsStr::new("."));
        }
        // Where something is mounted inside the mount, names are not trusted for long.
        let holds_mounts = base.holds_mounts();
        for (parent, name) in &self.names {
            base.note_sent(match holds_mounts {
                true => caches.expire(*parent, name),
                false => caches.entry(*parent, name),
            });
        }
        for dir in &self.directories {
            let _ = caches.inode(*dir, true); // Mostly known.
        }
    }
}

impl Overlay {
    fn tell(&self, forgotten: &Forgotten) {
        if let Some(caches) = self.caches.get() {
            forgotten.tell(&**caches, &self.base());
        }
    }

    /// What the upper directory has at a name; nothing where the base alone is shown.
    fn overrides(&self, dir: &Node, name: &OsStr) -> Upper {
        match dir.upper().filter(|_| !self.is_write_through(dir, name)) {
            Some(upper) => self.upper_at(upper, name).unwrap_or(Upper::Nothing),
            None => Upper::Nothing,
        }
    }

    /// The directories of the upper volume that are known at a name in those over one of the base.
    /// By then every lookup has ended that has seen the base as it was.
    fn known_directories(&self, at: LowerInode, name: &OsStr) -> Vec<HeldNode<'_>> {
        let numbers = self.nodes.numbers();
        let named = |dir: &HeldNode<'_>| {
            let (_, inner) = self.upper.peek(dir.upper()?, name).ok()?;
            Some((self.held(numbers.shown(inner?))?, inner?))
        };
        let found = self.change_names(|names| {
            self.outdated.has_changed(names);
            let over = self.over(at);
            let dirs = over.iter().filter(|dir| dir.has_below(at));
            let known: Vec<_> = dirs.filter_map(named).collect();
            Ok((over, known))
        });
        let known = found.map(|(_, known)| known).unwrap_or_default().into_iter();
        known.filter(|(dir, inner)| dir.upper() == Some(*inner)).map(|(dir, _)| dir).collect()
    }
}

impl Told for Overlay {
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
            return base.is_known(ino); // Somebody is about to make a node of it.
        }
        let mut again = false;
        for node in nodes {
            // Attributes of a merged directory are those of the upper one, and say nothing of what
            // else is listed.
            let merged = node.is_dir() && node.upper().is_some() && !node.is_write_through();
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
            // What is only below is shown as the base is: a lookup of it may be under way that has
            // seen it as it was, and is counted with its answer.
            again |= !known && (node.is_looked_up() || node.upper().is_none());
        }
        again
    }

    fn directories(&self, names: &HashSet<OsString>) {
        if !self.outdated.redirects.load(Ordering::SeqCst) {
            return;
        }
        let leads_there = |node: &Node| {
            let redirect = node.redirect();
            redirect.is_some_and(|path| path.iter().any(|name| names.contains(name)))
        };
        // By then every lookup has ended that has seen the base as it was.
        self.no_answer_is_good();
        let concerned = self.all_held(leads_there);
        if !concerned.is_empty() {
            self.tell(&self.merge_anew(concerned));
        }
    }

    fn everything(&self) {
        let merged = |node: &Node| node.is_dir() && node.upper().is_some();
        for node in self.all_held(merged) {
            // One at a time, so that others get at the names in between.
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
