use std::fs::File;

use super::*;

const SHARED: i32 = libc::MAP_SHARED;
const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn file_of(pages: usize) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len((pages * crate::sys::page_size()) as u64).unwrap();
    file
}

/// The kernel's own line of the mapping at this address, and the line of its VmFlags.
fn kernel_view(address: usize) -> (String, String) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{address:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let head = lines.next().unwrap().to_owned();
    (head, lines.find(|line| line.starts_with("VmFlags")).unwrap().to_owned())
}

#[test]
fn a_region_has_the_length_and_the_rights_it_was_made_with() {
    let page = crate::sys::page_size();
    let file = file_of(2);
    for (prot, flags, readable, writable, shown) in [
        (READ, SHARED, true, false, " r--s "),
        (WRITE, SHARED, true, true, " rw-s "),
        (READ, libc::MAP_PRIVATE, true, false, " r--p "),
        (libc::PROT_NONE, SHARED, false, false, " ---s "),
        (READ | libc::PROT_EXEC, SHARED, true, false, " r-xs "),
    ] {
        let region = Region::map(&file, 2 * page, prot, flags).unwrap();
        assert_eq!((region.len(), region.is_empty()), (2 * page, false));
        assert_eq!((region.is_readable(), region.is_writable()), (readable, writable));
        let (head, _) = kernel_view(region.address());
        assert!(head.contains(shown), "{shown}: {head}");
    }
}

#[test]
fn flags_that_memmap2_has_no_words_for_reach_the_kernel() {
    let page = crate::sys::page_size();
    let file = file_of(1);
    let region = Region::map(&file, page, READ, SHARED | libc::MAP_LOCKED).unwrap();
    let (_, flags) = kernel_view(region.address());
    assert!(flags.contains(" lo"), "{flags}");
    let refused = Region::map(&file, page, READ, SHARED | libc::MAP_HUGETLB);
    assert_eq!(refused.err(), Some(Errno::INVAL), "not a file of huge pages");
    Region::map(&file, page, READ, SHARED | libc::MAP_STACK).unwrap();
}

#[test]
fn populate_brings_the_pages_into_memory_at_once() {
    let page = crate::sys::page_size();
    let file = file_of(4);
    let flags = SHARED | libc::MAP_POPULATE | libc::MAP_NORESERVE;
    let region = Region::map(&file, 4 * page, READ, flags).unwrap();
    assert!(matches!(region.memory, Memory::Plain(_)));
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", region.address());
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    assert_eq!(resident.trim(), format!("{} kB", 4 * page / 1024));
}

#[test]
fn what_would_take_memory_from_others_is_refused() {
    let page = crate::sys::page_size();
    let file = file_of(1);
    for flag in
        [libc::MAP_FIXED, libc::MAP_FIXED_NOREPLACE, libc::MAP_ANONYMOUS, libc::MAP_GROWSDOWN]
    {
        let refused = Region::map(&file, page, READ, SHARED | flag);
        assert_eq!(refused.err(), Some(Errno::INVAL), "{flag:#x}");
    }
    for len in [0, usize::MAX, isize::MAX as usize + 1] {
        assert_eq!(Region::map(&file, len, READ, SHARED).err(), Some(Errno::INVAL), "{len}");
    }
}

#[test]
fn a_descriptor_without_the_right_is_refused_as_mmap_does() {
    let page = crate::sys::page_size();
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(page as u64).unwrap();
    let read_only = File::open(named.path()).unwrap();
    Region::map(&read_only, page, READ, SHARED).unwrap();
    assert_eq!(Region::map(&read_only, page, WRITE, SHARED).err(), Some(Errno::ACCESS));
    let dir = File::open(std::env::temp_dir()).unwrap();
    assert_eq!(Region::map(&dir, page, READ, SHARED).err(), Some(Errno::NODEV));
}

#[test]
fn bytes_are_lent_to_the_kernel_within_the_region_only() {
    let page = crate::sys::page_size();
    let file = file_of(1);
    rustix::io::pwrite(&file, b"lent", 10).unwrap();
    let region = Region::map(&file, 2 * page, READ, SHARED).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let sent = region.lend(10..14, |bytes| rustix::io::write(&writer, bytes));
    assert_eq!(sent, Some(Ok(4)));
    let mut buffer = [0; 8];
    assert_eq!(rustix::io::read(&reader, &mut buffer), Ok(4));
    assert_eq!(&buffer[..4], b"lent");

    let gone = region.lend(page..page + 4, |bytes| rustix::io::write(&writer, bytes));
    assert_eq!(gone, Some(Err(Errno::FAULT)), "a page behind the end of the file");

    assert_eq!(region.lend(2 * page..2 * page, <[u8]>::len), Some(0));
    for range in [0..2 * page + 1, 2 * page + 1..2 * page + 1, page..usize::MAX] {
        assert_eq!(region.lend(range.clone(), <[u8]>::len), None, "{range:?}");
    }
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = region.lend(2..1, <[u8]>::len);
    assert_eq!(reversed, None);
}

#[test]
fn dropping_a_region_gives_its_addresses_back() {
    let page = crate::sys::page_size();
    let file = file_of(1);
    for flags in [SHARED, SHARED | libc::MAP_LOCKED] {
        let region = Region::map(&file, page, READ, flags).unwrap();
        let other = region.address();
        drop(region);
        // Nothing else is certain to leave the place free, so this asks for the kernel's word on
        // the file: no mapping of its inode at that address.
        let inode = format!(" {} ", rustix::fs::fstat(&file).unwrap().st_ino);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let left = maps
            .lines()
            .any(|line| line.starts_with(&format!("{other:x}-")) && line.contains(&inode));
        assert!(!left, "{maps}");
    }
}
