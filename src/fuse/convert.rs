//! Between fuser's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, PollEvents, TimeOrNow};
use rustix::io::Errno;

use crate::tree::{Attr, DataOnly, DirItem, Ino, NewTime, Open, Stat, Time, Validity};

/// Our inode number.
pub(super) fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// An errno for the kernel.
pub(super) fn errno(err: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(err.raw_os_error())
}

/// The mode in which a file is to be opened.
pub(super) fn how(flags: OpenFlags) -> Open {
    let mode = flags.acc_mode();
    Open {
        read: mode != OpenAccMode::O_WRONLY,
        write: mode != OpenAccMode::O_RDONLY,
        append: flags.0 & libc::O_APPEND != 0,
        direct: flags.0 & libc::O_DIRECT != 0,
        wait: false,
        unlent: None,
    }
}

/// Attributes for the kernel.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    let stat = &attr.stat;
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(stat.kind()),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: device(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// The entry that says that there is none: inode number 0.
pub(super) fn no_entry() -> FileAttr {
    attr(&Attr { ino: Ino(0), stat: Stat::default(), validity: Validity::Uncached })
}

/// The attributes that a listing knows of an entry that it has not looked up.
pub(super) fn bare_attr(item: &DirItem<'_>) -> FileAttr {
    let stat = Stat { mode: item.kind, ..Stat::default() };
    attr(&Attr { ino: item.ino, stat, validity: Validity::Uncached })
}

/// The events that a file is ready for at any time.
pub(super) const READY: PollEvents = PollEvents::POLLIN
    .union(PollEvents::POLLOUT)
    .union(PollEvents::POLLRDNORM)
    .union(PollEvents::POLLWRNORM);

/// The durability that O_SYNC and O_DSYNC ask of a write.
pub(super) fn durability(flags: i32) -> Option<DataOnly> {
    if flags & libc::O_SYNC == libc::O_SYNC {
        Some(false)
    } else if flags & libc::O_DSYNC != 0 {
        Some(true)
    } else {
        None
    }
}

/// A device number as FUSE carries it: the kernel's 32 bits, 12 of the major and 20 of the minor.
fn device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of [`device`].
pub(super) fn device_from(device: u32) -> u64 {
    rustix::fs::makedev((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// A file type from `S_IFMT` bits. The kernel takes what it does not know for a file.
pub(super) fn kind(bits: u32) -> FileType {
    match bits & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn system_time(time: Time) -> SystemTime {
    let fraction = Duration::from_nanos(u64::from(time.nsec));
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let seconds =
        if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    seconds.and_then(|time| time.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

/// A time of a setattr request. fuser 0.18 makes `EPOCH - (s + n)` of a time before the epoch
/// that the kernel sends as seconds `-s` and nanoseconds `n`: this takes the two apart again.
pub(super) fn new_time(time: TimeOrNow) -> NewTime {
    let at = match time {
        TimeOrNow::Now => return NewTime::Now,
        TimeOrNow::SpecificTime(at) => at,
    };
    let time = match at.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nsec: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Time {
                sec: 0_i64.saturating_sub_unsigned(before.as_secs()),
                nsec: before.subsec_nanos(),
            }
        }
    };
    NewTime::At(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_way_to_the_kernel_and_back() {
        for (major, minor) in [(0, 0), (1, 3), (8, 17), (259, 65_535), (4_095, 1_048_575)] {
            let number = rustix::fs::makedev(major, minor);
            assert_eq!(device_from(device(number)), number, "{major}:{minor}");
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        // The time that fuser makes of -2 s + 800,000,000 ns.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let time = Time { sec: -2, nsec: 800_000_000 };
        assert_eq!(new_time(TimeOrNow::SpecificTime(from_fuser)), NewTime::At(time));
        assert_eq!(system_time(time), UNIX_EPOCH - Duration::new(1, 200_000_000));
    }
}
