//! Files by path, for the control verbs; filesystem calls reach files by inode number and handle.

use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Volume;
use super::identity::Seen;
use crate::advice::{Advice, Effect};
use crate::flags::MapMode;
use crate::mapping::{AdviceEffect, BackingFile, Descriptor, FileTable, FlushEffect, OpenMode};
use crate::range::ByteRange;
use crate::sys;
use crate::sys::advise::SyncMode;
use crate::tree::{
    Advise, Found, Ino, Inspect, NotAdvised, OpenInode, PageState, Plane, Stat, TreeCounts,
    WhyMapped,
};

/// A backing file in use by a control verb; it is released when the value is dropped.
pub struct PinnedFile {
    files: Arc<FileTable>,
    file: Arc<BackingFile>,
    open: OpenMode,
    /// Inode number in the mount.
    pub ino: Ino,
}

impl PinnedFile {
    /// File that was taken into use from `files` with `open`, and is released there.
    pub fn new(
        files: &Arc<FileTable>,
        file: Arc<BackingFile>,
        open: OpenMode,
        ino: Ino,
    ) -> PinnedFile {
        PinnedFile { files: Arc::clone(files), file, open, ino }
    }
}

impl PinnedFile {
    /// Page cache state of a range.
    pub fn page_state(&self, range: ByteRange) -> PageState {
        let stat = self.file.cache_stat(range);
        PageState {
            resident: self.file.resident(range),
            dirty: stat.map(|stat| stat.dirty),
            writeback: stat.map(|stat| stat.writeback),
        }
    }
}

impl Deref for PinnedFile {
    type Target = BackingFile;

    fn deref(&self) -> &BackingFile {
        &self.file
    }
}

impl Drop for PinnedFile {
    fn drop(&mut self) {
        self.files.release(&self.file, self.open);
    }
}

impl Inspect for Volume {
    fn find(&self, path: &Path) -> Result<Found, Errno> {
        let mut below: PathBuf =
            path.components().filter(|part| *part != Component::RootDir).collect();
        if self.root_is_file {
            if !below.as_os_str().is_empty() && below != Path::new(".") {
                return Err(Errno::NOTDIR);
            }
            below = self.only.iter().collect();
        } else if let Some(Component::Normal(first)) = below.components().next()
            && !self.visible(Ino::ROOT, first)
        {
            return Err(Errno::NOENT);
        }
        if below.as_os_str().is_empty() {
            below.push(".");
        }
        let source = self.devices.source();
        let fd = rustix::fs::openat2(
            &**source,
            &below,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        )?;
        let seen = Seen::by(&fd)?;
        let stat = seen.stat;
        let ino = match below.as_path() == Path::new(".") || self.root_is_file {
            true => Ino::ROOT,
            false => {
                let number = self.devices.number(&stat, stat.ino);
                self.inodes.find(number, &seen).map_or(number, |node| node.ino)
            }
        };
        let path = self.real_path(&fd).unwrap_or(below);
        Ok(Found { ino, stat, path, fd })
    }

    fn in_use(&self, found: &Found) -> Vec<Arc<BackingFile>> {
        self.file_in_use(&found.stat).into_iter().collect()
    }

    fn handles(&self, found: &Found) -> u64 {
        self.file_in_use(&found.stat).map_or(0, |file| file.handles())
    }

    fn mode_at(&self, found: &Found) -> MapMode {
        match self.files.get(found.stat.key()) {
            Some(file) => file.mode(),
            None => self.mode_for_path(&found.path),
        }
    }

    fn why_mapped(&self, found: &Found) -> Option<WhyMapped> {
        match self.planes.of(found.ino) {
            Some(Plane::Mapped(reason)) => Some(reason),
            Some(Plane::Passthrough(_)) => None,
            None => self.planes.why_mapped(&self.mode_at(found), &found.stat),
        }
    }

    fn page_state(&self, found: &Found, range: ByteRange) -> Result<PageState, Errno> {
        Ok(self.pin_file(found, false)?.page_state(range))
    }

    fn mappable(&self, found: &Found) -> Result<(), Errno> {
        self.pin_file(found, false)?.mappable()
    }

    fn open_files(&self) -> Vec<OpenInode> {
        let mut inodes = std::collections::BTreeMap::new();
        for open in self.handles.all_files() {
            let inode = inodes.entry(open.ino).or_insert_with(|| OpenInode {
                ino: open.ino,
                path: self.path_shown(&open.file),
                why_mapped: match self.planes.of(open.ino) {
                    Some(Plane::Mapped(reason)) => Some(reason),
                    Some(Plane::Passthrough(_)) | None => None,
                },
                handles: 0,
            });
            inode.handles += 1;
        }
        inodes.into_values().collect()
    }

    fn files_in_use(&self) -> Vec<(PathBuf, Arc<BackingFile>)> {
        let files = self.files.all().into_iter();
        files.map(|file| (self.path_shown(&file), file)).collect()
    }

    fn held_files(&self) -> u64 {
        self.files.held()
    }

    fn counts(&self) -> TreeCounts {
        let (inodes, lookups) = self.inodes.counts();
        let (files, directories) = self.handles.counts();
        TreeCounts { inodes, lookups, files, directories, mappings: self.files.counts() }
    }

    fn passthrough_closed(&self) -> Option<String> {
        self.planes.closed()
    }

    fn uses_file_handles(&self) -> bool {
        self.by_handle
    }

    fn cache_stat_works(&self) -> bool {
        let source = self.devices.source();
        !matches!(sys::residency::cachestat(&**source, 0..0), Err(Errno::NOSYS))
    }

    fn rule_count(&self) -> usize {
        self.policy.read().rules.len()
    }
}

/// Whether an advice needs a writable mapping.
fn needs_writing(advice: Advice) -> bool {
    matches!(advice, Advice::Remove | Advice::PopulateWrite)
}

impl Advise for Volume {
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
        let file = self.pin_file(found, needs_writing(advice))?;
        Ok(self.advise_pinned(&file, range, advice)?)
    }

    fn flush(&self, found: &Found, range: ByteRange, mode: SyncMode) -> Result<FlushEffect, Errno> {
        self.flush_pinned(&self.pin_file(found, false)?, range, mode)
    }

    fn set_locked(&self, found: &Found, range: ByteRange, lock: bool) -> Result<ByteRange, Errno> {
        self.pin_file(found, false)?.set_locked(range, lock)
    }
}

impl Volume {
    /// A descriptor with O_PATH of an inode.
    ///
    /// # Errors
    /// ESTALE when it is gone; errors of open(2).
    pub fn open_path(&self, ino: Ino) -> Result<OwnedFd, Errno> {
        let pin = self.pin(&*self.node(ino)?)?;
        rustix::io::fcntl_dupfd_cloexec(&*pin, 0)
    }

    /// Whether a file with these attributes is on the source's own mount.
    pub fn is_of_source(&self, stat: &Stat) -> bool {
        self.devices.is_main(stat)
    }

    /// The path of an open file below the source, as the kernel knows it.
    fn real_path(&self, fd: impl AsFd) -> Option<PathBuf> {
        let of = |fd: &dyn Fn() -> PathBuf| std::fs::read_link(fd()).ok();
        let root = of(&|| sys::fd_path(self.devices.source().as_fd()))?;
        let path = of(&|| sys::fd_path(fd.as_fd()))?;
        path.strip_prefix(root).ok().map(Path::to_owned)
    }

    /// Takes a regular file into use, for writing when its mapping must be writable.
    ///
    /// # Errors
    /// EISDIR for a directory, EINVAL for other files that are not regular, EROFS if the view
    /// cannot be written; errors of open(2).
    pub fn pin_file(&self, found: &Found, write: bool) -> Result<PinnedFile, Errno> {
        match found.stat.kind() {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let mode = self.mode_at(found);
        if write && !mode.writable() {
            return Err(Errno::ROFS);
        }
        let open = if write { OpenMode::Write } else { OpenMode::Read };
        let key = found.stat.key();
        let file = match self.files.reopen(key, open, &mode) {
            Some(file) => file,
            None => {
                let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
                let path = sys::fd_path(found.fd.as_fd());
                let fd = rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())?;
                self.access_times.leave(&fd);
                self.files.open(key, Descriptor::new(fd, true, write), open, &mode)
            }
        };
        Ok(PinnedFile::new(&self.files, file, open, found.ino))
    }

    /// The backing file with these attributes if it is in use, without taking it into use.
    pub fn file_in_use(&self, stat: &Stat) -> Option<Arc<BackingFile>> {
        self.files.get(stat.key())
    }

    /// Gives the kernel an advice on a range of a file. If the advice destroys bytes, the kernel's
    /// cached pages of the mounted file are dropped before, so that they are not written back, and
    /// again afterwards. If it evicts pages, these cached pages are dropped first, since dirty ones
    /// are written to the file. Must not run on a thread that answers the kernel.
    ///
    /// # Errors
    /// Errors of [`BackingFile::advise`].
    pub fn advise_pinned(
        &self,
        view: &PinnedFile,
        range: ByteRange,
        advice: Advice,
    ) -> Result<AdviceEffect, Errno> {
        let destroys = advice.effect() == Effect::Destroy;
        if destroys || advice == Advice::PageOut {
            self.drop_cached(view, range);
        }
        let effect = view.file.advise(range, advice);
        if destroys {
            self.drop_cached(view, range);
        }
        effect
    }

    /// Makes the kernel write back and drop its cached pages of a range.
    fn drop_cached(&self, view: &PinnedFile, range: ByteRange) {
        if let Some(invalidate) = self.invalidate.get()
            && let Err(err) = invalidate.now(view.ino, range.start, range.len())
        {
            log::debug!("inode {}: writing the kernel's cache back: {err}", view.ino);
        }
    }

    /// Flushes a range: the kernel's cached pages of the mounted file, then the mapping, then the
    /// backing file. Must not run on a thread that answers the kernel.
    ///
    /// # Errors
    /// Errors of msync(2) and fdatasync(2).
    pub fn flush_pinned(
        &self,
        view: &PinnedFile,
        range: ByteRange,
        mode: SyncMode,
    ) -> Result<FlushEffect, Errno> {
        if mode != SyncMode::Async {
            self.drop_cached(view, range);
        }
        view.file.flush(range, mode)
    }

    /// Path of a backing file in the mount, relative to the root; its own path if it is not below
    /// the source any more.
    pub fn path_shown(&self, file: &BackingFile) -> PathBuf {
        let path = file.path();
        if let Ok(below) = path.strip_prefix(&self.source) {
            return below.to_owned();
        }
        // A source that was opened through a descriptor has no path of its own.
        let descriptor = file.descriptor();
        let real = descriptor.any().ok().and_then(|fd| self.real_path(fd));
        real.unwrap_or(path)
    }
}
