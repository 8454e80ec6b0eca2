//! Scratches that somebody has changed by hand, mounted without a kernel: a random mutation a round.
//!
//! Whatever lies in the directory, nothing hangs or panics, the base stays as it is, and no zeros
//! are shown as data. `MMAPFS_TEST_LONG=1` runs 1,500 rounds, `MMAPFS_TEST_SEED=N` one.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::*;
use crate::config::ScratchConfig;
use crate::layers::scratch::{Places, list, remove};
use crate::sys::cred::Caller;

mod deep;
mod differences;
mod frozen;
mod mutation;

use crate::tree::{
    Attributes, Directories, Files, Ino, Names, NewNode, Open, SetAttr, WriteRequest,
};
use mutation::Mutation;

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Longer than any round takes, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn never_registered(
    _: std::os::fd::BorrowedFd<'_>,
) -> std::io::Result<crate::tree::BackingRegistration> {
    Err(std::io::ErrorKind::Unsupported.into())
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// A directory in memory with a base, a good scratch of it, and the one of this round.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World::in_directory(Path::new("/dev/shm"));
        for name in ["base/dir/sub", "base/old", "base/full"] {
            fs::create_dir_all(world.path(name)).unwrap();
        }
        let files = ["a", "dir/c", "dir/sub/d", "old/e", "full/f", "full/g", "x", "s"];
        for (index, name) in files.iter().enumerate() {
            let len = if *name == "s" { 100 } else { 40 * 4096 + index * 1000 };
            fs::write(world.path("base").join(name), vec![b'a' + index as u8; len]).unwrap();
        }
        fs::hard_link(world.path("base/x"), world.path("base/y")).unwrap();
        fs::hard_link(world.path("base/x"), world.path("base/dir/z")).unwrap();
        symlink("a", world.path("base/link")).unwrap();
        fs::write(world.path("victim"), "mine").unwrap();
        world
    }

    /// With an empty base.
    fn in_directory(place: &Path) -> World {
        let dir = tempfile::Builder::new().prefix("mmapfs-test-").tempdir_in(place).unwrap();
        let world = World { dir };
        for name in ["mnt", "base"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn places(&self) -> Places {
        Places::below(self.dir.path())
    }

    fn open(&self) -> Result<Overlay, Failure> {
        let config = ScratchConfig {
            dir: Some(self.path("s")),
            copy_up: Some(0),
            ..ScratchConfig::default()
        };
        let base = self.path("base");
        let scratch = Scratch::open(&config, &base, &self.path("mnt"), &self.places())?;
        let options = ViewOptions { access: Access::Copy, ..ViewOptions::default() };
        let policy = Policy { mode: options.resolve().unwrap(), rules: RuleSet::default() };
        let options = VolumeOptions {
            source: base,
            only: None,
            root_is_file: false,
            reserved: None,
            policy,
            max_mappings: 100,
            keeps_atime: false,
            keeps_attributes: false,
        };
        assemble(options, scratch, false, crate::config::BaseChanged::Eio)
    }

    /// All that is to be known of the base.
    fn base_state(&self) -> Vec<String> {
        let mut state = Vec::new();
        let top = File::open(self.path("base")).unwrap();
        sys::walk::walk(&top, &mut |dir: std::os::fd::BorrowedFd<'_>,
                                    name: &CStr,
                                    stat: &rustix::fs::Stat| {
            let path = sys::fd_path(dir).join(OsStr::from_bytes(name.to_bytes()));
            let content = if stat.st_mode & libc::S_IFMT == libc::S_IFREG {
                fs::read(path).unwrap()
            } else {
                Vec::new()
            };
            let sum =
                content.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
            state.push(format!(
                "{name:?} {} {:o} {} {} {} {} {sum}",
                stat.st_ino,
                stat.st_mode,
                stat.st_size,
                stat.st_mtime,
                stat.st_mtime_nsec,
                stat.st_nlink
            ));
            Ok(())
        })
        .unwrap();
        state.sort();
        state
    }
}

/// Looks a path up from the root, and returns its parent's number as well.
fn find(overlay: &Overlay, path: &str) -> (Ino, Ino) {
    path.split('/').fold((Ino::ROOT, Ino::ROOT), |(_, at), name| {
        (at, overlay.lookup(at, OsStr::new(name)).unwrap().attr.ino)
    })
}

fn open_write(overlay: &Overlay, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let how = Open { read: true, write: true, wait: true, ..Open::default() };
    let opened = overlay.open(ino, how, &ROOT, &never_registered)?;
    let written = overlay.write(opened.id, offset, data, WriteRequest::default(), &ROOT);
    overlay.release(opened.id)?;
    written.map(drop)
}

/// A scratch with all that there can be in one.
fn make_good(world: &World) {
    let overlay = world.open().unwrap();
    for name in ["a", "dir/c", "dir/sub/d"] {
        open_write(&overlay, find(&overlay, name).1, 3 * 4096 + 7, b"WWWW").unwrap();
    }
    let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    overlay.set_attr(find(&overlay, "x").1, None, mode, &ROOT).unwrap();
    overlay.set_attr(find(&overlay, "full/g").1, None, mode, &ROOT).unwrap();
    let none = RenameFlags::empty();
    let (dir, _) = find(&overlay, "dir/sub");
    overlay
        .rename((dir, OsStr::new("sub")), (Ino::ROOT, OsStr::new("moved")), none, &ROOT)
        .unwrap();
    let (old, _) = find(&overlay, "old/e");
    overlay.remove(old, OsStr::new("e"), false).unwrap();
    overlay.remove(Ino::ROOT, OsStr::new("old"), true).unwrap();
    let new = NewNode { mode: libc::S_IFDIR | 0o755, umask: 0, caller: &ROOT };
    let old = overlay.make_dir(Ino::ROOT, OsStr::new("old"), &new).unwrap().attr.ino;
    let new = NewNode { mode: libc::S_IFREG | 0o644, umask: 0, caller: &ROOT };
    let born = overlay.make_node(old, OsStr::new("born"), &new, 0).unwrap().attr.ino;
    open_write(&overlay, born, 0, b"WWWW").unwrap();
    overlay.link(born, Ino::ROOT, OsStr::new("also")).unwrap();
    overlay.link(find(&overlay, "a").1, old, OsStr::new("a2")).unwrap();
    overlay.make_symlink(old, OsStr::new("l"), OsStr::new("../a"), &ROOT).unwrap();
}

/// Looks at everything, and changes what it can. Returns how many files were seen.
fn exercise(overlay: &Overlay) -> usize {
    let mut next = vec![(Ino::ROOT, PathBuf::from("/"))];
    let mut seen = 0;
    while let Some((dir, path)) = next.pop() {
        assert!(path.components().count() < 40, "endless: {}", path.display());
        for name in names(overlay, dir) {
            seen += 1;
            assert!(seen < 20_000, "endless: {}", path.display());
            let Ok(entry) = overlay.lookup(dir, &name) else { continue };
            let (ino, path) = (entry.attr.ino, path.join(&name));
            let _ = overlay.attr(ino, None);
            match entry.attr.stat.kind() {
                libc::S_IFDIR => next.push((ino, path)),
                libc::S_IFLNK => drop(overlay.read_link(ino)),
                libc::S_IFREG => {
                    check_content(overlay, ino, &path);
                    if open_write(overlay, ino, 5 * 4096 + 9, b"WW").is_ok() {
                        check_content(overlay, ino, &path);
                    }
                }
                _ => {}
            }
            let mode = SetAttr { mode: Some(0o755), ..SetAttr::default() };
            let _ = overlay.set_attr(ino, None, mode, &ROOT);
        }
    }
    seen
}

fn names(overlay: &Overlay, dir: Ino) -> Vec<OsString> {
    let Ok(id) = overlay.open_dir(dir) else { return Vec::new() };
    let mut names = Vec::new();
    let (mut offset, mut before) = (0, usize::MAX);
    while before != names.len() {
        before = names.len();
        let listed = overlay.list((dir, id), offset, false, &mut |item| {
            offset = item.next;
            if item.name != "." && item.name != ".." {
                names.push(item.name.to_owned());
            }
            false
        });
        if listed != Ok(false) {
            break;
        }
    }
    overlay.release_dir(id).unwrap();
    names
}

/// No file of the base or the scratch has a zero in it, but behind its old end where it was short.
fn check_content(overlay: &Overlay, ino: Ino, path: &Path) {
    let how = Open { read: true, wait: true, ..Open::default() };
    let Ok(opened) = overlay.open(ino, how, &ROOT, &never_registered) else { return };
    let mut content = Vec::new();
    loop {
        let before = content.len();
        let read = overlay.read(ino, opened.id, before as u64, 128 << 10, &mut |bytes| {
            content.extend_from_slice(bytes);
        });
        if read.is_err() || content.len() == before || content.len() > 1 << 20 {
            break;
        }
    }
    overlay.release(opened.id).unwrap();
    if content.len() < 20 * 4096 + 20 {
        return; // A file of a few bytes, which was written behind its end.
    }
    let zeros = content.iter().filter(|byte| **byte == 0).count();
    assert_eq!(zeros, 0, "{}: zeros are shown as data", path.display());
}

fn round(world: &World, seed: u64) -> String {
    let good = ["good", "layered"][(seed % 2) as usize];
    let copied = std::process::Command::new("cp")
        .args(["-a".as_ref(), world.path(good).as_os_str(), world.path("s").as_os_str()])
        .status();
    assert!(copied.unwrap().success());
    let mut random = Random(seed);
    let count = 1 + random.below(4);
    let mut mutation = Mutation { world, random, bare: HashSet::new(), alone: count == 1 };
    let mut did = String::new();
    for _ in 0..count {
        did += &format!("{}; ", mutation.mutate());
    }
    let mut trace = std::io::stderr();
    if std::env::var_os("MMAPFS_TEST_SEED").is_some() {
        // Past the harness, for a round that ends the process.
        let _ = writeln!(trace, "seed {seed}: {did}");
    }
    match world.open() {
        Ok(overlay) => {
            exercise(&overlay);
            drop(overlay);
            // What was changed meanwhile is a scratch as well.
            if let Ok(overlay) = world.open() {
                exercise(&overlay);
            }
        }
        Err(failure) => assert!(!failure.to_string().contains('\n'), "{failure}"),
    }
    assert!(list(&world.places()).len() <= 1);
    let _ = remove(&world.places(), world.path("s").as_os_str());
    if fs::symlink_metadata(world.path("s")).is_ok() {
        sys::walk::remove(File::open(world.dir.path()).unwrap(), c"s").unwrap();
    }
    did
}

#[test]
fn whatever_is_planted_in_a_scratch_hangs_nothing_and_changes_no_base() {
    if !rustix::process::geteuid().is_root() || !crate::config::may_mount() {
        eprintln!("SKIPPED: marks and devices need root");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let rounds = if number("MMAPFS_TEST_LONG") == Some(1) { 1500 } else { 20 };
    let seeds: Vec<u64> = match number("MMAPFS_TEST_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 16;
            (first..first + rounds).collect()
        }
    };
    let world = std::sync::Arc::new(World::new());
    make_good(&world);
    fs::rename(world.path("s"), world.path("good")).unwrap();
    frozen::make_layered(&world);
    fs::rename(world.path("s"), world.path("layered")).unwrap();
    let base = world.base_state();
    for seed in seeds {
        let (done, ended) = channel();
        let of_round = std::sync::Arc::clone(&world);
        let thread = std::thread::spawn(move || {
            let did = round(&of_round, seed);
            let _ = done.send(());
            did
        });
        let hangs = ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
        assert!(!hangs, "MMAPFS_TEST_SEED={seed} hangs");
        let did = thread.join().unwrap_or_else(|_| panic!("MMAPFS_TEST_SEED={seed} failed"));
        assert_eq!(world.base_state(), base, "MMAPFS_TEST_SEED={seed}: {did}");
        assert_eq!(
            fs::read(world.path("victim")).unwrap(),
            b"mine",
            "MMAPFS_TEST_SEED={seed}: {did}"
        );
    }
}

#[test]
fn a_listing_merges_a_directory_anew_that_was_moved_in_the_base() {
    let world = World::new();
    let overlay = world.open().unwrap();
    open_write(&overlay, find(&overlay, "dir/c").1, 0, b"WWWW").unwrap();
    let dir = find(&overlay, "dir").1;
    fs::rename(world.path("base/dir"), world.path("base/away")).unwrap();
    assert!(names(&overlay, dir).contains(&OsString::from("sub")));
    let root = overlay.open_dir(Ino::ROOT).unwrap();
    let mut listed = Vec::new();
    let end = overlay.list((Ino::ROOT, root), 0, true, &mut |item| {
        listed.extend(item.entry.map(|entry| entry.attr.ino));
        false
    });
    overlay.release_dir(root).unwrap();
    assert_eq!(end, Ok(true));
    assert!(listed.contains(&dir));
    assert_eq!(names(&overlay, dir), ["c"]);
}
