//! Scratches with frozen layers, mounted without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;
use crate::layers::scratch::{freeze, freeze_stepwise};

impl World {
    fn freeze(&self) {
        freeze(&self.path("s")).unwrap();
    }
}

pub(super) fn read_all(overlay: &Overlay, ino: Ino) -> Result<Vec<u8>, Errno> {
    let how = Open { read: true, wait: true, ..Open::default() };
    let opened = overlay.open(ino, how, &ROOT, &never_registered)?;
    let mut content = Vec::new();
    let mut read = Ok(());
    loop {
        let before = content.len();
        read = read.and(overlay.read(ino, opened.id, before as u64, 128 << 10, &mut |bytes| {
            content.extend_from_slice(bytes);
        }));
        if read.is_err() || content.len() == before {
            break;
        }
    }
    overlay.release(opened.id).unwrap();
    read.map(|()| content)
}

/// All that a client sees of a tree, by path.
fn picture(overlay: &Overlay) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut next = vec![(Ino::ROOT, String::new())];
    while let Some((dir, path)) = next.pop() {
        let listed = names(overlay, dir);
        let unique: BTreeSet<_> = listed.iter().collect();
        assert_eq!(unique.len(), listed.len(), "{path}: a name is listed twice");
        for name in listed {
            let path = format!("{path}/{}", name.to_str().unwrap());
            let entry = overlay.lookup(dir, &name).unwrap_or_else(|err| panic!("{path}: {err}"));
            let (ino, stat) = (entry.attr.ino, entry.attr.stat);
            let content = match stat.kind() {
                libc::S_IFDIR => {
                    next.push((ino, path.clone()));
                    String::from("directory")
                }
                libc::S_IFLNK => format!("{:?}", overlay.read_link(ino).unwrap()),
                libc::S_IFREG => {
                    let content = read_all(overlay, ino);
                    let content = content.unwrap_or_else(|err| panic!("{path}: {err}"));
                    let sum = |sum: u64, byte: &u8| sum.wrapping_mul(31) + u64::from(*byte);
                    format!("{} bytes {}", content.len(), content.iter().fold(0, sum))
                }
                _ => format!("device {}", stat.rdev),
            };
            let links = if stat.is_dir() { 0 } else { stat.nlink };
            seen.insert(path, format!("{ino} {:o} {links} {content}", stat.mode));
        }
    }
    seen
}

fn none() -> RenameFlags {
    RenameFlags::empty()
}

pub(super) fn rename(overlay: &Overlay, from: &str, to: &str) {
    let place = |path: &str| match path.rsplit_once('/') {
        Some((dir, name)) => (find(overlay, dir).1, name.to_owned()),
        None => (Ino::ROOT, path.to_owned()),
    };
    let (from, to) = (place(from), place(to));
    let to = (to.0, OsStr::new(&to.1));
    overlay.rename((from.0, OsStr::new(&from.1)), to, none(), &ROOT).unwrap();
}

pub(super) fn is_possible() -> bool {
    let possible = rustix::process::geteuid().is_root() && crate::config::may_mount();
    if !possible {
        eprintln!("SKIPPED: marks and devices need root");
    }
    possible
}

/// Changes of a scratch over frozen layers: of pages that a frozen layer has some of, of hard
/// links that were copied there, of directories that were renamed and made opaque there.
fn change_again(overlay: &Overlay, round: usize) {
    let byte = [b'0' + (round % 10) as u8; 50];
    for name in ["a", "moved/d", "dir/c", "also"] {
        open_write(overlay, find(overlay, name).1, 4096 * (5 + round as u64), &byte).unwrap();
    }
    // By another name than the one that was copied.
    let link = ["y", "dir/z", "x"][round % 3];
    open_write(overlay, find(overlay, link).1, 4096 * (9 + round as u64), &byte).unwrap();
    rename(overlay, "moved", "dir/sub");
    rename(overlay, "dir/sub", &format!("turn{round}"));
    rename(overlay, &format!("turn{round}"), "moved");
    let new = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, caller: &ROOT };
    let name = format!("new{round}");
    let old = find(overlay, "old/born").0;
    overlay.make_node(old, OsStr::new(&name), &new, 0).unwrap();
    if round > 0 {
        let before = format!("new{}", round - 1);
        overlay.remove(old, OsStr::new(&before), false).unwrap();
    }
    let null = NewNode { mode: libc::S_IFCHR | 0o600, umask: 0, caller: &ROOT };
    overlay.make_node(Ino::ROOT, OsStr::new(&format!("null{round}")), &null, 0).unwrap();
}

/// A good scratch with two frozen layers, of which each has some of all. It can be copied: no file
/// of a frozen layer with several names was changed that the base does not have.
pub(super) fn make_layered(world: &World) {
    make_good(world);
    for round in 0..2 {
        world.freeze();
        let overlay = world.open().unwrap();
        for name in ["a", "moved/d", "dir/c", ["y", "x"][round]] {
            let at = 4096 * (11 + 9 * round as u64);
            open_write(&overlay, find(&overlay, name).1, at, b"WWWW").unwrap();
        }
        rename(&overlay, "moved", "dir/sub");
        rename(&overlay, "dir/sub", "moved");
    }
}

#[test]
fn freezing_the_top_layer_changes_nothing_that_is_seen() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    make_good(&world);
    let base = world.base_state();
    for round in 0..8 {
        let before = picture(&world.open().unwrap());
        world.freeze();
        assert_eq!(picture(&world.open().unwrap()), before, "round {round}: frozen");
        let overlay = world.open().unwrap();
        change_again(&overlay, round);
        let changed = picture(&overlay);
        drop(overlay);
        assert_eq!(picture(&world.open().unwrap()), changed, "round {round}: opened again");
        assert_ne!(changed, before);
    }
    let status = crate::tree::Inspect::scratch(&world.open().unwrap()).unwrap();
    assert_eq!(status.layers.len(), 1 + 8 + 1);
    assert_eq!(world.base_state(), base);
    remove(&world.places(), world.path("s").as_os_str()).unwrap();
    assert!(!world.path("s").exists());
}

#[test]
fn all_of_a_frozen_layer_can_be_removed_and_made_anew_above_it() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    make_good(&world);
    world.freeze();
    let overlay = world.open().unwrap();
    let mut left = vec![(Ino::ROOT, OsString::new(), Ino::ROOT)];
    // Each directory after what is in it.
    let mut order = Vec::new();
    while let Some((parent, name, dir)) = left.pop() {
        for entry in names(&overlay, dir) {
            let found = overlay.lookup(dir, &entry).unwrap().attr;
            match found.stat.is_dir() {
                true => left.push((dir, entry, found.ino)),
                false => overlay.remove(dir, &entry, false).unwrap(),
            }
        }
        order.push((parent, name));
    }
    for (parent, name) in order.into_iter().skip(1).rev() {
        overlay.remove(parent, &name, true).unwrap();
    }
    assert_eq!(picture(&overlay), BTreeMap::new());
    drop(overlay);
    world.freeze();
    let overlay = world.open().unwrap();
    assert_eq!(picture(&overlay), BTreeMap::new());
    let new = NewNode { mode: libc::S_IFDIR | 0o755, umask: 0, caller: &ROOT };
    let dir = overlay.make_dir(Ino::ROOT, OsStr::new("dir"), &new).unwrap().attr.ino;
    assert_eq!(names(&overlay, dir), [] as [OsString; 0]);
    let seen = picture(&overlay);
    assert_eq!(seen.len(), 1);
    drop(overlay);
    world.freeze();
    assert_eq!(picture(&world.open().unwrap()), seen, "an opaque directory in a frozen layer");
}

#[test]
fn a_freeze_that_is_killed_at_any_step_is_done_or_not_begun() {
    if !is_possible() {
        return;
    }
    let world = World::new();
    make_good(&world);
    world.freeze();
    let overlay = world.open().unwrap();
    change_again(&overlay, 0);
    let seen = picture(&overlay);
    drop(overlay);
    fs::rename(world.path("s"), world.path("good")).unwrap();
    let mut steps = Vec::new();
    for stop in 0.. {
        sys::walk::remove(File::open(world.dir.path()).unwrap(), c"s").ok();
        fs::rename(world.path("good"), world.path("s")).unwrap();
        let mut count = 0;
        let frozen = freeze_stepwise(&world.path("s"), &mut |step| {
            count += 1;
            if count <= stop {
                return Ok(());
            }
            steps.push(step.to_owned());
            Err(Failure::failed("test", "killed"))
        });
        for again in [false, true] {
            assert_eq!(picture(&world.open().unwrap()), seen, "step {stop}, again: {again}");
        }
        if frozen.is_ok() {
            break;
        }
        // The rest of the layers is as it was: the next try begins with one more, or the same.
        fs::rename(world.path("s"), world.path("good")).unwrap();
    }
    assert!(steps.len() >= 8, "{steps:?}");
}

/// A file of 64 pages of which each layer has one, in a stack of so many layers.
fn stack_of(layers: usize) -> (World, Vec<u8>) {
    let world = World::in_directory(Path::new("/dev/shm"));
    let mut content = vec![b'b'; 64 * 4096];
    fs::create_dir(world.path("base/dir")).unwrap();
    fs::write(world.path("base/dir/file"), &content).unwrap();
    for layer in 1..layers {
        let overlay = world.open().unwrap();
        let page = vec![b'A' + (layer % 26) as u8; 4096];
        let at = layer % 64 * 4096;
        open_write(&overlay, find(&overlay, "dir/file").1, at as u64, &page).unwrap();
        content[at..at + 4096].copy_from_slice(&page);
        let new = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, caller: &ROOT };
        let dir = find(&overlay, "dir/file").0;
        let name = format!("name{layer}");
        overlay.make_node(dir, OsStr::new(&name), &new, 0).unwrap();
        drop(overlay);
        world.freeze();
    }
    (world, content)
}

#[test]
fn pages_of_any_number_of_layers_are_read_and_the_times_are_printed() {
    if !is_possible() {
        return;
    }
    for layers in [1, 2, 16, 64] {
        let (world, content) = stack_of(layers);
        let overlay = world.open().unwrap();
        let ino = find(&overlay, "dir/file").1;
        assert!(read_all(&overlay, ino).unwrap() == content, "{layers} layers");
        let how = Open { read: true, wait: true, ..Open::default() };
        let time = |what: &str, count: u32, call: &mut dyn FnMut(u64)| {
            let started = Instant::now();
            (0..count).for_each(|turn| call(u64::from(turn)));
            eprintln!("{layers} layers: {what}: {:?}", started.elapsed() / count);
        };
        time("open", 200, &mut |_| {
            let opened = overlay.open(ino, how, &ROOT, &never_registered).unwrap();
            overlay.release(opened.id).unwrap();
        });
        let opened = overlay.open(ino, how, &ROOT, &never_registered).unwrap();
        time("read of 4 KiB", 5000, &mut |turn| {
            let at = turn * 7 % 64 * 4096;
            overlay
                .read(ino, opened.id, at, 4096, &mut |bytes| assert_eq!(bytes.len(), 4096))
                .unwrap();
        });
        overlay.release(opened.id).unwrap();
        time("stat", 2000, &mut |_| assert_eq!(overlay.attr(ino, None).unwrap().ino, ino));
        let dir = find(&overlay, "dir/file").0;
        time("lookup", 500, &mut |_| {
            let entry = overlay.lookup(dir, OsStr::new("file")).unwrap();
            overlay.forget(entry.attr.ino, 1);
        });
    }
}

#[test]
fn a_listing_of_many_layers_goes_on_at_any_entry() {
    if !is_possible() {
        return;
    }
    for layers in [3, 40, 70] {
        let (world, _) = stack_of(layers);
        let overlay = world.open().unwrap();
        let dir = find(&overlay, "dir/file").0;
        let whole = names(&overlay, dir);
        assert_eq!(whole.len(), layers, "{whole:?}");
        let (mut one_by_one, mut offset) = (Vec::new(), 0);
        loop {
            let before = offset;
            // Each in another open directory.
            let id = overlay.open_dir(dir).unwrap();
            let mut room = 1;
            overlay
                .list((dir, id), offset, false, &mut |item| {
                    if room == 0 {
                        return true;
                    }
                    room -= 1;
                    offset = item.next;
                    if item.name != "." && item.name != ".." {
                        one_by_one.push(item.name.to_owned());
                    }
                    false
                })
                .unwrap();
            overlay.release_dir(id).unwrap();
            if before == offset {
                break;
            }
        }
        assert_eq!(one_by_one, whole, "{layers} layers");
    }
}
