//! The plane of each open inode: the side that moves the bytes of an open file, kernel or daemon.
//!
//! The kernel uses one I/O mode for an inode at a time: while a file is open in one mode, an open
//! in the other fails with EIO (fs/fuse/iomode.c). So the first open of an inode chooses the plane,
//! and every later one follows. The kernel ends a mode before it sends the release, so the number
//! of opens here is never smaller than the kernel's. Only a client's mapping of a passthrough file
//! outlives all opens, and reaches the backing file: such a file is registered again while the
//! backing file is open or mapped elsewhere.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::Volume;
use super::stat::stat_of;
use crate::flags::{MapMode, PlaneChoice};
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};
use crate::tree::{BackingRegistration, Ino, Passthrough, Plane, RegisterBacking, Stat, WhyMapped};

/// Filesystems on top of others, whose backing files need one more stacking level (linux/magic.h):
/// overlayfs, ecryptfs, and FUSE, which may use passthrough itself.
const STACKED: [u64; 3] = [0x794c_7630, 0xf15f, 0x6573_5546];

/// The planes of what is open.
pub struct PlaneTable {
    slots: Mutex<HashMap<Ino, Slot>>,
    /// Why no file is handed to the kernel; `None` while some may be.
    closed: RwLock<Option<String>>,
    /// Odd while a lease is held to find out whether another process uses a file.
    probes: AtomicU64,
    probing: Mutex<()>,
}

/// The plane of one inode, with the opens that hold it.
#[derive(Default)]
struct Slot {
    opens: u64,
    plane: Arc<OnceLock<Plane>>,
}

/// One open of an inode; its plane stays while one is left.
pub struct Hold {
    planes: Arc<PlaneTable>,
    ino: Ino,
}

/// The facts that decide about the plane of a file at its first open.
pub struct Candidate<'a> {
    /// The inode in the mount.
    pub ino: Ino,
    /// It was registered before: a client may still map it, though all descriptors are closed.
    pub lent: &'a AtomicBool,
    /// Reason why it must not be registered, see [`Open::unlent`](crate::tree::Open::unlent).
    pub unlent: Option<WhyMapped>,
    /// The mode of its view.
    pub mode: &'a MapMode,
    /// The backing file.
    pub file: BorrowedFd<'a>,
    /// Its attributes, if they were just read.
    pub stat: Option<&'a Stat>,
    /// Opens it again for reading, if another descriptor than `file` is to be registered.
    pub reader: &'a dyn Fn() -> Option<OwnedFd>,
    /// The caller that opens it.
    pub caller: &'a Caller,
    /// Registers it with the kernel.
    pub register: &'a RegisterBacking<'a>,
}

impl PlaneTable {
    /// No planes yet, and no passthrough until [`PlaneTable::set_closed`] allows it.
    pub fn new() -> Arc<PlaneTable> {
        let closed = RwLock::new(Some(String::from("there is no session with the kernel yet")));
        Arc::new(PlaneTable {
            slots: Mutex::default(),
            closed,
            probes: AtomicU64::new(0),
            probing: Mutex::new(()),
        })
    }

    /// Sets the reason why no file has passthrough; `None` allows it. It applies to later opens.
    pub fn set_closed(&self, reason: Option<String>) {
        *self.closed.write() = reason;
    }

    /// Reason why no file has passthrough; `None` if some may.
    pub fn closed(&self) -> Option<String> {
        self.closed.read().clone()
    }

    /// The plane of an inode that is open.
    pub fn of(&self, ino: Ino) -> Option<Plane> {
        self.slots.lock().get(&ino)?.plane.get().cloned()
    }

    /// Counts one more open of an inode and chooses its plane if it is the first.
    pub fn hold(self: &Arc<PlaneTable>, candidate: &Candidate<'_>) -> (Hold, Plane) {
        let ino = candidate.ino;
        let chosen = {
            let mut slots = self.slots.lock();
            let slot = slots.entry(ino).or_default();
            slot.opens += 1;
            Arc::clone(&slot.plane)
        };
        let hold = Hold { planes: Arc::clone(self), ino };
        let plane = chosen.get_or_init(|| self.choose(candidate)).clone();
        (hold, plane)
    }

    fn choose(&self, candidate: &Candidate<'_>) -> Plane {
        if let Some(reason) = candidate.unlent {
            return Plane::Mapped(reason);
        }
        let lent = candidate.lent;
        if let Some(reason) = self.why_all_mapped(candidate.mode)
            && !lent.load(Ordering::Acquire)
        {
            return Plane::Mapped(reason);
        }
        let stat = match candidate.stat.map_or_else(|| stat_of(candidate.file), |stat| Ok(*stat)) {
            Ok(stat) => stat,
            Err(err) => return Plane::Mapped(WhyMapped::Refused(err)),
        };
        let may_be_mapped =
            || lent.load(Ordering::Acquire) && self.is_in_use_elsewhere(candidate.file);
        match self.why_mapped(candidate.mode, &stat) {
            Some(reason) if reason == WhyMapped::AppendOnly || !may_be_mapped() => {
                lent.store(false, Ordering::Release);
                Plane::Mapped(reason)
            }
            _ => match self.register(candidate, &stat) {
                Ok(id) => {
                    lent.store(true, Ordering::Release);
                    Plane::Passthrough(id)
                }
                Err(err) => Plane::Mapped(WhyMapped::Refused(err)),
            },
        }
    }

    fn is_in_use_elsewhere(&self, file: BorrowedFd<'_>) -> bool {
        let _one_at_a_time = self.probing.lock();
        !self.probe(|| sys::file::is_only_open(file))
    }

    /// Runs `probe`, which takes a lease for a moment, with `probing` locked.
    fn probe(&self, probe: impl FnOnce() -> bool) -> bool {
        self.probes.fetch_add(1, Ordering::AcqRel);
        let result = probe();
        self.probes.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// Clears `stored_to` if no process has the file open or mapped for writing. `opened` says
    /// whether clients have it open, by [`PlaneTable::note_writer`]. `file` is open for reading.
    pub(super) fn note_unwritten(
        &self,
        file: BorrowedFd<'_>,
        stored_to: &AtomicBool,
        opened: impl Fn() -> bool,
    ) {
        let _one_at_a_time = self.probing.lock();
        if !opened() && self.probe(|| sys::file::is_unwritten(file)) {
            stored_to.store(false, Ordering::SeqCst);
        }
    }

    /// Notes that a file is registered for a client that may write. The caller has counted the
    /// open. The kernel opens the backing file afterwards, and must not meet a lease of the daemon:
    /// an open that does not wait would fail with EIO.
    pub(super) fn note_writer(&self, stored_to: &AtomicBool) {
        let _not_while_one_is_tried = self.probing.lock();
        stored_to.store(true, Ordering::SeqCst);
    }

    /// Opens a file, and tries again if it met a lease of this daemon.
    pub fn past_probes<T>(&self, open: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        loop {
            let before = self.probes.load(Ordering::Acquire);
            match open() {
                Err(Errno::AGAIN)
                    if before % 2 == 1 || before != self.probes.load(Ordering::Acquire) => {}
                result => return result,
            }
        }
    }

    /// Reason why no file of this mode has passthrough.
    fn why_all_mapped(&self, mode: &MapMode) -> Option<WhyMapped> {
        if self.closed.read().is_some() {
            return Some(WhyMapped::Mount);
        }
        match mode.plane {
            PlaneChoice::Mapped => Some(WhyMapped::Chosen),
            PlaneChoice::Auto if mode.asks_for_mapping() => Some(WhyMapped::NeedsMapping),
            PlaneChoice::Auto | PlaneChoice::Passthrough => None,
        }
    }

    /// Reason why a file of this mode with these attributes has no passthrough.
    pub fn why_mapped(&self, mode: &MapMode, stat: &Stat) -> Option<WhyMapped> {
        let set_id = stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        match self.why_all_mapped(mode) {
            Some(reason) => Some(reason),
            None if stat.append_only => Some(WhyMapped::AppendOnly),
            None if set_id && mode.plane == PlaneChoice::Auto => Some(WhyMapped::SetId),
            None => None,
        }
    }

    fn register(
        &self,
        candidate: &Candidate<'_>,
        stat: &Stat,
    ) -> Result<BackingRegistration, Errno> {
        let reader = (candidate.reader)();
        let file = reader.as_ref().map_or(candidate.file, |reader| reader.as_fd());
        let _credentials = AsCaller::enter_to_lend(&writer_of(candidate.caller, stat))?;
        (candidate.register)(file).map_err(|err| {
            let errno = Errno::from_io_error(&err).unwrap_or(Errno::IO);
            if errno == Errno::PERM {
                self.set_closed(Some(String::from("the kernel refused: it wants CAP_SYS_ADMIN")));
            }
            errno
        })
    }
}

/// Credentials with which the kernel allocates blocks for all writers of a passthrough file: those
/// of the first opener. They are root's only if no other user may write the file, since every
/// writer would get the blocks that are reserved for root. They have no group: the setgid bit of a
/// file that its group cannot execute stays for a member alone.
fn writer_of(caller: &Caller, stat: &Stat) -> Caller {
    let others_write = stat.uid != 0 || stat.mode & (libc::S_IWGRP | libc::S_IWOTH) != 0;
    let uid = match (caller.uid, stat.uid) {
        (0, _) if !others_write => return *caller,
        (0, 0) => UNUSED,
        (0, owner) => owner,
        (user, _) => user,
    };
    Caller { uid, gid: UNUSED, pid: 0 }
}

/// Id that no user and no group has, and that no filesystem reserves blocks for. The id of "nobody"
/// (65,534) may be in use.
const UNUSED: u32 = 0xffff_fff0;

impl Passthrough for Volume {
    fn source_is_stacked(&self) -> bool {
        let kind = rustix::fs::fstatfs(&**self.devices.source()).map(|stat| stat.f_type as u64);
        kind.is_ok_and(|kind| STACKED.contains(&kind))
    }

    fn close_passthrough(&self, reason: Option<String>) {
        self.planes.set_closed(reason);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut slots = self.planes.slots.lock();
        let last = slots.get_mut(&self.ino).is_some_and(|slot| {
            slot.opens = slot.opens.saturating_sub(1);
            slot.opens == 0
        });
        // Removed under the lock, and closed after it is unlocked.
        let ended = if last { slots.remove(&self.ino) } else { None };
        drop(slots);
        drop(ended);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;

    use super::*;
    use crate::flags::ViewOptions;

    /// Lends whatever it is given.
    fn register(_: BorrowedFd<'_>) -> io::Result<BackingRegistration> {
        Ok(Arc::new(()))
    }

    #[test]
    fn what_must_not_be_lent_is_mapped_for_as_long_as_it_is_open() {
        let file = File::open("/proc/self/exe").unwrap();
        let mode = ViewOptions::default().resolve().unwrap();
        let caller = Caller { uid: rustix::process::geteuid().as_raw(), gid: 0, pid: 0 };
        let lent = AtomicBool::new(false);
        let candidate = |unlent| Candidate {
            ino: Ino(2),
            lent: &lent,
            unlent,
            mode: &mode,
            stat: None,
            file: file.as_fd(),
            reader: &|| None,
            caller: &caller,
            register: &register,
        };
        let planes = PlaneTable::new();
        planes.set_closed(None);
        let mapped = |plane: &Plane| matches!(plane, Plane::Mapped(WhyMapped::Merged));

        let (first, plane) = planes.hold(&candidate(Some(WhyMapped::Merged)));
        assert!(mapped(&plane));
        let (second, plane) = planes.hold(&candidate(None));
        assert!(mapped(&plane));
        drop((first, second));
        assert!(!lent.load(Ordering::Acquire));

        // One that is lent stays so.
        let (_first, plane) = planes.hold(&candidate(None));
        assert!(matches!(plane, Plane::Passthrough(_)));
        let (_second, plane) = planes.hold(&candidate(Some(WhyMapped::Merged)));
        assert!(matches!(plane, Plane::Passthrough(_)));
    }
}
