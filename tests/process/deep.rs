//! Trees that are as deep as clients like: no stack and no descriptor a level.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::Output;
use std::time::Instant;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::*;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes directories in each other, with a file in the lowest.
fn dig(top: &Path, depth: usize, content: &[u8]) {
    let mut dir = OwnedFd::from(File::open(top).unwrap());
    for _ in 0..depth {
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = openat(&dir, "d", DIRECTORY, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = openat(&dir, "file", flags, Mode::RUSR | Mode::WUSR).unwrap();
    File::from(file).write_all_at(content, 0).unwrap();
}

/// The lowest of the directories in each other, and how many there are.
fn lowest(top: &Path) -> (OwnedFd, usize) {
    let (mut dir, mut depth) = (OwnedFd::from(File::open(top).unwrap()), 0);
    loop {
        dir = match openat(&dir, "d", DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => return (dir, depth),
            below => below.unwrap(),
        };
        depth += 1;
    }
}

fn file_in(dir: &OwnedFd, flags: OFlags) -> File {
    openat(dir, "file", flags | OFlags::CLOEXEC, Mode::empty()).unwrap().into()
}

/// A scratch on disk and its base, removed at the end however deep they are.
struct Deep {
    background: Background,
    limit: Vec<&'static OsStr>,
}

impl Deep {
    fn new(descriptors: Option<&'static str>) -> Deep {
        let limit = descriptors.map(|limit| ["prlimit".as_ref(), limit.as_ref()]);
        Deep { background: Background::new(), limit: limit.into_iter().flatten().collect() }
    }

    fn root(&self) -> &Path {
        &self.background.mountpoint
    }

    #[track_caller]
    fn mount(&self) {
        let scratch = self.background.path("scratch");
        let options = format!("access=copy,copy_up=0,scratch={}", scratch.display());
        self.timed("mount", self.background.command(&self.limit, &options));
    }

    /// Runs the program to its end, which is to be a good one.
    #[track_caller]
    fn run(&self, words: &[&OsStr]) -> Output {
        let program = program();
        let mut all = self.limit.iter().copied().chain([program.as_os_str()]);
        let mut command = Command::new(all.next().unwrap());
        command.args(all).args(words).env("MMAPFS_STATE_DIR", self.background.path("state"));
        self.timed(&words[0].to_string_lossy(), command)
    }

    #[track_caller]
    fn timed(&self, what: &str, mut command: Command) -> Output {
        let start = Instant::now();
        let output = command.env("MMAPFS_RUN_DIR", self.background.path("run")).output().unwrap();
        eprintln!("{what}: {:?}", start.elapsed());
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    #[track_caller]
    fn unmount(&self) {
        self.run(&["umount".as_ref(), self.root().as_os_str()]);
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        if is_mounted(self.root()) {
            unmount_hard(self.root());
        }
        for name in ["source", "scratch"] {
            let _ = Command::new("rm").arg("-rf").arg(self.background.path(name)).status();
        }
    }
}

/// What a client and the commands do with a tree of so many levels in the base, and another in the
/// scratch.
fn works_at(depth: usize, descriptors: Option<&'static str>) {
    let deep = Deep::new(descriptors);
    let base = vec![b'b'; 40 * 4096];
    dig(&deep.background.source, depth, &base);
    let others: Vec<String> = (0..80).map(|number| format!("other{number}")).collect();
    for name in &others {
        fs::write(deep.background.source.join(name), name).unwrap();
    }
    deep.mount();
    // They take descriptors of the daemon as well.
    let open: Vec<File> =
        others.iter().map(|name| File::open(deep.root().join(name)).unwrap()).collect();
    let start = Instant::now();
    let (dir, found) = lowest(deep.root());
    assert_eq!(found, depth);
    eprintln!("lookup: {:?}", start.elapsed());
    let start = Instant::now();
    file_in(&dir, OFlags::RDWR).write_all_at(b"client", 5000).unwrap();
    eprintln!("copy-up: {:?}", start.elapsed());
    drop(dir);
    for (file, name) in open.iter().zip(&others) {
        assert_bytes(&read_at(file, 0, name.len()), name.as_bytes());
    }
    drop(open);
    let start = Instant::now();
    fs::create_dir(deep.root().join("new")).unwrap();
    dig(&deep.root().join("new"), depth, b"new");
    eprintln!("dig: {:?}", start.elapsed());
    let start = Instant::now();
    let find = Command::new("find").arg(deep.root()).arg("-name").arg("file").output().unwrap();
    eprintln!("find: {:?}", start.elapsed());
    assert!(find.status.success(), "{}", String::from_utf8_lossy(&find.stderr));
    assert_eq!(
        find.stdout.iter().filter(|byte| **byte == b'\n').count(),
        3,
        "that of the base is one"
    );
    deep.unmount();
    let start = Instant::now();
    deep.mount();
    eprintln!("mount: {:?}", start.elapsed());
    let (dir, found) = lowest(deep.root());
    assert_eq!(found, depth);
    let mut expected = base;
    expected[5000..5006].copy_from_slice(b"client");
    let file = file_in(&dir, OFlags::RDONLY);
    assert_bytes(&read_at(&file, 0, expected.len()), &expected);
    drop((file, dir));
    let (dir, found) = lowest(&deep.root().join("new"));
    assert_eq!(found, depth);
    assert_bytes(&read_at(&file_in(&dir, OFlags::RDONLY), 0, 3), b"new");
    assert!(file_in(&dir, OFlags::RDONLY).metadata().unwrap().is_file());
    drop(dir);
    deep.run(&["status".as_ref(), deep.root().as_os_str()]);
    deep.unmount();
    let listed = deep.run(&["scratches".as_ref(), "--json".as_ref()]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert!(listed["scratches"][0]["bytes"].is_u64(), "{listed}");
    let scratch = deep.background.path("scratch");
    deep.run(&["scratches".as_ref(), "remove".as_ref(), scratch.as_os_str()]);
    assert!(!scratch.exists());
    assert_eq!(lowest(&deep.background.source).1, depth);
}

#[test]
fn a_scratch_of_many_levels_is_mounted_used_listed_and_removed() {
    if require_fuse() {
        works_at(if long() { 20_000 } else { 1000 }, None);
    }
}

#[test]
fn a_scratch_of_300_levels_needs_no_descriptor_for_each() {
    if require_fuse() && require_program("prlimit") {
        works_at(300, Some("--nofile=256"));
    }
}
