//! The harness of the integration tests: scratch directories, real mounts that clean up after
//! themselves, tree snapshots, callers with other credentials, seeded random numbers.
//!
//! A test of POSIX behaviour is a function of a directory. It runs twice: on a bare directory,
//! where it has to pass (a test that is wrong shows itself there), and below a mount.
//!
//! Environment:
//! - `MMAPFS_REQUIRE_FUSE=1` (or `CI=true`): a machine without FUSE fails instead of skipping.
//! - `MMAPFS_TEST_BARE=1`: run on bare directories only.
//! - `MMAPFS_TEST_OPTIONS=OPT,...`: further options for every mount.
//! - `MMAPFS_TEST_PROGRAM=PATH`: the program to test instead of the one just built.
//! - `MMAPFS_TEST_SEED=N`: the seed of the random tests.
//! - `MMAPFS_TEST_LOG=LEVEL`: the log level of the daemons; on failure their whole log is shown.
//! - `MMAPFS_TEST_LONG=1`: all seeds instead of a share.

#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod caller;
mod control;
mod files;
pub mod mapped;
pub mod mounted;
pub mod process;
mod random;
pub mod raw;
mod small;
mod tree;
mod wait;

pub use caller::Caller;
pub use control::{Answer, Control, ask};
pub use files::*;
pub use mounted::{MountedFs, program};
pub use random::Random;
pub use small::{Bound, SmallFs};
pub use tree::{Scope, Tree, snapshot};
pub use wait::{wait_for, wait_until};

use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// The size of a page of this machine.
pub fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// True when only bare directories are to be tested.
pub fn bare_only() -> bool {
    std::env::var("MMAPFS_TEST_BARE").is_ok_and(|value| value == "1")
}

/// True when the long form of a random test is asked for.
pub fn long() -> bool {
    std::env::var("MMAPFS_TEST_LONG").is_ok_and(|value| value == "1")
}

/// Tells whether mounts can be tested; a skip is loud, and a failure where FUSE is required.
pub fn require_fuse() -> bool {
    if bare_only() {
        eprintln!("SKIPPED: MMAPFS_TEST_BARE is set, nothing is mounted");
        return false;
    }
    let reachable = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    require(reachable.is_ok(), "/dev/fuse cannot be opened")
}

/// Tells whether a mount can be tested as root.
pub fn require_root() -> bool {
    require(rustix::process::geteuid().is_root(), "this test needs root")
}

/// Tells whether a program that the test calls is there.
pub fn require_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if !found {
        eprintln!("SKIPPED: the program {name} is not installed");
    }
    found
}

fn require(given: bool, what: &str) -> bool {
    if given {
        return true;
    }
    let required = std::env::var("MMAPFS_REQUIRE_FUSE").is_ok_and(|v| v == "1")
        || std::env::var("CI").is_ok_and(|v| v == "true");
    assert!(!required, "{what}, and MMAPFS_REQUIRE_FUSE or CI says that it must not be missing");
    eprintln!("SKIPPED: {what}");
    false
}

/// A directory of its own, removed at the end, that other users can reach.
pub struct TestDir(tempfile::TempDir);

impl TestDir {
    /// Makes one below the directory for temporary files.
    pub fn new() -> TestDir {
        TestDir::within(&std::env::temp_dir())
    }

    /// Makes one in a directory.
    pub fn within(place: &Path) -> TestDir {
        let dir = tempfile::Builder::new().prefix("mmapfs-test-").tempdir_in(place).unwrap();
        open_to_all(dir.path());
        TestDir(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a directory in it.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    }
}

/// Gives everybody the right to read and enter a directory.
pub fn open_to_all(dir: &Path) {
    set_mode(dir, 0o755);
}

/// Runs `test` on a bare directory and below a mount that is made with `access=write`.
pub fn on_both(test: impl Fn(&Path)) {
    same_on_both(test);
}

/// As [`on_both`]; what `test` returns has to be the same on both.
pub fn same_on_both<T: PartialEq + Debug>(test: impl Fn(&Path) -> T) {
    same_on_both_with("access=write", test);
}

/// As [`same_on_both`], with the mount options given.
///
/// Afterwards the tree seen through the mount has to be the backing tree, in every attribute.
pub fn same_on_both_with<T: PartialEq + Debug>(options: &str, test: impl Fn(&Path) -> T) {
    let bare = TestDir::new();
    eprintln!("-- on a bare directory");
    let expected = test(bare.path());
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new(options);
    eprintln!("-- below a mount with {options}");
    let actual = test(mounted.path());
    assert_same_as_bare("the mount", &actual, &expected);
    snapshot(mounted.path()).assert_same(&snapshot(mounted.backing()), Scope::Everything);
}

/// The planes that can be asked for.
pub const PLANES: [&str; 3] = ["auto", "mapped", "passthrough"];

/// As [`same_on_both_with`] on each plane, as root: callers of all users may come.
pub fn same_on_each_plane<T: PartialEq + Debug>(test: impl Fn(&Path) -> T) {
    if require_root() {
        for plane in PLANES {
            let options = format!("access=write,allow_other,suid,dev,plane={plane}");
            same_on_both_with(&options, &test);
        }
    }
}

/// Runs `test` as root on a filesystem that `make` makes, and on each plane on a mount of another
/// one; what it returns has to be the same. Needs FUSE.
pub fn same_over<T: PartialEq + Debug>(make: impl Fn() -> SmallFs, test: impl Fn(&Path) -> T) {
    same_over_on(&PLANES, make, test);
}

/// As [`same_over`], on these planes alone.
pub fn same_over_on<T: PartialEq + Debug>(
    planes: &[&str],
    make: impl Fn() -> SmallFs,
    test: impl Fn(&Path) -> T,
) {
    if !(require_fuse() && require_root()) {
        return;
    }
    let bare = make();
    let expected = test(bare.path());
    for plane in planes {
        let source = make();
        let options = format!("access=write,allow_other,suid,dev,plane={plane}");
        let mounted = MountedFs::over(source.path(), &options);
        eprintln!("-- below a mount with {options}");
        let actual = test(mounted.path());
        assert_same_as_bare(&format!("plane={plane}"), &actual, &expected);
        // What the filesystem does by itself, such as copying up, is seen within the timeouts.
        wait_for("the mount to show its source", || {
            let (seen, there) = (snapshot(mounted.path()), snapshot(source.path()));
            seen.differences(&there, Scope::Everything).is_empty()
        });
    }
}

/// Fails when a mount, `what`, does not give what the bare filesystem gives; shows the lines that
/// differ.
#[track_caller]
pub fn assert_same_as_bare<T: PartialEq + Debug>(what: &str, actual: &T, expected: &T) {
    if actual != expected {
        let lines = lines_that_differ(actual, expected);
        panic!("{what} does not do what the bare filesystem does:\n{lines}");
    }
}

/// The lines in which two values print differently.
fn lines_that_differ(actual: &impl Debug, expected: &impl Debug) -> String {
    let (actual, expected) = (format!("{actual:#?}"), format!("{expected:#?}"));
    let mut lines = Vec::new();
    for (number, (left, right)) in actual.lines().zip(expected.lines()).enumerate() {
        if left != right {
            lines.push(format!("line {number}: mount {} bare {}", left.trim(), right.trim()));
        }
    }
    let counts = (actual.lines().count(), expected.lines().count());
    if counts.0 != counts.1 {
        lines
            .push(format!("the mount's value has {} lines, the bare one's {}", counts.0, counts.1));
    }
    lines.join("\n")
}
