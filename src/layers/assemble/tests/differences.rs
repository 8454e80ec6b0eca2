//! The differences of a scratch to its base, on scratches without a mount.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;
use crate::tree::{Change, ChangeKind, ChangeQuery, Inspect, Xattrs};

/// All that counts of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: u32,
    mode: u32,
    owner: (u32, u32),
    content: Vec<u8>,
    mark: Vec<u8>,
}

type Tree = BTreeMap<PathBuf, Seen>;

const MARK: &str = "user.mark";

fn tree_of_overlay(overlay: &Overlay) -> Tree {
    let mut tree = Tree::new();
    let mut next = vec![(Ino::ROOT, PathBuf::new())];
    while let Some((dir, path)) = next.pop() {
        for name in names(overlay, dir) {
            let path = path.join(&name);
            let attr = overlay.lookup(dir, &name).unwrap().attr;
            let content = match attr.stat.kind() {
                libc::S_IFDIR => {
                    next.push((attr.ino, path.clone()));
                    Vec::new()
                }
                libc::S_IFLNK => overlay.read_link(attr.ino).unwrap().into_encoded_bytes(),
                libc::S_IFREG => frozen::read_all(overlay, attr.ino).unwrap(),
                _ => attr.stat.rdev.to_le_bytes().to_vec(),
            };
            let mut mark = vec![0; 100];
            let len = overlay.get_xattr(attr.ino, OsStr::new(MARK), &mut mark).unwrap_or(0);
            mark.truncate(len);
            let stat = attr.stat;
            let seen = Seen {
                kind: stat.kind(),
                mode: stat.mode & 0o7777,
                owner: (stat.uid, stat.gid),
                content,
                mark,
            };
            tree.insert(path, seen);
        }
    }
    tree
}

/// The tree of a base, seen by a scratch that nothing was written to.
fn tree_of_base(world: &World) -> Tree {
    let plain = World { dir: tempfile::tempdir_in("/dev/shm").unwrap() };
    for name in ["mnt", "base"] {
        fs::create_dir(plain.path(name)).unwrap();
    }
    fs::remove_dir(plain.path("base")).unwrap();
    symlink(world.path("base"), plain.path("base")).unwrap();
    tree_of_overlay(&plain.open().unwrap())
}

fn differing(one: &[u8], other: &[u8]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for at in 0..one.len().max(other.len()) {
        if one.get(at) != other.get(at) {
            match ranges.last_mut().filter(|last| last.end == at as u64) {
                Some(last) => last.end += 1,
                None => ranges.push(at as u64..at as u64 + 1),
            }
        }
    }
    ranges
}

fn all() -> ChangeQuery {
    ChangeQuery { ranges: true, ..ChangeQuery::default() }
}

/// Checks that the changes make the new tree of the old one, and that each of them is needed.
#[track_caller]
fn check(old: &Tree, new: &Tree, changes: &[Change], hint: &str) {
    let mut tree = old.clone();
    let moved: Vec<_> = changes.iter().filter(|change| change.from.is_some()).collect();
    let moves: Vec<_> =
        moved.iter().map(|change| (change.from.clone().unwrap(), change.path.clone())).collect();
    for change in changes.iter().filter(|change| change.kind == ChangeKind::Deleted) {
        assert!(tree.contains_key(&change.path), "{hint}: {change:?}");
        let stays = |path: &Path| {
            let away = |(from, _): &(PathBuf, PathBuf)| {
                path.starts_with(from) && from.starts_with(&change.path)
            };
            !path.starts_with(&change.path) || moves.iter().any(away)
        };
        tree.retain(|path, _| stays(path));
    }
    // Taken out deepest first, so that what is moved out of a directory does not go with it.
    let mut taken = Vec::new();
    let mut moves = moves;
    moves.sort_by_key(|(from, _)| std::cmp::Reverse(from.components().count()));
    for (from, to) in moves {
        let part: Vec<_> = tree.keys().filter(|path| path.starts_with(&from)).cloned().collect();
        assert!(!part.is_empty(), "{hint}: {} was not there", from.display());
        for path in part {
            let below = path.strip_prefix(&from).unwrap();
            let to = if below.as_os_str().is_empty() { to.clone() } else { to.join(below) };
            taken.push((to, tree.remove(&path).unwrap()));
        }
    }
    let mut placed: Tree = taken.into_iter().collect();
    for change in changes {
        let path = &change.path;
        let told = || format!("{hint}: {change:?}");
        match change.kind {
            ChangeKind::Deleted => {}
            ChangeKind::Added => {
                assert!(
                    !old.contains_key(path)
                        || moved
                            .iter()
                            .any(|change| path.starts_with(change.from.as_ref().unwrap())),
                    "{}",
                    told()
                );
                placed.insert(path.clone(), new[path].clone());
            }
            ChangeKind::Type => {
                // All that was below it is gone, but for what is renamed to there.
                let comes = |other: &Path| {
                    let into = |to: &PathBuf| to.starts_with(path) && other.starts_with(to);
                    moved.iter().any(|change| into(&change.path))
                };
                tree.retain(|other, _| !other.starts_with(path));
                placed.retain(|other, _| !other.starts_with(path) || comes(other));
                placed.insert(path.clone(), new[path].clone());
            }
            ChangeKind::Modified | ChangeKind::Metadata | ChangeKind::Renamed => {
                let is_root = path.as_os_str().is_empty();
                assert!(!is_root, "{}", told());
                let of = if placed.contains_key(path) { &mut placed } else { &mut tree };
                let then = of.remove(path).unwrap_or_else(|| panic!("{}", told()));
                let now = &new[path];
                assert_eq!(change.content, then.content != now.content, "{}", told());
                let metadata =
                    (then.mode, then.owner, &then.mark) != (now.mode, now.owner, &now.mark);
                assert_eq!(change.metadata, metadata, "{}", told());
                assert!(change.content || metadata || change.from.is_some(), "{}", told());
                if now.kind == libc::S_IFREG {
                    assert_eq!(change.ranges, differing(&then.content, &now.content), "{}", told());
                }
                placed.insert(path.clone(), now.clone());
            }
        }
        assert_eq!(change.error, None, "{}", told());
    }
    tree.append(&mut placed);
    let left: Vec<_> = new.keys().filter(|path| tree.get(*path) != new.get(*path)).collect();
    assert!(left.is_empty(), "{hint}: untold: {left:?}\n{changes:#?}");
    let more: Vec<_> = tree.keys().filter(|path| !new.contains_key(*path)).collect();
    assert!(more.is_empty(), "{hint}: still there: {more:?}\n{changes:#?}");
}

fn letter(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added => "A",
        ChangeKind::Modified => "M",
        ChangeKind::Deleted => "D",
        ChangeKind::Renamed => "R",
        ChangeKind::Type => "T",
        ChangeKind::Metadata => "m",
    }
}

fn told(overlay: &Overlay) -> Vec<String> {
    let changes = overlay.changes(&all()).unwrap();
    let line = |change: &Change| {
        let from = change.from.as_ref().map(|from| format!("{} -> ", from.display()));
        format!("{} {}{}", letter(change.kind), from.unwrap_or_default(), change.path.display())
    };
    changes.iter().map(line).collect()
}

#[test]
fn a_scratch_without_changes_has_no_differences() {
    let world = World::new();
    let overlay = world.open().unwrap();
    assert_eq!(told(&overlay), [""; 0]);
    // Copied up, and written with what was there.
    open_write(&overlay, find(&overlay, "a").1, 5 * 4096, b"aaaa").unwrap();
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let (_, file) = find(&overlay, "dir/c");
    let before = overlay.attr(file, None).unwrap().stat.mode & 0o7777;
    overlay.set_attr(file, None, mode, &ROOT).unwrap();
    assert_eq!(told(&overlay), ["m dir/c"]);
    let mode = SetAttr { mode: Some(before), ..SetAttr::default() };
    overlay.set_attr(file, None, mode, &ROOT).unwrap();
    assert_eq!(told(&overlay), [""; 0]);
}

#[test]
fn each_kind_of_change_is_told_once() {
    if !frozen::is_possible() {
        return;
    }
    let world = World::new();
    let overlay = world.open().unwrap();
    open_write(&overlay, find(&overlay, "a").1, 5 * 4096 + 3, b"WWWW").unwrap();
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    overlay.set_attr(find(&overlay, "dir/c").1, None, mode, &ROOT).unwrap();
    frozen::rename(&overlay, "full", "moved");
    frozen::rename(&overlay, "s", "dir/s2");
    let (old, _) = find(&overlay, "old/e");
    overlay.remove(old, OsStr::new("e"), false).unwrap();
    overlay.remove(Ino::ROOT, OsStr::new("old"), true).unwrap();
    let new = NewNode { mode: libc::S_IFDIR | 0o755, umask: 0, caller: &ROOT };
    overlay.make_dir(Ino::ROOT, OsStr::new("new"), &new).unwrap();
    overlay.remove(Ino::ROOT, OsStr::new("link"), false).unwrap();
    overlay.make_dir(Ino::ROOT, OsStr::new("link"), &new).unwrap();
    let expected =
        ["M a", "m dir/c", "R s -> dir/s2", "T link", "R full -> moved", "A new", "D old"];
    assert_eq!(told(&overlay), expected);
    let ranges = overlay.changes(&all()).unwrap().remove(0).ranges;
    let at = 5 * 4096 + 3;
    assert_eq!((ranges.len(), ranges[0].clone()), (1, at..at + 4));
    let one = ChangeQuery { paths: vec![PathBuf::from("dir")], ..ChangeQuery::default() };
    let paths: Vec<_> =
        overlay.changes(&one).unwrap().into_iter().map(|change| change.path).collect();
    assert_eq!(paths, [Path::new("dir/c"), Path::new("dir/s2")]);
    drop(overlay);
    // The same after a remount.
    assert_eq!(told(&world.open().unwrap()), expected);
}

#[test]
fn a_file_that_was_removed_and_made_again_the_same_is_no_difference() {
    if !frozen::is_possible() {
        return;
    }
    let world = World::new();
    let overlay = world.open().unwrap();
    let content = fs::read(world.path("base/s")).unwrap();
    let mode = overlay.attr(find(&overlay, "s").1, None).unwrap().stat.mode;
    overlay.remove(Ino::ROOT, OsStr::new("s"), false).unwrap();
    let new = NewNode { mode, umask: 0, caller: &ROOT };
    let made = overlay.make_node(Ino::ROOT, OsStr::new("s"), &new, 0).unwrap().attr.ino;
    assert_eq!(told(&overlay), ["M s"]);
    open_write(&overlay, made, 0, &content).unwrap();
    assert_eq!(told(&overlay), [""; 0]);
}

#[test]
fn a_directory_that_is_emptied_by_renames_is_told_with_them() {
    if !frozen::is_possible() {
        return;
    }
    let world = World::new();
    let overlay = world.open().unwrap();
    let new = NewNode { mode: libc::S_IFDIR | 0o755, umask: 0, caller: &ROOT };
    overlay.make_dir(Ino::ROOT, OsStr::new("new"), &new).unwrap();
    for name in ["f", "g"] {
        frozen::rename(&overlay, &format!("full/{name}"), &format!("new/{name}"));
    }
    overlay.remove(Ino::ROOT, OsStr::new("full"), true).unwrap();
    assert_eq!(told(&overlay), ["D full", "A new", "R full/f -> new/f", "R full/g -> new/g"]);
}

#[test]
fn two_directories_that_change_places_are_told_by_the_files_that_differ() {
    if !frozen::is_possible() {
        return;
    }
    let world = World::new();
    for (dir, content) in [("one", "first"), ("two", "other")] {
        let dir = world.path("base").join(dir);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("differs"), content).unwrap();
        fs::write(dir.join("same"), "same").unwrap();
        fs::write(dir.join(content), "alone").unwrap();
    }
    let overlay = world.open().unwrap();
    let (one, two) = ((Ino::ROOT, OsStr::new("one")), (Ino::ROOT, OsStr::new("two")));
    overlay.rename(one, two, RenameFlags::EXCHANGE, &ROOT).unwrap();
    let expected =
        ["M one/differs", "R two/other -> one/other", "M two/differs", "R one/first -> two/first"];
    assert_eq!(told(&overlay), expected);
}

/// A random change of a tree through an overlay.
fn change(overlay: &Overlay, random: &mut Random, step: usize) -> String {
    let tree = tree_of_overlay(overlay);
    let paths: Vec<_> = tree.keys().cloned().collect();
    let dirs: Vec<_> = std::iter::once(PathBuf::new())
        .chain(
            tree.iter()
                .filter(|(_, seen)| seen.kind == libc::S_IFDIR)
                .map(|(path, _)| path.clone()),
        )
        .collect();
    let ino = |path: &Path| {
        path.iter().fold(Ino::ROOT, |at, name| overlay.lookup(at, name).unwrap().attr.ino)
    };
    let (path, other) = (random.of(&paths).clone(), random.of(&paths).clone());
    let dir = random.of(&dirs).clone();
    let (parent, name) = (ino(path.parent().unwrap()), path.file_name().unwrap());
    let seen = &tree[&path];
    // Names of the base are used again.
    let reused = ["a", "dir", "full", "old", "s", "link"];
    let new_name = match random.below(3) {
        0 => OsString::from(*random.of(&reused)),
        _ => OsString::from(format!("n{step}")),
    };
    let byte = [b'a' + random.below(3) as u8; 50];
    let offset = (random.below(40) * 4096 + random.below(100)) as u64;
    match random.below(9) {
        0 | 1 if seen.kind == libc::S_IFREG => {
            open_write(overlay, ino(&path), offset, &byte).unwrap();
            format!("write {} at {offset}", path.display())
        }
        2 if seen.kind != libc::S_IFLNK => {
            let mode = SetAttr { mode: Some(0o600 + random.below(3) as u32), ..SetAttr::default() };
            overlay.set_attr(ino(&path), None, mode, &ROOT).unwrap();
            format!("chmod {}", path.display())
        }
        3 => {
            let done = overlay.remove(parent, name, seen.kind == libc::S_IFDIR);
            format!("remove {}: {done:?}", path.display())
        }
        4 | 5 => {
            let to = if random.below(2) == 0 {
                (ino(&dir), new_name)
            } else {
                (ino(other.parent().unwrap()), other.file_name().unwrap().to_owned())
            };
            let exchange = random.below(3) == 0;
            let flags = if exchange { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
            let done = overlay.rename((parent, name), (to.0, &to.1), flags, &ROOT);
            format!(
                "rename {} to {} or {} ({flags:?}): {done:?}",
                path.display(),
                other.display(),
                dir.display()
            )
        }
        6 => {
            let new = NewNode { mode: libc::S_IFDIR | 0o755, umask: 0, caller: &ROOT };
            let done = overlay.make_dir(ino(&dir), &new_name, &new).map(drop);
            format!("mkdir in {}: {done:?}", dir.display())
        }
        7 if seen.kind == libc::S_IFREG => {
            let size = SetAttr { size: Some(offset), ..SetAttr::default() };
            overlay.set_attr(ino(&path), None, size, &ROOT).unwrap();
            format!("truncate {} to {offset}", path.display())
        }
        8 => {
            let flags = crate::tree::XattrFlags::empty();
            let done = overlay.set_xattr(ino(&path), OsStr::new(MARK), &byte[..9], flags, &ROOT);
            format!("mark {}: {done:?}", path.display())
        }
        _ => {
            let new = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, caller: &ROOT };
            let made = overlay.make_node(ino(&dir), &new_name, &new, 0);
            if let Ok(made) = &made {
                open_write(overlay, made.attr.ino, offset % 9000, &byte).unwrap();
            }
            format!("make {}: {:?}", dir.join(new_name).display(), made.map(drop))
        }
    }
}

#[test]
fn the_differences_after_random_changes_make_the_new_tree_of_the_old_one() {
    if !frozen::is_possible() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = if number("MMAPFS_TEST_LONG") == Some(1) { 400 } else { 12 };
    let first = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 16;
    let seeds = match number("MMAPFS_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + rounds,
    };
    for seed in seeds {
        let world = World::new();
        // Links tell a change by the name of the copy alone.
        for name in ["y", "dir/z"] {
            fs::remove_file(world.path("base").join(name)).unwrap();
        }
        let old = tree_of_base(&world);
        let mut random = Random(seed);
        let mut did = format!("MMAPFS_TEST_SEED={seed}");
        for mount in 0..3 {
            let overlay = world.open().unwrap();
            for step in 0..random.below(8) + 1 {
                did += &format!("; {}", change(&overlay, &mut random, mount * 100 + step));
                let new = tree_of_overlay(&overlay);
                check(&old, &new, &overlay.changes(&all()).unwrap(), &did);
            }
            drop(overlay);
            if random.below(2) == 0 {
                crate::layers::scratch::freeze(&world.path("s")).unwrap();
                did += "; freeze";
            }
        }
    }
}
