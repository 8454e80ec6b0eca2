//! One backing directory as a tree: inodes, lookup counts, handles, names and attributes.
//!
//! [`Volume`] implements the traits of [`tree`](crate::tree), each in the file that has the code:
//! names in `names`, open files in `data`, and so on. Every method works on backing files below the
//! source directory, and answers with the errno that the backing tree gives.
//!
//! Paths are safe by construction: a backing file is reached by one name in an open directory,
//! never following a link, or by its file handle, and what was reached is compared with what was
//! looked up. An idle inode holds no descriptor.

mod access_times;
mod data;
mod device;
mod dircache;
mod dirs;
mod handle;
mod identity;
mod inode;
mod names;
mod pinned_file;
mod plane_table;
mod policy;
mod resolve;
mod setattr;
pub mod short_lived_fds;
mod spare;
mod stat;
mod watched;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use inode::{substitutes, unsubstituted};
pub use pinned_file::PinnedFile;
pub use plane_table::{Candidate, Hold, PlaneTable};
pub use policy::Policy;
pub use watched::{ChangeSink, Coverage, WatchDirectories};

use crate::config::rules::RuleSet;
use crate::mapping::FileTable;
use crate::tree::{Ino, Invalidate, Lifecycle};

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
    planes: Arc<plane_table::PlaneTable>,
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

impl Lifecycle for Volume {
    fn set_rules(&self, rules: RuleSet) {
        self.policy.write().rules = rules;
    }

    fn expire(&self) {
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

    fn end(&self) {
        self.sweeper.end();
    }
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
        let stat = stat::stat_of(&root)?;
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
            planes: plane_table::PlaneTable::new(),
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
