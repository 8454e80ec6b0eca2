//! Filesystems and mounts below the source, and inode numbers that are unique across them.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::io::Errno;

use super::identity::{Identity, Seen};
use super::stat::stat_of;
use crate::mapping::FileKey;
use crate::sys;
use crate::tree::{FIRST_RESERVED, Ino, Stat};

/// Inode numbers of mounts other than the source's have the number of their place above this bit.
pub(super) const PLACE_SHIFT: u32 = 48;

/// Upper part from which on it distinguishes files with the same number, not places.
pub(super) const FIRST_SUBSTITUTE: u64 = 0x3f00;

/// OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const OVERLAYFS: u64 = 0x794c_7630;

/// Filesystems whose directory cookies are made of the name or kept on disk: ext2 to ext4, XFS,
/// btrfs and f2fs (magic numbers of linux/magic.h). On others a cookie may be a count of entries.
const KEEP_COOKIES: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// TMPFS_MAGIC of linux/magic.h.
const TMPFS: u64 = 0x0102_1994;

/// Filesystems on which a file has one handle for its whole life, and no later file has the same:
/// the handle is the inode number and a generation (ext2 to ext4, XFS, btrfs, f2fs, tmpfs,
/// bcachefs, JFS). On others a server or a daemon chooses the handle; on overlayfs it changes at
/// copy-up.
const KEEP_HANDLES: [u64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, TMPFS, 0xca45_1a4e, 0x3153_464a];

/// Filesystems with multigrain timestamps (ext4, XFS, btrfs, tmpfs): a change after a timestamp was
/// read gets another one, since this version of Linux. On others two changes in one tick of the
/// clock have the same time.
const EXACT_TIMES: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, TMPFS];
const EXACT_SINCE: (u32, u32) = (6, 13);

/// Version of Linux since which an entry of a tmpfs has a fixed cookie; before, it was a count.
const NUMBERED_TMPFS: (u32, u32) = (6, 6);

/// A device as seen through a mount: the same directory may be mounted at two places, and the
/// same place may show files of several devices (overlayfs).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) dev: u64,
    pub(super) mount: u64,
}

/// All places of nodes so far; they are never freed.
static KEPT: RwLock<Vec<&'static Origin>> = RwLock::new(Vec::new());

impl Origin {
    /// Shared copy of this place, which is never freed: there is one for each mount that was ever
    /// accessed, so each node needs only a pointer to it.
    pub(super) fn kept(self) -> &'static Origin {
        let find = |kept: &[&'static Origin]| kept.iter().copied().find(|kept| **kept == self);
        if let Some(kept) = find(&KEPT.read()) {
            return kept;
        }
        let mut all = KEPT.write();
        find(&all).unwrap_or_else(|| {
            let kept: &'static Origin = Box::leak(Box::new(self));
            all.push(kept);
            kept
        })
    }
}

impl From<&Stat> for Origin {
    fn from(stat: &Stat) -> Origin {
        Origin { dev: stat.dev, mount: stat.mount }
    }
}

impl From<FileKey> for Origin {
    fn from(key: FileKey) -> Origin {
        Origin { dev: key.dev, mount: key.mount }
    }
}

/// Mount of the source, and the mounts below it. No descriptor on a mount below is kept open, so
/// that it can be unmounted: its files are found by name.
pub(super) struct Devices {
    main: Origin,
    source: Arc<OwnedFd>,
    /// A file keeps its birth time while it has its inode number. It does not on overlayfs, where a
    /// file gets the birth time of its copy at copy-up.
    births: bool,
    /// No two files, earlier or later, have the same file handle.
    keeps_handles: bool,
    /// See [`EXACT_TIMES`].
    exact_times: bool,
    /// A cookie of one listing is valid in another one of the same directory.
    keeps_cookies: bool,
    /// The cookie of an entry does not change until the filesystem is mounted again.
    numbers_entries: bool,
    others: RwLock<Vec<Origin>>,
}

impl Devices {
    /// `source` is the open source directory.
    pub(super) fn new(source: OwnedFd) -> Result<Devices, Errno> {
        let stat = stat_of(&source)?;
        let main = Origin::from(&stat);
        let kind = rustix::fs::fstatfs(&source)?.f_type as u64 & 0xffff_ffff; // May be negative.
        Ok(Devices {
            main,
            source: Arc::new(source),
            births: kind != OVERLAYFS,
            keeps_handles: KEEP_HANDLES.contains(&kind),
            // ext4 with small inodes keeps whole seconds, and no time of birth.
            exact_times: EXACT_TIMES.contains(&kind)
                && stat.birth != 0
                && sys::kernel_version() >= EXACT_SINCE,
            keeps_cookies: KEEP_COOKIES.contains(&kind),
            numbers_entries: kind == TMPFS && sys::kernel_version() >= NUMBERED_TMPFS,
            others: RwLock::default(),
        })
    }

    /// The open source directory.
    pub(super) fn source(&self) -> &Arc<OwnedFd> {
        &self.source
    }

    pub(super) fn keeps_cookies(&self) -> bool {
        self.keeps_cookies
    }

    /// Whether the cookie of an entry stays when other entries are made and removed.
    pub(super) fn keeps_offsets(&self, place: impl Into<Origin>) -> bool {
        self.is_main(place) && (self.keeps_cookies || self.numbers_entries)
    }

    /// Whether a place is the source's own, where files can be opened by handle.
    pub(super) fn is_main(&self, place: impl Into<Origin>) -> bool {
        place.into() == self.main
    }

    /// Whether there are files of other places than the source's own.
    pub(super) fn has_others(&self) -> bool {
        !self.others.read().is_empty()
    }

    /// Whether the source's own filesystem is mounted again below it.
    pub(super) fn has_twin(&self) -> bool {
        self.others.read().iter().any(|other| other.dev == self.main.dev)
    }

    /// Identity of a file among files with its inode number.
    pub(super) fn identity(&self, seen: &Seen<'_>) -> Identity {
        if !self.is_main(&seen.stat) {
            return Identity::default();
        }
        let birth = if self.births { seen.stat.birth } else { 0 };
        let handle = seen.handle().cloned();
        let ambiguous = self.keeps_handles
            && handle.is_some()
            && (birth == 0 || !seen.has_outlived_its_birth());
        Identity { birth, handle, ambiguous }
    }

    /// Whether a change always changes the times of a file if they were read before.
    pub(super) fn has_exact_times(&self) -> bool {
        self.exact_times
    }

    /// Inode number in the mount of a backing file. It is the same number on the source's own
    /// mount, and another one on other mounts and for numbers that FUSE reserves.
    pub(super) fn number(&self, place: impl Into<Origin>, ino: u64) -> Ino {
        let place = place.into();
        let main = place == self.main;
        if main && ino > Ino::ROOT.0 && ino < FIRST_RESERVED {
            return Ino(ino);
        }
        let index = if main { 0 } else { self.index(place) };
        if ino >> PLACE_SHIFT == 0 && index + 1 < FIRST_SUBSTITUTE {
            return Ino((index + 1) << PLACE_SHIFT | ino);
        }
        // Too large for a prefix: hashed into 2^62 numbers, where a collision of two files is
        // improbable. A collision is detected, since nodes have device and inode number.
        let seed = place.dev.rotate_left(32) ^ place.mount.rotate_left(16);
        Ino(1 << 62 | (ino ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2)
    }

    /// The number in the mount of a file of the source's own mount.
    pub(super) fn main_number(&self, ino: u64) -> Ino {
        self.number(self.main, ino)
    }

    fn index(&self, place: Origin) -> u64 {
        let position = |places: &[Origin]| places.iter().position(|known| *known == place);
        if let Some(index) = position(&self.others.read()) {
            return index as u64 + 1;
        }
        let mut others = self.others.write();
        let index = position(&others).unwrap_or_else(|| {
            others.push(place);
            others.len() - 1
        });
        index as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> (Devices, Origin) {
        let devices = Devices::new(std::fs::File::open("/").unwrap().into()).unwrap();
        let main = devices.main;
        (devices, main)
    }

    #[test]
    fn the_sources_own_numbers_are_kept() {
        let (devices, main) = devices();
        assert_eq!(devices.number(main, 1234), Ino(1234));
    }

    #[test]
    fn the_same_number_on_another_device_or_mount_is_another_inode() {
        let (devices, main) = devices();
        let device = Origin { dev: main.dev + 1, ..main };
        let mount = Origin { mount: main.mount + 1, ..main };
        let (at_device, at_mount) = (devices.number(device, 1234), devices.number(mount, 1234));
        assert_ne!(at_device, Ino(1234));
        assert_ne!(at_mount, Ino(1234));
        assert_ne!(at_device, at_mount);
        assert_eq!(at_device, devices.number(device, 1234));
    }

    #[test]
    fn numbers_that_fuse_reserves_are_moved() {
        let (devices, main) = devices();
        for ino in [0, 1, FIRST_RESERVED, u64::MAX] {
            let number = devices.number(main, ino);
            assert!(number.0 > 1 && number.0 < FIRST_RESERVED, "{ino} became {number}");
        }
    }
}
