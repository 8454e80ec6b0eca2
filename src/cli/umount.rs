//! `mmapfs umount`.

use std::io;
use std::path::Path;

use super::args::UmountArgs;
use crate::config::MountTable;
use crate::config::mountinfo::{Answer, Mount};
use crate::error::Failure;
use crate::fuse::mount::unmount;
use crate::shown::Show;

/// Unmounts a mount of mmapfs. The mount itself is asked nothing but, for `--stale`, whether its
/// daemon is there.
pub fn run(args: &UmountArgs) -> Result<(), Failure> {
    let given = args.mountpoint.shown();
    let failed = |error: io::Error| Failure::failed(given, format_args!("unmounting it: {error}"));
    let path = args.mountpoint.canonicalize().map_err(failed)?;
    let table = MountTable::read().map_err(failed)?;
    let mount = find(&table, &path)?;
    if args.stale {
        is_stale(mount)?;
    }
    unmount(&path, args.lazy || args.stale)
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
