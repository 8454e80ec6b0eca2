//! A file by its path, for the control verbs: what filesystem calls reach by number and handle.

use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Volume;
use super::attr::{Stat, stat_of};
use super::inode::Ino;
use crate::advice::{Advice, Effect};
use crate::flags::MapMode;
use crate::mapping::{AdviceEffect, BackingFile, Descriptor, FlushEffect, MappingCounts, OpenMode};
use crate::range::ByteRange;
use crate::sys;
use crate::sys::advise::SyncMode;

/// What a path below the root leads to.
pub struct Found {
    /// Inode number in the mount.
    pub ino: Ino,
    /// Attributes of the backing file.
    pub stat: Stat,
    /// The path without links, relative to the root.
    pub path: PathBuf,
    fd: std::os::fd::OwnedFd,
}

/// A backing file in use by a control verb; it is released when the value is dropped.
pub struct View<'a> {
    volume: &'a Volume,
    file: Arc<BackingFile>,
    open: OpenMode,
    /// Inode number in the mount.
    pub ino: Ino,
}

impl Deref for View<'_> {
    type Target = BackingFile;

    fn deref(&self) -> &BackingFile {
        &self.file
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        self.volume.files.release(&self.file, self.open);
    }
}

/// How much a volume holds at this moment.
#[derive(Debug, Clone, Copy)]
pub struct VolumeCounts {
    /// Inodes that the kernel knows.
    pub inodes: u64,
    /// The lookups that it has not taken back.
    pub lookups: u64,
    /// Open files.
    pub files: u64,
    /// Open directories.
    pub directories: u64,
    /// Mappings.
    pub mappings: MappingCounts,
}

impl Volume {
    /// Finds a path relative to the root. Symbolic links are followed as long as they stay below
    /// the source.
    ///
    /// # Errors
    /// EXDEV for a way out of the source; those of openat2(2).
    pub fn find(&self, path: &Path) -> Result<Found, Errno> {
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
        let stat = stat_of(&fd)?;
        let ino = match below.as_path() == Path::new(".") || self.root_is_file {
            true => Ino::ROOT,
            false => {
                let number = self.devices.number(&stat, stat.ino);
                self.inodes.find(number, &stat).map_or(number, |node| node.ino)
            }
        };
        let path = self.real_path(&fd).unwrap_or(below);
        Ok(Found { ino, stat, path, fd })
    }

    /// The path of an open file below the source, as the kernel knows it.
    fn real_path(&self, fd: impl AsFd) -> Option<PathBuf> {
        let of = |fd: &dyn Fn() -> PathBuf| std::fs::read_link(fd()).ok();
        let root = of(&|| sys::fd_path(self.devices.source().as_fd()))?;
        let path = of(&|| sys::fd_path(fd.as_fd()))?;
        path.strip_prefix(root).ok().map(Path::to_owned)
    }

    /// The mode that a path's mapping has or would have.
    pub fn mode_at(&self, found: &Found) -> MapMode {
        match self.files.get(found.stat.key()) {
            Some(file) => file.mode(),
            None => self.mode_for_path(&found.path),
        }
    }

    /// Takes a regular file into use, for writing when its mapping must be writable.
    ///
    /// # Errors
    /// EISDIR and EINVAL for what is no regular file, EROFS where the view cannot be written;
    /// those of open(2).
    pub fn view(&self, found: &Found, write: bool) -> Result<View<'_>, Errno> {
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
                self.files.open(key, Descriptor::new(fd, true, write), open, &mode)
            }
        };
        Ok(View { volume: self, file, open, ino: found.ino })
    }

    /// The backing file of a path if it is in use, without taking it into use.
    pub fn in_use(&self, found: &Found) -> Option<Arc<BackingFile>> {
        self.files.get(found.stat.key())
    }

    /// Gives the kernel an advice on a range of a file. Where that takes bytes away, the kernel's
    /// own cache of them goes before, so that they are not written back, and after. Must not run
    /// on a thread that answers the kernel.
    ///
    /// # Errors
    /// Those of [`BackingFile::advise`].
    pub fn advise(
        &self,
        view: &View<'_>,
        range: ByteRange,
        advice: Advice,
    ) -> Result<AdviceEffect, Errno> {
        let destroys = advice.effect() == Effect::Destroy;
        if destroys {
            self.drop_cached(view, range);
        }
        let effect = view.file.advise(range, advice);
        if destroys {
            self.drop_cached(view, range);
        }
        effect
    }

    /// Makes the kernel write its dirty pages of a range back and forget all of them.
    fn drop_cached(&self, view: &View<'_>, range: ByteRange) {
        if let Some(invalidate) = self.invalidate.get()
            && let Err(err) = invalidate.now(view.ino, range.start, range.len())
        {
            log::debug!("inode {}: writing the kernel's cache back: {err}", view.ino);
        }
    }

    /// Flushes a range: what the kernel holds of it in its own cache, then the mapping, then the
    /// backing file. Must not run on a thread that answers the kernel.
    ///
    /// # Errors
    /// Those of msync(2) and fdatasync(2).
    pub fn flush(
        &self,
        view: &View<'_>,
        range: ByteRange,
        mode: SyncMode,
    ) -> Result<FlushEffect, Errno> {
        if mode != SyncMode::Async {
            self.drop_cached(view, range);
        }
        view.file.flush(range, mode)
    }

    /// Whether the kernel tells the state of the page cache (cachestat(2)).
    pub fn cache_stat_works(&self) -> bool {
        let source = self.devices.source();
        !matches!(sys::residency::cachestat(&**source, 0..0), Err(Errno::NOSYS))
    }

    /// How many files are held open only because they carry advice or a lock.
    pub fn held_files(&self) -> u64 {
        self.files.held()
    }

    /// Every backing file in use.
    pub fn files_in_use(&self) -> Vec<Arc<BackingFile>> {
        self.files.all()
    }

    /// How much there is of everything.
    pub fn counts(&self) -> VolumeCounts {
        let (inodes, lookups) = self.inodes.counts();
        let (files, directories) = self.handles.counts();
        VolumeCounts { inodes, lookups, files, directories, mappings: self.files.counts() }
    }
}
