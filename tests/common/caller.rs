//! Calls made with other credentials.
//!
//! The kernel keeps user, groups and umask per thread, so a caller is a thread of this process:
//! results come back as values.

use std::panic::resume_unwind;

use rustix::fs::{Gid, Mode, Uid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Who makes a call. Needs root to become somebody else.
#[derive(Clone)]
pub struct Caller {
    user: u32,
    group: u32,
    groups: Vec<u32>,
    umask: u32,
}

impl Caller {
    /// A user with one group of the same number, and umask 022.
    pub fn new(user: u32) -> Caller {
        Caller { user, group: user, groups: Vec::new(), umask: 0o022 }
    }

    /// With this group instead.
    pub fn group(mut self, group: u32) -> Caller {
        self.group = group;
        self
    }

    /// With these supplementary groups.
    pub fn groups(mut self, groups: &[u32]) -> Caller {
        self.groups = groups.to_vec();
        self
    }

    /// With this umask.
    pub fn umask(mut self, umask: u32) -> Caller {
        self.umask = umask;
        self
    }

    /// Runs `calls` as this caller.
    pub fn run<T: Send>(&self, calls: impl FnOnce() -> T + Send) -> T {
        let become_caller = || {
            // The deprecation is about CLONE_FILES, which can take descriptors from under other
            // threads. CLONE_FS only gives this thread a umask and working directory of its own.
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::FS).unwrap();
            rustix::process::umask(Mode::from_raw_mode(self.umask));
            if !rustix::process::geteuid().is_root() {
                return;
            }
            let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
            set_thread_groups(&groups).unwrap();
            let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                become_caller();
                calls()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
