//! `open=none`: what the kernel opens without asking.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::mounted::run;
use common::*;
use rustix::io::Errno;

const OPTIONS: &str = "access=read,open=none,entry_timeout=3600,attr_timeout=3600";

/// A mount of 50 files.
fn mount_of_files(dir: &Path) -> MountedFs {
    (0..50).for_each(|at| fs::write(dir.join(at.to_string()), pattern(3000 + at)).unwrap());
    MountedFs::over(dir, OPTIONS)
}

fn read_all(mounted: &MountedFs) {
    for at in 0..50 {
        assert_content(mounted.path().join(at.to_string()), &pattern(3000 + at));
    }
}

/// How often each request was made, as the command line tells it.
fn requests(mounted: &MountedFs) -> serde_json::Value {
    let path = mounted.path().to_str().unwrap();
    let output = run(&["status", "--json", path]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["requests"].clone()
}

#[test]
fn files_that_were_read_once_are_read_again_without_a_request() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let mounted = mount_of_files(dir.path());
    read_all(&mounted);
    // The kernel may forget what it likes: once it does not, nothing is asked.
    wait_for("a round without a request", || {
        let before = requests(&mounted);
        read_all(&mounted);
        let after = requests(&mounted);
        assert!(after["open"].as_u64().unwrap() <= 1, "{after}");
        ["read", "open", "release", "flush"].iter().all(|name| before[name] == after[name])
    });
}

#[test]
fn files_opened_without_asking_show_what_is_changed_directly() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let dir = TestDir::new();
    let mounted = mount_of_files(dir.path());
    read_all(&mounted);
    let open = File::open(mounted.path().join("7")).unwrap();
    fs::write(dir.path().join("7"), b"changed").unwrap();
    fs::write(dir.path().join("new"), b"new").unwrap();
    fs::remove_file(dir.path().join("8")).unwrap();
    wait_for("the changes", || {
        let at = |name: &str| mounted.path().join(name);
        fs::read(at("7")).is_ok_and(|bytes| bytes == b"changed")
            && fs::read(at("new")).is_ok_and(|bytes| bytes == b"new")
            && !at("8").exists()
    });
    assert_eq!(read_at(&open, 0, 7), b"changed");
}

#[test]
fn nothing_can_be_written_where_files_are_opened_without_asking() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let mounted = mount_of_files(dir.path());
    let write = File::options().write(true).open(mounted.path().join("7"));
    assert_eq!(errno(write).unwrap_err(), Errno::ROFS);
    assert_eq!(errno(File::create(mounted.path().join("new"))).unwrap_err(), Errno::ROFS);
    let place = TestDir::new();
    let arguments = [dir.path().as_os_str(), place.path().as_os_str()];
    let mut line = vec!["mount".as_ref(), "-o".as_ref(), "access=write,open=none".as_ref()];
    line.extend(arguments);
    let output = run::<&std::ffi::OsStr>(&line);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("open=none") && error.contains("access=read"), "{error}");
}

#[test]
fn reports_are_whole_for_many_readers_and_every_command_is_answered() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let mounted = mount_of_files(dir.path());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let path = mounted.path().join(".mmapfs/status.json");
                    let text = fs::read_to_string(path).unwrap();
                    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(report["report"], "status");
                }
            });
            scope.spawn(|| {
                for _ in 0..10 {
                    assert!(requests(&mounted).is_object());
                }
            });
        }
    });
    let unknown = run(&["advise", "willneed", mounted.path().join("none").to_str().unwrap()]);
    assert_eq!(unknown.status.code(), Some(1));
}

#[test]
fn what_a_reload_forbids_to_read_is_no_longer_shown_from_the_cache() {
    if !require_fuse() {
        return;
    }
    let (dir, place) = (TestDir::new(), TestDir::new());
    let rules = place.path().join("rules.toml");
    fs::write(&rules, "").unwrap();
    for name in ["secret", "open"] {
        fs::write(dir.path().join(name), pattern(3000)).unwrap();
    }
    let options = format!("{OPTIONS},rules={}", rules.display());
    let mounted = MountedFs::over(dir.path(), &options);
    let at = |name: &str| mounted.path().join(name);
    assert_content(at("secret"), &pattern(3000));
    assert_content(at("open"), &pattern(3000));
    fs::write(&rules, "[[rule]]\nmatch = \"secret\"\nprot = \"none\"\n").unwrap();
    let output = run(&["reload", mounted.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for("the cached content to go", || errno(fs::read(at("secret"))) == Err(Errno::ACCESS));
    assert_content(at("open"), &pattern(3000));
}
