//! One tree out of two: the served tree, with the control tree mounted in its root.
//!
//! Inodes and handles from [`FIRST_RESERVED`] on belong to the control tree, all others to the
//! served one; so one comparison finds the owner of a request. The served tree never sees a
//! reserved number. It hides its own entry of the name of the control tree by itself, since its
//! control verbs find files by path.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{RenameFlags, StatVfs};
use rustix::io::Errno;

use super::control_tree::ControlTree;
use crate::config::ControlVisibility;
use crate::sys::cred::Caller;
use crate::tree::{
    Attr, Attributes, Caching, DataOnly, DirItem, Directories, Entry, FIRST_RESERVED, Files,
    HandleId, Ino, Ioctl, Names, NewNode, Open, Opened, Passthrough, RegisterBacking, SeekTo,
    SetAttr, Tree, Validity, WriteRequest, XattrFlags, Xattrs,
};

#[cfg(test)]
mod tests;

/// The attribute of the root that names the control directory, so that clients find it.
const XATTR: &str = "user.mmapfs.control";

/// The cookie after the control directory in a listing of the root, above every cookie of a
/// backing filesystem.
const AFTER_LAST: u64 = i64::MAX as u64 - 15;

/// The tree of a mount.
pub struct Router {
    served: Arc<dyn Tree>,
    control: ControlTree,
    name: OsString,
    visibility: ControlVisibility,
}

impl Router {
    /// Mounts `control` at `name` in the root of `served`.
    pub fn new(
        served: Arc<dyn Tree>,
        control: ControlTree,
        name: OsString,
        visibility: ControlVisibility,
    ) -> Router {
        Router { served, control, name, visibility }
    }

    /// The owner of an inode.
    fn owner(&self, ino: Ino) -> &dyn Tree {
        if is_reserved(ino) { &self.control } else { &*self.served }
    }

    /// The owner of a handle. The handle of an open without a request is the served tree's.
    fn handle_owner(&self, id: HandleId) -> &dyn Tree {
        if id.0 >= FIRST_RESERVED { &self.control } else { &*self.served }
    }

    /// Whether a name is the mount point of the control tree.
    fn is_mount_point(&self, parent: Ino, name: &OsStr) -> bool {
        parent == Ino::ROOT && self.visibility != ControlVisibility::Off && name == self.name
    }

    /// The entry of the mount point, which shows the root of the control tree.
    fn mount_point(&self) -> Result<Entry, Errno> {
        let attr = self.control.attr(ControlTree::ROOT, None)?;
        Ok(Entry { attr, generation: 0, validity: attr.validity })
    }
}

fn is_reserved(ino: Ino) -> bool {
    ino.0 >= FIRST_RESERVED
}

impl Names for Router {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        if self.is_mount_point(parent, name) {
            return self.mount_point();
        }
        self.owner(parent).lookup(parent, name)
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.owner(ino).forget(ino, count);
    }

    fn path_of_inode(&self, ino: Ino) -> Option<PathBuf> {
        match is_reserved(ino) {
            true => self.control.path_of_inode(ino).map(|path| Path::new(&self.name).join(path)),
            false => self.served.path_of_inode(ino),
        }
    }

    fn read_link(&self, ino: Ino) -> Result<OsString, Errno> {
        self.owner(ino).read_link(ino)
    }

    fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno> {
        self.owner(parent).make_node(parent, name, new, device)
    }

    fn make_dir(&self, parent: Ino, name: &OsStr, new: &NewNode<'_>) -> Result<Entry, Errno> {
        self.owner(parent).make_dir(parent, name, new)
    }

    fn make_symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        self.owner(parent).make_symlink(parent, name, target, caller)
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
        self.owner(parent).create(parent, name, new, how, exclusive, register)
    }

    /// Fails with EPERM from one tree to the other.
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        if is_reserved(ino) != is_reserved(parent) {
            return Err(Errno::PERM);
        }
        self.owner(ino).link(ino, parent, name)
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        self.owner(parent).remove(parent, name, directory)
    }

    /// Fails with EPERM from one tree to the other.
    fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        if is_reserved(from.0) != is_reserved(to.0) {
            return Err(Errno::PERM);
        }
        self.owner(from.0).rename(from, to, flags, caller)
    }
}

impl Files for Router {
    fn open(
        &self,
        ino: Ino,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno> {
        self.owner(ino).open(ino, how, caller, register)
    }

    fn close(&self, ino: Ino, id: HandleId, closer: u64, wait: bool) -> Result<(), Errno> {
        self.owner(ino).close(ino, id, closer, wait)
    }

    fn release(&self, id: HandleId) -> Result<(), Errno> {
        self.handle_owner(id).release(id)
    }

    fn read(
        &self,
        ino: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        self.owner(ino).read(ino, id, offset, len, deliver)
    }

    fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        self.handle_owner(id).write(id, offset, data, request, caller)
    }

    fn sync(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        self.owner(ino).sync(ino, id, data_only)
    }

    fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        self.handle_owner(id).allocate(id, offset, len, mode, caller)
    }

    fn seek(&self, ino: Ino, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        self.owner(ino).seek(ino, id, offset, to)
    }

    /// Fails with EBADF from one tree to the other.
    fn copy_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        if (from.0.0 >= FIRST_RESERVED) != (to.0.0 >= FIRST_RESERVED) {
            return Err(Errno::BADF);
        }
        self.handle_owner(from.0).copy_range(from, to, len, caller)
    }

    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        request: &Ioctl<'_>,
        caller: &Caller,
    ) -> Result<(i32, Vec<u8>), Errno> {
        self.owner(ino).ioctl(ino, id, request, caller)
    }
}

impl Attributes for Router {
    fn attr(&self, ino: Ino, handle: Option<HandleId>) -> Result<Attr, Errno> {
        self.owner(ino).attr(ino, handle)
    }

    fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        caller: &Caller,
    ) -> Result<Attr, Errno> {
        self.owner(ino).set_attr(ino, handle, change, caller)
    }

    /// The control tree has the room of the root.
    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno> {
        self.served.statistics(if is_reserved(ino) { Ino::ROOT } else { ino })
    }
}

impl Directories for Router {
    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno> {
        self.owner(ino).open_dir(ino)
    }

    fn release_dir(&self, id: HandleId) -> Result<(), Errno> {
        self.handle_owner(id).release_dir(id)
    }

    /// The mount point comes last in the root, if it is listed at all.
    fn list(
        &self,
        directory: (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let lists = directory.0 == Ino::ROOT && self.visibility == ControlVisibility::Visible;
        if !lists {
            return self.owner(directory.0).list(directory, offset, look_up, add);
        }
        if offset == AFTER_LAST {
            return Ok(true);
        }
        if !self.served.list(directory, offset, look_up, add)? {
            return Ok(false);
        }
        let entry = self.mount_point()?;
        let is_full = add(&DirItem {
            name: &self.name,
            ino: entry.attr.ino,
            kind: entry.attr.stat.kind(),
            next: AFTER_LAST,
            entry: look_up.then_some(entry),
            known: true,
        });
        Ok(!is_full)
    }

    fn sync_dir(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        self.owner(ino).sync_dir(ino, id, data_only)
    }
}

impl Xattrs for Router {
    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        let has_name = self.visibility != ControlVisibility::Off;
        if ino == Ino::ROOT && has_name && name == XATTR {
            return copy_value(self.name.as_encoded_bytes(), buffer);
        }
        self.owner(ino).get_xattr(ino, name, buffer)
    }

    fn list_xattr(&self, ino: Ino, buffer: &mut [u8], caller: &Caller) -> Result<usize, Errno> {
        self.owner(ino).list_xattr(ino, buffer, caller)
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        self.owner(ino).set_xattr(ino, name, value, flags, caller)
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        self.owner(ino).remove_xattr(ino, name)
    }
}

impl Caching for Router {
    fn names_validity(&self, parent: Ino) -> Validity {
        self.owner(parent).names_validity(parent)
    }

    fn keeps_listings(&self, dir: Ino) -> bool {
        self.owner(dir).keeps_listings(dir)
    }

    fn drops_all_names(&self) -> bool {
        self.served.drops_all_names()
    }
}

impl Passthrough for Router {
    fn source_is_stacked(&self) -> bool {
        self.served.source_is_stacked()
    }

    fn close_passthrough(&self, reason: Option<String>) {
        self.served.close_passthrough(reason);
    }
}

/// Answers a request for the value of an attribute: an empty buffer asks for its size.
fn copy_value(value: &[u8], buffer: &mut [u8]) -> Result<usize, Errno> {
    if buffer.is_empty() {
        return Ok(value.len());
    }
    buffer.get_mut(..value.len()).ok_or(Errno::RANGE)?.copy_from_slice(value);
    Ok(value.len())
}
