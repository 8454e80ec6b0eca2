//! A directory with descriptors open in it, to which operations are applied.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::fs::{copy_file_range, fallocate, lremovexattr, lsetxattr, mknodat, renameat_with};
use rustix::io::Errno;

use crate::common::mapped::Mapped;
use crate::common::{Caller, errno, open, xattr, xattr_names};
use crate::operation::{Call, Operation, SLOTS};

/// Who makes the operations that root does not make.
const USER: u32 = 40_001;
/// Times before this were set by an operation; later ones are the time of the run.
const SET_TIMES_END: i64 = 1_000_000_000;

/// A root directory and what is open in it.
pub struct World {
    root: PathBuf,
    slots: [Option<File>; SLOTS],
    /// The numbers of the files in the slots when they were opened.
    inodes: [u64; SLOTS],
    directories: Directories,
}

/// What is said of the links of directories.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Directories {
    /// As they are.
    Counted,
    /// Nothing: merged directories are not counted.
    Uncounted,
}

impl World {
    /// A world with nothing open.
    pub fn new(root: &Path) -> World {
        World::with(root, Directories::Counted)
    }

    /// A world with nothing open, in which directories are looked at so.
    pub fn with(root: &Path, directories: Directories) -> World {
        World { root: root.to_owned(), slots: Default::default(), inodes: [0; SLOTS], directories }
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        self.slots = Default::default();
    }

    /// The open files whose number is not the one that they were opened with.
    pub fn renumbered(&self) -> Option<String> {
        for (slot, (file, inode)) in self.slots.iter().zip(self.inodes).enumerate() {
            let Some(meta) = file.as_ref().and_then(|file| file.metadata().ok()) else { continue };
            if meta.ino() != inode {
                return Some(format!("slot {slot}: inode {inode} became {}", meta.ino()));
            }
        }
        None
    }

    /// Makes the call and tells its result.
    pub fn apply(&mut self, operation: &Operation) -> String {
        let is_root = rustix::process::geteuid().is_root();
        let left = self.left_by(&operation.call);
        let result = if operation.as_user && is_root {
            Caller::new(USER).groups(&[40_100]).run(|| self.call(&operation.call))
        } else {
            self.call(&operation.call)
        };
        match result {
            Ok(text) => text,
            Err(err) => {
                left.iter().for_each(|(dir, times)| keep_time(dir, *times));
                format!("{err:?}")
            }
        }
    }

    /// The directory that a rename leaves a device in, and its time. ext4 moves the time also when
    /// such a rename fails, and a scratch does not.
    fn left_by(&self, call: &Call) -> Option<(PathBuf, SystemTime)> {
        let Call::Rename { from, flags, .. } = call else { return None };
        let dir =
            self.at(from).parent().filter(|_| flags.contains(RenameFlags::WHITEOUT))?.to_owned();
        let time = fs::metadata(&dir).and_then(|found| found.modified()).ok()?;
        Some((dir, time))
    }

    /// Writes everything through to the filesystem below.
    pub fn sync(&self) {
        for file in self.slots.iter().flatten() {
            // A fifo cannot be synced.
            let _ = file.sync_all();
        }
    }

    /// Compares what the descriptors of two worlds show.
    pub fn compare_open_files(&self, other: &World) -> Option<String> {
        for (slot, pair) in self.slots.iter().zip(&other.slots).enumerate() {
            let (Some(mine), Some(theirs)) = pair else { continue };
            let show = |file: &File| (self.describe_open(file), digest(&read_whole(file)));
            let (mine, theirs) = (show(mine), show(theirs));
            if mine != theirs {
                return Some(format!("slot {slot}: {mine:?} on the mount, {theirs:?} plain"));
            }
        }
        None
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn slot(&self, slot: usize) -> Result<&File, Errno> {
        self.slots[slot].as_ref().ok_or(Errno::BADF)
    }

    fn call(&mut self, call: &Call) -> Result<String, Errno> {
        match *call {
            Call::Open { slot, name, flags } => {
                self.slots[slot] = None;
                let file = open(self.at(name), flags)?;
                self.inodes[slot] = errno(file.metadata())?.ino();
                self.slots[slot] = Some(file);
                done(Ok(()))
            }
            Call::Close { slot } => {
                self.slots[slot] = None;
                done(Ok(()))
            }
            Call::Read { slot, offset, len } => {
                let mut bytes = vec![0; len];
                let count = errno(self.slot(slot)?.read_at(&mut bytes, offset))?;
                Ok(digest(&bytes[..count]))
            }
            Call::Write { slot, offset, len, byte } => {
                let bytes = filling(byte, len);
                Ok(format!("{}", errno(self.slot(slot)?.write_at(&bytes, offset))?))
            }
            Call::MapWrite { slot, offset, len, byte } => self.map_write(slot, offset, len, byte),
            Call::MapRead { slot, offset, len } => self.map_read(slot, offset, len),
            Call::Truncate { slot, len } => done(rustix::fs::ftruncate(self.slot(slot)?, len)),
            Call::Fallocate { slot, mode, offset, len } => {
                done(fallocate(self.slot(slot)?, mode, offset, len))
            }
            Call::CopyRange { from, to, mut input, mut output, len } => {
                let (from, to) = (self.slot(from)?, self.slot(to)?);
                let copied = copy_file_range(from, Some(&mut input), to, Some(&mut output), len)?;
                Ok(format!("{copied} {input} {output}"))
            }
            Call::Sync { slot } => done(errno(self.slot(slot)?.sync_all())),
            Call::StatOpen { slot } => Ok(self.describe_open(self.slot(slot)?)),
            Call::ChmodOpen { slot, mode } => {
                let mode = PermissionsExt::from_mode(mode);
                done(errno(self.slot(slot)?.set_permissions(mode)))
            }
            _ => self.call_by_name(call),
        }
    }

    fn call_by_name(&self, call: &Call) -> Result<String, Errno> {
        match *call {
            Call::Stat { name } => self.describe(name),
            Call::List { name } => {
                let mut names = Vec::new();
                for entry in errno(fs::read_dir(self.at(name)))? {
                    names.push(errno(entry)?.file_name());
                }
                names.sort();
                Ok(format!("{names:?}"))
            }
            Call::Mkdir { name } => done(errno(fs::create_dir(self.at(name)))),
            Call::Rmdir { name } => done(errno(fs::remove_dir(self.at(name)))),
            Call::Unlink { name } => done(errno(fs::remove_file(self.at(name)))),
            Call::Rename { from, to, flags } => {
                done(renameat_with(CWD, self.at(from), CWD, self.at(to), flags))
            }
            Call::Link { from, to } => done(errno(fs::hard_link(self.at(from), self.at(to)))),
            Call::Symlink { target, name } => done(errno(symlink(target, self.at(name)))),
            Call::ReadLink { name } => Ok(format!("{:?}", errno(fs::read_link(self.at(name)))?)),
            Call::MakeFifo { name } => {
                done(mknodat(CWD, self.at(name), FileType::Fifo, Mode::from_raw_mode(0o644), 0))
            }
            Call::Chmod { name, mode } => {
                done(errno(fs::set_permissions(self.at(name), PermissionsExt::from_mode(mode))))
            }
            Call::Chown { name, user, group } => {
                // By the path with and without following, by turns.
                let by = if user.is_some() { chown } else { lchown };
                done(errno(by(self.at(name), user, group)))
            }
            Call::SetTimes { name, seconds, nanoseconds } => {
                let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
                let times = Timestamps { last_access: time, last_modification: time };
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                done(rustix::fs::utimensat(CWD, self.at(name), &times, flags))
            }
            Call::SetXattr { name, key, len } => {
                done(lsetxattr(self.at(name), key, &filling(7, len), XattrFlags::empty()))
            }
            Call::RemoveXattr { name, key } => done(lremovexattr(self.at(name), key)),
            Call::ReadAll { name } => {
                let file = open(self.at(name), OFlags::RDONLY | OFlags::NONBLOCK)?;
                if !errno(file.metadata())?.is_file() {
                    return Ok(String::from("not a file"));
                }
                Ok(digest(&read_whole(&file)))
            }
            _ => unreachable!("a call on a slot"),
        }
    }

    /// Maps the whole file for the time of the call, inside of its size.
    fn mapped(
        &self,
        slot: usize,
        offset: u64,
        len: usize,
    ) -> Result<(Mapped, usize, usize), Errno> {
        let file = self.slot(slot)?;
        let meta = errno(file.metadata())?;
        if !meta.is_file() || offset >= meta.len() {
            return Err(Errno::RANGE);
        }
        let size = meta.len() as usize;
        let map = errno(Mapped::shared(file, size))?;
        Ok((map, offset as usize, len.min(size - offset as usize)))
    }

    fn map_write(&self, slot: usize, at: u64, len: usize, byte: u8) -> Result<String, Errno> {
        let (map, at, len) = self.mapped(slot, at, len)?;
        map.write(at, &filling(byte, len));
        done(errno(map.sync()))
    }

    fn map_read(&self, slot: usize, at: u64, len: usize) -> Result<String, Errno> {
        let (map, at, len) = self.mapped(slot, at, len)?;
        Ok(digest(&map.read(at, len)))
    }

    fn describe(&self, name: &str) -> Result<String, Errno> {
        let path = self.at(name);
        let meta = errno(fs::symlink_metadata(&path))?;
        let mut text = self.describe_metadata(&meta);
        for key in xattr_names(&path)? {
            text += &format!(" {key}={:?}", xattr(&path, &key));
        }
        Ok(text)
    }

    fn describe_open(&self, file: &File) -> String {
        file.metadata().map_or_else(|err| err.to_string(), |meta| self.describe_metadata(&meta))
    }

    fn describe_metadata(&self, meta: &fs::Metadata) -> String {
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let uncounted = meta.is_dir() && self.directories == Directories::Uncounted;
        let links = if uncounted { 0 } else { meta.nlink() };
        let modified = match meta.mtime() {
            set if set < SET_TIMES_END => format!("{set}.{:09}", meta.mtime_nsec()),
            _ => String::from("lately"),
        };
        format!(
            "mode {:o} owner {}:{} links {links} size {size} modified {modified} fifo {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.file_type().is_fifo()
        )
    }
}

fn done(result: Result<(), Errno>) -> Result<String, Errno> {
    result.map(|()| String::from("ok"))
}

fn read_whole(file: &File) -> Vec<u8> {
    let size = file.metadata().map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    let mut bytes = vec![0; size as usize];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => bytes,
        Err(err) => err.to_string().into_bytes(),
    }
}

fn filling(byte: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| byte.wrapping_add((at / 251) as u8)).collect()
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("{} bytes {:016x}", bytes.len(), hasher.finish())
}

/// Puts the time of modification of a directory back, if it has moved.
fn keep_time(dir: &Path, time: SystemTime) {
    // It may be anything by now that is of that name, and a fifo would wait for a writer.
    let opened = open(dir, OFlags::RDONLY | OFlags::DIRECTORY);
    let moved = |dir: &File| dir.metadata().and_then(|found| found.modified()).ok() != Some(time);
    if let Some(dir) = opened.ok().filter(moved) {
        dir.set_modified(time).unwrap();
    }
}
