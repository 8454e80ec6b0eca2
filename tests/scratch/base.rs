//! A base with a bit of everything, and what of it must not change.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::common::*;
use super::operation::Name;

/// The names that operations are about: those of the base, and some that it has not.
pub const NAMES: [Name; 58] = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "k",
    "d/a",
    "d/b",
    "d/c",
    "d/d",
    "d/e",
    "d/f",
    "d/g",
    "d/d/a",
    "d/d/b",
    "d/d/c",
    "d/d/d",
    "d/d/d/a",
    "d/d/d/b",
    "e/a",
    "e/b",
    "e/c",
    "e/d",
    "e/e",
    "e/f",
    "e/g",
    "e/e/a",
    "e/e/b",
    "e/e/c",
    "f/a",
    "f/b",
    "f/c",
    "f/d",
    "f/d/a",
    "f/d/b",
    "g/a",
    "g/b",
    "g/d",
    "g/d/a",
    "missing/a",
    "d/n",
    "e/n",
    "f/n",
    "n",
    "n/a",
    "n/b",
    "n/n",
    "n/n/a",
    "f/d/d",
    "f/d/d/a",
    "l/a",
    "l/e/a",
    "l",
];

/// What base files are made of: no two pages are alike.
fn content(seed: u64, len: usize) -> Vec<u8> {
    Random::new(seed).bytes(len)
}

/// Makes the base in an empty directory. All times lie long ago, so that every access would show.
pub fn make(root: &Path) {
    let at = |name: &str| root.join(name);
    for dir in ["d", "d/d", "d/d/d", "e", "e/e", "f", "f/d", "f/d/d", "g", "g/d"] {
        fs::create_dir(at(dir)).unwrap();
    }
    let files = [
        ("a", 10_000),
        ("b", 300_000),
        ("h", 0),
        ("i", 1),
        ("j", 4095),
        ("k", 4097),
        ("d/a", 1_000_000),
        ("d/b", 4096),
        ("d/d/a", 200_000),
        ("d/d/b", 131_072),
        ("d/d/d/a", 8192),
        ("d/d/d/b", 131_073),
        ("e/a", 500_001),
        ("e/b", 70_000),
        ("e/e/a", 12_288),
        ("f/a", 1),
        ("f/b", 262_144),
        ("f/d/a", 3000),
        ("f/d/d/a", 140_000),
        ("g/a", 65_536),
        ("g/d/a", 1_048_577),
    ];
    for (seed, (name, len)) in files.into_iter().enumerate() {
        fs::write(at(name), content(seed as u64, len)).unwrap();
    }
    // Sparse: data only in the middle and at the end.
    let sparse = create(at("d/c"));
    sparse.set_len(2 << 20).unwrap();
    sparse.write_all_at(&content(100, 5000), 1 << 20).unwrap();
    sparse.write_all_at(&content(101, 1), (2 << 20) - 1).unwrap();
    let empty = create(at("e/c"));
    empty.set_len(300_000).unwrap();

    for (from, to) in [
        ("b", "c"),
        ("d/a", "d/e"),
        ("d/a", "e/d"),
        ("e/b", "f/c"),
        ("d/d/a", "d/d/c"),
        ("i", "g/b"),
        ("d/b", "e/e/b"),
    ] {
        fs::hard_link(at(from), at(to)).unwrap();
    }
    symlink("e/a", at("f/d/b")).unwrap();
    symlink("e", at("l")).unwrap();
    symlink("nothing", at("e/f")).unwrap();
    let fifo = Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(CWD, at("d/f"), FileType::Fifo, fifo, 0).unwrap();
    rustix::fs::mknodat(CWD, at("e/e/c"), FileType::Fifo, fifo, 0).unwrap();

    set_attributes(&at);
    set_times(root);
}

fn set_attributes(at: &impl Fn(&str) -> PathBuf) {
    for (name, key, value) in [
        ("a", "user.one", "value"),
        ("b", "user.two", "of two names"),
        ("d", "user.one", "of a directory"),
        ("d/d/d/b", "user.one", ""),
    ] {
        let none = XattrFlags::empty();
        rustix::fs::lsetxattr(at(name), key, value.as_bytes(), none).unwrap();
    }
    for dir in ["", "d", "d/d", "e", "f", "f/d", "g/d"] {
        set_mode(at(dir), 0o777);
    }
    for (name, mode) in [("b", 0o666), ("e/a", 0o666), ("g/a", 0o000), ("e/b", 0o444)] {
        set_mode(at(name), mode);
    }
    if rustix::process::geteuid().is_root() {
        for (name, owner) in [("f/b", 40_001), ("g", 40_001), ("f/d/a", 40_001), ("d/a", 40_001)] {
            std::os::unix::fs::chown(at(name), Some(owner), Some(40_100)).unwrap();
        }
        let none = XattrFlags::empty();
        rustix::fs::lsetxattr(at("e/a"), "trusted.three", b"three", none).unwrap();
    }
    if require_program("setfacl") {
        for (acl, name) in [("u:40001:rw", "j"), ("d:u:40001:rwx", "e/e"), ("g:40100:r", "f/b")] {
            let status = Command::new("setfacl").args(["-m", acl]).arg(at(name)).status().unwrap();
            assert!(status.success(), "setfacl");
        }
    }
}

/// Sets the times of everything below to different ones of long ago.
fn set_times(path: &Path) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            set_times(&entry.unwrap().path());
        }
    }
    let seconds = 500_000_000 + path.as_os_str().len() as i64 * 1000;
    let times = Timestamps {
        last_access: Timespec { tv_sec: seconds, tv_nsec: 1 },
        last_modification: Timespec { tv_sec: seconds + 1, tv_nsec: 123_456_789 },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A plain copy with everything but the numbers and times of change. It moves times of access.
pub fn copy(base: &Path, to: &Path) {
    let output = Command::new("cp").arg("-a").arg(base).arg(to).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Gives back the times of access that copying has moved.
pub fn set_access_times(path: &Path) {
    let meta = path.symlink_metadata().unwrap();
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            set_access_times(&entry.unwrap().path());
        }
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: meta.mtime() - 1, tv_nsec: 1 },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Everything that is to be known of a base: content and all of lstat(2), times of access too.
/// Taking it moves nothing.
pub fn state(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    add_state(root, &mut all);
    all
}

fn add_state(path: &Path, all: &mut BTreeMap<PathBuf, String>) {
    let meta = path.symlink_metadata().unwrap();
    let accessed = match rustix::process::geteuid().is_root() {
        true => (meta.atime(), meta.atime_nsec()),
        false => (0, 0), // Without privilege a base is read as by everybody.
    };
    let mut text = format!(
        "{:o} {}:{} {} links, {} bytes, {} blocks, inode {}, device {}, {accessed:?} {:?} {:?}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.size(),
        meta.blocks(),
        meta.ino(),
        meta.rdev(),
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    );
    for name in xattr_names(path).unwrap_or_default() {
        text += &format!(" {name}={:?}", xattr(path, &name));
    }
    let silently = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW;
    if meta.is_file() {
        let mut hasher = DefaultHasher::new();
        let mut bytes = Vec::new();
        open(path, silently).unwrap().read_to_end(&mut bytes).unwrap();
        hasher.write(&bytes);
        text += &format!(" content {:016x}", hasher.finish());
    }
    all.insert(path.to_owned(), text);
    if meta.is_dir() {
        let mut dir = rustix::fs::Dir::new(open(path, silently).unwrap()).unwrap();
        while let Some(entry) = dir.read() {
            let entry = entry.unwrap();
            if !is_dot(entry.file_name()) {
                use std::os::unix::ffi::OsStrExt;
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
                add_state(&path.join(name), all);
            }
        }
    }
}

/// Fails when a base is not as it was.
#[track_caller]
pub fn assert_untouched(root: &Path, before: &BTreeMap<PathBuf, String>) {
    let now = state(root);
    for (path, was) in before {
        assert_eq!(now.get(path), Some(was), "{} of the base has changed", path.display());
    }
    assert_eq!(now.len(), before.len(), "the base has new entries");
}
