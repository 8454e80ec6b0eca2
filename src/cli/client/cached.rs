//! The kernel's cache of a mounted file. The daemon cannot ask for it: the file would have to be
//! opened through the mount, by the process that answers for the mount. The client can.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::control::command::Command;
use crate::control::report::Report;
use crate::range::{ByteRange, RangeSpec};
use crate::sys;

/// The pages of a range of a mounted file in the kernel's cache of the mount; `None` where that
/// cannot be told: the file may not be read, or the kernel has no cachestat(2).
fn resident(path: &Path, range: RangeSpec) -> Option<u64> {
    let size = std::fs::metadata(path).ok().filter(|found| found.is_file())?.len();
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    let range = range.resolve(size).ok()?.outward(sys::page_size() as u64);
    sys::residency::cachestat(&file, range.start..range.end).ok().map(|stat| stat.cached)
}

/// Counts what there is before a command is given, where its report tells of that.
pub(super) fn before(command: &Command, path: &Path) -> Option<u64> {
    match command {
        Command::Advise { range, .. } => resident(path, *range),
        _ => None,
    }
}

/// Adds to a report what the daemon cannot tell.
pub(super) fn complete(report: &mut Report, path: &Path, before: Option<u64>) {
    match report {
        Report::Advise(report) => {
            let [start, end] = report.range;
            // The last page reaches past the end of the file.
            let size = std::fs::metadata(path).map_or(0, |found| found.len());
            let range = ByteRange { start, end: end.min(size).max(start) };
            let range = RangeSpec::Span { start: range.start, end: range.end };
            report.mount_resident_before = before;
            report.mount_resident_after = resident(path, range);
        }
        Report::File(report) if report.kind == "file" => {
            report.mount_resident = resident(path, RangeSpec::All);
        }
        _ => {}
    }
}
