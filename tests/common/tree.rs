//! Snapshots of whole trees, to be compared in every attribute.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::files::{xattr, xattr_names};

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything, inode numbers and modification times included: two views of one tree.
    Everything,
    /// The same without inode numbers: a file that took the number of one that the kernel still
    /// knows is shown under another.
    ButInodes,
    /// What is the same in two trees with the same history: no inode numbers, times and sizes of
    /// directories.
    History,
    /// As `History`, but also the modification times that were set, and not the links of
    /// directories: merged ones do not count them.
    MergedHistory,
    /// As `Everything`, but not the links and sizes of directories, which are others once they are
    /// merged.
    Remounted,
}

/// Times before this were set by somebody; later ones are the time of the run.
const SET_TIMES_END: i64 = 1_000_000_000;

/// One object of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    size: u64,
    inode: u64,
    modified: (i64, i64),
    xattrs: Vec<(String, Vec<u8>)>,
    target: Option<PathBuf>,
    content: Option<u64>,
}

/// A tree as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
    entries: BTreeMap<PathBuf, Entry>,
}

/// Takes a snapshot of everything below `root`, and of `root` itself under the name ``. What may
/// not be read is left out.
#[track_caller]
pub fn snapshot(root: &Path) -> Tree {
    let mut tree = Tree { root: root.to_owned(), entries: BTreeMap::new() };
    tree.add(Path::new(""));
    tree
}

impl Tree {
    #[track_caller]
    fn add(&mut self, name: &Path) {
        let path = self.root.join(name);
        let meta = match std::fs::symlink_metadata(&path) {
            Err(err) if err.kind() == ErrorKind::PermissionDenied => return,
            stat => stat.unwrap_or_else(|err| panic!("{}: cannot stat: {err}", path.display())),
        };
        self.entries.insert(name.to_owned(), Entry::of(&path, &meta));
        if meta.is_dir() {
            let children = match std::fs::read_dir(&path) {
                Err(err) if err.kind() == ErrorKind::PermissionDenied => return,
                listed => {
                    listed.unwrap_or_else(|err| panic!("{}: cannot list: {err}", path.display()))
                }
            };
            for child in children {
                self.add(&name.join(child.unwrap().file_name()));
            }
        }
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Without the attributes whose names begin so.
    pub fn without_xattrs(mut self, prefixes: &[&str]) -> Tree {
        for entry in self.entries.values_mut() {
            entry
                .xattrs
                .retain(|(name, _)| !prefixes.iter().any(|prefix| name.starts_with(prefix)));
        }
        self
    }

    /// One line for each difference.
    pub fn differences(&self, other: &Tree, scope: Scope) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, entry) in &self.entries {
            match other.entries.get(name) {
                None => lines.push(format!("{}: only in {}", shown(name), self.root.display())),
                Some(theirs) => {
                    let differences = entry.differences(theirs, scope);
                    if !differences.is_empty() {
                        lines.push(format!("{}:{differences}", shown(name)));
                    }
                }
            }
        }
        for name in other.entries.keys().filter(|name| !self.entries.contains_key(*name)) {
            lines.push(format!("{}: only in {}", shown(name), other.root.display()));
        }
        lines
    }

    /// Fails with the differences when there are some.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree, scope: Scope) {
        let differences = self.differences(other, scope);
        assert!(
            differences.is_empty(),
            "{} (left) and {} (right) differ:\n{}",
            self.root.display(),
            other.root.display(),
            differences.join("\n")
        );
    }
}

impl Entry {
    #[track_caller]
    fn of(path: &Path, meta: &Metadata) -> Entry {
        Entry {
            kind: kind(meta),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            links: meta.nlink(),
            device: meta.rdev(),
            size: meta.size(),
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs(path),
            target: meta.is_symlink().then(|| std::fs::read_link(path).unwrap()),
            content: meta.is_file().then(|| content(path)).flatten(),
        }
    }

    fn differences(&self, other: &Entry, scope: Scope) -> String {
        let mut text = String::new();
        let mut compare = |what: &str, left: &dyn std::fmt::Debug, right: &dyn std::fmt::Debug| {
            let (left, right) = (format!("{left:?}"), format!("{right:?}"));
            if left != right {
                let _ = write!(text, " {what} {left} {right}");
            }
        };
        compare("kind", &self.kind, &other.kind);
        compare("mode", &format_args!("{:o}", self.mode), &format_args!("{:o}", other.mode));
        compare("owner", &self.owner, &other.owner);
        let of_history = matches!(scope, Scope::History | Scope::MergedHistory);
        let merged = matches!(scope, Scope::MergedHistory | Scope::Remounted);
        if !merged || self.kind != "directory" {
            compare("links", &self.links, &other.links);
        }
        compare("device", &self.device, &other.device);
        compare("xattrs", &self.xattrs, &other.xattrs);
        compare("target", &self.target, &other.target);
        compare("content", &self.content, &other.content);
        if !(of_history || merged) || self.kind != "directory" {
            compare("size", &self.size, &other.size);
        }
        if matches!(scope, Scope::Everything | Scope::Remounted) {
            compare("inode", &self.inode, &other.inode);
        }
        let set = |entry: &Entry| entry.modified.0 < SET_TIMES_END;
        let is_set = set(self) || set(other);
        if !of_history || scope == Scope::MergedHistory && is_set {
            compare("modified", &self.modified, &other.modified);
        }
        text
    }
}

fn shown(name: &Path) -> String {
    format!("/{}", name.as_os_str().as_bytes().escape_ascii())
}

fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "unknown",
    }
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let names = xattr_names(path).unwrap_or_default();
    names
        .into_iter()
        .map(|name| {
            let value = match xattr(path, &name) {
                Err(Errno::ACCESS) => Vec::new(),
                value => value
                    .unwrap_or_else(|err| panic!("{}: cannot read {name}: {err}", path.display())),
            };
            (name, value)
        })
        .collect()
}

/// The hash of the bytes, or None where reading is not permitted.
#[track_caller]
fn content(path: &Path) -> Option<u64> {
    let mut file = match File::open(path) {
        Err(err) if err.kind() == ErrorKind::PermissionDenied => return None,
        opened => opened.unwrap_or_else(|err| panic!("{}: cannot open: {err}", path.display())),
    };
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Some(hasher.finish()),
            Ok(len) => hasher.write(&buffer[..len]),
            Err(err) => panic!("{}: cannot read: {err}", path.display()),
        }
    }
}
