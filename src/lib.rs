//! A directory, or one file, served by FUSE as mapped views.
//!
//! Every regular file of a mount is a mapping of the file behind it, with the access modes of
//! Python's mmap. `access=copy` puts a writable scratch over a base that is never written. Advice,
//! flushes, locks and reports reach the mappings by control verbs.
//!
//! The program `mmapfs` does all of this from the command line. This library does it in a program:
//!
//! * [`Mount`] serves a mount in threads of this process, and unmounts when it is dropped;
//! * [`Client`] asks for the control verbs of any mount of mmapfs, and answers with the types of
//!   [`report`], which serde reads and writes.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mmapfs::{Access, Client, Mount};
//! # if !std::path::Path::new("/dev/fuse").exists() { return Ok(()); }
//! # let dir = tempfile::tempdir()?;
//! # let (source, mnt) = (dir.path().join("source"), dir.path().join("mnt"));
//! # std::fs::create_dir(&source)?;
//! # std::fs::create_dir(&mnt)?;
//! # std::fs::write(source.join("data"), "of the base")?;
//!
//! let mount = Mount::builder(&source).access(Access::Copy).spawn(&mnt)?;
//! std::fs::write(mnt.join("data"), "changed")?;
//!
//! let status = Client::open(&mnt)?.status()?;
//! assert_eq!(status.scratch.map(|scratch| scratch.copied_files), Some(1));
//! mount.unmount()?;
//! assert_eq!(std::fs::read_to_string(source.join("data"))?, "of the base");
//! # Ok(())
//! # }
//! ```
//!
//! # The process
//!
//! A mount makes one process-wide setting: a handler for SIGBUS, which is installed at the first
//! mount and stays. A page of a mapping that cannot be had (a file that was truncated, a disk that
//! is full) raises this signal; the handler ends the copy that met it, and gives every other SIGBUS
//! to the handler that was there before. A program that handles SIGBUS itself installs its handler
//! first, or calls the earlier one from its own.
//!
//! Signals, the log, rights and limits stay the program's:
//!
//! * Messages go through the crate `log`.
//! * Threads of a mount act as the callers that they serve. Their credentials and umask are their
//!   own; those of other threads do not change.
//! * Every open file of a mount takes a descriptor: RLIMIT_NOFILE is worth raising.
//! * A process without CAP_SYS_ADMIN mounts by `fusermount3`, and is on the mapped plane.
//!
//! Several mounts in one process do not know of each other.
//!
//! # The source
//!
//! ```text
//!    kernel (VFS, FUSE)                     shells, programs, operators
//!           |                                          |
//!           |                                cli       parse arguments, print
//!    mount     serve a mount in threads      daemon    the program: signals, log, rights
//!           |  of this process               client    the control verbs, for programs
//!           |                                doctor    what this machine has
//!    fuse      translate a request,                    |
//!           |  one call, one reply           control   one command set: parse, print, answer
//!    watch     tell the kernel of                      |
//!           |  direct changes                          |
//!           +-------------------+----------------------+
//!                               |
//!    layers    what a name or a page is made of: base, scratch layers, page maps
//!                               |
//!    volume    what exists: inodes, lookup counts, handles, names, attributes
//!                               |
//!    tree      the words that all share (Ino, Stat, Entry), and the contract in small traits
//!                               |
//!    mapping   mapped files: read, write, grow, advise, flush, lock, residency
//!                               |
//!    sys       mmap, guarded copy, madvise, cachestat, file handles (all unsafe is here)
//! ```
//!
//! `range`, `units`, `advice`, `flags`, `error` and `shown` are leaves that every layer may use.
//! Imports point down only; `tests/layering.rs` checks it. Modules that the program, tests and
//! benches of the crate use are public and hidden: they are no part of its interface.

#[doc(hidden)]
pub mod advice;
#[doc(hidden)]
pub mod cli;
mod client;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod control;
mod daemon;
mod doctor;
mod error;
mod flags;
#[doc(hidden)]
pub mod fuse;
#[doc(hidden)]
#[allow(rustdoc::private_intra_doc_links)]
pub mod layers;
mod mapping;
mod mount;
#[doc(hidden)]
pub mod range;
#[doc(hidden)]
pub mod shown;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
#[allow(rustdoc::private_intra_doc_links)]
pub mod tree;
mod units;
#[doc(hidden)]
#[allow(rustdoc::private_intra_doc_links)]
pub mod volume;
mod watch;

#[doc(inline)]
pub use advice::Advice;
pub use client::Client;
#[doc(inline)]
pub use control::command::FlushMode;
pub use error::{Failure as Error, FailureKind as ErrorKind};
pub use flags::Access;
pub use mount::{Mount, MountBuilder, UnmountError};
#[doc(inline)]
pub use range::RangeSpec;

/// The answers to control verbs.
///
/// A value that could not be measured is `None`. Sizes, offsets and ranges are in bytes, ranges are
/// half open, and counts of pages are in pages of the system. serde reads and writes them in the
/// form that `mmapfs --json` prints.
pub mod report {
    #[doc(inline)]
    pub use crate::control::report::{
        AdviseReport, Errors, Feature, FileReport, FlushReport, GuardReport, Handles, Inodes,
        Kernel, LeftReport, LockReport, MapReport, Mappings, Memory, OpenFileReport, ReloadReport,
        ScratchReport, StatusReport, StickyAdvice, Timeouts, VersionReport, Watch,
    };
    #[doc(inline)]
    pub use crate::shown::Name;
}
