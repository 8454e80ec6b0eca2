//! Namespace of the overlay xattrs of a scratch.

use std::borrow::Cow;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::shown::Show;

/// Namespace of the overlay xattrs. Clients never see these xattrs; names that clients use in a
/// reserved space are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XattrNamespace {
    /// `trusted.`: root alone can set and see them.
    Trusted,
    /// `user.`: regular files and directories alone can have them.
    User,
}

/// Reserved spaces: an overlay xattr has one of them after its prefix.
const SPACES: [&[u8]; 3] = [b"overlay.", b"mmapfs.", b"fuseoverlayfs."];

/// Prefix, reserved space and rest of a name; `None` if it is in no reserved space.
fn split(name: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let prefixes =
        [XattrNamespace::Trusted.prefix().as_bytes(), XattrNamespace::User.prefix().as_bytes()];
    let prefix = prefixes.into_iter().find(|prefix| name.starts_with(prefix))?;
    let rest = name.strip_prefix(prefix)?;
    SPACES.into_iter().find_map(|space| Some((prefix, space, rest.strip_prefix(space)?)))
}

impl XattrNamespace {
    /// Prefix of the names, with the dot at its end.
    pub fn prefix(self) -> &'static str {
        match self {
            XattrNamespace::Trusted => "trusted.",
            XattrNamespace::User => "user.",
        }
    }

    /// Full name of the overlay xattr `suffix` (`overlay.opaque`, `mmapfs.pages`).
    pub fn name(self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix())
    }

    /// Whether a full name is the one of an overlay xattr, with either prefix. An escaped name of a
    /// client's xattr is not.
    pub fn is_overlay_xattr(name: &[u8]) -> bool {
        split(name).is_some_and(|(_, space, rest)| !rest.starts_with(space))
    }

    /// Name under which a scratch stores a client's xattr. A name in a reserved space gets the
    /// space twice, as in overlayfs (`trusted.overlay.overlay.opaque`). Distinct names are stored
    /// under distinct names, also if they are escaped already.
    pub fn escape(name: &[u8]) -> Cow<'_, [u8]> {
        match split(name) {
            Some((prefix, space, rest)) => Cow::Owned([prefix, space, space, rest].concat()),
            None => Cow::Borrowed(name),
        }
    }

    /// Client's name of a stored xattr; `None` for an overlay xattr.
    pub fn unescape(stored: &[u8]) -> Option<Cow<'_, [u8]>> {
        match split(stored) {
            Some((prefix, space, rest)) if rest.starts_with(space) => {
                Some(Cow::Owned([prefix, rest].concat()))
            }
            Some(_) => None,
            None => Some(Cow::Borrowed(stored)),
        }
    }

    /// Sets and removes an overlay xattr on a directory, as a test.
    pub(super) fn work_on(self, dir: impl AsFd) -> Result<(), Errno> {
        let name = self.name("mmapfs.probe");
        rustix::fs::fsetxattr(&dir, name.as_str(), b"y", XattrFlags::empty())?;
        rustix::fs::fremovexattr(dir, name.as_str())
    }

    /// Namespace that works on an open directory, `trusted.` before `user.`. `path` is for
    /// messages.
    ///
    /// # Errors
    /// Neither namespace works.
    pub(super) fn that_work(dir: impl AsFd, path: &Path) -> Result<XattrNamespace, Failure> {
        if XattrNamespace::Trusted.work_on(&dir).is_ok() {
            return Ok(XattrNamespace::Trusted);
        }
        XattrNamespace::User.work_on(dir).map(|()| XattrNamespace::User).map_err(|errno| {
            let reason = match errno {
                Errno::OPNOTSUPP | Errno::PERM => String::from(
                    "its filesystem keeps no extended attributes for this user (user.*; trusted.* \
                     for root), which a scratch needs: give scratch= a directory on one that does \
                     (ext4, xfs, btrfs, tmpfs of Linux 6.6)",
                ),
                _ => format!("setting an overlay xattr: {}", std::io::Error::from(errno)),
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
