//! The commands and their arguments: the one definition behind the parser, `--help`, the manual
//! and the completions.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use super::{help, values};
use crate::advice::Advice;
use crate::control::command::{FlushMode, Verb as ControlVerb, help::advice_text};
use crate::range::RangeSpec;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "mmapfs",
    version,
    about = "Serve a directory as mapped views",
    long_about = help::ABOUT,
    after_help = help::SHORTHAND,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Mount a directory or a file
    #[command(
        long_about = help::MOUNT,
        after_help = "`mmapfs mount --help` lists the options of -o.",
        after_long_help = help::options()
    )]
    Mount(MountArgs),
    /// Unmount
    #[command(long_about = help::UMOUNT)]
    Umount(UmountArgs),
    /// Tell the kernel how pages will be used
    #[command(
        long_about = ControlVerb::Advise.doc(),
        after_long_help = advice_text()
    )]
    Advise(AdviseArgs),
    /// Write changed pages to the backing file
    #[command(long_about = ControlVerb::Flush.doc())]
    Flush(FlushArgs),
    /// Lock pages in memory
    #[command(long_about = ControlVerb::Lock.doc())]
    Lock(RangeArgs),
    /// Undo lock
    #[command(long_about = ControlVerb::Unlock.doc())]
    Unlock(RangeArgs),
    /// Report on a mount, or on files
    #[command(long_about = ControlVerb::Status.doc())]
    Status(StatusArgs),
    /// List what a scratch has changed
    #[command(long_about = ControlVerb::Diff.doc(), after_long_help = help::DIFF_EXIT)]
    Diff(DiffArgs),
    /// List the mappings of a mount, or of a file or directory in it
    #[command(long_about = ControlVerb::Maps.doc())]
    Maps(MapsArgs),
    /// Read the rules file of a mount again
    #[command(long_about = ControlVerb::Reload.doc())]
    Reload(ReloadArgs),
    /// Set the level of a mount's log
    #[command(long_about = ControlVerb::Log.doc())]
    Log(LogArgs),
    /// List the scratches of access=copy, or remove some
    #[command(
        long_about = help::SCRATCHES,
        after_long_help = help::SCRATCHES_EXAMPLES,
        args_conflicts_with_subcommands = true,
        disable_help_subcommand = true
    )]
    Scratches(ScratchesArgs),
    /// Say what this machine and this user can have
    #[command(long_about = help::DOCTOR)]
    Doctor(DoctorArgs),
    /// Print the version, or that of a mount's daemon
    Version(VersionArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// The directory
        dir: PathBuf,
    },
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The arguments of `mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Serve in the foreground: the log goes to standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// Mount options, joined by commas; can be given several times
    #[arg(
        short,
        value_name = "OPT[,OPT...]",
        value_parser = values::mount_options(),
        hide_possible_values = true
    )]
    pub options: Vec<OsString>,
    /// Check everything and print what would be mounted; mount nothing
    #[arg(long)]
    pub check: bool,
    /// Print the answer of --check as JSON
    #[arg(long, requires = "check")]
    pub json: bool,
    /// Pass over unknown mount options
    #[arg(short)]
    pub sloppy: bool,
    /// Write no mtab, as mount(8) has it: there is none
    #[arg(short)]
    pub no_mtab: bool,
    /// Say what was mounted
    #[arg(short)]
    pub verbose: bool,
    /// What to serve: a directory or a regular file
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// Where: a directory, or a regular file for a SRC that is one
    #[arg(value_name = "MNT", value_hint = ValueHint::AnyPath)]
    pub mountpoint: PathBuf,
}

/// The arguments of `mount.mmapfs`, as mount(8) gives them to its helpers.
#[derive(Debug, Parser)]
#[command(name = "mount.mmapfs", version, about = "Mount for mount(8) and fstab(5)")]
pub struct HelperArgs {
    /// What to serve: a directory or a regular file
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Where: a directory, or a regular file for a SRC that is one
    #[arg(value_name = "MNT")]
    pub mountpoint: PathBuf,
    /// Pass over unknown mount options
    #[arg(short)]
    pub sloppy: bool,
    /// Do everything but mount
    #[arg(short)]
    pub fake: bool,
    /// Write no mtab: there is none
    #[arg(short)]
    pub no_mtab: bool,
    /// Say what was mounted
    #[arg(short)]
    pub verbose: bool,
    /// The type, `mmapfs` or `fuse.mmapfs`
    #[arg(short, value_name = "TYPE")]
    pub type_: Option<OsString>,
    /// Mount options, joined by commas; can be given several times
    #[arg(short, value_name = "OPT[,OPT...]")]
    pub options: Vec<OsString>,
}

/// The arguments of `umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Free the mount point at once; the mount goes when the last file in it is closed
    #[arg(long, short = 'l', visible_short_alias = 'z')]
    pub lazy: bool,
    /// Unmount only if the daemon is gone
    #[arg(long)]
    pub stale: bool,
    /// The mount point
    #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
}

/// The arguments of `umount.mmapfs`, as umount(8) gives them to its helpers.
#[derive(Debug, Parser)]
#[command(name = "umount.mmapfs", version, about = "Unmount for umount(8)")]
pub struct UmountHelperArgs {
    /// Free the mount point at once; the mount goes when the last file in it is closed
    #[arg(short)]
    pub lazy: bool,
    /// Abort every request first
    #[arg(short)]
    pub force: bool,
    /// Write no mtab: there is none
    #[arg(short)]
    pub no_mtab: bool,
    /// Mount read-only where unmounting fails: not done
    #[arg(short)]
    pub read_only: bool,
    /// Say what was done: nothing is said
    #[arg(short)]
    pub verbose: bool,
    /// The type, `mmapfs` or `fuse.mmapfs`
    #[arg(short, value_name = "TYPE")]
    pub type_: Option<OsString>,
    /// The mount namespace, in which umount(8) has called the helper
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<OsString>,
    /// The mount point
    #[arg(value_name = "MNT")]
    pub mountpoint: PathBuf,
}

/// How a client command prints its answer.
#[derive(Debug, Args)]
pub struct Form {
    /// Print the answer as JSON, one object to a line
    #[arg(long)]
    pub json: bool,
}

/// The bytes of a file that a client command is about.
#[derive(Debug, Args)]
pub struct Span {
    /// OFF-END, OFF+LEN, -END or OFF-, in bytes or with K, M, G, T; the whole file without it
    #[arg(
        long,
        value_name = "RANGE",
        value_parser = values::range(),
        default_value = "-",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub range: RangeSpec,
}

/// The files that a client command is about.
#[derive(Debug, Args)]
pub struct Paths {
    /// Files below a mount
    #[arg(value_name = "PATH", required = true, value_hint = ValueHint::FilePath)]
    pub paths: Vec<PathBuf>,
}

/// The arguments of `advise`.
#[derive(Debug, Args)]
pub struct AdviseArgs {
    /// Allow an advice that destroys bytes of the backing file
    #[arg(long)]
    pub destroy: bool,
    /// The bytes meant.
    #[command(flatten)]
    pub span: Span,
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// The advice by name, as in madvise(2)
    #[arg(value_name = "ADVICE", value_parser = values::advice(), hide_possible_values = true)]
    pub advice: Advice,
    /// The files meant.
    #[command(flatten)]
    pub paths: Paths,
}

/// The arguments of `flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// How to write, as in msync(2)
    #[arg(long, value_name = "MODE", default_value = "sync", value_parser = values::flush_mode())]
    pub mode: FlushMode,
    /// The bytes meant.
    #[command(flatten)]
    pub span: Span,
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// The files meant.
    #[command(flatten)]
    pub paths: Paths,
}

/// The arguments of `lock` and `unlock`.
#[derive(Debug, Args)]
pub struct RangeArgs {
    /// The bytes meant.
    #[command(flatten)]
    pub span: Span,
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// The files meant.
    #[command(flatten)]
    pub paths: Paths,
}

/// The arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// A mount point, or files below one; without it the mount around the current directory, or
    /// the only mount there is
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
}

/// The arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// List the ranges of bytes that differ, END exclusive
    #[arg(long, conflicts_with_all = ["stat", "summary", "name_only", "docker", "null"])]
    pub ranges: bool,
    /// List everything below a deleted directory
    #[arg(long)]
    pub expand: bool,
    /// Print how many bytes differ, by file
    #[arg(long, conflicts_with_all = ["json", "summary", "name_only", "docker", "null"])]
    pub stat: bool,
    /// Print how many changes of each kind there are
    #[arg(long, conflicts_with_all = ["json", "name_only", "docker", "null"])]
    pub summary: bool,
    /// Print the paths alone
    #[arg(long, conflicts_with_all = ["json", "docker"])]
    pub name_only: bool,
    /// Print the letters of `docker diff`: A, C and D
    #[arg(long, conflicts_with = "json")]
    pub docker: bool,
    /// End each letter and path with a NUL instead of a newline, and quote nothing
    #[arg(short = 'z', long, conflicts_with = "json")]
    pub null: bool,
    /// A mount point, or files and directories below one, which need not exist any more; without
    /// it as for `status`
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
}

/// The arguments of `maps`.
#[derive(Debug, Args)]
pub struct MapsArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// A mount point, or a file or directory below one; without it as for `status`
    #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub path: Option<PathBuf>,
}

/// The arguments of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// The mount point
    #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
}

/// The arguments of `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// The most talkative level that is logged
    #[arg(value_name = "LEVEL", value_parser = values::level())]
    pub level: log::LevelFilter,
    /// The mount point
    #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
    pub mountpoint: PathBuf,
}

/// The arguments of `scratches`.
#[derive(Debug, Args)]
pub struct ScratchesArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// What to do; without it they are listed.
    #[command(subcommand)]
    pub verb: Option<ScratchesVerb>,
}

/// What can be done with scratches.
#[derive(Debug, Subcommand)]
pub enum ScratchesVerb {
    /// Remove scratches that are not mounted, with everything in them
    #[command(long_about = help::SCRATCHES_REMOVE)]
    Remove(RemoveArgs),
}

/// The arguments of `scratches remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Remove every scratch in memory that is not mounted, and forget those on disk that are gone
    #[arg(long)]
    pub left_behind: bool,
    /// The ids of scratches, or four or more of the first digits of one, or their directories
    #[arg(
        value_name = "ID|DIR",
        required_unless_present = "left_behind",
        value_hint = ValueHint::DirPath
    )]
    pub scratches: Vec<OsString>,
}

/// The arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// Say what everything is for and what happens without it, not only of what is missing
    #[arg(short, long, conflicts_with = "json")]
    pub verbose: bool,
    /// A directory to be served; without it the current one
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// The arguments of `version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// The form of the answer.
    #[command(flatten)]
    pub form: Form,
    /// A mount point
    #[arg(value_name = "MNT", value_hint = ValueHint::DirPath)]
    pub mountpoint: Option<PathBuf>,
}
