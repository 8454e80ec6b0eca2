//! Many threads in one scratch: no error that must not be, and one tree.

use super::common::*;
use super::model::{Stage, random_call};
use super::operation::Call;
use super::tidy::assert_tidy;
use super::world::{Directories, World};

/// Errors that no sequence of calls gives on a plain directory: EIO, ENOMEM, EFAULT, ECONNABORTED,
/// ENOTCONN, EXDEV.
const NEVER: [i32; 6] = [5, 12, 14, 103, 107, 18];

fn calls_by_many_threads(options: &str) {
    if !require_fuse() {
        return;
    }
    let stage = Stage::new(options, true);
    let mut run = stage.start();
    let mut random = Random::from_environment();
    let count = if long() { 10_000 } else { 1000 };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (mut random, root) = (Random::new(random.next()), run.root());
            scope.spawn(move || {
                let mut world = World::with(root, Directories::Uncounted);
                for _ in 0..count {
                    let operation = random_call(&mut random);
                    // A mapping of a file that another thread cuts would end this process.
                    if matches!(operation.call, Call::MapRead { .. } | Call::MapWrite { .. }) {
                        continue;
                    }
                    let result = world.apply(&operation);
                    let is_wrong = |code: &i32| result.contains(&format!("code: {code},"));
                    assert!(!NEVER.iter().any(is_wrong), "{operation:?}: {result}");
                }
            });
        }
    });
    run.mounted.as_mut().unwrap().assert_alive();
    let log = run.mounted.as_ref().unwrap().log();
    assert!(!log.contains(" error "), "{log}");
    let before = snapshot(run.root());
    run.mount_again();
    snapshot(run.root()).assert_same(&before, Scope::Remounted);
    drop(run.mounted.take());
    assert_tidy(run.scratch());
    stage.assert_untouched();
}

#[test]
fn calls_by_many_threads_leave_one_tree() {
    calls_by_many_threads("copy_up=0");
}

#[test]
fn calls_by_many_threads_leave_one_tree_where_small_files_are_copied() {
    calls_by_many_threads("copy_up=128K");
}
