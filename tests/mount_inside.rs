//! What is mounted inside a mount stays there, whatever happens to the kernel's caches.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::mounted::is_mounted;
use common::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

/// A filesystem on memory, until it is dropped.
struct Memory<'a>(&'a Path);

impl<'a> Memory<'a> {
    fn on(path: &'a Path) -> Memory<'a> {
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
        Memory(path)
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH); // It may be gone with what is below.
    }
}

/// The notice of a new directory reaches the kernel after somebody has used it.
#[test]
fn what_is_mounted_at_once_in_a_directory_that_was_made_in_the_source_stays() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write,watch=on");
    let (through, backing) = (mounted.path(), mounted.backing());
    let status = || ask(through, "json status").json();
    fs::write(through.join("mark"), b"").unwrap();
    for round in 0..50_usize {
        let name = format!("{round}/inside");
        let before = status()["watch"]["events"].as_u64().unwrap();
        fs::create_dir_all(backing.join(&name)).unwrap();
        let place = through.join(&name);
        let _inside = Memory::on(&place);
        fs::write(place.join("file"), "inside").unwrap();
        wait_for("the new directories to be told", || {
            status()["watch"]["events"].as_u64().unwrap() >= before + 2
        });
        // A later change, whose notice comes after theirs.
        fs::write(backing.join("mark"), vec![0; round + 1]).unwrap();
        wait_for("a later change", || size(through.join("mark")) == round as u64 + 1);
        assert!(is_mounted(&place), "round {round}: it was unmounted");
        assert_eq!(fs::read(place.join("file")).unwrap(), b"inside");
    }
}

#[test]
fn lost_changes_are_made_up_for_and_what_is_mounted_inside_stays() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write,watch=on");
    let (through, backing) = (mounted.path(), mounted.backing());
    let negative = |seconds: f64| {
        wait_for("the timeout of names that are missing", || {
            ask(through, "json status").json()["timeouts"]["negative_s"] == seconds
        });
    };
    negative(3600.0); // The kernel was told to drop names once, to see whether it does.
    for name in ["way/to/inside", "way/aside", "other", "full"] {
        fs::create_dir_all(backing.join(name)).unwrap();
    }
    for name in ["way/file", "way/gone", "other/gone", "other/file"] {
        fs::write(backing.join(name), "before").unwrap();
    }
    let missing = ["way/aside/new", "other/new"].map(|name| through.join(name));
    let gone = ["way/gone", "other/gone"].map(|name| through.join(name));
    assert!(missing.iter().all(|path| !path.exists()));
    let place = through.join("way/to/inside");
    // Told of what was made above, which the first look at a name comes before.
    let changed = || ask(through, "json status").json()["watch"]["events"].as_u64().unwrap();
    wait_for("what was made to be told", || changed() >= 10);
    let _inside = Memory::on(&place);
    fs::write(place.join("file"), "inside").unwrap();
    negative(1.0);
    assert!(!through.join("way/new").exists());
    assert!(gone.iter().all(|path| path.exists()));
    assert!(["way/file", "other/file"].iter().all(|name| size(through.join(name)) == 6));

    // While the daemon sleeps the queue runs over, and all of this comes after.
    mounted.signal(Signal::STOP);
    for index in 0..20_000 {
        File::create(backing.join(format!("full/{index}"))).unwrap();
    }
    for name in ["way/aside/new", "way/new", "other/new"] {
        fs::write(backing.join(name), "x").unwrap();
    }
    for name in ["way/gone", "other/gone"] {
        fs::remove_file(backing.join(name)).unwrap();
    }
    for name in ["way/file", "other/file"] {
        fs::write(backing.join(name), "afterwards").unwrap();
    }
    mounted.signal(Signal::CONT);

    let mut last = None;
    wait_for("the loss to be made up for", || {
        let watch = ask(through, "json status").json()["watch"].clone();
        let sent = watch["invalidations"].as_u64().filter(|_| watch["overflows"] != 0);
        std::mem::replace(&mut last, sent) == sent && sent.is_some()
    });
    wait_for("names that are new", || missing.iter().all(|path| path.exists()));
    wait_for("a new name beside the mount", || through.join("way/new").exists());
    wait_for("names that are gone", || gone.iter().all(|path| !path.exists()));
    wait_for("sizes", || {
        ["way/file", "other/file"].iter().all(|name| size(through.join(name)) == 10)
    });
    assert_eq!(fs::read(place.join("file")).unwrap(), b"inside");
    unmount(&place, UnmountFlags::empty()).unwrap();
    assert!(names(&place).is_empty());
}
