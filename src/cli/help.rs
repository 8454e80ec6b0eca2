//! The longer texts of `--help` and the manual.

use crate::config::options::Group;

/// Description of the program.
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

/// Description of `mount`.
pub const MOUNT: &str = "\
Mounts SRC, a directory or a regular file, on MNT. Without --foreground the daemon goes to the \
background, and the command ends with 0 only after the mount answers; a failure before that is \
its error and its exit code, and leaves nothing mounted. SIGINT and SIGTERM unmount, SIGHUP reads \
the rules file again. In the background the daemon keeps no descriptor of the program that called \
it, and logs to the system log, or where there is none to the file `log` in the run directory, unless \
log_file= says otherwise. A file on a directory is that directory's one entry; a file on a file is \
the root itself.";

/// Description of `umount`.
pub const UMOUNT: &str = "\
Unmounts a mount of mmapfs. --stale is for a mount whose daemon is gone, where every access says \
`Transport endpoint is not connected`: it frees the mount point, and refuses if the daemon lives. \
The command ends after the daemon has, for at most 30 seconds: then the source and the disk of a \
scratch are free to be unmounted themselves. It does not wait with --lazy or --stale, where the \
mount is shown at another place too, or for a user who may not enter the mount. Where the daemon \
goes on, since another mount namespace has the mount, it says so at once and ends with 0.";

/// Description of `scratches`.
pub const SCRATCHES: &str = "\
Lists the scratches of this user: what was made with access=copy, in memory or by scratch=DIR, \
with its base, its size, its age, and where it is mounted, if it is. A scratch in memory goes when \
its mount goes; one that a killed daemon left is mounted again by -o scratch= with its place, and \
is kept from then on, until it is removed or the machine goes down.";

/// Examples of `scratches`.
pub const SCRATCHES_EXAMPLES: &str = "\
Examples:
  mmapfs mount -o access=copy SRC MNT               a scratch in memory, gone after unmount
  mmapfs mount -o access=copy,scratch=DIR SRC MNT   one in DIR, kept, and mounted again the same way
  mmapfs scratches                                  what there is
  mmapfs scratches remove 5a3f                      one of them, by the first digits of its id
  mmapfs scratches remove --left-behind             those in memory that nobody serves";

/// Description of `scratches remove`.
pub const SCRATCHES_REMOVE: &str = "\
Removes scratches with everything that was written in them; the source is not touched. One that is \
mounted is refused. What lies in the directory of a scratch and does not belong to it stays.";

/// Description of `doctor`.
pub const DOCTOR: &str = "\
Says what this machine and this user can have for mounts of DIR: the protocol and the capabilities \
of FUSE in this kernel, passthrough, privilege, system calls, what the filesystem of DIR can do, \
and limits; each with what it is used for, and, where it is missing, what happens without it. \
Everything is tried: a mount is made for a moment in the directory for temporary files, and files without names in DIR. \
The exit code is 0 when a mount is possible, and 1 when not, with the reason.";

/// The exit codes of `mmapfs diff`.
pub const DIFF_EXIT: &str = "The exit code is 0 without differences, 1 with some, and 2 when they \
cannot be told, as that of diff(1).";

/// The exit codes, as (code, meaning).
pub const EXIT_CODES: [(&str, &str); 3] = [
    ("0", "it was done"),
    ("1", "it failed; with several PATHs, at least one of them"),
    ("2", "the command line, an option or the rules file is wrong"),
];

/// The environment, as (variable, meaning).
pub const ENVIRONMENT: [(&str, &str); 6] = [
    (
        "MMAPFS_LOG",
        "the level of the log, or directives of env_logger such as `mmapfs::fuse=debug,info`; \
         -o log= goes before it",
    ),
    ("MMAPFS_SYSLOG", "the socket of the system log, /dev/log by default"),
    (
        "MMAPFS_RUN_DIR",
        "scratches in memory are below it, the log where there is no other, and the notes by which `mmapfs umount` finds daemons; by \
         default /run/mmapfs for root, and for others $XDG_RUNTIME_DIR/mmapfs, or, for scratches, \
         /dev/shm where that is not in memory",
    ),
    (
        "MMAPFS_STATE_DIR",
        "scratches on disk are registered below it; by default /var/lib/mmapfs for root, and for \
         others $XDG_STATE_HOME/mmapfs, that is ~/.local/state/mmapfs",
    ),
    ("NOTIFY_SOCKET", "with --foreground, systemd is told when the mount answers"),
    ("JOURNAL_STREAM", "log lines for the journal begin with their priority"),
];

/// The files, as (path, meaning).
pub const FILES: [(&str, &str); 9] = [
    ("MNT/.mmapfs/control", "takes commands, one to a line, and gives their answers"),
    ("MNT/.mmapfs/status, status.json, maps", "reports, made when they are opened"),
    ("/run/mmapfs/daemons/MAJOR:MINOR", "which process serves the mount of this device, for root"),
    ("/run/mmapfs/scratches/ID", "a scratch in memory of root"),
    ("/var/lib/mmapfs/scratches/ID", "a link to a scratch on disk of root"),
    ("/dev/log", "the system log, for a daemon in the background without log_file="),
    (
        "/run/mmapfs/log",
        "the log of root's daemons where there is no system log, at most 1 MiB, and log.old",
    ),
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
