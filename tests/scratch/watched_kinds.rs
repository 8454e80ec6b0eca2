//! The watch of a base by kinds of mounts: without one, of single directories, with rules, with files
//! that are lent, with other mounts inside, and where it cannot be.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::OFlags;
use serde_json::Value;

use super::common::*;
use super::kept::Kept;
use super::watched::*;

#[test]
fn without_a_watch_changes_are_seen_within_short_timeouts() {
    if !require_fuse() {
        return;
    }
    let kept = Kept::new("watch=off", fill);
    fs::write(kept.at("moved/in/mine"), "mine").unwrap();
    fs::create_dir(kept.at("both")).unwrap();
    lists(&kept.at("both"), &[]);
    let watch = watch_of(kept.root());
    assert_eq!(watch["by"], Value::Null);
    change_all(&kept, "d", "d");
    fs::rename(kept.base.join("moved"), kept.base.join("away")).unwrap();
    is_gone(&kept.at("moved/in/b"));
    lists(&kept.at("moved/in"), &["mine"]);
    fs::create_dir(kept.base.join("both")).unwrap();
    fs::write(kept.base.join("both/below"), "below").unwrap();
    shows(&kept.at("both/below"), "below");
    lists(&kept.at("both"), &["below"]);
    let text = ask(kept.root(), "status").text();
    assert!(text.contains("watch=off: changes are seen when timeouts end"), "{text}");
}

#[test]
fn single_directories_of_the_base_are_watched_without_privilege() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::new(&format!("watch=directories,{HOUR}"), fill);
    assert!(watch_of(kept.root())["by"].as_str().unwrap().starts_with("fanotify on directories"));
    fs::write(kept.at("d/mine"), "mine").unwrap();
    override_two(&kept, "d", "d");
    change_all(&kept, "d", "d");
}

#[test]
fn with_rules_both_what_is_copied_and_what_is_not_is_seen() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let rules = TestDir::new();
    let file = rules.path().join("rules.toml");
    fs::write(&file, "[[rule]]\nmatch = \"direct/**\"\naccess = \"write\"\n").unwrap();
    let mut kept = Kept::new(&format!("watch=on,{HOUR},rules={}", file.display()), |base| {
        fill(base);
        fs::create_dir(base.join("direct")).unwrap();
        fs::write(base.join("direct/over"), format!("{:<5000}", "before")).unwrap();
    });
    kept.keep(rules);
    shows(&kept.at("direct/over"), &format!("{:<5000}", "before"));
    settle(&kept);
    write_in_place(&kept.base.join("direct/over"), 4990, "in place");
    shows(&kept.at("direct/over"), &format!("{:<4990}{:<10}", "before", "in place"));
    fs::write(kept.at("direct/through"), "through").unwrap();
    assert_content(kept.base.join("direct/through"), b"through");
    fs::remove_file(kept.base.join("direct/through")).unwrap();
    is_gone(&kept.at("direct/through"));
    fs::write(kept.at("d/mine"), "mine").unwrap();
    override_two(&kept, "d", "d");
    change_all(&kept, "d", "d");
}

#[test]
fn a_file_that_is_lent_is_told_of_by_whatever_number_it_has() {
    for options in [HOUR, "copy_up=0"] {
        let Some(kept) = watched(&format!("share,{options}"), fill) else { return };
        for name in ["d/over", "d/mode"] {
            shows(&kept.at(name), &format!("{:<5000}", "before"));
        }
        settle(&kept);
        write_in_place(&kept.base.join("d/over"), 4990, "in place");
        shows(&kept.at("d/over"), &format!("{:<4990}{:<10}", "before", "in place"));
        let reader = open(kept.at("d/mode"), OFlags::RDONLY).unwrap();
        set_mode(kept.base.join("d/mode"), 0o600);
        wait_for("the mode to show", || reader.metadata().unwrap().mode() & 0o777 == 0o600);
        wait_for("the mode to show", || mode(kept.at("d/mode")) & 0o777 == 0o600);
    }
}

#[test]
fn what_is_mounted_inside_stays_when_the_base_is_changed_below_it() {
    let Some(kept) = watched("copy_up=0", fill) else { return };
    fs::write(kept.at("moved/in/mine"), "mine").unwrap();
    lists(&kept.at("moved/in"), &["b", "mine"]);
    let other = TestDir::new();
    fs::write(other.path().join("inside"), "inside").unwrap();
    let _bound = ["moved/in", "d/full"].map(|name| Bound::new(other.path(), &kept.at(name)));
    let negative = || ask(kept.root(), "json status").json()["timeouts"]["negative_s"].clone();
    wait_for("the mounts to be known", || negative() == 1.0);
    let stays = || {
        for name in ["moved/in", "d/full"] {
            assert_content(kept.at(name).join("inside"), b"inside");
        }
    };
    set_mode(kept.base.join("d/full"), 0o700);
    fs::write(kept.base.join("d/full/new"), "new").unwrap();
    fs::write(kept.base.join("d/new"), "new").unwrap();
    shows(&kept.at("d/new"), "new");
    stays();
    fs::rename(kept.base.join("moved"), kept.base.join("away")).unwrap();
    is_gone(&kept.at("moved/a"));
    shows(&kept.at("away/in/b"), "in/b");
    lists(&kept.at("moved"), &["in"]);
    stays();
    fs::rename(kept.base.join("away"), kept.base.join("moved")).unwrap();
    shows(&kept.at("moved/a"), "a");
    stays();
}

#[test]
fn a_watch_that_has_to_be_and_cannot_be_refuses_the_mount_and_leaves_nothing() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let inner = MountedFs::new("access=write");
    let dir = TestDir::new();
    let (scratch, mnt) = (dir.path().join("scratch"), dir.directory("mnt"));
    let options = format!("access=copy,watch=on,scratch={}", scratch.display());
    let words = ["mount", "-f", "-o", &options].map(std::ffi::OsStr::new);
    let places = [inner.path().as_os_str(), mnt.as_os_str()];
    let output = mounted::run(&[&words[..], &places[..]].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("option `watch`"), "{text}");
    assert!(!mounted::is_mounted(&mnt));
}

#[test]
fn without_privilege_what_is_used_of_the_base_is_watched_and_what_is_open_stays() {
    if !(require_fuse() && require_root() && require_program("unshare")) {
        return;
    }
    // Root of a user namespace may mount, and has no privilege outside of it.
    let own = |script: &str, args: &[&Path]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-Urm", "sh", "-ec", script]).args(args).output().unwrap()
    };
    if !own("true < /dev/fuse", &[]).status.success() {
        return eprintln!("SKIPPED: no user namespace, or no /dev/fuse in it");
    }
    let (dir, program) = (TestDir::new(), mounted::program());
    let (base, mountpoint) = (dir.directory("base"), dir.directory("mnt"));
    let script = r#"
        seen() { # Tries it 200 times in 2 s.
            for try in $(seq 200); do if sh -c "$1"; then return; fi; sleep 0.01; done
            echo "not seen: $1"
        }
        export MMAPFS_RUN_DIR="$1/../run" MMAPFS_STATE_DIR="$1/../state"
        mkdir "$1/d" "$1/e"
        echo before > "$1/d/file"
        "$0" mount "$1" "$2" -o "access=copy,scratch=$1/../scratch,watch=on,negative_timeout=3600"
        trap 'exec 7<&-; "$0" umount "$2"' EXIT
        cd "$2/d"
        cat file
        test ! -e new
        echo mine > mine
        echo new > "$1/d/new"
        seen 'test "$(cat new)" = new'
        mv "$1/d/new" "$1/e/moved"
        seen 'test ! -e new -a "$(cat ../e/moved)" = new'
        exec 7< ../e/moved
        rm "$1/e/moved"
        seen 'test ! -e ../e/moved'
        sleep 1.5 # What was looked up is held for a moment.
        seen 'test "$(stat -L -c %s /proc/self/fd/7)" = 4'
        mv "$1/d" "$1/away"
        seen 'test ! -e file -a "$(ls)" = mine -a -e ../away/file'
        cd /
        "$0" status "$2"
    "#;
    let output = own(script, &[&program, &base, &mountpoint]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("before\n") && !text.contains("not seen"), "{text}");
    assert!(text.contains("fanotify on directories: "), "{text}");
}

#[test]
fn a_file_is_not_listed_by_the_number_that_a_copy_of_it_has_just_got() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("watch=on", |base| {
        fs::create_dir(base.join("d")).unwrap();
        fs::write(base.join("d/file"), "base").unwrap();
    });
    fs::write(kept.at("d/file"), "copy").unwrap();
    kept.unmount();
    fs::create_dir(kept.base.join("e")).unwrap();
    fs::rename(kept.base.join("d/file"), kept.base.join("e/file")).unwrap();
    kept.mount();
    let (copy, dir) = (kept.at("d/file"), kept.at("e"));
    let begin = std::sync::Barrier::new(2);
    let flags = rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOSUID;
    for _ in 0..3000 {
        rustix::mount::mount_remount(kept.root(), flags, "").unwrap(); // The kernel forgets.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begin.wait();
                assert_eq!(fs::read(&copy).unwrap(), b"copy");
            });
            begin.wait();
            assert_eq!(names(&dir), ["file"]);
            assert_eq!(fs::read(dir.join("file")).unwrap(), b"base");
        });
    }
    assert!(!kept.mounted().log().contains("forget ino"), "{}", kept.mounted().log());
}
