//! The extended attributes by which the files of a scratch say what they are.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::shown::Show;

/// The space of names of the marks. Clients never see them: their own names in such a space are
/// escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XattrNamespace {
    /// `trusted.`: only root can set or see them.
    Trusted,
    /// `user.`: on regular files and directories only.
    User,
}

/// What the names of marks begin with behind their prefix.
const SPACES: [&[u8]; 3] = [b"overlay.", b"mmapfs.", b"fuseoverlayfs."];

/// The prefix, the reserved space and the rest of a name; `None` where it is in no such space.
fn split(name: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let prefixes =
        [XattrNamespace::Trusted.prefix().as_bytes(), XattrNamespace::User.prefix().as_bytes()];
    let prefix = prefixes.into_iter().find(|prefix| name.starts_with(prefix))?;
    let behind = name.strip_prefix(prefix)?;
    SPACES.into_iter().find_map(|space| Some((prefix, space, behind.strip_prefix(space)?)))
}

impl XattrNamespace {
    /// With the dot at its end.
    pub fn prefix(self) -> &'static str {
        match self {
            XattrNamespace::Trusted => "trusted.",
            XattrNamespace::User => "user.",
        }
    }

    /// The full name of a mark: `overlay.opaque`, `mmapfs.pages`.
    pub fn name(self, mark: &str) -> String {
        format!("{}{mark}", self.prefix())
    }

    /// Whether an attribute (its full name) is a mark, of either prefix, and belongs to the scratch.
    /// An escaped name of a user's attribute is none.
    pub fn is_overlay_xattr(name: &[u8]) -> bool {
        split(name).is_some_and(|(_, space, rest)| !rest.starts_with(space))
    }

    /// The name under which a scratch stores a user's attribute: a name that could be a mark gets
    /// its reserved space twice, as overlayfs does (`trusted.overlay.overlay.opaque`). Each name is
    /// stored under a name of its own, however often it was escaped by others before.
    pub fn escape(name: &[u8]) -> Cow<'_, [u8]> {
        match split(name) {
            Some((prefix, space, rest)) => Cow::Owned([prefix, space, space, rest].concat()),
            None => Cow::Borrowed(name),
        }
    }

    /// The user's name of an attribute that a scratch stores; `None` for a mark.
    pub fn unescape(stored: &[u8]) -> Option<Cow<'_, [u8]>> {
        match split(stored) {
            Some((prefix, space, rest)) if rest.starts_with(space) => {
                Some(Cow::Owned([prefix, rest].concat()))
            }
            Some(_) => None,
            None => Some(Cow::Borrowed(stored)),
        }
    }

    /// Tries to set and remove a mark on a directory.
    pub(super) fn work_on(self, dir: impl AsFd) -> Result<(), Errno> {
        let name = self.name("mmapfs.probe");
        rustix::fs::fsetxattr(&dir, name.as_str(), b"y", XattrFlags::empty())?;
        rustix::fs::fremovexattr(dir, name.as_str())
    }

    /// The space that works on an open directory, `trusted.` before `user.`. `path` is for messages.
    ///
    /// # Errors
    /// Neither does.
    pub(super) fn that_work(dir: impl AsFd, path: &Path) -> Result<XattrNamespace, Failure> {
        if XattrNamespace::Trusted.work_on(&dir).is_ok() {
            return Ok(XattrNamespace::Trusted);
        }
        XattrNamespace::User.work_on(dir).map(|()| XattrNamespace::User).map_err(|errno| {
            let reason = match errno {
                Errno::OPNOTSUPP | Errno::PERM => String::from(
                    "its filesystem keeps no extended attributes for this user (user.*; trusted.* \
                     for root), which a scratch is marked with: give scratch= a directory on one \
                     that does (ext4, xfs, btrfs, tmpfs of Linux 6.6)",
                ),
                _ => format!("marking it: {}", std::io::Error::from(errno)),
            };
            Failure::failed(path.shown(), reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_a_reserved_space_is_stored_under_another_that_is_no_mark() {
        for prefix in ["trusted.", "user."] {
            for space in ["overlay", "mmapfs", "fuseoverlayfs"] {
                for rest in ["opaque", "", space, &format!("{space}."), "overlay.mmapfs.x"] {
                    let mut name = format!("{prefix}{space}.{rest}").into_bytes();
                    for _ in 0..4 {
                        let stored = XattrNamespace::escape(&name).into_owned();
                        assert_ne!(stored, name);
                        assert!(
                            !XattrNamespace::is_overlay_xattr(&stored),
                            "{}",
                            stored.escape_ascii()
                        );
                        assert_eq!(XattrNamespace::unescape(&stored).as_deref(), Some(&name[..]));
                        name = stored;
                    }
                }
                let mark = format!("{prefix}{space}.opaque");
                assert!(XattrNamespace::is_overlay_xattr(mark.as_bytes()));
                assert_eq!(XattrNamespace::unescape(mark.as_bytes()), None);
            }
        }
    }

    #[test]
    fn names_outside_of_the_reserved_spaces_are_stored_as_they_are() {
        for name in
            ["user.overlay", "user.overlays.x", "trusted.x", "security.overlay.x", "user.", ""]
        {
            let name = name.as_bytes();
            assert_eq!(&*XattrNamespace::escape(name), name);
            assert_eq!(XattrNamespace::unescape(name).as_deref(), Some(name));
        }
    }
}
