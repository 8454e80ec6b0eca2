//! The daemon as a process: what it keeps of its parent, where it logs, how it ends, and what it
//! may do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod background;
mod deep;
mod sandbox;
mod umount;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::mounted::{is_mounted, program, unmount_hard};
use common::*;

/// A source and a mount point for a daemon in the background, unmounted at the end whatever
/// happens.
struct Background {
    dir: TestDir,
    source: PathBuf,
    mountpoint: PathBuf,
}

impl Background {
    fn new() -> Background {
        let dir = TestDir::new();
        let (source, mountpoint) = (dir.directory("source"), dir.directory("mnt"));
        fs::write(source.join("file"), b"content").unwrap();
        Background { dir, source, mountpoint }
    }

    /// The words `mmapfs mount -o OPTIONS SOURCE MNT`, behind those of another program.
    fn command(&self, before: &[&OsStr], options: &str) -> Command {
        let program = program();
        let mut words = before.iter().copied().chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["mount", "-o", options]);
        command.args([&self.source, &self.mountpoint]);
        command.env("MMAPFS_STATE_DIR", self.dir.path().join("state"));
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The process of the daemon.
    fn pid(&self) -> i32 {
        pid_behind(&self.mountpoint)
    }
}

fn pid_behind(mountpoint: &Path) -> i32 {
    let status = fs::read(mountpoint.join(".mmapfs/status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    status["pid"].as_i64().unwrap() as i32
}

impl Drop for Background {
    fn drop(&mut self) {
        if is_mounted(&self.mountpoint) {
            unmount_hard(&self.mountpoint);
        }
    }
}
