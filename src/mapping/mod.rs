//! Mapped backing files: read, write, grow, advise, flush, lock, residency.
//!
//! A [`BackingFile`] is one file of the backing tree that is open or carries advice. It has one
//! descriptor and at most one mapping, made on first use and shared by all of its handles.
//! [`FileTable`] holds them by device and inode number and bounds the number of mappings.
//!
//! Invariants: no lock is held while bytes are copied or while the kernel faults pages in; a
//! mapping that is replaced lives on until the last request that uses it has ended; what cannot
//! be done through a mapping (growth, a page that is gone, a file that cannot be mapped) is done
//! by pread(2) and pwrite(2), whose result is the answer.
//!
//! Does not know names, inodes of the mount, or FUSE.

mod advise;
mod file;
mod io;
mod persistent_advice;
mod region;
mod table;

pub use advise::{AdviceEffect, FlushEffect, whole_pages};
pub use file::{BackingFile, Descriptor, FileKey, OpenMode};
pub use table::{FileTable, MappingCounts};
