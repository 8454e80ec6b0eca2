//! The control file: every verb, every kind of failure, many clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use common::*;
use rustix::fs::OFlags;
use rustix::io::Errno;

const PAGES: u64 = 256;

/// Runs a test on a mount with a file of 256 pages in it, synced, at `data/a file.bin`.
fn on_a_mount(test: impl Fn(&mut MountedFs)) {
    if !require_fuse() {
        return;
    }
    let mut mounted = MountedFs::new("access=write");
    fs::create_dir(mounted.backing().join("data")).unwrap();
    let file = create(mounted.backing().join("data/a file.bin"));
    file.write_all_at(&pattern((PAGES * page()) as usize), 0).unwrap();
    file.sync_all().unwrap();
    test(&mut mounted);
    mounted.assert_alive();
}

/// Takes the file out of the page cache, by a descriptor of its own.
fn evict(path: &Path) {
    let file = fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// The pages of a file in the page cache, as fincore(1) counts them.
fn resident(path: &Path) -> Option<u64> {
    let arguments = ["--raw", "--noheadings", "--output", "PAGES"];
    let output = Command::new("fincore").args(arguments).arg(path).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// True for a tmpfs, whose pages have no other place to be.
fn lives_in_memory(path: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::statfs(path).unwrap().f_type as i64 == TMPFS_MAGIC
}

#[test]
fn advice_really_changes_what_is_in_memory() {
    on_a_mount(|mounted| {
        let backing = mounted.backing().join("data/a file.bin");
        evict(&backing);
        let before = resident(&backing);
        let report = ask(mounted.path(), "json advise populate_read data/a file.bin").json();
        assert_eq!(report["advice"], "populate_read");
        assert_eq!(report["path"], "data/a file.bin");
        assert_eq!(report["pages"], PAGES);
        assert_eq!(report["resident_after"], PAGES);
        assert_eq!(report["resident_before"].as_u64(), before.or(Some(0)));
        assert_eq!(resident(&backing).unwrap_or(PAGES), PAGES);
        assert!(report["elapsed_us"].is_u64());
        // The pages are nobody else's: what is told to go, goes.
        let report = ask(mounted.path(), "json advise pageout 0-512K data/a file.bin").json();
        assert_eq!(report["range"], serde_json::json!([0, 512 << 10]));
        assert_eq!(report["pages"], 128);
        if lives_in_memory(&backing) {
            return assert_eq!(report["resident_after"], 128);
        }
        let left = report["resident_after"].as_u64().unwrap();
        assert!(left < 128, "{report}");
        assert!(resident(&backing).is_none_or(|pages| pages < PAGES));
        let report = ask(mounted.path(), "json advise willneed data/a file.bin").json();
        assert!(report["resident_before"].as_u64().unwrap() < PAGES);
        wait_for("the readahead", || resident(&backing).is_none_or(|pages| pages == PAGES));
    });
}

#[test]
fn ranges_are_rounded_outward_for_hints_and_inward_for_what_discards() {
    on_a_mount(|mounted| {
        let range = |line: &str| {
            let report = ask(mounted.path(), line).json();
            let bound = |at: usize| report["range"][at].as_u64().unwrap() / page();
            (bound(0), bound(1))
        };
        assert_eq!(range("json advise willneed 5000-9000 data/a file.bin"), (1, 3));
        assert_eq!(range("json advise dontneed 5000-13000 data/a file.bin"), (2, 3));
        assert_eq!(range("json flush 5000-9000 data/a file.bin"), (1, 3));
        assert_eq!(range("json advise willneed 4K+8K data/a file.bin"), (1, 3));
        assert_eq!(range("json advise willneed -8K data/a file.bin"), (0, 2));
        assert_eq!(range("json advise willneed 1020K- data/a file.bin"), (255, 256));
        assert_eq!(range("json advise willneed data/a file.bin"), (0, 256));
    });
}

/// Advice that every kernel takes for a shared mapping of a file, and that leaves its bytes.
const HARMLESS: [&str; 16] = [
    "normal",
    "random",
    "sequential",
    "willneed",
    "dontneed",
    "cold",
    "pageout",
    "populate_read",
    "populate_write",
    "hugepage",
    "nohugepage",
    "dontdump",
    "dodump",
    "dontfork",
    "dofork",
    "unmergeable",
];

#[test]
fn harmless_advice_leaves_every_byte() {
    on_a_mount(|mounted| {
        let path = mounted.path().join("data/a file.bin");
        let file = create(&path);
        file.write_all_at(b"written and dirty", 100_000).unwrap();
        let mut expected = pattern((PAGES * page()) as usize);
        expected[100_000..100_017].copy_from_slice(b"written and dirty");
        for advice in HARMLESS {
            let answer = ask(mounted.path(), format!("advise {advice} data/a file.bin"));
            if let Err(err) = answer.result {
                assert_eq!(err, Errno::OPNOTSUPP, "{advice}: {}", answer.text);
                assert!(answer.text.contains(advice), "{}", answer.text);
            }
            assert_content(&path, &expected);
            assert_content(mounted.backing().join("data/a file.bin"), &expected);
        }
    });
}

#[test]
fn advice_that_destroys_has_to_be_meant() {
    on_a_mount(|mounted| {
        let path = mounted.path().join("data/a file.bin");
        let file = create(&path);
        let mut expected = read_at(&file, 0, (PAGES * page()) as usize);
        let line = "advise remove 8K-16K data/a file.bin";
        let text = ask(mounted.path(), line).fails_with(Errno::PERM);
        assert!(text.contains("destroy"), "{text}");
        assert_content(&path, &expected);
        ask(mounted.path(), "advise destroy remove 8K-16K data/a file.bin").text();
        expected[8 << 10..16 << 10].fill(0);
        assert_content(mounted.backing().join("data/a file.bin"), &expected);
        assert_bytes(&read_at(&file, 0, expected.len()), &expected);
        for never in ["hwpoison", "soft_offline", "guard_install", "guard_remove"] {
            let line = format!("advise destroy {never} data/a file.bin");
            ask(mounted.path(), line).fails_with(Errno::PERM);
        }
    });
}

#[test]
fn every_kind_of_failure_has_its_errno_and_its_line() {
    on_a_mount(|mounted| {
        let cases = [
            ("frobnicate data", Errno::INVAL, "frobnicate"),
            ("advize willneed data", Errno::INVAL, "advise"),
            ("advise wilneed data/a file.bin", Errno::INVAL, "willneed"),
            ("advise", Errno::INVAL, ""),
            ("flush sideways data/a file.bin", Errno::NOENT, ""),
            ("log loudly", Errno::INVAL, "loudly"),
            ("maps of everything", Errno::INVAL, ""),
            ("version 2", Errno::INVAL, ""),
            ("help frobnicate", Errno::INVAL, "frobnicate"),
            ("advise willneed data/missing", Errno::NOENT, "data/missing"),
            ("flush missing/file", Errno::NOENT, "missing/file"),
            ("status missing", Errno::NOENT, "missing"),
            ("status ../outside", Errno::INVAL, ""),
            ("advise willneed 0-2M data/a file.bin", Errno::RANGE, "1048576"),
            ("advise hwpoison data/a file.bin", Errno::PERM, "hwpoison"),
            ("advise free data/a file.bin", Errno::OPNOTSUPP, "free"),
            ("advise wipeonfork data/a file.bin", Errno::OPNOTSUPP, "wipeonfork"),
            ("advise willneed data\0x", Errno::INVAL, ""),
        ];
        for (line, expected, word) in cases {
            let answer = ask(mounted.path(), line);
            eprintln!("{line:?}: {:?} {}", answer.result, answer.text.trim_end());
            let text = answer.fails_with(expected);
            assert!(text.contains(word), "{line}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        // A directory has no pages.
        assert!(ask(mounted.path(), "advise willneed data").result.is_err());
    });
}

#[test]
fn flush_makes_written_pages_clean() {
    on_a_mount(|mounted| {
        let file = create(mounted.path().join("data/a file.bin"));
        file.write_all_at(&[7; 100_000], 0).unwrap();
        for mode in ["async", "sync", "invalidate", ""] {
            let report = ask(mounted.path(), format!("json flush {mode} data/a file.bin")).json();
            assert_eq!(report["mode"], if mode.is_empty() { "sync" } else { mode });
            assert!(report["dirty_before"].is_u64() || report["dirty_before"].is_null());
            if mode == "sync" {
                assert!(matches!(report["dirty_after"].as_u64(), None | Some(0)), "{report}");
            }
        }
        assert_bytes(&read_at(&file, 0, 100_000), &[7; 100_000]);
    });
}

#[test]
fn locked_pages_are_told_and_unlocked() {
    on_a_mount(|mounted| {
        let locked =
            || ask(mounted.path(), "json status data/a file.bin").json()["locked_bytes"].clone();
        assert_eq!(locked(), 0);
        let report = ask(mounted.path(), "json lock 0-8K data/a file.bin").json();
        assert_eq!((&report["locked"], &report["range"][1]), (&true.into(), &8192.into()));
        assert_eq!(locked(), 8192);
        ask(mounted.path(), "lock data/a file.bin").text();
        assert_eq!(locked(), PAGES * page());
        ask(mounted.path(), "unlock data/a file.bin").text();
        assert_eq!(locked(), 0);
    });
}

#[test]
fn status_tells_of_the_mount_and_of_a_file() {
    on_a_mount(|mounted| {
        let status = ask(mounted.path(), "json status").json();
        assert_eq!(status["pid"], mounted.pid());
        assert_eq!(status["source"], mounted.backing().to_str().unwrap());
        assert_eq!(status["mountpoint"], mounted.path().to_str().unwrap());
        assert_eq!((&status["access"], &status["read_only"]), (&"write".into(), &false.into()));
        let _open = create(mounted.path().join("data/a file.bin"));
        let report = ask(mounted.path(), "json status data/a file.bin").json();
        assert_eq!(report["ino"], inode(mounted.backing().join("data/a file.bin")));
        assert_eq!(report["size"], PAGES * page());
        assert_eq!((&report["handles"], &report["pages"]), (&1.into(), &PAGES.into()));
        for path in ["data", "/data", ".", "/"] {
            let report = ask(mounted.path(), format!("json status {path}")).json();
            assert_eq!(report["kind"], "directory", "{path}");
        }
        let status = ask(mounted.path(), "json status").json();
        assert_eq!(status["handles"]["files"], 1, "the control file is not counted: {status}");
    });
}

#[test]
fn the_files_beside_the_control_file_say_the_same() {
    on_a_mount(|mounted| {
        let read = |name: &str| {
            let path = mounted.path().join(".mmapfs").join(name);
            fs::read_to_string(path).unwrap()
        };
        let status: serde_json::Value = serde_json::from_str(&read("status.json")).unwrap();
        assert_eq!(status["pid"], mounted.pid());
        assert!(read("status").contains(mounted.backing().to_str().unwrap()));
        let file = create(mounted.path().join("data/a file.bin"));
        file.write_all_at(b"so that it is mapped", 0).unwrap();
        ask(mounted.path(), "advise random data/a file.bin").text();
        let maps = read("maps");
        let line = maps.lines().find(|line| line.contains("a file.bin")).unwrap();
        assert!(line.contains("rw-s") && line.contains("access=write"), "{line}");
        assert!(line.contains(&format!("{}", inode(mounted.backing().join("data/a file.bin")))));
        assert!(ask(mounted.path(), "maps").text().contains("a file.bin"));
        let report = ask(mounted.path(), "json maps").json();
        assert_eq!(report["mappings"][0]["path"], "data/a file.bin");
        for name in ["status", "status.json", "maps"] {
            let path = mounted.path().join(".mmapfs").join(name);
            assert!(open(path, OFlags::WRONLY).is_err(), "{name} can be written");
        }
    });
}

#[test]
fn advice_that_stays_is_told_and_taken_back() {
    on_a_mount(|mounted| {
        let sticky = || ask(mounted.path(), "json status data/a file.bin").json()["sticky"].clone();
        assert_eq!(sticky(), serde_json::json!([]));
        ask(mounted.path(), "advise random 0-64K data/a file.bin").text();
        assert_eq!(sticky()[0]["advice"], "random");
        assert_eq!(sticky()[0]["range"], serde_json::json!([0, 65536]));
        ask(mounted.path(), "advise normal data/a file.bin").text();
        assert_eq!(sticky(), serde_json::json!([]));
    });
}

#[test]
fn version_help_and_log_answer() {
    on_a_mount(|mounted| {
        let version = ask(mounted.path(), "json version").json();
        assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
        let help = ask(mounted.path(), "help").text();
        for verb in ["advise", "flush", "status", "maps", "lock", "unlock", "reload", "log"] {
            assert!(help.contains(verb), "{verb}");
            assert!(ask(mounted.path(), format!("help {verb}")).text().contains(verb));
        }
        ask(mounted.path(), "log debug").text();
        fs::metadata(mounted.path().join("data")).unwrap();
        fs::read_dir(mounted.path().join("data")).unwrap();
        wait_for("a debug line", || mounted.log().contains(" debug "));
        ask(mounted.path(), "log info").text();
    });
}

#[test]
fn a_line_may_come_in_pieces_and_several_lines_at_once() {
    on_a_mount(|mounted| {
        let mut control = Control::open(mounted.path());
        for piece in ["sta", "tus data/", "a file.bin", "\n"] {
            assert_eq!(control.write(piece.as_bytes()), Ok(piece.len()));
        }
        assert!(control.read().contains("a file.bin"));
        control.write(b"version\nstatus data\n").unwrap();
        let both = control.read();
        assert!(both.contains(env!("CARGO_PKG_VERSION")) && both.contains("data"), "{both}");
        control.write(b"\n  \n").unwrap();
        // After a failure the descriptor takes the next command.
        control.ask("nonsense").fails_with(Errno::INVAL);
        control.ask("version").text();
    });
}

#[test]
fn a_line_that_is_too_long_is_refused_and_the_next_is_taken() {
    on_a_mount(|mounted| {
        let mut control = Control::open(mounted.path());
        let long = format!("status {}", "x".repeat(70 << 10));
        assert!(control.ask(&long).result.is_err());
        control.ask("version").text();
        let at_most = format!("status {}", "x/".repeat(30 << 10));
        let answer = control.ask(&at_most);
        assert!(answer.result.is_err_and(|err| err != Errno::INVAL || !answer.text.is_empty()));
        control.ask("version").text();
    });
}

#[test]
fn a_shell_can_give_commands() {
    on_a_mount(|mounted| {
        let shell = |script: &str| {
            let output =
                Command::new("sh").args(["-c", script]).current_dir(mounted.path()).output();
            output.unwrap()
        };
        let output = shell("echo 'advise willneed 0-64K data/a file.bin' > .mmapfs/control");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = shell("echo nonsense > .mmapfs/control");
        assert!(!output.status.success() && !output.stderr.is_empty());
        let output = shell("echo 'status' >> .mmapfs/control && cat .mmapfs/status");
        assert!(output.status.success() && !output.stdout.is_empty());
        let output = shell("exec 3<>.mmapfs/control; echo version >&3; cat <&3");
        assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    });
}

#[test]
fn many_clients_at_once_each_get_their_own_answers() {
    on_a_mount(|mounted| {
        for index in 0..8 {
            let name = mounted.backing().join(format!("file-{index}"));
            fs::write(name, vec![0; 1000 * (index + 1)]).unwrap();
        }
        std::thread::scope(|scope| {
            for index in 0..8u64 {
                let root = mounted.path();
                scope.spawn(move || {
                    let mut control = Control::open(root);
                    for round in 0..40 {
                        let line = format!("json status file-{index}");
                        assert_eq!(control.ask(line).json()["size"], 1000 * (index + 1));
                        let line = format!("advise willneed file-{}", round % 8);
                        control.ask(line).text();
                    }
                });
            }
        });
    });
}

#[test]
fn names_with_any_bytes_can_be_given() {
    on_a_mount(|mounted| {
        use std::os::unix::ffi::OsStrExt;
        let names: [&[u8]; 4] = [b"0-1 of it", b"--", b" lead", b"\xff\xfe"];
        for name in names {
            let name = std::ffi::OsStr::from_bytes(name);
            fs::write(mounted.backing().join(name), b"x").unwrap();
            let mut line = b"json status -- /".to_vec();
            line.extend_from_slice(name.as_bytes());
            assert_eq!(ask(mounted.path(), line).json()["size"], 1);
        }
    });
}

#[test]
fn nothing_can_be_made_or_changed_in_the_control_directory() {
    on_a_mount(|mounted| {
        let door = mounted.path().join(".mmapfs");
        assert!(fs::write(door.join("new"), b"x").is_err());
        assert!(fs::create_dir(door.join("new")).is_err());
        assert!(fs::remove_file(door.join("control")).is_err());
        assert!(fs::remove_dir(&door).is_err());
        assert!(fs::rename(&door, mounted.path().join("moved")).is_err());
        assert!(fs::rename(mounted.path().join("data"), &door).is_err());
        assert!(fs::hard_link(door.join("control"), mounted.path().join("link")).is_err());
        assert!(fs::create_dir(&door).is_err());
        let mut file = fs::File::options().write(true).truncate(true).open(door.join("control"));
        file.as_mut().unwrap().write_all(b"version\n").unwrap();
        assert_eq!(names(mounted.backing()), ["data"]);
    });
}
