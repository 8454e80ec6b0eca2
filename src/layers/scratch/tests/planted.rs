//! Files that somebody else has put into the directory of a scratch.

use std::ffi::CStr;
use std::os::unix::fs::symlink;

use rustix::fs::{AtFlags, CWD, FileType, Mode};

use super::*;

fn fifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Opens a scratch that has one bad part, and the same after the part is gone.
#[track_caller]
fn refused_for(world: &World, reason: &str, plant: impl FnOnce(&Path)) {
    drop(world.open("disk/s").unwrap());
    let dir = world.path("disk/s");
    let good = fs::read(dir.join("state.json")).unwrap();
    plant(&dir);
    world.refused(&world.on_disk("disk/s"), reason);
    fs::remove_dir_all(&dir).unwrap();
    assert!(!good.is_empty());
}

#[test]
fn a_state_is_never_written_through_what_lies_at_its_name() {
    let world = World::new();
    let victim = world.path("victim");
    fs::write(&victim, "mine").unwrap();
    type Plant = fn(&Path, &Path);
    let plants: [Plant; 3] = [
        |at, victim| symlink(victim, at).unwrap(),
        |at, victim| fs::hard_link(victim, at).unwrap(),
        |at, _| fifo(at),
    ];
    for plant in plants {
        fs::create_dir(world.path("disk/s")).unwrap();
        plant(&world.path("disk/s/state.json.new"), &victim);
        drop(world.open("disk/s").unwrap());
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert!(!world.path("disk/s/state.json.new").exists());
        assert!(fs::symlink_metadata(world.path("disk/s/state.json")).unwrap().is_file());
        fs::remove_dir_all(world.path("disk/s")).unwrap();
    }
}

#[test]
fn what_is_no_file_of_a_scratch_is_refused_at_once_and_left_alone() {
    let world = World::new();
    let victim = world.path("victim");
    fs::write(&victim, "mine").unwrap();
    for name in ["state.json", "lock"] {
        refused_for(&world, "it is not a regular file", |dir| {
            fs::remove_file(dir.join(name)).unwrap();
            fifo(&dir.join(name));
        });
        refused_for(&world, "it is a symbolic link", |dir| {
            fs::remove_file(dir.join(name)).unwrap();
            symlink(&victim, dir.join(name)).unwrap();
        });
        refused_for(&world, "it has 2 names", |dir| {
            fs::remove_file(dir.join(name)).unwrap();
            fs::hard_link(&victim, dir.join(name)).unwrap();
        });
    }
    refused_for(&world, "it is not a regular file", |dir| {
        fs::remove_file(dir.join("state.json")).unwrap();
        fs::create_dir(dir.join("state.json")).unwrap();
    });
    refused_for(&world, "it is larger than", |dir| {
        let state = File::options().write(true).open(dir.join("state.json")).unwrap();
        state.set_len(1 << 40).unwrap();
    });
    assert_eq!(fs::read(&victim).unwrap(), b"mine");
}

#[test]
fn files_and_directories_of_other_users_are_refused() {
    let world = World::new();
    if !is_root() {
        return;
    }
    let give = |path: &Path| std::os::unix::fs::chown(path, Some(12345), None).unwrap();
    for name in ["state.json", "lock"] {
        refused_for(&world, "it belongs to user 12345", |dir| give(&dir.join(name)));
    }
    for name in ["work", "index", "pages"] {
        drop(world.open("disk/s").unwrap());
        give(&world.path("disk/s").join(name));
        let line = world.open("disk/s").unwrap_err().to_string();
        assert!(line.contains("it belongs to user 12345"), "{line}");
        fs::remove_dir_all(world.path("disk/s")).unwrap();
    }
    // This one has the owner of the base.
    drop(world.open("disk/s").unwrap());
    give(&world.path("disk/s/upper"));
    drop(world.open("disk/s").unwrap());
}

#[test]
fn directories_are_not_followed_out_of_the_scratch() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "mine").unwrap();
    fs::set_permissions(&outside, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["upper", "work", "index", "pages"] {
        drop(world.open("disk/s").unwrap());
        let part = world.path("disk/s").join(name);
        fs::remove_dir_all(&part).unwrap();
        symlink(&outside, &part).unwrap();
        let line = world.open("disk/s").unwrap_err().to_string();
        assert!(line.contains("it is not a directory"), "{line}");
        let _ = remove(&world.places, world.path("disk/s").as_os_str());
        assert_eq!(fs::read(outside.join("precious")).unwrap(), b"mine");
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o755);
        let _ = fs::remove_dir_all(world.path("disk/s"));
    }
}

#[test]
fn fields_of_a_state_are_checked_before_they_are_believed() {
    let world = World::new();
    let change = |field: &'static str, value: serde_json::Value| {
        move |dir: &Path| {
            change_state(&dir.join("state.json"), |state| {
                *state.pointer_mut(field).unwrap() = value;
            });
        }
    };
    for id in ["", "../../../tmp/x", "0123456789ab0", "0123456789AB", "0123456789a\n"] {
        refused_for(&world, "id: it is not 12 lower case", change("/id", id.into()));
    }
    for path in ["", "relative", "/a/../b", "/a\0b"] {
        refused_for(&world, "base.path: it ", change("/base/path", path.into()));
    }
    for (field, value) in [("/kind", "other"), ("/marks", "security"), ("/max", "-1")] {
        refused_for(&world, "it is not the state of a scratch", change(field, value.into()));
    }
}

#[test]
fn a_changed_byte_of_a_state_is_told_by_the_name_of_the_file() {
    let world = World::new();
    drop(world.open("disk/s").unwrap());
    let path = world.path("disk/s/state.json");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"in_order\": false", "\"in_order\": true"),
        ("\"copy_up\": 131072", "\"copy_up\": 131073"),
        ("\"version\": 2", "\"version\": 3"),
        ("\"boot\"", "\"boat\""),
        ("\"checksum\"", "\"checksun\""),
        ("\"checksum\": \"", "\"checksum\": \"0"),
    ] {
        let damaged = text.replace(from, to);
        assert_ne!(damaged, text, "{from}");
        fs::write(&path, &damaged).unwrap();
        let line = world.refused(&world.on_disk("disk/s"), "it is damaged: its checksum is ");
        assert!(line.starts_with(path.to_str().unwrap()), "{line}");
        assert_eq!(list(&world.places)[0].trouble.as_deref(), line.split_once(": ").map(|p| p.1));
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
    fs::write(&path, &text).unwrap();
    drop(world.open("disk/s").unwrap());
}

#[test]
fn a_state_of_before_without_a_checksum_is_opened_and_gets_one() {
    let world = World::new();
    world.open("disk/s").unwrap().put_in_order(|| Ok(())).unwrap();
    let path = world.path("disk/s/state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("checksum").unwrap();
    fs::write(&path, state.to_string()).unwrap();
    drop(world.open("disk/s").unwrap());
    assert!(fs::read_to_string(&path).unwrap().contains("\"checksum\": \""));
}

#[test]
fn a_state_that_says_it_is_a_tmpfs_of_its_own_is_believed_where_it_is_one() {
    let world = World::new();
    drop(world.open("disk/s").unwrap());
    let path = world.path("disk/s/state.json");
    change_state(&path, |state| state["kind"] = "own-tmpfs".into());
    let scratch = world.open("disk/s").unwrap();
    assert_ne!(scratch.state().kind, Kind::OwnTmpfs);
}

#[test]
fn a_hostile_scratch_does_not_keep_the_others_out_of_the_list() {
    let world = World::new();
    let good = world.open("disk/good").unwrap().state().id.clone();
    type Plant = fn(&Path);
    let plants: [Plant; 4] = [
        |at| fifo(at),
        |at| symlink("/dev/zero", at).unwrap(),
        |at| fs::create_dir(at).unwrap(),
        |at| fs::write(at, "{").unwrap(),
    ];
    for (index, plant) in plants.iter().enumerate() {
        let name = format!("disk/bad{index}");
        drop(world.open(&name).unwrap());
        fs::remove_file(world.path(&name).join("state.json")).unwrap();
        plant(&world.path(&name).join("state.json"));
    }
    let listed = list(&world.places);
    assert_eq!(listed.len(), 5, "{listed:?}");
    assert_eq!(listed.iter().filter(|listed| listed.trouble.is_some()).count(), 4);
    let found = listed.iter().find(|listed| listed.id == good).unwrap();
    assert_eq!(found.trouble, None);
    remove(&world.places, good.as_ref()).unwrap();
}

#[test]
fn a_scratch_is_removed_whatever_lies_in_its_work_directory() {
    let world = World::new();
    drop(world.open("disk/s").unwrap());
    fs::create_dir_all(world.path("disk/s/work/upper/full")).unwrap();
    fs::write(world.path("disk/s/work/pages"), "").unwrap();
    remove(&world.places, world.path("disk/s").as_os_str()).unwrap();
    assert!(!world.path("disk/s").exists());
}

/// Makes directories in each other.
fn dig(top: &Path, depth: usize, name: &CStr) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty()).unwrap();
    }
    rustix::fs::mknodat(&dir, c"gone", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    assert!(rustix::fs::statat(&dir, c"gone", AtFlags::empty()).is_ok());
}

#[test]
fn a_scratch_that_is_very_deep_is_opened_listed_adopted_and_removed() {
    let world = World::new();
    let depth = if std::env::var_os("MMAPFS_TEST_LONG").is_some() { 20_000 } else { 2000 };
    drop(world.open("disk/s").unwrap());
    dig(&world.path("disk/s/upper"), depth, c"d");
    dig(&world.path("disk/s/work"), depth, c"d");
    let scratch = world.open("disk/s").unwrap();
    assert_eq!(scratch.found().whiteouts, 1);
    drop(scratch);
    assert!(list(&world.places)[0].bytes.is_some());
    fs::remove_file(world.path("disk/s/state.json")).unwrap();
    assert!(world.open("disk/s").unwrap().state().adopted);
    remove(&world.places, world.path("disk/s").as_os_str()).unwrap();
    assert!(!world.path("disk/s").exists());
}
