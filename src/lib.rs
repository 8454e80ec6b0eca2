//! mmapfs: a directory served as mapped views.
//!
//! ```text
//!    kernel (VFS, FUSE)                     shells, programs, operators
//!           |                                          |
//!    fuse      translate a request,          cli       parse arguments, print
//!              one call, one reply           doctor    what this machine has
//!           |                                          |
//!    watch     tell the kernel of            control   one command set: parse, print, answer
//!              direct changes                          |
//!           |                                          |
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
//! Imports point down only; `tests/layering.rs` checks it.

pub mod advice;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod error;
pub mod flags;
pub mod fuse;
pub mod layers;
pub mod mapping;
pub mod mount;
pub mod range;
pub mod shown;
pub mod sys;
pub mod tree;
pub mod units;
pub mod volume;
pub mod watch;
