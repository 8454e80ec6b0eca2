//! The crate as a library: mounts that this very process serves, and a client of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{TestDir, require_fuse, wait_for};
use mmapfs::{Access, Advice, Client, ErrorKind, FlushMode, Mount, MountBuilder};

/// A source, a mount point, and a directory for what else is needed.
struct Place {
    dir: TestDir,
    source: PathBuf,
    mnt: PathBuf,
}

/// A place to mount at; `None` where nothing can be mounted.
fn place() -> Option<Place> {
    require_fuse().then(|| {
        let dir = TestDir::new();
        let (source, mnt) = (dir.directory("source"), dir.directory("mnt"));
        Place { dir, source, mnt }
    })
}

impl Place {
    fn builder(&self) -> MountBuilder {
        Mount::builder(&self.source)
    }

    fn mount(&self) -> Mount {
        self.builder().spawn(&self.mnt).unwrap()
    }
}

fn is_mounted(mountpoint: &Path) -> bool {
    common::mounted::is_mounted(mountpoint)
}

/// The names of this process's threads.
fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(name).map(|name| name.trim_end().to_owned()).collect()
}

#[test]
fn a_mount_by_the_builder_reads_and_writes_the_source() {
    let Some(place) = place() else { return };
    fs::write(place.source.join("there"), "before").unwrap();
    let mount = place.mount();
    assert_eq!(mount.mountpoint(), place.mnt);
    assert_eq!(fs::read_to_string(place.mnt.join("there")).unwrap(), "before");
    fs::write(place.mnt.join("new"), "by the mount").unwrap();
    mount.unmount().unwrap();
    assert!(!is_mounted(&place.mnt));
    assert_eq!(fs::read_to_string(place.source.join("new")).unwrap(), "by the mount");
}

#[test]
fn a_scratch_keeps_what_is_written_and_the_base_stays() {
    let Some(place) = place() else { return };
    fs::write(place.source.join("file"), "base").unwrap();
    let scratch = place.dir.path().join("scratch");
    let builder = place.builder().access(Access::Copy).scratch(&scratch);
    let mount = builder.clone().spawn(&place.mnt).unwrap();
    fs::write(place.mnt.join("file"), "scratch").unwrap();
    let busy = builder.clone().spawn(place.dir.directory("second")).unwrap_err();
    assert!(busy.to_string().contains("the scratch is in use"), "{busy}");
    mount.unmount().unwrap();
    assert_eq!(fs::read_to_string(place.source.join("file")).unwrap(), "base");
    // The lock was given back with the mount.
    let again = builder.spawn(&place.mnt).unwrap();
    assert_eq!(fs::read_to_string(place.mnt.join("file")).unwrap(), "scratch");
    drop(again);
}

#[test]
fn a_mount_that_is_dropped_is_gone_with_its_threads() {
    let Some(place) = place() else { return };
    let own = ["fuser-bg", "serve", "expire", "invalidate", "watch", "inval", "guard"];
    if std::env::var_os("MMAPFS_LIBRARY_ALONE").is_none() {
        // The threads of the process are those of this test alone.
        let program = std::env::current_exe().unwrap();
        let test = "a_mount_that_is_dropped_is_gone_with_its_threads";
        let alone = std::process::Command::new(program)
            .args(["--exact", test, "--nocapture"])
            .env("MMAPFS_LIBRARY_ALONE", "1")
            .output()
            .unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
        return;
    }
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for access in [Access::Write, Access::Copy] {
        let mount = place.builder().access(access).spawn(&place.mnt).unwrap();
        fs::write(place.mnt.join("file"), "data").unwrap();
        assert!(threads().iter().any(|name| own.contains(&&**name)));
        drop(mount);
        assert!(!is_mounted(&place.mnt));
        wait_for("the end of the threads", || !threads().iter().any(|name| own.contains(&&**name)));
        wait_for("the end of the descriptors", || descriptors() == before);
    }
}

#[test]
fn a_mount_in_use_is_not_unmounted_and_is_given_back() {
    let Some(place) = place() else { return };
    fs::write(place.source.join("file"), "data").unwrap();
    let mount = place.mount();
    let file = fs::File::open(place.mnt.join("file")).unwrap();
    let error = mount.unmount().unwrap_err();
    assert_eq!(error.error().kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("in use"), "{error}");
    let mount = error.into_mount();
    assert_eq!(fs::read_to_string(place.mnt.join("file")).unwrap(), "data");
    drop(file);
    // The kernel closes it in its own time.
    let mut left = Some(mount);
    wait_for("the unmount", || match left.take().map(Mount::unmount) {
        Some(Err(error)) => {
            left = Some(error.into_mount());
            false
        }
        _ => true,
    });
    assert!(!is_mounted(&place.mnt));
}

#[test]
fn a_mount_that_is_dropped_in_use_frees_its_mount_point_and_serves_on() {
    use std::io::Read;
    let Some(place) = place() else { return };
    fs::write(place.source.join("file"), vec![7; 1 << 20]).unwrap();
    let mount = place.builder().option("plane=mapped").spawn(&place.mnt).unwrap();
    let mut file = fs::File::open(place.mnt.join("file")).unwrap();
    drop(mount);
    assert!(!is_mounted(&place.mnt));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, vec![7; 1 << 20]);
}

#[test]
fn a_mount_that_somebody_else_unmounts_has_ended_well() {
    let Some(place) = place() else { return };
    let mount = place.mount();
    let program = common::mounted::program();
    let umount = std::process::Command::new(program).arg("umount").arg(&place.mnt).output();
    // The command does not wait for this process, which goes on.
    let umount = umount.unwrap();
    assert!(umount.status.success(), "{}", String::from_utf8_lossy(&umount.stderr));
    mount.wait().unwrap();
}

#[test]
fn two_mounts_of_one_process_go_their_own_ways() {
    let Some(place) = place() else { return };
    fs::write(place.source.join("file"), "base").unwrap();
    let (one, two) = (place.dir.directory("one"), place.dir.directory("two"));
    let builder = place.builder().access(Access::Copy);
    let first = builder.clone().spawn(&one).unwrap();
    let second = builder.spawn(&two).unwrap();
    let whole = place.builder().spawn(&place.mnt).unwrap();
    let write = |mnt: &Path, text: &str| fs::write(mnt.join("file"), text).unwrap();
    let read = |mnt: &Path| fs::read_to_string(mnt.join("file")).unwrap();
    std::thread::scope(|scope| {
        for (mnt, text) in [(&one, "first"), (&two, "second")] {
            scope.spawn(move || (0..50).for_each(|_| write(mnt, text)));
        }
    });
    assert_eq!(
        (read(&one), read(&two), read(&place.mnt)),
        ("first".into(), "second".into(), "base".into())
    );
    let ids =
        [&one, &two].map(|mnt| Client::open(mnt).unwrap().status().unwrap().scratch.unwrap().id);
    assert_ne!(ids[0], ids[1]);
    drop(first);
    assert_eq!(read(&two), "second");
    // The mount of the source itself shows what this process writes past it.
    fs::write(place.source.join("file"), "longer than before").unwrap();
    wait_for("the change", || read(&place.mnt) == "longer than before");
    second.unmount().unwrap();
    whole.unmount().unwrap();
}

#[test]
fn a_direct_change_by_the_same_process_is_seen() {
    let Some(place) = place() else { return };
    fs::write(place.source.join("file"), "one").unwrap();
    let mount = place.builder().option("attr_timeout=3600").spawn(&place.mnt).unwrap();
    if Client::open(&place.mnt).unwrap().status().unwrap().watch.by.is_none() {
        return; // Nothing is watched here, and the hour is meant.
    }
    assert_eq!(fs::read_to_string(place.mnt.join("file")).unwrap(), "one");
    fs::write(place.source.join("file"), "another").unwrap();
    fs::write(place.source.join("new"), "new").unwrap();
    wait_for("the change", || fs::metadata(place.mnt.join("file")).unwrap().len() == 7);
    wait_for("the name", || place.mnt.join("new").exists());
    mount.unmount().unwrap();
}

#[test]
fn the_verbs_of_the_client_have_typed_answers() {
    let Some(place) = place() else { return };
    let mount = place.mount();
    let path = place.mnt.join("file");
    fs::write(&path, vec![1; 1 << 16]).unwrap();
    let page = common::page();

    let client = Client::open(&path).unwrap();
    assert_eq!((client.mountpoint(), client.path()), (&*place.mnt, Path::new("file")));
    let file = client.file().unwrap();
    assert_eq!((file.size, &*file.kind), (1 << 16, "file"));
    let advised = client.advise(Advice::WillNeed, ..page).unwrap();
    assert_eq!((advised.range, advised.pages, &*advised.advice), ([0, page], 1, "willneed"));
    let flushed = client.flush(FlushMode::Sync, page..).unwrap();
    assert_eq!((flushed.range, &*flushed.mode), ([page, 1 << 16], "sync"));
    let locked = client.lock(0..page).unwrap();
    assert_eq!((locked.locked, locked.range), (true, [0, page]));
    assert_eq!(client.file().unwrap().locked_bytes, page);
    assert!(client.maps().unwrap().iter().all(|map| map.path.as_path() == Path::new("file")));
    assert!(!client.unlock(..).unwrap().locked);

    let client = Client::open(&place.mnt).unwrap();
    let status = client.status().unwrap();
    assert_eq!(status.mountpoint.as_path(), place.mnt);
    assert_eq!(status.pid, std::process::id());
    assert_eq!(client.version().unwrap().version, status.version);
    assert_eq!(client.reload().unwrap().rules, 0);
    let json = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<mmapfs::report::StatusReport>(&json).unwrap(), status);
    mount.unmount().unwrap();
}

#[test]
fn errors_of_the_client_say_what_has_failed() {
    let Some(place) = place() else { return };
    let outside = Client::open(&place.source).unwrap_err();
    assert!(outside.to_string().ends_with("it is not in a mount of mmapfs"), "{outside}");
    let mount = place.mount();
    fs::write(place.mnt.join("file"), "data").unwrap();

    let missing = Client::open(place.mnt.join("none")).unwrap().file().unwrap_err();
    assert_eq!(missing.errno(), Some(libc_errno("ENOENT")));
    assert_eq!(missing.subject(), place.mnt.join("none").to_str().unwrap());

    let client = Client::open(place.mnt.join("file")).unwrap();
    let refused = client.advise(Advice::Remove, ..).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NeedsDestroy);
    assert!(refused.reason().contains("destroys"), "{refused}");
    let beyond = client.flush(FlushMode::Sync, 0..1 << 20).unwrap_err();
    assert_eq!(beyond.errno(), Some(libc_errno("ERANGE")));

    // The log is the program's.
    let level = log::max_level();
    let refused = client.set_log_level(log::LevelFilter::Trace).unwrap_err();
    assert_eq!(refused.errno(), Some(libc_errno("ENOTSUP")));
    assert_eq!(log::max_level(), level);
    mount.unmount().unwrap();
}

fn libc_errno(name: &str) -> i32 {
    use rustix::io::Errno;
    match name {
        "ENOENT" => Errno::NOENT,
        "ERANGE" => Errno::RANGE,
        _ => Errno::NOTSUP,
    }
    .raw_os_error()
}

#[test]
fn errors_of_the_builder_say_what_has_failed_and_mount_nothing() {
    let Some(place) = place() else { return };
    let fails = |builder: MountBuilder| {
        let error = builder.spawn(&place.mnt).unwrap_err();
        assert!(!is_mounted(&place.mnt), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        (error.kind(), error.to_string())
    };
    let (kind, text) = fails(place.builder().option("acess=read").option("threads=0"));
    assert_eq!(kind, ErrorKind::Usage);
    assert!(text.starts_with("option `acess=read`: ") && text.contains("`access`"), "{text}");
    for option in ["log=debug", "log_file=log", "debug", "sandbox=off"] {
        let (kind, text) = fails(place.builder().option(option));
        assert_eq!(kind, ErrorKind::Usage);
        assert!(text.starts_with(&format!("option `{option}`: ")), "{text}");
    }
    let scratch = place.dir.path().join("scratch");
    let (kind, text) = fails(place.builder().scratch(scratch));
    assert_eq!(kind, ErrorKind::Usage);
    assert!(text.contains("access=copy"), "{text}");
    let (kind, text) = fails(Mount::builder(place.dir.path().join("none")));
    assert_eq!(kind, ErrorKind::Failed);
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn the_process_keeps_its_signals_limits_and_rights() {
    let Some(place) = place() else { return };
    let kept = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let kept = ["Cap", "NoNewPrivs", "Seccomp:", "SigBlk", "SigIgn"];
        let lines = status.lines().filter(|line| kept.iter().any(|name| line.starts_with(name)));
        let mut kept: Vec<String> = lines.map(str::to_owned).collect();
        kept.push(fs::read_to_string("/proc/self/limits").unwrap());
        kept.push(format!("{:?}", std::env::current_dir().unwrap()));
        kept
    };
    let caught = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    let bus = 1 << (7 - 1);
    let (before, caught_before) = (kept(), caught());
    let mount = place.builder().access(Access::Copy).spawn(&place.mnt).unwrap();
    fs::write(place.mnt.join("file"), "data").unwrap();
    assert_eq!(kept(), before);
    // The handler of SIGBUS is the one exception.
    assert_eq!(caught() & !bus, caught_before & !bus);
    mount.unmount().unwrap();
    assert_eq!(kept(), before);
}
