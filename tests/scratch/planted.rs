//! Scratches that somebody has changed by hand while they were not mounted, mounted by the program:
//! a few random changes a round.
//!
//! Such a scratch is mounted, or refused in one line. All that is in the mount can be read or is an
//! error; nothing hangs, the daemon serves to the end, the base stays as it is, and no file shows a
//! byte that neither the base nor a client has written there. `MMAPFS_TEST_LONG=1` runs 300 rounds,
//! `MMAPFS_TEST_SEED=N` one.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::base;
use super::common::mounted::{abort, is_mounted, unmount_hard};
use super::common::*;
use damage::Damage;

mod damage;

const PAGE: usize = 4096;

/// Longer than any round takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is in the files: no byte of a base or of a client is anything else.
const WRITTEN: std::ops::RangeInclusive<u8> = b'a'..=b'z';

/// A base, and the scratches of it that are copied and changed in each round.
struct World {
    dir: TestDir,
    before: BTreeMap<PathBuf, String>,
    /// The process of the daemon that was started last.
    daemon: AtomicU32,
}

impl World {
    fn new() -> World {
        let dir = TestDir::new();
        let base = dir.directory("base");
        for name in ["dir/sub/deep", "old", "full", "gone"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        let files =
            ["a", "dir/c", "dir/sub/d", "dir/sub/deep/e", "old/e", "full/f", "full/g", "x", "s"];
        for (index, name) in files.iter().enumerate() {
            let len = if *name == "s" { 100 } else { 40 * PAGE + index * 1000 };
            fs::write(base.join(name), vec![b'a' + index as u8; len]).unwrap();
        }
        fs::hard_link(base.join("x"), base.join("y")).unwrap();
        fs::hard_link(base.join("x"), base.join("dir/z")).unwrap();
        symlink("a", base.join("link")).unwrap();
        fs::write(dir.path().join("victim"), "mine").unwrap();
        for name in ["mnt", "run", "state"] {
            dir.directory(name);
        }
        base::set_access_times(&base);
        let before = base::state(&base);
        World { dir, before, daemon: AtomicU32::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.env("MMAPFS_RUN_DIR", self.path("run"));
        command.env("MMAPFS_STATE_DIR", self.path("state"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Mounts the scratch of this name; where it is refused, the daemon's log and the reason.
    fn mount(&self, scratch: &str) -> Result<Served, String> {
        let options = format!(
            "access=copy,copy_up=0,allow_other,suid,dev,scratch={}",
            self.path(scratch).display()
        );
        let log = File::create(self.path("log")).unwrap();
        let mut daemon = self
            .command()
            .args(["mount", "-f", "-o", &options])
            .args([self.path("base"), self.path("mnt")])
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon.store(daemon.id(), Ordering::Relaxed);
        let point = self.path("mnt");
        let mut ended = None;
        let begun = wait_until(PATIENCE, || {
            ended = daemon.try_wait().unwrap();
            ended.is_some() || is_mounted(&point)
        });
        let Some(status) = ended else {
            assert!(begun, "it is not mounted, and the daemon has not ended");
            return Ok(Served { point, daemon });
        };
        let text = fs::read(self.path("log")).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(status.code(), Some(1), "{text}");
        Err(text)
    }

    /// Runs the program to its end.
    fn run(&self, words: &[&OsStr]) -> Output {
        self.command().args(words).output().unwrap()
    }

    /// Fails when anything outside of the scratch has changed.
    #[track_caller]
    fn assert_untouched(&self) {
        base::assert_untouched(&self.path("base"), &self.before);
        assert_eq!(fs::read(self.path("victim")).unwrap(), b"mine");
    }
}

/// A mount and its daemon, taken down at the end.
struct Served {
    point: PathBuf,
    daemon: Child,
}

impl Served {
    /// Unmounts, and fails when the daemon does not end well.
    #[track_caller]
    fn unmount(mut self) {
        assert!(self.daemon.try_wait().unwrap().is_none(), "the daemon has ended");
        // A child that another test is just starting may hold a descriptor of the mount.
        wait_for("the mount to be let go of", || {
            match rustix::mount::unmount(&self.point, UnmountFlags::empty()) {
                Err(Errno::BUSY) => false,
                unmounted => unmounted.map(|()| true).unwrap(),
            }
        });
        assert!(wait_until(PATIENCE, || self.daemon.try_wait().unwrap().is_some()));
        assert!(self.daemon.wait().unwrap().success());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.daemon.try_wait().is_ok_and(|status| status.is_some()) && !is_mounted(&self.point) {
            return;
        }
        unmount_hard(&self.point);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Makes a scratch with all that there can be in one, through a mount.
fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    let write = |name: &str, offset: usize| {
        let file = File::options().write(true).open(at(name)).unwrap();
        file.write_all_at(b"wwww", offset as u64).unwrap();
        file
    };
    for name in ["a", "dir/c", "dir/sub/d", "dir/sub/deep/e"] {
        write(name, 3 * PAGE + 7);
    }
    write("full/f", 39 * PAGE).sync_all().unwrap();
    write("x", 8 * PAGE);
    set_mode(at("full/g"), 0o640);
    fs::rename(at("dir/sub"), at("moved")).unwrap();
    fs::remove_file(at("old/e")).unwrap();
    fs::remove_dir(at("old")).unwrap();
    fs::remove_dir(at("gone")).unwrap();
    fs::create_dir(at("old")).unwrap();
    fs::write(at("old/born"), b"wwww").unwrap();
    fs::hard_link(at("old/born"), at("also")).unwrap();
    fs::hard_link(at("a"), at("old/a2")).unwrap();
    symlink("../a", at("old/l")).unwrap();
    fs::rename(at("dir/c"), at("dir/renamed")).unwrap();
    let whole = fs::read(at("s")).unwrap();
    fs::write(at("s"), &whole[..50]).unwrap();
}

/// Looks at everything in a mount, and changes what it can.
fn exercise(root: &Path) {
    let mut next = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(dir) = next.pop() {
        assert!(dir.components().count() < 60, "endless: {}", dir.display());
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            // An error may end a listing, and nothing else.
            let Ok(entry) = entry else { break };
            seen += 1;
            assert!(seen < 20_000, "endless: {}", dir.display());
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let _ = xattr_names(&path);
            if meta.is_symlink() {
                let _ = fs::read_link(&path);
                continue;
            }
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o755));
            if meta.is_dir() {
                next.push(path);
            } else if meta.is_file() {
                check(&path);
                let file = File::options().write(true).open(&path);
                let middle = (meta.len() / 2).saturating_sub(2);
                if file.and_then(|file| file.write_all_at(b"vvvv", middle)).is_ok() {
                    check(&path);
                }
            }
        }
    }
    // Names go and come as well.
    for name in ["a", "dir", "moved/d", "old", "full/f"] {
        let (from, to) = (root.join(name), root.join("full/new"));
        if fs::rename(&from, &to).is_ok() {
            let _ = fs::rename(&to, &from);
        }
    }
    let _ = fs::remove_file(root.join("y"));
    let _ = fs::remove_file(root.join("dir/renamed"));
    let _ = fs::remove_file(root.join("made"));
    let _ = fs::write(root.join("made"), b"mmmm");
}

/// The content of a file is an error, or what somebody wrote.
fn check(path: &Path) {
    let Ok(content) = fs::read(path) else { return };
    let strange = content.iter().position(|byte| !WRITTEN.contains(byte));
    if let Some(at) = strange {
        panic!("{}: byte {at} of {} is {}", path.display(), content.len(), content[at]);
    }
}

/// Copies a good scratch, damages it, and uses it. Returns what was done to it.
fn round(world: &World, good: &str, seed: u64) -> String {
    let scratch = world.path("s");
    let copied = Command::new("cp").arg("-a").arg(world.path(good)).arg(&scratch).status();
    assert!(copied.unwrap().success());
    let mut random = Random::new(seed);
    let count = 1 + random.below(4);
    let in_order = good == "good";
    let mut damage = Damage { world, random, bare: HashSet::new(), alone: count == 1, in_order };
    let mut did = format!("{good}: ");
    for _ in 0..count {
        did += &format!("{}; ", damage.plant());
    }
    if std::env::var_os("MMAPFS_TEST_SEED").is_some() {
        eprintln!("{did}");
    }
    for _ in 0..2 {
        match world.mount("s") {
            Ok(served) => {
                exercise(&served.point);
                served.unmount();
                did += "served; ";
            }
            Err(text) => {
                let (reasons, log): (Vec<&str>, Vec<&str>) =
                    text.lines().partition(|line| line.starts_with("mmapfs: "));
                assert_eq!(reasons.len(), 1, "{text}");
                // Lines of the log begin with the time.
                assert!(log.iter().all(|line| line.starts_with("20")), "{text}");
                did += &format!("{}; ", reasons[0]);
            }
        }
    }
    let listed = world.run(&["scratches".as_ref()]);
    assert!(listed.status.success(), "{listed:?}");
    let removed = world.run(&["scratches".as_ref(), "remove".as_ref(), scratch.as_os_str()]);
    let told = String::from_utf8_lossy(&removed.stderr);
    assert!(matches!(removed.status.code(), Some(0 | 1)), "{removed:?}");
    assert_eq!(told.lines().count() == 1, !removed.status.success(), "{told}");
    if fs::symlink_metadata(&scratch).is_ok() {
        fs::remove_dir_all(&scratch).unwrap();
    }
    did
}

/// A world with two good scratches: one that was left in order, and one whose daemon was killed.
fn good_world() -> World {
    let world = World::new();
    for (name, is_killed) in [("good", false), ("killed", true)] {
        let mut served = world.mount("s").unwrap();
        fill(&served.point);
        if is_killed {
            served.daemon.kill().unwrap();
            served.daemon.wait().unwrap();
            drop(served);
        } else {
            served.unmount();
        }
        fs::rename(world.path("s"), world.path(name)).unwrap();
    }
    world
}

#[test]
fn whatever_is_planted_in_a_scratch_it_is_mounted_and_used_or_refused_in_one_line() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let given = std::env::var("MMAPFS_TEST_SEED").ok();
    let first = Random::from_environment();
    let rounds = match given {
        Some(_) => 1,
        None if long() => 300,
        None => 12,
    };
    let world = Arc::new(good_world());
    for number in 0..rounds {
        let seed = first.seed().wrapping_add(number);
        let (done, ended) = channel();
        let of_round = Arc::clone(&world);
        let thread = std::thread::spawn(move || {
            let good = ["good", "killed"][(seed % 2) as usize];
            let did = round(&of_round, good, seed);
            let _ = done.send(());
            did
        });
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            abort(&world.path("mnt"), world.daemon.load(Ordering::Relaxed));
            panic!("MMAPFS_TEST_SEED={seed} hangs");
        }
        let did = thread.join().unwrap_or_else(|_| panic!("MMAPFS_TEST_SEED={seed} failed"));
        eprintln!("MMAPFS_TEST_SEED={seed} {did}");
        world.assert_untouched();
    }
}
