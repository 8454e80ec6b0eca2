//! The part of a status that says how the base of a scratch is guarded.

use std::fmt::{self, Formatter};

use serde::{Deserialize, Serialize};

use super::text::{InMount, row};
use crate::shown::{Clean, Name};
use crate::units::human_size;

/// Number of files that the text names.
const SHOWN_FILES: usize = 10;

/// The guard that keeps the base from changing under a scratch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardReport {
    /// Files of the base that were cloned into the scratch, and need no guard.
    pub cloned_files: u64,
    /// Files of the base under a lease.
    pub leased: u64,
    /// Files that are in use and under no lease.
    pub unguarded_files: u64,
    /// The first of them, each with the reason.
    pub unguarded: Vec<(Name, String)>,
    /// Files whose rest was copied because somebody was about to change the base.
    pub rescued_files: u64,
    /// Bytes that were copied so.
    pub rescued_bytes: u64,
    /// Files that somebody waits for, and that are not being copied yet.
    pub waiting: u64,
    /// Files that are being copied, each with the bytes that were.
    pub under_way: Vec<(Name, u64)>,
    /// Files whose rest was not copied before the base was changed, each with the reason.
    pub failed: Vec<(Name, String)>,
    /// All that the scratch has in the place of files of the base was compared with them since the
    /// mount.
    pub compared: bool,
    /// Files whose base has changed, or may have, each with what became of it.
    pub changed: Vec<(Name, String)>,
    /// Time that the kernel lets somebody wait for a lease, in seconds.
    pub lease_break_s: u64,
}

impl GuardReport {
    /// The rows of the text.
    pub(super) fn rows(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let GuardReport { cloned_files, leased, unguarded_files, rescued_files, .. } = self;
        let bytes = human_size(self.rescued_bytes);
        let changed = self.changed.len();
        row(
            f,
            "guard",
            format_args!(
                "{leased} base files leased, {unguarded_files} unguarded, {cloned_files} cloned, \
                 {rescued_files} copied in time ({bytes}), {} not, {changed} changed",
                self.failed.len()
            ),
        )?;
        if self.waiting > 0 {
            let (waiting, limit) = (self.waiting, self.lease_break_s);
            row(f, "", format_args!("{waiting} files wait to be copied, for {limit} s at most"))?;
        }
        for (path, bytes) in self.under_way.iter().take(SHOWN_FILES) {
            let bytes = human_size(*bytes);
            row(f, "", format_args!("{}: being copied: {bytes} so far", InMount(path)))?;
        }
        for (path, reason) in self.unguarded.iter().take(SHOWN_FILES) {
            row(f, "", format_args!("{}: unguarded: {}", InMount(path), Clean(reason)))?;
        }
        for (path, reason) in self.failed.iter().take(SHOWN_FILES) {
            row(f, "", format_args!("{}: not copied in time: {}", InMount(path), Clean(reason)))?;
        }
        for (path, fate) in self.changed.iter().take(SHOWN_FILES) {
            row(f, "", format_args!("{}: {}", InMount(path), Clean(fate)))?;
        }
        Ok(())
    }
}
