//! Pages that a scratch in a tmpfs of its own reserves for metadata.
//!
//! Writes through passthrough can fill the tmpfs without the daemon. Without a reserve there would
//! be no page for a page map, an xattr or a directory entry then: chmod, rename and truncation
//! would fail, and some of them free space. The tmpfs is larger than its limit by the reserve. A
//! file without a name holds the reserve, so the pages of a killed daemon are freed.

use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags, StatVfs};
use rustix::io::Errno;

/// Size of the reserve in bytes.
pub(super) const RESERVE: u64 = 256 << 10;

/// Bytes that are spent or refilled in one step: a page map and a page of a directory.
const STEP: u64 = 8192;

/// Reserved pages, which only the daemon can spend.
#[derive(Debug)]
pub struct MetadataReserve {
    file: OwnedFd,
    held: Mutex<u64>,
}

impl MetadataReserve {
    /// Size of the full reserve, in bytes.
    pub const WHOLE: u64 = RESERVE;

    /// Reserve in a directory of the tmpfs, filled as far as there is space.
    ///
    /// # Errors
    /// Errors of open(2).
    pub(super) fn new(directory: impl AsFd) -> Result<MetadataReserve, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, c".", flags, Mode::RUSR | Mode::WUSR)?;
        let reserve = MetadataReserve { file, held: Mutex::new(0) };
        reserve.refill();
        Ok(reserve)
    }

    /// Frees one step of the reserve for metadata. Returns false if it is empty.
    pub fn spend(&self) -> bool {
        let mut held = self.held.lock();
        let left = held.saturating_sub(STEP);
        let spent = *held > 0 && rustix::fs::ftruncate(&self.file, left).is_ok();
        if spent {
            *held = left;
        }
        spent
    }

    /// Refills the reserve as far as there is space.
    pub fn refill(&self) {
        let mut held = self.held.lock();
        while *held < RESERVE {
            let none = FallocateFlags::empty();
            if rustix::fs::fallocate(&self.file, none, *held, STEP).is_err() {
                return;
            }
            *held += STEP;
        }
    }

    /// Present size of the reserve, in bytes.
    pub fn held(&self) -> u64 {
        *self.held.lock()
    }

    /// Statistics of the filesystem without the reserve.
    pub fn without(&self, mut found: StatVfs) -> StatVfs {
        let blocks = RESERVE / found.f_frsize.max(1);
        found.f_blocks = found.f_blocks.saturating_sub(blocks);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(reserve) = MetadataReserve::new(std::fs::File::open(dir.path()).unwrap()) else {
            eprintln!("SKIPPED: no files without names here");
            return;
        };
        assert_eq!(reserve.held(), RESERVE);
        let spent = (0..1000).take_while(|_| reserve.spend()).count() as u64;
        assert_eq!((spent, reserve.held()), (RESERVE / STEP, 0));
        reserve.refill();
        assert_eq!(reserve.held(), RESERVE);
    }
}
