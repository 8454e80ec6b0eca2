//! Invalidation of the kernel's caches.
//!
//! A thread that the kernel waits for must never ask it to invalidate: the kernel may wait for
//! a page that this very thread should fill. So handlers leave a note for threads of its own.
//!
//! The messages are written here and not by fuser, which keeps to itself whether the kernel knew
//! the inode, and does not have all of them.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use crate::error::Failure;
use crate::tree::{Ino, Invalidate};

// enum fuse_notify_code of linux/fuse.h.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const INC_EPOCH: i32 = 8;

/// The flag of struct fuse_notify_inval_entry_out by which a name is looked up anew, and what is
/// mounted there stays until that leads elsewhere; without effect before Linux 6.2.
const EXPIRE_ONLY: u32 = 1;

/// The length of struct fuse_out_header.
const HEADER: usize = 16;

/// Writes messages to the kernel that answer no request.
struct Channel(OwnedFd);

impl Channel {
    fn send(&self, code: i32, body: &[u8], name: Option<&OsStr>) -> Result<(), Errno> {
        let name = name.map_or(&[][..], OsStr::as_bytes);
        let end: &[u8] = if name.is_empty() { b"" } else { b"\0" };
        let len = HEADER + body.len() + name.len() + end.len();
        let mut header = [0; HEADER];
        for (field, value) in header.chunks_exact_mut(4).zip([len as u32, code as u32]) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        let parts = [&header, body, name, end].map(IoSlice::new);
        rustix::io::writev(&self.0, &parts).map(drop)
    }

    /// The range of struct fuse_notify_inval_inode_out: an offset below 0 is attributes only, a
    /// length of 0 is to the end.
    fn inode(&self, ino: Ino, offset: i64, len: i64) -> Result<(), Errno> {
        let body = [ino.0.to_ne_bytes(), offset.to_ne_bytes(), len.to_ne_bytes()];
        self.send(INVAL_INODE, body.as_flattened(), None)
    }

    fn entry(&self, parent: Ino, name: &OsStr, flags: u32) -> Result<(), Errno> {
        let len = u32::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        let mut body = [0; 16]; // struct fuse_notify_inval_entry_out: parent, length, flags.
        body[..8].copy_from_slice(&parent.0.to_ne_bytes());
        body[8..12].copy_from_slice(&len.to_ne_bytes());
        body[12..].copy_from_slice(&flags.to_ne_bytes());
        self.send(INVAL_ENTRY, &body, Some(name))
    }
}

/// The most invalidations that may wait at a time, each for the request under way on its file.
const MOST_THREADS: usize = 8;

/// The files to invalidate, each once, so that there are never more than the kernel knows.
#[derive(Default)]
struct Notes {
    order: VecDeque<Ino>,
    waiting: HashSet<Ino>,
    threads: usize,
    /// The threads that have nothing to do.
    idle: usize,
    ended: bool,
}

struct Shared {
    channel: Channel,
    notes: Mutex<Notes>,
    noted: Condvar,
}

/// The way to the kernel's caches of one mount.
pub struct KernelCaches(Arc<Shared>);

impl KernelCaches {
    /// Starts a thread, which ends with the value. `device` is the connection to the kernel.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(device: OwnedFd) -> Result<KernelCaches, Failure> {
        let shared = Arc::new(Shared {
            channel: Channel(device),
            notes: Mutex::default(),
            noted: Condvar::new(),
        });
        Shared::start_thread(&shared, &mut shared.notes.lock())
            .map_err(|err| Failure::failed("invalidate", format!("starting a thread: {err}")))?;
        Ok(KernelCaches(shared))
    }
}

impl Shared {
    fn start_thread(shared: &Arc<Shared>, notes: &mut Notes) -> std::io::Result<()> {
        let own = Arc::clone(shared);
        let run = move || own.work_off();
        std::thread::Builder::new().name(String::from("invalidate")).spawn(run)?;
        notes.threads += 1;
        Ok(())
    }

    fn work_off(&self) {
        let mut notes = self.notes.lock();
        while !notes.ended {
            let Some(ino) = notes.order.pop_front() else {
                notes.idle += 1;
                self.noted.wait(&mut notes);
                notes.idle -= 1;
                continue;
            };
            // Noted again from here on, it is done again.
            notes.waiting.remove(&ino);
            drop(notes);
            if let Err(err) = self.channel.inode(ino, 0, 0) {
                log::debug!("invalidate ino={ino}: {err}");
            }
            notes = self.notes.lock();
        }
    }
}

impl Drop for KernelCaches {
    fn drop(&mut self) {
        self.0.notes.lock().ended = true;
        self.0.noted.notify_all();
    }
}

/// Nothing is cached of what is not known.
fn known(result: Result<(), Errno>) -> Result<(), Errno> {
    if result == Err(Errno::NOENT) { Ok(()) } else { result }
}

impl Invalidate for KernelCaches {
    fn now(&self, ino: Ino, offset: u64, len: u64) -> std::io::Result<()> {
        let limit = i64::MAX as u64;
        let (offset, len) = (offset.min(limit) as i64, len.min(limit) as i64);
        Ok(known(self.0.channel.inode(ino, offset, len))?)
    }

    fn soon(&self, ino: Ino) {
        let mut notes = self.0.notes.lock();
        if !notes.waiting.insert(ino) {
            return;
        }
        notes.order.push_back(ino);
        let crowded = notes.order.len() > notes.idle && notes.threads < MOST_THREADS;
        if crowded && let Err(err) = Shared::start_thread(&self.0, &mut notes) {
            log::debug!("invalidate: starting a thread: {err}");
        }
        drop(notes);
        self.0.noted.notify_one();
    }

    fn entry(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        known(self.0.channel.entry(parent, name, 0))
    }

    fn expire(&self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        known(self.0.channel.entry(parent, name, EXPIRE_ONLY))
    }

    fn inode(&self, ino: Ino, data: bool) -> Result<(), Errno> {
        self.0.channel.inode(ino, if data { 0 } else { -1 }, 0)
    }

    fn names(&self) -> Result<(), Errno> {
        self.0.channel.send(INC_EPOCH, &[], None)
    }
}
