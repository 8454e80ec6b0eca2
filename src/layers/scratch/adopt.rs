//! Taking the upper directory of overlayfs or fuse-overlayfs for a scratch.
//!
//! The kernel's own needs nothing but a state. What fuse-overlayfs writes in words of its own is
//! put into those of the kernel: empty files `.wh.NAME` become whiteouts, `.wh..wh..opq` and
//! `user.fuseoverlayfs.opaque` become the opaque mark. The kernel marks the root of its upper
//! directories; names below such a root mean nothing but themselves.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Stat, XattrFlags};
use rustix::io::Errno;

use super::layout::UPPER;
use super::opened::Opened;
use super::state::{BaseId, Kind, State};
use super::xattr_namespace::XattrNamespace;
use super::{create, limit_on_disk, told, usage};
use crate::config::ScratchConfig;
use crate::error::Failure;
use crate::shown::Show;
use crate::sys;

/// Room for the names of a file's attributes, in bytes (`XATTR_LIST_MAX`).
const NAMES: usize = 65_536;

/// Before the name that it hides.
const WHITEOUT: &[u8] = b".wh.";
/// The file that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The whiteout that fuse-overlayfs leaves beside it.
const BESIDE_OPAQUE: &[u8] = b".wh..opq";

/// What the kernel marks the root of an upper directory with, one or the other.
const OF_KERNEL: [&[u8]; 3] = [b"overlay.impure", b"overlay.uuid", b"overlay.origin"];

/// What was found below `upper/`.
#[derive(Default)]
struct Survey {
    trusted: u64,
    user: u64,
    /// The kernel has written here.
    by_kernel: bool,
}

/// Makes a scratch of what lies in the directory.
pub(super) fn adopt(
    opened: &Opened,
    config: &ScratchConfig,
    base: &Path,
) -> Result<State, Failure> {
    opened.complete()?;
    opened.empty_work()?;
    opened.probe()?;
    let (upper, path) = (opened.directory(UPPER)?, opened.layout().upper());
    let failed = |errno: Errno| told(&path, "taking it for a scratch", errno.into());
    let mut survey = Survey::default();
    usage::visit(&upper, |dir, name, stat| survey.see(dir, name, stat)).map_err(failed)?;
    let works = XattrNamespace::that_work(&upper, &path)?;
    let marks = match (survey.trusted, survey.user) {
        (0, 0) => works,
        (0, _) => XattrNamespace::User,
        _ if works == XattrNamespace::Trusted => XattrNamespace::Trusted,
        _ => {
            let reason = "it is marked with trusted.overlay.*, which only root can read";
            return Err(Failure::failed(opened.path().shown(), reason));
        }
    };
    if !survey.by_kernel {
        let translate =
            |dir: BorrowedFd<'_>, name: &CStr, stat: &Stat| translate(marks, dir, name, stat);
        usage::visit(&upper, translate).map_err(failed)?;
    }
    let mut state = State::new(create::new_id()?, BaseId::of(base)?, marks, Kind::Disk);
    state.max = config.max.map_or(Ok(None), |max| limit_on_disk(max, opened))?;
    state.copy_up = config.copy_up.unwrap_or(state.copy_up);
    state.adopted = true;
    state.write(opened)?;
    Ok(state)
}

impl Survey {
    fn see(&mut self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
        if !can_be_marked(stat) {
            return Ok(());
        }
        for attribute in attributes(&place(dir, name))? {
            if !XattrNamespace::is_overlay_xattr(&attribute) {
                continue; // It belongs to an overlay that lies on what is shown here.
            }
            self.trusted += u64::from(attribute.starts_with(b"trusted.overlay."));
            self.user += u64::from(attribute.starts_with(b"user.overlay."));
            let is_root = name == c".";
            self.by_kernel |= is_root && OF_KERNEL.iter().any(|mark| attribute.ends_with(mark));
        }
        Ok(())
    }
}

/// Puts what fuse-overlayfs says into the words of overlayfs.
fn translate(
    marks: XattrNamespace,
    dir: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
) -> Result<(), Errno> {
    let opaque = marks.name("overlay.opaque");
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_file = kind == FileType::RegularFile && stat.st_size == 0;
    if kind == FileType::CharacterDevice && stat.st_rdev == 0 && name.to_bytes() == BESIDE_OPAQUE {
        return rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
    if is_file && name.to_bytes() == OPAQUE {
        let here = place(dir, c".");
        rustix::fs::lsetxattr(&here, opaque.as_str(), b"y", XattrFlags::empty())?;
        return rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
    if is_file && let Some(hidden) = name.to_bytes().strip_prefix(WHITEOUT) {
        let hidden = CString::new(hidden).map_err(|_| Errno::INVAL)?;
        let made = rustix::fs::mknodat(dir, &hidden, FileType::CharacterDevice, Mode::empty(), 0);
        return match made {
            // What is there was made after the other was removed.
            Ok(()) | Err(Errno::EXIST) => rustix::fs::unlinkat(dir, name, AtFlags::empty()),
            Err(errno) => Err(errno),
        };
    }
    let path = place(dir, name);
    if kind == FileType::Directory
        && attributes(&path)?.iter().any(|name| name == b"user.fuseoverlayfs.opaque")
    {
        rustix::fs::lsetxattr(&path, opaque.as_str(), b"y", XattrFlags::empty())?;
        rustix::fs::lremovexattr(&path, "user.fuseoverlayfs.opaque")?;
    }
    Ok(())
}

fn can_be_marked(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
}

/// A path of bounded length to a name in an open directory.
fn place(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    sys::fd_path(dir).join(OsStr::from_bytes(name.to_bytes()))
}

/// The names of a file's attributes.
fn attributes(path: &Path) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = vec![0; NAMES];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        result => result?,
    };
    let names = names.get(..len).unwrap_or_default();
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}
