//! Marks: the extended attributes by which an upper directory says what it is made of.
//!
//! They are overlayfs's own (Documentation/filesystems/overlayfs.rst), below `trusted.` where that
//! is permitted and `user.` where not, and a few of ours. Clients never see them. Attributes of
//! clients with such names are stored under escaped ones, so that another overlay can lie on a
//! scratch.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::io::Errno;

use crate::layers::scratch::Marks as Space;
use crate::sys::cred::Caller;
use crate::volume::{Ino, Volume, XattrFlags};

/// Somebody who is shown every name.
pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// What the marks of a file say.
#[derive(Debug, Default)]
pub(super) struct MarkSet {
    /// Nothing of the directories below is to be seen.
    pub(super) opaque: bool,
    /// Where it is in the layers below, from their root.
    pub(super) redirect: Option<PathBuf>,
    /// Its data, or some of it, is below.
    pub(super) metacopy: bool,
    /// The number of its page map.
    pub(super) pages: Option<u64>,
    /// The inode number that it is shown with.
    pub(super) ino: Option<u64>,
    /// See [`super::node::Parts::null_device`].
    pub(super) null_device: bool,
    /// How many names a file with entries in the index has.
    pub(super) links: Option<Links>,
}

/// A number of names, said so that it is right whenever the daemon is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// So many more than the upper file has links: while names and links come and go together.
    More(i64),
    /// So many: while links come that are no new names.
    All(i64),
}

impl std::fmt::Display for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Links::More(count) => write!(f, "{count}"),
            Links::All(count) => write!(f, "={count}"),
        }
    }
}

/// How a layer stores the names of attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum XattrNames {
    /// As they are: the base, which is no overlay.
    Plain,
    /// Beside marks, and escaped where they could be one.
    Escaped,
}

impl XattrNames {
    /// The name under which the layer stores an attribute.
    pub(super) fn stored(self, name: &OsStr) -> Cow<'_, OsStr> {
        match self {
            XattrNames::Plain => Cow::Borrowed(name),
            XattrNames::Escaped => match Space::escape(name.as_bytes()) {
                Cow::Borrowed(name) => Cow::Borrowed(OsStr::from_bytes(name)),
                Cow::Owned(name) => Cow::Owned(OsString::from_vec(name)),
            },
        }
    }

    /// The name of an attribute that the layer stores; `None` for a mark.
    pub(super) fn shown(self, stored: &[u8]) -> Option<Cow<'_, [u8]>> {
        match self {
            XattrNames::Plain => Some(Cow::Borrowed(stored)),
            XattrNames::Escaped => Space::unescape(stored),
        }
    }
}

/// Reads and writes marks in a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) space: Space,
}

const NAMES: usize = 1024;

impl Marks {
    /// The marks of a file. Those of the kernel's overlayfs and of fuse-overlayfs are understood.
    pub(super) fn read(&self, volume: &Volume, ino: Ino) -> Result<MarkSet, Errno> {
        let mut marks = MarkSet::default();
        let mut names = vec![0; NAMES];
        let len = loop {
            match volume.list_xattr(ino, &mut names, &ROOT) {
                Ok(len) => break len,
                Err(Errno::RANGE) if names.len() < 65_536 => names = vec![0; 65_536],
                Err(Errno::OPNOTSUPP | Errno::ACCESS) => break 0,
                Err(err) => return Err(err),
            }
        };
        for name in names.get(..len).unwrap_or_default().split(|byte| *byte == 0) {
            let name = OsStr::from_bytes(name);
            if Space::is_mark(name.as_bytes()) {
                let mut value = vec![0; 4096];
                let len = volume.get_xattr(ino, name, &mut value)?;
                value.truncate(len);
                marks.take(name, value)?;
            }
        }
        Ok(marks)
    }

    /// Writes a mark.
    pub(super) fn write(
        &self,
        volume: &Volume,
        ino: Ino,
        name: &str,
        value: &[u8],
    ) -> Result<(), Errno> {
        let full = OsString::from(self.space.name(name));
        volume.set_xattr(ino, &full, value, XattrFlags::empty(), &ROOT)
    }

    /// Writes how many names a file has.
    pub(super) fn write_links(&self, volume: &Volume, ino: Ino, links: Links) -> Result<(), Errno> {
        self.write(volume, ino, "mmapfs.links", links.to_string().as_bytes())
    }

    /// Removes a mark, if it is there.
    pub(super) fn remove(&self, volume: &Volume, ino: Ino, name: &str) -> Result<(), Errno> {
        let full = OsString::from(self.space.name(name));
        match volume.remove_xattr(ino, &full) {
            Err(Errno::NODATA) => Ok(()),
            result => result,
        }
    }

    /// Says that nothing below a directory is to be seen, to every kind of overlay.
    pub(super) fn make_opaque(&self, volume: &Volume, ino: Ino) -> Result<(), Errno> {
        self.write(volume, ino, "overlay.opaque", b"y")?;
        if self.space == Space::Trusted {
            // For a mount of the kernel's overlayfs with `userxattr`. Not every filesystem has it.
            let user = Marks { space: Space::User };
            let _ = user.write(volume, ino, "overlay.opaque", b"y");
        }
        Ok(())
    }

    /// Writes the number that a file is shown with, where it can be: not on a symbolic link
    /// without privilege, which has the number of the copy after the next mount then.
    pub(super) fn keep_number(&self, volume: &Volume, ino: Ino, shown: Ino) -> Result<(), Errno> {
        match self.write(volume, ino, "mmapfs.ino", shown.0.to_string().as_bytes()) {
            Err(Errno::PERM) if self.space == Space::User => Ok(()),
            result => result,
        }
    }
}

impl MarkSet {
    fn take(&mut self, name: &OsStr, value: Vec<u8>) -> Result<(), Errno> {
        let name = name.as_bytes();
        let name = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user."));
        match name.unwrap_or_default() {
            b"overlay.opaque" | b"fuseoverlayfs.opaque" => self.opaque |= value == b"y",
            b"overlay.redirect" => {
                self.redirect = Some(PathBuf::from(OsString::from_vec(value)));
            }
            b"overlay.metacopy" => self.metacopy = true,
            b"mmapfs.pages" => self.pages = Some(number(&value)?),
            b"mmapfs.ino" => self.ino = Some(number(&value)?),
            b"mmapfs.null" => self.null_device = true,
            b"mmapfs.links" => {
                self.links = Some(match value.strip_prefix(b"=") {
                    Some(all) => Links::All(number(all)?),
                    None => Links::More(number(&value)?),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Result<T, Errno> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Errno::IO)
}
