//! The contents of a mount: inodes, lookup counts, handles, names and attributes.
//!
//! [`Tree`] and [`Managed`] are what the layers above ask for, [`Volume`] is the plain tree that
//! answers. Every method is one operation of a filesystem or one control verb, works on backing
//! files below the source directory, and answers with the errno that the backing tree gives.
//!
//! Paths are safe by construction: a backing file is reached by one name in an open directory,
//! never following a link, or by its file handle, and what was reached is compared with what was
//! looked up. An idle inode holds no descriptor.

mod access_times;
mod as_tree;
mod attr;
mod data;
mod device;
mod dircache;
mod dirs;
mod guard_counts;
mod handle;
mod identity;
mod inode;
mod names;
mod pinned_file;
mod plane;
mod policy;
mod resolve;
mod setattr;
pub mod short_lived_fds;
mod spare;
mod tree;
mod watched;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use attr::{Attr, Entry, Stat, Time};
pub use data::{DataOnly, Open, Opened, SeekTo, WriteRequest};
pub use device::FIRST_RESERVED;
pub use dirs::DirItem;
pub use guard_counts::GuardCounts;
pub use handle::HandleId;
pub use inode::{Ino, substitutes, unsubstituted};
pub use names::NewNode;
pub use pinned_file::{Found, NotAdvised, PageState, PinnedFile, VolumeCounts};
pub use plane::{
    BackingRegistration, Candidate, Hold, OpenInode, Plane, Planes, RegisterBacking, WhyMapped,
};
pub use policy::Policy;
pub use setattr::{NewTime, SetAttr};
pub use tree::{Managed, ScratchCounts, Tree};
pub use watched::{Coverage, Told, Validity, WatchCounts, WatchDirectories};
pub use xattr::XattrFlags;

use crate::mapping::FileTable;

/// The options to build a [`Volume`].
#[derive(Debug)]
pub struct VolumeOptions {
    /// The source directory, or the directory of the source file.
    pub source: PathBuf,
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
    /// The kernel may use attributes again that it was told of: their timeout is not 0.
    pub keeps_attributes: bool,
}

/// Tells the kernel that what it has cached of a file is no longer so.
pub trait Invalidate: Send + Sync {
    /// Writes dirty pages of the range back and drops the rest, before it returns. `len` 0 is to
    /// the end. Must not be called by a thread that the kernel waits for.
    fn now(&self, ino: Ino, offset: u64, len: u64) -> std::io::Result<()>;

    /// The same for the whole file, soon, by another thread.
    fn soon(&self, ino: Ino);

    /// Drops what a name in a directory leads to, or that it is not there. Waits for the lookups
    /// in that directory that are under way; as [`Invalidate::now`] not for everybody to call.
    fn entry(&self, parent: Ino, name: &OsStr) -> Result<(), Errno>;

    /// Has a name looked up anew before it is used again, and leaves what is mounted there.
    fn expire(&self, parent: Ino, name: &OsStr) -> Result<(), Errno>;

    /// Drops the attributes and access lists of a file, and with `data` its cached content.
    ///
    /// # Errors
    /// ENOENT when the kernel does not know the inode, or not yet.
    fn inode(&self, ino: Ino, data: bool) -> Result<(), Errno>;

    /// Drops every name, known or known not to be there, and unmounts what is mounted below.
    ///
    /// # Errors
    /// EINVAL before Linux 6.16.
    fn names(&self) -> Result<(), Errno>;
}

/// A tree of mapped views.
pub struct Volume {
    inodes: inode::InodeTable,
    devices: device::Devices,
    directories: dircache::DirCache,
    /// Files that were looked up.
    short_lived: short_lived_fds::ShortLived<OwnedFd>,
    /// Listings under way of directories that the kernel has opened without asking.
    streams: short_lived_fds::ShortLived<handle::OpenDir>,
    /// Files that are read without having been opened.
    unopened: short_lived_fds::ShortLived<handle::OpenFile>,
    sweeper: short_lived_fds::Sweeper,
    spare: spare::Spare,
    files: Arc<FileTable>,
    handles: handle::HandleTable,
    planes: Arc<plane::Planes>,
    policy: RwLock<Policy>,
    /// The directory or file that was opened, as it was called.
    source: PathBuf,
    only: Option<OsString>,
    root_is_file: bool,
    reserved: Option<OsString>,
    keeps_attributes: bool,
    access_times: access_times::AccessTimes,
    /// File handles can be opened.
    by_handle: bool,
    watched: watched::Watched,
    invalidate: OnceLock<Box<dyn Invalidate>>,
}

impl Volume {
    /// Opens the source.
    ///
    /// # Errors
    /// Errors of open(2) on the source.
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
        // Tried out: root of a user namespace has the capability, and not for this.
        let by_handle = crate::sys::handle::handle_of(&directory, c"")
            .and_then(|handle| crate::sys::handle::open_handle(&directory, &handle, OFlags::PATH))
            .is_ok();
        let watched = watched::Watched::new(&root, &stat);
        let access_times = access_times::AccessTimes::new(options.keeps_atime, &directory);
        Ok(Volume {
            inodes: inode::InodeTable::new(&stat, root),
            devices: device::Devices::new(directory)?,
            directories: dircache::DirCache::default(),
            short_lived: short_lived_fds::ShortLived::new(512),
            streams: short_lived_fds::ShortLived::new(64),
            unopened: short_lived_fds::ShortLived::new(256),
            sweeper: short_lived_fds::Sweeper::default(),
            spare: spare::Spare::default(),
            files: Arc::new(FileTable::new(options.max_mappings)),
            handles: handle::HandleTable::default(),
            planes: plane::Planes::new(),
            policy: RwLock::new(options.policy),
            source: match &options.only {
                Some(name) => options.source.join(name),
                None => options.source,
            },
            only: options.only,
            root_is_file: options.root_is_file,
            reserved: options.reserved,
            keeps_attributes: options.keeps_attributes,
            access_times,
            by_handle,
            watched,
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
        while self.sweeper.wait() {
            drop(self.short_lived.sweep());
            drop(self.streams.sweep());
            self.unopened.sweep().iter().for_each(|open| self.close(open));
            let idle = self.short_lived.is_empty() && self.streams.is_empty();
            if !(idle && self.unopened.is_empty()) {
                self.sweeper.note();
            }
        }
    }

    /// Makes [`Volume::expire`] return.
    pub fn end(&self) {
        self.sweeper.end();
    }

    /// Whether backing files are found by file handle, which survives renames behind our back.
    pub fn uses_file_handles(&self) -> bool {
        self.by_handle
    }

    /// Whether a listing may go on in another stream where one has come to.
    pub fn cookies_outlive_opens(&self) -> bool {
        self.devices.keeps_cookies()
    }

    /// Whether an entry of a directory stays where it is in its listings, whatever else comes and
    /// goes: a listing may go on in another stream then, though a stream of its own may serve it
    /// better.
    pub fn keeps_offsets(&self, dir: Ino) -> bool {
        self.inodes.get(dir).is_some_and(|node| self.devices.keeps_offsets(node.key()))
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
