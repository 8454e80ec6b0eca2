//! Read leases (fcntl(2), F_SETLEASE with F_RDLCK): the kernel sends a signal to the holder before
//! a process opens the file for writing or truncates it. That process waits until the lease is
//! given back, for [`break_time`] at most.
//!
//! The thread that gets the signals holds a [`Breaks`]: they are sent to it alone and blocked in
//! it, so no other thread of the process sees one.

#![allow(unsafe_code)]
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::file::F_SETSIG;
use super::{check, last_errno};

/// F_SETOWN_EX and its kind of owner, of asm-generic/fcntl.h.
const F_SETOWN_EX: libc::c_int = 15;
const F_OWNER_TID: libc::c_int = 0;

/// struct f_owner_ex of asm-generic/fcntl.h.
#[repr(C)]
struct Owner {
    kind: libc::c_int,
    pid: libc::pid_t,
}

/// Thread that gets the signals of lease breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeper(libc::pid_t);

/// Signal of a lease break.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Takes a read lease on a file that is open for reading only, which is given back when the last
/// descriptor of it is closed.
///
/// # Errors
/// EAGAIN while the file is open for writing; EACCES for files of other users without CAP_LEASE;
/// EINVAL if the filesystem has no leases.
pub fn take(file: impl AsFd, keeper: Keeper) -> Result<(), Errno> {
    let fd = file.as_fd().as_raw_fd();
    let owner = Owner { kind: F_OWNER_TID, pid: keeper.0 };
    // SAFETY: the call reads one `f_owner_ex`, which outlives it.
    check(unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) })?;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::fcntl(fd, F_SETSIG, signal()) })?;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) })
}

/// Gives a lease back. No lease is not an error.
pub fn give_back(file: impl AsFd) {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the call takes numbers only.
    match check(unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) }) {
        Ok(()) | Err(Errno::AGAIN) => {} // The latter when there is none.
        Err(err) => log::error!("lease: giving it back: {err}"),
    }
}

/// Whether a lease is held and no process waits for it.
pub fn is_held(file: impl AsFd) -> bool {
    // SAFETY: the call takes numbers only.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}

/// Whether a lease on a file binds all writers: only this kernel can change its filesystem, which
/// is one of a list of local filesystems (magic numbers of linux/magic.h). Files on FUSE and
/// network filesystems may have writers without this kernel.
pub fn binds_everybody(file: impl AsFd) -> bool {
    /// ext2 to ext4, XFS, btrfs, tmpfs, f2fs, bcachefs, JFS, overlayfs, FAT, exFAT, NTFS (ntfs3).
    const LOCAL: [u64; 11] = [
        0xef53,
        0x5846_5342,
        0x9123_683e,
        0x0102_1994,
        0xf2f5_2010,
        0xca45_1a4e,
        0x3153_464a,
        0x794c_7630,
        0x4d44,
        0x2011_bab0,
        0x7366_746e,
    ];
    rustix::fs::fstatfs(file)
        .is_ok_and(|found| LOCAL.contains(&(found.f_type as u64 & 0xffff_ffff)))
}

/// Time after which the kernel breaks a lease that a process waits for.
pub fn break_time() -> Duration {
    const DEFAULT: u64 = 45;
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap_or_default();
    Duration::from_secs(text.trim().parse().unwrap_or(DEFAULT))
}

/// Lease that a process waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Lease of this descriptor, or of an earlier one with the same number.
    File(RawFd),
    /// Unknown leases: the queue of signals was full.
    Any,
}

/// The end of [`Breaks`] for other threads.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// Makes [`Breaks::wait`] return `None`.
    pub fn stop(&self) {
        if let Err(err) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            log::error!("lease: ending the thread: {err}");
        }
    }
}

/// Lease breaks that are sent to the thread that made it.
#[derive(Debug)]
pub struct Breaks {
    signals: OwnedFd,
    stop: OwnedFd,
    keeper: Keeper,
}

impl Breaks {
    /// Makes the calling thread the receiver of lease breaks. The same thread has to wait for them.
    ///
    /// # Errors
    /// Errors of sigprocmask(2), signalfd(2) and eventfd(2).
    pub fn of_this_thread() -> Result<Breaks, Errno> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the call makes the set that the pointer leads to.
        check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
        // SAFETY: sigemptyset(3) has succeeded.
        let mut set = unsafe { set.assume_init() };
        for signal in [signal(), libc::SIGIO] {
            // SAFETY: the pointer leads to a set that is there.
            check(unsafe { libc::sigaddset(&raw mut set, signal) })?;
        }
        // SAFETY: the set outlives the call; the old mask is not asked for.
        let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        if failed != 0 {
            return Err(Errno::from_raw_os_error(failed));
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set outlives the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(last_errno());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let signals = unsafe { OwnedFd::from_raw_fd(fd) };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let keeper = Keeper(rustix::thread::gettid().as_raw_nonzero().get());
        Ok(Breaks { signals, stop, keeper })
    }

    /// The thread, for [`take`].
    pub fn keeper(&self) -> Keeper {
        self.keeper
    }

    /// Returns a value that ends [`Breaks::wait`].
    ///
    /// # Errors
    /// Errors of dup(2).
    pub fn stop(&self) -> Result<Stop, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.stop, 0).map(Stop)
    }

    /// Waits for lease breaks, and returns the leases; `None` after [`Stop::stop`].
    ///
    /// # Errors
    /// Errors of poll(2) and read(2).
    pub fn wait(&self) -> Result<Option<Vec<Asked>>, Errno> {
        let mut fds =
            [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let [stop, _] = &fds;
        if stop.revents().contains(PollFlags::IN) {
            return Ok(None);
        }
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        const FD: usize = std::mem::offset_of!(libc::signalfd_siginfo, ssi_fd);
        let mut buffer = [0; 64 * SIZE];
        let len = match rustix::io::retry_on_intr(|| rustix::io::read(&self.signals, &mut buffer)) {
            Err(Errno::AGAIN) => 0,
            len => len?,
        };
        let word = |info: &[u8], at: usize| {
            let bytes = info.get(at..).and_then(|rest| rest.first_chunk());
            i32::from_ne_bytes(bytes.copied().unwrap_or_default())
        };
        let asked = buffer.get(..len).unwrap_or_default().chunks_exact(SIZE).map(|info| {
            // The number of the signal is the first field.
            match word(info, 0) == signal() {
                true => Asked::File(word(info, FD)),
                false => Asked::Any,
            }
        });
        Ok(Some(asked.collect()))
    }
}

#[cfg(test)]
mod tests;
