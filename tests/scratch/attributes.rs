//! Extended attributes and access lists: what is copied up keeps its own, what is made gets what
//! it would get in a plain directory, and marks of the format do not show.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{OFlags, XattrFlags, lgetxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;

use super::common::*;
use super::kept::Kept;

/// setcap(8)'s cap_net_raw=ep.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const USER: u32 = 40_001;

fn set(path: impl AsRef<Path>, name: &str, value: &[u8]) {
    lsetxattr(path.as_ref(), name, value, XattrFlags::empty()).unwrap();
}

#[track_caller]
fn setfacl(arguments: &[&str], path: impl AsRef<Path>) {
    let done = Command::new("setfacl").args(arguments).arg(path.as_ref()).status().unwrap();
    assert!(done.success());
}

/// Access and default lists, which getfacl(1) reads, and the mode.
fn lists(path: &Path) -> String {
    let output = Command::new("getfacl").args(["-cpn"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    format!("{:o} {}", mode(path), String::from_utf8(output.stdout).unwrap())
}

fn fill(base: &Path) {
    for dir in ["plain", "merged", "gets more"] {
        fs::create_dir(base.join(dir)).unwrap();
        set_mode(base.join(dir), 0o755);
        fs::write(base.join(dir).join("file"), pattern(200_000)).unwrap();
        set_mode(base.join(dir).join("file"), 0o660);
        fs::create_dir(base.join(dir).join("dir")).unwrap();
    }
    if program_is_there() {
        setfacl(&["-m", "d:u:1234:rwx,d:g:4321:r,d:o::-,u:77:rx"], base.join("merged"));
        setfacl(&["-m", "u:1234:rw,g:4321:r"], base.join("merged/file"));
        // Given when nobody had to inherit it.
        setfacl(&["-m", "d:u:99:rwx,d:m::rw"], base.join("gets more/dir"));
    }
}

fn program_is_there() -> bool {
    require_program("setfacl")
}

/// Makes everything that may inherit. Returns what it got.
fn inherit(root: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for dir in ["plain", "merged", "gets more/dir"] {
        let dir = root.join(dir);
        for (umask, name) in [(0o022, "open"), (0o077, "closed")] {
            let at = |kind: &str| dir.join(format!("{kind} {name}"));
            Caller::new(0).umask(umask).run(|| {
                drop(create(at("file")));
                fs::create_dir(at("dir")).unwrap();
                fs::create_dir(at("dir").join("below")).unwrap();
                drop(create(at("dir").join("below/file")));
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, 0o666.into(), 0).unwrap();
            });
            for path in [at("file"), at("dir"), at("dir").join("below/file"), at("fifo")] {
                seen.push(format!("{name}: {}", lists(&path)));
            }
        }
        seen.push(lists(&dir));
    }
    seen
}

#[test]
fn what_is_made_inherits_as_in_a_plain_directory() {
    if !(require_fuse() && require_root() && program_is_there()) {
        return;
    }
    let plain = TestDir::new();
    fill(plain.path());
    let expected = inherit(plain.path());
    for in_upper in [false, true] {
        let mut kept = Kept::new("copy_up=0", fill);
        kept.with_base_untouched(|kept| {
            if in_upper {
                for dir in ["plain", "merged", "gets more", "gets more/dir"] {
                    fs::write(kept.at(dir).join("first"), b"").unwrap();
                }
            }
            assert_eq!(inherit(kept.root()), expected);
            // Of directories that were made in the scratch, too.
            fs::create_dir(kept.at("born")).unwrap();
            setfacl(&["-m", "d:u:5:rwx"], kept.at("born"));
            fs::create_dir(kept.at("born/below")).unwrap();
            let below = lists(&kept.at("born/below"));
            assert!(below.contains("default:user:5:rwx"), "{below}");
        });
        let before = lists(&kept.at("merged/dir open/below/file"));
        kept.remount();
        assert_eq!(lists(&kept.at("merged/dir open/below/file")), before);
    }
}

#[test]
fn what_is_copied_up_keeps_its_lists_and_gets_no_others() {
    if !(require_fuse() && require_root() && program_is_there()) {
        return;
    }
    let place = TestDir::new();
    let scratch = place.directory("scratch");
    // What the place of the scratch hands down is of no concern to the tree.
    setfacl(&["-m", "d:u:4711:rwx,d:g:4712:rwx"], place.path());
    setfacl(&["-m", "d:u:4711:rwx,d:g:4712:rwx"], &scratch);
    let mut kept = Kept::in_place(&scratch, "copy_up=0", fill);
    kept.with_base_untouched(|kept| {
        let paths = ["", "plain", "plain/file", "merged", "merged/file", "gets more/dir"];
        let all = |kept: &Kept| paths.map(|path| lists(&kept.at(path)));
        let below = paths.map(|path| lists(&kept.base.join(path)));
        assert_eq!(all(kept), below);
        for name in ["plain/file", "merged/file"] {
            create(kept.at(name)).write_all_at(b"changed", 100).unwrap();
        }
        fs::write(kept.at("gets more/dir/new"), b"").unwrap();
        fs::write(kept.at("new"), b"").unwrap();
        fs::create_dir(kept.at("plain/new")).unwrap();
        fs::write(kept.at("plain/new/file"), b"").unwrap();
        assert_eq!(all(kept), below);
        for made in ["new", "plain/new", "plain/new/file"] {
            let got = lists(&kept.at(made));
            assert!(!got.contains("471"), "{made}: {got}");
        }
        kept.remount();
        assert_eq!(all(kept), below);
    });
}

#[test]
fn attributes_go_up_with_their_file_and_marks_do_not_show() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let long = pattern(2000);
    let mut kept = Kept::new("copy_up=0", |base| {
        fill(base);
        for path in ["plain", "plain/file"] {
            set(base.join(path), "user.short", b"1");
            set(base.join(path), "user.long", &pattern(2000));
            set(base.join(path), "user.empty", b"");
            set(base.join(path), "trusted.own", b"t");
        }
        fs::hard_link(base.join("plain/file"), base.join("second")).unwrap();
    });
    kept.with_base_untouched(|kept| {
        let expected = ["trusted.own", "user.empty", "user.long", "user.short"];
        let shown = |kept: &Kept, path: &str| {
            let mut names = xattr_names(kept.at(path)).unwrap();
            names.retain(|name| !name.starts_with("system."));
            names.sort();
            names
        };
        let check = |kept: &Kept| {
            for path in ["plain", "plain/file"] {
                assert_eq!(shown(kept, path), expected, "{path}");
                assert_bytes(&xattr(kept.at(path), "user.long").unwrap(), &long);
                assert_bytes(&xattr(kept.at(path), "user.empty").unwrap(), b"");
            }
        };
        check(kept);
        create(kept.at("plain/file")).write_all_at(b"x", 0).unwrap();
        check(kept);
        fs::rename(kept.at("merged"), kept.at("moved")).unwrap();
        let names = ["opaque", "redirect", "metacopy", "origin", "impure", "nlink"];
        for path in ["", "plain", "plain/file", "moved"] {
            for mark in names.iter().flat_map(|name| {
                ["user", "trusted"].map(|prefix| format!("{prefix}.overlay.{name}"))
            }) {
                assert_eq!(xattr(kept.at(path), &mark), Err(Errno::NODATA), "{path} {mark}");
            }
            let marks: Vec<_> = xattr_names(kept.at(path)).unwrap();
            assert!(!marks.iter().any(|name| name.contains("overlay") || name.contains("mmapfs")));
        }
        // The length that is asked for is that of what is given.
        let len = rustix::fs::llistxattr(kept.at("plain/file"), &mut [0u8; 0][..]).unwrap();
        let mut exact = vec![0u8; len];
        assert_eq!(rustix::fs::llistxattr(kept.at("plain/file"), &mut exact[..]), Ok(len));
        lremovexattr(kept.at("second"), "user.long").unwrap();
        assert_eq!(xattr(kept.at("plain/file"), "user.long"), Err(Errno::NODATA));
        kept.remount();
        assert_eq!(shown(kept, "plain/file"), ["trusted.own", "user.empty", "user.short"]);
        assert_eq!(shown(kept, "plain"), expected);
    });
}

#[test]
fn capabilities_go_up_with_their_file_and_are_dropped_by_a_write() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (options, by_user) in
        [("copy_up=0", false), ("copy_up=0", true), ("copy_up=1M", false), ("copy_up=1M", true)]
    {
        let mut kept = Kept::new(options, |base| {
            for name in ["written", "renamed", "truncated", "mapped"] {
                fs::write(base.join(name), pattern(200_000)).unwrap();
                set_mode(base.join(name), 0o6777);
                lsetxattr(base.join(name), "security.capability", &CAPABILITY, XattrFlags::empty())
                    .unwrap();
            }
        });
        kept.with_base_untouched(|kept| {
            let capability = |name: &str| {
                let mut value = [0; 64];
                let len = lgetxattr(
                    kept.at(name),
                    OsStr::from_bytes(b"security.capability"),
                    &mut value[..],
                );
                len.map(|len| value[..len].to_vec())
            };
            let run = |calls: &(dyn Fn() + Sync)| match by_user {
                true => Caller::new(USER).run(calls),
                false => calls(),
            };
            fs::rename(kept.at("renamed"), kept.at("other")).unwrap();
            assert_eq!(capability("other").unwrap(), CAPABILITY);
            // Opening it to write drops nothing.
            run(&|| drop(open(kept.at("written"), OFlags::RDWR).unwrap()));
            assert_eq!(capability("written").unwrap(), CAPABILITY);
            run(&|| create(kept.at("written")).write_all_at(b"x", 10).unwrap());
            assert_eq!(capability("written"), Err(Errno::NODATA));
            run(&|| raw::truncate(&kept.at("truncated"), 100).unwrap());
            assert_eq!(capability("truncated"), Err(Errno::NODATA));
            let bits = mode(kept.at("written")) & 0o6000;
            assert_eq!(bits, if by_user { 0 } else { 0o6000 });
            assert_eq!(mode(kept.at("truncated")) & 0o6000, bits);
        });
        kept.remount();
        assert_eq!(xattr(kept.at("written"), "security.capability"), Err(Errno::NODATA));
        assert_eq!(xattr(kept.at("other"), "security.capability").unwrap(), CAPABILITY);
    }
}

/// chown(2) of neither owner nor group, and what is left of setuid, setgid and capabilities.
fn chown_nothing(path: &Path, who: u32) -> String {
    let result = Caller::new(who).run(|| errno(chown(path, None, None)));
    let capable = xattr(path, "security.capability").is_ok();
    format!("{} by {who}: {result:?}, {:o}, {capable}", path.display(), mode(path))
}

#[test]
fn a_chown_of_neither_owner_nor_group_takes_privileges_away() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let privileges = [0o4755, 0o2755, 0o6755, 0o2745, 0o755];
    let files = |place: &'static str| {
        let name = move |bits: u32, who: u32| format!("{place} {bits:o} {who}");
        privileges
            .into_iter()
            .flat_map(move |bits| [0, USER].map(|who| (name(bits, who), bits, who)))
    };
    let make = |dir: &Path, place| {
        for (name, bits, _) in files(place) {
            fs::write(dir.join(&name), pattern(20_000)).unwrap();
            chown(dir.join(&name), Some(USER), Some(USER)).unwrap();
            set(dir.join(&name), "security.capability", &CAPABILITY);
            set_mode(dir.join(&name), bits);
        }
    };
    let left = |dir: &Path| -> Vec<String> {
        let places = ["below", "partial", "whole"].into_iter().flat_map(files);
        let all = places.map(|(name, _, who)| chown_nothing(&dir.join(name), who));
        all.map(|line| line.replace(&*dir.to_string_lossy(), "")).collect()
    };
    let plain = TestDir::new();
    open_to_all(plain.path());
    for place in ["below", "partial", "whole"] {
        make(plain.path(), place);
    }
    for (name, ..) in files("partial") {
        // A write takes capabilities away.
        create(plain.path().join(&name)).write_all_at(b"x", 5000).unwrap();
    }
    let expected = left(plain.path());
    let mut kept = Kept::new("copy_up=0", |base| {
        make(base, "below");
        make(base, "partial");
    });
    kept.with_base_untouched(|kept| {
        make(kept.root(), "whole");
        for (name, ..) in files("partial") {
            create(kept.at(&name)).write_all_at(b"x", 5000).unwrap();
        }
        assert_eq!(left(kept.root()), expected);
        kept.remount();
        for line in &expected {
            let (path, _) = line.trim_start_matches('/').split_once(" by ").unwrap();
            assert_eq!(mode(kept.at(path)), mode(plain.path().join(path)), "{path}");
        }
    });
}
