//! Guard of the base: base files that are open in the mount or visible through a partial copy keep
//! their content of first touch while the scratch is mounted.
//!
//! Each such file is under a read lease ([`lease`]) as far as descriptors suffice: the open files,
//! and the partial copies that were used last. Another process that opens such a file for writing
//! or truncates it waits in the kernel until its visible pages have been copied into the scratch
//! ([`super::lease_break`]). A base file that is replaced by rename or removed needs no lease,
//! since the descriptor keeps it. The fingerprint of a file without a lease is compared at each
//! read of its pages ([`BaseState`]).
//!
//! While [`Guard::held`] is locked, no base is accessed and no descriptor of one is closed.

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
use crate::tree::{GuardCounts, Ino};

/// Fraction (1/n) of the descriptor limit for the bases of partial copies that are not open.
const SHARE_OF_DESCRIPTORS: u64 = 4;
/// Largest number of descriptors for the bases of partial copies that are not open.
const MOST_IDLE: u64 = 16_384;
/// Number of idle files that are released at once where few descriptors are left.
const GIVEN_UP: usize = 64;
/// Largest number of threads that rescue files.
const MOST_THREADS: usize = 4;
/// Time by which a lease counts as gone before the kernel breaks it.
const MARGIN: Duration = Duration::from_secs(1);
/// Largest number of files that are listed by name.
const MOST_NAMED: usize = 100;

/// Guarded base file.
struct Entry {
    node: Arc<Node>,
    file: Arc<OwnedFd>,
    /// State of the base; only for a partial copy.
    state: Option<Arc<BaseState>>,
    /// Reason why no lease is held.
    refused: Option<Errno>,
    /// Moment at which a writer began to wait for the lease.
    asked: Option<Instant>,
    /// Time of last use by [`Held::clock`]; `None` while the file is open in the mount.
    idle: Option<u64>,
    /// Number of leases taken so far, which tells two leases apart.
    taken: u64,
}

impl Entry {
    fn is_leased(&self) -> bool {
        self.refused.is_none() && self.asked.is_none()
    }
}

/// File that is not guarded any more. Its drop accesses the base and closes the descriptor, so it
/// must run with no lock held that requests need.
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
    /// Files that are not open, by the time of last use.
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

/// Files to rescue.
#[derive(Default)]
struct Jobs {
    /// Queue of open files, which are rescued first.
    open: VecDeque<Ino>,
    /// Queue of other files.
    rest: VecDeque<Ino>,
    threads: usize,
    /// The guard ends: no thread is started any more.
    over: bool,
    /// Number of threads that are rescuing a file.
    busy: usize,
    /// Files that are being copied: path and number of copied bytes.
    under_way: HashMap<Ino, (PathBuf, u64)>,
}

/// Guard of the base of one scratch.
#[derive(Default)]
pub(super) struct Guard {
    keeper: OnceLock<Keeper>,
    stop: Mutex<Option<Stop>>,
    held: Brief<Held>,
    jobs: Mutex<Jobs>,
    /// Signals the end of a thread that rescues files.
    rest: Condvar,
    /// Number of rescued files, and of bytes copied for them.
    rescued: AtomicU64,
    rescued_bytes: AtomicU64,
    /// Files whose rescue failed, with the reason.
    failed: Mutex<Vec<(PathBuf, String)>>,
    /// The comparison of all covered names with the base has ended.
    pub(super) compared: AtomicBool,
    /// Files whose base has changed or may have changed.
    changed: Arc<ChangedFiles>,
}

impl Guard {
    /// Starts to take leases, whose breaks are sent to `keeper`.
    pub(super) fn start(&self, keeper: Keeper, stop: Stop) {
        if self.keeper.set(keeper).is_err() {
            log::error!("the guard of the base was started twice");
        }
        *self.stop.lock() = Some(stop);
    }

    /// Descriptor of the base of a guarded file.
    pub(super) fn file(&self, node: &Node) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.held.lock().entries.get(&node.ino)?.file))
    }

    /// Guards a file that is opened in the mount and whose base is visible. The caller holds
    /// [`Node::shared_open`] locked.
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

    /// Attaches the state of the base to a guarded file with a partial copy. The caller calls
    /// [`Guard::confirm`] when no lock is held any more; until then the base is compared at each
    /// read.
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

    /// Replaces the comparisons by the lease of a file if its base is found unchanged. Accesses the
    /// base.
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
        // The lease was not replaced by another one meanwhile.
        if let Some((_, same, still)) = leased(&held)
            && Arc::ptr_eq(&state, &same)
            && still == taken
        {
            state.lease_goes_on();
        }
    }

    /// Notes that a file is not open in the mount any more. The caller holds [`Node::shared_open`]
    /// locked, and drops the returned value after unlocking it.
    #[must_use]
    pub(super) fn closed(&self, node: &Node) -> Option<Released> {
        let partial = node.is_partial() && node.is_linked();
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

    /// Removes a released file from the list of changed bases.
    fn forgotten(&self, released: Option<Released>) -> Option<Released> {
        if let Some(Released(Entry { state: Some(state), .. })) = &released {
            self.changed.forget(state.path());
        }
        released
    }

    /// Releases a file that has lost its last name, unless it is open. The returned value is
    /// dropped with no lock held.
    #[must_use]
    pub(super) fn unlinked(&self, node: &Node) -> Option<Released> {
        let mut held = self.held.lock();
        let is_idle = held.entries.get(&node.ino).is_some_and(|entry| entry.idle.is_some());
        if is_idle { self.forgotten(held.remove(node.ino)) } else { None }
    }

    /// Releases the least recently used files above the limit. Returns their inode numbers: the
    /// nodes may be unused now.
    pub(super) fn evict(&self) -> Vec<Ino> {
        self.evict_beyond(Guard::most_idle())
    }

    /// Releases some idle files, whose descriptors are needed for other files.
    pub(super) fn give_up_some(&self) -> Vec<Ino> {
        let idle = self.held.lock().idle.len();
        self.evict_beyond(idle.saturating_sub(GIVEN_UP))
    }

    fn evict_beyond(&self, most: usize) -> Vec<Ino> {
        let mut gone = Vec::new();
        let mut locked = self.held.lock();
        let held = &mut *locked;
        let excess = held.idle.len().saturating_sub(most);
        // A base with a waiting writer stays: it is being rescued.
        let unasked = |ino: &Ino| held.entries.get(ino).is_none_or(|entry| entry.asked.is_none());
        gone.extend(held.idle.values().copied().filter(unasked).take(excess));
        let released: Vec<_> = gone.iter().filter_map(|ino| held.remove(*ino)).collect();
        drop(locked);
        drop(released);
        gone
    }

    /// Whether the limit of files that are not open is reached.
    pub(super) fn is_full(&self) -> bool {
        self.held.lock().idle.len() >= Guard::most_idle()
    }

    /// List of files whose base has changed or may have changed.
    pub(super) fn changed(&self) -> Arc<ChangedFiles> {
        Arc::clone(&self.changed)
    }

    /// Notes files whose base was changed while the scratch was not mounted.
    pub(super) fn note_changed(&self, found: &[Changed]) {
        found.iter().for_each(|(path, fate)| self.changed.note(path, *fate));
    }

    /// Largest number of guarded files that are not open.
    pub(super) fn most_idle() -> usize {
        (descriptor_limit().0 / SHARE_OF_DESCRIPTORS).min(MOST_IDLE) as usize
    }

    /// Notes that a writer waits for a lease, and queues the file for rescue.
    pub(super) fn asked(&self, which: Asked) {
        let mut held = self.held.lock();
        let held = &mut *held;
        let mut note = |ino: Ino| {
            // The event may be for an earlier file with the same descriptor number.
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

    /// Whether the caller has to start another rescue thread. The thread counts as started then.
    pub(super) fn needs_thread(&self) -> bool {
        let mut jobs = self.jobs.lock();
        let work = jobs.open.len() + jobs.rest.len() + jobs.busy;
        let needed = !jobs.over && jobs.threads < work.min(MOST_THREADS);
        jobs.threads += usize::from(needed);
        needed
    }

    /// Next file to rescue, and the moment at which its writer began to wait; `None` ends the
    /// thread. The caller calls [`Guard::finish`] for each file.
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
            // A file that was closed or removed meanwhile needs no rescue.
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

    /// Adds `bytes` to the copied bytes of a file.
    pub(super) fn progress(&self, node: &Node, path: &std::path::Path, bytes: u64) {
        let mut jobs = self.jobs.lock();
        jobs.under_way.entry(node.ino).or_insert_with(|| (path.to_owned(), 0)).1 += bytes;
    }

    /// Ends the rescue of a file: gives the lease back to the waiting writer. Returns the number of
    /// copied bytes.
    pub(super) fn finish(&self, node: &Node, path: PathBuf, failure: Option<String>) -> u64 {
        let mut jobs = self.jobs.lock();
        jobs.busy -= 1;
        let bytes = jobs.under_way.remove(&node.ino).map_or(0, |(_, bytes)| bytes);
        drop(jobs);
        let Some(reason) = failure else {
            self.rescued.fetch_add(1, Ordering::Relaxed);
            self.rescued_bytes.fetch_add(bytes, Ordering::Relaxed);
            // No page of the base is visible any more, also through open handles.
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
                entry.refused = Some(Errno::AGAIN); // The base is open for writing.
            }
        }
        bytes
    }

    /// All guarded files.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.held.lock().entries.values().map(|entry| Arc::clone(&entry.node)).collect()
    }

    /// Files whose base is under a lease and has other times or attributes than expected, with its
    /// present fingerprint. It accesses bases with [`Guard::held`] locked, so it is called at
    /// unmount, when no requests come any more. Their last close may not have been reported.
    pub(super) fn moved(&self) -> Vec<(Arc<Node>, Fingerprint)> {
        let held = self.held.lock();
        let leased = held.entries.values().filter(|entry| entry.is_leased());
        let moved = |entry: &Entry| {
            Some((Arc::clone(&entry.node), entry.state.as_ref()?.moved(&entry.file)?))
        };
        leased.filter_map(moved).collect()
    }

    /// Waits for all rescue threads, releases all files, and stops the guard thread.
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

    /// Counters for `status`.
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

/// Moment from which a lease counts as gone whose writer began to wait at `asked`.
fn end_of(asked: Instant) -> Instant {
    asked + lease::break_time().saturating_sub(MARGIN)
}

/// Time that a writer has waited, and whether the kernel has broken the lease meanwhile.
pub(super) fn was_late(asked: Instant) -> (Duration, bool) {
    let waited = asked.elapsed();
    (waited, waited > lease::break_time())
}
