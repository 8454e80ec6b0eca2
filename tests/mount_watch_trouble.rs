//! The watch of the backing tree under load and in trouble: lost changes, storms, files that stall,
//! mounts that come and go, and what cannot be watched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::mapped::Mapped;
use common::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::Value;

/// Nothing is asked for anew by itself, and content is in the kernel's cache of the mount.
const HOUR: &str =
    "access=write,plane=mapped,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";

/// A mount whose changes are told, or none where that is not permitted.
fn watched(how: &str) -> Option<MountedFs> {
    (require_fuse() && require_root()).then(|| MountedFs::new(&format!("{HOUR},watch={how}")))
}

/// What `status` says of the watch.
fn watch_of(root: &Path) -> Value {
    ask(root, "json status").json()["watch"].clone()
}

#[test]
fn a_mapping_of_the_mount_shows_what_is_written_directly() {
    let Some(mounted) = watched("on") else { return };
    fs::write(mounted.backing().join("file"), pattern(100_000)).unwrap();
    let direct = create(mounted.backing().join("file"));
    let map = Mapped::shared(&create(mounted.path().join("file")), 100_000).unwrap();
    for round in 0..100_u8 {
        let at = usize::from(round) * 997;
        assert_eq!(map.read(at, 3), pattern(100_000)[at..at + 3]);
        direct.write_all_at(&[round; 3], at as u64).unwrap();
        wait_for("the mapping to show it", || map.read(at, 3) == [round; 3]);
    }
}

#[test]
fn a_mapping_of_the_backing_file_is_told_when_it_ends() {
    let Some(mounted) = watched("on") else { return };
    fs::write(mounted.backing().join("file"), pattern(10_000)).unwrap();
    let reader = File::open(mounted.path().join("file")).unwrap();
    let mapped = Mapped::shared(&create(mounted.backing().join("file")), 10_000).unwrap();
    mapped.write(0, b"first");
    assert_eq!(read_at(&reader, 100, 3), pattern(103)[100..]);
    mapped.write(0, b"then");
    drop(mapped);
    wait_for("the end of the mapping to be told", || read_at(&reader, 0, 4) == b"then");
}

#[test]
fn what_the_mount_changes_itself_invalidates_nothing() {
    let Some(mounted) = watched("on,plane=mapped") else { return };
    fs::create_dir(mounted.path().join("d")).unwrap();
    let before = watch_of(mounted.path());
    for index in 0..200 {
        let path = mounted.path().join(format!("d/{index}"));
        fs::write(&path, "content").unwrap();
        fs::rename(&path, mounted.path().join("d/moved")).unwrap();
        fs::remove_file(mounted.path().join("d/moved")).unwrap();
    }
    let events = |now: &Value| now["events"].as_u64().unwrap();
    wait_for("the changes to be told", || {
        events(&watch_of(mounted.path())) >= events(&before) + 200
    });
    assert_eq!(watch_of(mounted.path())["invalidations"], before["invalidations"]);
}

#[test]
fn a_file_that_is_written_all_the_time_is_seen_as_it_is() {
    let Some(mounted) = watched("on") else { return };
    let path = mounted.backing().join("file");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let reader = File::open(mounted.path().join("file")).unwrap();
    let direct = create(&path);
    let stop = AtomicBool::new(false);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_u64.. {
                direct.write_all_at(&[round as u8; 4096], 4096 + round % 200 * 4096).unwrap();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for round in 1..=100_u64 {
            direct.write_all_at(&round.to_ne_bytes(), 0).unwrap();
            let start = Instant::now();
            let seen = || read_at(&reader, 0, 8) == round.to_ne_bytes();
            assert!(wait_until(Duration::from_secs(2), seen), "round {round} is not seen");
            times.push(start.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    times.sort_unstable();
    eprintln!("median {:?}, 90 % {:?}, slowest {:?}", times[50], times[90], times[99]);
    assert!(times[90] < Duration::from_millis(50), "{times:?}");
    // So few were told that it did not cost the writer much.
    wait_for("the end to be seen", || {
        fs::read(mounted.path().join("file")).unwrap() == fs::read(&path).unwrap()
    });
}

#[test]
fn what_stalls_in_one_directory_does_not_keep_others_from_being_told() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let dir = TestDir::new();
    for name in ["stalled", "stalled/inside", "quick"] {
        dir.directory(name);
    }
    let elsewhere = TestDir::new();
    let inner = MountedFs::new("access=read,attr_timeout=0,entry_timeout=0");
    let _bound = Bound::new(inner.path(), &dir.path().join("stalled/inside"));
    let mounted = MountedFs::over(dir.path(), &format!("{HOUR},watch=on,control=off"));
    let at = |name: &str| mounted.path().join(name);
    let missing: Vec<_> = (0..20).map(|index| format!("quick/{index}")).collect();
    assert!(missing.iter().all(|name| !at(name).exists()));
    inner.signal(Signal::STOP);
    let seen = std::thread::scope(|scope| {
        // Holds the directory, as its lookup waits for the daemon of the mount inside.
        scope.spawn(|| fs::metadata(at("stalled/inside")));
        let seen = missing.iter().all(|name| {
            // More of it than there are threads to wait for it.
            for file in 0..4 {
                let file = dir.path().join(format!("stalled/{file}"));
                fs::write(&file, "x").unwrap();
                fs::remove_file(&file).unwrap();
            }
            // Where something is mounted is found out meanwhile.
            let _elsewhere = Bound::new(elsewhere.path(), elsewhere.path());
            fs::write(dir.path().join(name), "x").unwrap();
            wait_until(Duration::from_secs(20), || at(name).exists())
        });
        inner.signal(Signal::CONT);
        seen
    });
    assert!(seen, "one stalled directory has held up the others");
    assert!(at("stalled/inside").exists());
    mounted.unmount();
}

/// Whether directories have the times of change below the mount that they have in the source.
fn same_times(mount: &Path, backing: &Path, directories: &[&str]) -> bool {
    let time = |dir: std::path::PathBuf| fs::metadata(dir).unwrap().modified().unwrap();
    directories.iter().all(|dir| time(mount.join(dir)) == time(backing.join(dir)))
}

#[test]
fn lost_changes_are_made_up_for() {
    let Some(mounted) = watched("on") else { return };
    let (mount, backing) = (mounted.path(), mounted.backing());
    fs::create_dir(backing.join("d")).unwrap();
    fs::create_dir(backing.join("full")).unwrap();
    for name in ["d/data", "d/gone", "d/mode", "top"] {
        fs::write(backing.join(name), "before").unwrap();
    }
    let open = File::open(mount.join("d/data")).unwrap();
    assert_eq!(read_at(&open, 0, 6), b"before");
    let missing = ["d/new", "new"].map(|name| mount.join(name));
    assert!(missing.iter().all(|path| !path.exists()));
    assert!(mount.join("d/gone").exists() && mode(mount.join("d/mode")) & 0o777 == 0o644);
    assert_eq!(size(mount.join("top")), 6);

    // While the daemon sleeps the queue runs over, and all of this comes after.
    mounted.signal(Signal::STOP);
    for index in 0..20_000 {
        File::create(backing.join(format!("full/{index}"))).unwrap();
    }
    fs::write(backing.join("d/data"), "after!").unwrap();
    fs::write(backing.join("d/new"), "x").unwrap();
    fs::write(backing.join("new"), "x").unwrap();
    fs::write(backing.join("top"), "longer than before").unwrap();
    fs::remove_file(backing.join("d/gone")).unwrap();
    set_mode(backing.join("d/mode"), 0o600);
    mounted.signal(Signal::CONT);

    wait_for("content", || read_at(&open, 0, 6) == b"after!");
    wait_for("names that are new", || missing.iter().all(|path| path.exists()));
    wait_for("a name that is gone", || !mount.join("d/gone").exists());
    wait_for("a mode", || mode(mount.join("d/mode")) & 0o777 == 0o600);
    wait_for("a size", || size(mount.join("top")) == 18);
    // The daemon sleeps some time after the signal was sent. What comes when it has already seen that
    // changes were lost is told one by one, in any order, the times of directories last perhaps.
    wait_for("times of directories", || same_times(mount, backing, &["", "d", "full"]));
    wait_for("the loss to be counted", || watch_of(mount)["overflows"].as_u64().unwrap() >= 1);
    snapshot(mount).assert_same(&snapshot(backing), Scope::Everything);
}

#[test]
fn after_a_storm_the_mount_shows_the_backing_tree() {
    for how in ["on", "directories"] {
        let Some(mounted) = watched(how) else { return };
        let (mount, backing) = (mounted.path(), mounted.backing());
        let dirs = ["a", "b", "c"];
        for dir in dirs {
            fs::create_dir(backing.join(dir)).unwrap();
        }
        let mut random = Random::from_environment();
        let mut names = Vec::new();
        for step in 0..10_000_u32 {
            let name = format!("{}/{}", dirs[random.below(3) as usize], random.below(500));
            let path = backing.join(&name);
            match random.below(4) {
                0 => drop(fs::remove_file(&path)),
                1 => drop(fs::rename(&path, backing.join(format!("a/{}", random.below(500))))),
                _ => fs::write(&path, vec![b'x'; random.below(100) as usize]).unwrap(),
            }
            names.push(name);
            // Somebody looks all the time, so that the kernel has something wrong to remember.
            if step % 7 == 0 {
                let seen = &names[random.below(names.len() as u64) as usize];
                let _ = fs::metadata(mount.join(seen)).map(|_| fs::read(mount.join(seen)));
            }
            if step % 1000 == 0 {
                fs::read_dir(mount.join("b")).unwrap().for_each(drop);
            }
        }
        let settled = || {
            let known = |root: &Path| -> Vec<_> {
                let look = |name: &String| fs::read(root.join(name)).ok().map(|text| text.len());
                names.iter().map(look).collect()
            };
            known(mount) == known(backing) && same_times(mount, backing, &dirs)
        };
        assert!(wait_until(Duration::from_secs(2), settled), "watch={how}: they differ");
        snapshot(mount).assert_same(&snapshot(backing), Scope::Everything);
    }
}

#[test]
fn a_mount_ends_well_while_changes_pour_in() {
    for how in ["on", "directories"] {
        let Some(mounted) = watched(how) else { return };
        let file = create(mounted.backing().join("file"));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    file.write_all_at(b"x", 0).unwrap();
                }
            });
            wait_for("changes to be told", || {
                drop(fs::read(mounted.path().join("file")));
                watch_of(mounted.path())["invalidations"].as_u64().unwrap() > 10
            });
            let log = mounted.log();
            mounted.unmount();
            stop.store(true, Ordering::Relaxed);
            assert!(!log.contains("error"), "{log}");
        });
    }
}

#[test]
fn a_filesystem_that_is_mounted_or_unmounted_below_is_noticed() {
    let Some(mounted) = watched("on") else { return };
    let at = mounted.backing().join("d/inside");
    fs::create_dir_all(&at).unwrap();
    fs::write(at.join("covered"), "x").unwrap();
    let through = mounted.path().join("d/inside");
    assert_eq!(names(&through), ["covered"]);
    mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    let inside = File::create(at.join("file"));
    // What was open when its mount went is stale for a moment.
    let shows = |name: &str| {
        let list = fs::read_dir(&through).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        list.is_ok_and(|list| list.len() == 1 && list[0].file_name() == name)
    };
    let seen = wait_until(Duration::from_secs(5), || shows("file"));
    unmount(&at, UnmountFlags::DETACH).unwrap();
    drop(inside);
    assert!(seen, "the mount is not seen");
    wait_for("what was covered", || shows("covered"));
}

#[test]
fn what_cannot_be_watched_is_refused_or_trusted_briefly() {
    let Some(outer) = watched("on") else { return };
    // A FUSE filesystem: its files change where nobody is told.
    fs::create_dir(outer.backing().join("source")).unwrap();
    let source = outer.path().join("source");
    let inner = MountedFs::over(&source, "access=write");
    let status = ask(inner.path(), "json status").json();
    assert!(status["watch"]["by"].is_null(), "{status}");
    assert_eq!(status["timeouts"]["entry_s"], 1.0);
    assert_eq!(status["timeouts"]["negative_s"], 0.0);
    let features = status["kernel"]["features"].as_array().unwrap();
    let watch = features.iter().find(|feature| feature["name"] == "watch").unwrap();
    assert_eq!(watch["in_use"], false);
    inner.unmount();
    let dir = TestDir::new();
    let output = Command::new(program())
        .args(["mount", "-f", "-o", "access=write,watch=on"])
        .args([&source, dir.path()])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("option `watch`") && text.lines().count() == 1, "{text}");
}

#[test]
fn what_is_watched_is_trusted_for_an_hour_and_what_is_given_holds() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (options, expected) in [
        ("watch=on", [3600.0, 3600.0, 3600.0]),
        ("watch=off", [1.0, 1.0, 0.0]),
        ("entry_timeout=5,negative_timeout=2", [5.0, 3600.0, 2.0]),
    ] {
        let mounted = MountedFs::new(&format!("access=write,{options}"));
        let shown = || {
            let timeouts = ask(mounted.path(), "json status").json()["timeouts"].clone();
            ["entry_s", "attr_s", "negative_s"].map(|name| timeouts[name].as_f64().unwrap())
        };
        // Whether the kernel drops every name turns out after the first requests.
        let _ = wait_until(Duration::from_secs(5), || shown() == expected);
        assert_eq!(shown(), expected, "{options}");
    }
}

#[test]
fn what_is_changed_at_one_place_shows_at_another_where_the_same_directory_is_mounted() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for plane in ["auto", "mapped"] {
        let dir = TestDir::new();
        let (first, second) = (dir.directory("first"), dir.directory("second"));
        fs::write(first.join("file"), "one").unwrap();
        let _bound = Bound::new(&first, &second);
        let options = format!("{HOUR},watch=on,plane={plane},access=write");
        let mounted = MountedFs::over(dir.path(), &options);
        let at = |name: &str| mounted.path().join(name);
        assert_eq!(fs::read(at("second/file")).unwrap(), b"one");
        assert_eq!(fs::read(at("first/file")).unwrap(), b"one");
        assert!(!at("first/new").exists());
        fs::write(at("second/file"), "and two").unwrap();
        fs::write(at("second/new"), "new").unwrap();
        wait_for("the other place to show it", || {
            fs::read(at("first/file")).is_ok_and(|bytes| bytes == b"and two")
                && fs::read(at("first/new")).is_ok_and(|bytes| bytes == b"new")
        });
        mounted.unmount();
    }
}
