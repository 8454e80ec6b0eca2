//! A kept scratch whose base was changed while it was not mounted: what has changed is told, and
//! never mixed with what the scratch has.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use super::common::*;
use super::kept::Kept;

const PAGE: u64 = 4096;

fn fill(base: &Path) {
    for name in ["a", "b", "c"] {
        fs::write(base.join(name), pattern(20_000)).unwrap();
    }
}

/// A scratch with one page of each file, whose base is changed by `change` while it is not mounted.
fn changed(options: &str, change: impl FnOnce(&Path)) -> Kept {
    let mut kept = Kept::new("copy_up=0", fill);
    for name in ["a", "b", "c"] {
        let file = File::options().write(true).open(kept.at(name)).unwrap();
        file.write_all_at(&[b'w'; PAGE as usize], PAGE).unwrap();
    }
    kept.unmount();
    change(&kept.base);
    kept.add_options(options);
    kept
}

fn page_of(path: &Path, page: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; PAGE as usize];
    errno(File::open(path).and_then(|file| file.read_exact_at(&mut bytes, page * PAGE)))?;
    Ok(bytes)
}

/// A page to be written whole. The kernel splits a write whose buffer is not all in memory, as that
/// of a constant may be, and a part of a page needs the rest of it.
fn resident(byte: u8) -> Vec<u8> {
    vec![byte; PAGE as usize]
}

/// Writes a byte in place, long after the copy.
fn write_in_place(path: &Path) {
    File::options().write(true).open(path).unwrap().write_all_at(b"!", 3).unwrap();
}

#[test]
fn pages_of_a_base_that_has_changed_are_refused_and_those_of_the_scratch_go_on() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let changes: [fn(&Path); 4] = [
        write_in_place,
        |path| raw::truncate(path, 10_000).unwrap(),
        |path| fs::write(path, pattern(20_000)).unwrap(),
        |path| {
            fs::write(path.with_extension("new"), pattern(20_000)).unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        },
    ];
    for change in changes {
        let mut kept = changed("", |base| change(&base.join("b")));
        kept.mount();
        assert_eq!(page_of(&kept.at("b"), 0), Err(Errno::IO));
        assert_eq!(page_of(&kept.at("b"), 1).unwrap(), [b'w'; PAGE as usize]);
        for name in ["a", "c"] {
            assert!(page_of(&kept.at(name), 0).unwrap() == pattern(20_000)[..PAGE as usize]);
        }
        // Whole pages can be written, and others not.
        let file = File::options().write(true).open(kept.at("b")).unwrap();
        file.write_all_at(&resident(b'n'), 2 * PAGE).unwrap();
        assert_eq!(page_of(&kept.at("b"), 2).unwrap(), [b'n'; PAGE as usize]);
        assert_eq!(errno(file.write_all_at(b"n", 3 * PAGE + 1)), Err(Errno::IO));
        let log = kept.mounted().log();
        assert!(log.contains("b (its base has changed)"), "{log}");
        assert!(!log.contains("a (its base"), "{log}");
        let cause = "a page of a base that was changed directly";
        let failure = |line: &str| {
            line.contains(" b: ")
                && line.contains("failed: Input/output error")
                && line.contains(cause)
        };
        assert!(log.lines().any(failure), "{log}");
        let status = ask(kept.root(), "json status").json();
        let told = &status["scratch"]["guard"]["changed"];
        assert_eq!(told, &serde_json::json!([["b", "its base has changed"]]));
        let text = ask(kept.root(), "status").text();
        assert!(text.contains("b: its base has changed"), "{text}");
    }
}

#[test]
fn a_mount_over_a_base_that_has_changed_can_be_refused() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = changed("base_changed=refuse", |base| {
        write_in_place(&base.join("a"));
        fs::remove_file(base.join("c")).unwrap();
    });
    let mountpoint = kept.dir.directory("refused");
    let options = format!("access=copy,scratch={},base_changed=refuse", kept.scratch().display());
    let mount = |options: &str| {
        mounted::run(&[
            std::ffi::OsStr::new("mount"),
            std::ffi::OsStr::new("-o"),
            std::ffi::OsStr::new(options),
            kept.base.as_os_str(),
            mountpoint.as_os_str(),
        ])
    };
    let output = mount(&options);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("2 files were copied in part"), "{text}");
    assert!(text.contains("a (its base has changed), c (its base is gone)"), "{text}");
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("mmapfs: ") && line.contains("base_changed=eio"), "{text}");
    assert!(!mounted::is_mounted(&mountpoint));
    fs::write(kept.base.join("c"), "another").unwrap();
    kept.add_options("base_changed=mix");
    kept.mount();
    let mixed = page_of(&kept.at("a"), 0).unwrap();
    assert_eq!(mixed[3], b'!');
    assert_eq!(page_of(&kept.at("a"), 1).unwrap(), [b'w'; PAGE as usize]);
}

#[test]
fn the_status_of_a_file_whose_base_has_changed_says_so_with_all_that_is_known() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = changed("", |base| {
        write_in_place(&base.join("a"));
        fs::remove_file(base.join("b")).unwrap();
    });
    kept.mount();
    for (name, fate) in
        [("a", Some("its base has changed")), ("b", Some("its base is gone")), ("c", None)]
    {
        let status = ask(kept.root(), format!("json status {name}")).json();
        assert_eq!(status["base"].as_str(), fate, "{status}");
        assert_eq!(status["scratch_pages"], 1, "{status}");
        assert_eq!(status["size"], 20_000, "{status}");
    }
    let text = ask(kept.root(), "status b").text();
    assert!(text.contains("base       its base is gone"), "{text}");
    let refused = ask(kept.root(), "advise willneed b").fails_with(Errno::IO);
    assert!(refused.contains("willneed: its base is gone"), "{refused}");
    // What was written is flushed all the same.
    ask(kept.root(), "flush sync b").text();
}

#[test]
fn a_base_whose_attributes_alone_have_changed_is_shown_and_told() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = changed("", |base| {
        set_mode(base.join("a"), 0o600);
        fs::hard_link(base.join("b"), base.join("other")).unwrap();
    });
    kept.mount();
    for name in ["a", "b", "c"] {
        assert!(page_of(&kept.at(name), 0).unwrap() == pattern(20_000)[..PAGE as usize], "{name}");
    }
    let log = kept.mounted().log();
    let told = "a (attributes of its base have changed, or more), b (attributes";
    assert!(log.contains(told), "{log}");
}

#[test]
fn a_partial_copy_that_is_there_at_mount_is_guarded_before_it_is_used() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = changed("", |_| {});
    kept.mount();
    assert_eq!(ask(kept.root(), "json status").json()["scratch"]["guard"]["leased"], 3);
    fs::write(kept.base.join("a"), "new").unwrap();
    assert!(page_of(&kept.at("a"), 0).unwrap() == pattern(20_000)[..PAGE as usize]);
}

#[test]
fn a_partial_copy_whose_base_is_gone_shows_its_own_pages_and_can_be_replaced_and_removed() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for options in ["", "base_changed=mix"] {
        let mut kept = changed(options, |base| {
            fs::remove_file(base.join("a")).unwrap();
            fs::remove_file(base.join("b")).unwrap();
            fs::create_dir(base.join("b")).unwrap();
            fs::remove_file(base.join("c")).unwrap();
        });
        kept.mount();
        for round in 0..2 {
            for name in ["a", "b", "c"] {
                let path = kept.at(name);
                assert_eq!(fs::metadata(&path).unwrap().len(), 20_000, "{name} {round}");
                assert_eq!(page_of(&path, 1), Ok(vec![b'w'; PAGE as usize]), "{name} {round}");
                assert_eq!(page_of(&path, 0), Err(Errno::IO), "{name} {round}");
                assert_eq!(page_of(&path, 2), Err(Errno::IO), "{name} {round}");
                // Nothing of it is a hole: whoever copies the data of a sparse file is told.
                let file = File::open(&path).unwrap();
                let seek = |to| rustix::fs::seek(&file, to);
                assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(0), "{name} {round}");
                assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), Ok(20_000), "{name} {round}");
            }
            kept.remount();
        }
        let file = File::options().write(true).open(kept.at("a")).unwrap();
        file.write_all_at(&resident(b'n'), 2 * PAGE).unwrap();
        // A page that is written in part needs the rest of it.
        assert_eq!(errno(file.write_all_at(b"n", 3 * PAGE)), Err(Errno::IO));
        drop(file);
        assert_eq!(page_of(&kept.at("a"), 2), Ok(vec![b'n'; PAGE as usize]));
        fs::rename(kept.at("a"), kept.at("moved")).unwrap();
        assert_eq!(page_of(&kept.at("moved"), 1), Ok(vec![b'w'; PAGE as usize]));
        fs::write(kept.at("b"), b"replaced").unwrap();
        fs::remove_file(kept.at("c")).unwrap();
        kept.remount();
        assert_eq!(fs::read(kept.at("b")).unwrap(), b"replaced");
        assert_eq!(page_of(&kept.at("moved"), 2), Ok(vec![b'n'; PAGE as usize]));
        assert_eq!(names(kept.root()), ["b", "moved"]);
        kept.unmount();
    }
}
