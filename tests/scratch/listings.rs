//! Listings that the kernel keeps: they show what is there, and go on where they were.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, Dir, RenameFlags, renameat_with};

use super::common::*;
use super::kept::Kept;

/// A scratch on disk and one in memory.
fn both(fill: impl Fn(&Path) + Copy) -> [Kept; 2] {
    [Kept::new("copy_up=0", fill), Kept::in_memory("copy_up=0", fill)]
}

fn files(dir: &Path, names: impl IntoIterator<Item = String>) {
    fs::create_dir_all(dir).unwrap();
    names.into_iter().for_each(|name| fs::write(dir.join(name), b"base").unwrap());
}

fn numbered(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |at| format!("{prefix}-{at:05}"))
}

/// Everything below a directory by listings alone, with what they say of it.
fn listed(root: &Path) -> BTreeMap<String, (u8, u64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(at) = open.pop() {
        let mut dir = Dir::new(open_directory(root.join(&at))).unwrap();
        while let Some(entry) = dir.read() {
            let entry = entry.unwrap();
            if is_dot(entry.file_name()) {
                continue;
            }
            let name = format!("{at}/{}", entry.file_name().to_str().unwrap());
            let name = name.trim_start_matches('/').to_owned();
            let kind = entry.file_type();
            if kind == rustix::fs::FileType::Directory {
                open.push(name.clone());
            }
            let kind = (kind.as_raw_mode() >> 12) as u8;
            assert!(found.insert(name.clone(), (kind, entry.ino())).is_none(), "{name} twice");
        }
    }
    found.retain(|name, _| !name.starts_with(".mmapfs"));
    found
}

/// Directories that are merged, only below and, soon, only above.
fn several_kinds(root: &Path) {
    for dir in ["a", "b", "a/deep", "empty", "untouched"] {
        files(&root.join(dir), []);
    }
    for dir in ["a", "b", "a/deep", "untouched"] {
        files(&root.join(dir), numbered("file", 40));
    }
    symlink("nowhere", root.join("a/link")).unwrap();
    fs::hard_link(root.join("a/file-00001"), root.join("b/other name")).unwrap();
}

type Change = (&'static str, fn(&Path));

fn exchange(root: &Path, one: &str, other: &str) {
    renameat_with(CWD, root.join(one), CWD, root.join(other), RenameFlags::EXCHANGE).unwrap();
}

fn rename(root: &Path, from: &str, to: &str) {
    fs::rename(root.join(from), root.join(to)).unwrap();
}

const CHANGES: [Change; 26] = [
    ("create", |root| fs::write(root.join("a/new"), b"new").unwrap()),
    ("write", |root| fs::write(root.join("a/file-00002"), b"changed").unwrap()),
    ("write to one of two names", |root| {
        create(root.join("b/other name")).write_all_at(b"x", 0).unwrap();
    }),
    ("chmod", |root| set_mode(root.join("a/file-00003"), 0o600)),
    ("unlink", |root| fs::remove_file(root.join("a/file-00004")).unwrap()),
    ("unlink what was written", |root| fs::remove_file(root.join("a/file-00002")).unwrap()),
    ("unlink what was made", |root| fs::remove_file(root.join("a/new")).unwrap()),
    ("create anew", |root| fs::write(root.join("a/file-00004"), b"again").unwrap()),
    ("mkdir in place of a file", |root| {
        fs::remove_file(root.join("a/file-00005")).unwrap();
        fs::create_dir(root.join("a/file-00005")).unwrap();
    }),
    ("create in it", |root| fs::write(root.join("a/file-00005/in"), b"").unwrap()),
    ("symlink", |root| symlink("x", root.join("untouched/link")).unwrap()),
    ("link", |root| fs::hard_link(root.join("b/file-00001"), root.join("a/linked")).unwrap()),
    ("rename", |root| rename(root, "a/file-00006", "a/renamed")),
    ("rename over", |root| rename(root, "a/file-00007", "a/file-00008")),
    ("rename what was made over", |root| {
        fs::write(root.join("a/temporary"), b"x").unwrap();
        rename(root, "a/temporary", "a/file-00009");
    }),
    ("rename to another directory", |root| rename(root, "a/file-00010", "b/moved")),
    ("exchange", |root| exchange(root, "a/file-00011", "b/file-00011")),
    ("exchange a file and a directory", |root| exchange(root, "a/file-00012", "a/deep")),
    ("create in a directory that was moved", |root| {
        fs::write(root.join("a/file-00012/new"), b"x").unwrap();
        fs::remove_file(root.join("a/file-00012/file-00003")).unwrap();
    }),
    ("rename a directory", |root| rename(root, "a/file-00012", "untouched/deep")),
    ("make one where it was", |root| files(&root.join("a/file-00012"), ["one".into()])),
    ("rename a directory over an empty one", |root| rename(root, "untouched/deep", "empty")),
    ("remove a directory", |root| fs::remove_dir_all(root.join("b")).unwrap()),
    ("make it again", |root| fs::create_dir(root.join("b")).unwrap()),
    ("fill it", |root| files(&root.join("b"), numbered("file", 5))),
    ("remove what was made", |root| fs::remove_dir_all(root.join("b")).unwrap()),
];

#[test]
fn a_listing_that_was_read_before_shows_each_change() {
    if !require_fuse() {
        return;
    }
    for mut kept in both(several_kinds) {
        let plain = TestDir::new();
        several_kinds(plain.path());
        let mut numbers: HashMap<String, u64> = HashMap::new();
        for (what, change) in CHANGES {
            listed(kept.root());
            listed(kept.root());
            change(plain.path());
            change(kept.root());
            let shown = listed(kept.root());
            let kinds = |tree: &BTreeMap<String, (u8, u64)>| -> BTreeMap<String, u8> {
                tree.iter().map(|(name, (kind, _))| (name.clone(), *kind)).collect()
            };
            assert_eq!(kinds(&shown), kinds(&listed(plain.path())), "after {what}");
            for (name, (_, ino)) in &shown {
                assert_eq!(*ino, inode(kept.at(name)), "{name} after {what}");
                let before = numbers.insert(name.clone(), *ino);
                let stays = name.starts_with("untouched/file") || name == "a/file-00003";
                assert!(!stays || before.is_none_or(|before| before == *ino), "{name}: {what}");
            }
        }
        if kept.scratch().exists() {
            let before = listed(kept.root());
            kept.remount();
            let kinds = |tree: BTreeMap<String, (u8, u64)>| -> Vec<String> {
                tree.into_iter().map(|(name, (kind, _))| format!("{kind} {name}")).collect()
            };
            assert_eq!(kinds(listed(kept.root())), kinds(before));
        }
    }
}

/// How many requests a mount has had that list.
fn requests(kept: &Kept) -> u64 {
    let report = ask(kept.root(), "json status").json();
    ["opendir", "readdir", "readdirplus"]
        .iter()
        .map(|name| report["requests"][name].as_u64().unwrap_or(0))
        .sum()
}

#[test]
fn what_was_listed_on_disk_is_listed_again_without_a_request() {
    if !require_fuse() {
        return;
    }
    let kept = Kept::new("", several_kinds);
    fs::write(kept.at("a/new"), b"x").unwrap();
    fs::remove_file(kept.at("a/file-00001")).unwrap();
    wait_for("a round without a request", || {
        requests(&kept);
        let before = requests(&kept);
        let (first, second) = (listed(kept.root()), listed(kept.root()));
        assert_eq!(first, second);
        before == requests(&kept)
    });
}

/// Names from the place of an open directory on.
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

/// Fails unless each of the names is there once.
#[track_caller]
fn assert_once<'a>(found: &[String], expected: impl Iterator<Item = &'a String>, what: &str) {
    let mut times: HashMap<&str, usize> = HashMap::new();
    found.iter().for_each(|name| *times.entry(name).or_default() += 1);
    let expected: Vec<_> = expected.collect();
    let wrong = |name: &&&String| times.get(name.as_str()) != Some(&1);
    let wrong: Vec<_> = expected.iter().filter(wrong).take(5).collect();
    assert!(wrong.is_empty(), "{what}: not once of {}: {wrong:?}", expected.len());
}

/// Takes all places of a listing, changes much, and goes on at them in other listings.
fn go_on_at_places(dir: &Path, count: usize) {
    for name in numbered("own", 1000) {
        fs::write(dir.join(name), b"").unwrap();
    }
    let mut places = vec![(String::new(), 0)];
    let mut open = Dir::new(open_directory(dir)).unwrap();
    while let Some(entry) = open.read() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        places.push((name, entry.offset()));
    }
    assert_eq!(places.len(), count + 1000 + 3);
    let mut changed = BTreeSet::new();
    for (prefix, count) in [("base", count), ("own", 1000)] {
        for (at, name) in numbered(prefix, count).enumerate() {
            match at % 17 {
                3 => fs::remove_file(dir.join(&name)).unwrap(),
                5 => fs::rename(dir.join(&name), dir.join(format!("moved {name}"))).unwrap(),
                7 => fs::rename(dir.join(&name), dir.join(format!("{prefix}-{:05}", at - 4)))
                    .unwrap(),
                9 => set_mode(dir.join(&name), 0o600),
                11 => fs::write(dir.join(format!("new {name}")), b"").unwrap(),
                _ => {}
            }
            if [3, 5, 7].contains(&(at % 17)) {
                changed.insert(name);
            }
        }
    }
    let untouched = |name: &&String| !changed.contains(*name) && !is_dotted(name);
    for from in (0..places.len()).step_by(places.len() / 9).chain([1, 2, 3, places.len() - 1]) {
        for warm in [false, true] {
            let mut again = Dir::new(open_directory(dir)).unwrap();
            if warm {
                rest(&mut again); // The kernel has it now.
                again.rewind();
            }
            again.seek(places[from].1).unwrap();
            let found = rest(&mut again);
            let expected = places[from + 1..].iter().map(|(name, _)| name).filter(untouched);
            assert_once(&found, expected, &format!("from {from}, warm {warm}"));
            let before = places[..=from].iter().map(|(name, _)| name).filter(untouched);
            let before: BTreeSet<_> = before.collect();
            let twice = found.iter().filter(|name| before.contains(name)).count();
            assert_eq!(twice, 0, "listed again from {from}, warm {warm}");
        }
    }
}

fn is_dotted(name: &str) -> bool {
    [".", "..", ""].contains(&name)
}

#[test]
fn a_listing_goes_on_at_any_place_whatever_has_changed() {
    if !require_fuse() {
        return;
    }
    const COUNT: usize = 20_000;
    for kept in both(|base| files(&base.join("dir"), numbered("base", COUNT))) {
        go_on_at_places(&kept.at("dir"), COUNT);
    }
}

#[test]
fn a_listing_goes_on_at_any_place_on_other_filesystems() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut all = vec![SmallFs::tmpfs(64 << 20)];
    if require_program("mkfs.xfs") {
        all.push(SmallFs::xfs(320 << 20));
    }
    for filesystem in all {
        let at = |name: &str| filesystem.path().join(name);
        fs::create_dir(at("base")).unwrap();
        files(&at("base/dir"), numbered("base", 3000));
        let options = format!("access=copy,scratch={}", at("scratch").display());
        let (run, state) = (at("run"), at("state"));
        fs::create_dir(&run).unwrap();
        fs::create_dir(&state).unwrap();
        let places = [("MMAPFS_RUN_DIR", run.as_path()), ("MMAPFS_STATE_DIR", state.as_path())];
        let mounted = MountedFs::over_with(&at("base"), &options, &places);
        go_on_at_places(&mounted.path().join("dir"), 3000);
    }
}

/// What of a directory of many stays, by its number.
fn stays(at: usize) -> bool {
    at.is_multiple_of(2)
}

#[test]
fn readers_meet_what_stays_once_while_others_change_the_directory() {
    if !require_fuse() {
        return;
    }
    let count = if long() { 10_000 } else { 500 };
    let mut random = Random::from_environment();
    for kept in both(|base| files(&base.join("dir"), numbered("base", count))) {
        let dir = kept.at("dir");
        files(&dir, numbered("own", count));
        let expected: Vec<String> = ["base", "own"]
            .into_iter()
            .flat_map(|prefix| numbered(prefix, count).enumerate())
            .filter(|(at, _)| stays(*at))
            .map(|(_, name)| name)
            .collect();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut rounds = 0;
                        while !ended.load(Ordering::Acquire) || rounds == 0 {
                            let found = rest(&mut Dir::new(open_directory(&dir)).unwrap());
                            assert_once(&found, expected.iter(), "while it changes");
                            rounds += 1;
                        }
                        rounds
                    })
                })
                .collect();
            let (dir, mut random) = (&dir, Random::new(random.next()));
            for _ in 0..count {
                let prefix = random.pick(&["base", "own"]);
                let at = random.below(count as u64) as usize;
                let path = dir.join(format!("{prefix}-{at:05}"));
                match random.below(5) {
                    _ if stays(at) => set_mode(&path, random.pick(&[0o600, 0o644])),
                    0 => drop(fs::remove_file(&path)),
                    1 => fs::write(&path, b"again").unwrap(),
                    2 => drop(fs::rename(&path, dir.join(format!("moved-{}", random.below(50))))),
                    3 => fs::write(dir.join(format!("new-{}", random.below(500))), b"").unwrap(),
                    _ => drop(fs::remove_file(dir.join(format!("new-{}", random.below(500))))),
                }
            }
            ended.store(true, Ordering::Release);
            let rounds: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
            eprintln!("{rounds} listings");
        });
        let shown: BTreeSet<String> = names(&dir).into_iter().collect();
        let there: BTreeSet<String> = shown
            .iter()
            .filter(|name| dir.join(name).symlink_metadata().is_ok())
            .cloned()
            .collect();
        assert_eq!(shown, there);
        assert_once(&names(&dir), expected.iter(), "in the end");
    }
}

#[test]
fn each_of_many_listings_of_one_directory_may_remove_what_it_meets() {
    if !require_fuse() {
        return;
    }
    for kept in both(|base| files(&base.join("dir"), numbered("base", 300))) {
        let dir = kept.at("dir");
        files(&dir, numbered("own", 300));
        // More than are kept open of listings under way, each at a place of its own.
        let mut open: Vec<Dir> = (0..80).map(|_| Dir::new(open_directory(&dir)).unwrap()).collect();
        while !open.is_empty() {
            open.retain_mut(|listing| {
                let name = loop {
                    match listing.read() {
                        Some(entry) if is_dot(entry.as_ref().unwrap().file_name()) => {}
                        entry => break entry,
                    }
                };
                let Some(entry) = name else { return false };
                let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
                let _ = fs::remove_file(dir.join(name));
                true
            });
        }
        assert_eq!(names(&dir), Vec::<String>::new());
        fs::remove_dir(&dir).unwrap();
    }
}

#[test]
fn the_next_listing_follows_new_rules() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let rules = dir.path().join("rules.toml");
    fs::write(&rules, "").unwrap();
    let options = format!("rules={}", rules.display());
    let kept = Kept::new(&options, |base| files(&base.join("direct"), numbered("file", 3)));
    let at = kept.at("direct");
    fs::remove_file(at.join("file-00000")).unwrap();
    fs::write(at.join("own"), b"").unwrap();
    let copied = ["file-00001", "file-00002", "own"];
    assert_eq!(names(&at), copied);
    assert_eq!(names(&at), copied);
    fs::write(&rules, "[[rule]]\nmatch = \"direct/**\"\naccess = \"write\"\n").unwrap();
    ask(kept.root(), "reload").text();
    assert_eq!(names(&at), ["file-00000", "file-00001", "file-00002"]);
    let base = kept.base.join("direct");
    fs::remove_file(base.join("file-00001")).unwrap();
    fs::write(base.join("more"), b"").unwrap();
    wait_for("what is changed directly", || names(&at) == ["file-00000", "file-00002", "more"]);
    fs::write(&rules, "").unwrap();
    ask(kept.root(), "reload").text();
    wait_for("what is copied", || names(&at) == ["file-00002", "more", "own"]);
}
