//! Changes that are made directly in the base of a mounted scratch are seen at once, with timeouts
//! of an hour, where the scratch has nothing in their place.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::OFlags;
use rustix::mount::MountFlags;
use serde_json::Value;

use super::common::*;
use super::kept::Kept;

/// Nothing is asked for anew by itself.
pub const HOUR: &str = "entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";

/// With timeouts of an hour, and with those that a watch gives.
const TIMEOUTS: [&str; 2] = [HOUR, "copy_up=0"];

pub fn watched(options: &str, fill: impl FnOnce(&Path)) -> Option<Kept> {
    (require_fuse() && require_root()).then(|| Kept::new(&format!("watch=on,{options}"), fill))
}

/// What `status` says of the watch.
pub fn watch_of(root: &Path) -> Value {
    ask(root, "json status").json()["watch"].clone()
}

#[track_caller]
pub fn shows(path: &Path, text: &str) {
    wait_for("the mount to show it", || fs::read(path).is_ok_and(|now| now == text.as_bytes()));
}

#[track_caller]
pub fn is_gone(path: &Path) {
    wait_for("the name to go", || path.symlink_metadata().is_err());
}

#[track_caller]
pub fn lists(dir: &Path, expected: &[&str]) {
    wait_for("the listing to be so", || names(dir) == expected);
}

pub fn write_in_place(path: &Path, at: u64, text: &str) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(text.as_bytes(), at).unwrap();
}

/// A directory in which some things are changed, and one in which nothing is.
pub fn fill(base: &Path) {
    for dir in ["d", "d/empty", "d/full", "other", "moved", "moved/in"] {
        fs::create_dir(base.join(dir)).unwrap();
    }
    for name in ["over", "cut", "mode", "gone", "replaced", "own", "white", "full/file"] {
        fs::write(base.join("d").join(name), format!("{:<5000}", "before")).unwrap();
    }
    for name in ["a", "in/b"] {
        fs::write(base.join("moved").join(name), name).unwrap();
    }
}

/// Waits until nothing of the base counts as open any more: what is open is copied when the base is
/// about to be changed, and a file that was closed stays open until the kernel says so.
pub fn settle(kept: &Kept) {
    let status = || ask(kept.root(), "json status").json();
    // The handle goes first, then the lease, of which one is left for each partial copy.
    wait_for("files to be closed", || {
        let status = status();
        let (files, guard) = (&status["handles"]["files"], &status["scratch"]["guard"]);
        let held = ["leased", "unguarded_files"].map(|name| guard[name].as_u64().unwrap());
        *files == 0 && status["scratch"]["partial_files"] == held[0] + held[1]
    });
}

/// Reads a file, which is closed afterwards.
fn read(kept: &Kept, name: &str) -> Vec<u8> {
    let bytes = fs::read(kept.at(name)).unwrap();
    settle(kept);
    bytes
}

/// Looks at everything, so that the kernel has it.
fn look(kept: &Kept, dir: &str) {
    let there = kept.at(dir);
    for name in names(&there) {
        let path = there.join(&name);
        match path.is_dir() {
            true => drop(names(&path)),
            false => drop(fs::read(&path).unwrap()),
        }
    }
    for missing in ["new", "made", "full.new"] {
        assert!(there.join(missing).symlink_metadata().is_err());
    }
    settle(kept);
}

/// Changes all sorts of things in a directory of the base that is shown at `dir`.
pub fn change_all(kept: &Kept, below: &str, dir: &str) {
    look(kept, dir);
    let (base, at) = (kept.base.join(below), kept.at(dir));
    fs::write(base.join("new"), "new").unwrap();
    shows(&at.join("new"), "new");
    assert!(names(&at).contains(&"new".into()));
    fs::remove_file(base.join("gone")).unwrap();
    is_gone(&at.join("gone"));
    assert!(!names(&at).contains(&"gone".into()));
    fs::write(base.join("beside"), "after").unwrap();
    fs::rename(base.join("beside"), base.join("replaced")).unwrap();
    shows(&at.join("replaced"), "after");
    is_gone(&at.join("beside"));
    write_in_place(&base.join("over"), 4990, "in place");
    let expected = format!("{:<4990}{:<10}", "before", "in place");
    shows(&at.join("over"), &expected);
    raw::truncate(&base.join("cut"), 100).unwrap();
    shows(&at.join("cut"), &format!("{:<100}", "before"));
    assert_eq!(size(at.join("cut")), 100);
    set_mode(base.join("mode"), 0o640);
    wait_for("the mode to show", || mode(at.join("mode")) & 0o777 == 0o640);
    fs::create_dir(base.join("made")).unwrap();
    wait_for("the directory to show", || at.join("made").is_dir());
    fs::remove_dir(base.join("empty")).unwrap();
    is_gone(&at.join("empty"));
    fs::rename(base.join("full"), base.join("full.new")).unwrap();
    is_gone(&at.join("full"));
    shows(&at.join("full.new/file"), &format!("{:<5000}", "before"));
    for name in ["made", "full.new", "replaced"] {
        assert!(names(&at).contains(&name.into()), "{name}");
    }
    for name in ["empty", "full", "beside"] {
        assert!(!names(&at).contains(&name.into()), "{name}");
    }
}

/// The scratch has something of its own in the place of two files.
pub fn override_two(kept: &Kept, below: &str, dir: &str) {
    let at = kept.at(dir);
    fs::write(at.join("own"), "mine").unwrap();
    fs::remove_file(at.join("white")).unwrap();
    look(kept, dir);
    let base = kept.base.join(below);
    for name in ["own", "white"] {
        fs::write(base.join(name), "changed").unwrap();
        fs::remove_file(base.join(name)).unwrap();
        fs::write(base.join(name), "made anew").unwrap();
    }
    // What comes after them has been told.
    fs::write(base.join("mark"), "last").unwrap();
    shows(&at.join("mark"), "last");
    shows(&at.join("own"), "mine");
    is_gone(&at.join("white"));
    let listed = names(&at);
    assert!(listed.contains(&"own".into()) && !listed.contains(&"white".into()), "{listed:?}");
    fs::remove_file(base.join("mark")).unwrap();
    is_gone(&at.join("mark"));
}

#[test]
fn changes_of_a_directory_that_is_only_in_the_base_are_seen() {
    for options in TIMEOUTS {
        let Some(kept) = watched(options, fill) else { return };
        change_all(&kept, "d", "d");
        assert!(watch_of(kept.root())["by"].as_str().unwrap().starts_with("fanotify"));
    }
}

#[test]
fn changes_below_a_merged_directory_are_seen_but_for_what_the_scratch_has_of_its_own() {
    for options in TIMEOUTS {
        let Some(mut kept) = watched(options, fill) else { return };
        fs::write(kept.at("d/mine"), "mine").unwrap();
        override_two(&kept, "d", "d");
        change_all(&kept, "d", "d");
        shows(&kept.at("d/mine"), "mine");
        let before = names(kept.at("d"));
        kept.remount();
        assert_eq!(names(kept.at("d")), before);
    }
}

#[test]
fn changes_below_a_directory_that_the_scratch_has_renamed_are_seen() {
    for options in TIMEOUTS {
        let Some(mut kept) = watched(options, fill) else { return };
        fs::rename(kept.at("d"), kept.at("other/renamed")).unwrap();
        override_two(&kept, "d", "other/renamed");
        change_all(&kept, "d", "other/renamed");
        is_gone(&kept.at("d"));
        let before = names(kept.at("other/renamed"));
        kept.remount();
        assert_eq!(names(kept.at("other/renamed")), before);
    }
}

#[test]
fn a_directory_of_the_base_is_moved_away_from_below_a_merged_one_and_another_comes() {
    for options in TIMEOUTS {
        let Some(mut kept) = watched(options, fill) else { return };
        fs::write(kept.at("moved/in/mine"), "mine").unwrap();
        let open = File::open(kept.at("moved/in")).unwrap();
        let number = inode(kept.at("moved"));
        lists(&kept.at("moved"), &["a", "in"]);
        lists(&kept.at("moved/in"), &["b", "mine"]);
        shows(&kept.at("moved/in/b"), "in/b");
        assert!(kept.at("moved/c").symlink_metadata().is_err());
        fs::rename(kept.base.join("moved"), kept.base.join("away")).unwrap();
        is_gone(&kept.at("moved/a"));
        is_gone(&kept.at("moved/in/b"));
        lists(&kept.at("moved"), &["in"]);
        lists(&kept.at("moved/in"), &["mine"]);
        shows(&kept.at("away/in/b"), "in/b");
        shows(&kept.at("moved/in/mine"), "mine");
        // Who has it open sees the same.
        let through = Path::new("/proc/self/fd").join(open.as_raw_fd().to_string());
        lists(&through, &["mine"]);
        drop(open);
        let before = [kept.root().join("moved"), kept.root().join("away")].map(|dir| names(&dir));
        kept.remount();
        assert_eq!(names(kept.at("moved")), before[0]);
        assert_eq!(names(kept.at("away")), before[1]);
        assert!(kept.at("moved/c").symlink_metadata().is_err());
        fs::create_dir_all(kept.base.join("moved/in")).unwrap();
        fs::write(kept.base.join("moved/c"), "c").unwrap();
        fs::write(kept.base.join("moved/in/d"), "d").unwrap();
        shows(&kept.at("moved/c"), "c");
        lists(&kept.at("moved"), &["c", "in"]);
        lists(&kept.at("moved/in"), &["d", "mine"]);
        assert_eq!(inode(kept.at("moved")), number);
    }
}

#[test]
fn what_is_below_a_renamed_directory_goes_by_the_path_in_the_base() {
    for options in TIMEOUTS {
        let Some(mut kept) = watched(options, fill) else { return };
        fs::rename(kept.at("moved/in"), kept.at("renamed")).unwrap();
        kept.remount(); // Nothing is known of the directory where it was.
        lists(&kept.at("renamed"), &["b"]);
        shows(&kept.at("renamed/b"), "in/b");
        fs::rename(kept.base.join("moved"), kept.base.join("away")).unwrap();
        is_gone(&kept.at("renamed/b"));
        lists(&kept.at("renamed"), &[]);
        fs::create_dir_all(kept.base.join("moved/in")).unwrap();
        fs::write(kept.base.join("moved/in/c"), "c").unwrap();
        shows(&kept.at("renamed/c"), "c");
        lists(&kept.at("renamed"), &["c"]);
        kept.remount();
        lists(&kept.at("renamed"), &["c"]);
    }
}

#[test]
fn a_directory_made_in_the_base_is_merged_with_one_that_was_made_in_the_scratch() {
    for options in TIMEOUTS {
        let Some(mut kept) = watched(options, fill) else { return };
        fs::create_dir(kept.at("both")).unwrap();
        fs::write(kept.at("both/mine"), "mine").unwrap();
        lists(&kept.at("both"), &["mine"]);
        assert!(kept.at("both/below").symlink_metadata().is_err());
        fs::create_dir(kept.base.join("both")).unwrap();
        fs::write(kept.base.join("both/below"), "below").unwrap();
        shows(&kept.at("both/below"), "below");
        lists(&kept.at("both"), &["below", "mine"]);
        fs::write(kept.base.join("both/later"), "later").unwrap();
        shows(&kept.at("both/later"), "later");
        fs::remove_file(kept.at("both/later")).unwrap();
        kept.remount();
        lists(&kept.at("both"), &["below", "mine"]);
    }
}

#[test]
fn a_reader_with_warm_pages_sees_what_a_file_that_was_never_copied_becomes() {
    for options in TIMEOUTS {
        let Some(kept) = watched(options, |base| {
            fs::write(base.join("file"), pattern(200_000)).unwrap();
        }) else {
            return;
        };
        for round in 0..20_u64 {
            let before = read(&kept, "file");
            write_in_place(&kept.base.join("file"), 40_000 + round * 5, "after");
            let expected = fs::read(kept.base.join("file")).unwrap();
            assert!(before != expected);
            wait_for("the pages to be new", || read(&kept, "file") == expected);
        }
        assert_eq!(ask(kept.root(), "json status").json()["scratch"]["copied_files"], 0);
    }
}

#[test]
fn what_is_open_stays_as_it_was_and_is_no_mixture() {
    for options in [HOUR, "copy_up=0"] {
        let Some(kept) = watched(options, |base| {
            fs::write(base.join("file"), pattern(200_000)).unwrap();
        }) else {
            return;
        };
        let reader = open(kept.at("file"), OFlags::RDONLY).unwrap();
        assert_bytes(&read_at(&reader, 0, 5000), &pattern(5000));
        fs::write(kept.base.join("file"), vec![7; 200_000]).unwrap();
        fs::write(kept.base.join("mark"), "last").unwrap();
        shows(&kept.at("mark"), "last");
        assert_bytes(&read_at(&reader, 0, 200_000), &pattern(200_000));
        assert_content(kept.at("file"), &pattern(200_000));
    }
}

#[test]
fn a_copy_of_what_was_just_changed_has_no_page_of_before() {
    for copy_up in ["copy_up=0", "copy_up=1M"] {
        let Some(kept) = watched(&format!("{HOUR},{copy_up}"), |base| {
            fs::write(base.join("file"), pattern(200_000)).unwrap();
        }) else {
            return;
        };
        for round in 0..50_u8 {
            let path = kept.base.join(format!("file{round}"));
            let at = kept.at(&format!("file{round}"));
            fs::write(&path, pattern(200_000)).unwrap();
            assert_eq!(read(&kept, &format!("file{round}")).len(), 200_000);
            fs::write(&path, vec![round; 200_000]).unwrap();
            // Not a moment later: the change may not be told yet.
            let file = create(&at);
            file.write_all_at(b"mine", 100_000).unwrap();
            let mut expected = vec![round; 200_000];
            expected[100_000..100_004].copy_from_slice(b"mine");
            assert_bytes(&read_at(&file, 0, 200_000), &expected);
            drop(file);
            assert_content(&at, &expected);
        }
    }
}

#[test]
fn lost_changes_are_made_up_for() {
    for options in TIMEOUTS {
        let Some(kept) = watched(options, |base| {
            fill(base);
            for index in 0..8000 {
                fs::write(base.join(format!("other/{index}")), "x").unwrap();
            }
        }) else {
            return;
        };
        fs::write(kept.at("moved/in/mine"), "mine").unwrap();
        let lost = |kept: &Kept| watch_of(kept.root())["overflows"].as_u64().unwrap();
        let mut rounds = 0;
        while lost(&kept) == 0 {
            rounds += 1;
            assert!(rounds < 50, "the queue never overflows");
            look(&kept, "d");
            lists(&kept.at("moved/in"), &["b", "mine"]);
            let daemon = kept.mounted();
            daemon.signal(rustix::process::Signal::STOP);
            for index in 0..8000 {
                let name = format!("other/{index}");
                let (from, to) = (kept.base.join(&name), kept.base.join(format!("{name}.n")));
                fs::rename(&from, &to).unwrap();
                fs::rename(&to, &from).unwrap();
            }
            write_in_place(&kept.base.join("d/over"), 0, "lost!!");
            fs::rename(kept.base.join("d/gone"), kept.base.join("d/new")).unwrap();
            fs::rename(kept.base.join("moved"), kept.base.join("away")).unwrap();
            daemon.signal(rustix::process::Signal::CONT);
            wait_for("the names to show", || kept.at("d/new").exists());
            is_gone(&kept.at("d/gone"));
            shows(&kept.at("d/over"), &format!("{:<5000}", "lost!!"));
            settle(&kept);
            lists(&kept.at("moved/in"), &["mine"]);
            is_gone(&kept.at("moved/in/b"));
            fs::rename(kept.base.join("d/new"), kept.base.join("d/gone")).unwrap();
            fs::rename(kept.base.join("away"), kept.base.join("moved")).unwrap();
            write_in_place(&kept.base.join("d/over"), 0, "before");
            shows(&kept.at("d/over"), &format!("{:<5000}", "before"));
            wait_for("the directory to be back", || names(kept.at("moved/in")).len() == 2);
        }
    }
}

#[test]
fn what_is_removed_from_a_directory_while_its_base_is_moved_to_and_fro_is_forgotten() {
    const THREADS: usize = 3;
    let Some(kept) = watched(HOUR, |base| fs::create_dir(base.join("m")).unwrap()) else { return };
    let dir = kept.at("m");
    fs::write(dir.join("own"), "own").unwrap();
    let ended = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (dir, ended) = (&dir, &ended);
            scope.spawn(move || {
                for round in 0..400 {
                    let path = dir.join(format!("{thread}.{round}"));
                    fs::write(&path, [7; 50_000]).unwrap();
                    fs::remove_file(&path).unwrap();
                    fs::create_dir(&path).unwrap();
                    fs::remove_dir(&path).unwrap();
                }
                ended.fetch_add(1, Ordering::Relaxed);
            });
        }
        let (here, away) = (kept.base.join("m"), kept.base.join("away"));
        while ended.load(Ordering::Relaxed) < THREADS {
            for (from, to) in [(&here, &away), (&away, &here)] {
                fs::rename(from, to).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    });
    shows(&dir.join("own"), "own");
    let known = || {
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount_remount(kept.root(), flags, "").unwrap(); // The kernel forgets.
        ask(kept.root(), "json status").json()["inodes"]["known"].as_u64().unwrap()
    };
    wait_for("the inodes to be forgotten", || known() < 5);
    let descriptors = format!("/proc/{}/fd", kept.mounted().pid());
    let is_deleted = |path: &Path| path.to_string_lossy().ends_with(" (deleted)");
    wait_for("deleted files to be closed", || {
        let open = fs::read_dir(&descriptors).unwrap().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).all(|path| !is_deleted(&path))
    });
}
