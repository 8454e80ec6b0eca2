//! What the daemon may still do once it serves.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::process::Command;

use rustix::thread::CapabilitySet;

use super::*;
use crate::common::process::{my_part, start_part_under};

/// The fields of /proc/PID/task/TID/status of every thread of a daemon.
fn threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let value = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    tasks.filter_map(|task| status(task.unwrap())).map(value).collect()
}

fn sets(pid: u32, field: &str) -> CapabilitySet {
    let mut all = CapabilitySet::empty();
    for value in threads(pid, field) {
        all |= CapabilitySet::from_bits_retain(u64::from_str_radix(&value, 16).unwrap());
    }
    all
}

/// Whether the daemon says that something is in force, and what it says of it.
fn said(mounted: &MountedFs, name: &str) -> (bool, String) {
    let status = fs::read(mounted.path().join(".mmapfs/status.json")).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    let features = status["kernel"]["features"].as_array().unwrap();
    let feature = features.iter().find(|feature| feature["name"] == name).unwrap();
    (feature["in_use"].as_bool().unwrap(), feature["reason"].as_str().unwrap_or_default().into())
}

/// Beyond what any request of the kernel needs.
const NEVER: CapabilitySet = CapabilitySet::SETPCAP
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::BPF);

#[test]
fn a_root_daemon_keeps_the_rights_of_its_requests_on_all_threads_and_says_so() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let only_to_write = CapabilitySet::MKNOD | CapabilitySet::CHOWN | CapabilitySet::SETFCAP;
    for (options, writes) in [("access=read", false), ("access=write", true), ("access=copy", true)]
    {
        let mounted = MountedFs::new(options);
        let pid = mounted.pid();
        for field in ["CapPrm", "CapEff", "CapBnd"] {
            let sets = sets(pid, field);
            assert!(!sets.intersects(NEVER), "{options} {field}: {sets:?}");
            assert!(sets.contains(CapabilitySet::SYS_ADMIN), "{options} {field}: {sets:?}");
            assert_eq!(sets.contains(only_to_write), writes, "{options} {field}: {sets:?}");
            assert_eq!(sets.intersects(only_to_write), writes, "{options} {field}: {sets:?}");
        }
        for field in ["CapInh", "CapAmb"] {
            assert!(sets(pid, field).is_empty(), "{options} {field}");
        }
        assert!(threads(pid, "NoNewPrivs").iter().all(|value| value == "1"), "{options}");
        let (dropped, kept) = said(&mounted, "least_capabilities");
        assert!(dropped && kept.contains("sys_admin"), "{options}: {kept}");
        assert_eq!(kept.contains("mknod"), writes, "{options}: {kept}");
        assert!(said(&mounted, "no_new_privs").0, "{options}");
        let (filtered, what) = said(&mounted, "seccomp");
        let mode = if filtered { "2" } else { "0" };
        assert!(threads(pid, "Seccomp").iter().all(|value| value == mode), "{options}: {what}");
        said(&mounted, "landlock");
    }
}

#[test]
fn everything_that_a_privileged_caller_may_do_works_in_the_sandbox() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for options in ["access=write,dev,suid,allow_other", "access=copy,dev,suid,allow_other"] {
        let mounted = MountedFs::new(options);
        let at = |name: &str| mounted.path().join(name);
        fs::write(at("file"), b"content").unwrap();
        chown(at("file"), Some(4711), Some(4712)).unwrap();
        set_mode(at("file"), 0o6755);
        let meta = fs::metadata(at("file")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (4711, 4712, 0o6755));
        let run = |words: &[&str], path: &str| {
            let output = Command::new(words[0]).args(&words[1..]).arg(at(path)).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{options} {words:?}: {text}");
        };
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("null"),
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(1, 3),
        )
        .unwrap();
        fs::write(at("null"), b"nowhere").unwrap();
        if require_program("setcap") {
            run(&["setcap", "cap_net_raw+ep"], "file");
        }
        let file = create(at("file"));
        file.write_all_at(b"C", 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        Caller::new(4711).run(|| fs::write(at("file"), b"of the owner").unwrap());
        ask(mounted.path(), "flush file");
        ask(mounted.path(), "lock file");
        ask(mounted.path(), "unlock file");
        fs::remove_file(at("null")).unwrap();
        mounted.unmount();
    }
}

#[test]
fn the_sandbox_can_be_left_out_and_says_so() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write,sandbox=off");
    for name in ["least_capabilities", "no_new_privs", "landlock", "seccomp"] {
        assert_eq!(said(&mounted, name), (false, String::from("sandbox=off")), "{name}");
    }
    assert!(threads(mounted.pid(), "NoNewPrivs").iter().all(|value| value == "0"));
    assert!(threads(mounted.pid(), "Seccomp").iter().all(|value| value == "0"));
}

/// Runs a part of a test where /proc is mounted with these options, in a mount namespace of its own.
#[track_caller]
fn run_part_with_proc(options: &str, part: &str) {
    let script = format!("mount -t proc -o {options} proc /proc && exec \"$0\" \"$@\"");
    let words = ["unshare", "--mount", "sh", "-c", &script];
    let output = start_part_under(&words, part, Path::new("/proc")).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options}: {text}");
}

#[test]
fn the_groups_of_callers_are_known_where_proc_hides_processes_and_the_status_says_how() {
    if !(require_fuse() && require_root() && require_program("unshare")) {
        return;
    }
    let part = "sandbox::part_with_a_caller_of_two_groups";
    // Without gid= the members of the group of root see all processes.
    for options in ["hidepid=invisible,gid=12345", "hidepid=ptraceable", "hidepid=invisible"] {
        run_part_with_proc(options, part);
    }
}

#[test]
#[ignore = "a part of another test"]
fn part_with_a_caller_of_two_groups() {
    if my_part().is_none() {
        return;
    }
    let mounted = MountedFs::new("access=write,allow_other,suid,dev,plane=mapped");
    let file = mounted.path().join("file");
    fs::write(&file, b"content").unwrap();
    chown(&file, Some(4711), Some(4712)).unwrap();
    // Setgid of a group that cannot execute stays where a member of the group writes, and no other.
    for (groups, mode) in [(&[4712][..], 0o2767), (&[4713][..], 0o767)] {
        set_mode(&file, 0o2767);
        Caller::new(4714).groups(groups).run(|| {
            let file = fs::File::options().write(true).open(&file).unwrap();
            file.write_all_at(b"C", 0).unwrap();
        });
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, mode, "{groups:?}");
    }
    let (seen, how) = said(&mounted, "caller_groups");
    assert!(seen && how.contains("hidepid="), "{how}");
    assert!(!sets(mounted.pid(), "CapPrm").intersects(NEVER));
}
