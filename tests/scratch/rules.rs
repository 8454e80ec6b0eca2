//! Rules that choose by path what is copied: next to `copy` there are paths that are written in
//! the base itself, and paths that are only read.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, XattrFlags, lsetxattr, renameat_with};
use rustix::io::Errno;

use super::common::mapped::Mapped;
use super::common::*;
use super::kept::Kept;

const RULES: &str = "[[rule]]\nmatch = 'written/**'\naccess = 'write'\n\
                     [[rule]]\nmatch = 'only/**'\naccess = 'read'\n\
                     [[rule]]\nmatch = '**/*.log'\naccess = 'write'\n";

fn fill(base: &Path) {
    for dir in ["written/deep", "only/deep", "copied"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    for dir in ["written", "written/deep", "only", "only/deep", "copied"] {
        for (name, len) in [("small", 5000), ("large", 300_000)] {
            fs::write(base.join(dir).join(name), pattern(len)).unwrap();
        }
    }
    fs::write(base.join("copied/a.log"), b"line\n").unwrap();
    fs::write(base.join("shared"), pattern(9000)).unwrap();
    fs::hard_link(base.join("shared"), base.join("written/shared")).unwrap();
}

fn ruled() -> Option<Kept> {
    if !(require_fuse() && require_root()) {
        return None;
    }
    let rules = TestDir::new();
    let file = rules.path().join("rules.toml");
    fs::write(&file, RULES).unwrap();
    // Kept is mounted again by the same options.
    let options = format!("rules={}", file.display());
    let mut kept = Kept::new(&options, fill);
    kept.keep(rules);
    Some(kept)
}

/// Names below the upper directory, whiteouts included.
fn upper_names(kept: &Kept) -> Vec<String> {
    names(kept.scratch().join("upper"))
}

#[test]
fn what_a_rule_writes_is_in_the_base_at_once_and_nowhere_else() {
    let Some(mut kept) = ruled() else { return };
    let (at, below) = (kept.at("written"), kept.base.join("written"));
    for name in ["small", "large", "deep/small"] {
        let file = create(at.join(name));
        file.write_all_at(b"written", 1000).unwrap();
        assert_bytes(&fs::read(below.join(name)).unwrap()[1000..1007], b"written");
        let map = Mapped::shared(&file, 4096).unwrap();
        map.write(0, b"stored");
        map.sync().unwrap();
        drop((map, file));
        assert_bytes(&fs::read(below.join(name)).unwrap()[..6], b"stored");
        set_mode(at.join(name), 0o604);
        assert_eq!(mode(below.join(name)) & 0o777, 0o604);
    }
    fs::write(at.join("new"), b"new").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    symlink("new", at.join("dir/link")).unwrap();
    fs::hard_link(at.join("new"), at.join("dir/second")).unwrap();
    fs::rename(at.join("small"), at.join("dir/moved")).unwrap();
    fs::remove_file(at.join("deep/large")).unwrap();
    lsetxattr(at.join("new"), "user.a", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::ftruncate(create(at.join("large")), 10).unwrap();
    fs::write(kept.at("copied/a.log"), b"other\n").unwrap();
    fs::write(kept.at("copied/b.log"), b"b\n").unwrap();
    let check = |kept: &Kept| {
        let seen = snapshot(&kept.at("written"));
        seen.assert_same(&snapshot(&kept.base.join("written")), Scope::ButInodes);
        assert_content(kept.base.join("copied/a.log"), b"other\n");
        assert_content(kept.at("copied/b.log"), b"b\n");
        assert_content(kept.base.join("copied/b.log"), b"b\n");
        assert_eq!(upper_names(kept), Vec::<String>::new(), "the scratch has it too");
    };
    check(&kept);
    kept.remount();
    check(&kept);
    kept.kill_and_mount();
    check(&kept);
}

#[test]
fn what_a_rule_only_reads_refuses_every_change_with_erofs() {
    let Some(mut kept) = ruled() else { return };
    kept.with_base_untouched(|kept| {
        let at = kept.at("only");
        assert_content(at.join("large"), &pattern(300_000));
        let any = XattrFlags::empty();
        let outcomes = [
            ("open to write", open(at.join("small"), OFlags::RDWR).map(drop)),
            ("open with O_TRUNC", open(at.join("small"), OFlags::RDONLY | OFlags::TRUNC).map(drop)),
            ("create", open(at.join("new"), OFlags::WRONLY | OFlags::CREATE).map(drop)),
            ("mkdir", errno(fs::create_dir(at.join("new")))),
            ("symlink", errno(symlink("x", at.join("new")))),
            (
                "mknod",
                rustix::fs::mknodat(
                    CWD,
                    at.join("new"),
                    rustix::fs::FileType::Fifo,
                    0o600.into(),
                    0,
                ),
            ),
            ("unlink", errno(fs::remove_file(at.join("small")))),
            ("rmdir", errno(fs::remove_dir(at.join("deep")))),
            ("rename", errno(fs::rename(at.join("small"), at.join("new")))),
            ("link", errno(fs::hard_link(at.join("small"), at.join("new")))),
            ("truncate", rustix_truncate(&at.join("small"))),
            ("setxattr", lsetxattr(at.join("small"), "user.x", b"x", any)),
            (
                "chmod",
                errno(fs::set_permissions(
                    at.join("small"),
                    std::os::unix::fs::PermissionsExt::from_mode(0o600),
                )),
            ),
            ("chown", errno(std::os::unix::fs::chown(at.join("small"), Some(1), None))),
        ];
        for (what, outcome) in outcomes {
            assert_eq!(outcome, Err(Errno::ROFS), "{what}");
        }
        assert_eq!(names(&at), ["deep", "large", "small"]);
        // Beside it everything is copied.
        fs::write(kept.at("copied/small"), b"changed").unwrap();
    });
}

fn rustix_truncate(path: &Path) -> Result<(), Errno> {
    raw::truncate(path, 1)
}

#[test]
fn nothing_is_moved_or_linked_from_one_rule_to_another() {
    let Some(mut kept) = ruled() else { return };
    kept.with_base_untouched(|kept| {
        let none = RenameFlags::empty();
        let rename = |from: &str, to: &str, flags| {
            renameat_with(CWD, kept.at(from), CWD, kept.at(to), flags)
        };
        let across = Err(Errno::XDEV);
        assert_eq!(rename("copied/small", "written/new", none), across);
        assert_eq!(rename("written/small", "copied/new", none), across);
        assert_eq!(rename("written/small", "copied/small", none), across);
        assert_eq!(rename("written/small", "copied/small", RenameFlags::EXCHANGE), across);
        assert_eq!(rename("copied/small", "copied/new.log", none), across);
        assert_eq!(rename("copied", "away", none), across, "what is in it would change its rule");
        let link = |from: &str, to: &str| {
            rustix::fs::linkat(CWD, kept.at(from), CWD, kept.at(to), AtFlags::empty())
        };
        assert_eq!(link("copied/small", "written/new"), across);
        assert_eq!(link("written/small", "copied/new"), across);
        // Programs then copy, which works in both ways.
        fs::rename(kept.at("copied/small"), kept.at("copied/renamed")).unwrap();
    });
    fs::copy(kept.at("copied/renamed"), kept.at("written/copy")).unwrap();
    fs::remove_file(kept.at("copied/renamed")).unwrap();
    assert_content(kept.base.join("written/copy"), &pattern(5000));
    kept.remount();
    assert_content(kept.at("written/copy"), &pattern(5000));
    assert_eq!(names(kept.at("copied")), ["a.log", "large"]);
    assert_eq!(names(kept.base.join("copied")), ["a.log", "large", "small"]);
}

#[test]
fn a_name_is_written_by_its_own_rule_whatever_other_name_was_looked_at_last() {
    let Some(kept) = ruled() else { return };
    let (copied, direct) = (kept.at("shared"), kept.at("written/shared"));
    direct.metadata().unwrap();
    copied.metadata().unwrap();
    create(&direct).write_all_at(b"direct", 5000).unwrap();
    copied.metadata().unwrap();
    set_mode(&direct, 0o640);
    assert_eq!(mode(kept.base.join("shared")) & 0o777, 0o640);
}

#[test]
fn names_of_one_file_under_two_rules_are_two_files() {
    let Some(mut kept) = ruled() else { return };
    let (copied, direct) = (kept.at("shared"), kept.at("written/shared"));
    let number = |path: &Path| path.metadata().unwrap().ino();
    assert_ne!(number(&copied), number(&direct));
    let (early_copied, early_direct) =
        (open(&copied, OFlags::RDONLY).unwrap(), open(&direct, OFlags::RDONLY).unwrap());
    let mut in_copy = pattern(9000);
    let mut in_base = pattern(9000);
    create(&copied).write_all_at(b"copied", 100).unwrap();
    in_copy[100..106].copy_from_slice(b"copied");
    create(&direct).write_all_at(b"direct", 5000).unwrap();
    in_base[5000..5006].copy_from_slice(b"direct");
    assert_content(kept.base.join("shared"), &in_base);
    assert_content(&direct, &in_base);
    assert_bytes(&read_at(&early_direct, 0, 9000), &in_base);
    // A page that is not written shows what the base has.
    assert_bytes(&fs::read(&copied).unwrap()[..4096], &in_copy[..4096]);
    assert_bytes(&read_at(&early_copied, 0, 4096), &in_copy[..4096]);
    drop((early_copied, early_direct));
    set_mode(&direct, 0o640);
    assert_eq!((mode(&direct) & 0o777, mode(kept.base.join("shared")) & 0o777), (0o640, 0o640));
    assert_ne!(mode(&copied) & 0o777, 0o640);
    fs::remove_file(&copied).unwrap();
    assert_content(&direct, &in_base);
    assert_eq!(links(kept.base.join("shared")), 2);
    kept.remount();
    assert_content(kept.at("written/shared"), &in_base);
    assert!(!kept.at("shared").exists());
}
