//! Many files, many descriptors, big files: what the daemon needs for them, and gives back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::*;
use rustix::mount::MountFlags;

/// What the daemon says about itself.
fn status(mounted: &MountedFs) -> serde_json::Value {
    let path = mounted.path().join(".mmapfs/status.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn number(mounted: &MountedFs, group: &str, name: &str) -> u64 {
    let status = status(mounted);
    status[group][name].as_u64().unwrap_or_else(|| panic!("{group}.{name}: {status}"))
}

/// Makes `count` empty files, a thousand to a directory.
fn plant(dir: &Path, count: usize) {
    for sub in 0..count.div_ceil(1000) {
        let sub_dir = dir.join(format!("{sub:04}"));
        fs::create_dir(&sub_dir).unwrap();
        for index in 0..1000.min(count - sub * 1000) {
            File::create(sub_dir.join(format!("some-file-{index:03}.txt"))).unwrap();
        }
    }
}

/// Stats every file; tells how many there are.
fn walk(dir: &Path) -> usize {
    let mut count = 0;
    for sub in fs::read_dir(dir).unwrap() {
        for file in fs::read_dir(sub.unwrap().path()).unwrap() {
            let meta = file.unwrap().metadata().unwrap();
            count += usize::from(meta.is_file() && meta.ino() != 0);
        }
    }
    count
}

/// Makes the kernel forget what it knows of a mount and is not using.
fn make_the_kernel_forget(mounted: &MountedFs) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(mounted.path(), flags, "").unwrap();
}

#[test]
fn a_big_tree_costs_little_memory_and_no_descriptors_and_is_forgotten() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let count = if long() { 1_000_000 } else { 30_000 };
    // Files are made and removed fastest in a tmpfs.
    let small = SmallFs::tmpfs(1 << 30);
    plant(small.path(), count);
    let options = "access=write,attr_timeout=3600,entry_timeout=3600";
    let mounted = MountedFs::over(small.path(), options);
    let memory = number(&mounted, "memory", "rss_bytes");
    let descriptors = number(&mounted, "memory", "descriptors");
    for round in 0..2 {
        assert_eq!(walk(mounted.path()), count);
        let known = number(&mounted, "inodes", "known");
        let grown = number(&mounted, "memory", "rss_bytes").saturating_sub(memory);
        let more = number(&mounted, "memory", "descriptors").saturating_sub(descriptors);
        let each = grown / known.max(1);
        eprintln!("walk {round}: {known} inodes, {each} bytes each, {more} more descriptors");
        // What is kept for lookups under way counts too: it is the same for any tree.
        assert!(grown < 300 * known + (16 << 20), "{grown} bytes for {known} inodes");
        assert!(more < 3000, "{more} descriptors for idle inodes");
    }
    assert!(number(&mounted, "inodes", "known") as usize >= count / 2);
    make_the_kernel_forget(&mounted);
    wait_for("the inodes to be forgotten", || number(&mounted, "inodes", "known") < 20);
    assert!(number(&mounted, "inodes", "lookups") < 20, "{}", status(&mounted));
    assert_eq!(walk(mounted.path()), count);
}

#[test]
fn lookups_are_forgotten_as_often_as_they_were_made() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mounted = MountedFs::new("access=write,attr_timeout=0,entry_timeout=0");
    let at = |name: &str| mounted.path().join(name);
    fs::create_dir(at("d")).unwrap();
    for round in 0..200 {
        let name = format!("d/{}", round % 7);
        fs::write(at(&name), b"x").unwrap();
        fs::hard_link(at(&name), at("link")).unwrap();
        fs::rename(at("link"), at("d/renamed")).unwrap();
        fs::metadata(at(&name)).unwrap();
        names(at("d"));
        if round % 3 == 0 {
            fs::remove_file(at(&name)).unwrap();
        }
        fs::remove_file(at("d/renamed")).unwrap();
    }
    make_the_kernel_forget(&mounted);
    wait_for("the inodes to be forgotten", || number(&mounted, "inodes", "known") < 12);
    assert!(!mounted.log().contains("forget ino"), "{}", mounted.log());
}

#[test]
fn descriptors_and_mappings_are_given_back() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    let touch_many = |count: usize| {
        for index in 0..count {
            let file = create(mounted.path().join(format!("{index}")));
            file.write_all_at(&[7; 5000], 0).unwrap();
            read_at(&file, 100, 4000);
        }
        for index in 0..count {
            fs::remove_file(mounted.path().join(format!("{index}"))).unwrap();
        }
    };
    touch_many(100);
    let before = number(&mounted, "memory", "descriptors");
    touch_many(3000);
    let after = number(&mounted, "memory", "descriptors");
    assert!(after < before + 1500, "{before} descriptors became {after}");
    wait_for("the handles to be released", || number(&mounted, "handles", "files") == 0);
    let limit = number(&mounted, "mappings", "limit");
    assert!(number(&mounted, "mappings", "count") <= limit);
}

#[test]
fn thousands_of_files_are_open_at_once() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write");
    let room = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = room.unwrap_or(10_000).saturating_sub(200).min(4000);
    let open: Vec<File> = (0..count)
        .map(|index| {
            let file = create(mounted.path().join(format!("{index}")));
            file.write_all_at(&index.to_le_bytes(), index).unwrap();
            file
        })
        .collect();
    assert_eq!(number(&mounted, "handles", "files"), count);
    for (index, file) in (0u64..).zip(&open) {
        assert_eq!(read_at(file, index, 8), index.to_le_bytes());
        fs::remove_file(mounted.path().join(format!("{index}"))).unwrap();
    }
    for (index, file) in (0u64..).zip(&open) {
        assert_eq!(read_at(file, index, 8), index.to_le_bytes());
    }
}

/// Files that are open at once: as many as asked for, if this process may have them.
const MANY: u64 = 10_000;

/// Opens many files that are there, writes to each and reads what was written.
fn use_many_at_once(mounted: &MountedFs, count: u64) {
    let path = |index: u64| mounted.path().join(format!("{index}"));
    let open: Vec<File> = (0..count).map(|index| create(path(index))).collect();
    assert_eq!(number(mounted, "handles", "files"), count);
    for (index, file) in (0u64..).zip(&open) {
        file.write_all_at(&index.to_le_bytes(), index % 5000).unwrap();
    }
    for (index, file) in (0u64..).zip(&open) {
        assert_eq!(read_at(file, index % 5000, 8), index.to_le_bytes());
        assert_eq!(file.metadata().unwrap().len(), index % 5000 + 8);
    }
    drop(open);
    wait_for("the handles to be released", || number(mounted, "handles", "files") == 0);
    for index in [0, count / 2, count - 1] {
        let content = fs::read(mounted.backing().join(format!("{index}"))).unwrap();
        assert!(content.ends_with(&index.to_le_bytes()));
    }
}

#[test]
fn ten_thousand_files_are_open_at_once_and_leave_no_descriptors() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let room = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = room.map_or(MANY, |room| room.saturating_sub(500).min(MANY));
    if count < MANY {
        eprintln!("SKIPPED in part: {count} files, since this process may not open more");
    }
    for plane in PLANES {
        let small = SmallFs::tmpfs(256 << 20);
        let mounted = MountedFs::over(small.path(), &format!("access=write,plane={plane}"));
        use_many_at_once(&mounted, 10);
        let idle = number(&mounted, "memory", "descriptors");
        use_many_at_once(&mounted, count);
        let descriptors = || number(&mounted, "memory", "descriptors");
        let back = wait_until(Duration::from_secs(10), || descriptors() <= idle + 10);
        assert!(back, "plane={plane}: {idle} descriptors became {}", descriptors());
    }
}

/// A file of one client, and what has to be in it.
struct Mirrored {
    path: PathBuf,
    file: File,
    content: Vec<u8>,
}

impl Mirrored {
    fn new(path: PathBuf) -> Mirrored {
        Mirrored { file: create(&path), path, content: Vec::new() }
    }

    /// Does something to it, and looks whether it is as it has to be.
    fn step(&mut self, random: &mut Random) {
        match random.below(8) {
            0..3 => {
                let (at, len) = (random.below(60_000) as usize, 1 + random.below(9000) as usize);
                let bytes = random.bytes(len);
                self.file.write_all_at(&bytes, at as u64).unwrap();
                self.content.resize(self.content.len().max(at + len), 0);
                self.content[at..at + len].copy_from_slice(&bytes);
            }
            3 => {
                let len = random.below(60_000) as usize;
                self.file.set_len(len as u64).unwrap();
                self.content.resize(len, 0);
            }
            4 => {
                let to = self.path.with_extension(format!("{}", random.below(1000)));
                fs::rename(&self.path, &to).unwrap();
                self.path = to;
            }
            5 => self.file = create(&self.path),
            6 => {
                set_mode(&self.path, 0o600 + random.below(8) as u32);
                assert_eq!(names(self.path.parent().unwrap()).len(), 3);
            }
            _ => assert_content(&self.path, &self.content),
        }
        let len = self.content.len();
        assert_eq!(size(&self.path), len as u64);
        let at = random.below(len as u64 + 1) as usize;
        let end = len.min(at + 5000);
        assert_bytes(&read_at(&self.file, at as u64, end - at), &self.content[at..end]);
    }
}

#[test]
fn sixty_four_clients_at_once_get_what_is_theirs() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let steps = if long() { 5000 } else { 150 };
    let mut seeds = Random::from_environment();
    for plane in PLANES {
        let small = SmallFs::tmpfs(256 << 20);
        let options = format!("access=write,plane={plane}");
        let mut mounted = MountedFs::over(small.path(), &options);
        std::thread::scope(|scope| {
            for client in 0..64 {
                let (dir, seed) = (mounted.path().join(format!("{client}")), seeds.next());
                scope.spawn(move || {
                    fs::create_dir(&dir).unwrap();
                    let mut files = ["a", "b", "c"].map(|name| Mirrored::new(dir.join(name)));
                    let mut random = Random::new(seed);
                    for _ in 0..steps {
                        files[random.below(3) as usize].step(&mut random);
                    }
                });
            }
        });
        mounted.assert_alive();
        snapshot(mounted.path()).assert_same(&snapshot(small.path()), Scope::Everything);
    }
}

#[test]
fn more_files_are_used_than_mappings_may_exist() {
    if !require_fuse() {
        return;
    }
    let mounted = MountedFs::new("access=write,max_mappings=8");
    let open: Vec<File> =
        (0..50).map(|index| create(mounted.path().join(format!("{index}")))).collect();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let open = &open;
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for _ in 0..300 {
                    let file = &open[(random.below(12) * 4 + thread) as usize];
                    let at = random.below(100_000);
                    let bytes = random.bytes(3000);
                    file.write_all_at(&bytes, at).unwrap();
                    assert_bytes(&read_at(file, at, 3000), &bytes);
                }
            });
        }
    });
    assert!(number(&mounted, "mappings", "count") <= 8, "{}", status(&mounted));
}

#[test]
fn a_file_larger_than_any_mapping_is_read_and_written() {
    if !(require_fuse() && require_root()) {
        return;
    }
    // A tmpfs takes files of any size.
    let small = SmallFs::tmpfs(16 << 20);
    let mounted = MountedFs::over(small.path(), "access=write");
    let file = create(mounted.path().join("huge"));
    let len = 1u64 << 62;
    file.set_len(len).unwrap();
    for at in [0, (1 << 47) - 3, 1 << 50, len - 10] {
        assert_eq!(read_at(&file, at, 10), [0; 10], "at {at}");
        file.write_all_at(b"0123456789", at).unwrap();
        assert_eq!(read_at(&file, at, 10), b"0123456789", "at {at}");
        let backing = File::open(small.path().join("huge")).unwrap();
        assert_eq!(read_at(&backing, at, 10), b"0123456789");
    }
    assert_eq!(file.metadata().unwrap().len(), len);
    let report = ask(mounted.path(), "json status huge").json();
    assert_eq!(report["size"], len);
    ask(mounted.path(), "flush 0-64K huge");
    file.set_len(5).unwrap();
    assert_content(mounted.path().join("huge"), b"01234");
}

#[test]
fn a_gibibyte_goes_through_whole() {
    if !require_fuse() {
        return;
    }
    let len: u64 = if long() { 1 << 30 } else { 48 << 20 };
    let mounted = MountedFs::new("access=write");
    let file = create(mounted.path().join("big"));
    let block = |at: u64| {
        let mut random = Random::new(at);
        random.bytes(1 << 20)
    };
    for at in (0..len).step_by(1 << 20) {
        file.write_all_at(&block(at), at).unwrap();
    }
    let backing = File::open(mounted.backing().join("big")).unwrap();
    for at in (0..len).step_by(1 << 20) {
        assert_bytes(&read_at(&file, at, 1 << 20), &block(at));
        assert_bytes(&read_at(&backing, at, 1 << 20), &block(at));
    }
}

#[test]
fn descriptors_that_only_save_time_are_given_back_when_there_are_no_others() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let dir = TestDir::new();
    for sub in 0..200 {
        let sub = dir.directory(&format!("{sub}"));
        (0..3).for_each(|at| fs::write(sub.join(format!("{at}")), b"content").unwrap());
    }
    for options in ["access=write", "access=read,open=none", "access=write,plane=mapped"] {
        let mounted = MountedFs::over(dir.path(), options);
        let pid = rustix::process::Pid::from_raw(mounted.pid() as i32);
        let few = rustix::process::Rlimit { current: Some(100), maximum: Some(100) };
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, few).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for sub in 0..200 {
                        let sub = mounted.path().join(format!("{sub}"));
                        assert_eq!(names(&sub), ["0", "1", "2"], "{options}");
                        (0..3).for_each(|at| assert_content(sub.join(format!("{at}")), b"content"));
                    }
                });
            }
        });
        mounted.unmount();
    }
}
