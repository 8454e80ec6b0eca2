//! The guard that keeps the base of a scratch from changing under it.

use std::path::PathBuf;
use std::time::Duration;

/// Counts of the guard on files of the base that are in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardCounts {
    /// Files of the base that were cloned into the scratch, and need no guard.
    pub cloned_files: u64,
    /// Files of the base under a lease: nobody changes them before the rest is copied.
    pub leased: u64,
    /// Files that are in use and under no lease.
    pub unguarded_files: u64,
    /// The first of them, with the reason.
    pub unguarded: Vec<(PathBuf, String)>,
    /// Files whose rest was copied because somebody was about to change the base.
    pub rescued_files: u64,
    /// Bytes that were copied so.
    pub rescued_bytes: u64,
    /// Files that somebody waits for, and that are not being copied yet.
    pub waiting: u64,
    /// Files that are being copied, and how many bytes of them were.
    pub under_way: Vec<(PathBuf, u64)>,
    /// Files whose rest was not copied before the base was changed, with the reason.
    pub failed: Vec<(PathBuf, String)>,
    /// All that the scratch has in the place of files of the base was compared with them since the
    /// mount.
    pub compared: bool,
    /// Files whose base has changed, or may have, with what became of it.
    pub changed: Vec<(PathBuf, String)>,
    /// Time that the kernel lets somebody wait for a lease.
    pub lease_break: Duration,
}
