//! Reports: what a command answers.
//!
//! The daemon makes them and prints them to the control file, as text or as one line of JSON; the
//! command line reads the JSON back and prints the same text. In JSON a report is one object whose
//! member `report` names its kind. A value that could not be measured is None: `null` in JSON and
//! `unknown` in text. Names are strings in JSON where they are UTF-8, and arrays of bytes where
//! they are not; in text they are quoted where that is needed. Sizes, offsets and ranges are in
//! bytes, ranges are half open, and counts of pages are in pages of the system. Nothing here
//! measures or decides anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::command::CommandError;
use crate::shown::{Name, to_json};

mod diff;
mod guard;
#[cfg(test)]
mod tests;
mod text;
mod verbs;

pub use diff::{ChangeReport, ChangeWord, DiffReport, FileType};
pub use guard::GuardReport;
pub use verbs::{AdviseReport, ErrorReport, FlushReport, LeftReport, LockReport};

/// The answer to one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// To `advise`.
    Advise(AdviseReport),
    /// To `flush`.
    Flush(FlushReport),
    /// To `status` without a path.
    Status(Box<StatusReport>),
    /// To `status PATH`.
    File(Box<FileReport>),
    /// To `diff`.
    Diff(DiffReport),
    /// To `maps`: in JSON, the member `mappings`.
    Maps(#[serde(with = "mappings")] Vec<MapReport>),
    /// To `lock` and `unlock`.
    Lock(LockReport),
    /// To `reload`.
    Reload(ReloadReport),
    /// To `help`: in JSON, the member `text`.
    Help(#[serde(with = "help_text")] String),
    /// To `version`.
    Version(VersionReport),
    /// To `log`.
    Log {
        /// The level that holds now.
        level: String,
    },
    /// To a command that failed.
    Error(ErrorReport),
}

/// The state of the mount.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The version of the daemon.
    pub version: String,
    /// The process id of the daemon.
    pub pid: u32,
    /// Age of the mount, in seconds.
    pub uptime_s: f64,
    /// The directory or file that is served.
    pub source: Name,
    /// Where it is served.
    pub mountpoint: Name,
    /// The access mode of files that no rule matches.
    pub access: String,
    /// The mapping flags of files that no rule matches.
    pub flags: String,
    /// The protection of files that no rule matches.
    pub prot: String,
    /// The first advice of files that no rule matches.
    pub advice: String,
    /// The plane that is wanted for files that no rule matches: `auto`, `mapped`, `passthrough`.
    pub plane: String,
    /// Why no file is on the plane `passthrough`, where that is so.
    #[serde(default)]
    pub no_passthrough: Option<String>,
    /// The rules file.
    pub rules: Option<Name>,
    /// Where the log of the daemon goes.
    #[serde(default)]
    pub log: Option<String>,
    /// Whether the whole mount refuses to be written.
    pub read_only: bool,
    /// Whether the daemon has the privilege that passthrough needs (CAP_SYS_ADMIN).
    pub privileged: bool,
    /// The number of threads that answer requests.
    pub threads: u64,
    /// Whether each of them has its own descriptor of /dev/fuse.
    pub clone_fd: bool,
    /// Data written over the source; only for a mount with a scratch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<ScratchReport>,
    /// Times for which the kernel may use what it was told.
    pub timeouts: Timeouts,
    /// The way in which changes made directly to the source are noticed.
    pub watch: Watch,
    /// The parameters agreed on with the kernel.
    pub kernel: Kernel,
    /// The inodes that the kernel knows.
    pub inodes: Inodes,
    /// Number of open files and directories.
    pub handles: Handles,
    /// The open files.
    pub open_files: Vec<OpenFileReport>,
    /// The mappings of the daemon.
    pub mappings: Mappings,
    /// The number of requests answered, by operation.
    pub requests: BTreeMap<String, u64>,
    /// Errors since the mount.
    pub errors: Errors,
    /// Resources that the daemon itself uses.
    pub memory: Memory,
}

/// A scratch and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchReport {
    /// Its name, as `mmapfs scratches` lists it.
    pub id: String,
    /// Where its layers are, topmost first: the last is the base.
    pub layers: Vec<Name>,
    /// Whether it was an upper directory of overlayfs, or one without a state, before.
    #[serde(default)]
    pub adopted: bool,
    /// Whether it goes when the mount goes.
    pub temporary: bool,
    /// Whether it is gone when the machine goes down.
    pub in_memory: bool,
    /// Pages of 4096 bytes that files which have others in the base have of their own.
    pub pages: u64,
    /// Number of such files.
    pub partial_files: u64,
    /// Files of the base that have a file of their own in the scratch, in part or whole.
    pub copied_files: u64,
    /// Files that were made in the scratch.
    #[serde(default)]
    pub new_files: u64,
    /// Directories that were made in the scratch.
    #[serde(default)]
    pub new_directories: u64,
    /// Names of the base that are gone.
    pub whiteouts: u64,
    /// Bytes that it takes.
    pub used_bytes: u64,
    /// Bytes that it may still take.
    pub left_bytes: u64,
    /// Bytes that it may take in all; None where only its filesystem limits it.
    pub limit_bytes: Option<u64>,
    /// The guard that keeps the base from changing under it.
    #[serde(default)]
    pub guard: GuardReport,
}

/// Times for which the kernel may use what it was told, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Names.
    pub entry_s: f64,
    /// Attributes.
    pub attr_s: f64,
    /// Names that do not exist.
    pub negative_s: f64,
}

/// The way in which changes made directly to the source are noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// By what, and on what; None where nothing is watched.
    pub by: Option<String>,
    /// Changes that were told, those made through the mount included.
    pub events: u64,
    /// Invalidations that the kernel was sent.
    pub invalidations: u64,
    /// Number of times that changes were lost, and everything was invalidated.
    pub overflows: u64,
}

/// The parameters agreed on with the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The version of the FUSE protocol, as `7.45`.
    pub protocol: String,
    /// The largest write request, in bytes.
    pub max_write: u64,
    /// Features that the kernel may offer, and whether they are used.
    pub features: Vec<Feature>,
}

/// Something that the kernel may offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Whether it is used.
    pub in_use: bool,
    /// Why not, when it is not; how, where there are several ways.
    pub reason: Option<String>,
}

/// The inodes that the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inodes {
    /// Their number.
    pub known: u64,
    /// The sum of their lookup counts.
    pub lookups: u64,
}

/// Number of open files and directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handles {
    /// Open files.
    pub files: u64,
    /// Open directories.
    pub directories: u64,
}

/// A file that clients have open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFileReport {
    /// Its path, relative to the root of the mount; one that was removed ends in ` (deleted)`.
    pub path: Name,
    /// Its inode number in the mount.
    pub ino: u64,
    /// Number of its open handles.
    pub handles: u64,
    /// The side that moves its bytes: `passthrough` (the kernel) or `mapped` (the daemon).
    pub plane: String,
    /// Why the daemon does, when it does.
    pub plane_reason: Option<String>,
}

/// The mappings of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// Number of mappings.
    pub count: u64,
    /// Number of mappings above which the least recently used goes.
    pub limit: u64,
    /// The sum of their lengths, in bytes.
    pub bytes: u64,
    /// Number of mappings that had to go so far.
    pub evicted: u64,
}

/// Errors since the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Pages of backing files that were gone or could not be read.
    pub faults: u64,
    /// Requests that were answered with an error.
    pub failed_requests: u64,
}

/// Resources that the daemon itself uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Its resident memory, in bytes.
    pub rss_bytes: u64,
    /// Its open descriptors.
    pub descriptors: u64,
    /// Number of descriptors that it may have (RLIMIT_NOFILE).
    pub descriptor_limit: u64,
}

/// The state of one file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Its path, relative to the root of the mount.
    pub path: Name,
    /// Its inode number.
    pub ino: u64,
    /// Its kind: `file`, `directory`, `symlink` and so on.
    pub kind: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Its access mode.
    pub access: String,
    /// Its mapping flags.
    pub flags: String,
    /// Its protection.
    pub prot: String,
    /// The advice that its mappings start with.
    pub advice: String,
    /// The advice given since, which every new mapping gets.
    pub sticky: Vec<StickyAdvice>,
    /// The path of its bytes to readers: `passthrough` (the kernel moves them), `mapped` (the
    /// daemon, out of its mapping), `read/write` (the daemon, without one) or `none`.
    pub plane: String,
    /// Why it is none of those before it, when it is not.
    pub plane_reason: Option<String>,
    /// Its open handles.
    pub handles: u64,
    /// Whether the daemon has a mapping of it now. Mappings of programs are not counted.
    pub mapped: bool,
    /// The length of the daemon's mapping, in bytes.
    pub mapped_bytes: u64,
    /// The number of pages that it has.
    pub pages: u64,
    /// Number of them in the scratch; only for a mount with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_pages: Option<u64>,
    /// The fate of its base, where that is not as it was at the first touch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Its pages in the page cache of the backing file.
    pub resident: Option<u64>,
    /// Its pages in the kernel's cache of the mount, which has a copy of its own unless the plane
    /// is `passthrough`. The daemon cannot ask for them: the command line adds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_resident: Option<u64>,
    /// Its dirty pages; of a scratch those that it has written.
    pub dirty: Option<u64>,
    /// Its pages that are being written back.
    pub writeback: Option<u64>,
    /// Its bytes that are locked in memory.
    pub locked_bytes: u64,
    /// Its pages that were gone or could not be read, since the mount.
    pub faults: u64,
}

/// An advice that holds for a range of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickyAdvice {
    /// The bytes it was given for.
    pub range: [u64; 2],
    /// The name of the advice.
    pub advice: String,
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReport {
    /// Its first address.
    pub start: u64,
    /// One past its last address.
    pub end: u64,
    /// Its permissions as in /proc/PID/maps: `rw-s`.
    pub prot: String,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// The device of the backing file, as `MAJOR:MINOR` in hexadecimal.
    pub dev: String,
    /// The inode number of the backing file.
    pub ino: u64,
    /// The file, relative to the root of the mount.
    pub path: Name,
    /// Its access mode.
    pub access: String,
    /// Its mapping flags.
    pub flags: String,
    /// The advice that holds for all of it; `mixed` where parts differ.
    pub advice: String,
    /// The size of the file, in bytes.
    pub size: u64,
    /// Its pages in the page cache of the backing file.
    pub resident: Option<u64>,
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// The number of rules that hold now.
    pub rules: u64,
    /// The rules file, or None when the mount has none.
    pub path: Option<Name>,
    /// They are those of before: the file was a pipe, which is read once.
    #[serde(default)]
    pub kept: bool,
}

/// Versions of the daemon and of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReport {
    /// The version of the daemon.
    pub version: String,
    /// The version of the FUSE protocol, as `7.45`.
    pub protocol: String,
}

impl Report {
    /// The report as one line of JSON, without a newline.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        to_json(self)
    }

    /// Reads a report back from its JSON.
    pub fn from_json(text: &str) -> Result<Report, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl From<&CommandError> for Report {
    fn from(error: &CommandError) -> Report {
        Report::Error(ErrorReport {
            error: error.to_string(),
            errno: error.errno(),
            needs: error.needs_destroy.map(|_| String::from("destroy")),
            path: error.path.clone().map(Name::from),
            reason: error.message.clone(),
        })
    }
}

/// `Report::Maps` as an object: an internally tagged enum cannot hold a bare array.
mod mappings {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::MapReport;

    #[derive(Serialize, Deserialize)]
    struct Wire<'a> {
        mappings: Cow<'a, [MapReport]>,
    }

    pub(super) fn serialize<S: Serializer>(maps: &[MapReport], out: S) -> Result<S::Ok, S::Error> {
        Wire { mappings: Cow::Borrowed(maps) }.serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<Vec<MapReport>, D::Error> {
        Ok(Wire::deserialize(input)?.mappings.into_owned())
    }
}

/// `Report::Help` as an object: an internally tagged enum cannot hold a bare string.
mod help_text {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Wire<'a> {
        text: Cow<'a, str>,
    }

    pub(super) fn serialize<S: Serializer>(text: &str, out: S) -> Result<S::Ok, S::Error> {
        Wire { text: Cow::Borrowed(text) }.serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
        Ok(Wire::deserialize(input)?.text.into_owned())
    }
}
