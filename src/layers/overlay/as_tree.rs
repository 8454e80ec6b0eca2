//! The overlay as the layers above see it.

use std::ffi::{OsStr, OsString};

use rustix::fs::{RenameFlags, StatVfs};
use rustix::io::Errno;

use super::Overlay;
use crate::sys::cred::Caller;
use crate::volume::{
    Attr, DataOnly, DirItem, Entry, HandleId, Ino, NewNode, Open, Opened, RegisterBacking, SeekTo,
    SetAttr, Tree, Validity, WriteRequest, XattrFlags,
};

impl Tree for Overlay {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        Overlay::lookup(self, parent, name)
    }

    fn forget(&self, ino: Ino, count: u64) {
        Overlay::forget(self, ino, count)
    }

    fn names_validity(&self, parent: Ino) -> Validity {
        match self.nodes.get(parent).filter(|_| !self.is_mixed()) {
            Some(node) => self.validity_below(&node),
            None => Validity::Timeout,
        }
    }

    fn keeps_listings(&self, dir: Ino) -> bool {
        Overlay::keeps_listings(self, dir)
    }

    fn drops_all_names(&self) -> bool {
        self.base().drops_all_names()
    }

    fn attr(&self, ino: Ino, handle: Option<HandleId>) -> Result<Attr, Errno> {
        Overlay::attr(self, ino, handle)
    }

    fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        caller: &Caller,
    ) -> Result<Attr, Errno> {
        Overlay::set_attr(self, ino, handle, change, caller)
    }

    fn read_link(&self, ino: Ino) -> Result<OsString, Errno> {
        Overlay::read_link(self, ino)
    }

    fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno> {
        Overlay::make_node(self, parent, name, new, device)
    }

    fn make_dir(&self, parent: Ino, name: &OsStr, new: &NewNode<'_>) -> Result<Entry, Errno> {
        Overlay::make_dir(self, parent, name, new)
    }

    fn make_symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        Overlay::make_symlink(self, parent, name, target, caller)
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        Overlay::remove(self, parent, name, directory)
    }

    fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        Overlay::rename(self, from, to, flags, caller)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        Overlay::link(self, ino, parent, name)
    }

    fn open(
        &self,
        ino: Ino,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno> {
        Overlay::open(self, ino, how, caller, register)
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
        Overlay::create(self, parent, name, new, how, exclusive, register)
    }

    fn read(
        &self,
        _: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        Overlay::read(self, id, offset, len, deliver)
    }

    fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        Overlay::write(self, id, offset, data, request, caller)
    }

    fn release(&self, id: HandleId) -> Result<(), Errno> {
        Overlay::release(self, id)
    }

    fn sync(&self, _: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        Overlay::sync(self, id, data_only)
    }

    fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        Overlay::allocate(self, id, offset, len, mode, caller)
    }

    fn seek(&self, _: Ino, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        Overlay::seek(self, id, offset, to)
    }

    fn copy_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        Overlay::copy_range(self, from, to, len, caller)
    }

    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        command: u32,
        data: &[u8],
        out_size: usize,
    ) -> Result<(i32, Vec<u8>), Errno> {
        Overlay::ioctl(self, ino, id, command, data, out_size)
    }

    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno> {
        Overlay::open_dir(self, ino)
    }

    fn list(
        &self,
        directory: (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        Overlay::list(self, directory, offset, look_up, add)
    }

    fn release_dir(&self, id: HandleId) -> Result<(), Errno> {
        Overlay::release_dir(self, id)
    }

    fn sync_dir(&self, ino: Ino, _: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        Overlay::sync_dir(self, ino, data_only)?;
        self.sync_dir_names(ino)
    }

    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno> {
        Overlay::statistics(self, ino)
    }

    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        Overlay::get_xattr(self, ino, name, buffer)
    }

    fn list_xattr(&self, ino: Ino, buffer: &mut [u8], caller: &Caller) -> Result<usize, Errno> {
        Overlay::list_xattr(self, ino, buffer, caller)
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        Overlay::set_xattr(self, ino, name, value, flags, caller)
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        Overlay::remove_xattr(self, ino, name)
    }

    fn source_is_stacked(&self) -> bool {
        self.upper.source_is_stacked()
    }

    fn close_passthrough(&self, reason: Option<String>) {
        let kept = || String::from("scratch_max= is kept by the daemon");
        let reason = reason.or_else(|| self.quota.as_ref().map(|_| kept()));
        self.plain_volumes().for_each(|volume| volume.close_passthrough(reason.clone()));
        self.upper.close_passthrough(reason);
    }
}
