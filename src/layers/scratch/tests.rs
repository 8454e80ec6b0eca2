use crate::shown::{Name, Show};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::fs::{FlockOperation, XattrFlags};
use tempfile::TempDir;

use super::*;

mod adopting;
mod listing;
mod planted;
mod sweeping;

/// A base, a mount point, a directory for scratches on disk, and places of its own.
struct World {
    dir: TempDir,
    places: Places,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base", "mnt", "disk"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let places = Places::below(&dir.path().canonicalize().unwrap());
        World { dir, places }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn open_with(&self, config: &ScratchConfig) -> Result<Scratch, Failure> {
        Scratch::open(config, &self.path("base"), &self.path("mnt"), &self.places)
    }

    fn on_disk(&self, name: &str) -> ScratchConfig {
        ScratchConfig { dir: Some(self.path(name)), ..ScratchConfig::default() }
    }

    fn open(&self, name: &str) -> Result<Scratch, Failure> {
        self.open_with(&self.on_disk(name))
    }

    /// Returns the line that says why.
    #[track_caller]
    fn refused(&self, config: &ScratchConfig, reason: &str) -> String {
        let line = self.open_with(config).expect_err(reason).to_string();
        assert!(line.contains(reason) && !line.contains('\n'), "{line:?} has no {reason:?}");
        let (base, mnt) = (self.path("base"), self.path("mnt"));
        let foreseen = Scratch::outlook(config, &base, &mnt, &self.places);
        assert!(
            foreseen.is_err() || reason.contains("filesystem"),
            "{reason} is not foreseen: {foreseen:?}"
        );
        line
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that fails leaves no tmpfs behind.
        for listed in list(&self.places) {
            let _ = remove(&self.places, listed.place.as_ref());
        }
    }
}

/// Changes a state as a program does that knows its checksum.
fn change_state(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut state = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut state);
    seal(&mut state);
    fs::write(path, state.to_string()).unwrap();
}

fn is_root() -> bool {
    let root = crate::config::may_mount();
    if !root {
        eprintln!("SKIPPED: it needs CAP_SYS_ADMIN");
    }
    root
}

#[test]
fn a_scratch_on_disk_is_made_kept_and_opened_again() {
    let world = World::new();
    let scratch = world.open("disk/new").unwrap();
    assert_eq!(scratch.layout().dir(), world.path("disk/new"));
    assert_eq!(fs::metadata(world.path("disk/new")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(!scratch.is_temporary());
    let first = scratch.state().clone();
    fs::write(scratch.layout().upper().join("file"), "content").unwrap();
    fs::write(scratch.layout().work().join("left"), "over").unwrap();
    drop(scratch);
    let scratch = world.open("disk/new").unwrap();
    assert_eq!(scratch.state(), &first);
    assert_eq!(fs::read(scratch.layout().upper().join("file")).unwrap(), b"content");
    assert_eq!(fs::read_dir(scratch.layout().work()).unwrap().count(), 0, "work is emptied");
    assert!(scratch.used() >= 4096, "{}", scratch.used());
}

#[test]
fn an_empty_directory_becomes_a_scratch_and_what_is_said_of_it_stays() {
    let world = World::new();
    let config = ScratchConfig {
        max: Some(Limit::Bytes(1 << 20)),
        copy_up: Some(0),
        ..world.on_disk("disk")
    };
    drop(world.open_with(&config).unwrap());
    let again = world.open("disk").unwrap();
    assert_eq!((again.quota_ledger().limit(), again.copy_up()), (Some(1 << 20), 0));
    drop(again);
    let config = ScratchConfig { max: Some(Limit::None), ..world.on_disk("disk") };
    let again = world.open_with(&config).unwrap();
    assert_eq!((again.quota_ledger().limit(), again.copy_up()), (None, 0));
}

#[test]
fn a_scratch_in_memory_goes_with_its_mount_unless_it_is_kept() {
    let world = World::new();
    if !is_root() {
        return;
    }
    let config = ScratchConfig { max: Some(Limit::Bytes(8 << 20)), ..ScratchConfig::default() };
    let scratch = world.open_with(&config).unwrap();
    let dir = scratch.layout().dir().to_owned();
    assert_eq!((scratch.state().kind, scratch.is_temporary()), (Kind::OwnTmpfs, true));
    assert_eq!(scratch.space().unwrap().total, 8 << 20);
    assert_eq!(list(&world.places).len(), 1);
    let open = File::create(scratch.layout().upper().join("open")).unwrap();
    drop(scratch);
    assert!(!dir.exists(), "open files do not hinder it");
    drop(open);

    let scratch = world.open_with(&config).unwrap();
    let dir = scratch.layout().dir().to_owned();
    fs::write(scratch.layout().upper().join("file"), "content").unwrap();
    scratch.keep();
    drop(scratch);
    // By its place, as after the death of a daemon; with more room.
    let config =
        ScratchConfig { dir: Some(dir.clone()), max: Some(Limit::Bytes(16 << 20)), ..config };
    let scratch = world.open_with(&config).unwrap();
    assert_eq!(scratch.space().unwrap().total, 16 << 20);
    assert_eq!(fs::read(scratch.layout().upper().join("file")).unwrap(), b"content");
    drop(scratch);
    assert!(dir.exists(), "a scratch that was named is kept");
    assert_eq!(list(&world.places).len(), 1);
    assert_eq!(unused(&world.places), std::slice::from_ref(&dir));
    remove(&world.places, dir.as_os_str()).unwrap();
    assert!(!dir.exists());
}

#[test]
fn a_scratch_that_is_in_use_is_refused_by_name_of_its_user() {
    let world = World::new();
    let scratch = world.open("disk").unwrap();
    let expected = format!(
        "the scratch is in use: it is mounted on {} by process {}",
        world.path("mnt").shown(),
        std::process::id()
    );
    world.refused(&world.on_disk("disk"), &expected);
    let id = scratch.state().id.clone();
    let failure = remove(&world.places, id.as_ref()).unwrap_err();
    assert!(failure.to_string().contains("in use"), "{failure}");
    let listed = &list(&world.places)[0];
    assert!(listed.mounted && listed.pid == Some(std::process::id()));
    assert_eq!(listed.mountpoint, Some(Name::from(&world.path("mnt"))));
    drop(scratch);
    assert!(!list(&world.places)[0].mounted);
    world.open("disk").unwrap();
}

#[test]
fn a_lock_that_is_held_for_a_moment_is_waited_for() {
    let world = World::new();
    drop(world.open("disk").unwrap());
    let lock = File::open(world.path("disk/lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockShared).unwrap();
    let waiter = std::thread::scope(|scope| {
        let opening = scope.spawn(|| world.open("disk").map(drop));
        drop(lock);
        opening.join().unwrap()
    });
    waiter.unwrap();
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let world = World::new();
    drop(world.open("disk").unwrap());
    let path = world.path("disk/state.json");
    let newer = r#"{"format": "mmapfs-scratch", "version": 4, "id": {"of": "another shape"}}"#;
    fs::write(&path, newer).unwrap();
    world.refused(&world.on_disk("disk"), "the scratch is of version 4, and this mmapfs knows 3");
    assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    for (text, reason) in [
        ("", "it is not the state of a scratch"),
        ("{}", "it is not the state of a scratch"),
        (r#"{"format": "other", "version": 1}"#, "another program wrote it"),
        (r#"{"format": "mmapfs-scratch", "version": 1}"#, "missing field"),
    ] {
        fs::write(&path, text).unwrap();
        world.refused(&world.on_disk("disk"), reason);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn a_scratch_belongs_to_its_base() {
    let world = World::new();
    drop(world.open("disk").unwrap());
    // The same directory at another path.
    fs::rename(world.path("base"), world.path("moved")).unwrap();
    let open = |config: &ScratchConfig, base: &str| {
        Scratch::open(config, &world.path(base), &world.path("mnt"), &world.places)
    };
    let moved = open(&world.on_disk("disk"), "moved").unwrap();
    assert_eq!(moved.state().base.path, world.path("moved"));
    drop(moved);
    // Another directory, at the first path and at the present one.
    fs::create_dir(world.path("base")).unwrap();
    world.refused(&world.on_disk("disk"), "it is a scratch of");
    fs::rename(world.path("moved"), world.path("old")).unwrap();
    fs::create_dir(world.path("moved")).unwrap();
    let line = open(&world.on_disk("disk"), "moved").unwrap_err().to_string();
    assert!(line.contains("another directory is at") && line.contains("-o rebase"), "{line}");
    let config = ScratchConfig { rebase: true, ..world.on_disk("disk") };
    drop(open(&config, "moved").unwrap());
    drop(open(&world.on_disk("disk"), "moved").unwrap());
}

#[test]
fn directories_that_are_no_scratch_are_left_as_they_are() {
    let world = World::new();
    for (name, reason) in [
        ("disk/a", "it is neither empty nor a scratch: precious lies in it"),
        ("disk/b", "it is no scratch: work/ would be emptied, and precious lies in it"),
    ] {
        fs::create_dir(world.path(name)).unwrap();
        let below =
            if name.ends_with('b') { world.path(name).join("work") } else { world.path(name) };
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("precious"), "content").unwrap();
        world.refused(&world.on_disk(name), reason);
        assert_eq!(fs::read(below.join("precious")).unwrap(), b"content");
        assert_eq!(fs::read_dir(world.path(name)).unwrap().count(), 1, "nothing is made in it");
    }
    for name in ["disk/c/pages", "disk/d/merged", "disk/e/index"] {
        fs::create_dir_all(world.path(name)).unwrap();
        fs::write(world.path(name).join("precious"), "content").unwrap();
        world.refused(&world.on_disk(&name[..6]), "it is neither empty nor a scratch");
        assert_eq!(fs::read_dir(world.path(&name[..6])).unwrap().count(), 1);
    }
    fs::write(world.path("file"), "").unwrap();
    world.refused(&world.on_disk("file"), "it is a file: scratch= takes a directory");
    world.refused(&world.on_disk("none/deep"), "No such file or directory");
    world.refused(&world.on_disk("base/in"), "it lies inside the source");
    assert!(!world.path("base/in").exists());
}

#[test]
fn filesystems_that_lack_something_are_refused_in_words() {
    let world = World::new();
    if !is_root() {
        return;
    }
    let at = world.path("disk");
    let mount = |kind: &str, flags| {
        rustix::mount::mount("none", &at, kind, flags, c"").unwrap();
    };
    use rustix::mount::{MountFlags, UnmountFlags};
    mount("ramfs", MountFlags::empty());
    let without_xattrs = world.open("disk").map(drop);
    let left = fs::read_dir(&at).unwrap().count();
    rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
    let line = without_xattrs.unwrap_err().to_string();
    assert!(line.contains("its filesystem keeps no extended attributes"), "{line}");
    assert_eq!(left, 0, "what was made is gone");
    mount("tmpfs", MountFlags::RDONLY);
    let read_only = [world.open("disk").map(drop), world.open("disk/new").map(drop)];
    rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
    for result in read_only {
        let line = result.unwrap_err().to_string();
        assert!(line.contains("its filesystem is mounted read-only"), "{line}");
    }
}

#[test]
fn the_upper_directory_has_the_attributes_of_the_base() {
    let world = World::new();
    let base = world.path("base");
    rustix::fs::setxattr(&base, "user.note", b"kept", XattrFlags::empty()).unwrap();
    fs::set_permissions(&base, fs::Permissions::from_mode(0o1751)).unwrap();
    let scratch = world.open("disk").unwrap();
    let upper = scratch.layout().upper();
    let (found, wanted) = (fs::metadata(&upper).unwrap(), fs::metadata(&base).unwrap());
    assert_eq!((found.mode(), found.uid()), (wanted.mode(), wanted.uid()));
    assert_eq!(found.modified().unwrap(), wanted.modified().unwrap());
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(&upper, "user.note", &mut value).unwrap();
    assert_eq!(&value[..len], b"kept");
}

#[test]
fn a_base_whose_name_is_not_text_is_remembered() {
    let world = World::new();
    let base = world.path("disk").join(std::ffi::OsStr::from_bytes(b"b\xff\n"));
    fs::create_dir(&base).unwrap();
    let config = world.on_disk("scratch");
    drop(Scratch::open(&config, &base, &world.path("mnt"), &world.places).unwrap());
    let again = Scratch::open(&config, &base, &world.path("mnt"), &world.places).unwrap();
    assert_eq!(again.state().base.path, base);
}
