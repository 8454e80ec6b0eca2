//! The control verbs on files of a scratch: nothing of the base changes, and nothing that was
//! written is thrown away unasked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::mapped::Mapped;
use common::*;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::Value;

const PAGE: usize = 4096;
const PAGES: usize = 256;

/// Runs a test on a scratch over a file of 256 pages, `big`, and one of a few bytes, `small`. The
/// base is the same afterwards, to the byte and the timestamp.
fn on_a_scratch(options: &str, test: impl Fn(&mut MountedFs)) {
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    let source = base.directory("source");
    open_to_all(&source);
    create(source.join("big")).write_all_at(&pattern(PAGES * PAGE), 0).unwrap();
    fs::write(source.join("small"), b"a few bytes").unwrap();
    fs::write(source.join("other"), vec![7; 3 * PAGE]).unwrap();
    let before = snapshot(&source);
    let times = changed(&source);
    let mut mounted = MountedFs::over(&source, &format!("access=copy{options}"));
    test(&mut mounted);
    mounted.assert_alive();
    mounted.unmount();
    before.assert_same(&snapshot(&source), Scope::Everything);
    assert_eq!(changed(&source), times);
}

/// When the files of a directory were changed last, in nanoseconds.
fn changed(dir: &Path) -> Vec<(String, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let stat = |name: String| {
        let found = fs::metadata(dir.join(&name)).unwrap();
        (name, found.ctime_nsec(), found.mtime_nsec())
    };
    names(dir).into_iter().map(stat).collect()
}

fn status(mounted: &MountedFs) -> Value {
    ask(mounted.path(), "json status").json()["scratch"].clone()
}

/// Writes bytes of its own into pages of `big`.
fn write_pages(mounted: &MountedFs, first: usize, count: usize) {
    let file = open(mounted.path().join("big"), OFlags::WRONLY).unwrap();
    file.write_all_at(&vec![0xee; count * PAGE], (first * PAGE) as u64).unwrap();
}

fn page_of(mounted: &MountedFs, page: usize) -> Vec<u8> {
    read_at(&fs::File::open(mounted.path().join("big")).unwrap(), (page * PAGE) as u64, PAGE)
}

fn in_base(page: usize) -> Vec<u8> {
    pattern(PAGES * PAGE)[page * PAGE..][..PAGE].to_vec()
}

#[test]
fn advice_that_would_throw_written_pages_away_is_refused_with_their_number() {
    on_a_scratch("", |mounted| {
        write_pages(mounted, 10, 3);
        for advice in ["dontneed", "dontneed_locked", "free", "remove", "wipeonfork"] {
            let why = ask(mounted.path(), format!("advise {advice} big")).fails_with(Errno::PERM);
            assert!(why.contains("3 pages that were written"), "{why}");
            assert!(why.contains(&format!("advise destroy {advice}")), "{why}");
            let some = format!("advise {advice} 44K-48K big"); // Page 11.
            let why = ask(mounted.path(), some).fails_with(Errno::PERM);
            assert!(why.contains("1 page that was written"), "{why}");
        }
        for page in 10..13 {
            assert_bytes(&page_of(mounted, page), &[0xee; PAGE]);
        }
    });
}

#[test]
fn pages_that_were_not_written_take_every_advice_that_the_base_takes() {
    on_a_scratch("", |mounted| {
        write_pages(mounted, 10, 3);
        for range in ["0-40K", "52K-"] {
            for advice in ["dontneed", "free", "willneed", "populate_read", "cold", "pageout"] {
                let line = format!("json advise {advice} {range} big");
                assert_eq!(ask(mounted.path(), line).json()["advice"], advice);
            }
        }
        // Of one that no write has touched, too.
        ask(mounted.path(), "advise dontneed other").text();
        assert_eq!(status(mounted)["partial_files"], 1);
        assert_bytes(&page_of(mounted, 9), &in_base(9));
    });
}

#[test]
fn pages_that_are_dropped_show_the_base_again() {
    on_a_scratch("", |mounted| {
        write_pages(mounted, 10, 3);
        let reader = fs::File::open(mounted.path().join("big")).unwrap();
        let mapped = Mapped::shared_for_reading(&reader, PAGES * PAGE).unwrap();
        assert_eq!(mapped.read(11 * PAGE, 4), [0xee; 4]);
        assert_eq!(status(mounted)["pages"], 3);
        ask(mounted.path(), "advise destroy dontneed 44K-48K big").text();
        assert_eq!(status(mounted)["pages"], 2);
        for (page, written) in [(10, true), (11, false), (12, true)] {
            let expected = if written { vec![0xee; PAGE] } else { in_base(page) };
            assert_bytes(&page_of(mounted, page), &expected);
            assert_bytes(&mapped.read(page * PAGE, PAGE), &expected);
        }
        // Whole pages only: of the ends of this range nothing goes.
        ask(mounted.path(), "advise destroy free 41K-51K big").text();
        assert_eq!(status(mounted)["pages"], 2);
        ask(mounted.path(), "advise destroy free big").text();
        assert_eq!(status(mounted)["pages"], 0);
        assert_content(mounted.path().join("big"), &pattern(PAGES * PAGE));
        // And they can be written again.
        write_pages(mounted, 11, 1);
        assert_bytes(&page_of(mounted, 11), &[0xee; PAGE]);
    });
}

#[test]
fn a_page_that_a_client_has_stored_into_counts_before_it_is_written_back() {
    on_a_scratch("", |mounted| {
        let file = open(mounted.path().join("big"), OFlags::RDWR).unwrap();
        let mapped = Mapped::shared(&file, PAGES * PAGE).unwrap();
        mapped.write(20 * PAGE, b"stored");
        let why = ask(mounted.path(), "advise dontneed big").fails_with(Errno::PERM);
        assert!(why.contains("1 page that was"), "{why}");
        assert_eq!(mapped.read(20 * PAGE, 6), b"stored");
        ask(mounted.path(), "advise destroy dontneed big").text();
        assert_bytes(&mapped.read(20 * PAGE, PAGE), &in_base(20));
    });
}

#[test]
fn removed_pages_are_zeros_in_the_scratch_alone() {
    on_a_scratch("", |mounted| {
        let why = ask(mounted.path(), "advise remove big").fails_with(Errno::PERM);
        assert!(why.contains("advise destroy remove"), "{why}");
        ask(mounted.path(), "advise destroy remove 8K-16K big").text();
        assert_bytes(&page_of(mounted, 1), &in_base(1));
        assert_bytes(&page_of(mounted, 2), &[0; PAGE]);
        assert_bytes(&page_of(mounted, 3), &[0; PAGE]);
        assert_bytes(&page_of(mounted, 4), &in_base(4));
        assert_eq!(status(mounted)["pages"], 2);
    });
}

#[test]
fn pages_that_are_populated_for_writing_are_copied() {
    on_a_scratch("", |mounted| {
        let times = || {
            let found = fs::metadata(mounted.path().join("big")).unwrap();
            (found.modified().unwrap(), found.accessed().unwrap())
        };
        let before = times();
        ask(mounted.path(), "advise populate_write 0-32K big").text();
        assert_eq!(status(mounted)["pages"], 8);
        assert_eq!(times(), before, "nothing was changed");
        assert_content(mounted.path().join("big"), &pattern(PAGES * PAGE));
    });
}

#[test]
fn files_that_are_whole_in_the_scratch_keep_their_bytes_unless_they_are_destroyed() {
    on_a_scratch("", |mounted| {
        let made = mounted.path().join("made");
        fs::write(&made, pattern(4 * PAGE)).unwrap();
        let why = ask(mounted.path(), "advise dontneed made").fails_with(Errno::PERM);
        assert!(why.contains("4 pages"), "{why}");
        ask(mounted.path(), "advise destroy dontneed made").text();
        assert_content(&made, &pattern(4 * PAGE));
        ask(mounted.path(), "advise remove made").fails_with(Errno::PERM);
        ask(mounted.path(), "advise destroy remove 4K-8K made").text();
        let mut expected = pattern(4 * PAGE);
        expected[PAGE..2 * PAGE].fill(0);
        assert_content(&made, &expected);
        ask(mounted.path(), "advise willneed made").text();
    });
}

#[test]
fn a_flush_is_a_barrier_that_leaves_the_base_alone() {
    let scratch = TestDir::new();
    let place = scratch.path().join("scratch");
    on_a_scratch(&format!(",scratch={},copy_up=0", place.display()), |mounted| {
        // Only below: there is nothing to do.
        let report = ask(mounted.path(), "json flush big").json();
        assert_eq!((&report["dirty_before"], &report["dirty_after"]), (&0.into(), &0.into()));
        // In part.
        write_pages(mounted, 5, 2);
        let file = open(mounted.path().join("big"), OFlags::RDWR).unwrap();
        let mapped = Mapped::shared(&file, PAGES * PAGE).unwrap();
        mapped.write(100 * PAGE, b"stored");
        let report = ask(mounted.path(), "json flush big").json();
        assert!(report["dirty_after"].as_u64().is_none_or(|dirty| dirty == 0), "{report}");
        // What a client has stored is there.
        assert_eq!(status(mounted)["pages"], 3);
        let stored = fs::File::open(place.join("upper/big")).unwrap();
        assert_eq!(read_at(&stored, (100 * PAGE) as u64, 6), b"stored");
        // Whole.
        fs::write(mounted.path().join("made"), b"made").unwrap();
        ask(mounted.path(), "flush made").text();
        assert_content(place.join("upper/made"), b"made");
        ask(mounted.path(), "flush async big").text();
        ask(mounted.path(), "flush .").fails_with(Errno::ISDIR);
    });
}

#[test]
fn what_was_stored_into_a_small_copy_is_flushed_too() {
    // The copy has another number in the upper volume than the kernel knows.
    let scratch = TestDir::new();
    let place = scratch.path().join("scratch");
    on_a_scratch(&format!(",plane=mapped,scratch={}", place.display()), |mounted| {
        let file = open(mounted.path().join("small"), OFlags::RDWR).unwrap();
        let mapped = Mapped::shared(&file, 11).unwrap();
        mapped.write(0, b"A");
        ask(mounted.path(), "flush small").text();
        assert_content(place.join("upper/small"), b"A few bytes");
        assert_eq!(status(mounted)["copied_files"], 1);
    });
}

#[test]
fn the_status_counts_what_is_in_the_scratch() {
    on_a_scratch("", |mounted| {
        let root = mounted.path();
        let empty = status(mounted);
        for count in
            ["pages", "partial_files", "copied_files", "whiteouts", "new_files", "new_directories"]
        {
            assert_eq!(empty[count], 0, "{count}");
        }
        assert_eq!(empty["temporary"], true);
        assert_eq!(empty["layers"][1], mounted.backing().display().to_string());
        write_pages(mounted, 10, 3);
        fs::rename(root.join("small"), root.join("renamed")).unwrap();
        fs::remove_file(root.join("other")).unwrap();
        let full = status(mounted);
        assert_eq!(full["pages"], 3);
        assert_eq!(full["copied_files"], 2);
        assert_eq!(full["whiteouts"], 2);
        assert!(full["used_bytes"].as_u64() >= Some((3 * PAGE) as u64), "{full}");
        assert!(full["limit_bytes"].as_u64() >= full["used_bytes"].as_u64(), "{full}");
        let text = ask(root, "status").text();
        for row in [
            "scratch ",
            "layers ",
            "written    3 pages of 2 files in part, 2 copied files, 2 whiteouts",
            "made       0 new files, 0 new directories",
            "space ",
        ] {
            assert!(text.contains(row), "{row}: {text}");
        }
        let watch = text.lines().find(|line| line.starts_with("watch ")).unwrap();
        assert!(watch.ends_with(" overflows"), "{text}");

        fs::write(root.join("other"), b"anew").unwrap();
        fs::rename(root.join("renamed"), root.join("small")).unwrap();
        fs::remove_file(root.join("big")).unwrap();
        // The pages go when the file is closed for good, and close(2) does not wait for that.
        wait_for("the pages of the removed file to go", || status(mounted)["pages"] == 0);
        let left = status(mounted);
        assert_eq!(left["whiteouts"], 1, "{left}");
        assert_eq!(left["copied_files"], 1, "{left}");
    });
}

#[test]
fn the_counts_are_the_same_when_the_scratch_is_mounted_again() {
    let scratch = TestDir::new();
    let options = format!("access=copy,scratch={}", scratch.path().join("scratch").display());
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    let source = base.directory("source");
    create(source.join("big")).write_all_at(&pattern(PAGES * PAGE), 0).unwrap();
    fs::write(source.join("small"), b"a few bytes").unwrap();
    fs::write(source.join("gone"), b"a few bytes").unwrap();
    let mounted = MountedFs::over(&source, &options);
    write_pages(&mounted, 3, 9);
    fs::write(mounted.path().join("small"), b"other bytes").unwrap();
    fs::remove_file(mounted.path().join("gone")).unwrap();
    let counts = |mounted: &MountedFs| {
        let status = status(mounted);
        ["pages", "partial_files", "copied_files", "whiteouts", "temporary"]
            .map(|name| status[name].clone())
    };
    let before = counts(&mounted);
    assert_eq!(before, [9.into(), 1.into(), 2.into(), 1.into(), Value::Bool(false)]);
    mounted.unmount();
    let mounted = MountedFs::over(&source, &options);
    assert_eq!(counts(&mounted), before);
    // No limit is kept, and yet it is told how much there is.
    let used = status(&mounted)["used_bytes"].as_u64();
    write_pages(&mounted, 100, 64);
    wait_for("the bytes to be counted", || {
        status(&mounted)["used_bytes"].as_u64() >= used.map(|used| used + 64 * PAGE as u64)
    });
}

#[test]
fn the_status_of_a_file_says_who_moves_its_bytes_and_why() {
    on_a_scratch(",copy_up=0", |mounted| {
        let root = mounted.path();
        let file = |name: &str| ask(root, format!("json status {name}")).json();
        let plane = |report: &Value| report["plane"].as_str().unwrap().to_owned();
        let below = file("big");
        assert_eq!(plane(&below), "read/write");
        assert_eq!(below["plane_reason"], "it is in the base, and not written yet");
        assert_eq!(below["ino"], inode(root.join("big")));
        write_pages(mounted, 0, 1);
        let merged = file("big");
        assert_eq!(merged["plane_reason"], "some of its pages are in another layer");
        assert_eq!((&below["access"], &merged["access"]), (&"copy".into(), &"copy".into()));
        assert_eq!((&below["scratch_pages"], &merged["scratch_pages"]), (&0.into(), &1.into()));
        assert_eq!((&merged["pages"], &merged["ino"]), (&below["pages"], &below["ino"]));
        assert!(merged["resident"].as_u64().is_none_or(|pages| pages <= PAGES as u64));
        fs::write(root.join("made"), b"made").unwrap();
        let made = file("made");
        assert!(["passthrough", "mapped"].contains(&plane(&made).as_str()), "{made}");
        assert_eq!(made["ino"], inode(root.join("made")));

        let open = [fs::File::open(root.join("big")), fs::File::open(root.join("made"))];
        assert_eq!(file("big")["handles"], 1);
        let status = ask(root, "json status").json();
        let shown: Vec<_> = status["open_files"].as_array().unwrap().clone();
        let paths: Vec<_> = shown.iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert!(paths.contains(&"big") && paths.contains(&"made"), "{paths:?}");
        drop(open);
    });
}

#[test]
fn advice_that_stays_and_locks_hold_for_every_layer() {
    on_a_scratch("", |mounted| {
        write_pages(mounted, 10, 3);
        ask(mounted.path(), "advise random big").text();
        let report = ask(mounted.path(), "json status big").json();
        assert_eq!(report["sticky"].as_array().unwrap().len(), 1, "{report}");
        ask(mounted.path(), "lock 32K-64K big").text();
        let report = ask(mounted.path(), "json status big").json();
        assert_eq!(report["locked_bytes"], 32 << 10);
        assert!(
            !ask(mounted.path(), "json maps").json()["mappings"].as_array().unwrap().is_empty()
        );
        ask(mounted.path(), "unlock big").text();
        assert_eq!(ask(mounted.path(), "json status big").json()["locked_bytes"], 0);
        ask(mounted.path(), "advise normal big").text();
    });
}

#[test]
fn what_a_rule_does_not_copy_is_flushed_and_advised_in_the_base() {
    if !require_fuse() {
        return;
    }
    let base = TestDir::new();
    let source = base.directory("source");
    fs::write(source.join("direct"), pattern(4 * PAGE)).unwrap();
    let rules = base.path().join("rules.toml");
    fs::write(&rules, "[[rule]]\nmatch = \"direct\"\naccess = \"write\"\n").unwrap();
    let mounted = MountedFs::over(&source, &format!("access=copy,rules={}", rules.display()));
    let file = open(mounted.path().join("direct"), OFlags::RDWR).unwrap();
    file.write_all_at(b"written", 0).unwrap();
    ask(mounted.path(), "flush direct").text();
    assert_eq!(&fs::read(source.join("direct")).unwrap()[..7], b"written");
    ask(mounted.path(), "advise dontneed direct").text();
    ask(mounted.path(), "advise remove direct").fails_with(Errno::PERM);
    ask(mounted.path(), "advise destroy remove 4K-8K direct").text();
    assert_bytes(&fs::read(source.join("direct")).unwrap()[PAGE..2 * PAGE], &[0; PAGE]);
    let scratch = status(&mounted);
    assert_eq!((&scratch["copied_files"], &scratch["pages"]), (&0.into(), &0.into()));
}
