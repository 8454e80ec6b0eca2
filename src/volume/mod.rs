//! What exists in a mount: inodes, lookup counts, handles, names and attributes.
//!
//! [`Volume`] is the tree as its callers see it. Every method is one operation of a filesystem or
//! one control verb, works on backing files below the source directory, and answers with the
//! errno that the backing tree gives.
//!
//! Paths are safe by construction: a backing file is reached by one name in an open directory,
//! never following a link, or by its file handle, and what was reached is compared with what was
//! looked up. An idle inode holds no descriptor.

mod attr;
mod data;
mod device;
mod dircache;
mod dirs;
mod handle;
mod inode;
mod names;
mod policy;
mod recent;
mod resolve;
mod setattr;
mod view;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use parking_lot::RwLock;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use attr::{Attr, Entry, Stat, Time};
pub use data::{DataOnly, Open, SeekTo, WriteRequest};
pub use device::FIRST_RESERVED;
pub use dirs::DirItem;
pub use handle::HandleId;
pub use inode::Ino;
pub use names::NewNode;
pub use policy::Policy;
pub use setattr::{NewTime, SetAttr};
pub use view::{Found, View, VolumeCounts};
pub use xattr::XattrFlags;

use crate::mapping::FileTable;

/// The number of capability CAP_DAC_READ_SEARCH, which opening by file handle needs.
const CAP_DAC_READ_SEARCH: u32 = 2;

/// How to build a [`Volume`].
#[derive(Debug)]
pub struct VolumeOptions {
    /// The source directory, or the directory of the source file.
    pub source: std::path::PathBuf,
    /// The source is this one file of the directory.
    pub only: Option<OsString>,
    /// With `only`: the mount is the file itself, not a directory with one entry.
    pub root_is_file: bool,
    /// A name in the root that belongs to the control directory.
    pub reserved: Option<OsString>,
    /// Access by path.
    pub policy: Policy,
    /// The most mappings at one time.
    pub max_mappings: u64,
    /// Reading moves the time of last access, as far as the backing filesystem keeps it.
    pub keeps_atime: bool,
}

/// Tells the kernel that what it has cached of a file is no longer so.
pub trait Invalidate: Send + Sync {
    /// Writes dirty pages of the range back and drops the rest, before it returns. `len` 0 is to
    /// the end. Must not be called by a thread that the kernel waits for.
    fn now(&self, ino: Ino, offset: u64, len: u64) -> std::io::Result<()>;

    /// The same for the whole file, soon, by another thread.
    fn soon(&self, ino: Ino);
}

/// A tree of mapped views.
pub struct Volume {
    inodes: inode::InodeTable,
    devices: device::Devices,
    directories: dircache::DirCache,
    recent: recent::Recent,
    files: FileTable,
    handles: handle::HandleTable,
    policy: RwLock<Policy>,
    only: Option<OsString>,
    root_is_file: bool,
    reserved: Option<OsString>,
    keeps_atime: bool,
    /// File handles can be opened.
    by_handle: bool,
    invalidate: OnceLock<Box<dyn Invalidate>>,
}

impl Volume {
    /// Opens the source.
    ///
    /// # Errors
    /// Those of open(2) on the source.
    pub fn open_source(options: VolumeOptions) -> Result<Volume, Errno> {
        let directory: OwnedFd = rustix::fs::open(
            &options.source,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let root = match &options.only {
            Some(name) if options.root_is_file => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&directory, name, flags, Mode::empty())?
            }
            _ => rustix::io::fcntl_dupfd_cloexec(&directory, 0)?,
        };
        let stat = attr::stat_of(&root)?;
        let by_handle = crate::sys::cred::has_capability(CAP_DAC_READ_SEARCH)
            && crate::sys::handle::handle_of(&directory, c"").is_ok();
        Ok(Volume {
            inodes: inode::InodeTable::new(&stat, root),
            devices: device::Devices::new(directory)?,
            directories: dircache::DirCache::default(),
            recent: recent::Recent::default(),
            files: FileTable::new(options.max_mappings),
            handles: handle::HandleTable::default(),
            policy: RwLock::new(options.policy),
            only: options.only,
            root_is_file: options.root_is_file,
            reserved: options.reserved,
            keeps_atime: options.keeps_atime,
            by_handle,
            invalidate: OnceLock::new(),
        })
    }

    /// Sets the way to the kernel's caches, once, when there is one.
    pub fn connect(&self, invalidate: Box<dyn Invalidate>) {
        if self.invalidate.set(invalidate).is_err() {
            log::error!("the volume is connected to a second kernel session");
        }
    }

    /// Closes what is held open for a moment only, until [`Volume::end`]; for a thread of its own.
    pub fn expire(&self) {
        self.recent.expire();
    }

    /// Makes [`Volume::expire`] return.
    pub fn end(&self) {
        self.recent.end();
    }

    /// Whether backing files are found by file handle, which survives renames behind our back.
    pub fn uses_file_handles(&self) -> bool {
        self.by_handle
    }

    /// Whether the root is a directory that shows a single file.
    fn shows_one_file(&self) -> bool {
        self.only.is_some() && !self.root_is_file
    }

    /// Whether a name in the root belongs to the tree. The others are not there.
    fn visible(&self, parent: Ino, name: &OsStr) -> bool {
        if parent != Ino::ROOT {
            return true;
        }
        if self.reserved.as_deref() == Some(name) {
            return false;
        }
        !self.shows_one_file() || self.only.as_deref() == Some(name)
    }
}
