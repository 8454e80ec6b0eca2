//! Files and directories used a moment ago, held open until the kernel is done with their use.
//!
//! Between a lookup and the open that it is for, a file may be replaced by rename in the backing
//! tree. A plain open(2) is one step and never fails for that. With a descriptor the file that was
//! found can still be opened. Files and directories that the kernel opens without a request are
//! held here between two reads of them. Each is closed after a second at the latest, so that a file
//! that is removed directly does not keep its space.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::tree::Ino;

/// Time for which a descriptor is held.
const LIFETIME: Duration = Duration::from_secs(1);

struct Inner<T> {
    held: HashMap<Ino, (Arc<T>, Instant)>,
    /// Inode numbers with the time of insertion, oldest first. Some may be removed or inserted
    /// again.
    order: VecDeque<(Ino, Instant)>,
}

impl<T> Inner<T> {
    fn is_held_since(&self, ino: Ino, since: Instant) -> bool {
        self.held.get(&ino).is_some_and(|(_, put)| *put == since)
    }
}

/// Short-lived values by inode number.
pub struct ShortLived<T> {
    inner: Mutex<Inner<T>>,
    /// Largest number of values: more than the requests under way at one time.
    capacity: usize,
}

impl<T> ShortLived<T> {
    /// Table of at most `capacity` values.
    pub fn new(capacity: usize) -> ShortLived<T> {
        let inner = Inner { held: HashMap::new(), order: VecDeque::new() };
        ShortLived { inner: Mutex::new(inner), capacity }
    }

    /// Value of an inode, which stays in the table.
    pub fn get(&self, ino: Ino) -> Option<Arc<T>> {
        self.inner.lock().held.get(&ino).map(|(held, _)| Arc::clone(held))
    }

    /// Inserts a value. Returns the values that it replaces or displaces.
    #[must_use]
    pub fn put(&self, ino: Ino, new: Arc<T>) -> Vec<Arc<T>> {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        let mut gone = Vec::new();
        gone.extend(inner.held.insert(ino, (new, now)).map(|(held, _)| held));
        inner.order.push_back((ino, now));
        while inner.held.len() > self.capacity {
            let Some((oldest, since)) = inner.order.pop_front() else { break };
            if inner.is_held_since(oldest, since) {
                gone.extend(inner.held.remove(&oldest).map(|(held, _)| held));
            }
        }
        if inner.order.len() > 8 * self.capacity {
            let order = std::mem::take(&mut inner.order);
            inner.order = order
                .into_iter()
                .filter(|(ino, since)| inner.is_held_since(*ino, *since))
                .collect();
        }
        gone
    }

    /// Removes the value of an inode.
    #[must_use]
    pub fn take(&self, ino: Ino) -> Option<Arc<T>> {
        self.inner.lock().held.remove(&ino).map(|(held, _)| held)
    }

    /// Removes all values.
    #[must_use]
    pub fn clear(&self) -> Vec<Arc<T>> {
        let mut inner = self.inner.lock();
        inner.order.clear();
        std::mem::take(&mut inner.held).into_values().map(|(held, _)| held).collect()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().held.is_empty()
    }

    /// Removes values that are too old. It is called twice per lifetime.
    #[must_use]
    pub fn sweep(&self) -> Vec<Arc<T>> {
        let mut inner = self.inner.lock();
        let old = |(_, since): &(_, Instant)| since.elapsed() >= LIFETIME / 2;
        let gone = inner.held.extract_if(|_, held| old(held)).map(|(_, (held, _))| held).collect();
        if inner.held.is_empty() {
            inner.order.clear();
        }
        gone
    }
}

/// Wakes the thread that sweeps, twice a lifetime while there is something to sweep.
#[derive(Default)]
pub struct Sweeper {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// A table may not be empty.
    pending: bool,
    ended: bool,
}

impl Sweeper {
    /// Notes that a value was inserted.
    pub fn note(&self) {
        let mut state = self.state.lock();
        if !state.pending {
            state.pending = true;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Waits for the time of the next sweep; returns false at the end.
    pub fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while !state.pending && !state.ended {
            self.changed.wait(&mut state);
        }
        if !state.ended {
            self.changed.wait_for(&mut state, LIFETIME / 2);
        }
        state.pending = false;
        !state.ended
    }

    /// Makes [`Sweeper::wait`] return false.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 512;

    fn recent() -> ShortLived<()> {
        ShortLived::new(CAPACITY)
    }

    fn put(recent: &ShortLived<()>, ino: Ino) {
        drop(recent.put(ino, Arc::new(())));
    }

    #[test]
    fn the_oldest_goes_when_it_is_full() {
        let recent = recent();
        for ino in 0..CAPACITY as u64 + 10 {
            put(&recent, Ino(ino));
        }
        assert_eq!(recent.inner.lock().held.len(), CAPACITY);
        assert!(recent.get(Ino(9)).is_none());
        assert!(recent.get(Ino(10)).is_some());
    }

    #[test]
    fn the_same_file_again_does_not_fill_it() {
        let recent = recent();
        for _ in 0..CAPACITY * 30 {
            put(&recent, Ino(7));
        }
        assert_eq!(recent.inner.lock().held.len(), 1);
        assert!(recent.inner.lock().order.len() <= 8 * CAPACITY);
    }

    #[test]
    fn what_was_put_in_anew_is_as_young_as_that() {
        let recent = recent();
        for ino in 0..CAPACITY as u64 {
            put(&recent, Ino(ino));
        }
        put(&recent, Ino(0));
        put(&recent, Ino(u64::MAX));
        assert!(recent.get(Ino(0)).is_some());
        assert!(recent.get(Ino(1)).is_none());
    }

    #[test]
    fn what_is_old_is_taken_out_by_a_sweeper_that_wakes_by_itself() {
        let (recent, sweeper) = (recent(), Sweeper::default());
        std::thread::scope(|scope| {
            let sweeping = scope.spawn(|| {
                while sweeper.wait() {
                    if !recent.sweep().is_empty() {
                        return true;
                    }
                    sweeper.note();
                }
                false
            });
            put(&recent, Ino(7));
            sweeper.note();
            assert!(sweeping.join().unwrap());
        });
        assert!(recent.is_empty());
    }

    #[test]
    fn a_sweeper_that_has_ended_does_not_wait() {
        let sweeper = Sweeper::default();
        sweeper.end();
        assert!(!sweeper.wait());
    }
}
