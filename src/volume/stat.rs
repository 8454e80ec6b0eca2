//! Attributes of files, as statx(2) gives them.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use crate::tree::Stat;

const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// Attributes of the file that a descriptor is open on.
pub(super) fn stat_of(fd: impl AsFd) -> Result<Stat, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, MASK).map(Stat::from)
}

/// Attributes of one name in an open directory; a symbolic link is itself.
pub(super) fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<Stat, Errno> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, MASK)
        .map(Stat::from)
}
