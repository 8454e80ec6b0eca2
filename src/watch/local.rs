//! Filesystems that only this kernel changes.
//!
//! On other filesystems (network and cluster filesystems, FUSE, /proc) a change may not be
//! reported, though the watch seems to work. Case-insensitive filesystems (vfat and the like) are
//! left out: the reported name may differ from the known one.

use std::os::fd::AsFd;

/// Magic numbers of linux/magic.h and of the filesystems themselves.
const LOCAL: [(u64, &str); 18] = [
    (0xEF53, "ext2, ext3, ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0xF2F5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x2FC1_2FC1, "zfs"),
    (0x794c_7630, "overlayfs"),
    (0x3153_464a, "jfs"),
    (0x5265_4973, "reiserfs"),
    (0x3434, "nilfs2"),
    (0x2405_1905, "ubifs"),
    (0x1501_3346, "udf"),
    (0x9660, "isofs"),
    (0x7371_7368, "squashfs"),
    (0xE0F5_E1E2, "erofs"),
    (0x28cd_3d45, "cramfs"),
];

/// Checks that only this kernel changes the filesystem of an open file.
///
/// # Errors
/// The reason why that is not certain, in words.
pub fn check(file: impl AsFd) -> Result<(), String> {
    let stat = rustix::fs::fstatfs(file).map_err(|err| format!("statfs: {err}"))?;
    let kind = stat.f_type as u64 & 0xffff_ffff; // Sign extended on some architectures.
    match LOCAL.iter().any(|(magic, _)| *magic == kind) {
        true => Ok(()),
        false => Err(format!(
            "the source's filesystem (type {kind:#x}) may be changed where this kernel does not \
             see it"
        )),
    }
}
