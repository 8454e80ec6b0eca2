//! Invalidation of the kernel's caches.
//!
//! A thread that the kernel waits for must never ask it to invalidate: the kernel may wait for
//! a page that this very thread should fill. So handlers leave a note for a thread of its own.

use std::sync::mpsc::{Receiver, Sender, channel};

use fuser::{INodeNo, Notifier};

use crate::error::Failure;
use crate::volume::{Ino, Invalidate};

/// The way to the kernel's caches of one mount.
pub struct KernelCaches {
    notifier: Notifier,
    queue: Sender<Ino>,
}

impl KernelCaches {
    /// Starts the thread, which ends with the value.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(notifier: Notifier) -> Result<KernelCaches, Failure> {
        let (queue, notes) = channel();
        let worker = notifier.clone();
        std::thread::Builder::new()
            .name(String::from("invalidate"))
            .spawn(move || work_off(&worker, &notes))
            .map_err(|err| Failure::failed("invalidate", format!("starting a thread: {err}")))?;
        Ok(KernelCaches { notifier, queue })
    }
}

fn work_off(notifier: &Notifier, notes: &Receiver<Ino>) {
    for ino in notes {
        if let Err(err) = notifier.inval_inode(INodeNo(ino.0), 0, 0) {
            log::debug!("invalidate ino={ino}: {err}");
        }
    }
}

impl Invalidate for KernelCaches {
    fn now(&self, ino: Ino, offset: u64, len: u64) -> std::io::Result<()> {
        let limit = i64::MAX as u64;
        let (offset, len) = (offset.min(limit) as i64, len.min(limit) as i64);
        self.notifier.inval_inode(INodeNo(ino.0), offset, len)
    }

    fn soon(&self, ino: Ino) {
        if self.queue.send(ino).is_err() {
            log::error!("invalidate ino={ino}: the thread has ended");
        }
    }
}
