//! Acting as the caller of a request, on one thread.
//!
//! An object that a caller creates must belong to that caller from its first moment, and a setgid
//! bit must be cleared if the caller is not in the group. The kernel does both by the credentials
//! of the thread that makes the call: its filesystem user and group, its groups, and CAP_FSETID.
//! glibc changes those of all threads at once, so the system calls are made directly.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, UnshareFlags};

use super::{check, last_errno};

#[cfg(test)]
mod tests;

/// User, group and process of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user.
    pub uid: u32,
    /// Filesystem group.
    pub gid: u32,
    /// Process id; 0 if it is in another PID namespace.
    pub pid: u32,
}

impl Caller {
    /// Whether it is a member of a group.
    pub fn is_in_group(&self, group: u32) -> bool {
        self.gid == group
            || supplementary_groups(self.pid).is_some_and(|groups| groups.contains(&group))
    }
}

/// Capabilities that writes for a caller must not use: to exceed quotas, and to take blocks that
/// are reserved for root.
const NOT_TO_WRITE: CapabilitySet = CapabilitySet::SYS_RESOURCE;

/// The same for changes that clear setgid bits, which CAP_FSETID keeps.
const NOT_TO_MAKE: CapabilitySet = NOT_TO_WRITE.union(CapabilitySet::FSETID);

/// This thread has the caller's credentials until the value is dropped, on the same thread:
///
/// ```compile_fail,E0277
/// fn send<T: Send>() {}
/// send::<mmapfs::sys::cred::AsCaller>();
/// ```
///
/// Threads that it starts meanwhile have them too, and keep them.
#[derive(Debug)]
pub struct AsCaller {
    /// The thread's own filesystem user and group, where they were changed.
    ids: Option<(u32, u32)>,
    capabilities: CapabilitySets,
    groups: Option<Vec<Gid>>,
    /// Credentials belong to the thread.
    _here: PhantomData<*mut ()>,
}

impl AsCaller {
    /// Takes on the caller's filesystem user and group, and its supplementary groups if
    /// `with_groups` (none if /proc does not show them: fewer rights, never more). `None` if there
    /// is nothing to change: the caller is this user, or the daemon may not change its user.
    ///
    /// # Errors
    /// Errors of capget(2) and setgroups(2); EPERM when the kernel refuses the user or group.
    pub fn enter(caller: &Caller, with_groups: bool) -> Result<Option<AsCaller>, Errno> {
        AsCaller::enter_without(caller, with_groups, NOT_TO_MAKE)
    }

    /// As [`AsCaller::enter`], for a write to a file whose setuid and setgid bits are right: they
    /// stay, independent of the caller's groups.
    ///
    /// # Errors
    /// As [`AsCaller::enter`].
    pub fn enter_to_write(caller: &Caller) -> Result<Option<AsCaller>, Errno> {
        AsCaller::enter_without(caller, false, NOT_TO_WRITE)
    }

    /// As [`AsCaller::enter`], for the registration of a backing file, which the kernel then writes
    /// with these credentials for all writers. CAP_FSETID is dropped for every caller, so that the
    /// first write clears the setuid and setgid bits.
    ///
    /// # Errors
    /// As [`AsCaller::enter`].
    pub fn enter_to_lend(caller: &Caller) -> Result<Option<AsCaller>, Errno> {
        let entered = AsCaller::enter_without(caller, false, NOT_TO_MAKE)?;
        let mut lowered = rustix::thread::capabilities(None)?;
        if !lowered.effective.contains(CapabilitySet::FSETID) {
            return Ok(entered);
        }
        let as_it_is =
            || AsCaller { ids: None, capabilities: lowered, groups: None, _here: PhantomData };
        let entered = entered.unwrap_or_else(as_it_is);
        lowered.effective.remove(CapabilitySet::FSETID);
        rustix::thread::set_capabilities(None, lowered)?;
        Ok(Some(entered))
    }

    fn enter_without(
        caller: &Caller,
        with_groups: bool,
        dropped: CapabilitySet,
    ) -> Result<Option<AsCaller>, Errno> {
        let (uid, gid) = effective_ids();
        if (uid, gid) == (caller.uid, caller.gid) {
            return Ok(None);
        }
        let capabilities = rustix::thread::capabilities(None)?;
        if !capabilities.effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
            return Ok(None);
        }
        let ids = Some((uid, gid));
        let mut entered = AsCaller { ids, capabilities, groups: None, _here: PhantomData };
        if with_groups {
            entered.take_groups(caller)?;
        }
        set_fs_group(caller.gid);
        set_fs_user(caller.uid);
        if (fs_user(), fs_group()) != (caller.uid, caller.gid) {
            return Err(Errno::PERM);
        }
        if caller.uid != 0 {
            // The change of the filesystem user has dropped the capabilities over files
            // (CAP_FS_MASK). They are restored: the kernel has checked the request's permissions.
            let mut raised = capabilities;
            raised.effective.remove(dropped);
            rustix::thread::set_capabilities(None, raised)?;
        }
        Ok(Some(entered))
    }

    fn take_groups(&mut self, caller: &Caller) -> Result<(), Errno> {
        let groups = supplementary_groups(caller.pid).unwrap_or_default();
        self.groups = Some(rustix::process::getgroups()?);
        set_groups(&groups)
    }
}

impl Drop for AsCaller {
    fn drop(&mut self) {
        let mut restored = self.ids.is_none_or(|(uid, gid)| {
            set_fs_user(uid);
            set_fs_group(gid);
            (fs_user(), fs_group()) == (uid, gid)
        });
        restored &= rustix::thread::set_capabilities(None, self.capabilities).is_ok();
        if let Some(groups) = &self.groups {
            let groups: Vec<_> = groups.iter().map(|group| group.as_raw()).collect();
            restored &= set_groups(&groups).is_ok();
        }
        if !restored {
            log::error!("credentials: a thread cannot take its own back; ending rather than go on");
            std::process::abort();
        }
    }
}

fn effective_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Id that no user and no group has: the kernel refuses it, and returns the present one.
const NOBODY: u32 = u32::MAX;

fn set_fs_user(uid: u32) -> u32 {
    // SAFETY: the call takes a number and changes only this thread's credentials.
    let previous = unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    previous as u32
}

fn set_fs_group(gid: u32) -> u32 {
    // SAFETY: the call takes a number and changes only this thread's credentials.
    let previous = unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    previous as u32
}

fn fs_user() -> u32 {
    set_fs_user(NOBODY)
}

fn fs_group() -> u32 {
    set_fs_group(NOBODY)
}

fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many numbers as it is told, and they outlive the call. The
    // system call changes this thread's groups only.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Private /proc of this process, once it is mounted.
static PROC: OnceLock<OwnedFd> = OnceLock::new();

/// Mounts a private /proc, which hides no process (hidepid=), and reads it from now on. Needs
/// CAP_SYS_ADMIN for this call only.
///
/// # Errors
/// As [`super::detached::mount_proc`].
pub fn see_all_processes() -> Result<(), Errno> {
    if PROC.get().is_none() {
        // Another thread may have set it meanwhile.
        let _ = PROC.set(super::detached::mount_proc()?);
    }
    Ok(())
}

/// Supplementary groups of a process, from /proc.
pub fn supplementary_groups(pid: u32) -> Option<Vec<u32>> {
    let status = match PROC.get() {
        Some(proc) => {
            let path = format!("{pid}/status");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = rustix::fs::openat(proc, path, flags, Mode::empty()).ok()?;
            std::io::read_to_string(std::fs::File::from(file)).ok()?
        }
        None => std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
    };
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
    line.split_whitespace().map(|group| group.parse().ok()).collect()
}

thread_local! {
    /// The umask of this thread, once it has one of its own.
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Sets the umask of this thread only. Threads share it until one asks for its own.
///
/// # Errors
/// Errors of unshare(2).
pub fn set_thread_umask(mask: u32) -> Result<(), Errno> {
    let present = UMASK.get();
    if present == Some(mask) {
        return Ok(());
    }
    if present.is_none() {
        unshare_fs()?;
    }
    rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    UMASK.set(Some(mask));
    Ok(())
}

fn unshare_fs() -> Result<(), Errno> {
    let flags = UnshareFlags::FS.bits() as libc::c_int;
    // SAFETY: CLONE_FS only gives this thread its own umask, root and working directory.
    check(unsafe { libc::unshare(flags) })
}

/// Whether a capability, by its number, is in effect for this thread.
pub fn has_capability(number: u32) -> bool {
    let bit = 1_u64.checked_shl(number).unwrap_or(0);
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.bits() & bit != 0)
}
