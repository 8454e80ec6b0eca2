//! The threads that invalidate.
//!
//! An invalidation waits for the request under way on that page or in that directory. One that
//! waits long, behind a backing file that stalls, say, must not keep the others back: when every
//! thread waits and there is more to do, another thread is started.

use std::collections::{HashMap, HashSet, VecDeque, hash_map};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::mounts;
use crate::volume::{Ino, Told, Volume};

/// When an invalidation waits so long, the next ones do not wait for it.
pub(super) const PATIENCE: Duration = Duration::from_millis(2);
/// The most invalidations that may wait at a time.
const MOST_THREADS: usize = 32;
/// Time that a further thread stays without work.
const LINGER: Duration = Duration::from_secs(1);
/// Time to wait for an inode to become known to the kernel, at first and at last.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);
/// When so many are left to do, it is easier to do all.
const MOST_WORK: usize = 1 << 20;

/// Something to invalidate.
pub(super) enum Work {
    /// A name in a directory. A mount on it, inside the mount, stays if the name still leads to the
    /// same.
    Entry(Ino, OsString),
    /// Attributes, and data too.
    Inode(Ino, bool),
    /// Directories of these names came or went somewhere.
    Directories(HashSet<OsString>),
    /// Everything that the kernel knows.
    Everything,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Work>,
    /// Inodes that the volume knows and the kernel does not: the answer that tells it of them is
    /// on its way, or the news that it has forgotten them. Asked again until it is one or the
    /// other.
    late: HashMap<Ino, bool>,
    /// When that was tried again last.
    retried: Option<Instant>,
    /// Time to wait before that.
    pause: Duration,
    /// When the threads that are at work began with what they are doing.
    busy: HashMap<usize, Instant>,
    /// The directories in which a name is being dropped, and the names that come after it: the
    /// kernel locks the directory, so that more than one thread would only wait for the first.
    in_turn: HashMap<Ino, HashSet<OsString>>,
    threads: usize,
    started: usize,
    ended: bool,
}

impl State {
    /// Gives work back if it can be done at once, with the directory that it occupies.
    fn turn_of(&mut self, work: Work) -> Option<(Work, Option<Ino>)> {
        let Work::Entry(directory, name) = work else { return Some((work, None)) };
        match self.in_turn.entry(directory) {
            hash_map::Entry::Occupied(mut others) => {
                others.get_mut().insert(name);
                None
            }
            hash_map::Entry::Vacant(free) => {
                free.insert(HashSet::new());
                Some((Work::Entry(directory, name), Some(directory)))
            }
        }
    }
}

/// The threads and what they have to do.
pub(super) struct Senders {
    volume: Arc<Volume>,
    told: Arc<dyn Told>,
    mountpoint: PathBuf,
    /// The names that lead to what is mounted inside the mount.
    ways: RwLock<HashSet<(Ino, OsString)>>,
    state: Mutex<State>,
    work: Condvar,
}

impl Senders {
    /// Starts the first thread.
    pub(super) fn start(
        volume: Arc<Volume>,
        told: Arc<dyn Told>,
        mountpoint: &Path,
    ) -> std::io::Result<Arc<Senders>> {
        let senders = Arc::new(Senders {
            volume,
            told,
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

    /// Finds out what is mounted inside the mount, and whether something is.
    pub(super) fn note_mounts_inside(&self) -> bool {
        let inside = mounts::inside(&self.mountpoint);
        let steps = inside.iter().flat_map(|path| path.ancestors());
        let ways = steps.filter_map(|path| self.told.place_of(path)).collect();
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

    /// Starts a thread when there is work and all of them wait. Tells when to come back: `None`
    /// when there is nothing that waits.
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
                state.queue.extend(next.into_iter().map(|name| Work::Entry(directory, name)));
            }
            if let Some((ino, data)) = late {
                *state.late.entry(ino).or_default() |= data;
            }
        }
        state.threads -= 1;
    }

    /// Waits for work, or until what is late is tried again. False when the thread is not needed;
    /// the first always is.
    fn wait(&self, state: &mut MutexGuard<'_, State>, number: usize) -> bool {
        if state.late.is_empty() && number == 0 {
            self.work.wait(state);
            return true;
        }
        let pause = if state.late.is_empty() { LINGER } else { state.pause };
        let in_vain = self.work.wait_for(state, pause).timed_out();
        // Also where work comes without end.
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

    /// Invalidates. Returns what the kernel does not know and should.
    fn send(&self, work: Work) -> Option<(Ino, bool)> {
        self.volume.kernel_caches()?;
        match work {
            Work::Entry(parent, name) => self.entry(&(parent, name)),
            Work::Inode(ino, data) => return self.inode(ino, data),
            Work::Directories(names) => self.told.directories(&names),
            Work::Everything => self.everything(),
        }
        None
    }

    fn entry(&self, place: &(Ino, OsString)) {
        // Unlocked before anything that may wait.
        let leads_on = self.ways.read().contains(place);
        self.told.name(place.0, &place.1, leads_on);
    }

    fn inode(&self, ino: Ino, data: bool) -> Option<(Ino, bool)> {
        self.told.inode(ino, data).then_some((ino, data))
    }

    /// When it is not known what has changed, everything has. Names that are not there are known
    /// to the kernel alone: where it cannot drop them all, they are never trusted for long. A name
    /// that is dropped takes with it what is mounted below; there, names are looked up anew.
    fn everything(&self) {
        self.told.everything();
        let drop_names = || self.volume.kernel_caches().is_some_and(|to| to.names().is_ok());
        let all_names = !self.note_mounts_inside() && drop_names();
        let known = self.volume.everything_known();
        let mut late = HashMap::new();
        for data in [false, true] {
            for (ino, place) in &known {
                // Twice: a name that is missing stays if it is looked up just then.
                if !all_names && *ino != Ino::ROOT {
                    self.entry(place);
                }
                late.extend(self.inode(*ino, data));
            }
        }
        self.state.lock().late.extend(late);
    }
}
