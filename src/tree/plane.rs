//! The planes: the kernel or the daemon moves the bytes of an open file.

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use super::Ino;

/// Backing file registered with the kernel; the registration ends with the last reference. Only the
/// session with the kernel knows its type.
pub type BackingRegistration = Arc<dyn Any + Send + Sync>;

/// Lends an open file to the kernel.
pub type RegisterBacking<'a> = dyn Fn(BorrowedFd<'_>) -> io::Result<BackingRegistration> + 'a;

/// The side that moves the bytes of an open file.
#[derive(Clone)]
pub enum Plane {
    /// The daemon, out of the mapping, and why.
    Mapped(WhyMapped),
    /// The kernel.
    Passthrough(BackingRegistration),
}

/// Why a file is not handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyMapped {
    /// The mount or a rule says `plane=mapped`.
    Chosen,
    /// Its flags or advice need a mapping.
    NeedsMapping,
    /// The setuid or setgid bit is set: the daemon decides at each write whether it stays.
    SetId,
    /// It is append-only, which the kernel does not check for mappings of a passthrough file.
    AppendOnly,
    /// No file of this mount is.
    Mount,
    /// Some of its pages are in another layer.
    Merged,
    /// All of its pages are in a lower layer, and the first write goes to the upper one.
    Below,
    /// Its content is made by the daemon: no backing file has it.
    Generated,
    /// The kernel refused this one.
    Refused(Errno),
}

impl fmt::Display for WhyMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyMapped::Chosen => f.write_str("plane=mapped"),
            WhyMapped::NeedsMapping => f.write_str("its flags or advice ask for a mapping"),
            WhyMapped::SetId => f.write_str("it has the setuid or setgid bit"),
            WhyMapped::AppendOnly => f.write_str("it can only be appended to"),
            WhyMapped::Mount => f.write_str("passthrough is not in use"),
            WhyMapped::Merged => f.write_str("some of its pages are in another layer"),
            WhyMapped::Below => f.write_str("it is in the base, and not written yet"),
            WhyMapped::Generated => f.write_str("its content is made by the daemon"),
            WhyMapped::Refused(Errno::LOOP) => {
                f.write_str("the kernel refused: its filesystem is stacked too deep")
            }
            WhyMapped::Refused(err) => write!(f, "the kernel refused: {err}"),
        }
    }
}

/// An inode that clients have open.
pub struct OpenInode {
    /// Its number in the mount.
    pub ino: Ino,
    /// Where the mount shows it, relative to its root.
    pub path: PathBuf,
    /// Why it is not handed to the kernel, if it is not.
    pub why_mapped: Option<WhyMapped>,
    /// Number of its open handles.
    pub handles: u64,
}
