//! Inode numbers of an overlay: which number a file of a layer is shown with.
//!
//! A file of the base keeps its number, so that a copy has the number of its origin. Files of the
//! scratch have numbers apart from these, by prefixes that no filesystem uses:
//!
//! | first 16 bits     | number of                                                           |
//! |-------------------|---------------------------------------------------------------------|
//! | 0x3a00 to 0x3aff  | a listed entry that cannot be looked at                             |
//! | 0x3c00            | a node that has got another number, since a writer revoked its share |
//! | 0x3d00            | a file of the scratch alone                                         |
//! | 0x3e00 to 0x3eff  | the same, where the volume itself shows a substitute (0x3f00)       |
//!
//! Bit 62 marks the later one of two files whose overlay xattrs give them one number.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tree::Ino;
use crate::volume::{substitutes, unsubstituted};

/// The first number that a file can have: 0 is none, and 1 is the root of the mount.
pub(super) const FIRST_NUMBER: u64 = 2;

/// Where the overlay xattrs of a scratch give two files one number, the later one is shown with
/// this bit, which no other number has.
pub(super) const TWIN: u64 = 1 << 62;

/// Bits of a number below its prefix.
const PREFIX_SHIFT: u32 = 48;

const REVOKED: u64 = 0x3c00;
const UPPER_ONLY: u64 = 0x3d00;
const UNKNOWN_ENTRY: u64 = 0x3a00;

/// The numbers that a file can have where another one has its own.
pub(super) fn twins(ino: Ino) -> impl Iterator<Item = Ino> {
    [ino].into_iter().chain(substitutes(ino)).map(|ino| Ino(ino.0 | TWIN))
}

/// The number that a file had before another one was found to have it as well, here or in the
/// volume below: the one that it has after the next mount.
pub(super) fn original(ino: Ino) -> Ino {
    unsubstituted(Ino(ino.0 & !TWIN))
}

/// The number of a file that only the scratch has: apart from those of the layers below.
pub(super) fn upper_only_ino(inner: Ino) -> Ino {
    match inner.0 >> PREFIX_SHIFT {
        0 => Ino(UPPER_ONLY << PREFIX_SHIFT | inner.0),
        // A substitute for a number that an earlier file still has.
        prefix if (0x3f00..0x4000).contains(&prefix) => Ino(inner.0 - (0x100 << PREFIX_SHIFT)),
        _ => Ino(inner.0 ^ 1 << 61),
    }
}

/// A number for a node whose share was revoked, never given before by this process.
pub(super) fn next_share_ino() -> Ino {
    static LAST: AtomicU64 = AtomicU64::new(0);
    Ino(REVOKED << PREFIX_SHIFT | LAST.fetch_add(1, Ordering::Relaxed))
}

/// The number of an entry in a part of a directory ([`super::dir_offset`]) that cannot be looked
/// at. Listings alone tell it, and every question about it is answered with ESTALE.
pub(super) fn unknown_entry(part: u64, ino: Ino) -> Ino {
    let plain = (ino.0 ^ ino.0 >> PREFIX_SHIFT) & ((1 << PREFIX_SHIFT) - 1);
    Ino((UNKNOWN_ENTRY | part & 0xff) << PREFIX_SHIFT | plain)
}

/// Whether a number is of [`unknown_entry`]: no lookup of it is counted.
pub(super) fn is_unknown_entry(ino: Ino) -> bool {
    ino.0 >> PREFIX_SHIFT & !0xff == UNKNOWN_ENTRY
}
