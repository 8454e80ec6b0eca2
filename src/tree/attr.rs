//! Attributes of files, and the changes of them.

use std::ffi::OsStr;

pub use rustix::fs::XattrFlags;
use rustix::fs::{Statx, StatxAttributes, StatxFlags, StatxTimestamp};

use super::Ino;
use crate::mapping::FileKey;
use crate::sys::cred::Caller;

/// A time stamp: seconds since the epoch, negative before it, and nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(time: StatxTimestamp) -> Time {
        Time { sec: time.tv_sec, nsec: time.tv_nsec }
    }
}

/// The answer of statx(2) for a backing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Device number.
    pub dev: u64,
    /// Inode number of the backing file.
    pub ino: u64,
    /// The mount that it was reached through (`stx_mnt_id`), 0 where the kernel does not tell.
    pub mount: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred size of a transfer in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// A number made from the time of birth, which tells a file from a later one with the same
    /// inode number that was not born in the same tick of the clock; 0 where the filesystem keeps
    /// no such time.
    pub birth: u32,
    /// The time of birth; the epoch where the filesystem keeps none.
    pub born: Time,
    /// It cannot be changed (`chattr +i`).
    pub immutable: bool,
    /// It can only grow (`chattr +a`).
    pub append_only: bool,
}

impl Stat {
    /// The bits of `mode` that say what kind of file it is (`S_IFMT`).
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Device and inode number.
    pub fn key(&self) -> FileKey {
        FileKey { dev: self.dev, ino: self.ino, mount: self.mount }
    }
}

impl From<Statx> for Stat {
    fn from(stat: Statx) -> Stat {
        let has = |field: StatxFlags| stat.stx_mask & field.bits() != 0;
        let birth =
            if has(StatxFlags::BTIME) { Time::from(stat.stx_btime) } else { Time::default() };
        Stat {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            mount: if has(StatxFlags::MNT_ID) { stat.stx_mnt_id } else { 0 },
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            blksize: stat.stx_blksize,
            atime: stat.stx_atime.into(),
            mtime: stat.stx_mtime.into(),
            ctime: stat.stx_ctime.into(),
            birth: fold(birth),
            born: birth,
            immutable: stat.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            append_only: stat.stx_attributes.contains(StatxAttributes::APPEND),
        }
    }
}

/// Spreads a time of birth over 32 bits (multiplication by 2^64 divided by the golden ratio).
fn fold(time: Time) -> u32 {
    let seconds = (time.sec as u64).wrapping_mul(1_000_000_000);
    let nanoseconds = seconds.wrapping_add(u64::from(time.nsec));
    (nanoseconds.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
}

/// Time for which an answer may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Validity {
    /// Not again: something changed while it was made.
    Uncached,
    /// For a moment: nobody tells of changes.
    #[default]
    Timeout,
    /// Until it is invalidated.
    UntilInvalidated,
}

/// Attributes as the mount shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode number in the mount.
    pub ino: Ino,
    /// The rest.
    pub stat: Stat,
    /// Time for which it may be used.
    pub validity: Validity,
}

/// The answer to a lookup, which counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Attributes of what was found.
    pub attr: Attr,
    /// Tells this file from an earlier one with the same inode number.
    pub generation: u32,
    /// Time for which the name may be taken to lead to this file.
    pub validity: Validity,
}

/// An entry of a directory.
#[derive(Debug)]
pub struct DirItem<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// Inode number in the mount.
    pub ino: Ino,
    /// Type, as `S_IFMT` bits.
    pub kind: u32,
    /// Where a listing goes on after it.
    pub next: u64,
    /// With a listing that looks up: the entry, counted, unless it is `.` or `..`, or one that is
    /// there and cannot be looked at.
    pub entry: Option<Entry>,
    /// The attributes of `entry` are known, and not only its type.
    pub known: bool,
}

/// Mode, umask and caller for a node that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewNode<'a> {
    /// Type and permissions, before the umask.
    pub mode: u32,
    /// The caller's umask, which a default access list of the directory replaces.
    pub umask: u32,
    /// The caller that will own it.
    pub caller: &'a Caller,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The time at which it is set.
    Now,
    /// This time.
    At(Time),
}

/// The changes of setattr; `None` leaves the attribute.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits, as in chmod(2).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<NewTime>,
    /// Time of last change.
    pub mtime: Option<NewTime>,
}

impl SetAttr {
    /// Whether it changes nothing that it names: a chown(2) of neither owner nor group, which takes
    /// setuid, setgid and file capabilities away.
    pub fn is_empty(&self) -> bool {
        let owner = self.uid.is_some() || self.gid.is_some();
        let times = self.atime.is_some() || self.mtime.is_some();
        !owner && !times && self.mode.is_none() && self.size.is_none()
    }

    /// Whether it has no effect for this caller on a file of this owner. The kernel sends an empty
    /// change not only for chown(2) but before a change of the content as well, which takes away
    /// what has to go: by a user who may not keep the bits, and by root, who keeps them, of a file
    /// that has capabilities. The two cannot be told apart; so it is obeyed for those only who may
    /// change the owner, and for root while nobody `may_write`.
    pub fn is_idle(&self, caller: &Caller, owner: u32, may_write: impl FnOnce() -> bool) -> bool {
        let is_a_write = || if caller.uid == 0 { may_write() } else { caller.uid != owner };
        self.is_empty() && is_a_write()
    }
}
