use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};

use super::*;

/// `chattr +d`, a flag without consequences.
const FS_NODUMP_FL: u32 = 0x40;

#[test]
fn appending_ignores_the_position_of_the_descriptor() {
    let mut file = tempfile::tempfile().unwrap();
    assert_eq!(append(&file, b"one"), Ok(3));
    file.seek(SeekFrom::Start(1)).unwrap();
    assert_eq!(append(&file, b"two"), Ok(3));
    assert_eq!(append(&file, b""), Ok(0));
    assert_eq!(file.stream_position().unwrap(), 1, "and leaves it");
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "onetwo");
}

#[test]
fn appends_of_several_threads_do_not_overlap() {
    const RECORDS: usize = 200;
    let mut file = tempfile::tempfile().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let file = &file;
            scope.spawn(move || {
                for _ in 0..RECORDS {
                    assert_eq!(append(file, &[thread; 100]), Ok(100));
                }
            });
        }
    });
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 4 * RECORDS * 100);
    assert!(bytes.chunks(100).all(|record| record.iter().all(|byte| *byte == record[0])));
}

#[test]
fn appending_to_what_is_open_for_reading_fails() {
    let named = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(append(&File::open(named.path()).unwrap(), b"x"), Err(Errno::BADF));
}

#[test]
fn attribute_flags_are_set_and_read_back() {
    let file = tempfile::tempfile().unwrap();
    let (value, before) = match ioctl_attr(&file, FS_IOC_GETFLAGS, &[], 4) {
        Ok(answer) => answer,
        Err(err @ (Errno::NOTTY | Errno::OPNOTSUPP)) => {
            eprintln!("SKIPPED: the filesystem of temporary files has no attribute flags: {err}");
            return;
        }
        Err(err) => panic!("{err}"),
    };
    assert_eq!((value, before.len()), (0, 4));
    let flags = u32::from_ne_bytes(before.try_into().unwrap()) | FS_NODUMP_FL;
    assert_eq!(ioctl_attr(&file, FS_IOC_SETFLAGS, &flags.to_ne_bytes(), 0), Ok((0, Vec::new())));
    // Missing bytes are not taken for zeros, which would clear the flags.
    for short in [&[][..], &[0; 3]] {
        assert_eq!(ioctl_attr(&file, FS_IOC_SETFLAGS, short, 0), Err(Errno::INVAL));
    }
    assert_eq!(ioctl_attr(&file, FS_IOC_FSSETXATTR, &[0; 27], 0), Err(Errno::INVAL));
    let (_, after) = ioctl_attr(&file, FS_IOC_GETFLAGS, &[], 8).unwrap();
    assert_eq!(after.len(), 8);
    assert_eq!(after[..4], flags.to_ne_bytes());
}

#[test]
fn extended_attributes_go_there_and_back() {
    let file = tempfile::tempfile().unwrap();
    match ioctl_attr(&file, FS_IOC_FSGETXATTR, &[], FSXATTR_SIZE) {
        Ok((0, before)) => {
            assert_eq!(before.len(), FSXATTR_SIZE);
            ioctl_attr(&file, FS_IOC_FSSETXATTR, &before, 0).unwrap();
            let (_, after) = ioctl_attr(&file, FS_IOC_FSGETXATTR, &[], usize::MAX).unwrap();
            assert_eq!(after[..FSXATTR_SIZE], before);
        }
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => {
            eprintln!("SKIPPED: the filesystem of temporary files has no struct fsxattr");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_other_ioctl_reaches_the_file() {
    const TCGETS: u32 = 0x5401;
    const FICLONE: u32 = 0x4004_9409;
    const FS_IOC_SETVERSION: u32 = 0x4008_7602;
    let file = tempfile::tempfile().unwrap();
    for command in [0, TCGETS, FICLONE, FS_IOC_SETVERSION, u32::MAX] {
        assert_eq!(ioctl_attr(&file, command, &[0; 8], 8), Err(Errno::NOTTY), "{command:#x}");
    }
    for command in [FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_GETFLAGS] {
        let long = [0; LARGEST + 1];
        assert_eq!(ioctl_attr(&file, command, &long, 8), Err(Errno::INVAL), "{command:#x}");
    }
}

#[test]
fn figures_of_this_process_are_sensible() {
    let page = crate::sys::page_size() as u64;
    assert!(rss_bytes() > 64 * page && rss_bytes().is_multiple_of(page));
    assert!(max_map_count() > 1000);
    let files: Vec<File> =
        (0..100).map(|_| OpenOptions::new().read(true).open("/dev/null").unwrap()).collect();
    assert!(descriptors_in_use() >= files.len() as u64);
}

#[test]
fn the_limit_of_descriptors_is_raised_as_far_as_it_goes() {
    raise_descriptor_limit();
    let (soft, hard) = descriptor_limit();
    assert_eq!(soft, hard);
}

#[test]
fn the_link_of_a_descriptor_leads_to_its_file() {
    let file = tempfile::tempfile().unwrap();
    append(&file, b"unlinked").unwrap();
    let path = crate::sys::fd_path(file.as_fd());
    assert_eq!(std::fs::read(path).unwrap(), b"unlinked");
}
