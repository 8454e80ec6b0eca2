//! The requests of the kernel to the control tree. Nothing in it can be made, renamed or removed.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use rustix::fs::{RenameFlags, StatVfs};
use rustix::io::Errno;

use super::{ControlFile, ControlTree, DIRECTORY, OpenFile};
use crate::control::session::Closer;
use crate::sys;
use crate::sys::cred::Caller;
use crate::tree::{
    Attr, Attributes, Caching, DataOnly, DirItem, Directories, Entry, Files, HandleId, Ino, Ioctl,
    Names, NewNode, Open, Opened, PageCache, Passthrough, Plane, RegisterBacking, SeekTo, SetAttr,
    Validity, WhyMapped, WriteRequest, XattrFlags, Xattrs,
};

impl Names for ControlTree {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry, Errno> {
        ControlTree::find(parent, name).map(|file| ControlTree::entry(self.attr_of(file)))
    }

    /// Its inodes stay, whether the kernel knows them or not.
    fn forget(&self, _: Ino, _: u64) {}

    fn path_of_inode(&self, ino: Ino) -> Option<PathBuf> {
        ControlFile::of(ino).ok().map(ControlTree::path)
    }

    fn read_link(&self, _: Ino) -> Result<OsString, Errno> {
        Err(Errno::PERM)
    }

    fn make_node(&self, _: Ino, _: &OsStr, _: &NewNode<'_>, _: u64) -> Result<Entry, Errno> {
        Err(Errno::PERM)
    }

    fn make_dir(&self, _: Ino, _: &OsStr, _: &NewNode<'_>) -> Result<Entry, Errno> {
        Err(Errno::PERM)
    }

    fn make_symlink(&self, _: Ino, _: &OsStr, _: &OsStr, _: &Caller) -> Result<Entry, Errno> {
        Err(Errno::PERM)
    }

    fn create(
        &self,
        _: Ino,
        _: &OsStr,
        _: &NewNode<'_>,
        _: &Open,
        _: bool,
        _: &RegisterBacking<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        Err(Errno::PERM)
    }

    fn link(&self, _: Ino, _: Ino, _: &OsStr) -> Result<Entry, Errno> {
        Err(Errno::PERM)
    }

    fn remove(&self, _: Ino, _: &OsStr, _: bool) -> Result<(), Errno> {
        Err(Errno::PERM)
    }

    fn rename(
        &self,
        _: (Ino, &OsStr),
        _: (Ino, &OsStr),
        _: RenameFlags,
        _: &Caller,
    ) -> Result<(), Errno> {
        Err(Errno::PERM)
    }
}

impl Files for ControlTree {
    /// A report is made when it is opened. Nothing is cached, and one client does not wait for
    /// the command of another.
    fn open(
        &self,
        ino: Ino,
        how: Open,
        _: &Caller,
        _: &RegisterBacking<'_>,
    ) -> Result<Opened, Errno> {
        let file = ControlFile::of(ino)?;
        let opened = match self.report(file) {
            _ if file == ControlFile::Root => return Err(Errno::ISDIR),
            Some(_) if how.write => return Err(Errno::ACCESS),
            Some(text) => OpenFile::Report(text.into_bytes().into()),
            None => self.new_session(),
        };
        let plane = Plane::Mapped(WhyMapped::Generated);
        let id = self.add(opened);
        Ok(Opened { id, plane, by_request: true, cache: PageCache::Bypassed })
    }

    fn close(&self, _: Ino, id: HandleId, closer: u64, wait: bool) -> Result<(), Errno> {
        match self.session(id) {
            Ok(session) if session.has_part() && wait => session.finish(Closer::Process(closer)),
            Ok(session) if session.has_part() => Err(Errno::AGAIN),
            _ => Ok(()),
        }
    }

    fn release(&self, id: HandleId) -> Result<(), Errno> {
        let opened = self.open.write().remove(&id).ok_or(Errno::BADF)?;
        if let OpenFile::Control(session) = opened {
            ControlTree::finish_later(session);
        }
        Ok(())
    }

    /// Reads a report at `offset`, or the rest of the answers of a control file. There `offset`
    /// means nothing: the position of a client that has written is behind its own bytes.
    fn read(
        &self,
        ino: Ino,
        id: HandleId,
        offset: u64,
        len: usize,
        deliver: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        if id == HandleId::NONE {
            let recent = ControlFile::of(ino).ok().and_then(|file| self.recent_report(file));
            deliver(part(&recent.ok_or(Errno::BADF)?.0, offset, len));
            return Ok(());
        }
        let open = self.open.read();
        let (session, text) = match open.get(&id).ok_or(Errno::BADF)? {
            OpenFile::Control(session) => (Some(session.clone()), None),
            OpenFile::Report(text) => (None, Some(text.clone())),
        };
        drop(open);
        let answer = session.map(|session| session.read(len)).unwrap_or_default();
        deliver(text.as_ref().map_or(&answer, |text| part(text, offset, len)));
        Ok(())
    }

    fn write(
        &self,
        id: HandleId,
        _: u64,
        data: &[u8],
        request: WriteRequest,
        _: &Caller,
    ) -> Result<usize, Errno> {
        let session = self.session(id)?;
        if !request.wait {
            return Err(Errno::AGAIN);
        }
        session.feed(data, request.lock_owner).map(|()| data.len())
    }

    fn sync(&self, _: Ino, _: HandleId, _: DataOnly) -> Result<(), Errno> {
        Ok(())
    }

    fn allocate(&self, _: HandleId, _: u64, _: u64, _: u32, _: &Caller) -> Result<(), Errno> {
        Err(Errno::BADF)
    }

    fn seek(&self, _: Ino, _: HandleId, _: u64, _: SeekTo) -> Result<u64, Errno> {
        Err(Errno::PERM)
    }

    fn copy_range(
        &self,
        _: (HandleId, u64),
        _: (HandleId, u64),
        _: usize,
        _: &Caller,
    ) -> Result<usize, Errno> {
        Err(Errno::BADF)
    }

    /// Commands and their answers, which need no right to write and no open file.
    fn ioctl(
        &self,
        _: Ino,
        id: HandleId,
        request: &Ioctl<'_>,
        caller: &Caller,
    ) -> Result<(i32, Vec<u8>), Errno> {
        match request.command {
            command if sys::file::is_command(command) && !request.wait => Err(Errno::AGAIN),
            command if sys::file::is_command(command) => {
                self.session_for(id, caller.pid)?.feed(request.data, None)?;
                Ok((0, Vec::new()))
            }
            sys::file::ANSWER => {
                let piece = self.take_answer(id, caller.pid, request.out_size)?;
                Ok((piece.len() as i32, piece))
            }
            _ => Err(Errno::NOTTY),
        }
    }
}

impl Attributes for ControlTree {
    fn attr(&self, ino: Ino, _: Option<HandleId>) -> Result<Attr, Errno> {
        ControlFile::of(ino).map(|file| self.attr_of(file))
    }

    /// `>` of a shell truncates before it writes: that is accepted and does nothing, as are times.
    /// Mode and owner are fixed.
    fn set_attr(
        &self,
        ino: Ino,
        handle: Option<HandleId>,
        change: SetAttr,
        _: &Caller,
    ) -> Result<Attr, Errno> {
        let attr = self.attr(ino, handle)?;
        let fixed = change.mode.is_some() || change.uid.is_some() || change.gid.is_some();
        if fixed { Err(Errno::PERM) } else { Ok(attr) }
    }

    /// It has no room of its own: the router answers for the tree in which it is mounted.
    fn statistics(&self, _: Ino) -> Result<StatVfs, Errno> {
        Err(Errno::NOSYS)
    }
}

impl Directories for ControlTree {
    fn open_dir(&self, _: Ino) -> Result<HandleId, Errno> {
        Ok(DIRECTORY)
    }

    fn release_dir(&self, _: HandleId) -> Result<(), Errno> {
        Ok(())
    }

    fn list(
        &self,
        _: (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (file, next) in ControlFile::ALL.into_iter().zip(1..).skip(skipped) {
            let attr = self.fixed_attr(file);
            let item = DirItem {
                name: file.name().as_ref(),
                ino: attr.ino,
                kind: attr.stat.kind(),
                next,
                entry: look_up.then(|| ControlTree::entry(attr)),
                known: true,
            };
            if add(&item) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn sync_dir(&self, _: Ino, _: HandleId, _: DataOnly) -> Result<(), Errno> {
        Ok(())
    }
}

impl Xattrs for ControlTree {
    fn get_xattr(&self, _: Ino, _: &OsStr, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::NODATA)
    }

    fn list_xattr(&self, _: Ino, _: &mut [u8], _: &Caller) -> Result<usize, Errno> {
        Ok(0)
    }

    fn set_xattr(
        &self,
        _: Ino,
        _: &OsStr,
        _: &[u8],
        _: XattrFlags,
        _: &Caller,
    ) -> Result<(), Errno> {
        Err(Errno::PERM)
    }

    fn remove_xattr(&self, _: Ino, _: &OsStr) -> Result<(), Errno> {
        Err(Errno::PERM)
    }
}

impl Caching for ControlTree {
    fn names_validity(&self, _: Ino) -> Validity {
        Validity::Timeout
    }

    fn keeps_listings(&self, _: Ino) -> bool {
        false
    }

    fn drops_all_names(&self) -> bool {
        true
    }
}

/// It has no backing files.
impl Passthrough for ControlTree {
    fn source_is_stacked(&self) -> bool {
        false
    }

    fn close_passthrough(&self, _: Option<String>) {}
}

fn part(text: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(len).min(text.len());
    text.get(start..end).unwrap_or_default()
}
