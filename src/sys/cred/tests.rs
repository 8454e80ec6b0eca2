use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use super::*;

const UID: u32 = 12345;
const GID: u32 = 23456;
const GROUP: u32 = 34567;

fn caller() -> Caller {
    Caller { uid: UID, gid: GID, pid: std::process::id() }
}

/// False, said aloud, where this process may not act as somebody else.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root()
        && has_capability(6) // CAP_SETGID
        && has_capability(7); // CAP_SETUID
    if !root {
        eprintln!("SKIPPED: acting as somebody else needs root");
    }
    root
}

/// All that `AsCaller` changes, of this thread.
fn credentials() -> (u32, u32, CapabilitySets, Vec<Gid>) {
    let capabilities = rustix::thread::capabilities(None).unwrap();
    (fs_user(), fs_group(), capabilities, rustix::process::getgroups().unwrap())
}

fn create(path: &Path) -> (u32, u32) {
    let file = std::fs::File::create_new(path).unwrap();
    let stat = file.metadata().unwrap();
    (stat.uid(), stat.gid())
}

/// A process that is in GROUP.
struct Member(Child);

impl Member {
    fn start() -> Member {
        let mut command = Command::new("sleep");
        command.arg("60");
        // SAFETY: the closure only makes a system call, in the child alone.
        unsafe { command.pre_exec(|| Ok(set_groups(&[GROUP, GROUP + 1])?)) };
        Member(command.spawn().unwrap())
    }

    fn caller(&self) -> Caller {
        Caller { pid: self.0.id(), ..caller() }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_is_created_belongs_to_the_caller_and_later_files_to_us() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap(); // Mode 0700, root's: the kernel has checked already.
    let before = credentials();
    {
        let _as_caller = AsCaller::enter(&caller(), false).unwrap().unwrap();
        assert_eq!((fs_user(), fs_group()), (UID, GID));
        assert_eq!(create(&dir.path().join("callers")), (UID, GID));
    }
    assert_eq!(credentials(), before);
    assert_eq!(create(&dir.path().join("ours")), (before.0, before.1));
}

#[test]
fn rights_over_files_stay_and_those_of_root_alone_go() {
    if !is_root() {
        return;
    }
    let own = rustix::thread::capabilities(None).unwrap().effective;
    let _as_caller = AsCaller::enter(&caller(), false).unwrap().unwrap();
    let now = rustix::thread::capabilities(None).unwrap();
    assert_eq!(now.effective, own.difference(NOT_TO_MAKE));
    let needed = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::MKNOD;
    assert!(now.effective.contains(needed & own));
}

#[test]
fn root_with_another_group_keeps_its_capabilities() {
    if !is_root() {
        return;
    }
    let before = credentials();
    let root = Caller { uid: 0, ..caller() };
    let as_root = AsCaller::enter(&root, false).unwrap().unwrap();
    assert_eq!(credentials(), (0, GID, before.2, before.3.clone()));
    drop(as_root);
    assert_eq!(credentials(), before);
}

#[test]
fn nobody_lends_a_file_with_the_right_to_keep_its_bits() {
    if !is_root() {
        return;
    }
    let before = credentials();
    let ours = Caller { uid: before.0, gid: before.1, ..caller() };
    for caller in [caller(), ours, Caller { gid: GID, ..ours }] {
        let lending = AsCaller::enter_to_lend(&caller).unwrap().unwrap();
        assert!(!has_capability(4), "CAP_FSETID of {caller:?}");
        assert_eq!((fs_user(), fs_group()), (caller.uid, caller.gid));
        drop(lending);
        assert_eq!(credentials(), before);
    }
}

#[test]
fn a_setgid_bit_goes_unless_the_caller_is_of_the_group() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let setgid = dir.path().join("setgid");
    std::fs::create_dir(&setgid).unwrap();
    std::os::unix::fs::chown(&setgid, Some(0), Some(GROUP)).unwrap();
    std::fs::set_permissions(&setgid, Permissions::from_mode(0o2777)).unwrap();
    let member = Member::start();
    for (with_groups, kept) in [(false, 0), (true, 0o2000)] {
        let path = setgid.join(format!("file-{with_groups}"));
        {
            let _as_caller = AsCaller::enter(&member.caller(), with_groups).unwrap().unwrap();
            assert_eq!(create(&path), (UID, GROUP), "the group is the directory's");
            std::fs::set_permissions(&path, Permissions::from_mode(0o2770)).unwrap();
        }
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, kept | 0o770, "{with_groups}");
    }
}

#[test]
fn groups_are_the_callers_and_then_ours_again() {
    if !is_root() {
        return;
    }
    let before = credentials();
    let member = Member::start();
    let expected = vec![GROUP, GROUP + 1];
    assert_eq!(supplementary_groups(member.0.id()), Some(expected.clone()));
    let as_caller = AsCaller::enter(&member.caller(), true).unwrap().unwrap();
    let groups = rustix::process::getgroups().unwrap();
    assert_eq!(groups.iter().map(|group| group.as_raw()).collect::<Vec<_>>(), expected);
    drop(as_caller);
    assert_eq!(credentials(), before);

    let unseen = Caller { pid: 0, ..caller() };
    let _as_caller = AsCaller::enter(&unseen, true).unwrap().unwrap();
    assert_eq!(rustix::process::getgroups().unwrap(), [], "not told: none");
}

#[test]
fn other_threads_stay_who_they_are() {
    if !is_root() {
        return;
    }
    let before = credentials();
    let (ask, asked) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            asked.recv().unwrap();
            credentials()
        });
        let _as_caller = AsCaller::enter(&caller(), true).unwrap().unwrap();
        ask.send(()).unwrap();
        assert_eq!(other.join().unwrap(), before);
    });
    assert_eq!(credentials(), before);
}

#[test]
fn ids_that_the_kernel_refuses_change_nothing() {
    if !is_root() {
        return;
    }
    let before = credentials();
    for refused in [Caller { uid: u32::MAX, ..caller() }, Caller { gid: u32::MAX, ..caller() }] {
        let entered = AsCaller::enter(&refused, true);
        assert_eq!(entered.err(), Some(Errno::PERM));
        assert_eq!(credentials(), before);
    }
}

#[test]
fn nothing_is_changed_for_ourselves_or_without_the_right() {
    let own = Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
    };
    assert!(AsCaller::enter(&own, true).unwrap().is_none());
    let thread = std::thread::spawn(|| {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective = CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).unwrap();
        assert!(!has_capability(0));
        let before = credentials();
        assert!(AsCaller::enter(&caller(), true).unwrap().is_none());
        assert_eq!(credentials(), before);
    });
    thread.join().unwrap();
}

#[test]
fn a_number_that_is_no_capability_is_not_had() {
    for number in [41, 63, 64, u32::MAX] {
        assert!(!has_capability(number), "{number}");
    }
}

#[test]
fn groups_of_nobody_are_unknown() {
    assert_eq!(supplementary_groups(0), None);
    assert_eq!(supplementary_groups(u32::MAX), None);
    let mut own: Vec<u32> =
        rustix::process::getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
    own.sort_unstable();
    let mut told = supplementary_groups(std::process::id()).unwrap();
    told.sort_unstable();
    assert_eq!(told, own);
}

/// The mode that a new file gets of all bits.
fn mode_of_new(path: &Path) -> u32 {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o777).open(path).unwrap();
    file.metadata().unwrap().mode() & 0o777
}

#[test]
fn a_umask_holds_for_its_thread_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let before = mode_of_new(&path("before"));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            set_thread_umask(0o077).unwrap();
            assert_eq!(mode_of_new(&path("first")), 0o700);
            // A thread that it starts may have another, and leaves this one alone.
            let second = std::thread::scope(|scope| {
                let inner = scope.spawn(|| {
                    set_thread_umask(0o002).unwrap();
                    mode_of_new(&path("second"))
                });
                inner.join().unwrap()
            });
            assert_eq!(second, 0o775);
            assert_eq!(mode_of_new(&path("first again")), 0o700);
            set_thread_umask(0o077).unwrap();
            set_thread_umask(0o7027).unwrap();
            assert_eq!(mode_of_new(&path("first changed")), 0o750);
        });
        first.join().unwrap();
        assert_eq!(mode_of_new(&path("outside")), before);
    });
}
