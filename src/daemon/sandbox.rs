//! Giving away what serving a mount does not need.
//!
//! As root the daemon keeps the capabilities that its requests need, and no way to others: the
//! bounding set is theirs, no_new_privs is set, and nothing can be executed. Landlock takes TCP
//! and signals. Files it does not restrict: a process whose files are restricted by Landlock may
//! not unmount (EPERM), whatever its rules, and what is opened by file handle or in a clone of a
//! mount has no path that a rule could name. A filter of system calls leaves those of
//! `sys/syscalls.rs`.
//!
//! A daemon without privilege keeps what it has: fusermount3, which unmounts for it, needs to be
//! executed with the rights of its owner.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::config::{MountConfig, may_mount};
use crate::control::report::Feature;
use crate::fuse::mount::Mounted;
use crate::sys::{confine, cred};

/// For all mounts: to unmount, lend files to the kernel, watch, and read `trusted.*` and
/// `security.*` (SYS_ADMIN); to reach the source by name and by file handle for callers whose
/// permissions the kernel has checked (DAC_*, FOWNER); to act as the caller (SETUID, SETGID); to
/// find out whether a file is in use elsewhere (LEASE); to lock pages (IPC_LOCK).
const ALWAYS: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::IPC_LOCK);

/// Where something may be changed: for what a privileged caller may do to a file, and the blocks
/// that are reserved for root (SYS_RESOURCE).
const TO_WRITE: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::SYS_RESOURCE);

/// The means that confine the daemon, one entry for each.
pub(super) struct Sandbox {
    /// Whether this process gives anything away; why not otherwise.
    open: Option<&'static str>,
    features: Vec<Feature>,
}

impl Sandbox {
    /// Gives away what the mount will not need. Before any thread is started: rights are those of
    /// a thread, and it hands them on to those that it starts.
    pub(super) fn enter(config: &MountConfig) -> Sandbox {
        let open = match () {
            () if !config.settings.sandbox => Some("sandbox=off"),
            () if !may_mount() || !rustix::process::geteuid().is_root() => {
                Some("fusermount3, which unmounts, needs more rights than this process has")
            }
            () => None,
        };
        let mut sandbox = Sandbox { open, features: Vec::new() };
        if open.is_none() {
            sandbox.features.push(see_callers());
        }
        let permitted = rustix::thread::capabilities(None).map(|sets| sets.permitted);
        let kept = kept(config) & permitted.unwrap_or(CapabilitySet::empty());
        sandbox.add("least_capabilities", || drop_capabilities(kept), &names(kept));
        let no_more = || rustix::thread::set_no_new_privs(true);
        sandbox.add("no_new_privs", no_more, "no program gives more rights");
        sandbox.add_landlock();
        sandbox
    }

    /// Closes it: no system call from here on but those that serving takes. Once the mount is
    /// made, on all threads.
    pub(super) fn close(mut self, mounted: &Mounted) -> Vec<Feature> {
        if mounted.needs_fusermount() {
            self.open = Some("fusermount3, which made the mount, has to be executed to unmount");
        }
        let count = confine::allowed_system_calls().len();
        let what = format!("{count} system calls, all others fail with EPERM");
        self.add("seccomp", confine::filter_system_calls, &what);
        self.features
    }

    fn add_landlock(&mut self) {
        let abstract_sockets = std::env::var_os("NOTIFY_SOCKET")
            .is_some_and(|socket| socket.as_encoded_bytes().starts_with(b"@"));
        let version = confine::landlock_version();
        let what = match version {
            Ok(version) => format!("version {version}: no TCP, no signals to others"),
            Err(_) => String::new(),
        };
        let take = || match version? {
            version @ confine::LANDLOCK_WITH_NETWORK.. => {
                confine::take_network(version, abstract_sockets)
            }
            _ => Err(Errno::OPNOTSUPP),
        };
        self.add("landlock", take, &what);
    }

    /// Does one thing, and notes what is in force or why it is not.
    fn add(&mut self, name: &str, give: impl FnOnce() -> Result<(), Errno>, what: &str) {
        let given = match self.open {
            Some(reason) => Err(String::from(reason)),
            None => give().map_err(|errno| match errno {
                Errno::NOSYS | Errno::OPNOTSUPP => String::from("this kernel does not have it"),
                errno => {
                    let error = std::io::Error::from(errno);
                    log::warn!("sandbox: {name}: {error}");
                    error.to_string()
                }
            }),
        };
        let (in_use, reason) = match given {
            Ok(()) => (true, what.to_owned()),
            Err(reason) => (false, reason),
        };
        self.features.push(Feature { name: name.to_owned(), in_use, reason: Some(reason) });
    }
}

/// Sees to it that the groups of callers are known. Landlock hides processes from this one where
/// /proc is mounted with hidepid=, whatever capabilities it has.
fn see_callers() -> Feature {
    let seen = cred::see_all_processes();
    let reason = match &seen {
        Ok(()) => String::from("read in a /proc of the daemon's own, which hides none (hidepid=)"),
        Err(errno) => format!("read in /proc, which may hide processes: {errno}"),
    };
    Feature { name: String::from("caller_groups"), in_use: seen.is_ok(), reason: Some(reason) }
}

fn kept(config: &MountConfig) -> CapabilitySet {
    // New rules may let paths be written that may not be now.
    let may_write =
        config.mode.writable() || config.scratch.is_some() || config.rules_file.is_some();
    if may_write { ALWAYS | TO_WRITE } else { ALWAYS }
}

fn names(kept: CapabilitySet) -> String {
    let names = kept.iter_names().map(|(name, _)| name.to_ascii_lowercase());
    names.collect::<Vec<_>>().join(" ")
}

/// The last capability that kernels may know: the sets have 64 bits.
const LAST: u32 = 63;

fn drop_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let known = (0..=LAST).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in known.filter(|capability| !kept.contains(*capability)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A number that this kernel does not know.
            Ok(()) | Err(Errno::INVAL) => {}
            // Without CAP_SETPCAP nobody is given what is not permitted: no_new_privs is set.
            Err(Errno::PERM) => break,
            Err(errno) => return Err(errno),
        }
    }
    let now = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    // Without inheritable ones there are no ambient ones.
    rustix::thread::set_capabilities(None, sets)
}
