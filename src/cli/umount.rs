//! `mmapfs umount`.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::{UmountArgs, UmountHelperArgs};
use crate::config::mountinfo::{self, Answer, Mount};
use crate::config::{Daemons, MountTable};
use crate::error::Failure;
use crate::fuse::mount::{abort_and_unmount, unmount};
use crate::shown::Show;
use crate::sys::process::Identity;

/// Time to wait for the end of a daemon before it is asked what it still serves.
const MOMENT: Duration = Duration::from_millis(300);

/// Time to wait for the end of a daemon that serves nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// Unmounts a mount of mmapfs, and waits until its daemon has let go of everything: the source, and
/// the disk of a scratch; unless it goes on, which is said. The mount itself is asked nothing: its
/// daemon may not answer, and a request that waits keeps the mount in use.
pub fn run(args: &UmountArgs) -> Result<(), Failure> {
    let given = args.mountpoint.shown();
    let failed = |error: io::Error| Failure::failed(given, format_args!("unmounting it: {error}"));
    // A slash at the end would have the mount asked for its attributes.
    let path: PathBuf = args.mountpoint.components().collect();
    let path = path.canonicalize().map_err(failed)?;
    let table = MountTable::read().map_err(failed)?;
    let mount = find(&table, &path)?;
    if args.stale {
        is_stale(mount)?;
    }
    let lazy = args.lazy || args.stale;
    let daemon = if lazy { None } else { Daemon::of(mount, &table) };
    unmount(&path, lazy)?;
    let Some(daemon) = daemon else { return Ok(()) };
    let why = match daemon.wait().map_err(failed)? {
        Wait::Ended => return Ok(()),
        Wait::GoesOn(why) => why,
    };
    // It was unmounted, as was asked.
    let pid = daemon.identity.pid.as_raw_pid();
    let _ = writeln!(
        io::stderr(),
        "mmapfs: {given}: it is unmounted here, but its daemon (process {pid}) {why}"
    );
    Ok(())
}

/// Unmounts for umount(8).
pub fn run_helper(args: &UmountHelperArgs) -> Result<(), Failure> {
    if args.force {
        return abort_and_unmount(&args.mountpoint, args.lazy);
    }
    run(&UmountArgs { lazy: args.lazy, stale: false, mountpoint: args.mountpoint.clone() })
}

/// The process behind a mount.
struct Daemon {
    identity: Identity,
    end: OwnedFd,
    /// The device of the mount.
    dev: (u32, u32),
}

/// The outcome of waiting for the end of a daemon.
enum Wait {
    Ended,
    /// Why it is not waited for any longer.
    GoesOn(String),
}

impl Daemon {
    /// The daemon that ends when this mount goes; `None` where nobody can say, or where it goes on
    /// serving another mount.
    fn of(mount: &Mount, table: &MountTable) -> Option<Daemon> {
        if table.all().filter(|other| other.dev == mount.dev).count() != 1 {
            return None;
        }
        let identity = Daemons::of_process().find(mount.dev)?;
        Some(Daemon { identity, end: identity.open()?, dev: mount.dev })
    }

    /// A process has closed everything that it had open when its descriptor says that it ended.
    /// One that is stopped, or still serves, is not waited for.
    fn wait(&self) -> io::Result<Wait> {
        if self.identity.is_stopped() {
            let why = "is stopped, and ends when it is continued or killed";
            return Ok(Wait::GoesOn(why.into()));
        }
        if self.has_ended_within(MOMENT)? {
            return Ok(Wait::Ended);
        }
        if let Some(why) = self.still_serves() {
            return Ok(Wait::GoesOn(why));
        }
        if self.has_ended_within(PATIENCE)? {
            return Ok(Wait::Ended);
        }
        Ok(Wait::GoesOn(format!(
            "has not ended for {} s: it may be in use in another mount namespace",
            PATIENCE.as_secs()
        )))
    }

    fn has_ended_within(&self, time: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(time).map_err(io::Error::other)?;
        let mut events = [PollFd::new(&self.end, PollFlags::IN)];
        Ok(rustix::io::retry_on_intr(|| poll(&mut events, Some(&timeout)))? > 0)
    }

    /// The reason that a daemon goes on without its mount in this namespace, as far as it is known.
    fn still_serves(&self) -> Option<String> {
        mountinfo::user_of(self.dev).map(|user| format!("goes on: {user}"))
    }
}

fn find<'a>(table: &'a MountTable, path: &Path) -> Result<&'a Mount, Failure> {
    let refuse = |reason: String| Err(Failure::failed(path.shown(), reason));
    match (table.at(path), table.above(path)) {
        (Some(mount), _) if mount.is_ours() => Ok(mount),
        (Some(mount), _) => refuse(format!("it is a mount of {}, not of mmapfs", mount.fstype)),
        (None, Some(above)) if above.is_ours() => refuse(format!(
            "it is no mount point: it lies in the mount on {}",
            above.mountpoint.shown()
        )),
        (None, _) => refuse("it is no mount point".into()),
    }
}

fn is_stale(mount: &Mount) -> Result<(), Failure> {
    let shown = mount.mountpoint.shown();
    let reason = match mount.answer() {
        Answer::Gone => return Ok(()),
        Answer::Alive => format!("its daemon is there: use `mmapfs umount {shown}`"),
        Answer::Silent => {
            format!("its daemon is there, but does not answer: use `mmapfs umount --lazy {shown}`")
        }
        Answer::Refused(errno) => {
            format!("whether its daemon is there cannot be told: {}", io::Error::from(errno))
        }
    };
    Err(Failure::failed(shown, reason))
}
