//! A base file keeps its content for a mounted scratch when it is changed in place: whoever changes
//! it waits until the rest of it is copied.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use super::common::*;
use super::kept::Kept;

/// What a file of the base has: no two lines are alike.
fn lines(count: u32) -> String {
    (1..=count).map(|line| format!("{line}\n")).collect()
}

fn log_of(base: &Path) {
    fs::write(base.join("log"), lines(100_000)).unwrap();
}

/// The member `guard` of `status`.
fn guard(kept: &Kept, member: &str) -> serde_json::Value {
    let status = ask(kept.root(), "json status").json();
    status["scratch"]["guard"][member].clone()
}

/// What a file has that was appended to in the mount.
fn with_line() -> String {
    lines(100_000) + "x\n"
}

fn append_line(path: &Path) {
    File::options().append(true).open(path).unwrap().write_all(b"x\n").unwrap();
}

#[test]
fn a_copy_of_the_changed_file_over_its_base_leaves_both_with_the_change() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for options in ["", "copy_up=0,"] {
        let kept = Kept::new(options, log_of);
        append_line(&kept.at("log"));
        let copied = Command::new("cp").arg(kept.at("log")).arg(kept.base.join("log")).status();
        assert!(copied.unwrap().success());
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
        assert!(fs::read_to_string(kept.base.join("log")).unwrap() == with_line());
    }
}

/// Changes a file in place in a way of its own.
type Change = (&'static str, fn(&Path));

const CHANGES: [Change; 6] = [
    ("truncate(2)", |path| {
        raw::truncate(path, 10).unwrap();
    }),
    ("open(O_TRUNC)", |path| drop(File::create(path).unwrap())),
    ("pwrite(2)", |path| {
        File::options().write(true).open(path).unwrap().write_all_at(b"changed", 50_000).unwrap();
    }),
    ("append", |path| append_line(path)),
    ("O_RDWR, read and write", |path| {
        let mut file = File::options().read(true).write(true).open(path).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(text.replace('1', "2").as_bytes()).unwrap();
    }),
    ("a shared mapping", |path| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let map = mapped::Mapped::shared(&file, 100_000).unwrap();
        map.write(10_000, &[b'm'; 50_000]);
    }),
];

#[test]
fn a_partial_copy_keeps_its_base_whatever_changes_that_in_place() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (how, change) in CHANGES {
        let mut kept = Kept::new("copy_up=0", log_of);
        append_line(&kept.at("log"));
        assert_eq!(guard(&kept, "leased"), 1, "{how}");
        change(&kept.base.join("log"));
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line(), "{how}");
        assert_eq!(guard(&kept, "rescued_files"), 1, "{how}");
        kept.remount();
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line(), "{how}, remounted");
    }
}

#[test]
fn a_file_that_is_open_keeps_its_base_though_nobody_has_written_to_it() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (how, change) in CHANGES {
        let kept = Kept::new("", log_of);
        let mut open = File::open(kept.at("log")).unwrap();
        let mut start = [0; 10];
        open.read_exact(&mut start).unwrap();
        change(&kept.base.join("log"));
        let mut rest = String::new();
        open.read_to_string(&mut rest).unwrap();
        let all = String::from_utf8_lossy(&start).into_owned() + &rest;
        assert!(all == lines(100_000), "{how}");
        assert_eq!(guard(&kept, "unguarded"), serde_json::json!([]), "{how}");
        assert!(fs::read_to_string(kept.at("log")).unwrap() == lines(100_000), "{how}, anew");
    }
}

#[test]
fn a_copy_whose_attributes_alone_were_changed_keeps_its_base() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("", log_of);
    set_mode(kept.at("log"), 0o600);
    fs::write(kept.base.join("log"), "new").unwrap();
    assert!(fs::read_to_string(kept.at("log")).unwrap() == lines(100_000));
    kept.remount();
    assert!(fs::read_to_string(kept.at("log")).unwrap() == lines(100_000));
}

#[test]
fn a_base_that_is_replaced_or_removed_stays_for_the_scratch_until_the_end_and_after() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let changes: [Change; 4] = [
        ("rename over it", |path| {
            fs::write(path.with_extension("new"), "new").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        }),
        ("unlink", |path| fs::remove_file(path).unwrap()),
        ("rename away", |path| fs::rename(path, path.with_extension("old")).unwrap()),
        ("rename away, and another in its place", |path| {
            fs::rename(path, path.with_extension("old")).unwrap();
            fs::write(path, "new").unwrap();
        }),
    ];
    for (how, change) in changes {
        let mut kept = Kept::new("copy_up=0", log_of);
        append_line(&kept.at("log"));
        change(&kept.base.join("log"));
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line(), "{how}");
        kept.remount();
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line(), "{how}, remounted");
    }
}

#[test]
fn a_base_that_is_open_for_writing_is_told_as_unguarded_and_its_change_is_refused() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::new("copy_up=0", log_of);
    let writer = File::options().write(true).open(kept.base.join("log")).unwrap();
    let mut open = File::options().read(true).append(true).open(kept.at("log")).unwrap();
    open.write_all(b"x\n").unwrap();
    assert_eq!(guard(&kept, "unguarded"), serde_json::json!([["log", "open for writing"]]));
    let text = ask(kept.root(), "status").text();
    assert!(text.contains("log: unguarded: open for writing"), "{text}");
    // The program that asks may look who it is.
    let output = mounted::run(&[OsStr::new("status"), kept.root().as_os_str()]);
    let (text, pid) = (String::from_utf8_lossy(&output.stdout).into_owned(), std::process::id());
    assert!(text.contains(&format!("log: unguarded: open for writing by {pid} (")), "{text}");
    assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
    writer.write_all_at(b"changed", 50_000).unwrap();
    open.write_all(b"y\n").unwrap();
    // The page that was written is the scratch's own, and the first one is not.
    let end = lines(100_000).len() as u64;
    assert_eq!(open.read_at(&mut [0; 4096], end).unwrap(), 4);
    let refused = File::open(kept.at("log")).unwrap();
    rustix::fs::fadvise(&refused, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert_eq!(errno(refused.read_at(&mut [0; 4096], 0)), Err(rustix::io::Errno::IO));
    assert_eq!(kept.mounted().log().matches("its base has changed").count(), 1);
    assert_eq!(guard(&kept, "changed"), serde_json::json!([["log", "its base has changed"]]));
}

#[test]
fn a_rest_that_finds_no_room_is_told_and_the_base_goes_on() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::in_memory("copy_up=0,scratch_max=256K", log_of);
    append_line(&kept.at("log"));
    fs::write(kept.base.join("log"), "new").unwrap();
    let failed = guard(&kept, "failed");
    assert_eq!(failed[0][0], "log", "{failed}");
    assert_eq!(fs::read_to_string(kept.base.join("log")).unwrap(), "new");
    let text = fs::read_to_string(kept.at("log"));
    assert_eq!(errno(text), Err(rustix::io::Errno::IO));
}

#[test]
fn a_database_of_the_base_and_that_of_the_scratch_are_both_whole_after_the_base_is_written() {
    if !(require_fuse() && require_root() && require_program("python3")) {
        return;
    }
    let kept = Kept::new("copy_up=0", |base| {
        python(
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                c.execute('create table t (n, text)'); \
                c.executemany('insert into t values (?, ?)', ((n, 'x' * 100) for n in range(9999))); \
                c.commit()",
            &base.join("db"),
        );
    });
    let change = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                  c.execute('update t set text = ? where n % 97 = 0', ('y' * 90,)); \
                  c.execute('delete from t where n % 5 = 0'); c.commit(); \
                  assert c.execute('pragma integrity_check').fetchone() == ('ok',)";
    python(change, &kept.at("db"));
    python(change, &kept.base.join("db"));
    let count = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                 assert c.execute('pragma integrity_check').fetchone() == ('ok',); \
                 assert c.execute('select count(*) from t').fetchone() == (7999,)";
    python(count, &kept.at("db"));
    python(count, &kept.base.join("db"));
}

#[track_caller]
fn python(program: &str, file: &Path) {
    let output = Command::new("python3").args(["-c", program]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn many_bases_are_changed_one_after_the_other_and_each_waits_for_its_own_copy() {
    if !(require_fuse() && require_root()) {
        return;
    }
    const FILES: u32 = 100;
    let kept = Kept::new("copy_up=0", |base| {
        (0..FILES).for_each(|n| fs::write(base.join(n.to_string()), lines(3000)).unwrap());
    });
    for n in 0..FILES {
        append_line(&kept.at(&n.to_string()));
    }
    assert_eq!(guard(&kept, "leased"), FILES);
    for n in 0..FILES {
        fs::write(kept.base.join(n.to_string()), "new").unwrap();
    }
    for n in 0..FILES {
        assert_eq!(fs::read_to_string(kept.at(&n.to_string())).unwrap(), lines(3000) + "x\n");
    }
    assert_eq!(guard(&kept, "rescued_files"), FILES);
}

#[test]
fn bases_of_files_that_nobody_has_open_are_given_up_where_descriptors_are_short() {
    if !(require_fuse() && require_root()) {
        return;
    }
    const FILES: usize = 100;
    let kept = Kept::new("copy_up=0", |base| {
        (0..3 * FILES).for_each(|n| fs::write(base.join(n.to_string()), lines(3000)).unwrap());
    });
    for n in 0..FILES {
        append_line(&kept.at(&n.to_string()));
    }
    assert_eq!(guard(&kept, "leased"), FILES);
    let used = ask(kept.root(), "json status").json()["memory"]["descriptors"].as_u64().unwrap();
    let pid = rustix::process::Pid::from_raw(kept.mounted().pid() as i32);
    let few = rustix::process::Rlimit { current: Some(used + 10), maximum: Some(used + 10) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, few).unwrap();
    let open = |n: usize| File::open(kept.at(&n.to_string())).unwrap();
    let files: Vec<File> = (FILES..FILES + 150).map(open).collect();
    for file in files {
        assert!(std::io::read_to_string(file).unwrap() == lines(3000));
    }
    for n in 0..FILES {
        assert!(fs::read_to_string(kept.at(&n.to_string())).unwrap() == lines(3000) + "x\n");
    }
}

#[test]
fn a_base_whose_times_are_set_keeps_its_pages() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::new("copy_up=0", log_of);
    append_line(&kept.at("log"));
    for seconds in [1, 1_000_000_000] {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        File::open(kept.base.join("log")).unwrap().set_modified(time).unwrap();
        let file = File::open(kept.at("log")).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
    }
    // The lease is given back with the times that the base has by then.
    append_line(&kept.base.join("log"));
    assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
    assert_eq!(guard(&kept, "rescued_files"), 1);
}

#[test]
fn a_base_that_changes_behind_a_lease_that_binds_not_everybody_is_refused() {
    if !(require_fuse() && require_root()) {
        return;
    }
    // The base is a mount itself, whose files are changed behind it.
    let source = TestDir::new();
    fs::write(source.path().join("log"), pattern(20_000)).unwrap();
    let middle = MountedFs::over(source.path(), "access=write");
    let mounted = MountedFs::over(middle.path(), "access=copy,copy_up=0");
    let at = mounted.path().join("log");
    File::options().write(true).open(&at).unwrap().write_all_at(&vec![b'w'; 4096], 4096).unwrap();
    let page = |page: u64| {
        let mut bytes = vec![0; 4096];
        let file = File::open(&at).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        errno(file.read_exact_at(&mut bytes, page * 4096)).map(|()| bytes)
    };
    assert_bytes(&page(0).unwrap(), &pattern(20_000)[..4096]);
    fs::write(source.path().join("log"), vec![b'!'; 20_000]).unwrap();
    wait_for("the change to be seen", || fs::read(middle.path().join("log")).unwrap()[0] == b'!');
    wait_for("the pages of the base to be refused", || page(0) == Err(Errno::IO));
    assert_bytes(&page(1).unwrap(), &[b'w'; 4096]);
    mounted.unmount();
    middle.unmount();
}

#[test]
fn times_of_a_base_that_were_set_under_its_lease_are_no_change_after_a_remount() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("copy_up=0", log_of);
    append_line(&kept.at("log"));
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(7);
    File::open(kept.base.join("log")).unwrap().set_modified(time).unwrap();
    set_mode(kept.base.join("log"), 0o640);
    for _ in 0..2 {
        kept.remount();
        assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
        let status = ask(kept.root(), "json status").json();
        assert_eq!(status["scratch"]["guard"]["changed"], serde_json::json!([]), "{status}");
        assert_eq!(guard(&kept, "leased"), 1);
    }
    // Without a lease the same is a change.
    kept.unmount();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(8);
    File::open(kept.base.join("log")).unwrap().set_modified(time).unwrap();
    kept.mount();
    let status = ask(kept.root(), "json status").json();
    let changed = serde_json::json!([["log", "its base has changed"]]);
    assert_eq!(status["scratch"]["guard"]["changed"], changed);
}

#[test]
fn a_rest_that_fits_is_copied_however_small_the_bound_is() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = Kept::in_memory("copy_up=0,scratch_max=4M", log_of);
    append_line(&kept.at("log"));
    fs::write(kept.base.join("log"), "new").unwrap();
    assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
    let place = TestDir::new();
    let counted = format!("copy_up=0,scratch={},scratch_max=4M", place.path().join("s").display());
    let kept = Kept::in_memory(&counted, log_of);
    append_line(&kept.at("log"));
    fs::write(kept.base.join("log"), "new").unwrap();
    assert!(fs::read_to_string(kept.at("log")).unwrap() == with_line());
}

#[test]
fn a_small_file_that_is_written_all_the_time_is_copied_as_it_is() {
    use std::sync::atomic::{AtomicBool, Ordering};
    if !(require_fuse() && require_root()) {
        return;
    }
    const FILES: u32 = 40;
    let kept = Kept::new("", |base| {
        (0..FILES).for_each(|n| fs::write(base.join(n.to_string()), lines(10_000)).unwrap());
    });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let append = |n: u32| File::options().append(true).open(kept.base.join(n.to_string()));
            let mut logs: Vec<File> = (0..FILES).map(|n| append(n).unwrap()).collect();
            while !over.load(Ordering::Relaxed) {
                logs.iter_mut().for_each(|log| log.write_all(b".").unwrap());
            }
        });
        let open = |n: u32| File::options().append(true).open(kept.at(&n.to_string()));
        let failed: Vec<_> = (0..FILES).filter_map(|n| open(n).err()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(failed.is_empty(), "{failed:?}");
    });
    for n in 0..FILES {
        let text = fs::read_to_string(kept.at(&n.to_string())).unwrap();
        assert!(text.starts_with(&lines(10_000)), "{n}: {} bytes", text.len());
    }
}
