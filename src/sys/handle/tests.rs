use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use super::*;

/// False, said aloud, where this process may not open by handle.
fn may_open() -> bool {
    const CAP_DAC_READ_SEARCH: u32 = 2;
    let may = crate::sys::cred::has_capability(CAP_DAC_READ_SEARCH);
    if !may {
        eprintln!("SKIPPED: opening by handle needs CAP_DAC_READ_SEARCH");
    }
    may
}

fn open_dir(path: &std::path::Path) -> File {
    File::open(path).unwrap()
}

fn inode_of(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

#[test]
fn a_handle_takes_24_bytes() {
    assert!(size_of::<FileHandle>() <= 24);
}

#[test]
fn handles_of_every_length_keep_their_bytes() {
    let mut seen = HashSet::new();
    for len in 0..=LONGEST {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8 + 1).collect();
        let handle = FileHandle::new(0x81, &bytes);
        assert_eq!((handle.kind(), handle.bytes()), (0x81, &bytes[..]));
        assert_eq!(handle, FileHandle::new(0x81, &bytes));
        assert_ne!(handle, FileHandle::new(0x82, &bytes));
        let raw = handle.raw().unwrap();
        assert_eq!((raw.len as usize, raw.kind), (len, 0x81));
        assert_eq!(raw.bytes[..len], bytes);
        assert!(seen.insert(handle), "{len}");
    }
    let longer = FileHandle::new(1, &[0; LONGEST + 1]);
    assert_eq!(longer.raw().err(), Some(Errno::OVERFLOW));
    // Trailing zeros count: the length is part of the handle.
    assert_ne!(FileHandle::new(1, &[5]), FileHandle::new(1, &[5, 0]));
}

#[test]
fn a_handle_survives_renaming_and_is_stale_after_removal() {
    if !may_open() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::write(&old, "content").unwrap();
    let mount = open_dir(dir.path());
    let handle = handle_of(&mount, c"old").unwrap();
    let inode = old.metadata().unwrap().ino();

    std::fs::rename(&old, &new).unwrap();
    assert_eq!(handle_of(&mount, c"old").err(), Some(Errno::NOENT));
    assert_eq!(handle_of(&mount, c"new").as_ref(), Ok(&handle), "it is the same file");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = open_handle(&mount, &handle, flags).unwrap();
    assert_eq!(inode_of(&opened), inode);
    assert_eq!(std::io::read_to_string(File::from(opened)).unwrap(), "content");

    std::fs::remove_file(&new).unwrap();
    std::fs::write(&new, "another file at the same name").unwrap();
    // A process that another test starts holds a copy of the descriptor until it executes.
    let end = Instant::now() + Duration::from_secs(60);
    let found = loop {
        let found = open_handle(&mount, &handle, flags);
        if found.is_err() || Instant::now() > end {
            break found;
        }
        std::thread::yield_now();
    };
    assert_eq!(found.err(), Some(Errno::STALE));
}

#[test]
fn an_empty_name_is_the_directory_itself() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("inner")).unwrap();
    let above = open_dir(dir.path());
    let inner = open_dir(&dir.path().join("inner"));
    assert_eq!(handle_of(&inner, c""), handle_of(&above, c"inner"));
    assert_ne!(handle_of(&inner, c""), handle_of(&above, c""));
}

#[test]
fn symbolic_links_have_handles_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
    let mount = open_dir(dir.path());
    let link = handle_of(&mount, c"link").unwrap();
    assert_ne!(link, handle_of(&mount, c"file").unwrap());
    if may_open() {
        let opened = open_handle(&mount, &link, OFlags::PATH | OFlags::CLOEXEC).unwrap();
        let stat = rustix::fs::fstat(&opened).unwrap();
        assert_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFLNK);
    }
}

#[test]
fn any_file_of_the_filesystem_serves_as_its_mount_but_not_by_o_path() {
    if !may_open() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mount = open_dir(dir.path());
    let handle = handle_of(&mount, c"file").unwrap();
    let file = File::open(dir.path().join("file")).unwrap();
    open_handle(&file, &handle, OFlags::PATH).unwrap();
    let path_only = open_handle(&file, &handle, OFlags::PATH).unwrap();
    assert_eq!(open_handle(&path_only, &handle, OFlags::PATH).err(), Some(Errno::BADF));
}

#[test]
fn a_filesystem_without_handles_says_so() {
    let proc = open_dir(std::path::Path::new("/proc/self"));
    assert_eq!(handle_of(&proc, c"fd").err(), Some(Errno::OPNOTSUPP));
}
