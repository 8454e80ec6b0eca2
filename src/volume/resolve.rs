//! Resolution of an inode of the mount to its backing file.
//!
//! A file is first looked up where it was seen last: one name in an open directory, without
//! following links. The file found there is compared with the inode; if it differs or is missing,
//! the file handle leads to the right file, or fails with ESTALE if it is gone.
//!
//! An inode number alone identifies no file, as it is reused. So each file that is found by its
//! number, also one in use, is compared before it is used ([`Node::is`]).

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Volume;
use super::identity::Seen;
use super::inode::Node;
use super::stat::{stat_at, stat_of};
use crate::error::cause::{UNKNOWN_INODE, because, when};
use crate::mapping::{BackingFile, Descriptor, OpenMode};
use crate::sys;
use crate::tree::{Attr, Ino, Stat};

const PATH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Volume {
    /// Node with this inode number.
    pub(super) fn node(&self, ino: Ino) -> Result<Arc<Node>, Errno> {
        self.inodes.get(ino).ok_or_else(|| because(Errno::STALE, UNKNOWN_INODE))
    }

    /// Attributes of an inode, read through an open descriptor of the file.
    ///
    /// # Errors
    /// Errors of statx(2).
    pub fn attr_by(&self, ino: Ino, file: &OwnedFd) -> Result<Attr, Errno> {
        Ok(self.shown(ino, stat_of(file)?))
    }

    /// Attributes as the mount shows them: the directory of a single-file mount is not writable.
    pub(super) fn shown(&self, ino: Ino, mut stat: Stat) -> Attr {
        let validity = self.attr_validity(ino, &stat);
        if ino == Ino::ROOT {
            if self.shows_one_file() {
                stat.mode &= !0o222;
                stat.nlink = 2;
            }
            // The kernel uses its own number for the root; the attributes have the real one.
            return Attr { ino: Ino(stat.ino), stat, validity };
        }
        Attr { ino, stat, validity }
    }

    /// Attributes of a node.
    pub(super) fn stat(&self, node: &Node) -> Result<Stat, Errno> {
        if let Some(fd) = node.pinned() {
            return stat_of(&*fd);
        }
        if node.is_dir()
            && let Some(fd) = self.directories.get(node.ino)
        {
            return stat_of(&*fd);
        }
        if let Some((_, stat)) = self.in_use_by(node) {
            return Ok(stat);
        }
        if let Some(fd) = self.short_lived.get(node.ino) {
            return stat_of(&*fd);
        }
        if let Some(stat) = self.stat_by_name(node) {
            return Ok(stat);
        }
        stat_of(&self.pin(node)?)
    }

    /// Attributes of the file at the last name of a node, if they prove that it is the node's file.
    fn stat_by_name(&self, node: &Node) -> Option<Stat> {
        if node.is_ambiguous() {
            return None;
        }
        let (parent, name) = node.seen();
        let dir = self.directory(&*self.inodes.get(parent)?).ok()?;
        stat_at(&*dir, &name).ok().filter(|stat| node.is(&Seen::bare(stat)))
    }

    /// The backing file of a node with its attributes, if it is in use. While the value lives, no
    /// other file has its number.
    pub(super) fn in_use_by(&self, node: &Node) -> Option<(Arc<BackingFile>, Stat)> {
        let file = self.files.get(node.key())?;
        let descriptor = file.descriptor();
        let seen = Seen::by(descriptor.any().ok()?).ok()?;
        node.is(&seen).then_some((file, seen.stat))
    }

    /// Descriptor of a node's file, for calls for which O_PATH is enough.
    pub(super) fn pin(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = node.pinned() {
            return Ok(fd);
        }
        if node.is_dir() {
            return self.directory(node);
        }
        if let Some(fd) = self.short_lived.get(node.ino) {
            return Ok(fd);
        }
        // A file in use needs no open and close for each request.
        let open = self.in_use_by(node).and_then(|(file, _)| file.descriptor().shared());
        if let Some(fd) = open {
            return Ok(fd);
        }
        if let Some(fd) = self.pin_by_name(node) {
            return Ok(Arc::new(fd));
        }
        if let Some(fd) = self.open_by_handle(node, PATH)? {
            return Ok(Arc::new(fd));
        }
        Err(because(Errno::STALE, "its name is gone, and it has no file handle"))
    }

    pub(super) fn pin_by_name(&self, node: &Node) -> Option<OwnedFd> {
        let (parent, name) = node.seen();
        let dir = self.directory(&*self.inodes.get(parent)?).ok()?;
        let fd = rustix::fs::openat(&*dir, &*name, PATH, Mode::empty()).ok()?;
        verified(node, fd).ok()
    }

    /// Opens a node by its file handle: `None` when it has none.
    fn open_by_handle(&self, node: &Node, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        let Some(handle) = node.handle.as_ref().filter(|_| self.by_handle) else {
            return Ok(None);
        };
        let mount = self.devices.source();
        let fd = sys::handle::open_handle(&**mount, handle, flags | OFlags::CLOEXEC).map_err(
            when(Errno::STALE, "its file handle leads to no file: it was removed directly"),
        )?;
        verified(node, fd).map(Some)
    }

    /// An O_PATH descriptor of a directory.
    pub(super) fn directory(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        if !node.is_dir() {
            return Err(Errno::NOTDIR);
        }
        if let Some(fd) = node.pinned().or_else(|| self.directories.get(node.ino)) {
            return Ok(fd);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = match self.open_by_handle(node, flags)? {
            Some(fd) => Arc::new(fd),
            None => self.descend(node)?,
        };
        self.remember_open(node, &fd);
        Ok(fd)
    }

    /// Keeps a directory open, unless it is on another mount, which must stay unmountable.
    fn remember_open(&self, node: &Node, fd: &Arc<OwnedFd>) {
        if self.devices.is_main(node.key()) && !self.is_one_of_the_last(fd) {
            self.directories.put(node.ino, fd);
        }
    }

    /// Finds a directory by the names from the nearest open one above it.
    fn descend(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        let mut way = Vec::new();
        // Direct renames in the backing tree may have made the path circular.
        let mut met = HashSet::new();
        let mut child = self.node(node.ino)?;
        let mut fd = loop {
            let (parent, name) = child.seen();
            if !met.insert(child.ino) {
                return Err(because(Errno::STALE, "the directories above it form a circle"));
            }
            way.push((child, name));
            let above = self.node(parent)?;
            if let Some(fd) = above.pinned().or_else(|| self.directories.get(parent)) {
                break fd;
            }
            child = above;
        };
        for (child, name) in way.iter().rev() {
            let found = rustix::fs::openat(&*fd, &**name, PATH | OFlags::DIRECTORY, Mode::empty())
                .map_err(|err| match err {
                    Errno::MFILE | Errno::NFILE => err,
                    _ => because(Errno::STALE, "a directory above it is not where it was"),
                })?;
            fd = Arc::new(verified(child, found)?);
            self.remember_open(child, &fd);
        }
        Ok(fd)
    }

    /// Open directory with this inode number, to look up or change names in it.
    pub(super) fn open_parent(&self, ino: Ino) -> Result<Arc<OwnedFd>, Errno> {
        let node = self.node(ino)?;
        let dir = self.with_a_descriptor(|| self.directory(&node))?;
        self.watch_directory(&node, &*dir);
        Ok(dir)
    }

    /// Opens the backing file of a node. With `wait` it waits for the holder of a lease to give
    /// way.
    ///
    /// # Errors
    /// EAGAIN without `wait` when somebody holds a lease; errors of open(2).
    pub(super) fn open_backing(
        &self,
        node: &Node,
        mode: OpenMode,
        wait: bool,
    ) -> Result<Descriptor, Errno> {
        if node.kind() != libc::S_IFREG {
            return Err(Errno::INVAL);
        }
        let open = |flags: OFlags| {
            let patience = if wait { OFlags::empty() } else { OFlags::NONBLOCK };
            self.open_with(node, flags | patience)
        };
        if mode == OpenMode::Read {
            return Ok(Descriptor::new(open(OFlags::RDONLY)?, true, false));
        }
        match open(OFlags::RDWR) {
            Ok(fd) => Ok(Descriptor::new(fd, true, true)),
            Err(Errno::ACCESS) => Ok(Descriptor::new(open(OFlags::WRONLY)?, false, true)),
            Err(Errno::PERM) if mode == OpenMode::Append => {
                let writer = open(OFlags::WRONLY | OFlags::APPEND)?;
                Ok(Descriptor::for_appending(writer, open(OFlags::RDONLY).ok()))
            }
            Err(err) => Err(err),
        }
    }

    /// Opens a node's file. The caller's flags are not passed on: appends, truncations and direct
    /// I/O are separate requests.
    fn open_with(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        let fd = self.open_anyhow(node, flags)?;
        self.access_times.leave(&fd);
        Ok(fd)
    }

    fn open_anyhow(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        if node.pinned().is_none() {
            match self.open_by_handle(node, flags) {
                Ok(Some(fd)) => return Ok(fd),
                Ok(None) | Err(Errno::STALE) => {}
                Err(err) => return Err(err),
            }
        }
        let pin = self.pin(node)?;
        rustix::fs::open(sys::fd_path(pin.as_fd()), flags | OFlags::CLOEXEC, Mode::empty())
    }
}

/// Returns a descriptor if it is open on the node's file.
fn verified(node: &Node, fd: OwnedFd) -> Result<OwnedFd, Errno> {
    let seen = Seen::by(&fd)?;
    if !node.is(&seen) {
        return Err(because(Errno::STALE, "another file is in its place"));
    }
    node.confirm(&seen);
    Ok(fd)
}
