//! [`Volume`] as a tree: every method is the volume's own of the same name, which says more.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{RenameFlags, StatVfs};
use rustix::io::Errno;

use super::tree::{Managed, Tree};
use super::{
    Attr, DataOnly, DirItem, Entry, Found, HandleId, Ino, Invalidate, NewNode, NotAdvised, Open,
    OpenInode, Opened, PageState, RegisterBacking, SeekTo, SetAttr, Validity, Volume, VolumeCounts,
    WatchCounts, WhyMapped, WriteRequest, XattrFlags,
};
use crate::advice::{Advice, Effect};
use crate::config::rules::RuleSet;
use crate::flags::MapMode;
use crate::mapping::{AdviceEffect, BackingFile, FlushEffect};
use crate::range::ByteRange;
use crate::sys::advise::SyncMode;
use crate::sys::cred::Caller;

impl Tree for Volume {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        Volume::lookup(self, parent, name)
    }

    fn forget(&self, ino: Ino, count: u64) {
        Volume::forget(self, ino, count)
    }

    fn names_validity(&self, parent: Ino) -> Validity {
        Volume::names_validity(self, parent)
    }

    fn keeps_listings(&self, _: Ino) -> bool {
        true
    }

    fn drops_all_names(&self) -> bool {
        Volume::drops_all_names(self)
    }

    fn attr(&self, ino: Ino, handle: Option<HandleId>) -> Result<Attr, Errno> {
        Volume::attr(self, ino, handle)
    }

    fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        caller: &Caller,
    ) -> Result<Attr, Errno> {
        Volume::set_attr(self, ino, handle, change, caller)
    }

    fn read_link(&self, ino: Ino) -> Result<OsString, Errno> {
        Volume::read_link(self, ino)
    }

    fn make_node(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno> {
        Volume::make_node(self, parent, name, new, device)
    }

    fn make_dir(&self, parent: Ino, name: &OsStr, new: &NewNode<'_>) -> Result<Entry, Errno> {
        Volume::make_dir(self, parent, name, new)
    }

    fn make_symlink(
        &self,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        Volume::make_symlink(self, parent, name, target, caller)
    }

    fn remove(&self, parent: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        Volume::remove(self, parent, name, directory)
    }

    fn rename(
        &self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        flags: RenameFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        Volume::rename(self, from, to, flags, caller)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        Volume::link(self, ino, parent, name)
    }

    fn open(
        &self,
        ino: Ino,
        how: Open,
        caller: &Caller,
        register: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno> {
        Volume::open(self, ino, how, caller, register)
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
        Volume::create(self, parent, name, new, how, exclusive, register)
    }

    fn read(
        &self,
        ino: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        Volume::read(self, ino, id, offset, len, |bytes| deliver(bytes))
    }

    fn write(
        &self,
        id: HandleId,
        offset: u64,
        data: &[u8],
        request: WriteRequest,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        Volume::write(self, id, offset, data, request, caller)
    }

    fn release(&self, id: HandleId) -> Result<(), Errno> {
        Volume::release(self, id)
    }

    fn sync(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        Volume::sync(self, ino, id, data_only)
    }

    fn allocate(
        &self,
        id: HandleId,
        offset: u64,
        len: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(), Errno> {
        Volume::allocate(self, id, offset, len, mode, caller)
    }

    fn seek(&self, ino: Ino, id: HandleId, offset: u64, to: SeekTo) -> Result<u64, Errno> {
        Volume::seek(self, ino, id, offset, to)
    }

    fn copy_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        len: usize,
        caller: &Caller,
    ) -> Result<usize, Errno> {
        Volume::copy_range(self, from, to, len, caller)
    }

    fn ioctl(
        &self,
        ino: Ino,
        id: HandleId,
        command: u32,
        data: &[u8],
        out_size: usize,
    ) -> Result<(i32, Vec<u8>), Errno> {
        Volume::ioctl(self, ino, id, command, data, out_size)
    }

    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno> {
        Volume::open_dir(self, ino)
    }

    fn list(
        &self,
        directory: (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        Volume::list(self, directory, offset, look_up, add)
    }

    fn release_dir(&self, id: HandleId) -> Result<(), Errno> {
        Volume::release_dir(self, id)
    }

    fn sync_dir(&self, ino: Ino, id: HandleId, data_only: DataOnly) -> Result<(), Errno> {
        Volume::sync_dir(self, ino, id, data_only)
    }

    fn statistics(&self, ino: Ino) -> Result<StatVfs, Errno> {
        Volume::statistics(self, ino)
    }

    fn get_xattr(&self, ino: Ino, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        Volume::get_xattr(self, ino, name, buffer)
    }

    fn list_xattr(&self, ino: Ino, buffer: &mut [u8], caller: &Caller) -> Result<usize, Errno> {
        Volume::list_xattr(self, ino, buffer, caller)
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
        caller: &Caller,
    ) -> Result<(), Errno> {
        Volume::set_xattr(self, ino, name, value, flags, caller)
    }

    fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<(), Errno> {
        Volume::remove_xattr(self, ino, name)
    }

    fn source_is_stacked(&self) -> bool {
        Volume::source_is_stacked(self)
    }

    fn close_passthrough(&self, reason: Option<String>) {
        Volume::close_passthrough(self, reason)
    }
}

/// Whether an advice is given to a mapping that can be written.
fn needs_writing(advice: Advice) -> bool {
    matches!(advice, Advice::Remove | Advice::PopulateWrite)
}

impl Managed for Volume {
    fn find(&self, path: &Path) -> Result<Found, Errno> {
        Volume::find(self, path)
    }

    fn in_use(&self, found: &Found) -> Vec<Arc<BackingFile>> {
        Volume::in_use(self, found).into_iter().collect()
    }

    fn handles(&self, found: &Found) -> u64 {
        Volume::in_use(self, found).map_or(0, |file| file.handles())
    }

    fn mode_at(&self, found: &Found) -> MapMode {
        Volume::mode_at(self, found)
    }

    fn why_mapped(&self, found: &Found) -> Option<WhyMapped> {
        Volume::why_mapped(self, found)
    }

    fn advise(
        &self,
        found: &Found,
        range: ByteRange,
        advice: Advice,
        destroy: bool,
    ) -> Result<AdviceEffect, NotAdvised> {
        if advice.effect() == Effect::Destroy && !destroy {
            return Err(NotAdvised::Destroys);
        }
        let view = self.pin_file(found, needs_writing(advice))?;
        Ok(Volume::advise(self, &view, range, advice)?)
    }

    fn flush(&self, found: &Found, range: ByteRange, mode: SyncMode) -> Result<FlushEffect, Errno> {
        Volume::flush(self, &self.pin_file(found, false)?, range, mode)
    }

    fn set_locked(&self, found: &Found, range: ByteRange, lock: bool) -> Result<ByteRange, Errno> {
        self.pin_file(found, false)?.set_locked(range, lock)
    }

    fn page_state(&self, found: &Found, range: ByteRange) -> Result<PageState, Errno> {
        Ok(self.pin_file(found, false)?.page_state(range))
    }

    fn mappable(&self, found: &Found) -> Result<(), Errno> {
        self.pin_file(found, false)?.mappable()
    }

    fn open_files(&self) -> Vec<OpenInode> {
        Volume::open_files(self)
    }

    fn files_in_use(&self) -> Vec<(PathBuf, Arc<BackingFile>)> {
        Volume::files_in_use(self)
    }

    fn held_files(&self) -> u64 {
        Volume::held_files(self)
    }

    fn counts(&self) -> VolumeCounts {
        Volume::counts(self)
    }

    fn passthrough_closed(&self) -> Option<String> {
        Volume::passthrough_closed(self)
    }

    fn uses_file_handles(&self) -> bool {
        Volume::uses_file_handles(self)
    }

    fn cache_stat_works(&self) -> bool {
        Volume::cache_stat_works(self)
    }

    fn watch_state(&self) -> Result<String, String> {
        Volume::watch_state(self)
    }

    fn watch_counts(&self) -> &WatchCounts {
        Volume::watch_counts(self)
    }

    fn directories_open_silently(&self) -> bool {
        self.watches_filesystem() && self.cookies_outlive_opens()
    }

    fn set_rules(&self, rules: RuleSet) {
        Volume::set_rules(self, rules)
    }

    fn drop_unreadable(&self) {
        Volume::drop_unreadable(self)
    }

    fn validity(&self) -> Validity {
        match self.watch_state() {
            Ok(_) => Validity::UntilInvalidated,
            Err(_) => Validity::Timeout,
        }
    }

    fn rule_count(&self) -> usize {
        Volume::rule_count(self)
    }

    fn connect(&self, invalidate: Box<dyn Invalidate>) {
        Volume::connect(self, invalidate)
    }

    fn expire(&self) {
        Volume::expire(self)
    }

    fn end(&self) {
        Volume::end(self)
    }
}
