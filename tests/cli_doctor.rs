//! `mmapfs doctor`: what it says is what is there, and nothing of it stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{Bound, SmallFs, TestDir, open_to_all, require_fuse, require_root, set_mode};
use serde_json::Value;

/// A user that is nobody else.
const STRANGER: u32 = 40_077;

fn doctor() -> Command {
    let mut command = Command::new(common::program());
    command.arg("doctor");
    command
}

/// Runs it, and asserts that nothing of its mount is left.
fn run(command: &mut Command) -> Output {
    let scratch = TestDir::new();
    set_mode(scratch.path(), 0o1777);
    let output = command.env("TMPDIR", scratch.path()).output().unwrap();
    let mounts = fs::read("/proc/self/mountinfo").unwrap();
    let mounts = String::from_utf8_lossy(&mounts);
    assert!(!mounts.contains(scratch.path().to_str().unwrap()), "a mount is left: {mounts}");
    let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(Result::unwrap).collect();
    assert!(left.is_empty(), "{left:?}");
    output
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What it says of a directory.
fn examined(dir: &Path) -> Value {
    parsed(&run(doctor().arg("--json").arg(dir)))
}

#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[track_caller]
fn assert_state(report: &Value, name: &str, state: &str) {
    let found = check(report, name);
    assert_eq!(found["state"], state, "{found}");
}

#[test]
fn every_check_has_all_its_fields_and_a_name_of_its_own() {
    let dir = TestDir::new();
    let report = examined(dir.path());
    assert_eq!(report["report"], "doctor");
    assert_eq!(report["directory"], dir.path().canonicalize().unwrap().to_str().unwrap());
    let checks = report["checks"].as_array().unwrap();
    let mut names = BTreeSet::new();
    for check in checks {
        assert!(names.insert(check["name"].as_str().unwrap()), "{check}");
        assert!(["yes", "no", "limited", "unknown"].contains(&check["state"].as_str().unwrap()));
        for text in ["name", "group", "detail", "used_for", "without"] {
            assert!(!check[text].as_str().unwrap().is_empty(), "{text} of {check}");
        }
        assert!(check["values"].is_object(), "{check}");
    }
    for name in ["mount", "fuse_protocol", "passthrough", "fusermount3", "user_allow_other"] {
        assert!(names.contains(name), "{name}");
    }
    for name in ["openat2", "file_handles", "fanotify", "cachestat", "pagemap_scan", "reflink"] {
        assert!(names.contains(name), "{name}");
    }
    assert!(!names.contains("explicit_inval_data"), "nothing uses it");
    for name in ["descriptors", "max_map_count", "memlock", "max_pages_limit"] {
        assert!(names.contains(name), "{name}");
    }
}

#[test]
fn numbers_are_those_of_the_system() {
    let dir = TestDir::new();
    let report = examined(dir.path());
    let number = |path: &str| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    let maps = number("/proc/sys/vm/max_map_count");
    assert_eq!(check(&report, "max_map_count")["values"]["value"], maps);
    let marks = number("/proc/sys/fs/fanotify/max_user_marks");
    assert_eq!(check(&report, "fanotify_marks")["values"]["value"], marks);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(check(&report, "descriptors")["values"]["hard"], Value::from(limit.maximum));
}

#[test]
fn capabilities_are_those_of_the_process() {
    let dir = TestDir::new();
    let report = examined(dir.path());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
    for (name, bit) in [("cap_sys_admin", 21), ("cap_dac_read_search", 2), ("cap_setuid", 7)] {
        let state = if effective >> bit & 1 == 1 { "yes" } else { "no" };
        assert_state(&report, name, state);
    }
}

#[test]
fn root_is_told_what_a_mount_is_given() {
    if !require_fuse() || !require_root() {
        return;
    }
    let dir = TestDir::new();
    let output = run(doctor().arg("--json").arg(dir.path()));
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
    let report = parsed(&output);
    assert_eq!(report["mountable"], true);
    for name in ["mount", "dev_fuse", "fuse_protocol", "auto_inval_data", "readdirplus", "openat2"]
    {
        assert_state(&report, name, "yes");
    }
    let protocol = &check(&report, "fuse_protocol")["values"];
    assert_eq!(protocol["major"], 7);
    assert!(protocol["minor"].as_u64().unwrap() >= 31, "{protocol}");
    assert!(protocol["offered"].as_array().unwrap().len() > 10, "{protocol}");
}

#[test]
fn what_a_real_mount_agrees_on_is_what_was_foretold() {
    if !require_fuse() || !require_root() {
        return;
    }
    let fs = common::MountedFs::new("access=write");
    let output =
        Command::new(common::program()).args(["status", "--json"]).arg(fs.path()).output().unwrap();
    let status = parsed(&output);
    let report = examined(fs.backing());
    let protocol = &check(&report, "fuse_protocol")["values"];
    let mut compared = 0;
    let foretold = format!("{}.{}", protocol["major"], protocol["minor"]);
    assert_eq!(status["kernel"]["protocol"], foretold);
    for feature in status["kernel"]["features"].as_array().unwrap() {
        let name = feature["name"].as_str().unwrap();
        // Passthrough may be agreed on and still be refused; others are no capabilities.
        let checks = report["checks"].as_array().unwrap();
        if name != "passthrough" && checks.iter().any(|check| check["name"] == name) {
            let state = if feature["in_use"] == true { "yes" } else { "no" };
            assert_state(&report, name, state);
            compared += 1;
        }
    }
    assert!(compared >= 10, "{status}");
}

#[test]
fn passthrough_on_a_stacked_filesystem_needs_a_depth_of_two() {
    if !require_fuse() || !require_root() {
        return;
    }
    let dir = TestDir::new();
    let flat = examined(dir.path());
    if check(&flat, "passthrough")["state"] != "yes" {
        eprintln!("SKIPPED: this kernel has no passthrough");
        return;
    }
    assert_eq!(check(&flat, "passthrough")["values"]["stack_depth"], 1);
    let memory = SmallFs::tmpfs(1 << 20);
    let Some(stacked) = Overlay::new(memory.path()) else { return };
    let report = examined(&stacked.0);
    assert_state(&report, "passthrough", "yes");
    assert_eq!(check(&report, "passthrough")["values"]["stack_depth"], 2);
    assert_eq!(check(&report, "writable")["values"]["fstype"], "overlay");
}

/// An overlay mount, unmounted at the end.
struct Overlay(std::path::PathBuf);

impl Overlay {
    /// Makes one below a directory; `None` where the kernel has no overlayfs.
    fn new(below: &Path) -> Option<Overlay> {
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(below.join(name)).unwrap();
        }
        let place = |name: &str| below.join(name).display().to_string();
        let (lower, upper, work) = (place("lower"), place("upper"), place("work"));
        let data = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let data = std::ffi::CString::new(data).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        let merged = below.join("merged");
        match rustix::mount::mount("overlay", &merged, "overlay", flags, data.as_c_str()) {
            Ok(()) => Some(Overlay(merged)),
            Err(rustix::io::Errno::NODEV) => {
                eprintln!("SKIPPED: this kernel has no overlayfs");
                None
            }
            Err(errno) => panic!("mounting an overlay: {errno}"),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_user_is_told_what_is_missing_and_how_to_get_it() {
    if !require_root() {
        return;
    }
    let dir = TestDir::new();
    let program = dir.path().join("mmapfs");
    // By another process: a descriptor of ours, open for writing in a child that another test is
    // just starting, would make it "busy".
    let copied = Command::new("cp").arg(common::program()).arg(&program).status().unwrap();
    assert!(copied.success());
    set_mode(&program, 0o755);
    let served = dir.directory("served");
    open_to_all(&served);
    let mut command = Command::new(&program);
    command.arg("doctor").arg("--json").arg(&served).uid(STRANGER).gid(STRANGER);
    let output = run(&mut command);
    let report = parsed(&output);
    assert_state(&report, "passthrough", "no");
    assert!(check(&report, "passthrough")["detail"].as_str().unwrap().contains("CAP_SYS_ADMIN"));
    assert_state(&report, "cap_sys_admin", "no");
    assert_state(&report, "fanotify", "no");
    // The directory is root's.
    assert_state(&report, "writable", "no");
    assert_state(&report, "reflink", "unknown");
    let told = String::from_utf8(output.stderr.clone()).unwrap();
    if check(&report, "dev_fuse")["state"] == "no" {
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        assert_eq!(report["mountable"], false);
        assert_state(&report, "mount", "no");
        assert_state(&report, "fuse_protocol", "unknown");
        assert!(told.starts_with("mmapfs: ") && told.contains("run as root"), "{told}");
        assert!(!told.contains("mmapfs-doctor-"), "{told}");
    }
}

#[test]
fn a_directory_that_may_not_be_written_is_tried_with_a_file_that_is_there() {
    if !require_fuse() || !require_root() {
        return;
    }
    let dir = TestDir::new();
    let (source, shown) = (dir.directory("source"), dir.directory("shown"));
    fs::write(source.join("file"), "content").unwrap();
    // A second mount that nobody has written through: the first may be busy for a moment, with
    // descriptors of processes that are just being started.
    let _bound = Bound::new(&source, &shown);
    let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount_remount(&shown, flags, c"").unwrap();
    let report = examined(&shown);
    assert_state(&report, "writable", "no");
    assert_state(&report, "reflink", "unknown");
    let passthrough = check(&report, "passthrough");
    assert_ne!(passthrough["state"], "unknown", "{passthrough}");
}

#[test]
fn nothing_is_left_in_the_directory() {
    let dir = TestDir::new();
    examined(dir.path());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_text_says_the_same_as_the_json() {
    let dir = TestDir::new();
    let report = examined(dir.path());
    let brief = String::from_utf8(run(doctor().arg(dir.path())).stdout).unwrap();
    let whole = String::from_utf8(run(doctor().arg("-v").arg(dir.path())).stdout).unwrap();
    for check in report["checks"].as_array().unwrap() {
        let (name, state) = (check["name"].as_str().unwrap(), check["state"].as_str().unwrap());
        let says = |text: &str| {
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                (words.next(), words.next()) == (Some(state), Some(name))
            })
        };
        assert!(says(&brief) && says(&whole), "{name}: {state}\n{brief}");
        let without = format!("without: {}", check["without"].as_str().unwrap());
        assert!(whole.contains(&without), "{name}");
        let missing = ["no", "limited"].contains(&state);
        assert!(brief.contains(check["used_for"].as_str().unwrap()), "{name}");
        assert!(!missing || brief.contains(&without), "{name}");
    }
}

#[test]
fn a_directory_that_is_missing_is_one_line_and_exits_with_1() {
    let dir = TestDir::new();
    for (path, reason) in [("missing", "No such file"), ("file", "Not a directory")] {
        let path = dir.path().join(path);
        if reason.starts_with("Not") {
            fs::write(&path, "").unwrap();
        }
        let output = run(doctor().arg(&path));
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{told}");
        assert!(told.starts_with(&format!("mmapfs: {}: ", path.display())), "{told}");
        assert!(told.contains(reason), "{told}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(run(doctor().arg("--frob")).status.code(), Some(2));
}

#[test]
fn what_a_scratch_takes_is_tried_and_leaves_nothing_behind() {
    if !require_root() {
        return;
    }
    let dir = TestDir::new();
    let report = examined(dir.path());
    for name in ["scratch_marks", "scratch_whiteouts", "scratch_memory", "mount_clones"] {
        assert_eq!(check(&report, name)["group"], "scratch");
        assert_state(&report, name, "yes");
    }
    assert_eq!(check(&report, "scratch_marks")["values"]["space"], "trusted");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
    assert!(left.is_empty(), "{left:?}");
}
