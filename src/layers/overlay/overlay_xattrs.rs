//! XattrStore: the extended attributes by which an upper directory says what it is made of.
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

use super::ino::{FIRST_NUMBER, TWIN};
use crate::error::cause::because;
use crate::layers::pages::Fingerprint;
use crate::layers::scratch::{PathId, XattrNamespace};
use crate::sys::cred::Caller;
use crate::tree::{Ino, Stat, XattrFlags, Xattrs};
use crate::volume::Volume;

/// Somebody who is shown every name.
pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// What the marks of a file say.
#[derive(Debug, Default)]
pub(super) struct OverlayXattrs {
    /// Nothing of the directories below is to be seen.
    pub(super) opaque: bool,
    /// Where it is in the layers below, from their root.
    pub(super) redirect: Option<PathBuf>,
    /// Its data, or some of it, is below.
    pub(super) metacopy: bool,
    /// The number of its page map.
    pub(super) pages: Option<u64>,
    /// Where its redirect is kept that is too long for a mark.
    pub(super) path: Option<PathId>,
    /// The inode number that it is shown with.
    pub(super) ino: Option<u64>,
    /// The file of the base that it is a copy of, as that was at first touch.
    pub(super) origin: Option<Fingerprint>,
    /// Another overlay has copied it from below.
    pub(super) copied: bool,
    /// The file that it covers by its name in the layers below, where that is not its origin;
    /// `Some(None)` where nothing is known to be covered.
    pub(super) covers: Option<Option<Fingerprint>>,
    /// See [`super::node::LayerStack::null_device`].
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
            XattrNames::Escaped => match XattrNamespace::escape(name.as_bytes()) {
                Cow::Borrowed(name) => Cow::Borrowed(OsStr::from_bytes(name)),
                Cow::Owned(name) => Cow::Owned(OsString::from_vec(name)),
            },
        }
    }

    /// The name of an attribute that the layer stores; `None` for a mark.
    pub(super) fn shown(self, stored: &[u8]) -> Option<Cow<'_, [u8]>> {
        match self {
            XattrNames::Plain => Some(Cow::Borrowed(stored)),
            XattrNames::Escaped => XattrNamespace::unescape(stored),
        }
    }
}

/// Reads and writes marks in a volume.
#[derive(Debug, Clone, Copy)]
pub(super) struct XattrStore {
    pub(super) namespace: XattrNamespace,
}

/// Why a number is refused that stands for no file, or would be taken for another one's.
pub(super) const NO_NUMBER: &str = "no file has this inode number";

/// The mark of what a file is a copy of.
const ORIGIN: &str = "mmapfs.origin";

const NAMES: usize = 1024;

/// Room for the value of a mark, in bytes: enough for most, and for any (XATTR_SIZE_MAX).
const VALUES: [usize; 2] = [1024, 65_536];

/// The most names that a file can have.
pub(super) const MOST_NAMES: i64 = i32::MAX as i64;

/// Why the marks of a file say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum XattrError {
    /// They cannot be read.
    Io(Errno),
    /// One of them cannot be right.
    Bad { mark: &'static str, reason: &'static str },
}

impl XattrError {
    pub(super) fn errno(self) -> Errno {
        match self {
            XattrError::Io(err) => err,
            XattrError::Bad { .. } => because(Errno::IO, "its overlay attributes are damaged"),
        }
    }
}

impl From<Errno> for XattrError {
    fn from(err: Errno) -> XattrError {
        XattrError::Io(err)
    }
}

impl std::fmt::Display for XattrError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            XattrError::Io(err) => write!(f, "reading its marks: {err}"),
            XattrError::Bad { mark, reason } => write!(f, "mark {mark}: {reason}"),
        }
    }
}

impl XattrStore {
    /// The marks of a file. Those of the kernel's overlayfs and of fuse-overlayfs are understood.
    pub(super) fn read(&self, volume: &Volume, ino: Ino) -> Result<OverlayXattrs, XattrError> {
        let mut marks = OverlayXattrs::default();
        let mut names = vec![0; NAMES];
        let len = loop {
            match volume.list_xattr(ino, &mut names, &ROOT) {
                Ok(len) => break len,
                Err(Errno::RANGE) if names.len() < 65_536 => names = vec![0; 65_536],
                Err(Errno::OPNOTSUPP | Errno::ACCESS) => break 0,
                Err(err) => return Err(err.into()),
            }
        };
        for name in names.get(..len).unwrap_or_default().split(|byte| *byte == 0) {
            let name = OsStr::from_bytes(name);
            if XattrNamespace::is_overlay_xattr(name.as_bytes()) {
                marks.take(name, value(volume, ino, name)?)?;
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
        let full = OsString::from(self.namespace.name(name));
        volume.set_xattr(ino, &full, value, XattrFlags::empty(), &ROOT)
    }

    /// Writes how many names a file has.
    pub(super) fn write_links(&self, volume: &Volume, ino: Ino, links: Links) -> Result<(), Errno> {
        self.write(volume, ino, "mmapfs.links", links.to_string().as_bytes())
    }

    /// Removes a mark, if it is there.
    pub(super) fn remove(&self, volume: &Volume, ino: Ino, name: &str) -> Result<(), Errno> {
        let full = OsString::from(self.namespace.name(name));
        match volume.remove_xattr(ino, &full) {
            Err(Errno::NODATA) => Ok(()),
            result => result,
        }
    }

    /// Says that nothing below a directory is to be seen, to every kind of overlay.
    pub(super) fn make_opaque(&self, volume: &Volume, ino: Ino) -> Result<(), Errno> {
        self.write(volume, ino, "overlay.opaque", b"y")?;
        if self.namespace == XattrNamespace::Trusted {
            // For a mount of the kernel's overlayfs with `userxattr`. Not every filesystem has it.
            let user = XattrStore { namespace: XattrNamespace::User };
            let _ = user.write(volume, ino, "overlay.opaque", b"y");
        }
        Ok(())
    }

    /// Writes what a file is a copy of, and the number that it is shown with where that is another
    /// one. On a symbolic link without privilege neither can be, and it has the number of the copy
    /// after the next mount then.
    pub(super) fn keep_origin(
        &self,
        volume: &Volume,
        ino: Ino,
        origin: &Fingerprint,
        shown: Ino,
    ) -> Result<(), Errno> {
        let (origin_mark, number) = (origin.pack(), shown.0.to_string());
        let number = Some(("mmapfs.ino", number.as_bytes())).filter(|_| shown.0 != origin.ino);
        let mut marks = [Some((ORIGIN, &origin_mark[..])), number].into_iter().flatten();
        match marks.try_for_each(|(mark, value)| self.write(volume, ino, mark, value)) {
            Err(Errno::PERM) if self.namespace == XattrNamespace::User => Ok(()),
            result => result,
        }
    }

    /// The origin of a file, where that is marked.
    pub(super) fn origin(
        &self,
        volume: &Volume,
        ino: Ino,
    ) -> Result<Option<Fingerprint>, XattrError> {
        let name = OsString::from(self.namespace.name(ORIGIN));
        match value(volume, ino, &name) {
            Ok(value) => fingerprint(ORIGIN, &value).map(Some),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }
}

fn value(volume: &Volume, ino: Ino, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let mut found = Err(Errno::RANGE);
    for room in VALUES {
        let mut value = vec![0; room];
        found = volume.get_xattr(ino, name, &mut value).map(|len| {
            value.truncate(len);
            value
        });
        if !matches!(found, Err(Errno::RANGE)) {
            break;
        }
    }
    found
}

impl OverlayXattrs {
    /// Whether nothing says that it is of a layer below.
    pub(super) fn is_new(&self) -> bool {
        !self.copied && !self.metacopy && self.number().is_none()
    }

    /// The inode number that it is shown with, where its marks say one.
    pub(super) fn number(&self) -> Option<u64> {
        self.ino.or(self.origin.map(|origin| origin.ino))
    }

    /// Names of a file in addition to its links, negative when some of those are none of its names.
    pub(super) fn more_links(&self, stat: &Stat) -> Option<i64> {
        self.links.map(|links| match links {
            Links::More(more) => more,
            Links::All(all) => all - i64::from(stat.nlink),
        })
    }

    fn take(&mut self, name: &OsStr, value: Vec<u8>) -> Result<(), XattrError> {
        let name = name.as_bytes();
        let name = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user."));
        match name.unwrap_or_default() {
            b"overlay.opaque" | b"fuseoverlayfs.opaque" => self.opaque |= value == b"y",
            b"overlay.redirect" => {
                self.redirect = Some(redirect(value)?);
            }
            b"overlay.metacopy" => self.metacopy = true,
            b"overlay.origin" | b"fuseoverlayfs.origin" => self.copied = true,
            b"mmapfs.pages" => self.pages = Some(number("mmapfs.pages", &value)?),
            b"mmapfs.path" => {
                let id = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                let reason = "it is not 16 lower case hexadecimal digits";
                self.path = Some(id.ok_or(XattrError::Bad { mark: "mmapfs.path", reason })?);
            }
            b"mmapfs.ino" => {
                let number = number("mmapfs.ino", &value)?;
                if !(FIRST_NUMBER..TWIN).contains(&number) {
                    return Err(XattrError::Bad { mark: "mmapfs.ino", reason: NO_NUMBER });
                }
                self.ino = Some(number);
            }
            b"mmapfs.origin" => self.origin = Some(fingerprint(ORIGIN, &value)?),
            b"mmapfs.covers" if value.is_empty() => self.covers = Some(None),
            b"mmapfs.covers" => self.covers = Some(Some(fingerprint("mmapfs.covers", &value)?)),
            b"mmapfs.null" => self.null_device = true,
            b"mmapfs.links" => {
                let mark = "mmapfs.links";
                let (links, count) = match value.strip_prefix(b"=") {
                    Some(all) => (Links::All as fn(i64) -> Links, number(mark, all)?),
                    None => (Links::More as fn(i64) -> Links, number(mark, &value)?),
                };
                if !(-MOST_NAMES..=MOST_NAMES).contains(&count) {
                    return Err(XattrError::Bad { mark, reason: "no file has so many names" });
                }
                self.links = Some(links(count));
            }
            _ => {}
        }
        Ok(())
    }
}

fn fingerprint(mark: &'static str, value: &[u8]) -> Result<Fingerprint, XattrError> {
    let reason = "it is no fingerprint";
    Fingerprint::unpack(value).ok_or(XattrError::Bad { mark, reason })
}

fn number<T: std::str::FromStr>(mark: &'static str, value: &[u8]) -> Result<T, XattrError> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or(XattrError::Bad { mark, reason: "it is not a number in its range" })
}

/// A redirect: an absolute path below the root of the base, or one name.
pub(super) fn redirect(value: Vec<u8>) -> Result<PathBuf, XattrError> {
    let bad = |reason| Err(XattrError::Bad { mark: "overlay.redirect", reason });
    let names = value.strip_prefix(b"/").unwrap_or(&value);
    let is_absolute = names.len() < value.len();
    for name in names.split(|byte| *byte == b'/') {
        match name {
            b"" => return bad("a name in it is empty"),
            b"." | b".." => return bad("it has `.` or `..` in it"),
            _ if name.contains(&0) => return bad("it has a NUL in it"),
            _ if name.len() > 255 => return bad("a name in it is longer than 255 bytes"),
            _ => {}
        }
    }
    if !is_absolute && names.contains(&b'/') {
        return bad("it is neither an absolute path nor one name");
    }
    Ok(PathBuf::from(OsString::from_vec(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_below_the_root_of_the_base_or_to_a_name_beside() {
        for good in ["/a", "/a/b", "name", "...", "/a/..b", "/\u{1}\n"] {
            assert_eq!(redirect(good.into()), Ok(PathBuf::from(good)));
        }
        let long = format!("/{}", "n".repeat(256));
        let bad =
            ["", "/", "/a/", "//a", "/a//b", "..", "/..", "/a/../b", "a/b", "/a/./b", "/a\0b"];
        for bad in bad.into_iter().chain([long.as_str()]) {
            assert_eq!(redirect(bad.into()).map_err(XattrError::errno), Err(Errno::IO), "{bad:?}");
        }
    }

    #[test]
    fn numbers_that_no_file_has_are_refused() {
        let take = |mark: &str, value: &str| {
            let mut marks = OverlayXattrs::default();
            let name = OsString::from(format!("trusted.mmapfs.{mark}"));
            marks.take(&name, value.into()).map(|()| marks)
        };
        for ino in ["0", "1", "-1", "", "4611686018427387904", "18446744073709551615", "2x"] {
            assert!(take("ino", ino).is_err(), "{ino}");
        }
        assert_eq!(take("ino", "2").unwrap().ino, Some(2));
        assert!(take("origin", "").is_err() && take("origin", "17").is_err());
        for links in
            ["=", "=x", "2147483648", "-2147483648", "=9223372036854775807", "99999999999999999999"]
        {
            assert!(take("links", links).is_err(), "{links}");
        }
        assert_eq!(take("links", "-3").unwrap().links, Some(Links::More(-3)));
        assert_eq!(take("links", "=7").unwrap().links, Some(Links::All(7)));
        assert!(take("pages", "-1").is_err() && take("path", "12").is_err());
        assert!(take("path", "00000000000000ab").unwrap().path.is_some());
    }
}
