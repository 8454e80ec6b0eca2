//! The kernel's cache of a mounted file. The daemon cannot ask for it: the file would have to be
//! opened through the mount, by the process that answers for the mount. The client can.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::control::report::{AdviseReport, FileReport};
use crate::range::RangeSpec;
use crate::sys;

/// The pages of a range of a mounted file in the kernel's cache of the mount; `None` where that
/// cannot be told: the file may not be read, or the kernel has no cachestat(2).
pub(super) fn resident(path: &Path, range: RangeSpec) -> Option<u64> {
    let size = std::fs::metadata(path).ok().filter(|found| found.is_file())?.len();
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    let range = range.resolve(size).ok()?.outward(sys::page_size() as u64);
    sys::residency::cachestat(&file, range.start..range.end).ok().map(|stat| stat.cached)
}

/// Adds to the state of a file what the daemon cannot tell.
pub(super) fn add_to_file(report: &mut FileReport, path: &Path) {
    if report.kind == "file" {
        report.mount_resident = resident(path, RangeSpec::All);
    }
}

/// Adds to the answer to an advice what the daemon cannot tell: the pages `before` it, and now.
pub(super) fn add_to_advice(report: &mut AdviseReport, path: &Path, before: Option<u64>) {
    let [start, end] = report.range;
    // The last page reaches past the end of the file.
    let size = std::fs::metadata(path).map_or(0, |found| found.len());
    let range = RangeSpec::Span { start, end: end.min(size).max(start) };
    report.mount_resident_before = before;
    report.mount_resident_after = resident(path, range);
}
