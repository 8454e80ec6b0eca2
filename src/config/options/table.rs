//! The table of every known option.

use rustix::mount::MountFlags;

use super::MountOptions;
use super::group::Group;
use super::set::{self, Set};

/// A known option.
pub struct Known {
    /// Its name, without a value.
    pub name: &'static str,
    /// The group that it belongs to.
    pub group: Group,
    /// One sentence without a full stop; empty where the group says it all.
    pub doc: &'static str,
    pub(super) action: Action,
}

/// The action of an option.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Sets something; takes no value.
    Flag(fn(&mut MountOptions)),
    /// `NAME`, `NAME=on`, `NAME=off`.
    Switch(fn(&mut MountOptions, bool)),
    /// `NAME=VALUE`, with the name of the value.
    Value(&'static str, Set),
    /// Changes the flags of mount(2).
    Mount { set: MountFlags, clear: MountFlags },
    /// Nothing, with any value.
    Pass,
    /// Fails, for this reason.
    Refuse(&'static str),
}

impl Known {
    /// The option of this name. Names that begin with `x-` or `X-` are comments of mount(8).
    pub fn find(name: &str) -> Option<&'static Known> {
        let comment = name.starts_with("x-") || name.starts_with("X-");
        let name = if comment { "x-*" } else { name };
        known().iter().find(|known| known.name == name)
    }

    /// As it is typed: `access=MODE`, `ro`, `clone_fd[=off]`.
    pub fn usage(&self) -> String {
        match self.action {
            Action::Value(metavar, _) => format!("{}={metavar}", self.name),
            Action::Switch(_) => format!("{}[=off]", self.name),
            _ => self.name.to_owned(),
        }
    }
}

const fn value(
    name: &'static str,
    group: Group,
    metavar: &'static str,
    set: Set,
    doc: &'static str,
) -> Known {
    Known { name, group, doc, action: Action::Value(metavar, set) }
}

const fn flag(
    name: &'static str,
    group: Group,
    set: fn(&mut MountOptions),
    doc: &'static str,
) -> Known {
    Known { name, group, doc, action: Action::Flag(set) }
}

const fn mount(name: &'static str, set: MountFlags, clear: MountFlags, doc: &'static str) -> Known {
    Known { name, group: Group::Kernel, doc, action: Action::Mount { set, clear } }
}

const fn sets(name: &'static str, set: MountFlags, doc: &'static str) -> Known {
    mount(name, set, MountFlags::empty(), doc)
}

const fn clears(name: &'static str, clear: MountFlags, doc: &'static str) -> Known {
    mount(name, MountFlags::empty(), clear, doc)
}

const fn label(name: &'static str, set: Set) -> Known {
    value(name, Group::Kernel, "LABEL", set, "a label of SELinux")
}

const fn pass(name: &'static str) -> Known {
    Known { name, group: Group::Passed, doc: "", action: Action::Pass }
}

const fn refuse(name: &'static str, doc: &'static str) -> Known {
    Known { name, group: Group::Refused, doc, action: Action::Refuse(doc) }
}

/// Every known option, in the order of the manual.
pub fn known() -> &'static [Known] {
    KNOWN
}

const ATIMES: MountFlags =
    MountFlags::NOATIME.union(MountFlags::RELATIME).union(MountFlags::STRICTATIME);
const OWN: &str = "the kernel is told by mmapfs itself";
const CACHE: &str = "mmapfs keeps the kernel's cache true by itself: see attr_timeout=";
const OWNER: &str = "files show the owner and mode that they have in the source";
const INODES: &str = "files show the inode numbers that they have in the source";
const SIZES: &str = "it is settled with the kernel when the mount is made";
const NAMESPACE: &str = "mmapfs makes mounts and does not change existing ones";

static KNOWN: &[Known] = &[
    value(
        "access",
        Group::View,
        "MODE",
        set::access,
        "read (writing is refused), write (what is written is in the source), copy (what is \
         written stays in a scratch, the source is never changed), default (as flags= and prot= say)",
    ),
    value(
        "flags",
        Group::View,
        "FLAG[+FLAG...]",
        set::flags,
        "the flags of mmap(2) by name: shared (the default), private (with prot=rw as access=copy), \
         populate, noreserve, locked, nonblock ...; excludes access= other than default",
    ),
    value(
        "prot",
        Group::View,
        "PROT",
        set::prot,
        "the protection of the mappings: r, rw (the default), rx ...; excludes access= other than \
         default",
    ),
    value(
        "advice",
        Group::View,
        "ADVICE",
        set::advice,
        "the advice that every mapping starts with: normal (the default), random, sequential, \
         willneed, hugepage ...",
    ),
    value(
        "plane",
        Group::View,
        "PLANE",
        set::plane,
        "who moves the bytes: passthrough (the kernel, at the speed of the backing file), mapped \
         (the daemon, from its mapping), auto (the default: passthrough where the kernel allows it \
         and neither flags nor advice ask for a mapping)",
    ),
    value(
        "rules",
        Group::View,
        "FILE",
        set::rules,
        "a TOML file of [[rule]] tables with match, access, flags, prot, advice and plane: the first \
         rule whose glob matches a path decides",
    ),
    value(
        "scratch",
        Group::Scratch,
        "DIR",
        set::scratch,
        "the scratch of access=copy: made where DIR is empty or missing, used again where it is a \
         scratch (or holds upper/ of overlayfs), kept at unmount; without it a new one in memory \
         that goes at unmount",
    ),
    value(
        "scratch_max",
        Group::Scratch,
        "SIZE",
        set::scratch_max,
        "how much the scratch may hold: 512M, 20% (of the memory that is available, or of the \
         filesystem of DIR), none; by default 50% in memory, and with scratch= what it was before, \
         or none",
    ),
    value(
        "copy_up",
        Group::Scratch,
        "SIZE",
        set::copy_up,
        "files up to SIZE are copied whole when they are first opened to be written, of larger \
         ones only the pages that are written; 0 is never; 128K by default",
    ),
    Known {
        name: "share",
        group: Group::Scratch,
        doc: "read unchanged files straight from the source, in one cache with every other scratch \
              of it; whoever has a file open so when it is written goes on reading the source; off \
              by default",
        action: Action::Switch(|options, on| options.scratch.share = on),
    },
    flag(
        "rebase",
        Group::Scratch,
        |options| options.scratch.rebase = true,
        "take a scratch that was made over another source for one of this source from now on",
    ),
    value(
        "base_changed",
        Group::Scratch,
        "WHAT",
        set::base_changed,
        "partial copies whose base has changed: eio (base pages fail; default), refuse, mix",
    ),
    value(
        "open",
        Group::Daemon,
        "WHEN",
        set::open,
        "whether opening a file is asked for: ask (the default), none (the kernel opens without a \
         word and reads from its cache or asks for the bytes: for many small files in a mount \
         where nothing can be written)",
    ),
    value(
        "control",
        Group::Daemon,
        "WHERE",
        set::control,
        "the control directory: hidden (reachable, not listed; the default), visible, off",
    ),
    value(
        "control_name",
        Group::Daemon,
        "NAME",
        set::control_name,
        "the name of the control directory in the root of the mount; .mmapfs by default",
    ),
    value("threads", Group::Daemon, "N", set::threads, "event loops, 1 to 64; 4 by default"),
    value(
        "busy_poll",
        Group::Daemon,
        "US",
        set::busy_poll,
        "how long an event loop stays awake for the next request of a program that asks for one \
         thing after another, 0 (never) to 1000 microseconds; 50 by default",
    ),
    Known {
        name: "clone_fd",
        group: Group::Daemon,
        doc: "a /dev/fuse descriptor for every event loop; on by default",
        action: Action::Switch(|options, on| options.settings.clone_fd = on),
    },
    Known {
        name: "sandbox",
        group: Group::Program,
        doc: "as root, give away every capability and system call that serving does not need, and \
              the network; off to find out whether that is what something fails of; on by default",
        action: Action::Switch(|options, on| options.settings.sandbox = on),
    },
    flag(
        "no_clone_fd",
        Group::Daemon,
        |options| options.settings.clone_fd = false,
        "as clone_fd=off",
    ),
    value(
        "max_mappings",
        Group::Daemon,
        "N",
        set::max_mappings,
        "the greatest number of mappings kept; by default what vm.max_map_count leaves room for",
    ),
    value(
        "log",
        Group::Program,
        "LEVEL",
        set::log,
        "off, error, warn, info (the default), debug, trace; goes before MMAPFS_LOG",
    ),
    value(
        "log_file",
        Group::Program,
        "FILE",
        set::log_file,
        "the log is appended to this file; by default it goes to the system log (/dev/log), or \
         where there is none to a file that `status` names, and with --foreground to standard error",
    ),
    flag(
        "debug",
        Group::Program,
        |options| options.settings.log = Some(log::LevelFilter::Debug),
        "as log=debug",
    ),
    value(
        "fsname",
        Group::Fuse,
        "NAME",
        set::fsname,
        "the source that the table of mounts shows; \
         by default the source itself",
    ),
    value(
        "subtype",
        Group::Fuse,
        "NAME",
        set::subtype,
        "the type of the mount is fuse.NAME; mmapfs by default, which the client commands look for",
    ),
    flag(
        "allow_other",
        Group::Fuse,
        |options| options.kernel.allow_other = true,
        "let other users in; without root it needs user_allow_other in /etc/fuse.conf",
    ),
    flag(
        "allow_root",
        Group::Fuse,
        |options| options.kernel.allow_root = true,
        "let the superuser in; without root it needs user_allow_other in /etc/fuse.conf",
    ),
    flag(
        "default_permissions",
        Group::Fuse,
        |options| options.kernel.default_permissions = true,
        "let the kernel check permissions; always on",
    ),
    flag(
        "auto_unmount",
        Group::Fuse,
        |options| options.kernel.auto_unmount = true,
        "unmount when the daemon ends, however it ends; needs fusermount3, whose older versions \
         (3.14 is one) find a killed daemon of a user other than root only with allow_other",
    ),
    value(
        "watch",
        Group::Daemon,
        "HOW",
        set::watch,
        "watch the source for changes made directly and tell the kernel at once: auto (where it \
         is permitted; the default), on (it must be), directories (only those in use, as without \
         privilege), off",
    ),
    value(
        "entry_timeout",
        Group::Fuse,
        "SECONDS",
        set::entry_timeout,
        "how long the kernel trusts a name; by default 1, or 3600 where changes are watched",
    ),
    value(
        "attr_timeout",
        Group::Fuse,
        "SECONDS",
        set::attr_timeout,
        "how long the kernel trusts attributes; by default 1, or 3600 where changes are watched",
    ),
    value(
        "negative_timeout",
        Group::Fuse,
        "SECONDS",
        set::negative_timeout,
        "how long the kernel trusts that a name is not there; by default 0, or 3600 where changes \
         are watched",
    ),
    value(
        "max_read",
        Group::Fuse,
        "BYTES",
        set::max_read,
        "the greatest read request, at least 4096; by default what the kernel has",
    ),
    sets(
        "ro",
        MountFlags::RDONLY,
        "read-only, whatever the views allow; the control file takes no commands then",
    ),
    clears("rw", MountFlags::RDONLY, "not ro: the views decide"),
    clears("suid", MountFlags::NOSUID, "heed set-user-id bits and file capabilities"),
    sets("nosuid", MountFlags::NOSUID, "the default"),
    clears("dev", MountFlags::NODEV, "heed device files"),
    sets("nodev", MountFlags::NODEV, "the default"),
    clears("exec", MountFlags::NOEXEC, "allow execution"),
    sets("noexec", MountFlags::NOEXEC, "forbid execution"),
    sets("sync", MountFlags::SYNCHRONOUS, "every write is synchronous"),
    clears("async", MountFlags::SYNCHRONOUS, "not sync"),
    sets("dirsync", MountFlags::DIRSYNC, "every change of a directory is synchronous"),
    clears("atime", MountFlags::NOATIME, "not noatime"),
    mount("noatime", MountFlags::NOATIME, ATIMES, "keep no access times"),
    mount("relatime", MountFlags::RELATIME, ATIMES, "keep access times now and then"),
    clears("norelatime", MountFlags::RELATIME, "not relatime"),
    mount("strictatime", MountFlags::STRICTATIME, ATIMES, "keep every access time"),
    clears("nostrictatime", MountFlags::STRICTATIME, "not strictatime"),
    clears("diratime", MountFlags::NODIRATIME, "not nodiratime"),
    sets("nodiratime", MountFlags::NODIRATIME, "keep no access times of directories"),
    sets("lazytime", MountFlags::LAZYTIME, "write times late"),
    clears("nolazytime", MountFlags::LAZYTIME, "not lazytime"),
    clears("symfollow", MountFlags::NOSYMFOLLOW, "not nosymfollow"),
    sets("nosymfollow", MountFlags::NOSYMFOLLOW, "follow no symbolic links"),
    sets("silent", MountFlags::SILENT, "no kernel messages about the mount"),
    clears("loud", MountFlags::SILENT, "not silent"),
    label("context", set::context_all),
    label("fscontext", set::context_fs),
    label("defcontext", set::context_default),
    label("rootcontext", set::context_root),
    pass("defaults"),
    pass("auto"),
    pass("noauto"),
    pass("nofail"),
    pass("_netdev"),
    pass("user"),
    pass("nouser"),
    pass("users"),
    pass("nousers"),
    pass("owner"),
    pass("noowner"),
    pass("group"),
    pass("nogroup"),
    pass("comment"),
    pass("helper"),
    pass("uhelper"),
    pass("nomand"),
    pass("noiversion"),
    pass("x-*"),
    refuse("remount", "a mount is changed by `mount -i -o remount,...` or by `mmapfs reload`"),
    refuse("bind", NAMESPACE),
    refuse("rbind", NAMESPACE),
    refuse("move", NAMESPACE),
    refuse("mand", "Linux has no mandatory locks any more"),
    refuse("iversion", "it is not for FUSE"),
    refuse("loop", "the source is a directory or a file, not a disk image"),
    refuse("blkdev", "the source is a directory or a file, not a block device"),
    refuse("blksize", "the source is a directory or a file, not a block device"),
    refuse("fd", OWN),
    refuse("rootmode", OWN),
    refuse("user_id", OWN),
    refuse("group_id", OWN),
    refuse("nonempty", "every mount point may hold files: they are covered"),
    refuse("setuid", "start the daemon as that user, or by a systemd unit with User="),
    refuse("drop_privileges", "start the daemon as a user, or by a systemd unit with User="),
    refuse("max_threads", "use threads="),
    refuse("max_idle_threads", "event loops do not come and go: use threads="),
    refuse("kernel_cache", CACHE),
    refuse("auto_cache", CACHE),
    refuse("noauto_cache", CACHE),
    refuse("ac_attr_timeout", CACHE),
    refuse("direct_io", CACHE),
    refuse("noforget", "an inode lives as long as the kernel knows it"),
    refuse("remember", "an inode lives as long as the kernel knows it"),
    refuse("uid", OWNER),
    refuse("gid", OWNER),
    refuse("umask", OWNER),
    refuse("use_ino", INODES),
    refuse("readdir_ino", INODES),
    refuse("hard_remove", "a removed file stays usable through open descriptors"),
    refuse("nopath", "it is for libfuse's path-based filesystems"),
    refuse("nullpath_ok", "it is for libfuse's path-based filesystems"),
    refuse("modules", "libfuse's modules are not there"),
    refuse("subdir", "libfuse's modules are not there: give the subdirectory as the source"),
    refuse("iconv", "libfuse's modules are not there: names are bytes"),
    refuse("intr", "requests are short: none is broken off"),
    refuse("intr_signal", "requests are short: none is broken off"),
    refuse("large_read", SIZES),
    refuse("big_writes", SIZES),
    refuse("max_write", SIZES),
    refuse("max_readahead", SIZES),
    refuse("max_background", SIZES),
    refuse("congestion_threshold", SIZES),
    refuse("async_read", SIZES),
    refuse("sync_read", SIZES),
    refuse("atomic_o_trunc", SIZES),
    refuse("splice_read", "replies are slices of mappings: nothing is spliced"),
    refuse("splice_write", "replies are slices of mappings: nothing is spliced"),
    refuse("splice_move", "replies are slices of mappings: nothing is spliced"),
    refuse("writeback_cache", "it hides changes that are made to the source"),
    refuse("no_remote_lock", "locks are local to the mount"),
];
