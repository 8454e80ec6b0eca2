//! Short names for the file calls that many tests make.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The errno of a failure, from either library.
#[track_caller]
pub fn errno<T>(result: Result<T, impl Into<io::Error>>) -> Result<T, Errno> {
    result.map_err(|err| {
        let err = err.into();
        Errno::from_io_error(&err).unwrap_or_else(|| panic!("no errno in {err:?}"))
    })
}

/// The error of a call that has to fail.
#[track_caller]
pub fn error<T>(result: Result<T, impl Into<io::Error>>) -> Errno {
    match errno(result) {
        Ok(_) => panic!("the call succeeded where it has to fail"),
        Err(err) => err,
    }
}

/// Opens with flags as open(2) has them; a file that is made gets mode 0666 less the umask.
pub fn open(path: impl AsRef<Path>, flags: OFlags) -> Result<File, Errno> {
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::open(path.as_ref(), flags | OFlags::CLOEXEC, mode).map(File::from)
}

/// Opens an existing file for reading and writing, or makes it.
#[track_caller]
pub fn create(path: impl AsRef<Path>) -> File {
    open(path, OFlags::RDWR | OFlags::CREATE).unwrap()
}

/// Opens an existing directory, to be used as the base of other calls.
#[track_caller]
pub fn open_directory(path: impl AsRef<Path>) -> File {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY).unwrap()
}

/// Reads exactly `len` bytes at an offset.
#[track_caller]
pub fn read_at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// Fails when the two runs of bytes differ, with the place instead of the bytes.
#[track_caller]
pub fn assert_bytes(actual: &[u8], expected: &[u8]) {
    assert_eq!(actual.len(), expected.len(), "length");
    if let Some(at) = actual.iter().zip(expected).position(|(a, b)| a != b) {
        let last = actual.iter().zip(expected).rposition(|(a, b)| a != b).unwrap();
        panic!(
            "bytes {at} to {last} of {} differ: first {:#04x} instead of {:#04x}",
            actual.len(),
            actual[at],
            expected[at]
        );
    }
}

/// Fails when the file does not hold exactly these bytes.
#[track_caller]
pub fn assert_content(path: impl AsRef<Path>, expected: &[u8]) {
    assert_bytes(&std::fs::read(path).unwrap(), expected);
}

/// `len` bytes that tell their own offset: no two aligned words of 8 bytes are alike.
pub fn pattern(len: usize) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.take(len).collect()
}

/// The permission bits, with setuid, setgid and sticky.
#[track_caller]
pub fn mode(path: impl AsRef<Path>) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Sets the permission bits.
#[track_caller]
pub fn set_mode(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The inode number, without following a symlink.
#[track_caller]
pub fn inode(path: impl AsRef<Path>) -> u64 {
    std::fs::symlink_metadata(path).unwrap().ino()
}

/// The number of links.
#[track_caller]
pub fn links(path: impl AsRef<Path>) -> u64 {
    std::fs::symlink_metadata(path).unwrap().nlink()
}

/// The size, without following a symlink.
#[track_caller]
pub fn size(path: impl AsRef<Path>) -> u64 {
    std::fs::symlink_metadata(path).unwrap().size()
}

/// Every entry of a directory but `.` and `..`, as (name, inode number), sorted by name.
#[track_caller]
pub fn list(path: impl AsRef<Path>) -> Vec<(Vec<u8>, u64)> {
    let mut entries = Vec::new();
    let mut dir = rustix::fs::Dir::new(open_directory(path)).unwrap();
    while let Some(entry) = dir.read() {
        let entry = entry.unwrap();
        if !is_dot(entry.file_name()) {
            entries.push((entry.file_name().to_bytes().to_vec(), entry.ino()));
        }
    }
    entries.sort();
    entries
}

/// True for `.` and `..`.
pub fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// The names of a directory, sorted.
#[track_caller]
pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    let lossy = |name: Vec<u8>| String::from_utf8_lossy(&name).into_owned();
    list(path).into_iter().map(|(name, _)| lossy(name)).collect()
}

/// An extended attribute, not following a symlink.
pub fn xattr(path: impl AsRef<Path>, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 65536];
    let len = rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// The names of the extended attributes, sorted, not following a symlink.
pub fn xattr_names(path: impl AsRef<Path>) -> Result<Vec<String>, Errno> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path.as_ref(), &mut list[..])?;
    let names = list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}
