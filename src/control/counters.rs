//! The number of requests of each kind from the kernel, and of those that failed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

macro_rules! operations {
    ($($variant:ident $name:literal)*) => {
        /// A kind of request, by its name in the FUSE protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)] // The names are those of the protocol.
        pub enum Operation { $($variant),* }

        impl Operation {
            const ALL: &'static [Operation] = &[$(Operation::$variant),*];

            /// Its name in the log and in `status`.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name),* }
            }
        }
    };
}

operations! {
    Lookup "lookup" Forget "forget" GetAttr "getattr" SetAttr "setattr" ReadLink "readlink"
    MkNod "mknod" MkDir "mkdir" Unlink "unlink" RmDir "rmdir" Symlink "symlink" Rename "rename"
    Link "link" Open "open" Create "create" Read "read" Write "write" Flush "flush"
    Release "release" Fsync "fsync" OpenDir "opendir" ReadDir "readdir"
    ReadDirPlus "readdirplus" ReleaseDir "releasedir" FsyncDir "fsyncdir" StatFs "statfs"
    SetXattr "setxattr" GetXattr "getxattr" ListXattr "listxattr" RemoveXattr "removexattr"
    Access "access" Ioctl "ioctl" Poll "poll" Fallocate "fallocate" Lseek "lseek"
    CopyFileRange "copy_file_range"
}

/// Counts since the mount.
#[derive(Debug)]
pub struct Counters {
    requests: Vec<AtomicU64>,
    failed: AtomicU64,
}

impl Default for Counters {
    fn default() -> Counters {
        let requests = Operation::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Counters { requests, failed: AtomicU64::new(0) }
    }
}

impl Counters {
    /// Counts a request.
    pub fn count(&self, operation: Operation) {
        if let Some(counter) = self.requests.get(operation as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a request that failed for a reason other than the question itself: that a name or
    /// an attribute does not exist is an answer.
    pub fn count_error(&self, err: Errno) {
        if !matches!(err, Errno::NOENT | Errno::NODATA) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The requests that came at all, by name.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        let counts = self.requests.iter().map(|counter| counter.load(Ordering::Relaxed));
        Operation::ALL
            .iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .map(|(operation, count)| (operation.name().to_owned(), count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_counter_of_its_own() {
        let counters = Counters::default();
        for operation in Operation::ALL {
            counters.count(*operation);
        }
        assert_eq!(counters.requests().len(), Operation::ALL.len());
        assert!(counters.requests().values().all(|count| *count == 1));
    }
}
