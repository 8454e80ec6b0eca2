//! The extended attributes by which the files of a scratch say what they are.

use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// The space of names of the marks. Clients never see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Marks {
    /// `trusted.`: only root can set or see them.
    Trusted,
    /// `user.`: on regular files and directories only.
    User,
}

impl Marks {
    /// With the dot at its end.
    pub fn prefix(self) -> &'static str {
        match self {
            Marks::Trusted => "trusted.",
            Marks::User => "user.",
        }
    }

    /// The full name of a mark: `overlay.opaque`, `mmapfs.pages`.
    pub fn name(self, mark: &str) -> String {
        format!("{}{mark}", self.prefix())
    }

    /// Whether an attribute (its full name) is a mark, of either space, and belongs to the scratch.
    pub fn is_mark(name: &[u8]) -> bool {
        let rest = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user."));
        rest.is_some_and(|rest| {
            [b"overlay.".as_slice(), b"mmapfs.", b"fuseoverlayfs."]
                .iter()
                .any(|space| rest.starts_with(space))
        })
    }

    /// Tries to set and remove a mark on a directory.
    pub(super) fn work_on(self, dir: &Path) -> Result<(), Errno> {
        let name = self.name("mmapfs.probe");
        rustix::fs::lsetxattr(dir, name.as_str(), b"y", XattrFlags::empty())?;
        rustix::fs::lremovexattr(dir, name.as_str())
    }

    /// The space that works on a directory, `trusted.` before `user.`.
    ///
    /// # Errors
    /// Neither does.
    pub(super) fn that_work(dir: &Path) -> Result<Marks, Failure> {
        if Marks::Trusted.work_on(dir).is_ok() {
            return Ok(Marks::Trusted);
        }
        Marks::User.work_on(dir).map(|()| Marks::User).map_err(|errno| {
            let reason = match errno {
                Errno::OPNOTSUPP | Errno::PERM => String::from(
                    "its filesystem keeps no extended attributes for this user (user.*; trusted.* \
                     for root), which a scratch is marked with: give scratch= a directory on one \
                     that does (ext4, xfs, btrfs, tmpfs of Linux 6.6)",
                ),
                _ => format!("marking it: {}", std::io::Error::from(errno)),
            };
            Failure::failed(dir.display(), reason)
        })
    }
}
