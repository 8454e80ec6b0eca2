//! The names and attributes of the source, in memory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{BackingId, FileAttr, FileType, INodeNo, Request};
use rustix::fs::{self, AtFlags, Mode, OFlags};

/// A directory: its descriptor, and its entries by name and by their place in a listing.
pub struct Dir {
    pub fd: Arc<OwnedFd>,
    pub names: HashMap<OsString, (u64, u64)>,
    pub order: BTreeMap<u64, (OsString, u64)>,
    next: u64,
}

pub struct Node {
    pub attr: FileAttr,
    /// The directory and the name in it.
    pub at: (u64, OsString),
    pub dir: Option<Dir>,
    pub target: Vec<u8>,
    pub opens: u32,
    pub backing: Option<Arc<BackingId>>,
    /// It is open for writing: the source knows its size.
    pub written: bool,
}

#[derive(Default)]
pub struct Tree {
    pub nodes: HashMap<u64, Node>,
    last: u64,
}

fn kind_of(mode: u32) -> FileType {
    match fs::FileType::from_raw_mode(mode) {
        fs::FileType::Directory => FileType::Directory,
        fs::FileType::Symlink => FileType::Symlink,
        fs::FileType::Fifo => FileType::NamedPipe,
        fs::FileType::Socket => FileType::Socket,
        fs::FileType::CharacterDevice => FileType::CharDevice,
        fs::FileType::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(sec: i64, nsec: u64) -> SystemTime {
    UNIX_EPOCH + Duration::new(sec.unsigned_abs(), nsec as u32)
}

pub fn attr_of(stat: &fs::Stat, ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind_of(stat.st_mode),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of what was just made, without asking.
pub fn new_attr(req: &Request, kind: FileType, mode: u32, umask: u32) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm: (mode & !umask & 0o7777) as u16,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: req.uid(),
        gid: req.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub fn open_dir(dir: &OwnedFd, name: &OsStr) -> io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = Arc::new(fs::openat(dir, name, flags, Mode::empty())?);
    Ok(Dir { fd, names: HashMap::new(), order: BTreeMap::new(), next: 1 })
}

impl Tree {
    /// Adds a file with a number of its own, and its name.
    pub fn add(&mut self, parent: u64, name: &OsStr, attr: FileAttr, dir: Option<Dir>) -> FileAttr {
        self.last += 1;
        let (ino, at) = (self.last, (parent, name.to_owned()));
        let attr = FileAttr { ino: INodeNo(ino), ..attr };
        let node =
            Node { attr, at, dir, target: Vec::new(), opens: 0, backing: None, written: false };
        self.nodes.insert(ino, node);
        self.link(parent, name, ino);
        attr
    }

    pub fn dir(&self, ino: u64) -> Option<&Dir> {
        self.nodes.get(&ino)?.dir.as_ref()
    }

    pub fn link(&mut self, parent: u64, name: &OsStr, ino: u64) {
        self.unlink(parent, name);
        let Some(node) = self.nodes.get_mut(&parent) else { return };
        let Some(dir) = node.dir.as_mut() else { return };
        dir.names.insert(name.to_owned(), (dir.next, ino));
        dir.order.insert(dir.next, (name.to_owned(), ino));
        dir.next += 1;
        node.attr.mtime = SystemTime::now();
    }

    /// Takes a name away; returns what it led to.
    pub fn unlink(&mut self, parent: u64, name: &OsStr) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&parent)?;
        let dir = node.dir.as_mut()?;
        let (cookie, ino) = dir.names.remove(name)?;
        dir.order.remove(&cookie);
        node.attr.mtime = SystemTime::now();
        self.nodes.get_mut(&ino)
    }

    /// Reads everything below a directory.
    pub fn load(&mut self, ino: u64) -> io::Result<()> {
        let Some(fd) = self.dir(ino).map(|dir| Arc::clone(&dir.fd)) else { return Ok(()) };
        for entry in fs::Dir::read_from(&*fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let attr = attr_of(&fs::statat(&*fd, name, AtFlags::SYMLINK_NOFOLLOW)?, 0);
            let is_dir = attr.kind == FileType::Directory;
            let dir = if is_dir { Some(open_dir(&fd, name)?) } else { None };
            let attr = self.add(ino, name, attr, dir);
            if attr.kind == FileType::Symlink
                && let Some(node) = self.nodes.get_mut(&attr.ino.0)
            {
                node.target = fs::readlinkat(&*fd, name, Vec::new())?.into_bytes();
            }
            self.load(attr.ino.0)?;
        }
        Ok(())
    }
}
