//! An event loop that stays awake for the next request.
//!
//! A small request costs the kernel and the daemon a few microseconds of work, and several times
//! as much for the waking of a thread on a CPU that has gone idle. A program that asks for one
//! thing after another asks again within microseconds; so a loop that has answered looks whether
//! there is a request for a moment before it goes to sleep, as a virtual CPU does (haltpoll) and a
//! socket may (SO_BUSY_POLL in socket(7)). It does so only while requests follow one another that
//! closely, and lets every other thread go first that wants its CPU.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::sched_yield;

/// Number of requests, each soon after an answer, that promise another one.
const STREAK: u32 = 4;

/// A thread that lets others go first for longer than this has met one that wants its CPU.
const CROWDED: Duration = Duration::from_micros(20);

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Looks for the next request of a session.
pub struct BusyPoll {
    device: OwnedFd,
    limit: Duration,
    started: Instant,
    /// A loop is looking: one at a time.
    taken: AtomicBool,
    /// When a request was answered last, in nanoseconds from the start.
    answered: AtomicU64,
    /// Number of requests that have come soon after an answer, one after another.
    streak: AtomicU32,
}

impl BusyPoll {
    /// Looks at `device`, which is /dev/fuse or a copy of it, for `limit` at a time; never when
    /// that is zero, nor where there is one CPU only, which the asking program needs.
    pub fn new(device: OwnedFd, limit: Duration) -> BusyPoll {
        let alone = std::thread::available_parallelism().map_or(true, |cpus| cpus.get() == 1);
        BusyPoll {
            device,
            limit: if alone { Duration::ZERO } else { limit },
            started: Instant::now(),
            taken: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            streak: AtomicU32::new(0),
        }
    }

    /// Whether it ever looks.
    pub fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Takes in that there is a request.
    pub fn arrived(&self) {
        if !self.is_on() {
            return;
        }
        let pause = self.now().saturating_sub(self.answered.load(Ordering::Relaxed));
        // Without anybody awake the pause has the waking of two threads in it.
        let soon = u128::from(pause) < 2 * self.limit.as_nanos();
        let streak = self.streak.load(Ordering::Relaxed);
        self.streak.store(if soon { streak.saturating_add(1) } else { 0 }, Ordering::Relaxed);
    }

    /// Takes in that a request was answered, and waits for the next one while it is likely.
    pub fn answered(&self) {
        if !self.is_on() {
            return;
        }
        self.answered.store(self.now(), Ordering::Relaxed);
        if self.streak.load(Ordering::Relaxed) < STREAK || self.taken.swap(true, Ordering::Acquire)
        {
            return;
        }
        self.look();
        self.taken.store(false, Ordering::Release);
    }

    fn look(&self) {
        let begun = Instant::now();
        let mut last = begun;
        loop {
            let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
            // An error is the next read's to tell.
            if poll(&mut fds, Some(&AT_ONCE)) != Ok(0) {
                return;
            }
            sched_yield();
            let now = Instant::now();
            if now - last > CROWDED {
                self.streak.store(0, Ordering::Relaxed);
                return;
            }
            if now - begun > self.limit {
                return;
            }
            last = now;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// One that looks at a socket, to whose other end requests are written.
    fn polling(limit: Duration) -> (BusyPoll, UnixStream) {
        let (device, kernel) = UnixStream::pair().unwrap();
        (BusyPoll { limit, ..BusyPoll::new(device.into(), limit) }, kernel)
    }

    fn follow_closely(polling: &BusyPoll) {
        for _ in 0..STREAK {
            polling.answered.store(polling.now(), Ordering::Relaxed);
            polling.arrived();
        }
    }

    #[test]
    fn a_loop_that_looks_ends_with_the_next_request() {
        // Without the request it would look for an hour.
        let (polling, mut kernel) = polling(Duration::from_secs(3600));
        follow_closely(&polling);
        kernel.write_all(b"request").unwrap();
        polling.answered();
        assert!(!polling.taken.load(Ordering::Relaxed));
    }

    #[test]
    fn a_loop_that_finds_nothing_ends_with_its_time() {
        let (polling, _kernel) = polling(Duration::from_micros(100));
        follow_closely(&polling);
        polling.answered();
        assert!(!polling.taken.load(Ordering::Relaxed));
    }

    #[test]
    fn requests_that_come_seldom_are_not_waited_for() {
        let (polling, _kernel) = polling(Duration::from_secs(3600));
        polling.arrived();
        polling.answered(); // It would look for an hour.
        follow_closely(&polling);
        let short = BusyPoll { limit: Duration::from_nanos(1), ..polling };
        short.answered.store(0, Ordering::Relaxed);
        short.arrived();
        assert_eq!(short.streak.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_loop_looks_at_a_time() {
        let (polling, _kernel) = polling(Duration::from_secs(3600));
        follow_closely(&polling);
        polling.taken.store(true, Ordering::Relaxed);
        polling.answered(); // It would look for an hour.
        assert!(polling.taken.load(Ordering::Relaxed));
    }

    #[test]
    fn without_a_time_it_never_looks() {
        let (polling, _kernel) = polling(Duration::ZERO);
        follow_closely(&polling);
        assert!(!polling.is_on());
        assert_eq!(polling.streak.load(Ordering::Relaxed), 0);
        polling.answered();
    }
}
