//! What `status` counts of a scratch, compared with what is in it, and again after the next mount.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use super::common::*;
use super::kept::Kept;

fn fill(base: &Path) {
    for dir in ["d", "d/sub", "empty"] {
        fs::create_dir(base.join(dir)).unwrap();
    }
    for name in ["a", "b", "c", "d/e", "d/sub/f"] {
        fs::write(base.join(name), pattern(10_000)).unwrap();
    }
    fs::hard_link(base.join("c"), base.join("d/c")).unwrap();
}

/// Copied files, new files, new directories and whiteouts.
fn counts(kept: &Kept) -> [u64; 4] {
    let status = ask(kept.root(), "json status").json();
    ["copied_files", "new_files", "new_directories", "whiteouts"]
        .map(|name| status["scratch"][name].as_u64().unwrap())
}

/// The counts are these, now and when the scratch is mounted again.
#[track_caller]
fn assert_counts(kept: &mut Kept, what: &str, expected: [u64; 4]) {
    assert_eq!(counts(kept), expected, "{what}");
    kept.remount();
    assert_eq!(counts(kept), expected, "{what}, mounted again");
}

#[test]
fn what_is_new_is_counted_apart_from_what_was_copied() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = &mut Kept::new("copy_up=0", fill);
    let at = |kept: &Kept, name: &str| kept.at(name);
    assert_counts(kept, "nothing", [0; 4]);
    fs::write(at(kept, "new"), "new").unwrap();
    fs::create_dir_all(at(kept, "made/in/there")).unwrap();
    symlink("new", at(kept, "made/link")).unwrap();
    let fifo = at(kept, "made/fifo");
    mknodat(CWD, fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let null = at(kept, "made/null");
    mknodat(CWD, null, FileType::CharacterDevice, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::hard_link(at(kept, "new"), at(kept, "made/in/second")).unwrap();
    assert_counts(kept, "made", [0, 4, 3, 0]);
    // Copied: two files and the directories above them, which are none of those made here.
    create(at(kept, "d/sub/f")).write_all_at(b"w", 5000).unwrap();
    set_mode(at(kept, "d/c"), 0o600);
    assert_counts(kept, "copied", [2, 4, 3, 0]);
    fs::remove_file(at(kept, "new")).unwrap();
    fs::remove_dir(at(kept, "made/in/there")).unwrap();
    fs::remove_file(at(kept, "a")).unwrap();
    assert_counts(kept, "one of two names, a directory and a file of the base", [2, 4, 2, 1]);
    fs::remove_file(at(kept, "made/in/second")).unwrap();
    fs::remove_file(at(kept, "made/link")).unwrap();
    assert_counts(kept, "the last name", [2, 2, 2, 1]);
    // In the place of the whiteout, and over one another.
    fs::write(at(kept, "a"), "anew").unwrap();
    fs::write(at(kept, "other"), "other").unwrap();
    assert_counts(kept, "over a whiteout", [2, 4, 2, 0]);
    fs::rename(at(kept, "other"), at(kept, "a")).unwrap();
    assert_counts(kept, "a new one over a new one", [2, 3, 2, 0]);
    fs::rename(at(kept, "a"), at(kept, "b")).unwrap();
    assert_counts(kept, "a new one over one of the base", [2, 3, 2, 1]);
    fs::rename(at(kept, "d/e"), at(kept, "b")).unwrap();
    assert_counts(kept, "one of the base over a new one", [3, 2, 2, 2]);
    fs::create_dir(at(kept, "made/empty")).unwrap();
    fs::create_dir(at(kept, "made/full")).unwrap();
    fs::write(at(kept, "made/full/file"), "file").unwrap();
    fs::rename(at(kept, "made/full"), at(kept, "made/empty")).unwrap();
    fs::rename(at(kept, "made/empty"), at(kept, "empty")).unwrap();
    assert_counts(kept, "a directory over others", [3, 3, 3, 2]);
    fs::rename(at(kept, "d/sub"), at(kept, "moved")).unwrap();
    assert_counts(kept, "a directory of the base", [3, 3, 3, 3]);
    let (from, to) = (at(kept, "moved"), at(kept, "made"));
    renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE).unwrap();
    assert_counts(kept, "exchanged", [3, 3, 3, 3]);
    let (from, to) = (at(kept, "b"), at(kept, "b.moved"));
    renameat_with(CWD, from, CWD, to, RenameFlags::WHITEOUT).unwrap();
    assert_counts(kept, "with a device left behind", [3, 4, 3, 3]);
    // Everything that the scratch has.
    fs::remove_dir_all(at(kept, "moved")).unwrap();
    for name in ["b", "b.moved", "empty/file"] {
        fs::remove_file(at(kept, name)).unwrap();
    }
    fs::remove_dir(at(kept, "empty")).unwrap();
    let [copied, new, directories, _] = counts(kept);
    assert_eq!((copied, new, directories), (2, 0, 0));
    let text = ask(kept.root(), "status").text();
    assert!(text.contains("made       0 new files, 0 new directories"), "{text}");
}

#[test]
fn what_fails_and_what_has_no_name_any_more_counts_as_nothing() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let kept = &mut Kept::new("copy_up=0", fill);
    fs::create_dir(kept.at("made")).unwrap();
    assert!(fs::create_dir(kept.at("made")).is_err() && fs::create_dir(kept.at("d")).is_err());
    assert!(symlink("x", kept.at("a")).is_err());
    assert!(File::create_new(kept.at("a")).is_err());
    assert!(fs::remove_dir(kept.at("d")).is_err());
    // Both are gone, and still open; the one of the base is copied only then.
    let (new, of_base) = (create(kept.at("new")), create(kept.at("b")));
    fs::remove_file(kept.at("new")).unwrap();
    fs::remove_file(kept.at("b")).unwrap();
    new.write_all_at(b"new", 0).unwrap();
    of_base.write_all_at(b"b", 5000).unwrap();
    assert_eq!(counts(kept), [0, 0, 1, 1]);
    drop((new, of_base));
    assert_counts(kept, "closed", [0, 0, 1, 1]);
    fs::write(kept.at("made/file"), "file").unwrap();
    kept.kill_and_mount();
    assert_counts(kept, "killed", [0, 1, 1, 1]);
}
