//! The longer texts of `--help` and the manual.

use crate::config::options::Group;

/// What the program is.
pub const ABOUT: &str = "\
Serve a directory, or one file, as mapped views: every regular file below the mount point is a \
mapping of the file behind it, with the access modes and flags of Python's mmap. Advice, flushes \
and locks reach the mappings by the commands below, or by lines written to .mmapfs/control in the \
root of the mount.";

/// The other forms of `mount`.
pub const SHORTHAND: &str = "\
`mmapfs SRC MNT [-o OPT,...]` is short for `mmapfs mount SRC MNT [-o OPT,...]`: it is taken for \
that when the first word is no command. A source that has a command's name is written ./mount.";

/// The short form of `mount`.
pub const SHORT_FORM: &str = "mmapfs [OPTIONS] <SRC> <MNT>";

/// The form of `mount` for mount(8).
pub const HELPER_FORM: &str = "mount.mmapfs <SRC> <MNT> [-sfnv] [-t <TYPE>] [-o <OPT[,OPT...]>]";

/// What `mount` does.
pub const MOUNT: &str = "\
Mounts SRC, a directory or a regular file, on MNT. Without --foreground the daemon goes to the \
background, and the command ends with 0 only after the mount answers; a failure before that is \
its error and its exit code, and leaves nothing mounted. SIGINT and SIGTERM unmount, SIGHUP reads \
the rules file again. A file on a directory is that directory's one entry; a file on a file is \
the root itself.";

/// What `umount` does.
pub const UMOUNT: &str = "\
Unmounts a mount of mmapfs. --stale is for a mount whose daemon is gone, where every access says \
`Transport endpoint is not connected`: it frees the mount point, and refuses if the daemon lives.";

/// What `doctor` does.
pub const DOCTOR: &str = "\
Says what this machine and this user can have for mounts of DIR: the protocol and the capabilities \
of FUSE in this kernel, passthrough, privilege, system calls, what the filesystem of DIR can do, \
and limits; each with what it is used for, and, where it is missing, what happens without it. \
Everything is tried: a mount is made for a moment in the directory for temporary files, and files without names in DIR. \
The exit code is 0 when a mount is possible, and 1 when not, with the reason.";

/// The exit codes, as (code, meaning).
pub const EXIT_CODES: [(&str, &str); 3] = [
    ("0", "it was done"),
    ("1", "it failed; with several PATHs, at least one of them"),
    ("2", "the command line, an option or the rules file is wrong"),
];

/// The environment, as (variable, meaning).
pub const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "MMAPFS_LOG",
        "the level of the log, or directives of env_logger such as `mmapfs::fuse=debug,info`; \
         -o log= goes before it",
    ),
    ("NOTIFY_SOCKET", "with --foreground, systemd is told when the mount answers"),
    ("JOURNAL_STREAM", "log lines for the journal begin with their priority"),
];

/// The files, as (path, meaning).
pub const FILES: [(&str, &str); 4] = [
    ("MNT/.mmapfs/control", "takes commands, one to a line, and gives their answers"),
    ("MNT/.mmapfs/status, status.json, maps", "reports, made when they are opened"),
    ("/dev/fuse", "the kernel's side; fusermount3 opens it for users without privilege"),
    ("/etc/fuse.conf", "user_allow_other in it lets them use allow_other"),
];

/// The options of `-o`, grouped.
pub fn options() -> String {
    let mut text = String::from("Mount options:\n");
    for group in Group::ALL {
        text += &format!("\n{}:\n", group.title());
        match group {
            Group::Passed => text += &format!("  {}\n", names(group)),
            _ => {
                for known in group.members() {
                    text += &format!("  {}\n          {}\n", known.usage(), known.doc);
                }
            }
        }
    }
    text
}

/// The names of a group, separated by blanks.
pub fn names(group: Group) -> String {
    group.members().map(|known| known.name).collect::<Vec<_>>().join(" ")
}
