//! Overlay xattrs of files as they lie in a scratch.

use std::path::Path;

use rustix::io::Errno;

/// The longest value of a mark but one, in bytes, and the longest that there is (XATTR_SIZE_MAX).
const VALUES: [usize; 2] = [1024, 65_536];

/// The overlay xattrs of files that were copied from a layer below.
const COPIES: [&[u8]; 5] = [
    b"mmapfs.origin",
    b"mmapfs.ino",
    b"overlay.origin",
    b"overlay.metacopy",
    b"fuseoverlayfs.origin",
];

/// Whether a file or directory says that it was copied, here or by another overlay.
pub(super) fn is_copy(path: &Path) -> bool {
    let mut names = vec![0; VALUES[0]];
    let len = loop {
        match rustix::fs::llistxattr(path, &mut names[..]) {
            Err(Errno::RANGE) if names.len() < VALUES[1] => names.resize(VALUES[1], 0),
            found => break found.unwrap_or(0),
        }
    };
    names.truncate(len);
    names.split(|byte| *byte == 0).any(|name| {
        let mark = name.strip_prefix(b"trusted.").or_else(|| name.strip_prefix(b"user."));
        mark.is_some_and(|mark| COPIES.contains(&mark))
    })
}

/// The value of an attribute, if it can be had.
pub(super) fn value(path: &Path, name: &str) -> Option<Vec<u8>> {
    for room in VALUES {
        let mut value = vec![0; room];
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Err(Errno::RANGE) => {}
            found => {
                value.truncate(found.ok()?);
                return Some(value);
            }
        }
    }
    None
}

/// The number that the value of an attribute is.
pub(super) fn number<T: std::str::FromStr>(value: Option<Vec<u8>>) -> Option<T> {
    String::from_utf8(value?).ok()?.parse().ok()
}
