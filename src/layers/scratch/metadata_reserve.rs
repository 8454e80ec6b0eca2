//! Pages that a scratch in a tmpfs of its own keeps back for its own records.
//!
//! What is lent to the kernel takes pages until the tmpfs is full, and then there would be none for
//! the record of a file that changes its mode, its name or its size: no chmod, no rename, no
//! truncation to less, which are what makes room. The tmpfs is larger than its bound by what is
//! kept back, which a file without a name holds: what a killed daemon held is free again.

use std::os::fd::{AsFd, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags, StatVfs};
use rustix::io::Errno;

/// What is kept back, in bytes.
pub(super) const RESERVE: u64 = 256 << 10;

/// What is given up or taken back at once, in bytes: a page map and a page of a directory.
const STEP: u64 = 8192;

/// Pages that nobody but the daemon gets.
#[derive(Debug)]
pub struct MetadataReserve {
    file: OwnedFd,
    held: Mutex<u64>,
}

impl MetadataReserve {
    /// What is kept back while there is room, in bytes.
    pub const WHOLE: u64 = RESERVE;

    /// In a directory of the tmpfs, as much as there is room for.
    ///
    /// # Errors
    /// Those of open(2).
    pub(super) fn new(directory: impl AsFd) -> Result<MetadataReserve, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, c".", flags, Mode::RUSR | Mode::WUSR)?;
        let reserve = MetadataReserve { file, held: Mutex::new(0) };
        reserve.refill();
        Ok(reserve)
    }

    /// Gives a part of it up, for a record. False when nothing is left.
    pub fn spend(&self) -> bool {
        let mut held = self.held.lock();
        let left = held.saturating_sub(STEP);
        let spent = *held > 0 && rustix::fs::ftruncate(&self.file, left).is_ok();
        if spent {
            *held = left;
        }
        spent
    }

    /// Takes back what was given up, as far as there is room again.
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

    /// What is kept back now, in bytes.
    pub fn held(&self) -> u64 {
        *self.held.lock()
    }

    /// The filesystem without what is kept back for it.
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
