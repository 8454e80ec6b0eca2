//! Renamed directories, and what is below them, before and after the scratch is mounted again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::common::*;
use super::kept::Kept;
use super::tidy::assert_tidy;

fn fill(base: &Path) {
    fs::create_dir_all(base.join("a/b/c/d")).unwrap();
    fs::write(base.join("a/b/file"), pattern(200_000)).unwrap();
    fs::write(base.join("a/b/c/file"), pattern(300_000)).unwrap();
    fs::write(base.join("a/b/c/d/file"), pattern(100)).unwrap();
}

#[test]
fn what_was_below_a_removed_directory_is_changed_and_renamed_after_a_remount() {
    if !require_fuse() {
        return;
    }
    let mut kept = Kept::new("copy_up=0", fill);
    kept.with_base_untouched(|kept| {
        fs::rename(kept.at("a/b"), kept.at("out")).unwrap();
        fs::remove_dir(kept.at("a")).unwrap();
        kept.remount();
        set_mode(kept.at("out/file"), 0o600);
        create(kept.at("out/c/file")).write_all_at(b"changed", 10_000).unwrap();
        fs::rename(kept.at("out/c"), kept.at("c")).unwrap();
        fs::rename(kept.at("c/d"), kept.at("out/d")).unwrap();
        fs::remove_dir_all(kept.at("out/file")).unwrap_err();
        fs::remove_file(kept.at("out/file")).unwrap();
        for _ in 0..2 {
            let mut expected = pattern(300_000);
            expected[10_000..10_007].copy_from_slice(b"changed");
            assert_content(kept.at("c/file"), &expected);
            assert_content(kept.at("out/d/file"), &pattern(100));
            assert_eq!((names(kept.root()).len(), names(kept.at("out"))), (2, vec!["d".into()]));
            kept.remount();
        }
        fs::remove_dir_all(kept.at("c")).unwrap();
        fs::remove_dir_all(kept.at("out")).unwrap();
        assert_eq!(names(kept.root()).len(), 0);
    });
    kept.unmount();
    assert_tidy(&kept.scratch());
}

#[test]
fn a_new_directory_in_the_place_of_one_that_was_moved_shows_nothing_of_it() {
    if !require_fuse() {
        return;
    }
    let mut kept = Kept::new("copy_up=0", fill);
    kept.with_base_untouched(|kept| {
        fs::rename(kept.at("a"), kept.at("old")).unwrap();
        fs::create_dir(kept.at("a")).unwrap();
        fs::write(kept.at("a/own"), b"own").unwrap();
        for _ in 0..2 {
            assert_eq!(names(kept.at("a")), ["own"]);
            assert_content(kept.at("old/b/file"), &pattern(200_000));
            kept.remount();
        }
        // Back over it.
        fs::remove_file(kept.at("a/own")).unwrap();
        fs::rename(kept.at("old"), kept.at("a")).unwrap();
        kept.remount();
        assert_eq!(names(kept.at("a")), ["b"]);
        assert_eq!(names(kept.root()), ["a"]);
        assert_content(kept.at("a/b/c/d/file"), &pattern(100));
    });
}
