//! The guard of the base: files of it that are open here, or of which pages show through a partial
//! copy, keep the content that they had at first touch for as long as the scratch is mounted.
//!
//! Each of them is under a read lease ([`lease`]), as long as descriptors last: those that are open
//! here and the partial copies that were used last. Whoever opens such a file for writing, or
//! truncates it, waits in the kernel until what still shows of it has been copied into the scratch
//! ([`super::lease_break`]). A file that is replaced by rename or removed needs no guard: the descriptor
//! that is held keeps it. What is under no lease is compared by fingerprint whenever its pages are
//! read ([`BaseState`]).
//!
//! With [`Guard::held`] locked no base is asked, and no descriptor of one is closed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::namespace_lock::{Brief, may_ask};
use super::node::Node;
use crate::layers::base_state::{BaseState, ChangedFiles};
use crate::layers::changed::Changed;
use crate::layers::pages::Fingerprint;
use crate::sys::file::descriptor_limit;
use crate::sys::lease::{self, Asked, Keeper, Stop};
use crate::volume::{GuardCounts, Ino};

/// The share of the descriptors that partial copies which nobody has open may hold.
const SHARE_OF_DESCRIPTORS: u64 = 4;
/// How many they may hold at most.
const MOST_IDLE: u64 = 16_384;
/// How many of these are given up at a time where few descriptors are left.
const GIVEN_UP: usize = 64;
/// How many files are copied at a time.
const MOST_THREADS: usize = 4;
/// How much earlier than the kernel takes a lease away it counts as gone.
const MARGIN: Duration = Duration::from_secs(1);
/// How many files are listed by name.
const MOST_NAMED: usize = 100;

/// A file of the base that is in use here.
struct Entry {
    node: Arc<Node>,
    file: Arc<OwnedFd>,
    /// Of a file with a partial copy.
    state: Option<Arc<BaseState>>,
    /// Why there is no lease.
    refused: Option<Errno>,
    /// Since when somebody waits for the lease.
    asked: Option<Instant>,
    /// Nobody has the file open here; when it was used last.
    idle: Option<u64>,
    /// Number of leases taken.
    taken: u64,
}

impl Entry {
    fn is_leased(&self) -> bool {
        self.refused.is_none() && self.asked.is_none()
    }
}

/// A file that is guarded no longer. Its base may be asked when this is dropped, and its descriptor
/// is closed: nothing that others need is locked then.
#[must_use]
pub(super) struct Released(Entry);

impl Drop for Released {
    fn drop(&mut self) {
        may_ask();
        let Entry { file, state, refused, .. } = &self.0;
        if let Some(state) = state {
            state.lease_ends(file);
        }
        if refused.is_none() {
            lease::give_back(file);
        }
    }
}

#[derive(Default)]
struct Held {
    entries: HashMap<Ino, Entry>,
    files: HashMap<RawFd, Ino>,
    /// Those that nobody has open, by when they were used last.
    idle: BTreeMap<u64, Ino>,
    clock: u64,
}

impl Held {
    fn remove(&mut self, ino: Ino) -> Option<Released> {
        let entry = self.entries.remove(&ino)?;
        self.files.remove(&entry.file.as_raw_fd());
        entry.idle.map(|used| self.idle.remove(&used));
        Some(Released(entry))
    }
}

/// What is to be copied, open files first.
#[derive(Default)]
struct Jobs {
    open: VecDeque<Ino>,
    rest: VecDeque<Ino>,
    threads: usize,
    /// Nothing is copied any more.
    over: bool,
    /// How many of them copy.
    busy: usize,
    /// What is being copied, and how much of it was.
    under_way: HashMap<Ino, (PathBuf, u64)>,
}

/// The guard of one scratch.
#[derive(Default)]
pub(super) struct Guard {
    keeper: OnceLock<Keeper>,
    stop: Mutex<Option<Stop>>,
    held: Brief<Held>,
    jobs: Mutex<Jobs>,
    /// A thread that copies has ended.
    rest: Condvar,
    /// Files whose rest was copied because somebody was about to change the base.
    rescued: AtomicU64,
    rescued_bytes: AtomicU64,
    /// Files whose rest was not copied in time, with the reason.
    failed: Mutex<Vec<(PathBuf, String)>>,
    /// All that the scratch covers was compared with the base.
    pub(super) compared: AtomicBool,
    /// Files whose base has changed, or may have.
    changed: Arc<ChangedFiles>,
}

impl Guard {
    /// Begins to take leases, which `keeper` is asked for.
    pub(super) fn start(&self, keeper: Keeper, stop: Stop) {
        if self.keeper.set(keeper).is_err() {
            log::error!("the base is guarded twice");
        }
        *self.stop.lock() = Some(stop);
    }

    /// The descriptor of the base that is held of a file.
    pub(super) fn file(&self, node: &Node) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.held.lock().entries.get(&node.ino)?.file))
    }

    /// Takes note that a file is opened here whose content is in the base. Whoever calls has locked
    /// [`Node::content`].
    pub(super) fn opened(&self, node: &Arc<Node>, file: &Arc<OwnedFd>) {
        let Some(keeper) = self.keeper.get() else { return };
        let mut held = self.held.lock();
        let held = &mut *held;
        if let Some(entry) = held.entries.get_mut(&node.ino) {
            entry.idle.take().map(|used| held.idle.remove(&used));
            if entry.refused.is_some() && entry.asked.is_none() {
                entry.refused = lease::take(&entry.file, *keeper).err();
                entry.taken += 1;
            }
            return;
        }
        let refused = lease::take(file, *keeper).err();
        let (node, file) = (Arc::clone(node), Arc::clone(file));
        held.files.insert(file.as_raw_fd(), node.ino);
        let ino = node.ino;
        let (state, asked, idle) = Default::default();
        held.entries.insert(ino, Entry { node, file, state, refused, asked, idle, taken: 1 });
    }

    /// Takes note of what a file with a partial copy says of its base. [`Guard::confirm`] is due when
    /// nothing is locked any more; until then the base is compared whenever it is read.
    pub(super) fn attach(&self, node: &Node, state: &Arc<BaseState>) {
        let mut held = self.held.lock();
        let Some(entry) = held.entries.get_mut(&node.ino) else { return };
        if entry.refused.is_none() {
            if entry.state.as_ref().is_some_and(|before| before.is_leased()) {
                state.lease_goes_on();
            }
            entry.asked.into_iter().for_each(|asked| state.lease_is_asked_for(end_of(asked)));
        }
        entry.state = Some(Arc::clone(state));
    }

    /// Relies on the lease of a file whose base is found as it was. The base is asked.
    pub(super) fn confirm(&self, node: &Node) {
        let leased = |held: &Held| {
            let entry = held.entries.get(&node.ino).filter(|entry| entry.is_leased())?;
            let state = Arc::clone(entry.state.as_ref().filter(|state| !state.is_leased())?);
            Some((Arc::clone(&entry.file), state, entry.taken))
        };
        let Some((file, state, taken)) = leased(&self.held.lock()) else { return };
        may_ask();
        if !lease::binds_everybody(&file) || !state.is_as_it_was(&file) {
            return;
        }
        let held = self.held.lock();
        // It has been the same lease throughout.
        if let Some((_, same, still)) = leased(&held)
            && Arc::ptr_eq(&state, &same)
            && still == taken
        {
            state.lease_goes_on();
        }
    }

    /// Takes note that nobody has a file open here any more. Whoever calls has locked
    /// [`Node::content`], and drops what is returned when that is let go.
    #[must_use]
    pub(super) fn closed(&self, node: &Node) -> Option<Released> {
        let stack = node.stack();
        let partial = stack.pages.is_some() && !stack.lowers.is_empty() && node.is_linked();
        let mut held = self.held.lock();
        let held = &mut *held;
        if !partial {
            return self.forgotten(held.remove(node.ino));
        }
        if let Some(entry) = held.entries.get_mut(&node.ino)
            && entry.idle.is_none()
        {
            held.clock += 1;
            entry.idle = Some(held.clock);
            held.idle.insert(held.clock, node.ino);
        }
        None
    }

    /// Takes note that nothing of the base of a file is told any more.
    fn forgotten(&self, released: Option<Released>) -> Option<Released> {
        if let Some(Released(Entry { state: Some(state), .. })) = &released {
            self.changed.forget(state.path());
        }
        released
    }

    /// Lets go of a file that has lost its last name, unless somebody has it open. What is returned
    /// is to be dropped with nothing locked.
    #[must_use]
    pub(super) fn unlinked(&self, node: &Node) -> Option<Released> {
        let mut held = self.held.lock();
        let is_idle = held.entries.get(&node.ino).is_some_and(|entry| entry.idle.is_some());
        if is_idle { self.forgotten(held.remove(node.ino)) } else { None }
    }

    /// Lets go of what was used least lately and is too much. Returns the nodes, which may be
    /// unused now.
    pub(super) fn evict(&self) -> Vec<Ino> {
        self.evict_beyond(Guard::most_idle())
    }

    /// The same where descriptors are needed for something else.
    pub(super) fn give_up_some(&self) -> Vec<Ino> {
        let idle = self.held.lock().idle.len();
        self.evict_beyond(idle.saturating_sub(GIVEN_UP))
    }

    fn evict_beyond(&self, most: usize) -> Vec<Ino> {
        let mut gone = Vec::new();
        let mut locked = self.held.lock();
        let held = &mut *locked;
        let excess = held.idle.len().saturating_sub(most);
        // Of a base that somebody waits for the rest is being copied.
        let unasked = |ino: &Ino| held.entries.get(ino).is_none_or(|entry| entry.asked.is_none());
        gone.extend(held.idle.values().copied().filter(unasked).take(excess));
        let released: Vec<_> = gone.iter().filter_map(|ino| held.remove(*ino)).collect();
        drop(locked);
        drop(released);
        gone
    }

    /// Whether no more bases of files that nobody has open may be held.
    pub(super) fn is_full(&self) -> bool {
        self.held.lock().idle.len() >= Guard::most_idle()
    }

    /// Where files are told whose base has changed.
    pub(super) fn changed(&self) -> Arc<ChangedFiles> {
        Arc::clone(&self.changed)
    }

    /// Takes note of files whose base was changed while nothing was mounted.
    pub(super) fn note_changed(&self, found: &[Changed]) {
        found.iter().for_each(|(path, fate)| self.changed.note(path, *fate));
    }

    /// How many bases of files that nobody has open may be held.
    pub(super) fn most_idle() -> usize {
        (descriptor_limit().0 / SHARE_OF_DESCRIPTORS).min(MOST_IDLE) as usize
    }

    /// Takes note that somebody waits for leases.
    pub(super) fn asked(&self, which: Asked) {
        let mut held = self.held.lock();
        let held = &mut *held;
        let mut note = |ino: Ino| {
            // The signal may be of a file that had the number before.
            if let Some(entry) = held.entries.get_mut(&ino)
                && entry.is_leased()
                && !lease::is_held(&entry.file)
            {
                let now = Instant::now();
                if let Some(state) = &entry.state {
                    state.lease_is_asked_for(end_of(now));
                }
                entry.asked = Some(now);
                let mut jobs = self.jobs.lock();
                let queue = if entry.idle.is_none() { &mut jobs.open } else { &mut jobs.rest };
                queue.push_back(ino);
            }
        };
        match which {
            Asked::File(file) => held.files.get(&file).copied().into_iter().for_each(note),
            Asked::Any => {
                let all: Vec<Ino> = held.files.values().copied().collect();
                all.into_iter().for_each(&mut note);
            }
        }
    }

    /// Whether another thread is to copy, which counts as started then.
    pub(super) fn needs_thread(&self) -> bool {
        let mut jobs = self.jobs.lock();
        let work = jobs.open.len() + jobs.rest.len() + jobs.busy;
        let needed = !jobs.over && jobs.threads < work.min(MOST_THREADS);
        jobs.threads += usize::from(needed);
        needed
    }

    /// The next file to copy, and since when somebody waits for that; `None` ends the thread.
    /// [`Guard::finish`] is due for each.
    pub(super) fn next(&self) -> Option<(Arc<Node>, Instant)> {
        loop {
            let ino = {
                let mut jobs = self.jobs.lock();
                let next = jobs.open.pop_front().or_else(|| jobs.rest.pop_front());
                if next.is_none() {
                    jobs.threads -= 1;
                    self.rest.notify_all();
                    return None;
                }
                jobs.busy += 1;
                next?
            };
            // It may have been closed or removed, and needs no copy then.
            let held = self.held.lock();
            if let Some(entry) = held.entries.get(&ino)
                && let Some(asked) = entry.asked
            {
                return Some((Arc::clone(&entry.node), asked));
            }
            drop(held);
            self.jobs.lock().busy -= 1;
        }
    }

    /// Takes note of how much of a file was copied.
    pub(super) fn progress(&self, node: &Node, path: &std::path::Path, bytes: u64) {
        let mut jobs = self.jobs.lock();
        jobs.under_way.entry(node.ino).or_insert_with(|| (path.to_owned(), 0)).1 += bytes;
    }

    /// Lets whoever waits for a file go on. Returns how much of it was copied.
    pub(super) fn finish(&self, node: &Node, path: PathBuf, failure: Option<String>) -> u64 {
        let mut jobs = self.jobs.lock();
        jobs.busy -= 1;
        let bytes = jobs.under_way.remove(&node.ino).map_or(0, |(_, bytes)| bytes);
        drop(jobs);
        let Some(reason) = failure else {
            self.rescued.fetch_add(1, Ordering::Relaxed);
            self.rescued_bytes.fetch_add(bytes, Ordering::Relaxed);
            // Nothing of the base shows any more, whoever has the file open.
            let released = self.held.lock().remove(node.ino);
            drop(released);
            return bytes;
        };
        self.failed.lock().push((path, reason));
        let entry = |entry: &Entry| (Arc::clone(&entry.file), entry.state.clone(), entry.refused);
        let held = self.held.lock().entries.get(&node.ino).map(entry);
        if let Some((file, state, refused)) = held {
            state.into_iter().for_each(|state| state.lease_ends(&file));
            if refused.is_none() {
                lease::give_back(&file);
            }
            if let Some(entry) = self.held.lock().entries.get_mut(&node.ino)
                && Arc::ptr_eq(&entry.file, &file)
            {
                entry.asked = None;
                entry.refused = Some(Errno::AGAIN); // Somebody writes it.
            }
        }
        bytes
    }

    /// The files that are held.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.held.lock().entries.values().map(|entry| Arc::clone(&entry.node)).collect()
    }

    /// The files whose base is under a lease and has other times or attributes than it had, with the
    /// base as it is at this moment. To be called when there are no requests any more: the kernel
    /// may not have told of the last close.
    pub(super) fn moved(&self) -> Vec<(Arc<Node>, Fingerprint)> {
        let held = self.held.lock();
        let leased = held.entries.values().filter(|entry| entry.is_leased());
        let moved = |entry: &Entry| {
            Some((Arc::clone(&entry.node), entry.state.as_ref()?.moved(&entry.file)?))
        };
        leased.filter_map(moved).collect()
    }

    /// Waits until nothing is being copied, gives everything back, and ends the thread.
    pub(super) fn end(&self) {
        let mut jobs = self.jobs.lock();
        while jobs.threads > 0 {
            self.rest.wait(&mut jobs);
        }
        jobs.over = true;
        drop(jobs);
        let mut held = self.held.lock();
        let all: Vec<Ino> = held.entries.keys().copied().collect();
        let released: Vec<_> = all.into_iter().filter_map(|ino| held.remove(ino)).collect();
        drop(held);
        drop(released);
        if let Some(stop) = self.stop.lock().take() {
            stop.stop();
        }
    }

    /// What `status` says.
    pub(super) fn counts(&self, path_of: impl Fn(&Node) -> PathBuf) -> GuardCounts {
        let mut counts = GuardCounts {
            rescued_files: self.rescued.load(Ordering::Relaxed),
            rescued_bytes: self.rescued_bytes.load(Ordering::Relaxed),
            compared: self.compared.load(Ordering::Acquire),
            lease_break: lease::break_time(),
            ..GuardCounts::default()
        };
        let jobs = self.jobs.lock();
        counts.waiting = (jobs.open.len() + jobs.rest.len()) as u64;
        counts.under_way = jobs.under_way.values().cloned().collect();
        drop(jobs);
        counts.failed.extend(self.failed.lock().iter().take(MOST_NAMED).cloned());
        counts.changed = self.changed.all();
        let mut unguarded = Vec::new();
        for entry in self.held.lock().entries.values() {
            match entry.refused {
                None => counts.leased += 1,
                Some(err) => unguarded.push((Arc::clone(&entry.node), err)),
            }
        }
        counts.unguarded_files = unguarded.len() as u64;
        let why = |err| match err {
            Errno::AGAIN => String::from("open for writing"),
            err => err.to_string(),
        };
        let named = unguarded.iter().take(MOST_NAMED);
        counts.unguarded = named.map(|(node, err)| (path_of(node), why(*err))).collect();
        counts
    }
}

/// When a lease counts as gone that is asked for at a moment.
fn end_of(asked: Instant) -> Instant {
    asked + lease::break_time().saturating_sub(MARGIN)
}

/// How long somebody has waited, and whether that is more than the kernel allows.
pub(super) fn was_late(asked: Instant) -> (Duration, bool) {
    let waited = asked.elapsed();
    (waited, waited > lease::break_time())
}
