//! Seeded random numbers (splitmix64): small, and the same everywhere.

use std::time::{SystemTime, UNIX_EPOCH};

/// A generator whose seed is printed, so that a failure can be repeated.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from `MMAPFS_TEST_SEED`, else from the clock, and prints the seed.
    pub fn from_environment() -> Random {
        let seed = match std::env::var("MMAPFS_TEST_SEED") {
            Ok(text) => text.parse().expect("MMAPFS_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        };
        eprintln!("seed: MMAPFS_TEST_SEED={seed}");
        Random(seed)
    }

    /// Starts from a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The seed of a generator that has given nothing yet.
    pub fn seed(&self) -> u64 {
        self.0
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of the items.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
