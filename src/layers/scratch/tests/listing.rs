//! Finding, removing and counting.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn ids_paths_and_links_find_a_scratch_and_a_copy_gets_an_id_of_its_own() {
    let world = World::new();
    let id = world.open("disk/one").unwrap().state().id.clone();
    assert_eq!(id.len(), 12);
    // A copy, as `cp -a` makes it.
    fs::create_dir_all(world.path("disk/two/upper")).unwrap();
    fs::copy(world.path("disk/one/state.json"), world.path("disk/two/state.json")).unwrap();
    let copy = world.open("disk/two").unwrap().state().id.clone();
    assert_ne!(copy, id);
    // Moved, it is found where it is after it was opened there.
    fs::rename(world.path("disk/one"), world.path("disk/moved")).unwrap();
    assert_eq!(list(&world.places).len(), 1, "what was removed or moved is forgotten");
    assert_eq!(world.open("disk/moved").unwrap().state().id, id);
    assert_eq!(list(&world.places).len(), 2);

    for (word, reason) in [
        ("ffff-none", "there is no such scratch"),
        (&id[..3], "there is no such scratch"),
        (world.path("base").to_str().unwrap(), "it is not a scratch"),
    ] {
        let failure = remove(&world.places, word.as_ref()).unwrap_err();
        assert!(failure.to_string().contains(reason), "{failure}");
    }
    remove(&world.places, id[..8].as_ref()).unwrap();
    assert!(!world.path("disk/moved").exists());
    fs::remove_dir_all(world.path("disk/two")).unwrap();
    assert_eq!(unused(&world.places), [world.path("disk/two")]);
    let listed = list(&world.places);
    assert!(listed[0].trouble.as_ref().unwrap().contains("may not be mounted"), "{listed:?}");
    remove(&world.places, copy.as_ref()).unwrap();
    assert_eq!(list(&world.places), []);
}

#[test]
fn a_scratch_whose_filesystem_may_not_be_mounted_is_not_forgotten() {
    let world = World::new();
    drop(world.open("disk/here").unwrap());
    fs::create_dir(world.path("disk/point")).unwrap();
    drop(world.open("disk/point/there").unwrap());
    fs::remove_dir_all(world.path("disk/point/there")).unwrap();
    fs::remove_dir_all(world.path("disk/here")).unwrap();
    for _ in 0..2 {
        let listed = list(&world.places);
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(listed[0].is_gone() && listed[0].place.as_path().ends_with("disk/point/there"));
        assert!(listed[0].trouble.as_ref().unwrap().contains("may not be mounted"));
    }
    // Something else lies where it was.
    fs::write(world.path("disk/point/file"), "").unwrap();
    assert_eq!(list(&world.places), []);
    assert_eq!(unused(&world.places), [] as [PathBuf; 0]);
}

#[test]
fn removing_leaves_what_is_not_of_the_scratch() {
    let world = World::new();
    drop(world.open("disk").unwrap());
    fs::create_dir(world.path("disk/work/closed")).unwrap();
    fs::set_permissions(world.path("disk/work/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::write(world.path("disk/notes"), "mine").unwrap();
    symlink("notes", world.path("disk/link")).unwrap();
    remove(&world.places, world.path("disk").as_os_str()).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(world.path("disk")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["link", "notes"]);
}

#[test]
fn usage_counts_blocks_once() {
    let dir = tempfile::tempdir().unwrap();
    let top = File::open(dir.path()).unwrap();
    let empty = bytes_used(&top).unwrap();
    fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
    File::open(dir.path().join("a")).unwrap().sync_all().unwrap();
    let one = bytes_used(&top).unwrap();
    assert!((100_000..200_000).contains(&(one - empty)), "{one} {empty}");
    fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    File::create(dir.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
    let two = bytes_used(&top).unwrap();
    assert!(two - one < 50_000, "{two} {one}");
    let mut deep = dir.path().to_owned();
    for _ in 0..300 {
        deep.push("d".repeat(10));
    }
    fs::create_dir_all(&deep).unwrap();
    assert!(bytes_used(&top).unwrap() >= two);
}
