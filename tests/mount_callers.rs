//! Callers other than root on a mount with `allow_other`: owners, groups, rights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::mapped::Mapped;
use common::*;
use rustix::fs::{Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

const ALICE: u32 = 40_001;
const BOB: u32 = 40_002;
const TEAM: u32 = 40_100;

/// Runs a test as root with a directory that everybody may write, bare and on the mount.
fn for_callers<T: PartialEq + std::fmt::Debug>(test: impl Fn(&Path) -> T) {
    for_callers_on("", test);
}

fn for_callers_on<T: PartialEq + std::fmt::Debug>(plane: &str, test: impl Fn(&Path) -> T) {
    if !require_root() {
        return;
    }
    same_on_both_with(&format!("access=write,allow_other,suid,dev{plane}"), |dir| {
        let open = dir.join("open");
        fs::create_dir(&open).unwrap();
        set_mode(&open, 0o777);
        test(&open)
    });
}

fn owner(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn make_one_of_each(dir: &Path) {
    fs::write(dir.join("file"), b"x").unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    symlink("target", dir.join("link")).unwrap();
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, dir.join("fifo"), FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, dir.join("node"), FileType::RegularFile, mode, 0).unwrap();
}

const EACH: [&str; 5] = ["file", "dir", "link", "fifo", "node"];

#[test]
fn what_a_caller_makes_belongs_to_it() {
    for_callers(|dir| {
        Caller::new(ALICE).group(TEAM).run(|| make_one_of_each(dir));
        let owners = EACH.map(|name| owner(dir.join(name)));
        assert!(owners.iter().all(|owner| (owner.0, owner.1) == (ALICE, TEAM)), "{owners:?}");
        owners
    });
}

#[test]
fn the_umask_of_the_caller_holds() {
    for_callers(|dir| {
        [0, 0o022, 0o027, 0o077, 0o777].map(|umask| {
            let sub = dir.join(format!("{umask:o}"));
            fs::create_dir(&sub).unwrap();
            set_mode(&sub, 0o777);
            Caller::new(ALICE).umask(umask).run(|| make_one_of_each(&sub));
            EACH.map(|name| owner(sub.join(name)).2)
        })
    });
}

#[test]
fn a_default_access_list_takes_the_place_of_the_umask() {
    if !require_program("setfacl") {
        return;
    }
    for_callers(|dir| {
        let rules = "d:u::rwx,d:g::rwx,d:o::r,d:u:40002:rw";
        let set = Command::new("setfacl").args(["-m", rules]).arg(dir).status().unwrap();
        assert!(set.success());
        Caller::new(ALICE).umask(0o077).run(|| make_one_of_each(dir));
        Caller::new(BOB).run(|| fs::write(dir.join("file"), b"by the list").unwrap());
        EACH.map(|name| owner(dir.join(name)))
    });
}

#[test]
fn a_setgid_directory_gives_its_group_and_directories_the_bit() {
    for_callers(|dir| {
        let sub = dir.join("team");
        fs::create_dir(&sub).unwrap();
        chown(&sub, None, Some(TEAM)).unwrap();
        set_mode(&sub, 0o2777);
        Caller::new(ALICE).run(|| make_one_of_each(&sub));
        let owners = EACH.map(|name| owner(sub.join(name)));
        assert!(owners.iter().all(|owner| (owner.0, owner.1) == (ALICE, TEAM)), "{owners:?}");
        assert_eq!(owners[1].2 & 0o2000, 0o2000);
        owners
    });
}

#[test]
fn the_setgid_bit_is_for_members_of_the_group() {
    for_callers(|dir| {
        let sub = dir.join("team");
        fs::create_dir(&sub).unwrap();
        chown(&sub, None, Some(TEAM)).unwrap();
        set_mode(&sub, 0o2777);
        let make = |name: &str| {
            let path = sub.join(name);
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let mode = Mode::from_raw_mode(0o2775);
            drop(rustix::fs::open(&path, flags, mode).unwrap());
            let made = owner(&path).2;
            set_mode(&path, 0o2755);
            (made, owner(&path).2)
        };
        let stranger = Caller::new(ALICE).umask(0).run(|| make("stranger"));
        let member = Caller::new(ALICE).umask(0).groups(&[7, TEAM]).run(|| make("member"));
        assert_eq!((stranger.1, member.1), (0o755, 0o2755));
        (stranger, member)
    });
}

#[test]
fn a_caller_may_do_what_the_bare_filesystem_lets_it_do() {
    for_callers(|dir| {
        for bits in [0o0, 0o400, 0o040, 0o004, 0o200, 0o020, 0o002, 0o100, 0o010, 0o001, 0o644] {
            let path = dir.join(format!("f{bits:03o}"));
            fs::write(&path, b"content").unwrap();
            set_mode(&path, bits);
            chown(&path, Some(ALICE), Some(TEAM)).unwrap();
            let path = dir.join(format!("d{bits:03o}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("inside"), b"x").unwrap();
            set_mode(&path, bits);
            chown(&path, Some(ALICE), Some(TEAM)).unwrap();
        }
        let try_all = || {
            let mut outcomes = Vec::new();
            for name in names(dir) {
                let path = dir.join(&name);
                let rights = [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK];
                let access = rights.map(|right| rustix::fs::access(&path, right));
                let flags = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::PATH];
                let opened = flags.map(|flags| open(&path, flags).map(drop));
                let inside = errno(fs::symlink_metadata(path.join("inside")).map(drop));
                let made = errno(fs::create_dir(path.join("made")));
                let removed = errno(fs::remove_dir(path.join("made")));
                let mine = errno(fs::set_permissions(&path, PermissionsExt::from_mode(0o600)));
                outcomes.push(format!(
                    "{name} {access:?} {opened:?} {inside:?} {made:?} {removed:?} {mine:?}"
                ));
            }
            outcomes
        };
        let bob = Caller::new(BOB).run(try_all);
        let member = Caller::new(BOB).groups(&[TEAM]).run(try_all);
        let team = Caller::new(BOB).group(TEAM).run(try_all);
        [bob, member, team, Caller::new(ALICE).run(try_all)]
    });
}

#[test]
fn what_only_owners_may_do_is_refused_to_others_as_on_the_bare_filesystem() {
    for_callers(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"content").unwrap();
        set_mode(&path, 0o666);
        chown(&path, Some(ALICE), Some(ALICE)).unwrap();
        let sticky = dir.join("sticky");
        fs::create_dir(&sticky).unwrap();
        set_mode(&sticky, 0o1777);
        fs::write(sticky.join("alices"), b"x").unwrap();
        chown(sticky.join("alices"), Some(ALICE), None).unwrap();
        let any = XattrFlags::empty();
        let epoch = std::time::UNIX_EPOCH;
        let try_all = || {
            [
                errno(fs::set_permissions(&path, PermissionsExt::from_mode(0o666))),
                errno(chown(&path, Some(BOB), None)),
                errno(chown(&path, None, Some(TEAM))),
                errno(chown(&path, None, Some(BOB))),
                errno(create(&path).set_modified(epoch)),
                errno(create(&path).set_times(fs::FileTimes::new())),
                rustix::fs::lsetxattr(&path, "user.x", b"x", any),
                rustix::fs::lsetxattr(&path, "trusted.x", b"x", any),
                rustix::fs::lsetxattr(&path, "security.x", b"x", any),
                errno(fs::rename(sticky.join("alices"), sticky.join("bobs"))),
                errno(fs::remove_file(sticky.join("bobs"))),
                errno(fs::remove_file(sticky.join("alices"))),
                rustix::fs::mknodat(
                    CWD,
                    dir.join("device"),
                    FileType::CharacterDevice,
                    Mode::RUSR,
                    rustix::fs::makedev(1, 3),
                ),
                errno(fs::hard_link(&path, dir.join("link"))),
                open(&path, OFlags::RDONLY | OFlags::NOATIME).map(drop),
            ]
        };
        let bob = Caller::new(BOB).groups(&[TEAM]).run(try_all);
        let alice = Caller::new(ALICE).groups(&[TEAM]).run(try_all);
        (bob, alice, owner(&path), names(&sticky))
    });
}

/// Makes a file of alice's that bob may write, with all bits on.
fn privileged_file(dir: &Path, name: &str, bits: u32) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, pattern(10_000)).unwrap();
    chown(&path, Some(ALICE), Some(TEAM)).unwrap();
    set_mode(&path, bits);
    path
}

/// A way to change a file, with its name.
type Change = (&'static str, fn(&Path));

/// Every way to change a file.
const CHANGES: [Change; 11] = [
    ("write", |path| create(path).write_all_at(b"x", 0).unwrap()),
    ("append", |path| {
        let file = open(path, OFlags::WRONLY | OFlags::APPEND).unwrap();
        file.write_at(b"x", 0).map(drop).unwrap();
    }),
    ("write past the end", |path| create(path).write_all_at(&[7; 20_000], 2).unwrap()),
    ("truncate", |path| create(path).set_len(10).unwrap()),
    ("grow", |path| create(path).set_len(20_000).unwrap()),
    ("open with O_TRUNC", |path| drop(File::create(path).unwrap())),
    ("preallocate", |path| {
        rustix::fs::fallocate(create(path), FallocateFlags::empty(), 0, 20_000).unwrap();
    }),
    ("punch", |path| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(create(path), punch, 0, 5000).unwrap();
    }),
    ("copy a range", |path| {
        let file = create(path);
        let (mut from, mut to) = (0, 5000);
        rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 100).unwrap();
    }),
    ("map and write", |path| {
        let file = create(path);
        let map = Mapped::shared(&file, 10_000).unwrap();
        map.write(0, b"x");
        map.sync().unwrap();
    }),
    ("read", |path| drop(read_at(&open(path, OFlags::RDONLY).unwrap(), 0, 1))),
];

#[test]
fn setuid_and_setgid_are_cleared_by_each_kind_of_change_as_on_the_bare_filesystem() {
    // What the kernel writes by itself: mount_privileges.rs.
    for_callers_on(",plane=mapped", |dir| {
        let mut left = Vec::new();
        for bits in [0o6777, 0o2767, 0o4766, 0o2777] {
            for (name, change) in CHANGES {
                // A mapping's first write is reported to the filesystem late or never.
                if name == "map and write" {
                    continue;
                }
                let callers = [
                    ("stranger", Caller::new(BOB)),
                    ("member", Caller::new(BOB).groups(&[7, TEAM])),
                    ("owner", Caller::new(ALICE)),
                    ("root", Caller::new(0)),
                ];
                for (who, caller) in callers {
                    let path = privileged_file(dir, &format!("{name} {bits:o} {who}"), bits);
                    caller.run(|| change(&path));
                    left.push(format!("{name} {bits:o} by {who}: {:o}", owner(&path).2));
                }
            }
        }
        left
    });
}

#[test]
fn a_write_through_a_mapping_does_to_setuid_what_the_bare_filesystem_does() {
    for_callers(|dir| {
        let path = privileged_file(dir, "file", 0o4777);
        let (_, change) = CHANGES.iter().find(|change| change.0 == "map and write").unwrap();
        Caller::new(BOB).run(|| change(&path));
        owner(&path)
    });
}

#[test]
fn a_change_of_owner_clears_setuid_and_setgid_as_on_the_bare_filesystem() {
    for_callers(|dir| {
        let mut left = Vec::new();
        for bits in [0o6777, 0o6766, 0o2644] {
            for (user, group) in [(None, Some(TEAM)), (Some(BOB), None), (None, None)] {
                let path = privileged_file(dir, &format!("{bits:o} {user:?} {group:?}"), bits);
                chown(&path, user, group).unwrap();
                let by_root = owner(&path);
                let path = privileged_file(dir, &format!("alice {bits:o} {user:?}"), bits);
                let by_owner = Caller::new(ALICE)
                    .groups(&[TEAM])
                    .run(|| errno(chown(&path, user.map(|_| ALICE), group)));
                let owners = owner(&path);
                let path = privileged_file(dir, &format!("bob {bits:o} {user:?} {group:?}"), bits);
                // Naming neither is left out: the kernel's FUSE client sends for it what it also
                // sends before fallocate, where it must not fail.
                let user = user.unwrap_or(ALICE);
                let by_stranger = Caller::new(BOB).run(|| errno(chown(&path, Some(user), group)));
                left.push(format!(
                    "{bits:o} {user} {group:?}: by root {by_root:?}, by the owner {by_owner:?} \
                     {owners:?}, by a stranger {by_stranger:?} {:?}",
                    owner(&path)
                ));
            }
        }
        left
    });
}

#[test]
fn capabilities_of_a_file_go_with_the_first_write() {
    for_callers(|dir| {
        let path = privileged_file(dir, "file", 0o777);
        // cap_net_raw=p, in the form of VFS_CAP_REVISION_2.
        let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let name = "security.capability";
        rustix::fs::lsetxattr(&path, name, &capability, XattrFlags::empty()).unwrap();
        assert_eq!(xattr(&path, name).unwrap(), capability);
        Caller::new(BOB).run(|| create(&path).write_all_at(b"x", 0).unwrap());
        assert_eq!(xattr(&path, name), Err(Errno::NODATA));
    });
}

#[test]
fn attributes_of_root_are_not_listed_to_others() {
    for_callers(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"x").unwrap();
        set_mode(&path, 0o666);
        for name in ["trusted.hidden", "user.seen"] {
            rustix::fs::lsetxattr(&path, name, b"x", XattrFlags::empty()).unwrap();
        }
        let seen = Caller::new(BOB).run(|| (xattr_names(&path), xattr(&path, "trusted.hidden")));
        assert_eq!(seen.0.as_deref().unwrap(), ["user.seen"]);
        seen
    });
}

#[test]
fn an_access_list_lets_in_whom_it_names() {
    if !require_program("setfacl") {
        return;
    }
    for_callers(|dir| {
        let path = dir.join("file");
        fs::write(&path, b"x").unwrap();
        set_mode(&path, 0o600);
        let read = || errno(fs::read(&path).map(drop));
        let before = Caller::new(BOB).run(read);
        let rules = format!("u:{BOB}:r,g:{TEAM}:rw");
        assert!(
            Command::new("setfacl").args(["-m", &rules]).arg(&path).status().unwrap().success()
        );
        let write = || errno(File::options().write(true).open(&path).map(drop));
        let by_list = Caller::new(BOB).run(|| (read(), write()));
        let by_group = Caller::new(ALICE).groups(&[TEAM]).run(|| (read(), write()));
        assert_eq!(before, Err(Errno::ACCESS));
        assert_eq!(by_list, (Ok(()), Err(Errno::ACCESS)));
        assert_eq!(by_group, (Ok(()), Ok(())));
    });
}

#[test]
fn callers_at_the_same_time_are_not_taken_for_each_other() {
    for_callers(|dir| {
        std::thread::scope(|scope| {
            for user in [0, ALICE, BOB, 40_003] {
                scope.spawn(move || {
                    Caller::new(user).run(|| {
                        for index in 0..100 {
                            let path = dir.join(format!("{user}-{index}"));
                            fs::create_dir(&path).unwrap();
                            fs::write(path.join("file"), b"x").unwrap();
                        }
                    });
                });
            }
        });
        for name in names(dir) {
            let user: u32 = name.split('-').next().unwrap().parse().unwrap();
            for path in [dir.join(&name), dir.join(&name).join("file")] {
                let (uid, gid, _) = owner(&path);
                assert_eq!((uid, gid), (user, user), "{}", path.display());
            }
        }
    });
}

#[test]
fn a_file_opened_by_one_caller_serves_another_that_inherits_it() {
    for_callers(|dir| {
        let path = dir.join("private");
        let file = create(&path);
        set_mode(&path, 0o600);
        Caller::new(BOB).run(|| {
            file.write_all_at(b"by bob", 0).unwrap();
            assert_eq!(read_at(&file, 0, 6), b"by bob");
            file.set_len(3).unwrap();
        });
        assert_content(&path, b"by ");
    });
}

#[test]
fn without_allow_other_nobody_else_gets_in() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write");
    set_mode(mounted.backing(), 0o777);
    fs::write(mounted.path().join("file"), b"x").unwrap();
    set_mode(mounted.path().join("file"), 0o666);
    Caller::new(BOB).run(|| {
        assert_eq!(error(fs::read(mounted.path().join("file"))), Errno::ACCESS);
        assert_eq!(error(fs::read_dir(mounted.path())), Errno::ACCESS);
    });
}

#[test]
fn the_control_directory_is_closed_to_all_but_the_owner() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write,allow_other");
    let control = mounted.path().join(".mmapfs");
    let seen = |name: &str| errno(File::options().write(true).open(control.join(name)).map(drop));
    Caller::new(BOB).run(|| {
        assert_eq!(error(fs::read_dir(&control)), Errno::ACCESS);
        assert_eq!(seen("control"), Err(Errno::ACCESS));
        assert_eq!(error(fs::read(control.join("status"))), Errno::ACCESS);
    });
    let follow = AtFlags::empty();
    let meta = rustix::fs::statat(CWD, &control, follow).unwrap();
    assert_eq!((meta.st_uid, meta.st_gid), (0, 0));
}
