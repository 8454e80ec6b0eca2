//! A daemon that is killed at any moment: each call that was finished is in the scratch, the one
//! that was under way is there or not, and nothing else is different.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::common::*;
use super::model::{Run, Stage, random_call};
use super::operation::{Call, Operation};
use super::tidy::untidy;

/// Errors of calls whose daemon has died: ECONNABORTED, ENOTCONN, and what mappings make of it.
const GONE: [&str; 3] = ["code: 103,", "code: 107,", "code: 5,"];

/// Whether a call may be there in part: it is several requests, or bytes.
fn comes_in_parts(call: &Call) -> bool {
    matches!(
        call,
        Call::Write { .. }
            | Call::Truncate { .. }
            | Call::Fallocate { .. }
            | Call::CopyRange { .. }
            | Call::Open { .. }
            | Call::Chown { .. }
            | Call::Chmod { .. }
    )
}

/// What is left of the differences when those of a call in parts are taken away.
fn but_content(differences: Vec<String>) -> Vec<String> {
    let of_parts = [" content ", " size ", " modified ", " mode ", " xattrs "];
    let is_of_parts = |line: &String| of_parts.iter().any(|word| line.contains(word));
    differences.into_iter().filter(|line| !is_of_parts(line)).collect()
}

/// The same without the times of directories into which something was copied up by a call that
/// was not finished: they are put back only after that.
fn but_times(differences: Vec<String>) -> Vec<String> {
    differences.into_iter().filter(|line| !line.contains(": modified ")).collect()
}

/// Makes random calls until the daemon is dead, and mounts again. Tells what is wrong then.
fn kill_once(stage: &Stage, random: &mut Random) -> Vec<String> {
    let mut run: Run = stage.start();
    let mut worlds = run.worlds();
    let calls = random.below(200);
    for _ in 0..calls {
        let operation = quiet(random);
        assert_eq!(worlds.0.apply(&operation), worlds.1.apply(&operation), "{operation:?}");
    }
    let done = AtomicBool::new(false);
    let spins = random.below(3_000_000);
    let mut broken: Option<Operation> = None;
    std::thread::scope(|scope| {
        let (mounted, done) = (run.mounted.as_mut().unwrap(), &done);
        let killer = scope.spawn(move || {
            for _ in 0..spins {
                std::hint::spin_loop();
            }
            mounted.kill();
            done.store(true, Ordering::Release);
        });
        while broken.is_none() {
            let operation = quiet(random);
            let result = worlds.0.apply(&operation);
            let is_gone = GONE.iter().any(|code| result.contains(code));
            if is_gone || done.load(Ordering::Acquire) {
                broken = Some(operation);
                break;
            }
            let expected = worlds.1.apply(&operation);
            if result != expected {
                // It died in between: part of a write, or a name that is not told any more.
                broken = Some(operation);
            }
        }
        killer.join().unwrap();
    });
    worlds.0.close_all();
    let broken = broken.unwrap();
    run.mount_again();
    let before = but_times(run.differences());
    if before.is_empty() {
        drop(worlds);
        drop(run.mounted.take());
        return untidy(run.scratch());
    }
    // Then all of the last call is there, or a part.
    worlds.1.apply(&broken);
    let mut after = but_times(run.differences());
    if comes_in_parts(&broken.call) {
        after = but_content(after);
    }
    if !after.is_empty() {
        after.insert(0, format!("{broken:?}, without it: {before:?}"));
    }
    after
}

/// A call that leaves a trace only where it is finished.
fn quiet(random: &mut Random) -> Operation {
    loop {
        let operation = random_call(random);
        // A mapping whose daemon has died ends this process.
        if !matches!(operation.call, Call::MapRead { .. } | Call::MapWrite { .. }) {
            return operation;
        }
    }
}

fn kill_at_random(options: &str, on_disk: bool) {
    if !require_fuse() {
        return;
    }
    let stage = Stage::new(options, on_disk);
    let mut random = Random::from_environment();
    for round in 0..if long() { 100 } else { 8 } {
        let wrong = kill_once(&stage, &mut random);
        assert!(wrong.is_empty(), "round {round}: {}", wrong.join("\n"));
    }
    stage.assert_untouched();
}

#[test]
fn finished_calls_are_there_after_the_daemon_was_killed() {
    kill_at_random("copy_up=0", true);
}

#[test]
fn finished_calls_are_there_after_the_daemon_of_a_scratch_in_memory_was_killed() {
    kill_at_random("copy_up=128K", false);
}

#[test]
fn files_that_were_removed_and_still_open_give_their_bytes_back_after_a_kill() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let stage = Stage::new("copy_up=0,scratch_max=64M", true);
    let mut run = stage.start();
    let used = |run: &Run| {
        let found = rustix::fs::statvfs(run.root()).unwrap();
        (found.f_blocks - found.f_bfree) * found.f_frsize
    };
    let before = used(&run);
    let file = create(run.root().join("g/d/a"));
    file.write_all_at(&[1; 1 << 20], 0).unwrap();
    let new = create(run.root().join("new"));
    new.write_all_at(&[1; 1 << 20], 0).unwrap();
    for name in ["g/d/a", "new"] {
        std::fs::remove_file(run.root().join(name)).unwrap();
    }
    assert!(used(&run) > before + (2 << 20) - 4096);
    run.mounted.as_mut().unwrap().kill();
    drop((file, new));
    run.mount_again();
    assert!(used(&run) <= before + (64 << 10), "{} and then {}", before, used(&run));
    drop(run.mounted.take());
    assert_eq!(untidy(run.scratch()), [] as [String; 0]);
}

#[test]
fn a_scratch_in_memory_whose_daemon_was_killed_is_listed_and_mounted_again() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let stage = Stage::new("copy_up=0", false);
    let mut run = stage.start();
    create(run.root().join("b")).write_all_at(b"changed", 100_000).unwrap();
    std::fs::write(run.root().join("new"), b"new").unwrap();
    let mountpoint = run.root().display().to_string();
    let listed = |run: &Run| -> serde_json::Value {
        let output = std::process::Command::new(program())
            .args(["scratches", "--json"])
            .env("MMAPFS_RUN_DIR", run.place("run"))
            .env("MMAPFS_STATE_DIR", run.place("state"))
            .output()
            .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["scratches"].as_array().unwrap().len(), 1, "{report}");
        report["scratches"][0].clone()
    };
    let before = listed(&run);
    assert_eq!(before["mounted"], true, "{before}");
    assert_eq!(before["mountpoint"], mountpoint, "{before}");
    run.mounted.as_mut().unwrap().kill();
    let after = listed(&run);
    assert_eq!((&after["mounted"], &after["in_memory"]), (&false.into(), &true.into()), "{after}");
    assert_eq!(after["id"], before["id"]);
    run.mount_again();
    assert_content(run.root().join("new"), b"new");
    assert_bytes(&read_at(&create(run.root().join("b")), 100_000, 7), b"changed");
    assert_eq!(links(run.root().join("c")), 2);
    assert_eq!(listed(&run)["mounted"], true);
    // It is kept from then on, at a clean end as well.
    run.mount_again();
    assert_content(run.root().join("new"), b"new");
}
