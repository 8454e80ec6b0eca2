//! The processes that have files of a base open for writing. The daemon has given the right away to
//! look at the descriptors of others; the client that asks for a status may have it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::control::report::{ScratchReport, StatusReport};

/// Device and inode number.
type Id = (u64, u64);

/// Adds the processes to a report that have files open which are unguarded for that reason. A file
/// that the scratch shows by another name than the base is not looked for.
pub(super) fn complete(status: &mut StatusReport) {
    if let Some(scratch) = &mut status.scratch
        && !scratch.guard.unguarded.is_empty()
    {
        name_writers(scratch, Path::new("/proc"));
    }
}

fn name_writers(scratch: &mut ScratchReport, proc: &Path) {
    let Some(base) = scratch.layers.last().map(|layer| layer.as_path().to_owned()) else { return };
    let id =
        |path: &Path| fs::metadata(base.join(path)).ok().map(|found| (found.dev(), found.ino()));
    let files = scratch.guard.unguarded.iter().filter_map(|(path, _)| id(path.as_path()));
    let mut writers: HashMap<Id, Vec<String>> = files.map(|id| (id, Vec::new())).collect();
    find(proc, &mut writers);
    for (path, reason) in &mut scratch.guard.unguarded {
        if let Some(found) = id(path.as_path()).and_then(|id| writers.get(&id))
            && !found.is_empty()
        {
            *reason = format!("{reason} by {}", found.join(", "));
        }
    }
}

/// Finds the processes that have files open for writing.
fn find(proc: &Path, writers: &mut HashMap<Id, Vec<String>>) {
    for process in entries(proc) {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()) else { continue };
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let mut seen = Vec::new();
        for descriptor in entries(&process.join("fd")) {
            let Ok(found) = fs::metadata(&descriptor) else { continue };
            let id = (found.dev(), found.ino());
            let is_new = writers.contains_key(&id) && !seen.contains(&id);
            if is_new && descriptor.file_name().is_some_and(|fd| writes(&process, Path::new(fd))) {
                seen.push(id);
            }
        }
        if !seen.is_empty() {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let told = format!("{pid} ({})", name.trim_end());
            for id in seen {
                writers.entry(id).or_default().push(told.clone());
            }
        }
    }
}

/// Whether a descriptor of a process may write: the access mode of open(2) in proc_pid_fdinfo(5).
fn writes(process: &Path, descriptor: &Path) -> bool {
    let info = fs::read_to_string(process.join("fdinfo").join(descriptor)).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & 0o3, 1 | 2))
}

/// The paths in a directory; none of one that may not be read, or is gone.
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
