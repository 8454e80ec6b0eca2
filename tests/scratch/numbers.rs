//! Files of the base that change their number of names, or get the inode number of an earlier file,
//! while a scratch has a copy of them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::common::*;
use super::kept::Kept;

const LARGE: usize = 300_000;

/// Makes files until one has the inode number, which has to be free.
fn file_with_number(dir: &Path, number: u64) -> bool {
    for count in 0..2000 {
        let path = dir.join(format!("try{count}"));
        fs::write(&path, b"").unwrap();
        if fs::metadata(&path).unwrap().ino() == number {
            fs::rename(&path, dir.join("new")).unwrap();
            return true;
        }
    }
    false
}

fn write_page(path: &Path, byte: u8) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[byte; 4096], 4096).unwrap();
}

fn with_page(mut content: Vec<u8>, byte: u8) -> Vec<u8> {
    content[4096..8192].fill(byte);
    content
}

#[test]
fn a_new_file_of_the_base_is_not_taken_for_the_copy_of_a_removed_one_with_its_number() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for (size, copied_by) in [(3000, "h"), (LARGE, "h"), (LARGE, "second")] {
        let mut kept = Kept::new("copy_up=4096", |base| {
            fs::write(base.join("h"), pattern(size)).unwrap();
            fs::hard_link(base.join("h"), base.join("second")).unwrap();
            fs::create_dir(base.join("dir")).unwrap();
        });
        let number = fs::metadata(kept.base.join("h")).unwrap().ino();
        let mut copy = pattern(size);
        copy.resize(LARGE, 0);
        let copy = with_page(copy, b'c');
        if size < LARGE {
            File::options()
                .write(true)
                .open(kept.at(copied_by))
                .unwrap()
                .set_len(LARGE as u64)
                .unwrap();
        }
        write_page(&kept.at(copied_by), b'c');
        if size == LARGE {
            // A partial copy needs its base: all of it is copied.
            fs::write(kept.at(copied_by), &copy).unwrap();
        }
        kept.unmount();
        fs::remove_file(kept.base.join("h")).unwrap();
        fs::remove_file(kept.base.join("second")).unwrap();
        if !file_with_number(&kept.base.join("dir"), number) {
            eprintln!("the filesystem of the test does not give numbers again: nothing is tested");
            return;
        }
        let new = kept.base.join("dir/new");
        let content: Vec<u8> = pattern(LARGE).into_iter().rev().collect();
        fs::write(&new, &content).unwrap();
        fs::hard_link(&new, kept.base.join("dir/other")).unwrap();
        kept.mount();
        for name in ["dir/new", "dir/other"] {
            assert_bytes(&fs::read(kept.at(name)).unwrap(), &content);
        }
        assert_bytes(&fs::read(kept.at(copied_by)).unwrap(), &copy);
        // The new file is copied as well, and has the place of the earlier one in the index.
        write_page(&kept.at("dir/other"), b'n');
        let changed = with_page(content, b'n');
        for round in 0..2 {
            for name in ["dir/new", "dir/other"] {
                assert_bytes(&fs::read(kept.at(name)).unwrap(), &changed);
                assert_eq!(fs::metadata(kept.at(name)).unwrap().nlink(), 2, "{name}, {round}");
            }
            assert_bytes(&fs::read(kept.at(copied_by)).unwrap(), &copy);
            assert_eq!(fs::metadata(kept.at(copied_by)).unwrap().nlink(), 1, "{round}");
            kept.remount();
        }
        fs::remove_file(kept.at(copied_by)).unwrap();
        fs::remove_file(kept.at("dir/new")).unwrap();
        kept.remount();
        assert_bytes(&fs::read(kept.at("dir/other")).unwrap(), &changed);
        assert_eq!(fs::metadata(kept.at("dir/other")).unwrap().nlink(), 1);
    }
}

#[test]
fn the_last_name_that_a_file_has_in_the_base_leads_to_the_copy_that_another_name_made() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("copy_up=4096", |base| {
        fs::write(base.join("a"), pattern(LARGE)).unwrap();
        fs::hard_link(base.join("a"), base.join("b")).unwrap();
    });
    write_page(&kept.at("a"), b'1');
    fs::remove_file(kept.at("a")).unwrap();
    kept.unmount();
    fs::remove_file(kept.base.join("a")).unwrap();
    fs::write(kept.base.join("a"), b"another file").unwrap();
    kept.mount();
    let expected = with_page(pattern(LARGE), b'1');
    for _ in 0..2 {
        // Pages of the base too, though the name by which it was copied is gone.
        assert_bytes(&fs::read(kept.at("b")).unwrap(), &expected);
        kept.remount();
    }
    assert_bytes(&fs::read(kept.base.join("b")).unwrap(), &pattern(LARGE));
}

#[test]
fn a_whole_copy_is_found_by_the_last_name_in_the_base_and_not_made_again() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("", |base| {
        fs::write(base.join("a"), b"base").unwrap();
        fs::hard_link(base.join("a"), base.join("b")).unwrap();
    });
    fs::write(kept.at("a"), b"scratch").unwrap();
    fs::remove_file(kept.at("a")).unwrap();
    kept.unmount();
    fs::remove_file(kept.base.join("a")).unwrap();
    kept.mount();
    assert_eq!(fs::read(kept.at("b")).unwrap(), b"scratch");
    let file = File::options().append(true).open(kept.at("b")).unwrap();
    std::io::Write::write_all(&mut &file, b" and more").unwrap();
    drop(file);
    kept.remount();
    assert_eq!(fs::read(kept.at("b")).unwrap(), b"scratch and more");
    assert_eq!(fs::read(kept.base.join("b")).unwrap(), b"base");
}

/// Base files `d/f`, of which there is a copy, and one in `o` that has got its number since; the
/// latter is open in the mount.
fn number_given_on(options: &str) -> Option<(Kept, File)> {
    if !(require_fuse() && require_root()) {
        return None;
    }
    let kept = Kept::new(options, |base| {
        for dir in ["d", "o"] {
            fs::create_dir(base.join(dir)).unwrap();
        }
        fs::write(base.join("d/f"), vec![b'A'; LARGE]).unwrap();
    });
    let number = fs::metadata(kept.base.join("d/f")).unwrap().ino();
    fs::write(kept.at("d/f"), b"copied").unwrap();
    fs::remove_file(kept.base.join("d/f")).unwrap();
    if !file_with_number(&kept.base.join("o"), number) {
        eprintln!("the filesystem of the test does not give numbers again: nothing is tested");
        return None;
    }
    fs::write(kept.base.join("o/new"), vec![b'G'; LARGE]).unwrap();
    wait_for("the new file", || kept.at("o/new").exists());
    assert_eq!(fs::read(kept.at("d/f")).unwrap(), b"copied");
    let open = File::options().read(true).write(true).open(kept.at("o/new")).unwrap();
    assert_ne!(open.metadata().unwrap().ino(), fs::metadata(kept.at("d/f")).unwrap().ino());
    Some((kept, open))
}

#[test]
fn a_file_stays_one_when_the_one_goes_that_had_its_number_first() {
    for options in ["", "copy_up=0"] {
        let Some((mut kept, first)) = number_given_on(options) else { return };
        fs::remove_file(kept.at("d/f")).unwrap();
        let listed = names(kept.at("o"));
        assert!(listed.contains(&String::from("new")), "{listed:?}");
        let second = File::options().read(true).write(true).open(kept.at("o/new")).unwrap();
        assert_eq!(first.metadata().unwrap().ino(), second.metadata().unwrap().ino());
        first.write_all_at(&[b'T'; 4096], 4096).unwrap();
        first.sync_all().unwrap();
        second.write_all_at(&[b'U'; 4096], 8192).unwrap();
        second.sync_all().unwrap();
        let mut expected = vec![b'G'; LARGE];
        expected[4096..8192].fill(b'T');
        expected[8192..12_288].fill(b'U');
        for file in [&first, &second] {
            let mut found = vec![0; LARGE];
            file.read_exact_at(&mut found, 0).unwrap();
            assert_bytes(&found, &expected);
        }
        drop((first, second));
        kept.remount();
        assert_bytes(&fs::read(kept.at("o/new")).unwrap(), &expected);
    }
}
