//! A model of which file an inode number means, while two sides make, replace and remove files
//! whose numbers are reused at once.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;

use super::*;
use crate::config::RuleSet;
use crate::flags::ViewOptions;
use crate::sys::cred::Caller;
use crate::tree::{
    Attributes, BackingRegistration, Files, HandleId, Ino, Names, NewNode, Open, Validity,
    WriteRequest,
};
use crate::volume::{Policy, Volume, VolumeOptions};

fn volume(source: &Path, keeps_attributes: bool) -> Volume {
    let options = VolumeOptions {
        source: source.to_owned(),
        only: None,
        root_is_file: false,
        reserved: None,
        policy: Policy {
            mode: ViewOptions::default().resolve().unwrap(),
            rules: RuleSet::default(),
        },
        max_mappings: 10,
        keeps_atime: true,
        keeps_attributes,
    };
    Volume::open_source(options).unwrap()
}

fn nothing_is_registered(_: BorrowedFd<'_>) -> io::Result<BackingRegistration> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A pseudo-random sequence (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// A file by the order in which it was made.
type Id = u64;

/// The content of a file, which tells it from all others.
fn content(id: Id) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.resize(8 + id as usize % 997, b'.');
    bytes
}

const NAMES: [&str; 3] = ["x", "y", "z"];

/// The directory, the volume, and what is right.
struct World {
    dir: PathBuf,
    volume: Volume,
    caller: Caller,
    made: Id,
    /// The file that has each name.
    named: [Option<Id>; 3],
    /// The files that the kernel knows, by inode number, with their lookups.
    known: HashMap<Ino, (Id, u64)>,
    open: Vec<(HandleId, Ino, Id)>,
    /// Files that lost their last name through the mount while the kernel knew them.
    kept: HashSet<Id>,
    /// The backing files' own numbers.
    numbers: HashSet<u64>,
}

impl World {
    fn new(dir: &Path) -> World {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        World {
            dir: dir.to_owned(),
            volume: volume(dir, true),
            caller: Caller { uid: uid.as_raw(), gid: gid.as_raw(), pid: std::process::id() },
            made: 0,
            named: [None; 3],
            known: HashMap::new(),
            open: Vec::new(),
            kept: HashSet::new(),
            numbers: HashSet::new(),
        }
    }

    fn next(&mut self) -> Id {
        self.made += 1;
        self.made
    }

    fn step(&mut self, random: &mut Random) {
        let at = random.below(3);
        match random.below(12) {
            0 | 1 => self.replace_directly(at),
            2 => self.remove_directly(at),
            3 | 4 => self.replace(at),
            5 => self.remove(at),
            6 => self.look_up(at),
            7 | 8 => self.open(random),
            9 => self.stat(random),
            10 => self.forget(random),
            _ => self.release(random),
        }
        // A file that is held for a moment hides whatever is wrong.
        if random.below(3) > 0 {
            drop(self.volume.short_lived.clear());
        }
        for (handle, ino, id) in &self.open {
            assert_eq!(self.read(*ino, *handle), content(*id), "an open file is another one");
        }
    }

    fn read(&self, ino: Ino, handle: HandleId) -> Vec<u8> {
        let mut content = Vec::new();
        let deliver = &mut |bytes: &[u8]| content.extend_from_slice(bytes);
        self.volume.read(ino, handle, 0, 4096, deliver).unwrap();
        content
    }

    fn replace_directly(&mut self, at: usize) {
        let id = self.next();
        std::fs::write(self.dir.join("direct"), content(id)).unwrap();
        std::fs::rename(self.dir.join("direct"), self.dir.join(NAMES[at])).unwrap();
        self.named[at] = Some(id);
    }

    fn remove_directly(&mut self, at: usize) {
        if self.named[at].take().is_some() {
            std::fs::remove_file(self.dir.join(NAMES[at])).unwrap();
        }
    }

    fn keep(&mut self, at: usize) {
        if let Some(old) = self.named[at]
            && self.known.values().any(|(id, _)| *id == old)
        {
            self.kept.insert(old);
        }
    }

    fn replace(&mut self, at: usize) {
        let id = self.next();
        let (caller, name) = (self.caller, OsStr::new("mount"));
        let new = NewNode { mode: 0o644, umask: 0o022, caller: &caller };
        let how = Open { read: true, write: true, wait: true, ..Open::default() };
        let made =
            self.volume.create(Ino::ROOT, name, &new, &how, true, &nothing_is_registered).unwrap();
        let (entry, opened) = made;
        self.learn(entry.attr.ino, entry.attr.stat.ino, id);
        let request = WriteRequest::default();
        let count = self.volume.write(opened.id, 0, &content(id), request, &caller).unwrap();
        assert_eq!(count, content(id).len());
        self.volume.release(opened.id).unwrap();
        self.keep(at);
        let (from, to) = ((Ino::ROOT, name), (Ino::ROOT, OsStr::new(NAMES[at])));
        self.volume.rename(from, to, RenameFlags::empty(), &caller).unwrap();
        self.named[at] = Some(id);
    }

    fn remove(&mut self, at: usize) {
        if self.named[at].is_some() {
            self.keep(at);
            self.volume.remove(Ino::ROOT, OsStr::new(NAMES[at]), false).unwrap();
            self.named[at] = None;
        }
    }

    fn learn(&mut self, ino: Ino, number: u64, id: Id) {
        self.numbers.insert(number);
        let (known, lookups) = self.known.entry(ino).or_insert((id, 0));
        assert_eq!(
            *known, id,
            "inode {ino} is said to be another file than the kernel knows by it"
        );
        *lookups += 1;
    }

    fn look_up(&mut self, at: usize) {
        let found = self.volume.lookup(Ino::ROOT, OsStr::new(NAMES[at]));
        match (found, self.named[at]) {
            (Ok(entry), Some(id)) => {
                assert_eq!(entry.attr.stat.size, content(id).len() as u64);
                self.learn(entry.attr.ino, entry.attr.stat.ino, id);
            }
            (Err(Errno::NOENT), None) => {}
            (found, named) => panic!("{named:?} was looked up as {found:?}"),
        }
    }

    fn any_known(&self, random: &mut Random) -> Option<(Ino, Id)> {
        let mut known: Vec<_> = self.known.iter().map(|(ino, (id, _))| (*ino, *id)).collect();
        known.sort_unstable();
        (!known.is_empty()).then(|| known[random.below(known.len())])
    }

    fn check_stale(&self, err: Errno, ino: Ino, id: Id) {
        let exists = self.named.contains(&Some(id))
            || self.kept.contains(&id)
            || self.open.iter().any(|(_, open, _)| *open == ino);
        assert!(err == Errno::STALE && !exists, "inode {ino}, file {id} (there: {exists}): {err}");
    }

    fn open(&mut self, random: &mut Random) {
        let Some((ino, id)) = self.any_known(random) else { return };
        let how = Open { read: true, write: random.below(2) == 0, wait: true, ..Open::default() };
        match self.volume.open(ino, how, &self.caller, &nothing_is_registered) {
            Ok(opened) => {
                self.open.push((opened.id, ino, id));
                assert_eq!(
                    self.read(ino, opened.id),
                    content(id),
                    "inode {ino} opens another file"
                );
            }
            Err(err) => self.check_stale(err, ino, id),
        }
    }

    fn stat(&mut self, random: &mut Random) {
        let Some((ino, id)) = self.any_known(random) else { return };
        match self.volume.attr(ino, None) {
            Ok(attr) => assert_eq!(attr.stat.size, content(id).len() as u64, "inode {ino}"),
            Err(err) => self.check_stale(err, ino, id),
        }
    }

    fn forget(&mut self, random: &mut Random) {
        let Some((ino, id)) = self.any_known(random) else { return };
        if self.open.iter().all(|(_, open, _)| *open != ino)
            && let Some((_, lookups)) = self.known.remove(&ino)
        {
            self.volume.forget(ino, lookups);
            self.kept.remove(&id);
        }
    }

    fn release(&mut self, random: &mut Random) {
        if !self.open.is_empty() {
            let (handle, ..) = self.open.swap_remove(random.below(self.open.len()));
            self.volume.release(handle).unwrap();
        }
    }
}

fn numbers_mean_what_they_meant(place: &Path) {
    for seed in 1..=8_u64 {
        let Ok(dir) = tempfile::tempdir_in(place) else {
            return eprintln!("SKIPPED: no directory in {}", place.display());
        };
        let mut world = World::new(dir.path());
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        for step in 0..1_500 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                world.step(&mut random);
            }));
            assert!(result.is_ok(), "seed {seed}, step {step} in {}", place.display());
        }
        eprintln!(
            "{}, seed {seed}: {} files, {} numbers seen",
            place.display(),
            world.made,
            world.numbers.len()
        );
    }
}

#[test]
fn an_inode_number_means_one_file_while_two_sides_reuse_it() {
    numbers_mean_what_they_meant(&std::env::temp_dir());
}

#[test]
fn an_inode_number_means_one_file_on_a_tmpfs() {
    numbers_mean_what_they_meant(Path::new("/dev/shm"));
}

#[test]
fn a_file_that_had_setuid_is_asked_for_at_every_use_and_never_told_of() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    std::fs::write(&path, "x").unwrap();
    let mode = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let volume = volume(dir.path(), true);
    let ino = volume.lookup(Ino::ROOT, OsStr::new("program")).unwrap().attr.ino;
    assert!(volume.is_told_of(ino));
    mode(0o4755);
    assert_eq!(volume.attr(ino, None).unwrap().validity, Validity::Uncached);
    assert!(!volume.is_told_of(ino));
    // The notice of this change may come when its answer is on its way.
    mode(0o755);
    assert_eq!(volume.attr(ino, None).unwrap().validity, Validity::Uncached);
    assert!(!volume.is_told_of(ino));
}

#[test]
fn the_kernel_is_not_told_of_what_it_asks_for_at_every_use() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    let volume = volume(dir.path(), false);
    let ino = |name: &str| volume.lookup(Ino::ROOT, OsStr::new(name)).unwrap().attr.ino;
    assert!(!volume.is_told_of(ino("dir")));
    // Where two changes may have the same time, only a notice has the second one's pages dropped.
    assert_eq!(volume.is_told_of(ino("file")), !volume.devices.has_exact_times());
}
