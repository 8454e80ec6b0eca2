//! Many scratches of one base, and large directories.

use std::fs;
use std::os::unix::fs::FileExt;

use super::base;
use super::common::*;
use super::kept::Kept;

/// Resident memory of a process, in KiB.
fn memory(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_scratches_of_one_base_each_have_their_own_changes() {
    if !require_fuse() {
        return;
    }
    let dir = TestDir::new();
    let base = dir.directory("base");
    for number in 0..50 {
        fs::write(base.join(format!("{number}")), pattern(100_000 + number)).unwrap();
    }
    base::set_access_times(&base);
    let before = base::state(&base);
    let (run, state) = (dir.directory("run"), dir.directory("state"));
    let places = [("MMAPFS_RUN_DIR", run.as_path()), ("MMAPFS_STATE_DIR", state.as_path())];
    let count = if long() { 100 } else { 30 };
    let options = "access=copy,threads=1,copy_up=0";
    let mounts: Vec<MountedFs> =
        (0..count).map(|_| MountedFs::over_with(&base, options, &places)).collect();
    for (number, mounted) in mounts.iter().enumerate() {
        let at = |name: &str| mounted.path().join(name);
        let name = format!("{}", number % 50);
        create(at(&name)).write_all_at(format!("mount {number}").as_bytes(), 50_000).unwrap();
        fs::write(at("own"), format!("own of {number}")).unwrap();
        fs::remove_file(at(&format!("{}", (number + 1) % 50))).unwrap();
    }
    for (number, mounted) in mounts.iter().enumerate() {
        let at = |name: &str| mounted.path().join(name);
        let (mine, gone) = (number % 50, (number + 1) % 50);
        let text = format!("mount {number}");
        assert_content(at("own"), format!("own of {number}").as_bytes());
        assert_eq!(names(mounted.path()).len(), 50);
        for other in (0..50).filter(|other| *other != gone) {
            let mut expected = pattern(100_000 + other);
            if other == mine {
                expected[50_000..50_000 + text.len()].copy_from_slice(text.as_bytes());
            }
            assert_content(at(&format!("{other}")), &expected);
        }
        assert!(!at(&format!("{gone}")).exists());
    }
    let each: Vec<u64> = mounts.iter().map(|mounted| memory(mounted.pid(), "VmRSS")).collect();
    let (sum, most) = (each.iter().sum::<u64>(), each.iter().max().unwrap());
    eprintln!("{count} scratches: {sum} KiB resident, at most {most} KiB each");
    assert!(*most < 64 << 10, "{most} KiB");
    drop(mounts);
    base::assert_untouched(&base, &before);
}

#[test]
fn a_directory_of_a_hundred_thousand_entries_is_merged_as_a_stream() {
    if !require_fuse() {
        return;
    }
    const COUNT: usize = 100_000;
    let kept = Kept::new("threads=1", |base| {
        fs::create_dir(base.join("dir")).unwrap();
        for number in 0..COUNT {
            fs::File::create(base.join(format!("dir/{number}"))).unwrap();
        }
    });
    let list = |expected: usize| {
        let mut dir = rustix::fs::Dir::new(open_directory(kept.at("dir"))).unwrap();
        let mut seen = std::collections::HashSet::with_capacity(COUNT);
        while let Some(entry) = dir.read() {
            let entry = entry.unwrap();
            assert!(seen.insert(entry.file_name().to_owned()), "{:?} twice", entry.file_name());
        }
        assert_eq!(seen.len(), expected + 2);
        for name in [c"changed", c"0", c"77777"] {
            assert_eq!(seen.contains(name), kept.at("dir").join(name.to_str().unwrap()).exists());
        }
    };
    list(COUNT);
    let before = memory(kept.mounted().pid(), "VmHWM");
    fs::write(kept.at("dir/changed"), b"new").unwrap();
    fs::remove_file(kept.at("dir/77777")).unwrap();
    set_mode(kept.at("dir/5"), 0o600);
    let system_calls = calls_while(kept.mounted().pid(), || list(COUNT));
    let after = memory(kept.mounted().pid(), "VmHWM");
    eprintln!("listing {COUNT}: {before} KiB, then {after} KiB; {system_calls:?}");
    assert!(after < 200 << 10, "{after} KiB");
    assert!(after - before < 8 << 10, "{before} KiB became {after} KiB");
}

/// Bytes that a process reads by system calls while `calls` are made, as a measure of its work.
fn calls_while(pid: u32, calls: impl FnOnce()) -> u64 {
    let count = || {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        let line = io.lines().find(|line| line.starts_with("syscr")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = count();
    calls();
    count() - before
}
