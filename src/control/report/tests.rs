use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::*;
use crate::advice::Advice;
use crate::control::command::ErrorKind;

fn status() -> StatusReport {
    let feature = |name: &str, in_use, reason: Option<&str>| Feature {
        name: name.to_owned(),
        in_use,
        reason: reason.map(str::to_owned),
    };
    StatusReport {
        version: "0.1.0".into(),
        pid: 4711,
        uptime_s: 3725.5,
        source: "/srv/data".into(),
        mountpoint: "/mnt".into(),
        access: "write".into(),
        flags: "shared".into(),
        prot: "rw".into(),
        advice: "normal".into(),
        plane: "auto".into(),
        no_passthrough: None,
        rules: None,
        log: Some("/run/mmapfs/log".into()),
        read_only: false,
        privileged: true,
        threads: 4,
        clone_fd: true,
        scratch: None,
        timeouts: Timeouts { entry_s: 1.0, attr_s: 0.5, negative_s: 0.0 },
        watch: Watch {
            by: Some("fanotify on the filesystem".into()),
            events: 7,
            invalidations: 5,
            overflows: 0,
        },
        kernel: Kernel {
            protocol: "7.45".into(),
            max_write: 1 << 20,
            features: vec![
                feature("readdirplus", true, None),
                feature("passthrough", false, Some("not\npermitted")),
            ],
        },
        inodes: Inodes { known: 3, lookups: u64::MAX },
        handles: Handles { files: 2, directories: 1 },
        open_files: vec![OpenFileReport {
            path: "a".into(),
            ino: 12,
            handles: 2,
            plane: "mapped".into(),
            plane_reason: Some("plane=mapped".into()),
        }],
        mappings: Mappings { count: 2, limit: 16_384, bytes: 3 << 19, evicted: 0 },
        requests: BTreeMap::from([("lookup".into(), 12), ("read".into(), 30)]),
        errors: Errors { faults: 1, failed_requests: 5 },
        memory: Memory { rss_bytes: 5 << 20, descriptors: 9, descriptor_limit: 20_000 },
    }
}

fn file() -> FileReport {
    FileReport {
        path: "data/a.bin".into(),
        ino: 42,
        kind: "file".into(),
        size: 1 << 20,
        access: "write".into(),
        flags: "shared".into(),
        prot: "rw".into(),
        advice: "normal".into(),
        sticky: vec![StickyAdvice { range: [0, 65_536], advice: "random".into() }],
        plane: "read/write".into(),
        plane_reason: Some("the file is larger than the address space".into()),
        handles: 1,
        mapped: true,
        mapped_bytes: 1 << 20,
        pages: 256,
        scratch_pages: None,
        base: None,
        resident: Some(64),
        mount_resident: None,
        dirty: None,
        writeback: Some(0),
        locked_bytes: 0,
        faults: 0,
    }
}

fn map() -> MapReport {
    MapReport {
        start: 0x7f12_3400_0000,
        end: 0x7f12_3410_0000,
        prot: "rw-s".into(),
        offset: 0,
        dev: "fd:01".into(),
        ino: 42,
        path: "data/a b.bin".into(),
        access: "write".into(),
        flags: "shared+populate".into(),
        advice: "random".into(),
        size: 1 << 20,
        resident: Some(64),
    }
}

fn advise() -> AdviseReport {
    AdviseReport {
        path: "data/a.bin".into(),
        advice: "willneed".into(),
        range: [0, 1 << 20],
        pages: 256,
        resident_before: Some(0),
        resident_after: Some(256),
        mount_resident_before: None,
        mount_resident_after: None,
        effect: "readers".into(),
        effect_reason: None,
        left: None,
        elapsed_us: 1234,
    }
}

fn flush() -> FlushReport {
    FlushReport {
        path: Name::default(),
        mode: "sync".into(),
        range: [4096, 8192],
        dirty_before: Some(1),
        dirty_after: None,
        elapsed_us: 2_345_678,
    }
}

fn lock() -> LockReport {
    LockReport { path: "x\ny".into(), locked: true, range: [0, 4096], elapsed_us: 7 }
}

/// One report of each kind.
fn one_of_each() -> Vec<Report> {
    vec![
        Report::Advise(advise()),
        Report::Flush(flush()),
        Report::Status(Box::new(status())),
        Report::File(Box::new(file())),
        Report::Maps(vec![map(), MapReport { resident: None, ..map() }]),
        Report::Maps(Vec::new()),
        Report::Lock(lock()),
        Report::Lock(LockReport { path: Name::from(OsStr::from_bytes(b"\xff\n")), ..lock() }),
        Report::Reload(ReloadReport {
            rules: 3,
            path: Some("/etc/mmapfs/rules.toml".into()),
            kept: false,
        }),
        Report::Help("a\nb\n".into()),
        Report::Version(VersionReport { version: "0.1.0".into(), protocol: "7.45".into() }),
        Report::Log { level: "debug".into() },
        Report::from(&CommandError::new(ErrorKind::NotFound, "no such file")),
        Report::from(&CommandError::new(ErrorKind::NotFound, "no").about(Path::new("a\nb"))),
    ]
}

#[test]
fn every_report_is_one_line_of_json_and_reads_back() {
    for report in one_of_each() {
        let json = report.to_json().unwrap();
        assert!(!json.contains('\n'), "{json}");
        assert_eq!(Report::from_json(&json).unwrap(), report, "{json}");
    }
}

#[test]
fn json_names_its_kind_and_keeps_numbers_as_numbers() {
    assert_eq!(
        Report::Flush(flush()).to_json().unwrap(),
        r#"{"report":"flush","path":"","mode":"sync","range":[4096,8192],"dirty_before":1,"dirty_after":null,"elapsed_us":2345678}"#
    );
    assert_eq!(Report::Maps(Vec::new()).to_json().unwrap(), r#"{"report":"maps","mappings":[]}"#);
    assert_eq!(Report::Help("x".into()).to_json().unwrap(), r#"{"report":"help","text":"x"}"#);
}

#[test]
fn the_json_of_an_error_has_the_members_that_the_manual_names() {
    let error = CommandError::new(ErrorKind::NotAllowed, "remove destroys the bytes")
        .about(Path::new("a b"))
        .needing_destroy(Advice::Remove);
    let json = Report::from(&error).to_json().unwrap();
    assert_eq!(
        json,
        r#"{"report":"error","error":"a b: remove destroys the bytes: say `advise destroy remove` if that is meant","errno":1,"needs":"destroy","path":"a b","reason":"remove destroys the bytes"}"#
    );
    let json = Report::from(&CommandError::new(ErrorKind::Unknown, "no")).to_json().unwrap();
    assert_eq!(json, r#"{"report":"error","error":"no","errno":22,"reason":"no"}"#);
    let manual = include_str!("../../../docs/manual.md");
    for member in ["report", "error", "errno", "needs", "path", "reason"] {
        assert!(manual.contains(&format!("\n| `{member}` | ")), "{member}");
    }
}

#[test]
fn json_that_is_no_report_is_an_error() {
    for text in ["", "{}", "[]", r#"{"report":"x"}"#, r#"{"report":"maps"}"#, "{\"report\":"] {
        assert!(Report::from_json(text).is_err(), "{text}");
    }
}

#[test]
fn short_reports_are_one_line_that_says_what_was_done() {
    let table = [
        (
            Report::Advise(advise()),
            "willneed 0-1M of data/a.bin: 256 pages, resident 0 before, 256 after, in 1.2 ms, effect: readers\n",
        ),
        (
            Report::Flush(flush()),
            "flush sync 4K-8K of .: dirty pages 1 before, unknown after, in 2.34 s\n",
        ),
        (Report::Lock(lock()), "locked 0-4K of \"x\\ny\" in 7 us\n"),
        (
            Report::Reload(ReloadReport { rules: 3, path: Some("r".into()), kept: false }),
            "3 rules from r\n",
        ),
        (
            Report::Reload(ReloadReport { rules: 1, path: Some("/dev/fd/9".into()), kept: true }),
            "1 rule kept as read at mount: /dev/fd/9 is a pipe or a descriptor, which is read once\n",
        ),
        (
            Report::Reload(ReloadReport { rules: 0, path: None, kept: false }),
            "no rules: the mount has no rules file\n",
        ),
        (Report::Log { level: "debug".into() }, "log level debug\n"),
        (Report::Maps(Vec::new()), ""),
        (Report::from(&CommandError::new(ErrorKind::NotFound, "a\nb")), "error: a\\nb\n"),
        (
            Report::from(&CommandError::new(ErrorKind::NotFound, "no").about(Path::new("a\nb"))),
            "error: \"a\\nb\": no\n",
        ),
    ];
    for (report, text) in table {
        assert_eq!(report.to_string(), text);
    }
}

#[test]
fn an_advice_tells_its_effect_and_both_caches() {
    let report = AdviseReport {
        advice: "pageout".into(),
        mount_resident_before: Some(256),
        mount_resident_after: Some(0),
        effect: "none".into(),
        effect_reason: Some("so".into()),
        left: Some(LeftReport { dirty: Some(1), writeback: None, in_use: 2 }),
        ..advise()
    };
    let text = "pageout 0-1M of data/a.bin: 256 pages, resident 0 before, 256 after, in the cache \
                of the mount 256 before, 0 after, in 1.2 ms, effect: none: so; left: 1 dirty, \
                unknown in writeback, 2 in use\n";
    assert_eq!(Report::Advise(report.clone()).to_string(), text);
    let json = Report::Advise(report.clone()).to_json().unwrap();
    assert_eq!(Report::from_json(&json).unwrap(), Report::Advise(report));
    let both = FileReport { mount_resident: Some(128), ..file() };
    let text = Report::File(Box::new(both)).to_string();
    assert!(text.contains("\n           128 (50%) in the cache of the mount\n"), "{text}");
}

#[test]
fn a_plane_that_cannot_be_had_is_told_with_the_reason() {
    let status = StatusReport {
        plane: "passthrough".into(),
        no_passthrough: Some("it needs CAP_SYS_ADMIN".into()),
        ..status()
    };
    let text = Report::Status(Box::new(status)).to_string();
    let row = "\nplane      passthrough, which cannot be had: it needs CAP_SYS_ADMIN\n";
    assert!(text.contains(row), "{text}");
}

#[test]
fn a_mapping_is_shown_in_the_manner_of_proc() {
    let text = Report::Maps(vec![map()]).to_string();
    let place = "7f1234000000-7f1234100000 rw-s 00000000 fd:01 42";
    let rest = "data/a b.bin access=write flags=shared+populate advice=random resident=64\n";
    assert_eq!(text, format!("{place:72} {rest}"));
}

#[test]
fn the_status_of_a_mount_is_readable() {
    assert_eq!(
        Report::Status(Box::new(status())).to_string(),
        "\
version    0.1.0 (pid 4711)
source     /srv/data
mount      /mnt (writable, for 1 h 2 min)
view       access=write flags=shared prot=rw advice=normal
plane      auto
rules      none
log        /run/mmapfs/log
daemon     privileged yes, threads 4, a descriptor each
memory     5 MiB resident, descriptors 9 of 20000
timeouts   entry 1 s, attr 0.5 s, negative 0 s
watch      fanotify on the filesystem: 7 changes, 5 invalidations, 0 overflows
kernel     FUSE protocol 7.45, requests up to 1 MiB
           readdirplus: in use
           passthrough: not in use: not\\npermitted
inodes     3 known, 18446744073709551615 lookups
open       files 2, directories 1
           a: 2 open, mapped: plane=mapped
mappings   2 of 16384, 1.5 MiB, 0 evicted
requests   42, 5 failed
           lookup 12
           read 30
faults     1
"
    );
}

#[test]
fn the_status_of_a_file_is_readable() {
    assert_eq!(
        Report::File(Box::new(file())).to_string(),
        "\
path       data/a.bin
kind       file, inode 42
size       1 MiB (1048576 bytes)
view       access=write flags=shared prot=rw advice=normal
           advice random for 0-64K
plane      read/write: the file is larger than the address space
handles    1
mapped     1 MiB by the daemon
pages      256
resident   64 (25%)
dirty      unknown
writeback  0 (0%)
locked     0 B
faults     0
"
    );
}

#[test]
fn a_file_without_pages_has_no_share_of_them() {
    let empty = FileReport { size: 0, pages: 0, resident: Some(0), mapped: false, ..file() };
    let text = Report::File(Box::new(empty)).to_string();
    assert!(
        text.contains("\nresident   0\n") && text.contains("\nmapped     not by the daemon\n"),
        "{text}"
    );
}
