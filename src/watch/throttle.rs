//! Throttle for notices of files that are written all the time.
//!
//! A notice costs the writer about a microsecond, as much as the write of a page itself, and adds
//! nothing while the last one has not been read. So notices of a file that is written again and
//! again are switched off for a while; meanwhile the file is invalidated at regular intervals, as
//! if it had been written. Afterwards the next write gives a notice again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::senders::Work;
use crate::sys::fanotify::Fanotify;
use crate::sys::handle::{FileHandle, open_handle};
use crate::volume::Volume;

/// Number of batches, each soon after the one before, after which a written file is throttled.
const STREAK: u32 = 4;
/// Longest time between two batches of a streak.
const SOON: Duration = Duration::from_millis(100);
/// Interval between two invalidations of a throttled file.
const PERIOD: Duration = Duration::from_millis(4);
/// Time for which a file is throttled.
const LENGTH: Duration = Duration::from_millis(100);
/// Largest number of throttled files; each holds a descriptor.
const MOST: usize = 64;
/// Largest number of files whose streaks are counted.
const MOST_COUNTED: usize = 1024;

struct Throttled {
    file: OwnedFd,
    since: Instant,
    next: Instant,
}

/// Throttled files, and files with a streak.
#[derive(Default)]
pub(super) struct Throttle {
    throttled: HashMap<FileHandle, Throttled>,
    /// Length of each file's streak in batches, and the time of its last batch.
    streaks: HashMap<FileHandle, (u32, Instant)>,
}

impl Throttle {
    /// Counts the files that were written in a batch, and throttles some.
    pub(super) fn written<'a>(
        &mut self,
        files: impl Iterator<Item = &'a FileHandle>,
        queue: &Fanotify,
        volume: &Volume,
    ) {
        let now = Instant::now();
        for file in files {
            if self.streaks.len() >= MOST_COUNTED {
                self.streaks.retain(|_, (_, last)| now - *last < SOON);
            }
            let full = self.streaks.len() >= MOST_COUNTED && !self.streaks.contains_key(file);
            if full || self.throttled.contains_key(file) {
                continue;
            }
            let (streak, last) = self.streaks.entry(file.clone()).or_insert((0, now));
            *streak = if now - *last < SOON { *streak + 1 } else { 1 };
            *last = now;
            if *streak >= STREAK && self.throttled.len() < MOST {
                self.throttle(file, now, queue, volume);
            }
        }
    }

    fn throttle(&mut self, handle: &FileHandle, now: Instant, queue: &Fanotify, volume: &Volume) {
        let throttled = open_handle(volume.watch_point(), handle, OFlags::PATH | OFlags::CLOEXEC)
            .and_then(|file| queue.throttle(&file).map(|()| file));
        match throttled {
            // Its earlier writes are in this batch, which invalidates it after this call.
            Ok(file) => {
                let throttled = Throttled { file, since: now, next: now + PERIOD };
                self.throttled.insert(handle.clone(), throttled);
            }
            Err(err) => log::debug!("watch: switching notices of a file off: {err}"),
        }
    }

    /// Invalidations that are due for throttled files.
    pub(super) fn work(&mut self, queue: &Fanotify, volume: &Volume) -> Vec<Work> {
        let now = Instant::now();
        let mut work = Vec::new();
        self.throttled.retain(|handle, throttled| {
            if throttled.next > now {
                return true;
            }
            throttled.next = now + PERIOD;
            let over = now - throttled.since >= LENGTH;
            // The invalidation follows this call, so it covers every write without a notice.
            if over && let Err(err) = queue.unthrottle(&throttled.file) {
                log::debug!("watch: switching notices of a file on: {err}");
            }
            work.extend(volume.known_by(handle).map(|ino| Work::Inode(ino, true)));
            !over
        });
        work
    }

    /// Time until the next invalidation is due.
    pub(super) fn pause(&self) -> Option<Duration> {
        let next = self.throttled.values().map(|throttled| throttled.next).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}
