//! `mmapfs diff`: what a mounted scratch has changed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use common::*;
use rustix::io::Errno;

const PAGE: usize = 4096;

/// A scratch over some files and directories.
fn scratch() -> Option<(TestDir, MountedFs)> {
    if !require_fuse() {
        return None;
    }
    let dir = TestDir::new();
    let source = dir.directory("source");
    open_to_all(&source);
    for name in ["dir/below", "old/sub"] {
        fs::create_dir_all(source.join(name)).unwrap();
    }
    fs::write(source.join("big"), pattern(200 * PAGE)).unwrap();
    for name in ["small", "dir/a", "dir/below/b", "old/x", "old/sub/y"] {
        fs::write(source.join(name), format!("the content of {name}\n")).unwrap();
    }
    symlink("small", source.join("link")).unwrap();
    let mounted = MountedFs::over(&source, "access=copy");
    Some((dir, mounted))
}

fn diff(arguments: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmapfs"))
        .arg("diff")
        .args(arguments)
        .arg(path)
        .output()
        .unwrap()
}

/// The lines of the answer, which has to have differences.
#[track_caller]
fn lines(arguments: &[&str], path: &Path) -> Vec<String> {
    let output = diff(arguments, path);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

fn change_all(root: &Path) {
    create(root.join("big")).write_all_at(b"new", 5 * PAGE as u64 + 7).unwrap();
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(root.join("dir/a"), root.join("dir/renamed")).unwrap();
    fs::remove_dir_all(root.join("old")).unwrap();
    fs::create_dir(root.join("made")).unwrap();
    fs::write(root.join("made/file"), b"made").unwrap();
    fs::remove_file(root.join("link")).unwrap();
    fs::write(root.join("link"), b"no link").unwrap();
}

#[test]
fn a_scratch_without_changes_has_no_differences_and_the_exit_code_is_0() {
    let Some((_dir, mounted)) = scratch() else { return };
    let output = diff(&[], mounted.path());
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b""[..]));
    // The bytes that were there, and a file made again the same.
    let big = create(mounted.path().join("big"));
    big.write_all_at(&pattern(200 * PAGE)[PAGE..2 * PAGE], PAGE as u64).unwrap();
    drop(big);
    fs::remove_file(mounted.path().join("small")).unwrap();
    fs::copy(mounted.backing().join("small"), mounted.path().join("small")).unwrap();
    let output = diff(&[], mounted.path());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn each_change_has_a_line_in_each_form() {
    let Some((_dir, mounted)) = scratch() else { return };
    let root = mounted.path();
    change_all(root);
    let expected = [
        "M  big",
        "R  dir/a -> dir/renamed",
        "T  link",
        "A  made/",
        "A  made/file",
        "D  old/",
        "m  small",
    ];
    assert_eq!(lines(&[], root), expected);
    let ranges = lines(&["--ranges"], root);
    let at = 5 * PAGE + 7;
    assert_eq!(ranges[..2], ["M  big".to_owned(), format!("   {at}-{}", at + 3)]);
    let expanded = lines(&["--expand", "--name-only"], root);
    let names = [
        "big",
        "dir/renamed",
        "link",
        "made",
        "made/file",
        "old",
        "old/sub",
        "old/sub/y",
        "old/x",
        "small",
    ];
    assert_eq!(expanded, names);
    let docker = lines(&["--docker"], root);
    assert_eq!(docker[..3], ["C /big", "D /dir/a", "A /dir/renamed"]);
    let summary = lines(&["--summary"], root);
    let counts =
        "2 added, 1 modified, 1 deleted, 1 renamed, 1 of another type, 1 with other metadata";
    assert_eq!(summary, [counts]);
    let stat = lines(&["--stat"], root);
    assert!(stat[0].ends_with(&format!("| 3 of {} bytes", 200 * PAGE)), "{stat:?}");
    assert_eq!(stat.last().unwrap(), counts);
    // A path that is asked for need not exist any more.
    assert_eq!(lines(&[], &root.join("dir")), ["R  dir/a -> dir/renamed"]);
    assert_eq!(lines(&[], &root.join("old/sub")), ["D  old/sub/"]);
    assert_eq!(diff(&[], &root.join("dir/below")).status.code(), Some(0));
}

#[test]
fn json_and_records_carry_names_with_any_bytes() {
    let Some((_dir, mounted)) = scratch() else { return };
    let root = mounted.path();
    let strange = std::ffi::OsStr::from_bytes(b"new\nline \"and\" \xff");
    fs::rename(root.join("small"), root.join(strange)).unwrap();
    fs::write(root.join("a b"), b"x").unwrap();
    let records = diff(&["-z"], root).stdout;
    let expected = [&b"A"[..], b"a b", b"R", b"small", strange.as_bytes(), b""].join(&0);
    assert_eq!(records, expected);
    let text = lines(&[], root);
    assert_eq!(text, ["A  a b", r#"R  small -> "new\nline \"and\" \xff""#]);
    let output = diff(&["--json"], root);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["report"], "diff");
    assert_eq!(json["changes"][0]["change"], "added");
    assert_eq!(json["changes"][0]["new_size"], 1);
    assert_eq!(json["changes"][1]["from"], "small");
    assert_eq!(json["changes"][1]["content"], false);
    let bytes: Vec<u8> = serde_json::from_value(json["changes"][1]["path"].clone()).unwrap();
    assert_eq!(bytes, strange.as_bytes());
}

#[test]
fn the_ranges_are_those_of_cmp() {
    let Some((_dir, mounted)) = scratch() else { return };
    let (old, new) = (mounted.backing().join("big"), mounted.path().join("big"));
    let mut seed = 12_345_u64;
    let mut below = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % end
    };
    let file = create(&new);
    for round in 0..100 {
        let bytes = vec![below(256) as u8; 1 + below(3000)];
        file.write_all_at(&bytes, below(199 * PAGE) as u64).unwrap();
        let cmp = Command::new("cmp").arg("-l").args([&old, &new]).output().unwrap();
        let told = String::from_utf8(cmp.stdout).unwrap();
        let expected: Vec<usize> = told
            .lines()
            .map(|line| line.split_whitespace().next().unwrap().parse::<usize>().unwrap() - 1)
            .collect();
        let found: Vec<usize> = lines(&["--ranges"], mounted.path())[1..]
            .iter()
            .flat_map(|line| {
                let (start, end) = line.trim().split_once('-').unwrap();
                start.parse::<usize>().unwrap()..end.parse().unwrap()
            })
            .collect();
        assert_eq!(found, expected, "round {round}");
    }
}

#[test]
fn a_change_over_a_base_that_has_changed_is_marked() {
    let Some((_dir, mounted)) = scratch() else { return };
    let (root, source) = (mounted.path(), mounted.backing());
    // A file that is whole in the scratch.
    fs::write(root.join("small"), b"mine").unwrap();
    fs::write(source.join("small"), b"theirs, and later").unwrap();
    wait_for("the change to be told", || lines(&[], root) == ["MC small"]);
    assert!(lines(&["--summary"], root)[0].contains("1 over a changed base"));
}

#[test]
fn a_mount_that_is_no_scratch_has_no_differences_to_tell() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    let output = diff(&[], mounted.path());
    assert_eq!(output.status.code(), Some(2));
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("the mount is no scratch"), "{why}");
    ask(mounted.path(), "diff").fails_with(Errno::NOTSUP);
    let outside = diff(&[], mounted.backing());
    assert_eq!(outside.status.code(), Some(2));
}
