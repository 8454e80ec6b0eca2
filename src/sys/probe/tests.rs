use std::fs::File;

use super::*;

#[test]
fn a_descriptor_that_is_no_fuse_connection_takes_no_backing_file() {
    let null = File::open("/dev/null").unwrap();
    assert_eq!(open_backing(&null, &null), Err(Errno::NOTTY));
}

#[test]
fn a_descriptor_that_is_no_page_map_is_not_scanned() {
    let null = File::open("/dev/null").unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(1).unwrap();
    let region = Region::map(&file, 1, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    assert_eq!(scan_pagemap(&null, &region), Err(Errno::NOTTY));
}
