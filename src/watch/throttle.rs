//! Files that are written all the time.
//!
//! A notice costs the writer about a microsecond, as much as the write of a page itself, wherever
//! on the filesystem the file is, and says nothing new while the last one has not been looked at.
//! So a file that is written again and again is no longer told of for a while; meanwhile it is
//! invalidated at regular times, as if it had been written. Afterwards the first write is told
//! again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::senders::Work;
use crate::sys::fanotify::Fanotify;
use crate::sys::handle::{FileHandle, open_handle};
use crate::volume::Volume;

/// A file that was written in so many batches, each soon after the one before, is hushed.
const STREAK: u32 = 4;
/// The time that counts as soon.
const SOON: Duration = Duration::from_millis(100);
/// Time from one invalidation of a hushed file to the next.
const PERIOD: Duration = Duration::from_millis(4);
/// Time that it is hushed.
const LENGTH: Duration = Duration::from_millis(100);
/// The most files that are hushed at a time: each holds a descriptor.
const MOST: usize = 64;
/// The most files that are counted.
const MOST_COUNTED: usize = 1024;

struct Hushed {
    file: OwnedFd,
    since: Instant,
    next: Instant,
}

/// The files that are hushed, and those that may be soon.
#[derive(Default)]
pub(super) struct Throttle {
    hushed: HashMap<FileHandle, Hushed>,
    /// In how many batches they were written, and when last.
    streaks: HashMap<FileHandle, (u32, Instant)>,
}

impl Throttle {
    /// Takes in which files a batch says were written.
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
            if full || self.hushed.contains_key(file) {
                continue;
            }
            let (streak, last) = self.streaks.entry(file.clone()).or_insert((0, now));
            *streak = if now - *last < SOON { *streak + 1 } else { 1 };
            *last = now;
            if *streak >= STREAK && self.hushed.len() < MOST {
                self.throttle(file, now, queue, volume);
            }
        }
    }

    fn throttle(&mut self, handle: &FileHandle, now: Instant, queue: &Fanotify, volume: &Volume) {
        let hushed = open_handle(volume.watch_point(), handle, OFlags::PATH | OFlags::CLOEXEC)
            .and_then(|file| queue.throttle(&file).map(|()| file));
        match hushed {
            // Written before it was hushed, and told of: this batch invalidates it afterwards.
            Ok(file) => {
                let hushed = Hushed { file, since: now, next: now + PERIOD };
                self.hushed.insert(handle.clone(), hushed);
            }
            Err(err) => log::debug!("watch: telling less of a file: {err}"),
        }
    }

    /// The hushed files that have to be invalidated by now.
    pub(super) fn work(&mut self, queue: &Fanotify, volume: &Volume) -> Vec<Work> {
        let now = Instant::now();
        let mut work = Vec::new();
        self.hushed.retain(|handle, hushed| {
            if hushed.next > now {
                return true;
            }
            hushed.next = now + PERIOD;
            let over = now - hushed.since >= LENGTH;
            // A write before the file is told of again is invalidated afterwards.
            if over && let Err(err) = queue.unthrottle(&hushed.file) {
                log::debug!("watch: telling of a file again: {err}");
            }
            work.extend(volume.known_by(handle).map(|ino| Work::Inode(ino, true)));
            !over
        });
        work
    }

    /// Time until there is something to do.
    pub(super) fn pause(&self) -> Option<Duration> {
        let next = self.hushed.values().map(|hushed| hushed.next).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}
