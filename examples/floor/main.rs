//! The least that a FUSE daemon of this library can do: what is left is the kernel's FUSE itself.
//!
//! `floor SOURCE MOUNTPOINT` shows a directory as mmapfs does, without what makes it fit for use. Names
//! and attributes are read once at the start and answered from memory; what changes a name is one plain
//! system call on the source; a file is opened and handed to the kernel, which reads and writes it.
//! With `--cached` it is the kernel's to read by requests and to keep, and nothing is written.
//! Nothing is checked: no change made directly is seen, nothing belongs to its caller, no race is met.
//!
//! `scripts/bench` measures it beside mmapfs (docs/bench.md). It needs root, and Linux 6.9.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::*;
use mmapfs::fuse::BusyPoll;
use parking_lot::RwLock;
use rustix::fs::{self, AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid};

mod tree;
mod turn;

use tree::{Tree, attr_of, new_attr, open_dir};
use turn::{POLLING, Turn};

/// How long the kernel may use what it is told.
const LONG: Duration = Duration::from_secs(3600);

/// As mmapfs asks for (`src/fuse/features.rs`); anything less would make other requests.
const FEATURES: [InitFlags; 12] = [
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HAS_IOCTL_DIR,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_PASSTHROUGH,
];

struct Floor {
    tree: RwLock<Tree>,
    /// The files that are read by requests; `None` when all are handed to the kernel.
    cached: Option<RwLock<HashMap<u64, Arc<OwnedFd>>>>,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 20]);
}

type Answer<T> = Result<T, Errno>;

fn failed(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// Replies with what a request came to.
macro_rules! reply {
    ($reply:ident, $result:expr, $value:ident => $sent:expr) => {
        match $result {
            Ok($value) => $sent,
            Err(error) => $reply.error(error),
        }
    };
}

impl Floor {
    fn fd(&self, ino: INodeNo) -> Answer<Arc<OwnedFd>> {
        self.tree.read().dir(ino.0).map(|dir| Arc::clone(&dir.fd)).ok_or(Errno::ENOTDIR)
    }

    /// The directory of a file, open, and its name there.
    fn place(&self, ino: INodeNo) -> Answer<(Arc<OwnedFd>, OsString)> {
        let at = self.tree.read().nodes.get(&ino.0).map(|node| node.at.clone());
        let (parent, name) = at.ok_or(Errno::ENOENT)?;
        Ok((self.fd(INodeNo(parent))?, name))
    }

    /// Attributes from memory, but for a file that is being written.
    fn attr(&self, ino: INodeNo) -> Answer<FileAttr> {
        let node = self.tree.read().nodes.get(&ino.0).map(|node| (node.attr, node.written));
        let (known, written) = node.ok_or(Errno::ESTALE)?;
        if !written {
            return Ok(known);
        }
        let (fd, name) = self.place(ino)?;
        let Ok(stat) = fs::statat(&*fd, &name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(known) };
        let now = attr_of(&stat, ino.0);
        let attr = FileAttr { nlink: known.nlink, ..now };
        if let Some(node) = self.tree.write().nodes.get_mut(&ino.0) {
            node.attr = attr;
            node.written = node.opens > 0;
        }
        Ok(attr)
    }

    /// Makes something by one system call and enters it.
    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        attr: FileAttr,
        target: Option<&Path>,
        make: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> Answer<FileAttr> {
        let fd = self.fd(parent)?;
        make(&fd).map_err(failed)?;
        let is_dir = attr.kind == FileType::Directory;
        let dir = if is_dir { Some(open_dir(&fd, name)?) } else { None };
        let mut tree = self.tree.write();
        let attr = tree.add(parent.0, name, attr, dir);
        if let (Some(target), Some(node)) = (target, tree.nodes.get_mut(&attr.ino.0)) {
            node.target = target.as_os_str().as_bytes().to_vec();
        }
        Ok(attr)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Answer<()> {
        fs::unlinkat(&*self.fd(parent)?, name, flags).map_err(failed)?;
        if let Some(node) = self.tree.write().unlink(parent.0, name) {
            node.attr.nlink = if node.dir.is_some() { 0 } else { node.attr.nlink - 1 };
        }
        Ok(())
    }

    /// Opens a file to be read by requests.
    fn open_cached(&self, files: &RwLock<HashMap<u64, Arc<OwnedFd>>>, ino: INodeNo) -> Answer<()> {
        if !files.read().contains_key(&ino.0) {
            let (fd, name) = self.place(ino)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file = fs::openat(&*fd, &name, flags, Mode::empty()).map_err(failed)?;
            files.write().insert(ino.0, Arc::new(file));
        }
        Ok(())
    }

    /// Counts an open. All of one inode use one backing file.
    fn opened(&self, ino: u64, write: bool, mine: Option<BackingId>) -> Option<Arc<BackingId>> {
        let mut tree = self.tree.write();
        let node = tree.nodes.get_mut(&ino)?;
        if node.backing.is_none() {
            node.backing = mine.map(Arc::new);
        }
        let backing = node.backing.clone()?;
        node.opens += 1;
        node.written |= write;
        Some(backing)
    }
}

#[rustfmt::skip]
impl Filesystem for Floor {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("this kernel does not offer {what}"));
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(64);
        for flag in FEATURES {
            config.add_capabilities(flag).map_err(|_| refused(&format!("{flag:?}")))?;
        }
        config.set_max_stack_depth(1).map_err(|_| refused("passthrough")).map(drop)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = Turn::begin();
        let tree = self.tree.read();
        let found = tree.dir(parent.0).and_then(|dir| dir.names.get(name));
        let attr = found.and_then(|(_, ino)| tree.nodes.get(ino)).map(|node| node.attr);
        drop(tree);
        match attr {
            Some(attr) => reply.entry(&LONG, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _count: u64) {
        let mut tree = self.tree.write();
        if tree.nodes.get(&ino.0).is_some_and(|node| node.attr.nlink == 0) {
            tree.nodes.remove(&ino.0);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _turn = Turn::begin();
        reply!(reply, self.attr(ino), attr => reply.attr(&LONG, &attr));
    }

    fn setattr(
        &self, _req: &Request, ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>,
        size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>, _crtime: Option<SystemTime>, _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>, _flags: Option<BsdFileFlags>, reply: ReplyAttr,
    ) {
        let _turn = Turn::begin();
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = |time: Option<TimeOrNow>| match time {
            None => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
            Some(TimeOrNow::SpecificTime(at)) => {
                Timespec { tv_sec: since(at).as_secs() as i64, tv_nsec: since(at).subsec_nanos().into() }
            }
        };
        let change = || -> rustix::io::Result<()> {
            let (fd, name) = self.place(ino).map_err(|_| rustix::io::Errno::STALE)?;
            let (fd, name) = (&*fd, &*name);
            if let Some(mode) = mode {
                fs::chmodat(fd, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
            }
            if uid.is_some() || gid.is_some() {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                fs::chownat(fd, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            if let Some(size) = size {
                fs::ftruncate(fs::openat(fd, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?, size)?;
            }
            if atime.is_some() || mtime.is_some() {
                let times = Timestamps { last_access: stamp(atime), last_modification: stamp(mtime) };
                fs::utimensat(fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        };
        if let Err(error) = change() {
            return reply.error(failed(error));
        }
        let mut tree = self.tree.write();
        let Some(node) = tree.nodes.get_mut(&ino.0) else { return reply.error(Errno::ESTALE) };
        let now = SystemTime::now();
        let set = |time: &mut SystemTime, new: Option<TimeOrNow>| match new {
            None => {}
            Some(TimeOrNow::Now) => *time = now,
            Some(TimeOrNow::SpecificTime(at)) => *time = at,
        };
        let attr = &mut node.attr;
        attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        (attr.uid, attr.gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
        attr.size = size.unwrap_or(attr.size);
        set(&mut attr.atime, atime);
        set(&mut attr.mtime, if size.is_some() { Some(TimeOrNow::Now) } else { mtime });
        attr.ctime = now;
        drop(tree);
        reply!(reply, self.attr(ino), attr => reply.attr(&LONG, &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _turn = Turn::begin();
        match self.tree.read().nodes.get(&ino.0) {
            Some(node) => reply.data(&node.target),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _turn = Turn::begin();
        let attr = new_attr(req, FileType::Directory, mode, umask);
        let made = self.make(parent, name, attr, None, |fd| fs::mkdirat(fd, name, Mode::from(u32::from(attr.perm))));
        reply!(reply, made, attr => reply.entry(&LONG, &attr, Generation(0)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _turn = Turn::begin();
        let size = target.as_os_str().len() as u64;
        let attr = FileAttr { size, ..new_attr(req, FileType::Symlink, 0o777, 0) };
        let made = self.make(parent, name, attr, Some(target), |fd| fs::symlinkat(target, fd, name));
        reply!(reply, made, attr => reply.entry(&LONG, &attr, Generation(0)));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = Turn::begin();
        reply!(reply, self.remove(parent, name, AtFlags::empty()), _done => reply.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = Turn::begin();
        reply!(reply, self.remove(parent, name, AtFlags::REMOVEDIR), _done => reply.ok());
    }

    fn rename(
        &self, _req: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        let _turn = Turn::begin();
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            return reply.error(Errno::EINVAL);
        }
        let rename = || -> Answer<()> {
            let flags = fs::RenameFlags::from_bits_retain(flags.bits());
            fs::renameat_with(&*self.fd(parent)?, name, &*self.fd(new_parent)?, new_name, flags).map_err(failed)?;
            let mut tree = self.tree.write();
            let Some(node) = tree.unlink(parent.0, name) else { return Ok(()) };
            node.at = (new_parent.0, new_name.to_owned());
            let ino = node.attr.ino.0;
            if let Some(node) = tree.unlink(new_parent.0, new_name) {
                node.attr.nlink = node.attr.nlink.saturating_sub(1);
            }
            tree.link(new_parent.0, new_name, ino);
            Ok(())
        };
        reply!(reply, rename(), _done => reply.ok());
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = Turn::begin();
        let link = || -> Answer<FileAttr> {
            let (from, old) = self.place(ino)?;
            fs::linkat(&*from, &old, &*self.fd(parent)?, name, AtFlags::empty()).map_err(failed)?;
            let mut tree = self.tree.write();
            tree.link(parent.0, name, ino.0);
            let node = tree.nodes.get_mut(&ino.0).ok_or(Errno::ESTALE)?;
            node.attr.nlink += 1;
            node.at = (parent.0, name.to_owned()); // The older one may go: git removes it at once.
            Ok(node.attr)
        };
        reply!(reply, link(), attr => reply.entry(&LONG, &attr, Generation(0)));
    }

    fn create(
        &self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _flags: i32,
        reply: ReplyCreate,
    ) {
        let _turn = Turn::begin();
        let mut backing = None;
        let attr = new_attr(req, FileType::RegularFile, mode, umask);
        let made = self.make(parent, name, attr, None, |fd| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
            let file = fs::openat(fd, name, flags, Mode::from(u32::from(attr.perm)))?;
            backing = reply.open_backing(&file).ok();
            Ok(())
        });
        let opened = made.and_then(|attr| Ok((attr, self.opened(attr.ino.0, true, backing).ok_or(Errno::EIO)?)));
        reply!(reply, opened, made => {
            let (attr, id) = made;
            reply.created_passthrough(&LONG, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id);
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _turn = Turn::begin();
        if let Some(files) = &self.cached {
            if flags.acc_mode() != OpenAccMode::O_RDONLY {
                return reply.error(Errno::EROFS);
            }
            let kept = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            return reply!(reply, self.open_cached(files, ino), _done => reply.opened(FileHandle(0), kept));
        }
        let open = || -> Answer<Arc<BackingId>> {
            let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
            if let Some(backing) = self.opened(ino.0, write, None) {
                return Ok(backing);
            }
            let (fd, name) = self.place(ino)?;
            let file = fs::openat(&*fd, &name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            let backing = reply.open_backing(&file)?;
            self.opened(ino.0, write, Some(backing)).ok_or(Errno::ESTALE)
        };
        reply!(reply, open(), id => reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id));
    }

    fn read(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, size: u32, _flags: OpenFlags,
        _lock: Option<LockOwner>, reply: ReplyData,
    ) {
        let _turn = Turn::begin();
        let file = self.cached.as_ref().and_then(|files| files.read().get(&ino.0).cloned());
        let Some(file) = file else { return reply.error(Errno::EBADF) };
        BUFFER.with_borrow_mut(|buffer| {
            let wanted = buffer.len().min(size as usize);
            match rustix::io::pread(&file, &mut buffer[..wanted], offset) {
                Ok(count) => reply.data(&buffer[..count]),
                Err(error) => reply.error(failed(error)),
            }
        });
    }

    fn release(
        &self, _req: &Request, ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, _lock: Option<LockOwner>,
        _flush: bool, reply: ReplyEmpty,
    ) {
        let _turn = Turn::begin();
        if self.cached.is_some() {
            return reply.ok();
        }
        let mut ended = None;
        if let Some(node) = self.tree.write().nodes.get_mut(&ino.0) {
            node.opens -= 1;
            ended = if node.opens == 0 { node.backing.take() } else { None };
        }
        drop(ended);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let _turn = Turn::begin();
        let sync = || -> Answer<()> {
            let (fd, name) = self.place(ino)?;
            let file = fs::openat(&*fd, &name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            fs::fsync(file).map_err(failed)
        };
        reply!(reply, sync(), _done => reply.ok());
    }

    /// There are none. Saying that there never are would spare a question before the first write to
    /// each file, and no filesystem that has them may say it.
    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        let _turn = Turn::begin();
        reply.error(Errno::ENODATA);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _turn = Turn::begin();
        reply.error(Errno::ENOSYS); // The kernel does not ask again.
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _turn = Turn::begin();
        let tree = self.tree.read();
        for (cookie, (name, ino)) in tree.dir(ino.0).iter().flat_map(|dir| dir.order.range(offset + 1..)) {
            let kind = tree.nodes.get(ino).map_or(FileType::RegularFile, |node| node.attr.kind);
            if reply.add(INodeNo(*ino), *cookie, kind, name) {
                break;
            }
        }
        drop(tree);
        reply.ok();
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let _turn = Turn::begin();
        let tree = self.tree.read();
        for (cookie, (name, ino)) in tree.dir(ino.0).iter().flat_map(|dir| dir.order.range(offset + 1..)) {
            let Some(node) = tree.nodes.get(ino) else { continue };
            if reply.add(INodeNo(*ino), *cookie, name, &LONG, &node.attr, Generation(0)) {
                break;
            }
        }
        drop(tree);
        reply.ok();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (cached, places) = match &arguments[..] {
        [first, places @ ..] if first == "--cached" => (true, places),
        places => (false, places),
    };
    let [source, mountpoint] = places else {
        return Err("usage: floor [--cached] SOURCE MOUNTPOINT".into());
    };
    rustix::process::umask(Mode::empty());
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;

    let fd = fs::open(source, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let dir = open_dir(&fd, OsStr::new("."))?;
    let mut tree = Tree::default();
    tree.add(0, OsStr::new(""), attr_of(&fs::statat(CWD, source, AtFlags::empty())?, 1), Some(dir));
    tree.load(1)?;

    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.mount_options =
        vec![MountOption::FSName("floor".into()), MountOption::DefaultPermissions];
    config.n_threads = Some(4);
    config.clone_fd = true;
    let floor = Floor { tree: RwLock::new(tree), cached: cached.then(RwLock::default) };
    let session = Session::new(floor, mountpoint, &config)?;
    let device = rustix::io::fcntl_dupfd_cloexec(session.as_fd(), 0)?;
    POLLING.get_or_init(|| BusyPoll::new(device, Duration::from_micros(50)));
    let session = session.spawn()?;
    if cached {
        // As mmapfs lets the kernel read ahead; the library asks for an eighth of it.
        let minor = fs::minor(fs::statat(CWD, mountpoint, AtFlags::empty())?.st_dev);
        std::fs::write(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"), "1024")?;
    }
    session.join()?;
    Ok(())
}
