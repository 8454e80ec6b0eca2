//! Changes made directly to the backing tree are told to the kernel at once: with timeouts of an
//! hour they are seen through the mount within milliseconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::*;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

/// Nothing is asked for anew by itself, and content is in the kernel's cache of the mount.
const HOUR: &str =
    "access=write,plane=mapped,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";

/// What a change may take on a quiet machine.
const AT_ONCE: Duration = Duration::from_millis(10);
/// What it may take on any machine.
const AT_MOST: Duration = Duration::from_secs(2);

/// A tree that is changed directly, and looked at through the mount.
struct Place {
    mount: PathBuf,
    backing: PathBuf,
    open: File,
}

/// Tells whether the mount shows the change.
type Seen<'a> = Box<dyn FnMut() -> bool + 'a>;

/// Makes the change of a round directly.
type Change = for<'a> fn(&'a Place, u32) -> Seen<'a>;

const CHANGES: [(&str, Change); 14] = [
    ("create after a negative lookup", create_after_negative_lookup),
    ("overwrite in place", overwrite),
    ("append", append),
    ("truncate", truncate),
    ("replace by rename", replace),
    ("mkdir", make_dir),
    ("chmod", chmod),
    ("utimens", utimens),
    ("symlink replaced", replace_link),
    ("setxattr", set_xattr),
    ("unlink", unlink),
    ("rmdir", remove_dir),
    ("rename of a directory", rename_dir),
    // Without a mark on the whole filesystem this is not told: it is the last.
    ("through a hard link elsewhere", through_a_link),
];

impl Place {
    fn new(mounted: &MountedFs) -> Place {
        let backing = mounted.backing().join("d");
        fs::create_dir(&backing).unwrap();
        fs::create_dir(mounted.backing().join("elsewhere")).unwrap();
        for name in ["over", "grow", "cut", "mode", "times", "attr", "hard"] {
            fs::write(backing.join(name), [b'a'; 4096]).unwrap();
        }
        fs::hard_link(backing.join("hard"), mounted.backing().join("elsewhere/hard")).unwrap();
        fs::write(backing.join("whole"), "0").unwrap();
        symlink("0", backing.join("link")).unwrap();
        fs::create_dir(backing.join("moving0")).unwrap();
        fs::write(backing.join("moving0/inside"), "inside").unwrap();
        let mount = mounted.path().join("d");
        let place = Place { open: File::open(mount.join("over")).unwrap(), mount, backing };
        assert_eq!(names(&place.mount), names(&place.backing));
        // Once without being timed: from here on the kernel has cached everything.
        for (what, change) in &CHANGES[..13] {
            let mut seen = change(&place, 0);
            assert!(wait_until(Duration::from_secs(10), &mut *seen), "{what} is never seen");
        }
        through_a_link(&place, 0)();
        place
    }

    fn size(&self, name: &str) -> u64 {
        fs::metadata(self.mount.join(name)).unwrap().len()
    }
}

fn create_after_negative_lookup(place: &Place, round: u32) -> Seen<'_> {
    let path = place.mount.join(format!("new{round}"));
    assert!(!path.exists() && !path.exists());
    fs::write(place.backing.join(format!("new{round}")), "x").unwrap();
    Box::new(move || path.exists())
}

fn unlink(place: &Place, round: u32) -> Seen<'_> {
    let path = place.mount.join(format!("new{round}"));
    fs::remove_file(place.backing.join(format!("new{round}"))).unwrap();
    Box::new(move || !path.exists())
}

fn overwrite(place: &Place, round: u32) -> Seen<'_> {
    let text = format!("{round:08}");
    let direct = File::options().write(true).open(place.backing.join("over")).unwrap();
    direct.write_all_at(text.as_bytes(), 1000).unwrap();
    Box::new(move || read_at(&place.open, 1000, 8) == text.as_bytes())
}

fn append(place: &Place, round: u32) -> Seen<'_> {
    let expected = 4096 + u64::from(round) * 10 + 10;
    let direct = File::options().write(true).open(place.backing.join("grow")).unwrap();
    direct.write_all_at(&[b'b'; 10], expected - 10).unwrap();
    Box::new(move || place.size("grow") == expected)
}

fn truncate(place: &Place, round: u32) -> Seen<'_> {
    let expected = u64::from(round * 2477 % 10_000) + 1;
    let direct = File::options().write(true).open(place.backing.join("cut")).unwrap();
    direct.set_len(expected).unwrap();
    Box::new(move || place.size("cut") == expected)
}

fn replace(place: &Place, round: u32) -> Seen<'_> {
    let text = format!("{round}");
    fs::write(place.backing.join("whole.new"), &text).unwrap();
    fs::rename(place.backing.join("whole.new"), place.backing.join("whole")).unwrap();
    Box::new(move || fs::read_to_string(place.mount.join("whole")).is_ok_and(|now| now == text))
}

fn make_dir(place: &Place, round: u32) -> Seen<'_> {
    let name = format!("dir{round}");
    assert!(!place.mount.join(&name).exists());
    fs::create_dir(place.backing.join(&name)).unwrap();
    Box::new(move || place.mount.join(&name).is_dir() && names(&place.mount).contains(&name))
}

fn remove_dir(place: &Place, round: u32) -> Seen<'_> {
    let name = format!("dir{round}");
    fs::remove_dir(place.backing.join(&name)).unwrap();
    Box::new(move || !place.mount.join(&name).exists() && !names(&place.mount).contains(&name))
}

fn rename_dir(place: &Place, round: u32) -> Seen<'_> {
    let [old, new] = [round, round + 1].map(|number| format!("moving{number}"));
    assert!(place.mount.join(&old).join("inside").exists() && !place.mount.join(&new).exists());
    fs::rename(place.backing.join(&old), place.backing.join(&new)).unwrap();
    Box::new(move || {
        let inside = fs::read(place.mount.join(&new).join("inside"));
        inside.is_ok_and(|text| text == b"inside") && !place.mount.join(&old).exists()
    })
}

fn chmod(place: &Place, round: u32) -> Seen<'_> {
    let mode = 0o600 + round % 64;
    fs::set_permissions(place.backing.join("mode"), PermissionsExt::from_mode(mode)).unwrap();
    Box::new(move || common::mode(place.mount.join("mode")) & 0o777 == mode)
}

fn utimens(place: &Place, round: u32) -> Seen<'_> {
    let time = Timespec { tv_sec: 1_000_000 + i64::from(round), tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, place.backing.join("times"), &times, AtFlags::empty()).unwrap();
    Box::new(move || fs::metadata(place.mount.join("times")).unwrap().mtime() == time.tv_sec)
}

fn replace_link(place: &Place, round: u32) -> Seen<'_> {
    let target = format!("{}", round + 1);
    symlink(&target, place.backing.join("link.new")).unwrap();
    fs::rename(place.backing.join("link.new"), place.backing.join("link")).unwrap();
    Box::new(move || fs::read_link(place.mount.join("link")).is_ok_and(|now| now == *target))
}

fn set_xattr(place: &Place, round: u32) -> Seen<'_> {
    let (direct, value) = (place.backing.join("attr"), format!("{round}"));
    rustix::fs::setxattr(&direct, "user.w", value.as_bytes(), XattrFlags::empty()).unwrap();
    let changed = move |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let expected = changed(&direct);
    let path = place.mount.join("attr");
    Box::new(move || {
        changed(&path) == expected && xattr(&path, "user.w").unwrap() == value.as_bytes()
    })
}

fn through_a_link(place: &Place, round: u32) -> Seen<'_> {
    let path = place.backing.parent().unwrap().join("elsewhere/hard");
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(u64::from(round) + 1).unwrap();
    Box::new(move || place.size("hard") == u64::from(round) + 1)
}

/// Makes 1,000 changes, one after the other, and says how long each took to be seen.
fn rounds(place: &Place, changes: &[(&'static str, Change)]) -> Vec<(Duration, &'static str)> {
    let _alone = TIMED.lock();
    let mut times = Vec::new();
    for round in 1..=1000_u32.div_ceil(changes.len() as u32) {
        for (what, change) in changes {
            let mut seen = change(place, round);
            let start = Instant::now();
            while !seen() {
                assert!(start.elapsed() < AT_MOST, "{what} was not seen for {AT_MOST:?}");
                std::thread::yield_now();
            }
            times.push((start.elapsed(), *what));
        }
    }
    times.sort_unstable();
    times
}

/// Prints the distribution, and allows some to be late: the machine may be busy.
#[track_caller]
fn assert_quick(times: &[(Duration, &'static str)]) {
    let at = |share: usize| times[(times.len() - 1) * share / 1000].0;
    eprintln!(
        "{} changes: median {:?}, 90 % {:?}, 99 % {:?}, 99.9 % {:?}, slowest {:?}",
        times.len(),
        at(500),
        at(900),
        at(990),
        at(999),
        times.last().unwrap()
    );
    for (what, _) in CHANGES {
        let own = times.iter().filter(|(_, of)| *of == what).map(|(time, _)| *time);
        let own: Vec<_> = own.collect();
        if let Some(last) = own.last() {
            eprintln!("  {what}: median {:?}, slowest {last:?}", own[own.len() / 2]);
        }
    }
    let late = times.iter().filter(|(time, _)| *time > AT_ONCE).count();
    eprintln!("  {late} took over {AT_ONCE:?}");
    if is_busy() {
        return eprintln!("SKIPPED: more is running than there are CPUs: how many is not judged");
    }
    assert!(late <= times.len() / 100, "{late} changes took over {AT_ONCE:?}");
}

/// Whether, over the last minute, more was to be run than there are CPUs. The test itself and the
/// daemon are two.
fn is_busy() -> bool {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = text.split(' ').next().unwrap().parse().unwrap();
    load > std::thread::available_parallelism().unwrap().get() as f64 + 1.0
}

/// One test after the other is timed: each looks at the mount without a pause.
static TIMED: Mutex<()> = Mutex::new(());

/// What `status` says of the watch.
fn watch_of(mounted: &MountedFs) -> serde_json::Value {
    ask(mounted.path(), "json status").json()["watch"].clone()
}

/// A mount with changes told, or none where that is not permitted.
fn watched(how: &str) -> Option<MountedFs> {
    (require_fuse() && require_root()).then(|| MountedFs::new(&format!("{HOUR},watch={how}")))
}

#[test]
fn a_thousand_changes_are_seen_at_once_with_the_filesystem_watched() {
    let Some(mounted) = watched("on") else { return };
    assert_eq!(watch_of(&mounted)["by"], "fanotify on the filesystem");
    let place = Place::new(&mounted);
    assert_quick(&rounds(&place, &CHANGES));
    drop(place);
    snapshot(mounted.path()).assert_same(&snapshot(mounted.backing()), Scope::Everything);
    assert_eq!(watch_of(&mounted)["overflows"], 0);
}

#[test]
fn a_thousand_changes_are_seen_at_once_with_files_handed_to_the_kernel() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new(&HOUR.replace("plane=mapped", "plane=auto,watch=on"));
    assert_quick(&rounds(&Place::new(&mounted), &CHANGES));
}

#[test]
fn a_thousand_changes_are_seen_at_once_with_directories_watched() {
    let Some(mounted) = watched("directories") else { return };
    let place = Place::new(&mounted);
    assert_quick(&rounds(&place, &CHANGES[..13]));
    let by = watch_of(&mounted)["by"].as_str().unwrap().to_owned();
    assert!(by.starts_with("fanotify on directories: "), "{by}");
}

#[test]
fn without_a_watch_the_same_changes_are_not_seen_before_the_timeouts() {
    let Some(mounted) = watched("off,plane=mapped") else { return };
    let backing = mounted.backing();
    fs::write(backing.join("data"), "before").unwrap();
    fs::write(backing.join("file"), "before").unwrap();
    let at = |name: &str| mounted.path().join(name);
    let open = File::open(at("data")).unwrap();
    assert_eq!(read_at(&open, 0, 6), b"before");
    // What is read is asked for its time of access afterwards: another file for attributes.
    assert_eq!((size(at("file")), mode(at("file")) & 0o777), (6, 0o644));
    assert!(!at("new").exists());
    fs::write(backing.join("data"), "after!").unwrap();
    fs::write(backing.join("file"), "and after").unwrap();
    fs::write(backing.join("new"), "x").unwrap();
    set_mode(backing.join("file"), 0o600);
    assert_eq!(read_at(&open, 0, 6), b"before");
    assert_eq!((size(at("file")), mode(at("file")) & 0o777), (6, 0o644));
    assert!(!at("new").exists());
    assert!(watch_of(&mounted)["by"].is_null());
}

#[test]
fn without_privilege_directories_in_use_are_watched() {
    if !(require_fuse() && require_root() && require_program("unshare")) {
        return;
    }
    // Root of a user namespace may mount, and has no privilege outside of it.
    let own = |script: &str, args: &[&Path]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-Urm", "sh", "-ec", script]).args(args).output().unwrap()
    };
    let (dir, program) = (TestDir::new(), program());
    let (source, mountpoint) = (dir.directory("source"), dir.directory("mnt"));
    let output = own("true < /dev/fuse", &[]);
    if !output.status.success() {
        return eprintln!("SKIPPED: no user namespace, or no /dev/fuse in it");
    }
    let script = r#"
        seen() { # Tries it 200 times in 2 s.
            for try in $(seq 200); do if sh -c "$1"; then return; fi; sleep 0.01; done
            echo "not seen: $1"
        }
        mkdir "$1/d"
        echo before > "$1/d/file"
        "$0" mount "$1" "$2" -o access=write,watch=on,negative_timeout=3600
        trap '"$0" umount "$2"' EXIT
        cd "$2/d"
        cat file
        test ! -e new
        echo changed > "$1/d/file"
        seen 'test "$(cat file)" = changed'
        echo new > "$1/d/new"
        seen 'test "$(cat new)" = new'
        mv "$1/d/new" "$1/moved"
        seen 'test ! -e new -a "$(cat ../moved)" = new'
        echo own > own
        mkdir sub
        cd sub
        test "$(cat ../own)" = own -a "$(pwd -P)" = "$2/d/sub"
        cd /
        "$0" status "$2"
    "#;
    let output = own(script, &[&program, &source, &mountpoint]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("before\n") && !text.contains("not seen"), "{text}");
    assert!(text.contains("fanotify on directories: "), "{text}");
}
