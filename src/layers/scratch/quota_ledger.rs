//! Ledger of the bytes that a scratch uses.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::StatVfs;
use rustix::io::Errno;

use crate::error::cause::because;

/// Used bytes of a scratch and their limit. Bytes are reserved before they are written, so that the
/// limit is never exceeded, and released when they are freed or were not needed.
#[derive(Debug)]
pub struct QuotaLedger {
    limit: Option<u64>,
    used: AtomicU64,
}

/// Space of a filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaSpace {
    /// Size.
    pub total: u64,
    /// Free bytes for root.
    pub free: u64,
    /// Free bytes for other users.
    pub available: u64,
}

impl QuotaLedger {
    /// Ledger with `used` bytes used. Without a limit only the filesystem's size counts.
    pub fn new(limit: Option<u64>, used: u64) -> QuotaLedger {
        QuotaLedger { limit, used: AtomicU64::new(used) }
    }

    /// Reserves bytes before they are written.
    ///
    /// # Errors
    /// ENOSPC, with nothing reserved, if the limit would be exceeded.
    pub fn reserve(&self, bytes: u64) -> Result<(), Errno> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let take = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            // A scratch above its limit goes on where it needs no more bytes.
            Err(_) if bytes == 0 => Ok(()),
            Err(_) => Err(because(Errno::NOSPC, "scratch_max= is reached")),
        }
    }

    /// Counts bytes that are stored already, also above the limit.
    pub fn charge(&self, bytes: u64) {
        let add = |used: u64| Some(used.saturating_add(bytes));
        // The closure always has a value.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Releases bytes.
    pub fn release(&self, bytes: u64) {
        let sub = |used: u64| Some(used.saturating_sub(bytes));
        // The closure always has a value.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sub);
    }

    /// Replaces the `before` bytes of an object and the bytes reserved for its change by its `now`
    /// bytes. It is one step, so no other thread sees less free space than there is.
    pub fn settle(&self, reserved: u64, before: u64, now: u64) {
        let put = |used: u64| {
            let others = used.saturating_sub(reserved.saturating_add(before));
            Some(others.saturating_add(now))
        };
        // The closure always has a value.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, put);
    }

    /// Used bytes, reserved ones included.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Limit in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes that are left below the limit; `None` without one.
    pub fn left(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used()))
    }

    /// Space of the scratch on a filesystem, bounded by the limit and by the filesystem.
    pub fn space(&self, found: &StatVfs) -> QuotaSpace {
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let filesystem = QuotaSpace {
            total: bytes(found.f_blocks),
            free: bytes(found.f_bfree),
            available: bytes(found.f_bavail),
        };
        let Some(limit) = self.limit else { return filesystem };
        let left = limit.saturating_sub(self.used());
        QuotaSpace {
            total: limit.min(filesystem.free.saturating_add(self.used())),
            free: left.min(filesystem.free),
            available: left.min(filesystem.available),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(blocks: u64, free: u64, available: u64) -> StatVfs {
        let dir = tempfile::tempdir().unwrap();
        let mut found = rustix::fs::statvfs(dir.path()).unwrap();
        (found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail) =
            (4096, blocks, free, available);
        found
    }

    #[test]
    fn nobody_passes_the_limit_and_what_is_freed_comes_back() {
        let budget = QuotaLedger::new(Some(1000), 900);
        assert_eq!(budget.reserve(101), Err(Errno::NOSPC));
        assert_eq!(budget.reserve(100), Ok(()));
        assert_eq!((budget.used(), budget.left()), (1000, Some(0)));
        assert_eq!(budget.reserve(1), Err(Errno::NOSPC));
        budget.release(10);
        assert_eq!(budget.reserve(u64::MAX), Err(Errno::NOSPC));
        assert_eq!(budget.reserve(10), Ok(()));
        budget.charge(5000);
        assert_eq!((budget.reserve(0), budget.left()), (Ok(()), Some(0)));
        budget.release(u64::MAX);
        assert_eq!(budget.used(), 0);
        budget.charge(300);
        assert_eq!(budget.reserve(500), Ok(()));
        budget.settle(500, 100, 350);
        assert_eq!(budget.used(), 550);
        assert_eq!(QuotaLedger::new(None, 5).reserve(1 << 60), Ok(()));
    }

    #[test]
    fn the_space_is_that_of_the_limit_and_of_the_filesystem() {
        let page = 4096;
        let roomy = found(1000, 500, 400);
        let space = |budget: &QuotaLedger, found| {
            let QuotaSpace { total, free, available } = budget.space(found);
            [total / page, free / page, available / page]
        };
        assert_eq!(space(&QuotaLedger::new(None, 7 * page), &roomy), [1000, 500, 400]);
        assert_eq!(space(&QuotaLedger::new(Some(100 * page), 10 * page), &roomy), [100, 90, 90]);
        assert_eq!(space(&QuotaLedger::new(Some(5000 * page), 10 * page), &roomy), [510, 500, 400]);
        assert_eq!(space(&QuotaLedger::new(Some(5 * page), 10 * page), &roomy), [5, 0, 0]);
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        let budget = QuotaLedger::new(Some(10_000), 0);
        let taken: u64 = std::thread::scope(|scope| {
            let take = || (0..10_000).filter(|_| budget.reserve(3).is_ok()).count() as u64;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((taken, budget.used()), (3333, 9999));
    }
}
