//! Limits of this process and of the machine.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;
use serde_json::Value;

use super::{Check, Finding, Group, Topic};
use crate::sys::file;
use crate::units::human_size;

const DESCRIPTORS: Topic = Topic(
    "descriptors",
    "one for each open file",
    "EMFILE for what is opened beyond; raise LimitNOFILE= or `ulimit -Hn`",
);
const MAPPINGS: Topic = Topic(
    "max_map_count",
    "half of it for mapped files",
    "files beyond are read and written without a mapping; raise vm.max_map_count",
);
const MEMLOCK: Topic = Topic(
    "memlock",
    "`lock`, and mapping flags that lock",
    "`lock` says ENOMEM beyond; raise LimitMEMLOCK= or `ulimit -l`",
);
const MAX_PAGES: Topic = Topic(
    "max_pages_limit",
    "requests of 1 MiB, 256 pages",
    "more requests for the same bytes; raise fs.fuse.max_pages_limit",
);
const MARKS: Topic = Topic(
    "fanotify_marks",
    "one for each directory in use, without CAP_SYS_ADMIN",
    "directories beyond have short timeouts; raise fs.fanotify.max_user_marks",
);
const GROUPS: Topic = Topic(
    "fanotify_groups",
    "one for each mount",
    "mounts beyond have short timeouts; raise fs.fanotify.max_user_groups",
);

/// Open files that mmapfs is made for, at once.
const ENOUGH_DESCRIPTORS: u64 = 16_384;
/// The kernel's default of vm.max_map_count.
const ENOUGH_MAPPINGS: u64 = 65_530;
/// The pages of the largest request.
const ENOUGH_PAGES: u64 = 256;
/// The kernel's least default of fs.fanotify.max_user_marks.
const ENOUGH_MARKS: u64 = 8192;
/// Mounts of a user at once, with some for others.
const ENOUGH_GROUPS: u64 = 128;

pub(super) fn checks() -> Vec<Check> {
    let fanotify = "/proc/sys/fs/fanotify";
    let found = [
        DESCRIPTORS.found(Group::Limits, descriptors()),
        MAPPINGS.found(
            Group::Limits,
            of_file("/proc/sys/vm/max_map_count", ENOUGH_MAPPINGS, "no such setting"),
        ),
        MEMLOCK.found(Group::Limits, memlock()),
        MAX_PAGES.found(Group::Limits, max_pages()),
        MARKS.found(
            Group::Limits,
            of_file(&format!("{fanotify}/max_user_marks"), ENOUGH_MARKS, "no such setting"),
        ),
        GROUPS.found(
            Group::Limits,
            of_file(&format!("{fanotify}/max_user_groups"), ENOUGH_GROUPS, "no such setting"),
        ),
    ];
    found.into()
}

fn limit_or_none(limit: u64) -> Option<u64> {
    (limit != u64::MAX).then_some(limit)
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "no limit".into(), |limit| limit.to_string())
}

fn descriptors() -> Finding {
    let (soft, hard) = file::descriptor_limit();
    let (soft, hard) = (limit_or_none(soft), limit_or_none(hard));
    let detail = format!("soft {}, raised to hard {}", shown(soft), shown(hard));
    let enough = hard.is_none_or(|hard| hard >= ENOUGH_DESCRIPTORS);
    let finding = if enough { Finding::yes(detail) } else { Finding::limited(detail) };
    finding.with("soft", soft).with("hard", hard)
}

fn memlock() -> Finding {
    let limit = getrlimit(Resource::Memlock);
    let free = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let finding = match limit.current {
        None => Finding::yes("no limit"),
        Some(bytes) if free => {
            Finding::yes(format!("{}, which CAP_IPC_LOCK passes over", human_size(bytes)))
        }
        Some(0) => Finding::no("nothing can be locked"),
        Some(bytes) => Finding::limited(human_size(bytes)),
    };
    finding.with("soft", limit.current).with("hard", limit.maximum)
}

fn max_pages() -> Finding {
    match read("/proc/sys/fs/fuse/max_pages_limit") {
        // Before there was a setting, the limit was just that.
        Err(_) => Finding::yes("256, not to be set").with("value", ENOUGH_PAGES),
        Ok(value) => judge(value, ENOUGH_PAGES),
    }
}

fn of_file(path: &str, enough: u64, missing: &str) -> Finding {
    match read(path) {
        Ok(value) => judge(value, enough),
        Err(None) => Finding::no(missing).with("value", Value::Null),
        Err(Some(error)) => Finding::unknown(format!("{path}: {error}")),
    }
}

fn judge(value: u64, enough: u64) -> Finding {
    let finding = if value >= enough {
        Finding::yes(value)
    } else {
        Finding::limited(format!("{value}, of {enough} that could be used"))
    };
    finding.with("value", value)
}

/// Reads a number; `Err(None)` when there is no such file.
fn read(path: &str) -> Result<u64, Option<String>> {
    let text = fs::read_to_string(path).map_err(|error| {
        (error.kind() != std::io::ErrorKind::NotFound).then(|| error.to_string())
    })?;
    text.trim().parse().map_err(|_| Some(format!("it holds `{}`", text.trim().escape_debug())))
}
