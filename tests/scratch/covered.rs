//! Files of the base that the scratch has something in the place of, whole copies, new files,
//! whiteouts: when the base changes under them, that is told, and nothing else is.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags};

use super::common::*;
use super::kept::Kept;

/// What `status` tells of the base, once all is compared.
fn told(kept: &Kept) -> Vec<(String, String)> {
    let guard = || ask(kept.root(), "json status").json()["scratch"]["guard"].clone();
    wait_for("the base to be compared", || guard()["compared"] == true);
    serde_json::from_value(guard()["changed"].clone()).unwrap()
}

/// Of files whose pages are those of the base still.
const BASE_CHANGED: &str = "its base has changed";
const BASE_MISSING: &str = "its base is gone";

const CHANGED: &str = "the file of the base that it replaces has changed";
const MISSING: &str = "the file of the base that it replaces is gone";
const REMOVED: &str = "it is removed here, and has changed in the base";

fn expected(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(path, fate)| ((*path).to_owned(), (*fate).to_owned())).collect()
}

fn fill(base: &Path) {
    for name in ["copied", "saved", "removed", "moved", "target", "one", "two", "again"] {
        fs::write(base.join(name), format!("{name} in the base")).unwrap();
    }
    for dir in ["dir", "dir/deep", "gone", "renamed", "other"] {
        fs::create_dir(base.join(dir)).unwrap();
        fs::write(base.join(dir).join("file"), dir).unwrap();
    }
    symlink("nowhere", base.join("link")).unwrap();
}

/// Makes something of every kind in the place of something of the base.
fn cover(root: &Path) {
    let at = |name: &str| root.join(name);
    let append = |name: &str| File::options().append(true).open(at(name)).unwrap().write_all(b"!");
    append("copied").unwrap();
    append("dir/deep/file").unwrap();
    fs::write(at("saved~"), "new").unwrap();
    fs::rename(at("saved~"), at("saved")).unwrap();
    fs::remove_file(at("removed")).unwrap();
    fs::rename(at("moved"), at("elsewhere")).unwrap();
    append("target").unwrap();
    fs::remove_file(at("target")).unwrap();
    fs::write(at("target"), "made anew").unwrap();
    rustix::fs::renameat_with(CWD, at("one"), CWD, at("two"), RenameFlags::EXCHANGE).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::rename(at("renamed"), at("new name")).unwrap();
    append("new name/file").unwrap();
    fs::remove_file(at("link")).unwrap();
    symlink("somewhere", at("link")).unwrap();
    // There and back.
    fs::rename(at("again"), at("away")).unwrap();
    fs::rename(at("away"), at("again")).unwrap();
    fs::remove_dir_all(at("other")).unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/file"), "of the scratch").unwrap();
}

fn covering() -> Option<Kept> {
    if !(require_fuse() && require_root()) {
        return None;
    }
    let mut kept = Kept::new("", fill);
    cover(kept.root());
    kept.unmount();
    Some(kept)
}

#[test]
fn a_base_that_has_not_changed_is_told_of_nothing() {
    let Some(mut kept) = covering() else { return };
    // Neither what changes beside it nor attributes count.
    fs::write(kept.base.join("beside"), "new").unwrap();
    fs::write(kept.base.join("dir/beside"), "new").unwrap();
    set_mode(kept.base.join("copied"), 0o600);
    for _ in 0..2 {
        kept.mount();
        assert_eq!(told(&kept), []);
        kept.kill_and_mount();
        assert_eq!(told(&kept), []);
        kept.unmount();
    }
}

#[test]
fn what_has_or_had_several_names_is_told_of_no_change_that_was_none() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let mut kept = Kept::new("", |base| {
        for name in ["a", "b", "c", "d", "e", "f"] {
            fs::write(base.join(name), name).unwrap();
        }
    });
    let at = |name: &str| kept.at(name);
    for name in ["a", "c", "e"] {
        fs::write(at(name), "written").unwrap(); // Whole copies.
    }
    fs::remove_file(at("b")).unwrap();
    fs::hard_link(at("a"), at("b")).unwrap();
    fs::remove_file(at("a")).unwrap();
    fs::hard_link(at("c"), at("c2")).unwrap();
    fs::rename(at("c2"), at("d")).unwrap();
    fs::remove_file(at("c")).unwrap();
    fs::hard_link(at("e"), at("e2")).unwrap();
    fs::remove_file(at("e")).unwrap();
    fs::remove_file(at("f")).unwrap();
    fs::write(at("f"), "made anew").unwrap();
    fs::hard_link(at("f"), at("f2")).unwrap();
    for _ in 0..2 {
        kept.remount();
        assert_eq!(told(&kept), []);
    }
}

#[test]
fn every_change_of_what_the_scratch_has_something_in_the_place_of_is_told() {
    let Some(mut kept) = covering() else { return };
    for name in ["copied", "saved", "removed", "moved", "target", "one", "two", "again"] {
        fs::write(kept.base.join(name), "changed in the base").unwrap();
    }
    fs::write(kept.base.join("dir/deep/file"), "changed in the base").unwrap();
    fs::write(kept.base.join("renamed/file"), "changed in the base").unwrap();
    fs::write(kept.base.join("gone/new"), "new in the base").unwrap();
    fs::write(kept.base.join("other/new"), "new in the base").unwrap();
    fs::remove_file(kept.base.join("link")).unwrap();
    symlink("everywhere", kept.base.join("link")).unwrap();
    kept.mount();
    let all = [
        ("again", BASE_CHANGED),
        ("copied", CHANGED),
        ("dir/deep/file", CHANGED),
        ("elsewhere", BASE_CHANGED),
        ("gone", REMOVED),
        ("link", CHANGED),
        ("moved", REMOVED),
        ("new name/file", CHANGED),
        ("one", BASE_CHANGED),
        ("other", CHANGED),
        ("removed", REMOVED),
        ("saved", CHANGED),
        ("target", CHANGED),
        ("two", BASE_CHANGED),
    ];
    assert_eq!(told(&kept), expected(&all));
    let log = || kept.mounted().log();
    wait_for("the log to tell it", || log().contains("the base has changed under what"));
    let text = ask(kept.root(), "status").text();
    assert!(text.contains(&format!("copied: {CHANGED}")), "{text}");
    assert!(text.contains("14 changed"), "{text}");
}

#[test]
fn what_is_gone_from_the_base_is_told_where_the_scratch_has_it_still() {
    let Some(mut kept) = covering() else { return };
    for name in ["copied", "saved", "removed", "moved", "one", "link"] {
        fs::remove_file(kept.base.join(name)).unwrap();
    }
    fs::remove_dir_all(kept.base.join("dir")).unwrap();
    fs::remove_dir_all(kept.base.join("gone")).unwrap();
    kept.mount();
    let all = [
        ("copied", MISSING),
        ("dir", MISSING),
        ("elsewhere", BASE_MISSING),
        ("link", MISSING),
        ("one", MISSING),
        ("saved", MISSING),
        ("two", BASE_MISSING),
    ];
    assert_eq!(told(&kept), expected(&all));
}
