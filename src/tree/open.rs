//! Open files: how they are opened, written and searched.

use rustix::fs::SeekFrom;

use super::{HandleId, Plane, WhyMapped};
use crate::mapping::OpenMode;

/// The mode in which a file is to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct Open {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// With O_APPEND.
    pub append: bool,
    /// With O_DIRECT.
    pub direct: bool,
    /// As long as it takes, on a thread that may wait.
    pub wait: bool,
    /// Why it must not be lent to the kernel, where the caller knows that: the daemon serves it.
    /// An inode that is open already keeps its plane; the caller sees to it that none is open and
    /// lent.
    pub unlent: Option<WhyMapped>,
}

impl Open {
    /// The mode in which the backing file is opened.
    pub fn mode(&self) -> OpenMode {
        match (self.write, self.append) {
            (false, _) => OpenMode::Read,
            (true, false) => OpenMode::Write,
            (true, true) => OpenMode::Append,
        }
    }
}

/// A file that was opened.
pub struct Opened {
    /// Its handle.
    pub id: HandleId,
    /// The side that moves the bytes of the inode.
    pub plane: Plane,
    /// Its own reads and writes come to the daemon whatever the plane, and only its mappings are
    /// the kernel's: O_APPEND and O_DIRECT may be taken back by fcntl(2), and the kernel's
    /// backing file would keep them.
    pub by_request: bool,
    /// On the mapped plane: the kernel's page cache of it.
    pub cache: PageCache,
}

/// The use of the kernel's page cache for a file that is opened on the mapped plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCache {
    /// Cached data is used.
    Kept,
    /// Cached data is dropped first: it may be from before a change that nobody has told of yet.
    Dropped,
    /// Nothing is cached: every read and write is a request, and those of one client do not wait
    /// for those of another.
    Bypassed,
}

/// A write as the caller's descriptor asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteRequest {
    /// Opened with O_APPEND, and not written back from the page cache.
    pub append: bool,
    /// Opened with O_SYNC or O_DSYNC: durable before the answer. The flag says that only the
    /// data has to be.
    pub durable: Option<DataOnly>,
    /// The caller has no right to leave setuid and setgid bits in place.
    pub kill_privileges: bool,
    /// The kernel's number for the writer's table of descriptors, which [`Files::close`] tells.
    ///
    /// [`Files::close`]: super::Files::close
    pub lock_owner: Option<u64>,
    /// As long as it takes, on a thread that may wait.
    pub wait: bool,
}

/// An ioctl(2) on an open file or directory.
#[derive(Debug, Clone, Copy)]
pub struct Ioctl<'a> {
    /// Its number.
    pub command: u32,
    /// The bytes that it passes in.
    pub data: &'a [u8],
    /// The most bytes that it takes back.
    pub out_size: usize,
    /// As long as it takes, on a thread that may wait.
    pub wait: bool,
}

/// Whether a synchronisation may leave out attributes that are not needed to read the data.
pub type DataOnly = bool;

/// A search for data or holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The first byte of data at or after the offset.
    Data,
    /// The first byte of a hole at or after the offset; the end of the file is one.
    Hole,
}

impl SeekTo {
    /// The search from an offset, as lseek(2) takes it.
    pub fn starting_at(self, offset: u64) -> SeekFrom {
        match self {
            SeekTo::Data => SeekFrom::Data(offset),
            SeekTo::Hole => SeekFrom::Hole(offset),
        }
    }
}
