//! Needs of a scratch: for a directory that would hold one, and for one that would be its base.

use std::ffi::CStr;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::subject::Subject;
use super::{Check, Finding, Group, Topic};
use crate::sys::detached::{self, Use};
use crate::sys::fd_path;

const MARKS: Topic = Topic(
    "scratch_marks",
    "keeping a scratch in this directory: its marks are extended attributes",
    "scratch= names a directory on another filesystem",
);
const WHITEOUTS: Topic = Topic(
    "scratch_whiteouts",
    "keeping a scratch in this directory: names of the base that are gone",
    "scratch= names a directory on another filesystem",
);
const MEMORY: Topic = Topic(
    "scratch_memory",
    "a tmpfs of its own for a scratch in memory",
    "the scratch is a directory in /dev/shm, and mmapfs alone keeps its limit",
);
const CLONES: Topic = Topic(
    "mount_clones",
    "reading this directory as a base that nothing can write, and whose times stay",
    "the base is read as it is mounted, and its times of access move as for every reader",
);

pub(super) fn checks(subject: &Subject) -> Vec<Check> {
    let found = [
        MARKS.found(Group::Scratch, marks(subject)),
        WHITEOUTS.found(Group::Scratch, whiteouts(subject)),
        MEMORY.found(Group::Scratch, memory()),
        CLONES.found(Group::Scratch, clones(subject)),
    ];
    found.into()
}

fn words(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

fn marks(subject: &Subject) -> Finding {
    let file = match &subject.scratch {
        Ok((file, _)) => file,
        Err(errno) => {
            return Finding::no(format!("no file can be made here: {}", words(*errno)));
        }
    };
    let set = |name| rustix::fs::fsetxattr(file, name, b"y", XattrFlags::empty());
    match (set("trusted.mmapfs.probe"), set("user.mmapfs.probe")) {
        (Ok(()), _) => Finding::yes("trusted. attributes").with("space", "trusted"),
        (Err(_), Ok(())) => Finding::limited(
            "user. attributes: not of symbolic links, whose numbers change at the next mount",
        )
        .with("space", "user"),
        (_, Err(errno)) => Finding::no(format!("extended attributes: {}", words(errno))),
    }
}

/// A directory that goes with the value.
struct Place<'a> {
    subject: &'a Subject,
    name: String,
}

impl<'a> Place<'a> {
    fn new(subject: &'a Subject) -> Result<Place<'a>, Errno> {
        let name = format!(".mmapfs-doctor-{}", std::process::id());
        rustix::fs::mkdirat(subject.dir(), &name, Mode::RWXU)?;
        Ok(Place { subject, name })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let dir = self.subject.dir();
        for name in ["a", "b"] {
            // Most often one of them is not there.
            let _ = rustix::fs::unlinkat(dir, format!("{}/{name}", self.name), AtFlags::empty());
        }
        if let Err(err) = rustix::fs::unlinkat(dir, &self.name, AtFlags::REMOVEDIR) {
            log::warn!("{}: removing it: {err}", self.name);
        }
    }
}

fn whiteouts(subject: &Subject) -> Finding {
    let place = match Place::new(subject) {
        Ok(place) => place,
        Err(errno) => {
            return Finding::no(format!("no directory can be made here: {}", words(errno)));
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(subject.dir(), &place.name, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(errno) => return Finding::unknown(words(errno)),
    };
    const A: &CStr = c"a";
    const B: &CStr = c"b";
    let mode = Mode::RUSR | Mode::WUSR;
    if let Err(errno) = rustix::fs::mknodat(&dir, A, FileType::CharacterDevice, mode, 0) {
        return Finding::no(format!("character devices 0/0: {}", words(errno)));
    }
    let made = rustix::fs::unlinkat(&dir, A, AtFlags::empty()).and_then(|()| {
        rustix::fs::mknodat(&dir, A, FileType::RegularFile, mode, 0)?;
        rustix::fs::renameat_with(&dir, A, &dir, B, RenameFlags::WHITEOUT)
    });
    match made {
        Ok(()) => Finding::yes("made, and left by a rename"),
        Err(errno) => Finding::no(format!("made, but a rename leaves none: {}", words(errno))),
    }
}

fn memory() -> Finding {
    let mounted = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).and_then(|fs| {
        rustix::mount::fsconfig_create(&fs)?;
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        rustix::mount::fsmount(&fs, flags, MountAttrFlags::empty())
    });
    match mounted {
        Ok(_) => Finding::yes("one was made, and is gone again"),
        Err(Errno::PERM) => Finding::no("it needs CAP_SYS_ADMIN"),
        Err(errno) => Finding::no(words(errno)),
    }
}

fn clones(subject: &Subject) -> Finding {
    match detached::clone_mount(&fd_path(subject.dir()), Use::Read) {
        Ok(_) => Finding::yes("one was made, and is gone again"),
        Err(Errno::PERM) => Finding::no("it needs CAP_SYS_ADMIN"),
        Err(Errno::NOSYS) => Finding::no("this kernel does not have it (Linux 5.12)"),
        Err(errno) => Finding::no(words(errno)),
    }
}
