//! The table of mounts of this process (/proc/self/mountinfo, proc_pid_mountinfo(5)).
//!
//! Reading the table asks no filesystem anything, so that it works next to mounts whose daemon
//! hangs or is gone. [`Mount::answer`] does ask, and waits only so long.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::shown::Show;

#[cfg(test)]
mod tests;

/// The type of the mounts that the client commands look for.
pub const FSTYPE: &str = "fuse.mmapfs";

/// Where the control filesystem of FUSE has a directory for each connection, by its minor number.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Time that [`Mount::answer`] waits for a daemon.
const PATIENCE: Duration = Duration::from_secs(2);

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, `stx_mnt_id` of every file in it; given anew after it is gone.
    pub id: u64,
    /// Major and minor number of its device: `st_dev` of every file in it.
    pub dev: (u32, u32),
    /// The directory of the filesystem that is the root of this mount: `/` but in bind mounts.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The type, with its subtype: `ext4`, `fuse.mmapfs`.
    pub fstype: String,
    /// The mounted source, in the words of the filesystem.
    pub source: OsString,
}

/// Outcome of a question to a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It answers.
    Alive,
    /// Its daemon is gone (ENOTCONN).
    Gone,
    /// It has not answered for two seconds.
    Silent,
    /// It refuses to answer.
    Refused(Errno),
}

impl Mount {
    /// Whether its type is that of mmapfs.
    pub fn is_ours(&self) -> bool {
        self.fstype == FSTYPE
    }

    /// Whether it is a FUSE mount of any kind.
    pub fn is_fuse(&self) -> bool {
        self.fstype == "fuse" || self.fstype == "fuseblk" || self.fstype.starts_with("fuse.")
    }

    /// Asks the filesystem for its figures (statfs(2)), in a thread of its own, which is left
    /// behind when no answer comes.
    pub fn answer(&self) -> Answer {
        let (sender, receiver) = mpsc::channel();
        let mountpoint = self.mountpoint.clone();
        thread::spawn(move || {
            // A receiver that has lost patience is gone: nobody wants the answer then.
            let _ = sender.send(rustix::fs::statfs(&mountpoint));
        });
        match receiver.recv_timeout(PATIENCE) {
            Ok(Ok(_)) => Answer::Alive,
            Ok(Err(Errno::NOTCONN)) => Answer::Gone,
            Ok(Err(errno)) => Answer::Refused(errno),
            Err(_) => Answer::Silent,
        }
    }
}

/// Every mount that this process sees, in the kernel's order.
#[derive(Debug, Clone, Default)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

impl MountTable {
    /// Reads the table of this process.
    pub fn read() -> io::Result<MountTable> {
        Ok(MountTable::parse(&std::fs::read("/proc/self/mountinfo")?))
    }

    /// Reads the table of another process; `None` where that has ended or may not be looked at.
    fn of_process(process: &Path) -> Option<MountTable> {
        Some(MountTable::parse(&std::fs::read(process.join("mountinfo")).ok()?))
    }

    /// Parses a table. Lines that are not of its form are left out.
    pub fn parse(text: &[u8]) -> MountTable {
        MountTable { mounts: text.split(|byte| *byte == b'\n').filter_map(mount).collect() }
    }

    /// Every mount.
    pub fn all(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The mount at exactly this path (absolute, without symbolic links): the topmost, where
    /// several lie on one another.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.mounts.iter().rev().find(|mount| mount.mountpoint == path)
    }

    /// Whether something is mounted below this path (absolute, without symbolic links).
    pub fn has_below(&self, path: &Path) -> bool {
        let below = |at: &Path| at.starts_with(path) && at != path;
        self.mounts.iter().any(|mount| below(&mount.mountpoint))
    }

    /// Whether a mount of this device lies at this path, covered by others or not.
    pub fn has(&self, path: &Path, dev: (u32, u32)) -> bool {
        self.mounts.iter().any(|mount| mount.mountpoint == path && mount.dev == dev)
    }

    /// The mount that holds this path (absolute, without symbolic links).
    pub fn above(&self, path: &Path) -> Option<&Mount> {
        let depth = |mount: &&Mount| mount.mountpoint.components().count();
        // Of equals, `max_by_key` gives the last, which is the topmost.
        self.mounts.iter().filter(|mount| path.starts_with(&mount.mountpoint)).max_by_key(depth)
    }

    /// The mounts of mmapfs that show their real root.
    pub fn whole_mounts(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter(|mount| mount.is_ours() && mount.root == Path::new("/"))
    }

    /// A mount of the same filesystem that shows its real root.
    pub fn whole(&self, part: &Mount) -> Option<&Mount> {
        let is_whole = |mount: &&Mount| mount.dev == part.dev && mount.root == Path::new("/");
        self.mounts.iter().rev().find(is_whole)
    }
}

/// A mount of a device in the mount namespace of another process, with that process; `None` where
/// no process has one that this one may look at.
fn elsewhere(dev: (u32, u32)) -> Option<(u32, Mount)> {
    let mut namespaces = HashSet::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let process = entry.path();
        // The table is read once for each namespace, where that is told.
        if let Ok(namespace) = std::fs::read_link(process.join("ns/mnt"))
            && !namespaces.insert(namespace)
        {
            continue;
        }
        let table = MountTable::of_process(&process).unwrap_or_default();
        if let Some(mount) = table.mounts.into_iter().find(|mount| mount.dev == dev) {
            return Some((pid, mount));
        }
    }
    None
}

/// Whether the kernel still has the FUSE filesystem of a device: a mount of it in some namespace,
/// or an open file of one that was detached, needs it. Where the control filesystem of FUSE is not
/// mounted, nobody can tell.
fn is_in_use(dev: (u32, u32)) -> bool {
    Path::new(CONNECTIONS).join(dev.1.to_string()).exists()
}

/// The user of a FUSE filesystem that is unmounted in this namespace, as a clause about the
/// filesystem; `None` where none is known.
pub fn user_of(dev: (u32, u32)) -> Option<String> {
    if let Some((pid, mount)) = elsewhere(dev) {
        let mountpoint = mount.mountpoint.shown();
        return Some(format!(
            "it is mounted on {mountpoint} in the mount namespace of process {pid}"
        ));
    }
    is_in_use(dev).then(|| {
        "a file of a mount that was detached is open, or a mount namespace that cannot be looked \
         at has it mounted"
            .into()
    })
}

/// Parses `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [FIELD...] - TYPE SOURCE OPTIONS`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(words.nth(1)?).ok()?.split_once(':')?;
    let root = unescape(words.next()?);
    let mountpoint = unescape(words.next()?);
    words.find(|word| *word == b"-")?;
    Some(Mount {
        id,
        dev: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        mountpoint: mountpoint.into(),
        fstype: unescape(words.next()?).into_string().ok()?,
        source: unescape(words.next()?),
    })
}

/// Undoes the kernel's `\ooo` for blanks, newlines, `#` and backslashes.
fn unescape(word: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => plain.push(byte),
        }
    }
    OsString::from_vec(plain)
}
