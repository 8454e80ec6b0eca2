//! Directories: open, list, synchronise.
//!
//! The offset of an entry is the backing filesystem's own cookie, so that a listing goes on where
//! it was while entries come and go.

use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Volume;
use super::device::Origin;
use super::handle::OpenDir;
use super::identity::Seen;
use super::stat::{stat_at, stat_of};
use crate::sys::{self, dir::DirStream};
use crate::tree::{DirItem, Directories, HandleId, Ino, Names, Stat};

impl Directories for Volume {
    fn open_dir(&self, ino: Ino) -> Result<HandleId, Errno> {
        self.with_a_descriptor(|| self.open_stream(ino)).map(|dir| self.handles.add_dir(dir))
    }

    fn release_dir(&self, id: HandleId) -> Result<(), Errno> {
        self.handles.remove_dir(id)
    }

    fn list(
        &self,
        (ino, id): (Ino, HandleId),
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        if id != HandleId::NONE {
            return self.list_from(&*self.handles.dir(id)?, offset, look_up, add);
        }
        let dir = self.stream_at(ino, offset)?;
        let mut listed = false;
        let ended = self.list_from(&dir, offset, look_up, &mut |item| {
            listed = true;
            add(item)
        })?;
        // The kernel asks once more after the end, which it learns by an empty answer.
        if listed && !self.is_one_of_the_last(&dir.fd) {
            drop(self.streams.put(ino, dir));
            self.sweeper.note();
        }
        Ok(ended)
    }

    fn sync_dir(&self, ino: Ino, id: HandleId, data_only: bool) -> Result<(), Errno> {
        let fd = &self.dir_of(ino, id)?.fd;
        if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }
    }
}

impl Volume {
    fn open_stream(&self, ino: Ino) -> Result<OpenDir, Errno> {
        let dir = self.open_parent(ino)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // By its own link: a step to `.` would need the right to search it.
        let fd = rustix::fs::open(sys::fd_path(dir.as_fd()), flags, Mode::empty())?;
        self.access_times.leave(&fd);
        let place = Origin::from(&stat_of(&fd)?);
        let fd = Arc::new(fd);
        let stream = Mutex::new(DirStream::new(Arc::clone(&fd)));
        Ok(OpenDir { ino, place, fd, stream })
    }

    /// The directory that a request is about: an open one, or one that the kernel has opened
    /// without asking ([`HandleId::NONE`]).
    pub(super) fn dir_of(&self, ino: Ino, id: HandleId) -> Result<Arc<OpenDir>, Errno> {
        match id {
            HandleId::NONE => self.with_a_descriptor(|| self.open_stream(ino)).map(Arc::new),
            id => self.handles.dir(id),
        }
    }

    /// A stream for one request that lists from `offset`: that of a listing which has come to
    /// there, held by nobody else, or a new one. None is ever rewound, so that a listing from the
    /// start shows the directory as it is.
    fn stream_at(&self, ino: Ino, offset: u64) -> Result<Arc<OpenDir>, Errno> {
        let left = if offset == 0 { None } else { self.streams.take(ino) };
        match left.filter(|dir| dir.stream.lock().cookie() == offset) {
            Some(dir) => Ok(dir),
            None => self.dir_of(ino, HandleId::NONE),
        }
    }

    fn list_from(
        &self,
        dir: &OpenDir,
        offset: u64,
        look_up: bool,
        add: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let mut stream = dir.stream.lock();
        stream.seek(offset)?;
        let mut listed = 0_usize;
        loop {
            let raw = match stream.peek() {
                Ok(Some(raw)) => raw,
                Ok(None) => return Ok(true),
                Err(_) if listed > 0 => return Ok(false),
                Err(err) => return Err(err),
            };
            let dots = raw.name == "." || raw.name == "..";
            if !dots && !self.visible(dir.ino, raw.name) {
                stream.advance();
                continue;
            }
            let mut item = DirItem {
                name: raw.name,
                ino: self.devices.number(dir.place, raw.ino),
                kind: u32::from(raw.kind) << 12,
                next: raw.next,
                entry: None,
                known: true,
            };
            if look_up && !dots {
                match self.enter(dir.ino, &dir.fd, raw.name) {
                    Ok(entry) => item.entry = Some(entry),
                    Err(Errno::NOENT) => {
                        stream.advance(); // Removed since it was listed.
                        continue;
                    }
                    // It may be listed and not looked at: a directory without the right to
                    // search, an entry whose inode is damaged.
                    Err(_) => {
                        let stat = Stat {
                            dev: dir.place.dev,
                            mount: dir.place.mount,
                            ino: raw.ino,
                            mode: item.kind,
                            ..Stat::default()
                        };
                        item.entry = Some(self.remember(dir.ino, &Seen::bare(&stat), raw.name));
                        item.known = false;
                    }
                }
            } else if item.kind == 0 {
                item.kind = stat_at(&dir.fd, raw.name).map_or(0, |stat| stat.kind());
            }
            if add(&item) {
                if let Some(entry) = item.entry {
                    self.forget(entry.attr.ino, 1);
                }
                return Ok(false);
            }
            listed += 1;
            stream.advance();
        }
    }
}
