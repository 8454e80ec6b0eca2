//! The directory that was named, and what its filesystem can do.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::subject::Subject;
use super::{Check, Finding, Group, Topic};
use crate::sys::fanotify::Fanotify;
use crate::sys::handle;

const WRITABLE: Topic =
    Topic("writable", "writing through a mount", "a mount of it can be read only");
const HANDLES: Topic = Topic(
    "file_handles",
    "finding files that were renamed in the source",
    "those are looked up again by name",
);
const FANOTIFY: Topic = Topic(
    "fanotify",
    "noticing changes made in the source at once",
    "the directories in use are marked one by one, or timeouts are short",
);
const MARKS: Topic = Topic(
    "fanotify_directories",
    "noticing changes made in the source without CAP_SYS_ADMIN",
    "timeouts are short",
);
const REFLINK: Topic = Topic("reflink", "copies that share their blocks", "bytes are copied");

pub(super) fn checks(subject: &Subject) -> Vec<Check> {
    let found = [
        WRITABLE.found(Group::Directory, writable(subject)),
        HANDLES.found(Group::Directory, handles(subject)),
        FANOTIFY.found(Group::Directory, marked(subject, mark_filesystem)),
        MARKS.found(Group::Directory, marked(subject, mark_directory)),
        REFLINK.found(Group::Directory, reflink(subject)),
    ];
    found.into()
}

fn words(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}

fn writable(subject: &Subject) -> Finding {
    let fstype = subject.fstype.as_deref().unwrap_or("unknown");
    let finding = match subject.scratch {
        Ok(_) => Finding::yes(format!("a file was made in it, on {fstype}")),
        Err(errno) => Finding::no(format!("{}, on {fstype}", words(errno))),
    };
    finding.with("fstype", subject.fstype.clone())
}

fn handles(subject: &Subject) -> Finding {
    let found = match handle::handle_of(subject.dir(), c"") {
        Ok(found) => found,
        Err(Errno::OPNOTSUPP) => return Finding::no("this filesystem has none"),
        Err(errno) => return Finding::no(format!("name_to_handle_at: {}", words(errno))),
    };
    match handle::open_handle(subject.dir(), &found, OFlags::RDONLY | OFlags::CLOEXEC) {
        Ok(_) => Finding::yes("given and opened"),
        Err(Errno::PERM) => Finding::no("given, but opening them needs CAP_DAC_READ_SEARCH"),
        Err(errno) => Finding::no(format!("given, but open_by_handle_at: {}", words(errno))),
    }
}

fn mark_filesystem(subject: &Subject) -> Result<(), Errno> {
    Fanotify::new(false)?.mark_filesystem(subject.dir())
}

fn mark_directory(subject: &Subject) -> Result<(), Errno> {
    Fanotify::new(true)?.mark_directory(subject.dir())
}

fn marked(subject: &Subject, mark: fn(&Subject) -> Result<(), Errno>) -> Finding {
    // Some can be marked, and are changed where nobody here is told.
    if let Err(reason) = crate::watch::check_local(subject.dir()) {
        return Finding::no(reason);
    }
    match mark(subject) {
        Ok(()) => Finding::yes("it was marked"),
        Err(Errno::PERM) => Finding::no("it needs CAP_SYS_ADMIN"),
        Err(Errno::NOSYS) => Finding::no("this kernel does not have it"),
        Err(Errno::INVAL) => Finding::no("this kernel does not report names"),
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::XDEV) => {
            Finding::no("this filesystem cannot name its files in events")
        }
        Err(errno) => Finding::no(words(errno)),
    }
}

fn reflink(subject: &Subject) -> Finding {
    let (from, to) = match &subject.scratch {
        Ok(files) => files,
        Err(errno) => {
            return Finding::unknown(format!("no file can be made here: {}", words(*errno)));
        }
    };
    if let Err(errno) = rustix::io::pwrite(from, &[1; 4096], 0) {
        return Finding::unknown(format!("writing a file to clone: {}", words(errno)));
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Finding::yes("a file was cloned"),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => {
            Finding::no("this filesystem does not clone files")
        }
        Err(errno) => Finding::no(words(errno)),
    }
}
