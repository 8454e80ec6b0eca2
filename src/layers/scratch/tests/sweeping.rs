//! What a daemon or a machine left that stopped.

use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;
use crate::layers::pages::{Fingerprint, MapAccess, MapId, PAGE, PageMap, UpperId};

fn map(scratch: &Scratch, id: u64, pages: u64) -> PageMap {
    let base = Fingerprint { size: pages * PAGE, ino: 1, ..Fingerprint::default() };
    let dir = File::open(scratch.layout().pages()).unwrap();
    PageMap::create(dir, MapId(id), base, base.size, UpperId::default()).unwrap()
}

fn mark(scratch: &Scratch, path: &Path, mark: &str, value: &str) {
    let name = scratch.xattr_namespace().name(mark);
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// A file of which some pages are there.
fn partial(scratch: &Scratch, path: &Path, id: u64, pages: u64) -> File {
    let options = &mut File::options();
    let file = options.read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(pages * PAGE).unwrap();
    mark(scratch, path, "mmapfs.pages", &id.to_string());
    mark(scratch, path, "overlay.redirect", "/dir/file");
    file
}

#[test]
fn what_a_killed_daemon_left_goes_and_gives_its_bytes_back() {
    let world = World::new();
    let scratch = world.open("disk/s").unwrap();
    let upper = scratch.layout().upper();
    fs::create_dir(upper.join("dir")).unwrap();
    drop(map(&scratch, 1, 10));
    drop(partial(&scratch, &upper.join("dir/file"), 1, 10));
    drop(map(&scratch, 3, 10));
    let in_index = scratch.layout().index().join("00000000000000aa");
    drop(partial(&scratch, &in_index, 3, 10));
    mark(&scratch, &in_index, "mmapfs.links", "1");
    let kept = [".mmapfs-tmp-", ".mmapfs-tmp-mine", ".mmapfs-control", "tmp-1"];
    for name in kept {
        fs::write(upper.join(name), "kept").unwrap();
    }
    drop(scratch);
    let scratch = world.open("disk/s").unwrap();
    let before = scratch.used();

    let left = [upper.join(".mmapfs-tmp-12ab"), upper.join("dir/.mmapfs-tmp-0")];
    fs::write(&left[0], vec![1; 100_000]).unwrap();
    fs::create_dir_all(left[1].join("below")).unwrap();
    drop(map(&scratch, 2, 100));
    drop(map(&scratch, 4, 100));
    let nameless = scratch.layout().index().join("00000000000000bb");
    drop(partial(&scratch, &nameless, 4, 10));
    mark(&scratch, &nameless, "mmapfs.links", "-1");
    drop(scratch);
    let scratch = world.open("disk/s").unwrap();
    assert_eq!(left.iter().filter(|path| path.exists()).count(), 0);
    assert!(!nameless.exists() && in_index.exists() && upper.join("dir/file").exists());
    assert!(kept.iter().all(|name| upper.join(name).exists()));
    let mut maps: Vec<_> = fs::read_dir(scratch.layout().pages())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    maps.sort();
    // The one that only the removed file of the index names goes the next time at the latest.
    maps.retain(|name| name != "0000000000000004");
    assert_eq!(maps, ["0000000000000001", "0000000000000003"]);
    let after = scratch.used();
    assert!(after.abs_diff(before) <= 8192, "{before} and then {after}");
}

#[test]
fn page_maps_are_put_in_order_when_the_machine_has_stopped_and_only_then() {
    let world = World::new();
    fs::create_dir(world.path("base/dir")).unwrap();
    fs::write(world.path("base/dir/file"), vec![1; 20 * PAGE as usize]).unwrap();
    let scratch = world.open("disk/s").unwrap();
    let upper = scratch.layout().upper();
    let mut first = map(&scratch, 1, 10);
    let file = partial(&scratch, &upper.join("first"), 1, 10);
    file.write_all_at(&[1; PAGE as usize], 3 * PAGE).unwrap();
    first.set(3..5).unwrap();
    drop(first);
    // Its map has never come to the disk.
    drop(map(&scratch, 2, 10));
    let file = partial(&scratch, &upper.join("second"), 2, 10);
    file.write_all_at(&[1; PAGE as usize], 7 * PAGE).unwrap();
    let lost = scratch.layout().pages().join("0000000000000002");
    File::options().write(true).open(lost).unwrap().set_len(0).unwrap();
    let pages = scratch.layout().pages();
    let own = |id| {
        let map = PageMap::open(File::open(&pages).unwrap(), MapId(id), MapAccess::Read);
        map.map(|map| (0..10).filter(|page| map.is_present(*page)).collect::<Vec<u64>>())
    };
    let state = scratch.layout().state();
    drop(scratch);

    drop(world.open("disk/s").unwrap());
    assert_eq!(own(1), Ok(vec![3, 4]), "a daemon was killed, and everything is there");
    assert!(own(2).is_err());

    let text = fs::read_to_string(&state).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    change_state(&state, |state| state["boot"] = "before".into());
    let scratch = world.open("disk/s").unwrap();
    assert_eq!((own(1), own(2)), (Ok(vec![3]), Ok(vec![7])));
    assert_eq!(scratch.state().boot.as_deref(), Some(boot.trim()));
    let base = fs::metadata(world.path("base/dir/file")).unwrap();
    let map = PageMap::open(File::open(&pages).unwrap(), MapId(2), MapAccess::Read).unwrap();
    assert_eq!((map.base().size, map.base().ino), (20 * PAGE, base.ino()));
}

/// A file with a page map that has one page of its own, made for that very file.
fn written(scratch: &Scratch, name: &str, id: u64) -> PathBuf {
    let path = scratch.layout().upper().join(name);
    let file = partial(scratch, &path, id, 10);
    file.write_all_at(&[1; PAGE as usize], 3 * PAGE).unwrap();
    let base = Fingerprint { size: 10 * PAGE, ino: 1, ..Fingerprint::default() };
    let upper = UpperId::of(&Fingerprint::of(&file).unwrap());
    let dir = File::open(scratch.layout().pages()).unwrap();
    PageMap::create(dir, MapId(id), base, base.size, upper).unwrap().set(3..4).unwrap();
    path
}

fn lose_marks(scratch: &Scratch, path: &Path) {
    for name in ["mmapfs.pages", "overlay.redirect"] {
        rustix::fs::removexattr(path, scratch.xattr_namespace().name(name)).unwrap();
    }
}

#[track_caller]
fn assert_lost(world: &World, dir: &str, count: usize) {
    let told = world.open(dir).unwrap_err().to_string();
    assert!(told.contains(&format!("{count} of its page maps belong to no file")), "{told}");
}

#[test]
fn a_page_map_whose_file_has_lost_its_marks_is_kept_and_told() {
    let world = World::new();
    for in_order in [false, true] {
        let dir = format!("disk/{in_order}");
        let scratch = world.open(&dir).unwrap();
        let path = written(&scratch, "first", 1);
        written(&scratch, "second", 2);
        lose_marks(&scratch, &path);
        let map = scratch.layout().pages().join("0000000000000001");
        if in_order {
            scratch.put_in_order(|| Ok(())).unwrap();
            // As a copy without attributes has it: by another inode.
            fs::rename(&path, path.with_extension("old")).unwrap();
            fs::copy(path.with_extension("old"), &path).unwrap();
            fs::remove_file(path.with_extension("old")).unwrap();
        }
        drop(scratch);
        for _ in 0..2 {
            assert_lost(&world, &dir, 1);
            assert!(map.exists());
        }
        fs::remove_file(&map).unwrap();
        drop(world.open(&dir).unwrap());
    }
}

#[test]
fn a_damaged_page_map_whose_file_has_lost_its_marks_is_kept_and_told() {
    let world = World::new();
    let scratch = world.open("disk/s").unwrap();
    let path = written(&scratch, "first", 1);
    lose_marks(&scratch, &path);
    let map = scratch.layout().pages().join("0000000000000001");
    drop(scratch);
    let whole = fs::read(&map).unwrap();
    for (at, len) in [(1024, 512), (1024 + 3, 1)] {
        let mut bytes = whole.clone();
        bytes[at..at + len].iter_mut().for_each(|byte| *byte = if len == 1 { !*byte } else { 0 });
        fs::write(&map, &bytes).unwrap();
        assert_lost(&world, "disk/s", 1);
        assert_eq!(fs::read(&map).unwrap(), bytes);
    }
}

#[test]
fn a_copy_of_a_killed_scratch_is_known_by_its_marks() {
    let world = World::new();
    let scratch = world.open("disk/s").unwrap();
    let path = written(&scratch, "first", 1);
    // Of a file that was open without a name when the daemon was killed.
    drop(map(&scratch, 2, 10));
    let state = scratch.layout().state();
    let orphan = scratch.layout().pages().join("0000000000000002");
    let elsewhere = || {
        let text = fs::read_to_string(&state).unwrap();
        let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
        state["directory"][0] = 1.into();
        seal(&mut state);
        state.to_string()
    };
    let copied = elsewhere();
    drop(scratch);
    fs::write(&state, &copied).unwrap();
    let scratch = world.open("disk/s").unwrap();
    assert!(!orphan.exists(), "the others have their marks");
    drop(map(&scratch, 2, 10));
    lose_marks(&scratch, &path);
    drop(scratch);
    fs::write(&state, &copied).unwrap();
    assert_lost(&world, "disk/s", 2);
    assert!(orphan.exists());
}

#[test]
fn what_was_left_in_order_is_not_repaired_and_what_comes_on_another_mount_is() {
    let world = World::new();
    for in_order in [true, false] {
        let dir = format!("disk/{in_order}");
        let scratch = world.open(&dir).unwrap();
        assert!(!scratch.state().in_order);
        let path = scratch.layout().upper().join("file");
        drop(partial(&scratch, &path, 1, 10));
        map(&scratch, 1, 10).set(3..4).unwrap();
        let (state, pages) = (scratch.layout().state(), scratch.layout().pages());
        let read = || serde_json::from_slice::<serde_json::Value>(&fs::read(&state).unwrap());
        if in_order {
            scratch.put_in_order(|| Ok(())).unwrap();
        }
        drop(scratch);
        assert_eq!(read().unwrap()["in_order"], in_order);
        change_state(&state, |state| state["mount"] = 1.into());
        let scratch = world.open(&dir).unwrap();
        let own = PageMap::open(File::open(&pages).unwrap(), MapId(1), MapAccess::Read).unwrap();
        assert_eq!(own.count(), u64::from(in_order));
        assert_eq!(read().unwrap()["in_order"], false, "taken back before it is used");
        drop(scratch);
    }
}
