//! Setuid, setgid and file capabilities: on each plane they go, or stay, as on the bare filesystem.
//!
//! Where the kernel writes to a file that was lent to it, it does so with the credentials of whom
//! opened it first, without CAP_FSETID and without supplementary groups. So bits go there that
//! root, or a member of the file's group, would keep. None ever stays that the bare filesystem
//! takes away.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::mapped::Mapped;
use common::raw::truncate;
use common::*;
use rustix::fs::{FallocateFlags, OFlags, XattrFlags, copy_file_range, fallocate};
use rustix::io::Errno;

const ALICE: u32 = 40_001;
const BOB: u32 = 40_002;
const TEAM: u32 = 40_100;

const LEN: usize = 10_000;

/// cap_net_raw=p, in the form of VFS_CAP_REVISION_2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NAME: &str = "security.capability";

/// What became of a file.
#[derive(Debug, PartialEq)]
struct Outcome {
    what: String,
    /// Root or a member of the file's group has changed it.
    may_keep: bool,
    result: Result<(), Errno>,
    mode: u32,
    capable: bool,
}

impl Outcome {
    fn of(path: &Path, what: String, who: &str, result: Result<(), Errno>) -> Outcome {
        let capable = xattr(path, NAME).is_ok();
        Outcome { what, may_keep: KEEPERS.contains(&who), result, mode: mode(path), capable }
    }

    /// Whether it is as on the bare filesystem, or has lost what only few may keep.
    fn agrees_with(&self, bare: &Outcome, lent: bool) -> bool {
        let fewer = self.mode & !bare.mode == 0 && self.mode & 0o777 == bare.mode & 0o777;
        let same_else = self.result == bare.result && self.capable == bare.capable;
        self == bare || lent && self.may_keep && fewer && same_else
    }
}

/// Those who may keep bits that others may not.
const KEEPERS: [&str; 3] = ["root", "other root", "member"];

/// Runs a test as root with a directory that everybody may write, bare and on each plane.
fn on_each_plane(test: impl Fn(&Path) -> Vec<Outcome>) {
    if !require_root() {
        return;
    }
    let run = |dir: &Path| {
        let open = dir.join("open");
        fs::create_dir(&open).unwrap();
        set_mode(&open, 0o777);
        test(&open)
    };
    let bare = TestDir::new();
    let expected = run(bare.path());
    for plane in PLANES {
        if !require_fuse() {
            return;
        }
        let options = format!("access=write,allow_other,suid,dev,plane={plane}");
        let mounted = MountedFs::new(&options);
        let actual = run(mounted.path());
        let lent = plane != "mapped";
        let pairs = actual.iter().zip(&expected);
        let differ: Vec<String> = pairs
            .filter(|(actual, expected)| !actual.agrees_with(expected, lent))
            .map(|(actual, expected)| format!("mount {actual:?}\n bare {expected:?}"))
            .collect();
        assert!(differ.is_empty(), "{} with plane={plane}:\n{}", differ.len(), differ.join("\n"));
        assert_eq!(actual.len(), expected.len());
        snapshot(mounted.path()).assert_same(&snapshot(mounted.backing()), Scope::Everything);
    }
}

/// What makes a file privileged.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Privilege {
    /// Bits of the mode.
    Bits(u32),
    /// Capabilities, which matter where it can be executed.
    Capability,
    /// Both.
    BitsAndCapability(u32),
}

const PRIVILEGES: [Privilege; 7] = [
    Privilege::Bits(0o4777),
    Privilege::Bits(0o2777),
    Privilege::Bits(0o6777),
    Privilege::Bits(0o2767),
    Privilege::Bits(0o6766),
    Privilege::Capability,
    Privilege::BitsAndCapability(0o6777),
];

/// Makes a file of alice's that everybody may write.
fn plain_file(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, pattern(LEN)).unwrap();
    chown(&path, Some(ALICE), Some(TEAM)).unwrap();
    set_mode(&path, 0o777);
    path
}

/// Gives a file a privilege.
fn grant(path: &Path, privilege: Privilege) {
    match privilege {
        Privilege::Bits(bits) => set_mode(path, bits),
        Privilege::Capability => {
            rustix::fs::lsetxattr(path, NAME, &CAPABILITY, XattrFlags::empty()).unwrap();
        }
        Privilege::BitsAndCapability(bits) => {
            grant(path, Privilege::Bits(bits));
            grant(path, Privilege::Capability);
        }
    }
}

/// A way to change a file through a descriptor, with its name.
type Change = (&'static str, fn(&File) -> Result<(), Errno>);

/// A way to change a file by its name.
type ByName = (&'static str, fn(&Path) -> Result<(), Errno>);

/// Every way to change a file that is open for reading and writing.
const CHANGES: [Change; 8] = [
    ("write", |file| errno(file.write_all_at(b"x", 0))),
    ("write past the end", |file| errno(file.write_all_at(&[7; 2 * LEN], 2))),
    ("truncate", |file| errno(file.set_len(10))),
    ("grow", |file| errno(file.set_len(2 * LEN as u64))),
    ("preallocate", |file| fallocate(file, FallocateFlags::empty(), 0, 2 * LEN as u64)),
    ("punch", |file| {
        fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 5000)
    }),
    ("copy a range", |file| {
        let (mut from, mut to) = (0, 5000);
        copy_file_range(file, Some(&mut from), file, Some(&mut to), 100).map(drop)
    }),
    ("map and store", |file| {
        let map = errno(Mapped::shared(file, LEN))?;
        map.write(0, b"x");
        errno(map.sync())
    }),
];

/// Every caller but root, with its name.
fn users() -> [(&'static str, Caller); 3] {
    [
        ("stranger", Caller::new(BOB)),
        ("member", Caller::new(BOB).groups(&[7, TEAM])),
        ("owner", Caller::new(ALICE)),
    ]
}

/// Root as well.
fn everybody() -> Vec<(&'static str, Caller)> {
    let roots = [("root", Caller::new(0)), ("other root", Caller::new(0).group(BOB))];
    users().into_iter().chain(roots).collect()
}

/// Makes every change by each of the callers to a file with each of the privileges, which `make`
/// makes and opens; tells what is left.
fn changes_by(
    dir: &Path,
    callers: &[(&'static str, Caller)],
    make: impl Fn(&Path, Privilege, &Caller) -> File,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for privilege in PRIVILEGES {
        for (what, change) in CHANGES {
            for (who, caller) in callers {
                let name = format!("{what} {privilege:?} {who}");
                let path = plain_file(dir, &name);
                let file = make(&path, privilege, caller);
                let result = caller.run(|| change(&file));
                drop(file);
                outcomes.push(Outcome::of(&path, name, who, result));
            }
        }
    }
    outcomes
}

fn open_both(path: &Path) -> File {
    open(path, OFlags::RDWR).unwrap()
}

#[test]
fn what_a_file_has_when_it_is_opened_goes_at_each_kind_of_change() {
    on_each_plane(|dir| {
        changes_by(dir, &everybody(), |path, privilege, caller| {
            grant(path, privilege);
            caller.run(|| open_both(path))
        })
    });
}

#[test]
fn what_a_file_gets_while_it_is_open_goes_when_a_user_changes_it() {
    on_each_plane(|dir| {
        changes_by(dir, &users(), |path, privilege, caller| {
            let file = caller.run(|| open_both(path));
            grant(path, privilege);
            file
        })
    });
}

#[test]
fn what_a_file_gets_while_root_has_it_open_goes_when_a_user_changes_it() {
    on_each_plane(|dir| {
        changes_by(dir, &users(), |path, privilege, _| {
            let file = open_both(path);
            grant(path, privilege);
            file
        })
    });
}

#[test]
fn what_a_file_gets_while_root_in_another_group_has_it_open_goes_when_a_user_changes_it() {
    on_each_plane(|dir| {
        changes_by(dir, &users(), |path, privilege, _| {
            let file = Caller::new(0).group(BOB).run(|| open_both(path));
            grant(path, privilege);
            file
        })
    });
}

#[test]
fn what_a_file_gets_while_root_has_it_open_goes_when_a_user_opens_and_changes_it() {
    on_each_plane(|dir| {
        let held = RefCell::new(Vec::new());
        changes_by(dir, &users(), |path, privilege, caller| {
            held.borrow_mut().push(open_both(path));
            grant(path, privilege);
            caller.run(|| open_both(path))
        })
    });
}

#[test]
fn what_a_file_gets_while_a_user_has_it_open_goes_or_stays_when_others_change_it() {
    on_each_plane(|dir| {
        changes_by(dir, &everybody(), |path, privilege, _| {
            let file = Caller::new(40_003).run(|| open_both(path));
            grant(path, privilege);
            file
        })
    });
}

#[test]
fn what_a_file_gets_while_it_is_lent_to_the_kernel_goes_when_root_writes_too() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for plane in ["auto", "passthrough"] {
        let mounted = MountedFs::new(&format!("access=write,allow_other,suid,plane={plane}"));
        let path = plain_file(mounted.path(), "file");
        let file = open_both(&path);
        set_mode(&path, 0o6777);
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(mode(mounted.backing().join("file")), 0o777);
        assert_eq!(mode(&path), 0o777, "what the mount says of it");
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o777, "and of the open file");
    }
}

/// The kernel asks for nothing before such a write: it goes by the mode that it has cached. So only
/// the credentials of the loan can take the bits away, root's writes included.
#[test]
fn what_a_file_gets_in_the_source_while_root_has_it_open_goes_when_a_user_writes() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for plane in PLANES {
        let mounted = MountedFs::new(&format!("access=write,allow_other,suid,plane={plane}"));
        for (who, caller) in users() {
            for privilege in PRIVILEGES {
                let name = format!("{privilege:?} {who}");
                let (source, path) = (mounted.backing().join(&name), mounted.path().join(&name));
                plain_file(mounted.backing(), &name);
                let bare = plain_file(mounted.backing(), "bare");
                let (file, bare_file) = (open_both(&path), open_both(&bare));
                assert_eq!(mode(&path), 0o777);
                for path in [&source, &bare] {
                    grant(path, privilege);
                }
                for file in [&file, &bare_file] {
                    caller.run(|| file.write_all_at(b"x", 0)).unwrap();
                }
                let left = mode(&source) & !mode(&bare);
                assert_eq!(left, 0, "{plane}: {name} leaves {left:o}");
                assert!(xattr(&source, NAME).is_err(), "{plane}: {name}");
            }
        }
    }
}

#[test]
fn truncating_by_name_and_at_open_takes_privileges_away() {
    let by_name: [ByName; 3] = [
        ("truncate", |path| truncate(path, 10)),
        ("grow", |path| truncate(path, 2 * LEN as u64)),
        ("open with O_TRUNC", |path| open(path, OFlags::WRONLY | OFlags::TRUNC).map(drop)),
    ];
    on_each_plane(|dir| {
        let mut outcomes = Vec::new();
        for privilege in PRIVILEGES {
            for (what, change) in by_name {
                for (who, caller) in everybody() {
                    for is_open in [false, true] {
                        let name = format!("{what} {privilege:?} {who} {is_open}");
                        let path = plain_file(dir, &name);
                        let held = is_open.then(|| open_both(&path));
                        grant(&path, privilege);
                        let result = caller.run(|| change(&path));
                        drop(held);
                        outcomes.push(Outcome::of(&path, name, who, result));
                    }
                }
            }
        }
        outcomes
    });
}

#[test]
fn a_new_owner_or_group_takes_privileges_away_from_an_open_file() {
    on_each_plane(|dir| {
        let mut outcomes = Vec::new();
        for privilege in PRIVILEGES {
            let changes = [(Some(BOB), None), (None, Some(BOB)), (Some(ALICE), Some(TEAM))];
            for (user, group) in changes {
                for (who, caller) in everybody() {
                    let name = format!("{privilege:?} {user:?} {group:?} {who}");
                    let path = plain_file(dir, &name);
                    let held = open_both(&path);
                    grant(&path, privilege);
                    let result = caller.run(|| errno(chown(&path, user, group)));
                    drop(held);
                    outcomes.push(Outcome::of(&path, name, who, result));
                }
            }
        }
        outcomes
    });
}

#[test]
fn what_a_stranger_has_written_runs_without_the_owners_rights_from_that_moment() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let program = fs::read("/usr/bin/id").unwrap();
    for plane in PLANES {
        let options = format!("access=write,allow_other,suid,dev,plane={plane}");
        let mounted = MountedFs::new(&options);
        let path = mounted.path().join("id");
        // By another process: a child that a test beside this one starts would hold it open.
        let copied = Command::new("cp").arg("/usr/bin/id").arg(&path).status().unwrap();
        assert!(copied.success());
        set_mode(&path, 0o6777);
        let run = || {
            let output = Command::new(&path).arg("-u").uid(BOB).gid(BOB).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        assert_eq!(run(), "0\n", "{plane}: the mount heeds setuid");
        let written = Command::new("dd")
            .args(["if=/usr/bin/id", "conv=notrunc", "status=none", "bs=4096", "count=1"])
            .arg(format!("of={}", path.display()))
            .uid(BOB)
            .gid(BOB)
            .status()
            .unwrap();
        assert!(written.success());
        assert_eq!(run(), format!("{BOB}\n"), "{plane}");
        assert_content(&path, &program);
    }
}
