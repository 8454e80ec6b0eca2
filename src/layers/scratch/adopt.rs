//! Adoption of an upper directory of overlayfs or fuse-overlayfs as a scratch.
//!
//! An upper directory of the kernel needs nothing but a state. The forms of fuse-overlayfs are
//! translated into those of overlayfs: empty files `.wh.NAME` become whiteouts, `.wh..wh..opq` and
//! `user.fuseoverlayfs.opaque` become the opaque xattr. The kernel sets an xattr on the root of its
//! upper directories; below such a root nothing is translated.

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

/// Largest size of a list of xattr names, in bytes (`XATTR_LIST_MAX`).
const NAMES: usize = 65_536;

/// Prefix of a whiteout file of fuse-overlayfs; the hidden name follows.
const WHITEOUT: &[u8] = b".wh.";
/// File of fuse-overlayfs that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Whiteout that fuse-overlayfs leaves beside [`OPAQUE`].
const BESIDE_OPAQUE: &[u8] = b".wh..opq";

/// Xattrs of which the kernel sets at least one on the root of an upper directory.
const OF_KERNEL: [&[u8]; 3] = [b"overlay.impure", b"overlay.uuid", b"overlay.origin"];

/// Overlay xattrs that were found in `upper/`.
#[derive(Default)]
struct Survey {
    /// Number of `trusted.overlay.*` xattrs.
    trusted: u64,
    /// Number of `user.overlay.*` xattrs.
    user: u64,
    /// The upper directory was written by overlayfs of the kernel.
    by_kernel: bool,
}

/// Makes a scratch of the opened directory, whose `upper/` exists. Returns its state.
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
        if !can_have_xattrs(stat) {
            return Ok(());
        }
        for attribute in attributes(&place(dir, name))? {
            if !XattrNamespace::is_overlay_xattr(&attribute) {
                continue; // An escaped xattr of an overlay over the mount.
            }
            self.trusted += u64::from(attribute.starts_with(b"trusted.overlay."));
            self.user += u64::from(attribute.starts_with(b"user.overlay."));
            let is_root = name == c".";
            self.by_kernel |= is_root && OF_KERNEL.iter().any(|mark| attribute.ends_with(mark));
        }
        Ok(())
    }
}

/// Translates one entry of fuse-overlayfs into the form of overlayfs.
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
            // An existing name was made after the whiteout.
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

/// Whether a file may have `user.*` xattrs.
fn can_have_xattrs(stat: &Stat) -> bool {
    matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
}

/// Path of bounded length to a name in an open directory.
fn place(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    sys::fd_path(dir).join(OsStr::from_bytes(name.to_bytes()))
}

/// Names of the xattrs of a file; none where the filesystem has no xattrs.
fn attributes(path: &Path) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = vec![0; NAMES];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        result => result?,
    };
    let names = names.get(..len).unwrap_or_default();
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}
