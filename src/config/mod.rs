//! The configuration of a mount, decided before anything is mounted.
//!
//! [`options`] turns the words after `-o` into typed options without touching the disk;
//! [`MountConfig::prepare`] holds them against the disk and the table of mounts. A [`MountConfig`]
//! is plain data and true at the moment of its making; nothing here mounts or opens for keeps.

use std::ffi::OsString;
use std::path::PathBuf;

use rustix::mount::MountFlags;
use serde::Serialize;

use crate::flags::{MapMode, ViewOptions};

pub mod mountinfo;
pub mod options;
mod prepare;
pub mod rules;
pub mod run;
mod scratch;
mod settings;

pub use mountinfo::MountTable;
pub use options::MountOptions;
pub use prepare::may_mount;
pub use rules::RuleSet;
pub use run::{Daemons, log_places};
pub use scratch::{BaseChanged, Limit, ScratchConfig};
pub use settings::Settings;

/// The kind of file at the end of a path that is served or mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

impl SourceKind {
    /// Its name in messages: `directory`, `file`.
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::Directory => "directory",
            SourceKind::File => "file",
        }
    }
}

/// Whether the control directory is there, and whether the root's listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlVisibility {
    /// Reachable by name, not listed.
    #[default]
    Hidden,
    /// Reachable by name and listed.
    Visible,
    /// Not there.
    Off,
}

impl ControlVisibility {
    /// Every choice.
    pub const ALL: [ControlVisibility; 3] =
        [ControlVisibility::Hidden, ControlVisibility::Visible, ControlVisibility::Off];

    /// The word of `-o control=`.
    pub fn name(self) -> &'static str {
        match self {
            ControlVisibility::Hidden => "hidden",
            ControlVisibility::Visible => "visible",
            ControlVisibility::Off => "off",
        }
    }
}

/// Whether the kernel asks when a client opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenRequests {
    /// At every open and close.
    #[default]
    Ask,
    /// Never: a file is opened when it is read.
    None,
}

impl OpenRequests {
    /// Every choice.
    pub const ALL: [OpenRequests; 2] = [OpenRequests::Ask, OpenRequests::None];

    /// The word of `-o open=`.
    pub fn name(self) -> &'static str {
        match self {
            OpenRequests::Ask => "ask",
            OpenRequests::None => "none",
        }
    }
}

/// Whether changes made directly to the source are watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchMode {
    /// Where it is permitted.
    #[default]
    Auto,
    /// It must be possible.
    On,
    /// Only directories in use, as without privilege; it must be possible.
    Directories,
    /// No.
    Off,
}

impl WatchMode {
    /// Every choice.
    pub const ALL: [WatchMode; 4] =
        [WatchMode::Auto, WatchMode::On, WatchMode::Directories, WatchMode::Off];

    /// The word of `-o watch=`.
    pub fn name(self) -> &'static str {
        match self {
            WatchMode::Auto => "auto",
            WatchMode::On => "on",
            WatchMode::Directories => "directories",
            WatchMode::Off => "off",
        }
    }
}

/// A mount that was checked and may be made.
#[derive(Debug, Clone)]
pub struct MountConfig {
    /// The path that is served: absolute, without symbolic links.
    pub source: PathBuf,
    /// The kind of `source`.
    pub source_kind: SourceKind,
    /// Where it is served: absolute, without symbolic links.
    pub mountpoint: PathBuf,
    /// The kind of `mountpoint`. A file is the root of a mount of a single file; such a mount has
    /// no control directory. A file served on a directory is that directory's one entry.
    pub mountpoint_kind: SourceKind,
    /// The view options of the whole mount as given.
    pub view: ViewOptions,
    /// The mode that `view` resolves to.
    pub mode: MapMode,
    /// Where `rules` came from, absolute.
    pub rules_file: Option<PathBuf>,
    /// The rules were read once and for all: they came from a pipe or another descriptor of the
    /// caller, which nobody can read again.
    pub rules_stay: bool,
    /// View options by path; empty without a rules file.
    pub rules: RuleSet,
    /// The scratch of what is written by copy; `None` where nothing is.
    pub scratch: Option<ScratchConfig>,
    /// The control directory's visibility; `Off` where the root is a file.
    pub control: ControlVisibility,
    /// `-o log_file=`, absolute.
    pub log_file: Option<PathBuf>,
    /// The settings that hold as they were typed.
    pub settings: Settings,
    /// The options that the kernel is given.
    pub kernel: KernelOptions,
}

/// The options for mount(2) or fusermount3(1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelOptions {
    /// `ro` was given, which `flags` has too, or nothing in the mount can be written.
    pub read_only: bool,
    /// The flags of mount(2).
    pub flags: MountFlags,
    /// The source as the table of mounts shows it.
    pub fsname: OsString,
    /// The type of the mount is `fuse.` and this.
    pub subtype: String,
    /// Other users may enter.
    pub allow_other: bool,
    /// The superuser may enter. The kernel lets in everybody then, and the daemon turns away all
    /// but the superuser and its own user.
    pub allow_root: bool,
    /// The mount goes when the daemon goes, however that ends.
    pub auto_unmount: bool,
    /// The kernel checks permissions. Always on.
    pub default_permissions: bool,
    /// The greatest read request, in bytes.
    pub max_read: Option<u32>,
    /// `context=`, `fscontext=`, `defcontext=`, `rootcontext=`, as given.
    pub contexts: Vec<(&'static str, OsString)>,
}

impl KernelOptions {
    /// The type of the mount in the table of mounts.
    pub fn fstype(&self) -> String {
        format!("fuse.{}", self.subtype)
    }

    /// The words of mount(8) for `flags`, in its order.
    pub fn flag_words(&self) -> Vec<&'static str> {
        let named = [
            (MountFlags::NOSUID, "nosuid"),
            (MountFlags::NODEV, "nodev"),
            (MountFlags::NOEXEC, "noexec"),
            (MountFlags::SYNCHRONOUS, "sync"),
            (MountFlags::DIRSYNC, "dirsync"),
            (MountFlags::NOATIME, "noatime"),
            (MountFlags::NODIRATIME, "nodiratime"),
            (MountFlags::RELATIME, "relatime"),
            (MountFlags::STRICTATIME, "strictatime"),
            (MountFlags::LAZYTIME, "lazytime"),
            (MountFlags::NOSYMFOLLOW, "nosymfollow"),
            (MountFlags::SILENT, "silent"),
        ];
        let read_only = if self.flags.contains(MountFlags::RDONLY) { "ro" } else { "rw" };
        let set = named.into_iter().filter(|(flag, _)| self.flags.contains(*flag));
        std::iter::once(read_only).chain(set.map(|(_, word)| word)).collect()
    }
}
