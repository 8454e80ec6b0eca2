//! The commands of the command line on files below a mount.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use common::mounted::{program, run};
use common::*;
use serde_json::Value;

const LEN: usize = 1 << 20;

fn on_a_mount(test: impl Fn(&Path, &Path)) {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    fs::create_dir(mounted.backing().join("data")).unwrap();
    for name in ["data/a", "data/with blank", "b"] {
        fs::write(mounted.backing().join(name), pattern(LEN)).unwrap();
        create(mounted.backing().join(name)).sync_all().unwrap();
    }
    test(mounted.path(), mounted.backing());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that has to succeed in a directory, and gives what it prints.
#[track_caller]
fn good(dir: &Path, words: &[&str]) -> String {
    let output = output_in(dir, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn output_in(dir: &Path, words: &[&str]) -> Output {
    Command::new(program()).args(words).current_dir(dir).output().unwrap()
}

/// As [`good`], for answers in JSON, one to a line.
#[track_caller]
fn json(dir: &Path, words: &[&str]) -> Vec<Value> {
    let text = good(dir, words);
    let parse = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|err| panic!("not JSON: {err}: {line}"))
    };
    text.lines().map(parse).collect()
}

#[test]
fn advice_is_given_to_files_anywhere_below_a_mount() {
    on_a_mount(|mount, _| {
        let absolute = mount.join("data/a");
        let words = ["advise", "--json", "willneed", absolute.to_str().unwrap()];
        let report = &json(Path::new("/"), &words)[0];
        assert_eq!((&report["path"], &report["pages"]), (&"data/a".into(), &256.into()));
        let words = ["advise", "--json", "--range", "4K-16K", "populate_read", "a", "with blank"];
        let reports = json(&mount.join("data"), &words);
        let paths: Vec<&str> =
            reports.iter().map(|report| report["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["data/a", "data/with blank"]);
        assert!(reports.iter().all(|report| report["resident_after"] == 3), "{reports:?}");
        let printed = good(&mount.join("data"), &["advise", "MADV_COLD", "../b"]);
        assert!(printed.contains("b") && printed.contains("cold"), "{printed}");
    });
}

#[test]
fn a_path_is_found_through_links_and_dots() {
    on_a_mount(|mount, _| {
        let dir = TestDir::new();
        symlink(mount.join("data"), dir.path().join("link")).unwrap();
        let report = &json(dir.path(), &["status", "--json", "link/../data/a"])[0];
        assert_eq!((&report["path"], &report["size"]), (&"data/a".into(), &LEN.into()));
        let report = &json(&mount.join("data"), &["status", "--json", "./../data/./a"])[0];
        assert_eq!(report["path"], "data/a");
    });
}

#[test]
fn flush_lock_and_unlock_answer() {
    on_a_mount(|mount, _| {
        fs::write(mount.join("b"), pattern(LEN / 2)).unwrap();
        let report = &json(mount, &["flush", "--json", "b"])[0];
        assert_eq!((&report["mode"], &report["path"]), (&"sync".into(), &"b".into()));
        assert!(matches!(report["dirty_after"].as_u64(), None | Some(0)), "{report}");
        let report = &json(mount, &["lock", "--json", "--range", "0-8K", "b"])[0];
        assert_eq!((&report["locked"], &report["range"][1]), (&true.into(), &8192.into()));
        assert_eq!(json(mount, &["status", "--json", "b"])[0]["locked_bytes"], 8192);
        assert_eq!(json(mount, &["unlock", "--json", "b"])[0]["locked"], false);
        assert_eq!(json(mount, &["status", "--json", "b"])[0]["locked_bytes"], 0);
    });
}

#[test]
fn status_and_maps_tell_of_mounts_and_files() {
    on_a_mount(|mount, backing| {
        let status = &json(Path::new("/"), &["status", "--json", mount.to_str().unwrap()])[0];
        assert_eq!(status["source"], backing.to_str().unwrap());
        assert!(status["requests"].is_object() && status["uptime_s"].is_f64(), "{status}");
        // On the passthrough plane it is said that this reaches no reader.
        assert!(output_in(mount, &["advise", "random", "data/a"]).status.success());
        let maps = &json(mount, &["maps", "--json", "."])[0];
        let map = &maps["mappings"][0];
        assert_eq!((&map["path"], &map["advice"]), (&"data/a".into(), &"random".into()));
        assert!(map["start"].as_u64() < map["end"].as_u64());
        assert!(good(mount, &["maps", "."]).contains("data/a"));
        let printed = good(mount, &["status", "."]);
        assert!(printed.contains(backing.to_str().unwrap()), "{printed}");
    });
}

#[test]
fn failures_are_one_line_and_an_exit_code() {
    on_a_mount(|mount, backing| {
        let cases: [(&[&str], i32, &str); 11] = [
            (&["advise", "wilneed", "b"], 2, "willneed"),
            (&["advise", "willneed"], 2, "PATH"),
            (&["advise", "--range", "9-3", "willneed", "b"], 2, "9-3"),
            (&["advise", "--range", "0-2M", "willneed", "b"], 1, "b"),
            (&["advise", "willneed", "missing"], 1, "missing"),
            (&["advise", "remove", "b"], 1, ": say `--destroy` if that is meant"),
            (&["advise", "hwpoison", "b"], 1, "hwpoison"),
            (&["flush", "data/missing"], 1, "data/missing"),
            (&["lock", "data"], 1, "data"),
            (&["status", "/proc"], 1, "/proc"),
            (&["log", "loudly", "."], 2, "loudly"),
        ];
        for (words, code, word) in cases {
            let output = output_in(mount, words);
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{words:?}: {error}");
            assert!(error.contains(word), "{words:?}: {error}");
            assert!(error.starts_with("mmapfs: ") || code == 2, "{words:?}: {error}");
            assert!(output.stdout.is_empty(), "{words:?}: {}", text(&output.stdout));
        }
        let output = output_in(backing, &["advise", "willneed", "b"]);
        assert_eq!(output.status.code(), Some(1), "not below a mount");
        assert_content(backing.join("b"), &pattern(LEN));
    });
}

#[test]
fn one_bad_path_does_not_keep_the_others_from_being_served() {
    on_a_mount(|mount, _| {
        let output = output_in(mount, &["advise", "--json", "willneed", "b", "missing", "data/a"]);
        assert_eq!(output.status.code(), Some(1));
        let printed = text(&output.stdout);
        assert!(printed.contains("\"b\"") && printed.contains("data/a"), "{printed}");
        let errors = text(&output.stderr) + &printed;
        assert!(errors.contains("missing"), "{errors}");
    });
}

#[test]
fn what_destroys_has_to_be_meant() {
    on_a_mount(|mount, backing| {
        good(mount, &["advise", "--destroy", "--range", "0-64K", "remove", "b"]);
        let mut expected = pattern(LEN);
        expected[..64 << 10].fill(0);
        assert_content(backing.join("b"), &expected);
        assert_content(mount.join("b"), &expected);
    });
}

#[test]
fn the_level_of_the_log_is_set_and_the_version_of_the_daemon_told() {
    on_a_mount(|mount, _| {
        good(mount, &["log", "debug", "."]);
        good(mount, &["log", "info", "."]);
        let version = good(mount, &["version", "."]);
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        assert!(good(mount, &["version"]).contains(env!("CARGO_PKG_VERSION")));
    });
}

#[test]
fn another_name_of_the_control_directory_is_found() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,control_name=.door");
    fs::write(mounted.path().join("file"), b"x").unwrap();
    assert_eq!(json(mounted.path(), &["status", "--json", "file"])[0]["size"], 1);
    let without = MountedFs::new("access=write,control=off");
    let output = output_in(without.path(), &["status", "."]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
}

#[test]
fn a_reader_that_goes_away_is_no_failure_to_speak_of() {
    on_a_mount(|mount, _| {
        let script = format!("'{}' help advise | head -n 1", program().display());
        let output = Command::new("sh").args(["-c", &script]).current_dir(mount).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        let output = run(&["help", "frobnicate"]);
        assert_eq!(output.status.code(), Some(2));
    });
}

#[test]
fn status_says_whether_the_event_loops_stay_awake() {
    if !require_fuse() {
        return;
    }
    let several = std::thread::available_parallelism().unwrap().get() > 1;
    for (options, expected) in [("access=write", several), ("access=write,busy_poll=0", false)] {
        let mounted = MountedFs::new(options);
        let status = &json(mounted.path(), &["status", "--json"])[0];
        let features = status["kernel"]["features"].as_array().unwrap();
        let feature = features.iter().find(|feature| feature["name"] == "busy_poll").unwrap();
        assert_eq!(feature["in_use"], expected, "{options}: {feature}");
        assert_eq!(feature["reason"].is_null(), expected, "{options}: {feature}");
    }
}

/// The pages of a file in the page cache, asked of it by this process; `None` where the kernel does
/// not tell (Linux 6.5), or where they have no other place to be (tmpfs).
fn cached(path: &Path) -> Option<u64> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    if rustix::fs::statfs(path).unwrap().f_type as i64 == TMPFS_MAGIC {
        return None;
    }
    let file = fs::File::open(path).unwrap();
    mmapfs::sys::residency::cachestat(&file, 0..LEN as u64).ok().map(|stat| stat.cached)
}

/// Runs a test on a mount on each plane that is to be had.
fn on_each_plane(test: impl Fn(&MountedFs, &str)) {
    if !require_fuse() {
        return;
    }
    for plane in ["mapped", "auto"] {
        let mounted = MountedFs::new(&format!("access=write,plane={plane}"));
        fs::write(mounted.path().join("b"), pattern(LEN)).unwrap();
        let status = json(mounted.path(), &["status", "--json", "b"]).remove(0);
        test(&mounted, status["plane"].as_str().unwrap());
    }
}

#[test]
fn what_is_paged_out_is_in_neither_cache() {
    on_each_plane(|mounted, plane| {
        let (file, backing) = (mounted.path().join("b"), mounted.backing().join("b"));
        assert_content(&file, &pattern(LEN));
        if cached(&backing).is_none() {
            return eprintln!(
                "SKIPPED: the cache of {} cannot be told or evicted",
                backing.display()
            );
        }
        let twice = plane == "mapped";
        let status = &json(mounted.path(), &["status", "--json", "b"])[0];
        assert_eq!(status["resident"], 256, "{status}");
        assert_eq!(status["mount_resident"], if twice { 256 } else { 0 }, "{status}");
        // What was just written is dirty.
        let report = &json(mounted.path(), &["advise", "--json", "pageout", "b"])[0];
        assert_eq!((&report["effect"], &report["left"]), (&"readers".into(), &Value::Null));
        assert_eq!(report["resident_before"], 256, "{report}");
        assert_eq!(report["mount_resident_before"], if twice { 256 } else { 0 }, "{report}");
        assert_eq!(report["resident_after"], 0, "{report}");
        assert_eq!(report["mount_resident_after"], 0, "{report}");
        assert_eq!((cached(&backing), cached(&file)), (Some(0), Some(0)), "{plane}");
        assert_content(&backing, &pattern(LEN));
        assert_content(&file, &pattern(LEN));
        let text = good(mounted.path(), &["advise", "pageout", "b"]);
        assert_eq!(text.contains("in the cache of the mount 256 before, 0 after"), twice, "{text}");
    });
}

#[test]
fn pages_that_a_program_maps_stay_and_are_counted() {
    on_each_plane(|mounted, plane| {
        let (file, backing) = (mounted.path().join("b"), mounted.backing().join("b"));
        if cached(&backing).is_none() || plane != "passthrough" {
            return eprintln!(
                "SKIPPED: on the plane {plane} the mapping is of the mount's own cache"
            );
        }
        let open = fs::File::open(&file).unwrap();
        let mapped = common::mapped::Mapped::shared_for_reading(&open, LEN).unwrap();
        assert_bytes(&mapped.read(0, LEN), &pattern(LEN));
        let report = &json(mounted.path(), &["advise", "--json", "pageout", "b"])[0];
        let after = report["resident_after"].as_u64().unwrap();
        assert!(after > 0, "{report}");
        assert_eq!(
            (&report["left"]["in_use"], &report["left"]["dirty"]),
            (&after.into(), &0.into())
        );
        let text = good(mounted.path(), &["advise", "pageout", "b"]);
        assert!(text.contains("; left: 0 dirty, 0 in writeback, "), "{text}");
    });
}

#[test]
fn an_advice_for_readahead_says_whether_it_reaches_a_reader() {
    on_each_plane(|mounted, plane| {
        let none = plane == "passthrough";
        for advice in ["random", "sequential", "normal"] {
            let output = output_in(mounted.path(), &["advise", "--json", advice, "b"]);
            assert!(output.status.success());
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["effect"], if none { "none" } else { "readers" }, "{report}");
            assert_eq!(report["effect_reason"].is_null(), !none, "{report}");
            let error = text(&output.stderr);
            let said = format!("mmapfs: b: {advice} has no effect: ");
            assert_eq!(
                (error.lines().count(), error.starts_with(&said)),
                (usize::from(none), none)
            );
            assert_eq!(error.contains("plane=mapped"), none, "{error}");
            let text = ask(mounted.path(), format!("advise {advice} b")).text();
            assert_eq!(text.contains("effect: none: "), none, "{text}");
        }
        let report = &json(mounted.path(), &["advise", "--json", "dontneed", "b"])[0];
        assert_eq!(report["effect"], "this mapping", "{report}");
        assert!(report["effect_reason"].as_str().unwrap().contains("pageout"), "{report}");
    });
}

#[test]
fn a_plane_that_cannot_be_had_is_told_at_mount_and_by_status() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let (source, other) = (dir.directory("source"), dir.directory("mnt"));
    let options = "access=read,ro,open=none,plane=passthrough";
    let mounted = MountedFs::over(&source, options);
    let warned = "plane=passthrough cannot be had: open=none";
    wait_for("the warning", || mounted.log().contains(warned));
    let status = good(mounted.path(), &["status"]);
    assert!(status.contains("plane      passthrough, which cannot be had: open=none"), "{status}");
    let words =
        ["mount", "--check", "-o", options, source.to_str().unwrap(), other.to_str().unwrap()];
    let plan = good(dir.path(), &words);
    assert!(plan.contains("passthrough, which cannot be had: open=none"), "{plan}");
}
