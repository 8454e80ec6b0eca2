//! Random changes of a base and of the scratch that is mounted over it: the mount shows at each
//! moment what it shows when the scratch is mounted anew.
//!
//! A few names make directories of the base, of the scratch and of both meet, go and come back.
//! Whoever looks asks for each name, there or not, so that the kernel knows what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::common::*;
use super::kept::Kept;
use super::watched::settle;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const HOUR: &str = "watch=on,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";
/// How deep directories are.
const DEPTH: u64 = 4;
const ROUNDS: usize = 60;

/// What there is, by path: the content of a file, or nothing of a directory.
type View = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Looks at everything below a directory, by each name and by listing; with `read` at content too.
fn look(root: &Path, read: bool) -> View {
    let mut view = View::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let mut there = BTreeSet::new();
        for name in NAMES {
            let path = dir.join(name);
            let Ok(meta) = root.join(&path).symlink_metadata() else { continue };
            there.insert(name.to_owned());
            match meta.is_dir() {
                true => {
                    view.insert(path.clone(), None);
                    dirs.push(path);
                }
                false => {
                    let content = if read { fs::read(root.join(&path)).ok() } else { None };
                    view.insert(path.clone(), content);
                }
            }
        }
        let known = |name: &String| NAMES.contains(&name.as_str());
        let listed: BTreeSet<String> = fs::read_dir(root.join(&dir))
            .map(|dir| dir.flatten().filter_map(|entry| entry.file_name().into_string().ok()))
            .map(|names| names.filter(known).collect())
            .unwrap_or_default();
        for name in listed.symmetric_difference(&there) {
            view.insert(dir.join(format!("{name} is listed or found, not both")), None);
        }
    }
    view
}

/// Looks until what is told has been: the view is the same twice, and what came last is in it.
fn look_when_told(kept: &Kept, serial: &mut u64) -> View {
    *serial += 1;
    let name = format!("mark{serial}");
    let mark = kept.at(&name);
    // The kernel keeps that the name is missing until the watch reports it, as the last change.
    // Content would be no mark: a file that has just changed is read anew at every open.
    assert!(mark.symlink_metadata().is_err());
    fs::write(kept.base.join(&name), "").unwrap();
    wait_for("the last change", || mark.symlink_metadata().is_ok());
    let mut before = look(kept.root(), true);
    wait_for("the view to be the same twice", || {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let now = look(kept.root(), true);
        let same = now == before;
        before = now;
        same
    });
    settle(kept);
    before
}

fn some_path(random: &mut Random) -> PathBuf {
    (0..=random.below(DEPTH)).map(|_| random.pick(&NAMES)).collect()
}

/// Changes something, or nothing where it cannot be. Files of a scratch are not renamed: they stay
/// as they were at first touch while it is mounted, and may be an error afterwards.
fn change(root: &Path, in_base: bool, random: &mut Random, serial: &mut u64) -> String {
    *serial += 1;
    let (one, other) = (some_path(random), some_path(random));
    let (path, to) = (root.join(&one), root.join(&other));
    let is_dir = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let (what, done) = match random.below(12) {
        0..3 => ("mkdir", fs::create_dir(&path)),
        3..5 => ("write", fs::write(&path, format!("{serial}"))),
        5 if is_dir => ("remove", fs::remove_dir_all(&path)),
        5..7 => ("unlink", fs::remove_file(&path)),
        7 => ("rmdir", fs::remove_dir(&path)),
        _ if is_dir || in_base => ("rename", fs::rename(&path, &to)),
        _ => ("nothing", Ok(())),
    };
    let place = if in_base { "base" } else { "scratch" };
    format!("{place}: {what} {} {}: {}", one.display(), other.display(), done.is_ok())
}

/// The tree after each round, live and mounted anew, while `lookers` look at names all the time.
fn runs(options: &str, lookers: usize) {
    let mut random = Random::from_environment();
    let mut kept = Kept::new(options, |base| {
        for dir in ["a/b", "b/c"] {
            fs::create_dir_all(base.join(dir)).unwrap();
            fs::write(base.join(dir).join("d"), "d").unwrap();
        }
    });
    let mut serial = 0;
    for round in 0..ROUNDS {
        let mut done = Vec::new();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..lookers {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        look(kept.root(), false);
                    }
                });
            }
            for _ in 0..=random.below(8) * (lookers as u64 + 1) {
                let in_base = random.once_in(2);
                let root = if in_base { kept.base.clone() } else { kept.root().to_owned() };
                if random.once_in(2) {
                    look(kept.root(), true);
                }
                settle(&kept);
                done.push(change(&root, in_base, &mut random, &mut serial));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let live = look_when_told(&kept, &mut serial);
        kept.remount();
        let anew = look(kept.root(), true);
        settle(&kept);
        let live: BTreeSet<_> = live.into_iter().collect();
        let anew: BTreeSet<_> = anew.into_iter().collect();
        let different: Vec<_> = live.symmetric_difference(&anew).collect();
        assert!(
            different.is_empty(),
            "round {round}: {done:#?}\nonly live or only anew: {different:#?}\nlive: {live:#?}"
        );
    }
}

#[test]
fn what_is_shown_is_what_is_shown_when_it_is_mounted_anew() {
    if require_fuse() && require_root() {
        runs(HOUR, 0);
        runs("watch=on", 0);
    }
}

#[test]
fn it_is_so_when_names_are_looked_at_while_they_change() {
    if require_fuse() && require_root() {
        runs(HOUR, 3);
        runs("watch=directories,entry_timeout=3600,negative_timeout=3600", 3);
    }
}

#[test]
fn without_a_watch_it_is_so_after_the_timeouts() {
    if require_fuse() && require_root() {
        runs("watch=off,entry_timeout=0,attr_timeout=0", 1);
    }
}
