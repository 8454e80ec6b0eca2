use std::fs::File;

use super::*;
use crate::sys::page_size;
use crate::sys::residency::{cachestat, resident_pages};

const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn mapped(pages: usize, mapped_pages: usize) -> (File, Region) {
    let file = tempfile::tempfile().unwrap();
    let page = page_size();
    rustix::io::pwrite(&file, &vec![7; pages * page], 0).unwrap();
    let region = Region::map(&file, mapped_pages * page, WRITE, libc::MAP_SHARED).unwrap();
    (file, region)
}

/// The VmFlags that the kernel shows for the mapping at this address.
fn vm_flags(address: usize) -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{address:x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_default().to_owned()
}

#[test]
fn a_sticky_advice_marks_its_range_and_no_other() {
    let page = page_size();
    let (_file, region) = mapped(4, 4);
    advise(&region, page..2 * page, Advice::Random).unwrap();
    assert!(vm_flags(region.address() + page).contains(" rr"));
    assert!(!vm_flags(region.address()).contains(" rr"));
    assert!(!vm_flags(region.address() + 2 * page).contains(" rr"));
}

#[test]
fn ranges_outside_or_off_the_page_borders_are_refused() {
    let page = page_size();
    let (_file, region) = mapped(2, 2);
    for range in [1..page, 0..2 * page + 1, 3 * page..3 * page, usize::MAX - 1..usize::MAX] {
        let refused = advise(&region, range.clone(), Advice::WillNeed);
        assert_eq!(refused, Err(Errno::INVAL), "{range:?}");
    }
    assert_eq!(sync(&region, 0..3 * page, SyncMode::Async), Err(Errno::INVAL));
    assert_eq!(sync(&region, 1..page, SyncMode::Async), Err(Errno::INVAL));
    assert_eq!(lock(&region, 0..3 * page), Err(Errno::INVAL));
    assert_eq!(unlock(&region, 0..3 * page), Err(Errno::INVAL));
    assert_eq!(populate_read(&region, page..3 * page), Err(Errno::INVAL));
}

#[test]
fn a_forbidden_advice_never_reaches_the_kernel() {
    let (_file, region) = mapped(1, 1);
    for &advice in Advice::ALL.iter().filter(|advice| advice.effect() == Effect::Forbidden) {
        assert_eq!(advise(&region, 0..page_size(), advice), Err(Errno::INVAL), "{advice}");
    }
}

#[test]
fn populating_behind_the_end_of_the_file_faults_without_a_signal() {
    let page = page_size();
    let (_file, region) = mapped(1, 2);
    assert_eq!(populate_read(&region, 0..page), Ok(()));
    assert_eq!(populate_read(&region, 100..200), Ok(()), "widened to pages");
    assert_eq!(populate_read(&region, 0..2 * page), Err(Errno::FAULT));
}

#[test]
fn syncing_leaves_no_dirty_page() {
    let page = page_size();
    let (file, region) = mapped(4, 4);
    let end = 4 * page as u64;
    if matches!(cachestat(&file, 0..end), Err(Errno::NOSYS)) {
        eprintln!("SKIPPED: this kernel has no cachestat(2)");
        return;
    }
    sync(&region, 0..4 * page, SyncMode::Async).unwrap();
    sync(&region, 0..4 * page, SyncMode::Sync).unwrap();
    sync(&region, 0..4 * page, SyncMode::Invalidate).unwrap();
    let stat = cachestat(&file, 0..end).unwrap();
    assert_eq!((stat.dirty, stat.writeback), (0, 0));
}

#[test]
fn locked_pages_are_there_and_unlocking_undoes_it() {
    let page = page_size();
    let (_file, region) = mapped(2, 2);
    lock(&region, 0..2 * page).unwrap();
    assert!(vm_flags(region.address()).contains(" lo"));
    assert_eq!(resident_pages(&region, 0..2 * page), Ok(2));
    unlock(&region, 0..2 * page).unwrap();
    assert!(!vm_flags(region.address()).contains(" lo"));
}

#[test]
fn locking_behind_the_end_of_the_file_fails_and_stays_until_unlocked() {
    let page = page_size();
    let (_file, region) = mapped(1, 2);
    assert_eq!(lock(&region, 0..2 * page), Err(Errno::NOMEM));
    assert!(vm_flags(region.address()).contains(" lo"), "what the documentation says");
    unlock(&region, 0..2 * page).unwrap();
    assert!(!vm_flags(region.address()).contains(" lo"));
}
