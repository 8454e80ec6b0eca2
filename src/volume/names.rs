//! Names: look up, make, link, rename, remove.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Volume;
use super::identity::Seen;
use super::inode::Node;
use super::stat::stat_at;
use crate::error::cause::because;
use crate::mapping::Descriptor;
use crate::sys;
use crate::sys::cred::{AsCaller, Caller};
use crate::tree::{Attr, Entry, Ino, Names, NewNode, Open, Opened, RegisterBacking, Stat};

/// Whether a name is one step into a directory and nothing else.
fn check_step(name: &OsStr) -> Result<(), Errno> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

impl Names for Volume {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        check_step(name)?;
        if !self.visible(parent, name) {
            return Err(Errno::NOENT);
        }
        let dir = self.open_parent(parent)?;
        let fd = match open_path(&*dir, name) {
            Ok(fd) => fd,
            Err(Errno::MFILE | Errno::NFILE) => return self.enter(parent, &*dir, name),
            Err(err) => return Err(err),
        };
        let changes = self.watched.changes();
        let seen = Seen::by(&fd)?;
        let entry = self.settled(self.remember(parent, &seen, name), changes);
        let stat = seen.stat;
        if self.is_one_of_the_last(&fd) {
            return Ok(entry);
        }
        if stat.is_dir() && self.devices.is_main(&stat) {
            self.directories.put(entry.attr.ino, &Arc::new(fd));
        } else {
            drop(self.short_lived.put(entry.attr.ino, Arc::new(fd)));
            self.sweeper.note();
        }
        Ok(entry)
    }

    fn forget(&self, ino: Ino, count: u64) {
        // A file that was looked up a moment ago stays held for its moment: the number may be
        // another file's by now, whose lookup this must not undo.
        if let Some(node) = self.inodes.forget(ino, count)
            && node.is_dir()
        {
            self.unwatch_directory(&node);
            self.directories.remove(ino);
            drop(self.streams.take(ino));
        }
    }

    fn path_of_inode(&self, ino: Ino) -> Option<PathBuf> {
        self.path_of(&*self.inodes.get(ino)?)
    }

    fn read_link(&self, ino: Ino) -> Result<OsString, Errno> {
        let node = self.node(ino)?;
        let apart = self.open_apart(&node, OFlags::PATH | OFlags::NOFOLLOW);
        let fd = apart.map_or_else(|| self.pin(&node), |fd| Ok(Arc::new(fd)))?;
        rustix::fs::readlinkat(&*fd, c"", Vec::new())
            .map(|target| OsString::from_vec(target.into_bytes()))
    }

    fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno> {
        let typeless = new.mode & libc::S_IFMT == 0; // A regular file, to mknod(2).
        let new = NewNode { mode: new.mode | if typeless { libc::S_IFREG } else { 0 }, ..*new };
        self.make(parent, name, &new, |dir, permissions| {
            let kind = FileType::from_raw_mode(new.mode);
            rustix::fs::mknodat(dir, name, kind, permissions, device)
        })
    }

    fn make_dir(&self, parent: Ino, name: &OsStr, new: &NewNode<'_>) -> Result<Entry, Errno> {
        let new = NewNode { mode: new.mode & 0o7777 | libc::S_IFDIR, ..*new };
        self.make(parent, name, &new, |dir, permissions| {
            rustix::fs::mkdirat(dir, name, permissions)
        })
    }

    fn make_symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let new = NewNode { mode: libc::S_IFLNK, umask: 0, caller };
        self.make(parent, name, &new, |dir, _| rustix::fs::symlinkat(target, dir, name))
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        how: &Open,
        exclusive: bool,
        register: &RegisterBacking<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        let made = self.make_in(parent, name, new, |dir, permissions| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW;
            rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC, permissions)
        });
        let fd = match made {
            Err(Errno::EXIST) if !exclusive => {
                return Err(because(Errno::STALE, "the name was made directly meanwhile"));
            }
            Err(err) => return Err(err),
            Ok((_, fd)) => fd,
        };
        // By its descriptor: whatever has become of the name, this is the file that was made. That
        // the name leads elsewhere by now is told after the answer to this request.
        let changes = self.watched.changes();
        let entry = self.settled(self.remember(parent, &Seen::by(&fd)?, name), changes);
        let opened = self
            .adopt(&entry, fd, how, (new.caller, register))
            .and_then(|opened| self.checked_for_direct(opened, *how));
        match opened {
            Ok(opened) => {
                let attr = Attr {
                    validity: self.attr_validity(entry.attr.ino, &entry.attr.stat),
                    ..entry.attr
                };
                Ok((Entry { attr, ..entry }, opened))
            }
            Err(err) => {
                self.forget(entry.attr.ino, 1);
                Err(err)
            }
        }
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        check_step(name)?;
        self.check_name(parent, name)?;
        let node = self.node(ino)?;
        self.check_changeable(&node)?;
        let dir = self.open_parent(parent)?;
        let fd = self.pin(&node)?;
        if self.by_handle {
            rustix::fs::linkat(&*fd, c"", &*dir, name, AtFlags::EMPTY_PATH)?;
        } else {
            // An empty path needs CAP_DAC_READ_SEARCH; following the descriptor's own link does
            // not, and ends at the file itself, also when that is a symbolic link.
            let path = sys::fd_path(fd.as_fd());
            rustix::fs::linkat(CWD, &path, &*dir, name, AtFlags::SYMLINK_FOLLOW)?;
        }
        self.enter(parent, &*dir, name)
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        check_step(name)?;
        if !self.visible(parent, name) {
            return Err(Errno::NOENT);
        }
        self.check_name(parent, name)?;
        let dir = self.open_parent(parent)?;
        let held = self.hold(parent, &dir, name);
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&*dir, name, flags)?;
        self.keep(held);
        Ok(())
    }

    fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        for (parent, name) in [from, to] {
            check_step(name)?;
            self.check_name(parent, name)?;
        }
        let (old, new) = (self.open_parent(from.0)?, self.open_parent(to.0)?);
        let moved = stat_at(&*old, from.1)?;
        if moved.is_dir() && self.has_mixed_rules() {
            return Err(Errno::XDEV); // Its contents would come under other rules.
        }
        let exchanges = flags.contains(RenameFlags::EXCHANGE);
        let held = if exchanges { None } else { self.hold(to.0, &new, to.1) };
        {
            // RENAME_WHITEOUT makes a node, which belongs to the caller.
            let whiteout = flags.contains(RenameFlags::WHITEOUT);
            let _as_caller = if whiteout { AsCaller::enter(caller, false)? } else { None };
            rustix::fs::renameat_with(&*old, from.1, &*new, to.1, flags)?;
        }
        // Two names of one file: nothing was renamed, and nothing has lost its name.
        if held.as_ref().is_none_or(|held| held.node.key() != moved.key()) {
            self.keep(held);
        }
        self.look_for_moved(&new, to);
        if exchanges {
            self.look_for_moved(&old, from);
        }
        Ok(())
    }
}

impl Volume {
    /// Attributes of the file at a name, without a lookup, and its number when that is known.
    ///
    /// # Errors
    /// ENOENT when there is no such name; errors of statx(2).
    pub fn peek(&self, parent: Ino, name: &OsStr) -> Result<(Stat, Option<Ino>), Errno> {
        check_step(name)?;
        if !self.visible(parent, name) {
            return Err(Errno::NOENT);
        }
        let (stat, node) = self.known_at(&*self.open_parent(parent)?, name)?;
        Ok((stat, node.map(|node| node.ino)))
    }

    /// The file that a name in an open directory leads to, and its node if it is known.
    fn known_at(&self, dir: impl AsFd, name: &OsStr) -> Result<(Stat, Option<Arc<Node>>), Errno> {
        let stat = stat_at(&dir, name)?;
        let number = self.devices.number(&stat, stat.ino);
        let node = self.inodes.find(number, &Seen::bare(&stat));
        if node.is_some() || !self.inodes.may_know(number) {
            return Ok((stat, node));
        }
        let fd = self.with_a_descriptor(|| open_path(&dir, name))?;
        let seen = Seen::by(&fd)?;
        let number = self.devices.number(&seen.stat, seen.stat.ino);
        Ok((seen.stat, self.inodes.find(number, &seen)))
    }

    /// Counts a lookup of a name in an open directory.
    pub(super) fn enter(&self, parent: Ino, dir: impl AsFd, name: &OsStr) -> Result<Entry, Errno> {
        let changes = self.watched.changes();
        let stat = stat_at(&dir, name)?;
        let number = self.devices.number(&stat, stat.ino);
        // A file that is known, and by its attributes alone, needs no descriptor.
        if let Some(node) = self.inodes.look_up_known(number, &Seen::bare(&stat)) {
            return Ok(self.settled(self.entry_of(&node, &stat, parent, name), changes));
        }
        let entry = match open_path(&dir, name) {
            Ok(fd) => self.remember(parent, &Seen::by(&fd)?, name),
            Err(Errno::MFILE | Errno::NFILE) => {
                self.remember(parent, &seen_from(&dir, name)?, name)
            }
            Err(err) => return Err(err),
        };
        Ok(self.settled(entry, changes))
    }

    /// Counts a lookup of a file that was found at `name` in `parent`.
    pub(super) fn remember(&self, parent: Ino, seen: &Seen<'_>, name: &OsStr) -> Entry {
        let number = self.devices.number(&seen.stat, seen.stat.ino);
        let node = self.inodes.remember(number, seen, |ino| {
            Node::new(ino, &seen.stat, self.devices.identity(seen), parent, name)
        });
        self.entry_of(&node, &seen.stat, parent, name)
    }

    /// The answer to a lookup that was counted.
    fn entry_of(&self, node: &Node, stat: &Stat, parent: Ino, name: &OsStr) -> Entry {
        let ino = node.ino;
        node.seen_at(parent, name, stat.nlink > 0);
        let attr = Attr { ino, stat: *stat, validity: self.attr_validity(ino, stat) };
        let validity = self.entry_validity(parent, stat);
        Entry { attr, generation: node.generation(), validity }
    }

    /// Notes the name by which an inode is used, of several that it may have: rules go by that.
    pub fn used_by(&self, ino: Ino, parent: Ino, name: &OsStr) {
        if let Some(node) = self.inodes.get(ino) {
            node.seen_at(parent, name, false);
        }
    }

    /// Counts one more lookup of an inode of which one is held, without asking anything. False
    /// where none is.
    pub fn look_up_again(&self, ino: Ino) -> bool {
        ino == Ino::ROOT || self.inodes.look_up_again(ino)
    }

    /// Makes something in a directory as the caller; returns the directory with it.
    fn make_in<T>(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        make: impl FnOnce(&OwnedFd, Mode) -> Result<T, Errno>,
    ) -> Result<(Arc<OwnedFd>, T), Errno> {
        check_step(name)?;
        self.check_name(parent, name)?;
        let dir = self.open_parent(parent)?;
        let _as_caller = AsCaller::enter(new.caller, new.mode & libc::S_ISGID != 0)?;
        sys::cred::set_thread_umask(new.umask)?;
        let made = make(&dir, Mode::from_raw_mode(new.mode & 0o7777))?;
        Ok((dir, made))
    }

    /// Makes something in a directory as the caller, and looks it up.
    fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        make: impl FnOnce(&OwnedFd, Mode) -> Result<(), Errno>,
    ) -> Result<Entry, Errno> {
        let (dir, ()) = self.make_in(parent, name, new, make)?;
        let entry = self.enter(parent, &*dir, name)?;
        if entry.attr.stat.kind() == new.mode & libc::S_IFMT {
            return Ok(entry);
        }
        // Replaced in the backing tree since: the kernel looks again.
        self.forget(entry.attr.ino, 1);
        Err(because(Errno::STALE, "it was replaced directly at once"))
    }

    /// Turns the descriptor of a file just made into a handle.
    fn adopt(
        &self,
        entry: &Entry,
        fd: OwnedFd,
        how: &Open,
        candidate: (&Caller, &RegisterBacking<'_>),
    ) -> Result<Opened, Errno> {
        let node = self.node(entry.attr.ino)?;
        let mode = self.mode_of(&node);
        let (fd, writable) = if how.write {
            (fd, true)
        } else {
            // Not held open for writing, so that the backing file can be executed.
            let path = sys::fd_path(fd.as_fd());
            match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(reader) => (reader, false),
                Err(_) => (fd, true), // Its permissions do not even let us read.
            }
        };
        self.access_times.leave(&fd);
        let descriptor = Descriptor::new(fd, true, writable);
        let file = self.files.open(node.key(), descriptor, how.mode(), &mode);
        self.add_handle(&node, file, how, &mode, candidate, Some(&entry.attr.stat))
    }

    /// The file that is about to lose a name, held so that its inode number is not given to another
    /// file while the kernel still knows it.
    fn hold(&self, parent: Ino, dir: &OwnedFd, name: &OsStr) -> Option<Held> {
        // Opened first: what the kernel removes it has looked up, and one look says what it is.
        let fd = open_path(dir, name).ok()?;
        let seen = Seen::by(&fd).ok()?;
        let stat = seen.stat;
        let node = self.inodes.find(self.devices.number(&stat, stat.ino), &seen)?;
        // One of several names: the file lives on, and its handle finds it.
        if !stat.is_dir() && stat.nlink > 1 && self.by_handle && node.handle.is_some() {
            return None;
        }
        let last = stat.is_dir() || stat.nlink == 1;
        Some(Held { node, fd, at: (parent, name.into()), last })
    }

    /// Pins what has lost its name.
    fn keep(&self, held: Option<Held>) {
        let Some(Held { node, fd, at, last }) = held else { return };
        let mut place = node.place.lock();
        if last || (place.parent == at.0 && *place.name == *at.1) {
            place.pinned = Some(Arc::new(fd));
        }
        drop(place);
        self.directories.remove(node.ino);
    }

    /// Notes what is at a name to which something was moved, directly in the backing tree or by us.
    fn look_for_moved(&self, dir: &OwnedFd, (parent, name): (Ino, &OsStr)) {
        if let Ok((_, Some(node))) = self.known_at(dir, name) {
            node.seen_at(parent, name, true);
        }
    }
}

/// A descriptor of what one name in an open directory leads to; a symbolic link is itself.
fn open_path(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// The file that a name leads to, where there is no descriptor to be had. The handle is that of the
/// file with these attributes where the name had it before and after.
fn seen_from(dir: impl AsFd, name: &OsStr) -> Result<Seen<'static>, Errno> {
    let step = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let handle = || sys::handle::handle_of(&dir, &step).ok();
    let before = handle();
    let stat = stat_at(&dir, name)?;
    let same = before == handle();
    Ok(Seen::with_handle(&stat, before.filter(|_| same)))
}

/// A file whose name is about to go.
struct Held {
    node: Arc<Node>,
    fd: OwnedFd,
    at: (Ino, Box<OsStr>),
    /// It is the only name.
    last: bool,
}
