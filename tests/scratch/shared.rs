//! `share`: unchanged files are read in the base itself, in one cache with all other scratches.
//! Whoever has one open so when it is written goes on reading the base; nobody else does.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use super::common::mapped::Mapped;
use super::common::*;
use super::kept::Kept;

const SIZE: usize = 1 << 20;

fn fill(base: &Path) {
    for name in ["file", "other", "third"] {
        fs::write(base.join(name), pattern(SIZE)).unwrap();
    }
    fs::write(base.join("empty"), b"").unwrap();
    fs::write(base.join("linked"), pattern(SIZE)).unwrap();
    fs::hard_link(base.join("linked"), base.join("second")).unwrap();
    rustix::fs::sync();
}

/// A scratch that lends files of its base, or none where that is not permitted.
fn sharing(options: &str) -> Option<Kept> {
    if !(require_fuse() && require_root()) {
        return None;
    }
    let kept = Kept::new(&format!("share,{options}"), fill);
    let status = ask(kept.root(), "json status").json();
    let features = status["kernel"]["features"].as_array().unwrap().clone();
    let lends =
        |feature: &serde_json::Value| feature["name"] == "passthrough" && feature["in_use"] == true;
    features.iter().any(lends).then_some(kept)
}

/// Bytes of a file that are in the page cache.
fn cached(path: &Path) -> u64 {
    let output =
        Command::new("fincore").args(["-b", "-n", "-o", "RES"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn reader(path: impl AsRef<Path>) -> File {
    open(path, OFlags::RDONLY).unwrap()
}

#[test]
fn scratches_of_one_base_read_its_pages_in_one_cache() {
    let Some(first) = sharing("copy_up=0") else { return };
    if !require_program("fincore") {
        return;
    }
    let below = first.base.join("file");
    let options = "access=copy,share";
    let others: Vec<_> = (0..8).map(|_| MountedFs::over(&first.base, options)).collect();
    let file = open(&below, OFlags::RDONLY | OFlags::NOATIME).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    if cached(&below) != 0 {
        return eprintln!("SKIPPED: this filesystem keeps what it is told to drop");
    }
    assert_content(first.at("file"), &pattern(SIZE));
    assert_eq!(cached(&below), SIZE as u64, "it was not read in the base");
    for other in &others {
        let path = other.path().join("file");
        let open = reader(&path);
        let map = Mapped::shared_for_reading(&open, SIZE).unwrap();
        assert_eq!(cached(&path), SIZE as u64, "it is not in the cache of this one");
        assert_bytes(&map.read(0, SIZE), &pattern(SIZE));
    }
}

/// What a change of a file looks like for those who opened it before, meanwhile and after it.
fn is_changed_while_read(kept: &Kept, name: &str, change: impl FnOnce(&Path), expected: &[u8]) {
    let path = kept.at(name);
    let before = fs::metadata(&path).unwrap();
    let old = fs::read(&path).unwrap();
    let early = reader(&path);
    let map = (!old.is_empty()).then(|| Mapped::shared_for_reading(&early, old.len()).unwrap());
    change(&path);
    // Everybody else.
    assert_content(&path, expected);
    let late = reader(&path);
    assert_bytes(&read_at(&late, 0, expected.len()), expected);
    for meta in [late.metadata(), fs::metadata(&path), early.metadata()] {
        let meta = meta.unwrap();
        assert_eq!((meta.ino(), meta.len()), (before.ino(), expected.len() as u64), "{name}");
    }
    // Who was there before.
    assert_bytes(&read_at(&early, 0, old.len()), &old);
    if let Some(map) = &map {
        assert_bytes(&map.read(0, old.len()), &old);
    }
    drop((early, late, map));
    assert_content(&path, expected);
}

#[test]
fn a_file_that_is_read_can_be_changed_in_every_way() {
    let Some(mut kept) = sharing("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        let mut bytes = pattern(SIZE);
        bytes[5000..5007].copy_from_slice(b"written");
        let write = |path: &Path| {
            let file = open(path, OFlags::RDWR).unwrap();
            file.write_all_at(b"written", 5000).unwrap();
            assert_bytes(&read_at(&file, 4990, 100), &{
                let mut part = pattern(SIZE)[4990..5090].to_vec();
                part[10..17].copy_from_slice(b"written");
                part
            });
        };
        is_changed_while_read(kept, "file", write, &bytes);
        is_changed_while_read(
            kept,
            "other",
            |path| raw::truncate(path, 70_000).unwrap(),
            &pattern(SIZE)[..70_000],
        );
        let truncate = |path: &Path| drop(open(path, OFlags::WRONLY | OFlags::TRUNC).unwrap());
        is_changed_while_read(kept, "third", truncate, b"");
        let append = |path: &Path| fs::write(path, b"now").unwrap();
        is_changed_while_read(kept, "empty", append, b"now");
        is_changed_while_read(kept, "linked", write, &bytes);
        assert_content(kept.at("second"), &bytes);
        kept.remount();
        assert_content(kept.at("second"), &bytes);
        assert_content(kept.at("file"), &bytes);
        assert_content(kept.at("other"), &pattern(SIZE)[..70_000]);
    });
}

#[test]
fn other_names_of_a_file_that_is_read_lead_to_what_is_written() {
    let Some(mut kept) = sharing("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        let (linked, second) = (kept.at("linked"), kept.at("second"));
        let (early, other) = (reader(&linked), reader(&second));
        let writer = create(&second);
        writer.write_all_at(b"written", SIZE as u64).unwrap();
        let mut expected = pattern(SIZE);
        expected.extend_from_slice(b"written");
        for path in [&linked, &second] {
            assert_eq!(size(path), expected.len() as u64);
            assert_content(path, &expected);
            assert_eq!(inode(path), inode(kept.base.join("linked")));
        }
        assert_bytes(&read_at(&early, 0, SIZE), &pattern(SIZE));
        assert_bytes(&read_at(&other, 0, SIZE), &pattern(SIZE));
        // A name that it gets while it is read by its first, and one that it has got instead.
        let early = reader(kept.at("file"));
        fs::hard_link(kept.at("file"), kept.at("new name")).unwrap();
        fs::rename(kept.at("file"), kept.at("moved")).unwrap();
        create(kept.at("moved")).write_all_at(b"moved", 0).unwrap();
        for name in ["moved", "new name"] {
            assert_bytes(&fs::read(kept.at(name)).unwrap()[..5], b"moved");
            assert_eq!(links(kept.at(name)), 2);
        }
        assert_bytes(&read_at(&early, 0, 5), &pattern(5));
        // Many times over: what is read is read again by another number each time.
        for round in 0..5u8 {
            let early = reader(kept.at("third"));
            let now = read_at(&early, 0, 1);
            create(kept.at("third")).write_all_at(&[round], 0).unwrap();
            assert_bytes(&read_at(&reader(kept.at("third")), 0, 1), &[round]);
            assert_eq!(now, [round.checked_sub(1).unwrap_or(pattern(1)[0])]);
        }
    });
}

#[test]
fn attributes_of_a_file_that_is_read_change_for_all() {
    let Some(mut kept) = sharing("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        for name in ["file", "empty"] {
            let early = reader(kept.at(name));
            set_mode(kept.at(name), 0o604);
            assert_eq!(early.metadata().unwrap().mode() & 0o777, 0o604);
            let again = reader(kept.at(name));
            create(kept.at(name)).write_all_at(b"x", 0).unwrap();
            set_mode(kept.at(name), 0o640);
            for file in [&early, &again] {
                assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
            }
            assert_bytes(&fs::read(kept.at(name)).unwrap()[..1], b"x");
        }
        // Without a name there is no way to another inode.
        let early = reader(kept.at("third"));
        fs::remove_file(kept.at("third")).unwrap();
        let by_descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&early));
        assert_eq!(open(&by_descriptor, OFlags::RDWR).err(), Some(Errno::TXTBSY));
        assert_bytes(&read_at(&early, 0, SIZE), &pattern(SIZE));
        // A writer who is there already writes on, and nothing is lent meanwhile.
        let writer = create(kept.at("other"));
        let late = reader(kept.at("other"));
        writer.write_all_at(b"seen", 0).unwrap();
        fallocate(&writer, FallocateFlags::ZERO_RANGE, 4096, 4096).unwrap();
        assert_bytes(&read_at(&late, 0, 4), b"seen");
        assert_bytes(&read_at(&late, 4096, 4096), &[0; 4096]);
    });
}

#[test]
fn readers_and_writers_at_once_meet_no_error() {
    let Some(mut kept) = sharing("copy_up=0") else { return };
    kept.with_base_untouched(|kept| {
        for round in 0..20 {
            let names: Vec<_> = ["file", "other", "third", "linked"].into();
            // Each round begins with files that are lent.
            if round > 0 {
                for name in &names {
                    fs::remove_file(kept.at(name)).unwrap_or_default();
                }
                kept.unmount();
                fs::remove_dir_all(kept.scratch()).unwrap();
                fs::create_dir(kept.scratch()).unwrap();
                kept.mount();
            }
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while !done.load(Ordering::Acquire) {
                            for name in &names {
                                let file = reader(kept.at(name));
                                assert_eq!(read_at(&file, 100, 100).len(), 100);
                            }
                        }
                    });
                }
                let writers: Vec<_> = (0..2u8)
                    .map(|number| {
                        let names = &names;
                        let kept = &*kept;
                        scope.spawn(move || {
                            for name in names {
                                let file = open(kept.at(name), OFlags::RDWR).unwrap();
                                file.write_all_at(&[number; 10], u64::from(number) * 50).unwrap();
                            }
                        })
                    })
                    .collect();
                let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
                // Also when one has failed, since the readers go on until then.
                done.store(true, Ordering::Release);
                ended.into_iter().for_each(|writer| writer.unwrap());
            });
            for name in &names {
                let content = fs::read(kept.at(name)).unwrap();
                assert_eq!((&content[..10], &content[50..60]), (&[0; 10][..], &[1; 10][..]));
            }
        }
    });
}
