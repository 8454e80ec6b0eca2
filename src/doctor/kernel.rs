//! System calls, each tried.

use std::fs::File;

use rustix::fs::{MemfdFlags, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::subject::Subject;
use super::{Check, Finding, Group, Topic};
use crate::sys::region::Region;
use crate::sys::{advise, confine, page_size, probe, residency};

const OPENAT2: Topic = Topic(
    "openat2",
    "control commands on a path: no link leads out of the source",
    "such commands fail; files are served all the same",
);
const CACHESTAT: Topic = Topic(
    "cachestat",
    "counts of cached and dirty pages",
    "cached pages are counted by mincore(2), dirty ones not at all",
);
const PAGEMAP_SCAN: Topic = Topic(
    "pagemap_scan",
    "nothing: views are shared mappings, whose pages cachestat and mincore count",
    "nothing is lost",
);
const POPULATE_READ: Topic = Topic(
    "madv_populate_read",
    "bringing pages into a mapping at once",
    "every page is a fault of its own",
);

const LANDLOCK: Topic = Topic(
    "landlock",
    "taking TCP and signals to others from the daemon",
    "nothing of the kernel's side takes the network from a daemon that was taken over",
);
const SECCOMP: Topic = Topic(
    "seccomp",
    "leaving the daemon the system calls that serving takes",
    "a daemon that was taken over can make every system call",
);

pub(super) fn checks(subject: &Subject) -> Vec<Check> {
    let found = [
        OPENAT2.found(Group::Kernel, of(resolve(subject))),
        CACHESTAT.found(Group::Kernel, of(count_pages())),
        PAGEMAP_SCAN.found(Group::Kernel, of(scan())),
        POPULATE_READ.found(Group::Kernel, of(populate())),
        LANDLOCK.found(Group::Kernel, landlock()),
        SECCOMP.found(Group::Kernel, of(confine::filters_are_there())),
    ];
    found.into()
}

/// The finding of a call.
fn of(result: Result<(), Errno>) -> Finding {
    match result {
        Ok(()) => Finding::yes("works"),
        Err(Errno::NOSYS | Errno::NOTTY) => Finding::no("this kernel does not have it"),
        Err(Errno::PERM) => Finding::no("it is forbidden (EPERM), perhaps by the container"),
        Err(errno) => Finding::no(std::io::Error::from(errno)),
    }
}

fn landlock() -> Finding {
    match confine::landlock_version() {
        Ok(version @ confine::LANDLOCK_WITH_NETWORK..) => {
            Finding::yes(format!("version {version}"))
        }
        Ok(version) => Finding::limited(format!("version {version}: without network")),
        Err(Errno::OPNOTSUPP) => Finding::no("the kernel was started without it (lsm=)"),
        Err(errno) => of(Err(errno)),
    }
}

fn resolve(subject: &Subject) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    openat2(subject.dir(), ".", flags, Mode::empty(), resolve).map(drop)
}

/// A file of one page in memory.
fn page_file() -> Result<File, Errno> {
    let file = rustix::fs::memfd_create("mmapfs-doctor", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, page_size() as u64)?;
    Ok(file.into())
}

fn count_pages() -> Result<(), Errno> {
    residency::cachestat(page_file()?, 0..page_size() as u64).map(drop)
}

fn mapped() -> Result<Region, Errno> {
    Region::map(page_file()?, page_size(), libc::PROT_READ, libc::MAP_SHARED)
}

fn populate() -> Result<(), Errno> {
    advise::populate_read(&mapped()?, 0..page_size())
}

fn scan() -> Result<(), Errno> {
    let pagemap = File::open("/proc/self/pagemap")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    probe::scan_pagemap(pagemap, &mapped()?).map(drop)
}
