//! Watch of the backing tree: invalidates the kernel's cache for changes made directly in it.
//!
//! As root one mark covers the source's filesystem; otherwise every directory whose names the
//! kernel has asked for is marked. The watch has threads of its own, which hold no lock while
//! they invalidate: the kernel may wait there for an answer of the daemon. Changes that the daemon
//! makes itself come from the mount, where the kernel knows them.

mod batch;
mod directories;
mod local;
mod mounts;
mod senders;
mod throttle;

pub use local::check as check_local;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::config::WatchMode;
use crate::error::Failure;
use crate::sys::fanotify::Fanotify;
use crate::tree::{Coherence, Ino, Inspect};
use crate::volume::{ChangeSink, Coverage, Volume};
use batch::Batch;
use directories::Directories;
use mounts::Mounts;
use senders::{Senders, Work};
use throttle::Throttle;

/// Interval between two reads of the queue. Under load, changes of one file are merged meanwhile,
/// and the daemon does not occupy a CPU.
const INTERVAL: Duration = Duration::from_millis(1);

/// Largest read from the queue in bytes: about 800 changes.
const BUFFER: usize = 64 << 10;

/// Largest number of reads whose changes are merged into one batch.
const MOST_READS: usize = 64;

/// The changes of the source that this process makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// Those of the mount alone, which the kernel knows.
    OfTheMount,
    /// Also those of other code, and of other mounts.
    OfOthersToo,
}

/// Watch that is not started yet: changes gather in its queue.
pub struct Watch {
    queue: Arc<Fanotify>,
    end: OwnedFd,
    process: Changes,
}

/// Running watch; it ends when this is dropped.
pub struct Watching(OwnedFd);

impl Drop for Watching {
    fn drop(&mut self) {
        if let Err(err) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            log::error!("watch: ending it: {err}");
        }
    }
}

impl Watch {
    /// Begins to watch the source of a volume, of which this `process` may make changes, too.
    /// `None` when it is not watched.
    ///
    /// # Errors
    /// When it has to be watched and cannot be.
    pub fn of(
        volume: &Volume,
        mode: WatchMode,
        process: Changes,
    ) -> Result<Option<Watch>, Failure> {
        let attempt = match mode {
            WatchMode::Off => Err(String::from("watch=off")),
            _ => local::check(volume.watch_point()).and_then(|()| attempt(volume, mode)),
        };
        let reason = match attempt {
            Ok(queue) => match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
                Ok(end) => return Ok(Some(Watch { queue, end, process })),
                Err(err) => format!("eventfd: {err}"),
            },
            Err(reason) => reason,
        };
        if matches!(mode, WatchMode::On | WatchMode::Directories) {
            return Err(Failure::failed("option `watch`", reason));
        }
        volume.not_watched(reason);
        Ok(None)
    }

    /// Passes changes on to `sink`, in a thread of its own, now that the volume is connected.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        self,
        volume: Arc<Volume>,
        sink: Arc<dyn ChangeSink>,
        source: &Path,
        mountpoint: &Path,
    ) -> Result<Watching, Failure> {
        let failed = |err| Failure::failed("watch", format!("starting it: {err}"));
        volume.try_dropping_names();
        let ended = rustix::io::dup(&self.end).map_err(|err| failed(err.into()))?;
        let mounts = Mounts::below(source);
        let senders = Senders::start(Arc::clone(&volume), sink, mountpoint).map_err(failed)?;
        let run = move || {
            run(&self, &volume, &senders, mounts);
            senders.end();
        };
        thread::Builder::new().name(String::from("watch")).spawn(run).map_err(failed)?;
        Ok(Watching(ended))
    }
}

fn attempt(volume: &Volume, mode: WatchMode) -> Result<Arc<Fanotify>, String> {
    if mode == WatchMode::Directories {
        return by_directory(volume);
    }
    by_filesystem(volume)
        .or_else(|first| by_directory(volume).map_err(|then| format!("{first}; {then}")))
}

fn by_filesystem(volume: &Volume) -> Result<Arc<Fanotify>, String> {
    if !volume.uses_file_handles() {
        return Err(String::from("the source has no file handles, or they cannot be opened"));
    }
    let queue = Fanotify::new(false).map_err(|err| format!("fanotify: {err}"))?;
    queue
        .mark_filesystem(volume.watch_point())
        .map_err(|err| format!("fanotify on the filesystem: {err}"))?;
    volume.watch(Coverage::Filesystem);
    Ok(Arc::new(queue))
}

fn by_directory(volume: &Volume) -> Result<Arc<Fanotify>, String> {
    if volume.root_handle().is_none() {
        return Err(String::from("the source has no file handles"));
    }
    let queue = Fanotify::new(true).map_err(|err| format!("fanotify: {err}"))?;
    let queue = Arc::new(queue);
    let directories = Directories::new(Arc::clone(&queue));
    directories
        .mark(Ino::ROOT, volume.watch_point())
        .map_err(|err| format!("fanotify on directories: {err}"))?;
    volume.watch(Coverage::Directories(Box::new(directories)));
    Ok(queue)
}

fn run(watch: &Watch, volume: &Volume, senders: &Arc<Senders>, mut mounts: Option<Mounts>) {
    let mut buffer = vec![0; BUFFER];
    let mut throttle = Throttle::default();
    let mut pause = None;
    while let Some(mounts_changed) = wait(watch, volume, mounts.as_ref(), pause) {
        let start = Instant::now();
        // The kernel may not know a change at another place where it shows the same file.
        let all = watch.process == Changes::OfOthersToo || volume.shows_twice();
        let mut batch = Batch::new(all);
        let filled = fill(&mut batch, &watch.queue, &mut buffer);
        if let Err(err) = filled {
            log::error!("watch: reading changes: {err}; timeouts are short from now on");
            volume.not_watched(format!("reading changes: {err}"));
            batch.lose();
        }
        // Without file handles only directories are watched, in which others write few files.
        if volume.uses_file_handles() {
            throttle.written(batch.written(), &watch.queue, volume);
        }
        if let Some(mounts) = mounts.as_mut().filter(|_| mounts_changed) {
            senders.note_mounts_inside();
            senders.add(mounts.work(volume));
        }
        senders.add(batch.work(volume));
        senders.add(throttle.work(&watch.queue, volume));
        if filled.is_err() {
            break;
        }
        thread::sleep(INTERVAL.saturating_sub(start.elapsed()));
        pause = senders.attend().into_iter().chain(throttle.pause()).min();
    }
    if volume.watch_state().is_err() {
        // Changes are not reported any more: all cached answers are invalidated.
        senders.add([Work::Everything]);
    }
}

/// Waits for changes. Returns whether the table of mounts has changed; `None` when the watch ends.
fn wait(
    watch: &Watch,
    volume: &Volume,
    mounts: Option<&Mounts>,
    pause: Option<Duration>,
) -> Option<bool> {
    let pause = pause.map(|pause| Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() });
    let mut fds = vec![
        PollFd::new(&watch.end, PollFlags::IN),
        PollFd::from_borrowed_fd(watch.queue.as_fd(), PollFlags::IN),
    ];
    fds.extend(mounts.map(|mounts| PollFd::from_borrowed_fd(mounts.as_fd(), PollFlags::PRI)));
    match poll(&mut fds, pause.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Some(false),
        Err(err) => {
            log::error!("watch: waiting for changes: {err}; timeouts are short from now on");
            volume.not_watched(format!("waiting for changes: {err}"));
            return None;
        }
    }
    let ready = |at: usize, what| fds.get(at).is_some_and(|fd| fd.revents().contains(what));
    (!ready(0, PollFlags::IN)).then(|| ready(2, PollFlags::PRI))
}

fn fill(batch: &mut Batch, queue: &Fanotify, buffer: &mut [u8]) -> Result<(), Errno> {
    for _ in 0..MOST_READS {
        if !queue.read(buffer, |event| batch.add(event))? {
            break;
        }
    }
    Ok(())
}
