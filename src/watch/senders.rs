//! Threads that send invalidations to the kernel.
//!
//! An invalidation waits for the request under way on its page or in its directory. If it waits
//! long, behind a stalled backing file for example, it must not delay the others: when all threads
//! wait and there is more work, another thread is started.

use std::collections::{HashMap, HashSet, VecDeque, hash_map};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::mounts;
use crate::shown::Show;
use crate::tree::Ino;
use crate::volume::{ChangeSink, Volume};

/// Time after which an invalidation counts as waiting.
pub(super) const PATIENCE: Duration = Duration::from_millis(2);
/// Largest number of threads, and so of invalidations that wait.
const MOST_THREADS: usize = 32;
/// Time for which an additional thread stays without work.
const LINGER: Duration = Duration::from_secs(1);
/// Shortest pause between two attempts to invalidate an inode that the kernel does not know yet.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);
/// Pauses after which names are invalidated again when changes were lost. A thread that does not
/// get a CPU uses a name for some time.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// Number of queued invalidations above which everything is invalidated instead.
const MOST_WORK: usize = 1 << 20;

/// Invalidation.
pub(super) enum Work {
    /// A name in a directory; with `true` a directory was made there, and no more is told. A mount
    /// on this name or below it, inside of this mount, stays if the name still leads to the same
    /// file.
    Entry(Ino, OsString, bool),
    /// Attributes of an inode; with `true` its data too.
    Inode(Ino, bool),
    /// Directories with these names were made, removed or moved.
    Directories(HashSet<OsString>),
    /// Everything in the kernel's cache.
    Everything,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    /// Inodes that the volume knows and the kernel does not: a reply or a forget request is under
    /// way. They are tried again until it has arrived.
    late: HashMap<Ino, bool>,
    /// Moment of the last attempt for `late`.
    retried: Option<Instant>,
    /// Pause before the next attempt for `late`.
    pause: Duration,
    /// Moment at which each working thread began its present invalidation.
    busy: HashMap<usize, Instant>,
    /// Directories in which a name is being invalidated, with the names that follow. The kernel
    /// locks the directory, so further threads would only wait for the first.
    in_turn: HashMap<Ino, HashSet<(OsString, bool)>>,
    threads: usize,
    started: usize,
    ended: bool,
}

impl State {
    /// Returns work that can be done at once, with the directory that it occupies; else keeps it
    /// for later.
    fn turn_of(&mut self, work: Work) -> Option<(Work, Option<Ino>)> {
        let Work::Entry(directory, name, made) = work else { return Some((work, None)) };
        match self.in_turn.entry(directory) {
            hash_map::Entry::Occupied(mut others) => {
                others.get_mut().insert((name, made));
                None
            }
            hash_map::Entry::Vacant(free) => {
                free.insert(HashSet::new());
                Some((Work::Entry(directory, name, made), Some(directory)))
            }
        }
    }
}

/// The threads and their work.
pub(super) struct Senders {
    volume: Arc<Volume>,
    sink: Arc<dyn ChangeSink>,
    mountpoint: PathBuf,
    /// Names on the paths of mounts inside of this mount.
    ways: RwLock<HashSet<(Ino, OsString)>>,
    state: Mutex<State>,
    work: Condvar,
}

impl Senders {
    /// Starts the first thread.
    pub(super) fn start(
        volume: Arc<Volume>,
        sink: Arc<dyn ChangeSink>,
        mountpoint: &Path,
    ) -> std::io::Result<Arc<Senders>> {
        let senders = Arc::new(Senders {
            volume,
            sink,
            mountpoint: mountpoint.to_owned(),
            ways: RwLock::default(),
            state: Mutex::default(),
            work: Condvar::new(),
        });
        Senders::start_thread(&senders, &mut senders.state.lock())?;
        Ok(senders)
    }

    fn start_thread(senders: &Arc<Senders>, state: &mut State) -> std::io::Result<()> {
        let (own, number) = (Arc::clone(senders), state.started);
        thread::Builder::new().name(String::from("inval")).spawn(move || own.run(number))?;
        state.threads += 1;
        state.started += 1;
        Ok(())
    }

    /// Reads the mounts inside of this mount. Returns whether there is one.
    pub(super) fn note_mounts_inside(&self) -> bool {
        let inside = mounts::inside(&self.mountpoint);
        let steps = inside.iter().flat_map(|path| path.ancestors());
        let ways = steps.filter_map(|path| self.sink.place_of(path)).collect();
        *self.ways.write() = ways;
        self.volume.set_holds_mounts(!inside.is_empty());
        !inside.is_empty()
    }

    /// Adds work.
    pub(super) fn add(&self, work: impl IntoIterator<Item = Work>) {
        let mut state = self.state.lock();
        state.queue.extend(work);
        state.pause = SHORTEST_PAUSE;
        if state.queue.len() > MOST_WORK {
            state.queue.clear();
            state.queue.push_back(Work::Everything);
        }
        if !state.queue.is_empty() {
            self.work.notify_one();
        }
    }

    /// Starts a thread if there is work and all threads wait. Returns the time until the next call;
    /// `None` if no work is queued.
    pub(super) fn attend(self: &Arc<Senders>) -> Option<Duration> {
        let mut state = self.state.lock();
        if state.queue.is_empty() {
            return None;
        }
        let all_wait = state.busy.len() == state.threads
            && state.busy.values().all(|since| since.elapsed() > PATIENCE);
        if all_wait
            && state.threads < MOST_THREADS
            && let Err(err) = Senders::start_thread(self, &mut state)
        {
            log::error!("watch: starting a thread: {err}");
        }
        Some(PATIENCE)
    }

    /// Ends the threads.
    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.work.notify_all();
    }

    fn run(&self, number: usize) {
        let mut state = self.state.lock();
        while !state.ended {
            let Some(work) = state.queue.pop_front() else {
                if !self.wait(&mut state, number) {
                    break;
                }
                continue;
            };
            let Some((work, directory)) = state.turn_of(work) else { continue };
            state.busy.insert(number, Instant::now());
            drop(state);
            let late = self.send(work);
            state = self.state.lock();
            state.busy.remove(&number);
            if let Some(directory) = directory {
                let next = state.in_turn.remove(&directory).unwrap_or_default();
                let next = next.into_iter();
                state.queue.extend(next.map(|(name, made)| Work::Entry(directory, name, made)));
            }
            if let Some((ino, data)) = late {
                *state.late.entry(ino).or_default() |= data;
            }
        }
        state.threads -= 1;
    }

    /// Waits for work, or for the next attempt for `late`. Returns false if the thread is not
    /// needed any more, which the first one always is.
    fn wait(&self, state: &mut MutexGuard<'_, State>, number: usize) -> bool {
        if state.late.is_empty() && number == 0 {
            self.work.wait(state);
            return true;
        }
        let pause = if state.late.is_empty() { LINGER } else { state.pause };
        let in_vain = self.work.wait_for(state, pause).timed_out();
        // `late` is tried also if the queue never gets empty.
        if !state.late.is_empty()
            && (in_vain || state.retried.is_none_or(|at| at.elapsed() >= state.pause))
        {
            state.retried = Some(Instant::now());
            let late = std::mem::take(&mut state.late);
            state.queue.extend(late.into_iter().map(|(ino, data)| Work::Inode(ino, data)));
            state.pause = (state.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
        !in_vain || number == 0 || !state.queue.is_empty()
    }

    /// Sends an invalidation. Returns an inode that has to be tried again.
    fn send(&self, work: Work) -> Option<(Ino, bool)> {
        self.volume.kernel_caches()?;
        match work {
            Work::Entry(parent, name, made) => self.entry(&(parent, name), made),
            Work::Inode(ino, data) => return self.inode(ino, data),
            Work::Directories(names) => self.sink.directories(&names),
            Work::Everything => self.everything(),
        }
        None
    }

    /// Invalidates a name. A directory that was just made may be in use when that reaches the
    /// kernel, and a filesystem mounted in it: its name is expired, since to drop it would unmount
    /// that. A name that was cached as missing is looked up anew either way.
    fn entry(&self, place: &(Ino, OsString), made: bool) {
        // The lock ends here: the invalidation may wait.
        let leads_on = made || self.ways.read().contains(place);
        let what = if leads_on { "expired" } else { "dropped" };
        log::trace!("watch: {} in ino={}: {what}", place.1.shown(), place.0);
        self.sink.name(place.0, &place.1, leads_on);
    }

    fn inode(&self, ino: Ino, data: bool) -> Option<(Ino, bool)> {
        self.sink.inode(ino, data).then_some((ino, data))
    }

    /// Sleeps. Returns false if the threads are to end.
    fn sleep(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        while Instant::now() < end && !self.state.lock().ended {
            thread::sleep(LONGEST_PAUSE.min(end.saturating_duration_since(Instant::now())));
        }
        !self.state.lock().ended
    }

    /// Invalidates everything, after changes were lost. Only the kernel knows the names that it has
    /// cached as missing: where it cannot drop all names at once, they have a short validity. A
    /// dropped name unmounts the mounts below it: with such mounts names are expired instead.
    fn everything(&self) {
        self.sink.everything();
        let drop_names = || self.volume.kernel_caches().is_some_and(|to| to.names().is_ok());
        let all_names = !self.note_mounts_inside() && drop_names();
        let known = self.volume.everything_known();
        let mut late = HashMap::new();
        let mut pass = |data: bool| {
            for (ino, place) in &known {
                if !all_names && *ino != Ino::ROOT {
                    self.entry(place, false);
                }
                late.extend(self.inode(*ino, data));
            }
        };
        pass(false);
        pass(true);
        if !all_names {
            // A cached missing name stays if somebody uses it at this moment, as a lookup does.
            AGAIN_AFTER.into_iter().filter(|pause| self.sleep(*pause)).for_each(|_| pass(true));
        }
        self.state.lock().late.extend(late);
    }
}
