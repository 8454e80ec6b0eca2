//! The event loops of a mount: they read requests and have them answered.

use std::io;
use std::os::fd::OwnedFd;

use fuser::{BackgroundSession, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handlers::Handlers;
use crate::config::MountConfig;
use crate::error::Failure;
use crate::shown::Show;

/// A session with the kernel, served in threads of its own.
pub struct Session(BackgroundSession);

impl Session {
    /// Starts the event loops on `device`, the connection to the kernel.
    ///
    /// # Errors
    /// The handshake fails, or a thread cannot be started.
    pub fn start(
        config: &MountConfig,
        handlers: Handlers,
        device: OwnedFd,
    ) -> Result<Session, Failure> {
        let acl = if config.kernel.allow_other {
            SessionACL::All
        } else if config.kernel.allow_root {
            SessionACL::RootAndOwner
        } else {
            SessionACL::Owner
        };
        let mut options = fuser::Config::default();
        options.n_threads = Some(config.settings.threads);
        options.clone_fd = config.settings.clone_fd;
        fuser::Session::from_fd(handlers, device, acl, options)
            .and_then(fuser::Session::spawn)
            .map(Session)
            .map_err(|err| {
                Failure::failed(config.mountpoint.shown(), format!("starting a session: {err}"))
            })
    }

    /// Waits until the kernel has ended the session.
    ///
    /// # Errors
    /// An event loop has failed.
    pub fn join(self) -> io::Result<()> {
        match self.0.join() {
            // Requests that were on their way when the mount went.
            Err(err) if err.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            ended => ended,
        }
    }
}

/// A descriptor of the connection to the kernel that outlives the session.
pub struct Connection(OwnedFd);

impl Connection {
    /// The connection of a descriptor of /dev/fuse.
    pub fn new(device: OwnedFd) -> Connection {
        Connection(device)
    }

    /// Whether the kernel still has the filesystem: it is mounted somewhere, or a file in it is
    /// open.
    pub fn is_open(&self) -> bool {
        const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        let polled = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&AT_ONCE)));
        let [fd] = &fds;
        polled.is_ok() && !fd.revents().contains(PollFlags::ERR)
    }
}
