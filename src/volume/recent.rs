//! Files looked up a moment ago, held open until the kernel has done what it looked them up for.
//!
//! Between a lookup and the open that it is for, a file may be replaced by rename in the backing
//! tree. A plain open(2) is one step and never fails for that; held by a descriptor, the file that
//! was found can still be opened. The descriptors are closed after a second at the latest, so that
//! a file that is removed directly does not keep its space.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::inode::Ino;

/// How many files are held at most: more than there are lookups under way at one time.
const CAPACITY: usize = 512;

/// How long a file is held.
const LIFETIME: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Inner {
    held: HashMap<Ino, (Arc<OwnedFd>, Instant)>,
    /// What was put in and when, the oldest first; some of it may be gone again, or put in anew.
    order: VecDeque<(Ino, Instant)>,
    ended: bool,
}

impl Inner {
    fn is_held_since(&self, ino: Ino, since: Instant) -> bool {
        self.held.get(&ino).is_some_and(|(_, put)| *put == since)
    }
}

/// O_PATH descriptors of files by inode number.
#[derive(Default)]
pub(super) struct Recent {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Recent {
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        self.inner.lock().held.get(&ino).map(|(fd, _)| Arc::clone(fd))
    }

    pub(super) fn put(&self, ino: Ino, fd: OwnedFd) {
        let mut inner = self.inner.lock();
        let was_empty = inner.held.is_empty();
        let now = Instant::now();
        let mut gone = Vec::new();
        gone.extend(inner.held.insert(ino, (Arc::new(fd), now)));
        inner.order.push_back((ino, now));
        while inner.held.len() > CAPACITY {
            let Some((oldest, since)) = inner.order.pop_front() else { break };
            if inner.is_held_since(oldest, since) {
                gone.extend(inner.held.remove(&oldest));
            }
        }
        if inner.order.len() > 8 * CAPACITY {
            let order = std::mem::take(&mut inner.order);
            inner.order = order
                .into_iter()
                .filter(|(ino, since)| inner.is_held_since(*ino, *since))
                .collect();
        }
        drop(inner);
        drop(gone);
        if was_empty {
            self.changed.notify_one();
        }
    }

    /// Closes what is too old, until [`Recent::end`].
    pub(super) fn expire(&self) {
        loop {
            let mut inner = self.inner.lock();
            if inner.held.is_empty() && !inner.ended {
                self.changed.wait(&mut inner);
            }
            if inner.ended {
                return;
            }
            self.changed.wait_for(&mut inner, LIFETIME / 2);
            let old = |(_, since): &(_, Instant)| since.elapsed() >= LIFETIME / 2;
            let expired: Vec<_> = inner.held.extract_if(|_, held| old(held)).collect();
            if inner.held.is_empty() {
                inner.order.clear();
            }
            drop(inner);
            drop(expired);
        }
    }

    pub(super) fn end(&self) {
        self.inner.lock().ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/").unwrap().into()
    }

    #[test]
    fn the_oldest_goes_when_it_is_full() {
        let recent = Recent::default();
        for ino in 0..CAPACITY as u64 + 10 {
            recent.put(Ino(ino), fd());
        }
        assert_eq!(recent.inner.lock().held.len(), CAPACITY);
        assert!(recent.get(Ino(9)).is_none());
        assert!(recent.get(Ino(10)).is_some());
    }

    #[test]
    fn the_same_file_again_does_not_fill_it() {
        let recent = Recent::default();
        for _ in 0..CAPACITY * 30 {
            recent.put(Ino(7), fd());
        }
        assert_eq!(recent.inner.lock().held.len(), 1);
        assert!(recent.inner.lock().order.len() <= 8 * CAPACITY);
    }

    #[test]
    fn what_was_put_in_anew_is_as_young_as_that() {
        let recent = Recent::default();
        for ino in 0..CAPACITY as u64 {
            recent.put(Ino(ino), fd());
        }
        recent.put(Ino(0), fd());
        recent.put(Ino(u64::MAX), fd());
        assert!(recent.get(Ino(0)).is_some());
        assert!(recent.get(Ino(1)).is_none());
    }

    #[test]
    fn what_is_old_is_closed_without_being_asked_for() {
        let recent = Arc::new(Recent::default());
        recent.put(Ino(7), fd());
        let worker = Arc::clone(&recent);
        let thread = std::thread::spawn(move || worker.expire());
        let deadline = Instant::now() + LIFETIME * 20;
        while recent.get(Ino(7)).is_some() {
            assert!(Instant::now() < deadline, "it is still held");
            std::thread::yield_now();
        }
        recent.end();
        thread.join().unwrap();
    }
}
