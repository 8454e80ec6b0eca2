//! Random operations on the mount and on a plain directory: results, errnos and trees are the same.
//!
//! A failing sequence is shrunk before it is shown. The usual run takes a few seeds;
//! `MMAPFS_TEST_LONG=1` takes 200 sequences of 2,000 operations, and `MMAPFS_TEST_SEED=N` the one
//! sequence of that seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
// The model test of scratch mounts uses these, too, and more of them.
#[allow(dead_code)]
mod operation;
#[allow(dead_code)]
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use operation::{Call, Operation};
use world::World;

/// How often a failing sequence is tried again, to make it shorter.
const SHRINKS: usize = 400;

/// Where sequences run: on a mount, and beside it on a plain directory.
struct Stage {
    mounted: MountedFs,
    plain: TestDir,
    runs: std::cell::Cell<usize>,
}

/// What went wrong, and after how many operations.
struct Difference {
    operations: usize,
    text: String,
}

impl Stage {
    fn new(options: &str) -> Stage {
        let options = match rustix::process::geteuid().is_root() {
            true => format!("{options},allow_other,suid,dev"),
            false => options.to_owned(),
        };
        Stage { mounted: MountedFs::new(&options), plain: TestDir::new(), runs: 0.into() }
    }

    /// Whether the kernel moves the bytes of files itself.
    fn is_passed_through(&self) -> bool {
        let path = self.mounted.path().join("probe");
        let open = std::fs::File::create(&path).unwrap();
        let status = ask(self.mounted.path(), "json status").json();
        drop(open);
        std::fs::remove_file(path).unwrap();
        status["open_files"][0]["plane"] == "passthrough"
    }

    /// Makes a pair of fresh directories, everybody's to write in.
    fn directories(&self) -> (PathBuf, PathBuf, PathBuf) {
        self.runs.set(self.runs.get() + 1);
        let name = format!("{}", self.runs.get());
        let dirs = (self.mounted.path().join(&name), self.plain.path().join(&name));
        for dir in [&dirs.0, &dirs.1] {
            std::fs::create_dir(dir).unwrap();
            set_mode(dir, 0o777);
        }
        (dirs.0, dirs.1, self.mounted.backing().join(&name))
    }

    /// Runs a sequence on both, and compares everything there is to compare.
    fn run(&self, operations: &[Operation]) -> Option<Difference> {
        let (mount, plain, backing) = self.directories();
        let (mut left, mut right) = (World::new(&mount), World::new(&plain));
        for (index, operation) in operations.iter().enumerate() {
            let (actual, expected) = (left.apply(operation), right.apply(operation));
            if actual != expected {
                let text = format!("the mount gives {actual}, the plain directory {expected}");
                return Some(Difference { operations: index + 1, text });
            }
        }
        left.sync();
        let open = left.compare_open_files(&right);
        let trees = [
            ("mount and plain directory", mount.as_path(), plain.as_path(), Scope::History),
            ("mount and backing directory", mount.as_path(), backing.as_path(), Scope::Everything),
        ];
        let mut lines: Vec<String> = open.into_iter().collect();
        for (what, one, two, scope) in trees {
            let differences = snapshot(one).differences(&snapshot(two), scope);
            lines.extend(differences.into_iter().map(|line| format!("{what}: {line}")));
        }
        drop((left, right));
        self.remove(&mount, &plain);
        let text = lines.join("\n");
        (!text.is_empty()).then_some(Difference { operations: operations.len(), text })
    }

    fn remove(&self, mount: &Path, plain: &Path) {
        for dir in [mount, plain] {
            // A user needs rights on a directory to empty it.
            let status = Command::new("chmod").args(["-R", "u+rwx"]).arg(dir).status().unwrap();
            assert!(status.success(), "{}", dir.display());
            std::fs::remove_dir_all(dir).unwrap();
        }
    }

    /// Leaves out what the failure does not need, in ever smaller pieces.
    fn shrink(&self, operations: &[Operation]) -> Vec<Operation> {
        let mut shortest = operations.to_vec();
        let mut piece = shortest.len() / 2;
        let mut left = SHRINKS;
        while piece > 0 && left > 0 {
            let mut start = 0;
            while start < shortest.len() && left > 0 {
                left -= 1;
                let end = (start + piece).min(shortest.len());
                let mut shorter = shortest.clone();
                shorter.drain(start..end);
                match self.run(&shorter) {
                    Some(difference) => {
                        shorter.truncate(difference.operations);
                        shortest = shorter;
                    }
                    None => start = end,
                }
            }
            piece /= 2;
        }
        shortest
    }

    fn check(&self, seed: u64, count: usize) {
        let mut random = Random::new(seed);
        let mut operations: Vec<Operation> =
            (0..count).map(|_| Operation::random(&mut random)).collect();
        operations.iter_mut().for_each(Operation::leave_empty_chown_of_root_out);
        if self.is_passed_through() {
            operations.iter_mut().for_each(Operation::leave_set_id_out);
        }
        let Some(difference) = self.run(&operations) else { return };
        operations.truncate(difference.operations);
        let shortest = self.shrink(&operations);
        let last = self.run(&shortest);
        let text = last.map_or_else(
            || format!("{} (once; not seen again)", difference.text),
            |difference| difference.text,
        );
        let steps: Vec<String> =
            shortest.iter().enumerate().map(|(at, step)| format!("{at:3} {step:?}")).collect();
        panic!("MMAPFS_TEST_SEED={seed}\n{}\n{text}", steps.join("\n"));
    }
}

fn random_operations_agree(options: &str, salt: u64) {
    if !require_fuse() {
        return;
    }
    let stage = Stage::new(options);
    if let Ok(seed) = std::env::var("MMAPFS_TEST_SEED") {
        return stage.check(seed.parse().expect("a number"), 2000);
    }
    let (seeds, operations) = if long() { (50, 2000) } else { (4, 700) };
    let mut random = Random::from_environment();
    for _ in 0..seeds {
        let seed = random.next() ^ salt;
        eprintln!("MMAPFS_TEST_SEED={seed}");
        stage.check(seed, operations);
    }
}

#[test]
fn random_operations_agree_with_a_plain_directory() {
    random_operations_agree("access=write", 1);
}

#[test]
fn random_operations_agree_where_the_daemon_moves_the_bytes() {
    random_operations_agree("access=write,plane=mapped", 5);
}

#[test]
fn random_operations_agree_when_nothing_is_trusted_for_any_time() {
    random_operations_agree("access=write,attr_timeout=0,entry_timeout=0", 2);
}

#[test]
fn random_operations_agree_when_everything_is_trusted_for_long() {
    let options = "access=write,attr_timeout=1000,entry_timeout=1000,negative_timeout=1000";
    random_operations_agree(options, 3);
}

#[test]
fn random_operations_agree_when_only_a_few_mappings_may_exist() {
    random_operations_agree("access=write,max_mappings=2,threads=1", 4);
}

/// Errors that no sequence of calls gives on a plain directory: EIO, ENOMEM, EFAULT, ECONNABORTED,
/// ENOTCONN.
const NEVER: [i32; 5] = [5, 12, 14, 103, 107];
/// ESTALE: the kernel itself gives it while a directory that was moved below is being moved in its
/// own tree (`d_splice_alias`), and only then.
const STALE: i32 = 116;

/// Makes random calls and looks for errors that must not be.
fn make_calls(root: &Path, never: &[i32], seed: u64, count: usize) {
    let mut random = Random::new(seed);
    let mut world = World::new(root);
    for _ in 0..count {
        let operation = Operation::random(&mut random);
        // A mapping of a file that another thread cuts would end this process.
        if matches!(operation.call, Call::MapRead { .. } | Call::MapWrite { .. }) {
            continue;
        }
        let result = world.apply(&operation);
        let is_wrong = |code: &i32| result.contains(&format!("code: {code},"));
        assert!(!never.iter().any(is_wrong), "{operation:?}: {result}");
    }
}

/// Lets several threads make calls in one directory, and others in the backing directory itself.
fn calls_by_many_threads(options: &str, on_the_mount: usize, below: usize) {
    if !require_fuse() {
        return;
    }
    let mut stage = Stage::new(options);
    let (mount, _, backing) = stage.directories();
    let mut random = Random::from_environment();
    let count = if long() { 20_000 } else { 2000 };
    let mut never = NEVER.to_vec();
    if below == 0 {
        never.push(STALE);
    }
    std::thread::scope(|scope| {
        for thread in 0..on_the_mount + below {
            let (seed, root) =
                (random.next(), if thread < on_the_mount { &mount } else { &backing });
            let never = &never;
            scope.spawn(move || make_calls(root, never, seed, count));
        }
    });
    stage.mounted.assert_alive();
    let scope = if below == 0 { Scope::Everything } else { Scope::ButInodes };
    let settled = || {
        let differences = snapshot(&mount).differences(&snapshot(&backing), scope);
        if !differences.is_empty() {
            eprintln!("{}", differences.join("\n"));
        }
        differences.is_empty()
    };
    // What was changed below is seen within the timeouts.
    wait_for("the mount to show the backing tree", settled);
}

#[test]
fn calls_by_many_threads_leave_one_tree() {
    calls_by_many_threads("access=write", 4, 0);
}

#[test]
fn calls_on_both_sides_leave_one_tree() {
    calls_by_many_threads("access=write,attr_timeout=0,entry_timeout=0", 3, 2);
}
