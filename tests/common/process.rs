//! A part of a test that has to run in a process of its own.
//!
//! The test program calls itself: the part is an ignored test of the same file that does its work
//! when [`my_part`] names a path, and nothing otherwise.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const VARIABLE: &str = "MMAPFS_TEST_PART";

/// Starts the ignored test `part` in another process, with `path` as its argument.
pub fn start_part(part: &str, path: &Path) -> Child {
    start_part_under(&[], part, path)
}

/// The same, started by another program with these words.
pub fn start_part_under(words: &[&str], part: &str, path: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut all = words.iter().map(OsStr::new).chain([program.as_os_str()]);
    Command::new(all.next().unwrap())
        .args(all)
        .args(["--ignored", "--exact", "--nocapture", part])
        .env(VARIABLE, path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the ignored test `part` in another process to its end.
pub fn run_part(part: &str, path: &Path) -> Output {
    start_part(part, path).wait_with_output().unwrap()
}

/// As [`run_part`], for a part that has to succeed.
#[track_caller]
pub fn run_good_part(part: &str, path: &Path) {
    let output = run_part(part, path);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the part {part} failed ({}): {text}", output.status);
}

/// The argument, in a process that runs a part.
pub fn my_part() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}
