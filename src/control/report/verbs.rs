//! The answers of the verbs on one file.

use serde::{Deserialize, Serialize};

use crate::shown::Name;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// The path and the reason, as one line.
    pub error: String,
    /// The errno that write(2) failed with.
    pub errno: i32,
    /// The word that the command needs to be carried out: `destroy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<String>,
    /// The path that it is about, relative to the root of the mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Name>,
    /// The failed step and the reason, without the path; empty from a daemon that does not tell
    /// them apart.
    #[serde(default)]
    pub reason: String,
}

/// The result of an advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdviseReport {
    /// The file, relative to the root of the mount.
    pub path: Name,
    /// The name of the advice.
    pub advice: String,
    /// The bytes it was given for, after rounding to pages.
    pub range: [u64; 2],
    /// The number of pages in the range.
    pub pages: u64,
    /// The pages of the range that were in the page cache of the backing file before.
    pub resident_before: Option<u64>,
    /// The pages of the range that were in the page cache of the backing file afterwards.
    pub resident_after: Option<u64>,
    /// The pages of the range that were in the kernel's cache of the mount before. The daemon
    /// cannot ask for them without waiting for itself: the command line adds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_resident_before: Option<u64>,
    /// The pages of the range that were in the kernel's cache of the mount afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_resident_after: Option<u64>,
    /// Whom it reaches: `readers`, `this mapping` (the daemon's) or `none`; empty from a daemon
    /// that does not tell.
    #[serde(default)]
    pub effect: String,
    /// Why it does not reach the readers, when it does not.
    #[serde(default)]
    pub effect_reason: Option<String>,
    /// The pages that a `pageout` has left in the page cache, when it has left some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<LeftReport>,
    /// Time that it took, in microseconds.
    pub elapsed_us: u64,
}

/// Pages that could not be evicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftReport {
    /// The dirty pages: written meanwhile, or of a filesystem in memory.
    pub dirty: Option<u64>,
    /// The pages that are being written back.
    pub writeback: Option<u64>,
    /// The others: programs map them, have locked them or use them at this moment.
    pub in_use: u64,
}

/// The result of a flush.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushReport {
    /// The file, relative to the root of the mount.
    pub path: Name,
    /// The way it was flushed: `sync`, `async` or `invalidate`.
    pub mode: String,
    /// The bytes that were flushed, after rounding to pages.
    pub range: [u64; 2],
    /// The pages of the range that were dirty before.
    pub dirty_before: Option<u64>,
    /// The pages of the range that were dirty afterwards.
    pub dirty_after: Option<u64>,
    /// Time that it took, in microseconds.
    pub elapsed_us: u64,
}

/// The result of a lock or an unlock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReport {
    /// The file, relative to the root of the mount.
    pub path: Name,
    /// Whether the range is locked now.
    pub locked: bool,
    /// The bytes, after rounding to pages.
    pub range: [u64; 2],
    /// Time that it took, in microseconds.
    pub elapsed_us: u64,
}
