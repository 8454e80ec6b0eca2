//! Listing directories: big ones, changing ones, from any place in them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::*;
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

const MANY: usize = 5000;

fn fill(dir: &Path, count: usize) {
    for index in 0..count {
        fs::write(dir.join(format!("entry-{index:05}")), b"").unwrap();
    }
}

fn open_dir(path: &Path) -> Dir {
    Dir::new(open_directory(path)).unwrap()
}

/// The names from the current place on, `.` and `..` left out.
fn rest(dir: &mut Dir) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(entry) = dir.read() {
        let entry = entry.unwrap();
        if !is_dot(entry.file_name()) {
            names.push(entry.file_name().to_str().unwrap().to_owned());
        }
    }
    names
}

/// Reads up to `count` entries.
fn some(dir: &mut Dir, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    while names.len() < count {
        let Some(entry) = dir.read() else { break };
        let entry = entry.unwrap();
        if !is_dot(entry.file_name()) {
            names.push(entry.file_name().to_str().unwrap().to_owned());
        }
    }
    names
}

#[test]
fn every_entry_of_a_big_directory_is_listed_once() {
    on_both(|dir| {
        fill(dir, MANY);
        let found = rest(&mut open_dir(dir));
        assert_eq!(found.len(), MANY);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), MANY);
    });
}

#[test]
fn entries_that_stay_are_seen_once_while_others_come_and_go() {
    on_both(|dir| {
        fill(dir, MANY);
        let mut open = open_dir(dir);
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for round in 0.. {
            let names = some(&mut open, 97);
            if names.is_empty() {
                break;
            }
            for name in names {
                *seen.entry(name).or_default() += 1;
            }
            // Every third entry goes, from both ends, and as many others come.
            for index in [3 * round, MANY - 2 - 3 * round] {
                let _ = fs::remove_file(dir.join(format!("entry-{index:05}")));
                fs::write(dir.join(format!("new-{index:05}")), b"").unwrap();
            }
        }
        for index in 0..MANY {
            let name = format!("entry-{index:05}");
            let times = seen.get(&name).copied().unwrap_or(0);
            assert!(times <= 1, "{name} is listed {times} times");
            let stays = dir.join(&name).exists();
            assert!(times == 1 || !stays, "{name} was there all the time and is not listed");
        }
        assert!(seen.values().all(|&times| times == 1), "a new entry is listed twice");
    });
}

#[test]
fn a_directory_can_be_emptied_while_it_is_listed() {
    on_both(|dir| {
        let sub = dir.join("sub");
        fs::create_dir(&sub).unwrap();
        fill(&sub, 2000);
        let mut open = open_dir(&sub);
        let mut removed = 0;
        while let Some(name) = some(&mut open, 1).pop() {
            fs::remove_file(sub.join(name)).unwrap();
            removed += 1;
        }
        assert_eq!(removed, 2000);
        drop(open);
        fs::remove_dir(&sub).unwrap();
    });
}

#[test]
fn a_tree_is_removed_in_one_go() {
    on_both(|dir| {
        for sub in 0..5 {
            let sub = dir.join(format!("tree/{sub}/deeper"));
            fs::create_dir_all(&sub).unwrap();
            fill(&sub, 300);
        }
        fs::remove_dir_all(dir.join("tree")).unwrap();
        assert_eq!(names(dir), Vec::<String>::new());
    });
}

#[test]
fn a_listing_goes_on_from_any_place_that_was_told() {
    on_both(|dir| {
        fill(dir, 1000);
        let mut open = open_dir(dir);
        let mut places = Vec::new();
        while let Some(entry) = open.read() {
            let entry = entry.unwrap();
            places.push((entry.file_name().to_owned(), entry.offset()));
        }
        assert_eq!(places.len(), 1002);
        for index in [0, 1, 5, 500, 998, 1000] {
            open.seek(places[index].1).unwrap();
            let next = open.read().unwrap().unwrap();
            assert_eq!(next.file_name(), places[index + 1].0.as_c_str(), "after place {index}");
        }
        open.seek(places[1001].1).unwrap();
        assert!(open.read().is_none());
        let mut another = open_dir(dir);
        another.seek(places[700].1).unwrap();
        let next = another.read().unwrap().unwrap();
        assert_eq!(next.file_name(), places[701].0.as_c_str(), "in another descriptor");
    });
}

#[test]
fn a_place_stays_good_when_entries_before_it_go() {
    on_both(|dir| {
        fill(dir, 1000);
        let mut open = open_dir(dir);
        let first = some(&mut open, 400);
        let entry = open.read().unwrap().unwrap();
        let place = entry.offset();
        for name in &first {
            fs::remove_file(dir.join(name)).unwrap();
        }
        open.seek(place).unwrap();
        let found: BTreeSet<String> = rest(&mut open).into_iter().collect();
        assert_eq!(found.len(), 599, "each of the rest once");
        assert!(first.iter().all(|name| !found.contains(name)));
    });
}

#[test]
fn a_rewound_listing_shows_what_is_there_now() {
    on_both(|dir| {
        fill(dir, 100);
        let mut open = open_dir(dir);
        assert_eq!(rest(&mut open).len(), 100);
        fs::write(dir.join("added"), b"").unwrap();
        fs::remove_file(dir.join("entry-00000")).unwrap();
        open.rewind();
        let found = rest(&mut open);
        assert_eq!(found.len(), 100);
        assert!(found.contains(&"added".to_owned()));
        assert!(!found.contains(&"entry-00000".to_owned()));
    });
}

#[test]
fn entries_tell_their_type_and_inode() {
    on_both(|dir| {
        fs::create_dir(dir.join("directory")).unwrap();
        fs::write(dir.join("file"), b"").unwrap();
        symlink("file", dir.join("symlink")).unwrap();
        let mut open = open_dir(dir);
        let mut dots = Vec::new();
        while let Some(entry) = open.read() {
            let entry = entry.unwrap();
            let expected = match entry.file_name().to_str().unwrap() {
                "file" => FileType::RegularFile,
                "symlink" => FileType::Symlink,
                _ => FileType::Directory,
            };
            assert_eq!(entry.file_type(), expected, "{:?}", entry.file_name());
            if is_dot(entry.file_name()) {
                dots.push(entry.file_name().to_owned());
                continue;
            }
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            assert_eq!(entry.ino(), inode(dir.join(name)));
        }
        assert_eq!(dots.len(), 2, "{dots:?}");
    });
}

#[test]
fn listings_by_several_threads_of_one_directory_agree() {
    on_both(|dir| {
        fill(dir, 1500);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..3 {
                        assert_eq!(rest(&mut open_dir(dir)).len(), 1500);
                    }
                });
            }
        });
    });
}

#[test]
fn what_is_listed_by_small_steps_is_the_whole() {
    on_both(|dir| {
        fill(dir, 300);
        let open = open_directory(dir);
        let mut space = [std::mem::MaybeUninit::uninit(); 80];
        let mut raw = rustix::fs::RawDir::new(&open, &mut space);
        let mut found = BTreeSet::new();
        while let Some(entry) = raw.next() {
            let entry = entry.unwrap();
            assert!(found.insert(entry.file_name().to_owned()), "{:?}", entry.file_name());
        }
        assert_eq!(found.len(), 302);
        let mut too_small = [std::mem::MaybeUninit::uninit(); 20];
        let again = open_directory(dir);
        let mut raw = rustix::fs::RawDir::new(&again, &mut too_small);
        assert!(matches!(raw.next(), Some(Err(Errno::INVAL))));
    });
}

#[test]
fn a_file_cannot_be_listed() {
    same_on_both(|dir| {
        fs::write(dir.join("file"), b"").unwrap();
        errno(fs::read_dir(dir.join("file")).map(drop))
    });
}

fn in_listing(dir: &Path, name: &str) -> bool {
    names(dir).iter().any(|found| found == name)
}

#[test]
fn the_control_directory_is_reachable_and_not_listed() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    fs::create_dir(mounted.path().join("sub")).unwrap();
    assert!(!in_listing(mounted.path(), ".mmapfs"));
    assert!(fs::metadata(mounted.path().join(".mmapfs")).unwrap().is_dir());
    assert_eq!(mode(mounted.path().join(".mmapfs")), 0o700);
    assert_eq!(mode(mounted.path().join(".mmapfs/control")), 0o600);
    let expected = ["control", "maps", "status", "status.json"];
    assert_eq!(names(mounted.path().join(".mmapfs")), expected);
    assert_eq!(error(fs::metadata(mounted.path().join("sub/.mmapfs"))), Errno::NOENT);
    assert_eq!(names(mounted.backing()), ["sub"]);
}

#[test]
fn the_control_directory_is_listed_where_it_is_asked_for() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,control=visible,control_name=.door");
    assert!(in_listing(mounted.path(), ".door"));
    let through_dotdot = mounted.path().join(".door/../.door/status");
    assert!(!fs::read(through_dotdot).unwrap().is_empty());
    assert_eq!(error(fs::metadata(mounted.path().join(".mmapfs"))), Errno::NOENT);
}

#[test]
fn there_is_no_control_directory_where_it_is_switched_off() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,control=off");
    assert_eq!(error(fs::metadata(mounted.path().join(".mmapfs"))), Errno::NOENT);
    fs::create_dir(mounted.path().join(".mmapfs")).unwrap();
    assert!(in_listing(mounted.backing(), ".mmapfs"));
}

#[test]
fn directories_listed_by_several_clients_at_once_are_whole_for_each() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    for sub in 0..200 {
        let sub = dir.directory(&format!("{sub}"));
        (0..3).for_each(|at| fs::write(sub.join(format!("{at}")), b"content").unwrap());
    }
    for _ in 0..5 {
        let mounted = MountedFs::over(dir.path(), "access=write");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for sub in 0..200 {
                        let sub = mounted.path().join(format!("{sub}"));
                        assert_eq!(names(&sub), ["0", "1", "2"]);
                        (0..3).for_each(|at| assert_content(sub.join(format!("{at}")), b"content"));
                    }
                });
            }
        });
        mounted.unmount();
    }
}
