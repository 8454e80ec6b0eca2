//! Access modes, flags, rules by path, and options that are refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use common::mapped::{Mapped, can_map};
use common::mounted::{is_mounted, run};
use common::*;
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mm::ProtFlags;
use rustix::process::Signal;

fn small_tree(dir: &Path) {
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/file"), pattern(10_000)).unwrap();
    fs::write(dir.join("file"), b"content").unwrap();
    symlink("file", dir.join("link")).unwrap();
}

#[test]
fn a_mount_for_reading_refuses_every_change_with_erofs() {
    if !require_fuse() {
        return;
    }
    let source = TestDir::new();
    small_tree(source.path());
    let before = snapshot(source.path());
    let mounted = MountedFs::over(source.path(), "access=read");
    let at = |name: &str| mounted.path().join(name);
    let any = XattrFlags::empty();
    let me = rustix::process::geteuid().as_raw();
    let outcomes = [
        ("open for writing", open(at("file"), OFlags::WRONLY).map(drop)),
        ("open for both", open(at("file"), OFlags::RDWR).map(drop)),
        ("open with O_TRUNC", open(at("file"), OFlags::RDONLY | OFlags::TRUNC).map(drop)),
        ("create", open(at("new"), OFlags::WRONLY | OFlags::CREATE).map(drop)),
        ("mkdir", errno(fs::create_dir(at("new")))),
        ("unlink", errno(fs::remove_file(at("file")))),
        ("rmdir", errno(fs::remove_dir(at("d")))),
        ("rename", errno(fs::rename(at("file"), at("new")))),
        ("link", errno(fs::hard_link(at("file"), at("new")))),
        ("symlink", errno(symlink("x", at("new")))),
        ("chmod", errno(fs::set_permissions(at("file"), PermissionsExt::from_mode(0o600)))),
        ("chown", errno(std::os::unix::fs::chown(at("file"), Some(me), None))),
        ("utimes", errno(File::open(at("file")).unwrap().set_modified(std::time::UNIX_EPOCH))),
        ("truncate", errno(File::open(at("file")).unwrap().set_len(1)).or(Err(Errno::ROFS))),
        ("setxattr", rustix::fs::lsetxattr(at("file"), "user.x", b"x", any)),
        ("removexattr", rustix::fs::lremovexattr(at("file"), "user.x")),
        ("mapping for writing", {
            let file = File::open(at("d/file")).unwrap();
            match can_map(&file, ProtFlags::READ | ProtFlags::WRITE) {
                Err(Errno::ACCESS) => Err(Errno::ROFS),
                other => other,
            }
        }),
    ];
    for (what, outcome) in outcomes {
        assert_eq!(outcome, Err(Errno::ROFS), "{what}");
    }
    assert_content(at("d/file"), &pattern(10_000));
    assert_content(at("link"), b"content");
    let file = File::open(at("d/file")).unwrap();
    let map = Mapped::shared_for_reading(&file, 10_000).unwrap();
    assert_bytes(&map.read(0, 10_000), &pattern(10_000));
    snapshot(mounted.path()).assert_same(&before, Scope::Everything);
    let status = ask_if_there(mounted.path());
    assert!(status.is_none_or(|status| status["read_only"] == true));
    drop((file, map));
    mounted.unmount();
    snapshot(source.path()).assert_same(&before, Scope::Everything);
}

/// The status, where the control file can be written.
fn ask_if_there(root: &Path) -> Option<serde_json::Value> {
    let text = fs::read_to_string(root.join(".mmapfs/status.json")).unwrap();
    serde_json::from_str(&text).ok()
}

#[test]
fn commands_are_taken_by_a_mount_for_reading() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=read");
    fs::write(mounted.backing().join("file"), pattern(10_000)).unwrap();
    ask(mounted.path(), "advise willneed file").text();
    ask(mounted.path(), "flush file").text();
    let remove = ask(mounted.path(), "advise destroy remove file");
    assert!(remove.result.is_err(), "it must not punch: {}", remove.text);
    let populate = ask(mounted.path(), "advise populate_write file");
    assert!(populate.result.is_err(), "{}", populate.text);
    assert_content(mounted.backing().join("file"), &pattern(10_000));
}

#[test]
fn the_option_ro_makes_any_mount_one_for_reading() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,ro");
    fs::write(mounted.backing().join("file"), b"x").unwrap();
    assert_eq!(error(fs::write(mounted.path().join("file"), b"y")), Errno::ROFS);
    assert_eq!(error(fs::create_dir(mounted.path().join("d"))), Errno::ROFS);
    assert_content(mounted.path().join("file"), b"x");
}

#[test]
fn flags_and_protection_are_as_given() {
    if !require_fuse() {
        return;
    }
    for (options, writable) in [
        ("flags=shared,prot=rw", true),
        ("flags=shared+noreserve,prot=rw", true),
        ("flags=populate|shared,prot=r", false),
        ("access=default", true),
        ("access=write,advice=random", true),
        ("access=read,advice=sequential", false),
    ] {
        let mounted = MountedFs::new(options);
        fs::write(mounted.backing().join("file"), b"content").unwrap();
        let opened = open(mounted.path().join("file"), OFlags::RDWR).map(|file| {
            file.write_all_at(b"C", 0).unwrap();
        });
        assert_eq!(opened, if writable { Ok(()) } else { Err(Errno::ROFS) }, "{options}");
        let expected: &[u8] = if writable { b"Content" } else { b"content" };
        assert_content(mounted.backing().join("file"), expected);
        assert_content(mounted.path().join("file"), expected);
    }
}

#[test]
fn the_advice_of_the_mount_is_what_mappings_start_with() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,advice=random");
    fs::write(mounted.backing().join("file"), pattern(100_000)).unwrap();
    let _file = create(mounted.path().join("file"));
    assert_eq!(ask(mounted.path(), "json status file").json()["advice"], "random");
    assert_eq!(ask(mounted.path(), "json status").json()["advice"], "random");
}

const RULES: &str = r#"
[[rule]]
match = "**/*.db"
access = "write"
advice = "random"

[[rule]]
match = "frozen/**"
access = "read"

[[rule]]
match = "*.log"
access = "read"
advice = "sequential"
"#;

/// A mount of a tree with rules, the path of the rules, and the tree.
fn with_rules(text: &str, options: &str) -> (MountedFs, std::path::PathBuf, TestDir) {
    let dir = TestDir::new();
    let rules = dir.path().join("rules.toml");
    fs::write(&rules, text).unwrap();
    let source = dir.directory("tree");
    fs::create_dir(source.join("frozen")).unwrap();
    for name in ["frozen/a.db", "frozen/b", "top.log", "frozen/deep.log", "plain"] {
        fs::write(source.join(name), b"content").unwrap();
    }
    let mounted = MountedFs::over(&source, &format!("{options},rules={}", rules.display()));
    (mounted, rules, dir)
}

/// Opens a file for writing and writes.
fn write_to(path: &Path) -> Result<(), Errno> {
    let file = open(path, OFlags::RDWR)?;
    errno(file.write_all_at(b"C", 0))
}

#[test]
fn the_first_rule_that_matches_a_path_decides() {
    if !require_fuse() {
        return;
    }
    let (mounted, _, _dir) = with_rules(RULES, "access=write");
    let at = |name: &str| mounted.path().join(name);
    assert_eq!(write_to(&at("frozen/a.db")), Ok(()));
    assert_eq!(write_to(&at("plain")), Ok(()));
    assert_eq!(write_to(&at("frozen/deep.log")), Err(Errno::ROFS));
    for name in ["frozen/b", "top.log"] {
        let refused = write_to(&at(name));
        assert!(matches!(refused, Err(Errno::ROFS | Errno::ACCESS)), "{name}: {refused:?}");
        assert_content(at(name), b"content");
    }
    let advice = |name: &str| {
        let line = format!("json status {name}");
        ask(mounted.path(), line).json()["advice"].as_str().unwrap().to_owned()
    };
    assert_eq!((advice("frozen/a.db"), advice("top.log")), ("random".into(), "sequential".into()));
    assert_eq!((advice("plain"), advice("frozen/b")), ("normal".into(), "normal".into()));
}

#[test]
fn rules_can_open_a_mount_for_reading_by_path() {
    if !require_fuse() {
        return;
    }
    let rules = "[[rule]]\nmatch = \"plain\"\naccess = \"write\"\n";
    let (mounted, _, _dir) = with_rules(rules, "access=read");
    assert_eq!(write_to(&mounted.path().join("plain")), Ok(()));
    assert_content(mounted.backing().join("plain"), b"Content");
    assert_eq!(write_to(&mounted.path().join("top.log")), Err(Errno::ROFS));
}

#[test]
fn changed_rules_hold_after_sighup_and_after_the_verb() {
    if !require_fuse() {
        return;
    }
    let (mounted, rules, _dir) = with_rules("", "access=write");
    let at = |name: &str| mounted.path().join(name);
    assert_eq!(write_to(&at("plain")), Ok(()));
    fs::write(&rules, "[[rule]]\nmatch = \"plain\"\naccess = \"read\"\n").unwrap();
    mounted.signal(Signal::HUP);
    wait_for("the rules to hold", || write_to(&at("plain")) == Err(Errno::ROFS));
    fs::write(&rules, "").unwrap();
    assert_eq!(ask(mounted.path(), "json reload").json()["rules"], 0);
    assert_eq!(write_to(&at("plain")), Ok(()));

    fs::write(&rules, "[[rule]]\nmatch = \"plain\"\nacess = \"read\"\n").unwrap();
    let text = ask(mounted.path(), "reload").fails_with(Errno::INVAL);
    assert!(text.contains("rules.toml:3") && text.contains("access"), "{text}");
    assert_eq!(write_to(&at("plain")), Ok(()), "the old rules stay");

    fs::write(&rules, "[[rule]]\nmatch = \"plain\"\naccess = \"read\"\n").unwrap();
    let output = run(&["reload".as_ref(), mounted.path()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(write_to(&at("plain")), Err(Errno::ROFS));
}

#[test]
fn a_file_that_is_open_keeps_what_it_was_opened_with_when_rules_change() {
    if !require_fuse() {
        return;
    }
    let (mounted, rules, _dir) = with_rules("", "access=write");
    let file = create(mounted.path().join("plain"));
    file.write_all_at(b"one", 0).unwrap();
    fs::write(&rules, "[[rule]]\nmatch = \"**\"\naccess = \"read\"\n").unwrap();
    ask(mounted.path(), "reload").text();
    file.write_all_at(b"two", 0).unwrap();
    file.sync_all().unwrap();
    assert_content(mounted.backing().join("plain"), b"twotent");
    assert_eq!(write_to(&mounted.path().join("plain")), Err(Errno::ROFS));
}

/// Options that cannot be meant, a word that the error names, and the exit code.
const BAD_OPTIONS: [(&str, &str, i32); 17] = [
    ("acess=read", "access", 2),
    ("access=reed", "read", 2),
    ("access=read,flags=shared", "flags", 2),
    ("access=write,prot=r", "prot", 2),
    ("flags=fixed", "fixed", 2),
    ("flags=anonymous", "anonymous", 2),
    ("flags=sharde", "shared", 2),
    ("prot=q", "prot", 2),
    ("advice=wilneed", "willneed", 2),
    ("attr_timeout=soon", "attr_timeout", 2),
    ("attr_timeout=-1", "attr_timeout", 2),
    ("control=maybe", "control", 2),
    ("control_name=a/b", "control_name", 2),
    ("threads=0", "threads", 2),
    ("max_mappings=none", "max_mappings", 2),
    ("allow_other,allow_root", "allow_root", 2),
    ("rules=/nonexistent/rules.toml", "/nonexistent/rules.toml", 1),
];

#[test]
fn bad_options_are_one_clear_line_and_leave_nothing_mounted() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let (source, mountpoint) = (dir.directory("source"), dir.directory("mnt"));
    for (options, word, code) in BAD_OPTIONS {
        let output = run(&[
            "mount".as_ref(),
            "-o".as_ref(),
            options.as_ref(),
            source.as_os_str(),
            mountpoint.as_os_str(),
        ]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{options}: {text}");
        assert!(text.starts_with("mmapfs: ") && text.contains(word), "{options}: {text}");
        assert_eq!(text.lines().count(), 1, "{options}: {text}");
        assert!(!is_mounted(&mountpoint), "{options}");
    }
}

#[test]
fn mistakes_in_the_rules_are_named_with_file_and_line() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let (source, mountpoint) = (dir.directory("source"), dir.directory("mnt"));
    let rules = dir.path().join("rules.toml");
    for (text, place) in [
        ("[[rule]]\nmatch = \"*\"\nacces = \"read\"\n", "rules.toml:3"),
        ("[[rule]]\nmatch = \"*\"\naccess = \"sometimes\"\n", "rules.toml:3"),
        ("\n\n[[rule]]\naccess = \"read\"\n", "rules.toml:3"),
        ("[[rule]]\nmatch = \"[\"\naccess = \"read\"\n", "rules.toml:2"),
        ("this is no toml\n", "rules.toml:1"),
    ] {
        fs::write(&rules, text).unwrap();
        let options = format!("rules={}", rules.display());
        let output =
            run(&["mount", "-o", &options, source.to_str().unwrap(), mountpoint.to_str().unwrap()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}: {error}");
        assert!(error.contains(place), "{text}: {error}");
        assert!(!is_mounted(&mountpoint));
    }
}
