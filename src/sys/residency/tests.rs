use std::fs::File;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::page_size;

const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn mapped(pages: usize, mapped_pages: usize) -> (File, Region) {
    let file = tempfile::tempfile().unwrap();
    let page = page_size();
    rustix::io::pwrite(&file, &vec![7; pages * page], 0).unwrap();
    rustix::fs::fsync(&file).unwrap();
    let region = Region::map(&file, mapped_pages * page, WRITE, libc::MAP_SHARED).unwrap();
    (file, region)
}

/// False, said aloud, where the kernel has no cachestat(2).
fn has_cachestat(file: &File) -> bool {
    let has = cachestat(file, 0..1) != Err(Errno::NOSYS);
    if !has {
        eprintln!("SKIPPED: this kernel has no cachestat(2)");
    }
    has
}

/// False, said aloud, where temporary files are in memory: their pages are never clean, nor
/// written back.
fn is_on_disk(file: &File) -> bool {
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    let on_disk = rustix::fs::fstatfs(file).unwrap().f_type as u32 != TMPFS_MAGIC;
    if !on_disk {
        eprintln!("SKIPPED: temporary files are on tmpfs");
    }
    on_disk
}

#[test]
fn cachestat_and_mincore_agree() {
    const PAGES: usize = 2500; // More than two chunks of mincore(2).
    let page = page_size();
    let (file, region) = mapped(PAGES, PAGES);
    if !has_cachestat(&file) || !is_on_disk(&file) {
        return;
    }
    let whole = || cachestat(&file, 0..(PAGES * page) as u64).unwrap();
    // The kernel keeps a page that it uses itself at this moment.
    let end = Instant::now() + Duration::from_secs(60);
    while whole().cached == PAGES as u64 {
        assert!(Instant::now() < end, "{:?}: nothing was dropped", whole());
        fadvise_dontneed(&file, (100 * page) as u64..(1900 * page) as u64).unwrap();
    }
    for pages in [0..PAGES, 0..100, 100..1900, 1024..2048, 99..101, 1899..2500, 7..7] {
        let bytes = pages.start * page..pages.end * page;
        let resident = resident_pages(&region, bytes.clone()).unwrap();
        let stat = cachestat(&file, bytes.start as u64..bytes.end as u64).unwrap();
        assert_eq!(resident, stat.cached, "{pages:?}");
    }
    assert_eq!(resident_pages(&region, 0..100 * page), Ok(100), "what was not dropped");
}

#[test]
fn pages_behind_the_end_of_the_file_are_not_resident() {
    let page = page_size();
    let (_file, region) = mapped(2, 6);
    assert_eq!(resident_pages(&region, 0..6 * page), Ok(2));
    assert_eq!(resident_pages(&region, 3 * page..6 * page), Ok(0));
}

#[test]
fn ranges_outside_the_region_are_refused() {
    let page = page_size();
    let (file, region) = mapped(2, 2);
    for range in [0..3 * page, 5 * page..5 * page, 1..page, usize::MAX - 1..usize::MAX] {
        let refused = resident_pages(&region, range.clone());
        assert_eq!(refused, Err(Errno::INVAL), "{range:?}");
    }
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = fadvise_dontneed(&file, 2..1);
    assert_eq!(reversed, Err(Errno::INVAL));
}

#[test]
fn an_empty_range_is_nothing_and_not_the_whole_file() {
    let (file, region) = mapped(2, 2);
    assert_eq!(resident_pages(&region, 0..0), Ok(0));
    assert_eq!(fadvise_dontneed(&file, 0..0), Ok(()));
    assert_eq!(resident_pages(&region, 0..2 * page_size()), Ok(2));
    if has_cachestat(&file) {
        assert_eq!(cachestat(&file, 0..0), Ok(CacheStat::default()));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = cachestat(&file, 2..1);
        assert_eq!(reversed, Err(Errno::INVAL));
    }
}

#[test]
fn dirty_pages_are_counted_until_they_are_written_back() {
    let page = page_size();
    let (file, _region) = mapped(4, 4);
    if !has_cachestat(&file) || !is_on_disk(&file) {
        return;
    }
    rustix::io::pwrite(&file, &vec![8; 2 * page], page as u64).unwrap();
    let stat = cachestat(&file, 0..4 * page as u64).unwrap();
    let dirty = stat.dirty + stat.writeback;
    assert!((2..=4).contains(&dirty), "{stat:?}: a large folio is dirty as a whole");
    rustix::fs::fsync(&file).unwrap();
    let stat = cachestat(&file, 0..4 * page as u64).unwrap();
    assert_eq!((stat.cached, stat.dirty + stat.writeback), (4, 0));
}

#[test]
fn the_owner_is_told_the_truth() {
    let (file, _region) = mapped(1, 1);
    assert!(mincore_tells(&file));
}
