//! All that look at one file see the same, whoever came first.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::common::mapped::{Mapped, Private};
use super::common::*;
use super::kept::Kept;

const SIZES: [(&str, usize); 4] =
    [("empty", 0), ("small", 10_000), ("middle", 200_000), ("large", 3_000_000)];

fn fill(base: &Path) {
    for (name, size) in SIZES {
        fs::write(base.join(name), pattern(size)).unwrap();
    }
}

/// A way to look at a file.
enum View {
    Reader(File),
    Shared(Mapped),
    Private(Private),
    ByName,
}

impl View {
    /// What it shows: of mappings the first `len` bytes.
    fn content(&self, path: &Path, len: usize) -> Vec<u8> {
        match self {
            View::Reader(file) => {
                let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
            View::Shared(map) => map.read(0, len.min(map.len())),
            View::Private(map) => map.read(0, len),
            View::ByName => fs::read(path).unwrap(),
        }
    }
}

fn views(path: &Path, len: usize) -> Vec<View> {
    let file = || open(path, OFlags::RDONLY).unwrap();
    let mut views = vec![View::Reader(file()), View::ByName];
    if len > 0 {
        views.push(View::Shared(Mapped::shared_for_reading(&file(), len).unwrap()));
        views.push(View::Private(Private::new(&file(), len).unwrap()));
    }
    views
}

#[track_caller]
fn assert_all_show(views: &[View], path: &Path, expected: &[u8], mapped: usize) {
    for view in views {
        let content = view.content(path, mapped);
        let whole = matches!(view, View::Reader(_) | View::ByName);
        assert_bytes(&content, if whole { expected } else { &expected[..mapped] });
    }
    assert_eq!(size(path), expected.len() as u64);
}

/// Opens views of a file before its first write or after it, writes in all ways, and looks.
fn all_agree(options: &str, early: bool, touched: bool) {
    if !require_fuse() {
        return;
    }
    let kept = Kept::new(options, fill);
    for (name, len) in SIZES {
        let path = kept.at(name);
        let mut expected = pattern(len);
        let mut all = if early { views(&path, len) } else { Vec::new() };
        if touched {
            assert_all_show(&all, &path, &expected, len); // The pages are in every cache.
        }
        let file = create(&path);
        all.extend(views(&path, len));
        let mut write = |offset: usize, bytes: &[u8]| {
            file.write_all_at(bytes, offset as u64).unwrap();
            let end = expected.len().max(offset + bytes.len());
            expected.resize(end, 0);
            expected[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_all_show(&all, &path, &expected, len);
        };
        write(0, b"first");
        write(len / 2, &[7; 5000]);
        write(len, b"behind the end");
        write(len + 100_000, &[9; 10_000]);
        if len > 0 {
            let map = Mapped::shared(&file, len).unwrap();
            map.write(len / 3, b"through a mapping");
            expected[len / 3..][..17].copy_from_slice(b"through a mapping");
            assert_all_show(&all, &path, &expected, len);
            map.sync().unwrap();
            assert_all_show(&all, &path, &expected, len);
        }
        expected.resize(len + 10, 0);
        rustix::fs::ftruncate(&file, len as u64 + 10).unwrap();
        assert_all_show(&all, &path, &expected, len);
        drop(file);
        assert_all_show(&all, &path, &expected, len);
        drop(all);
        assert_all_show(&views(&path, len), &path, &expected, len);
    }
}

#[test]
fn those_who_opened_it_before_the_first_write_see_what_is_written() {
    for options in ["copy_up=0", "copy_up=128K", "copy_up=0,plane=mapped"] {
        all_agree(options, true, false);
    }
}

#[test]
fn those_who_have_read_it_before_the_first_write_see_what_is_written() {
    for options in ["copy_up=0", "copy_up=128K", "copy_up=128K,plane=mapped"] {
        all_agree(options, true, true);
    }
}

#[test]
fn those_who_open_it_after_the_first_write_see_what_is_written() {
    for options in ["copy_up=0", "copy_up=128K"] {
        all_agree(options, false, false);
    }
}

#[test]
fn hard_links_of_the_base_stay_one_file() {
    if !require_fuse() {
        return;
    }
    for options in ["copy_up=0", "copy_up=128K"] {
        let mut kept = Kept::new(options, |base| {
            fs::create_dir(base.join("dir")).unwrap();
            for (name, len) in [("small", 10_000), ("large", 1_000_000)] {
                fs::write(base.join(name), pattern(len)).unwrap();
                fs::hard_link(base.join(name), base.join(format!("dir/{name}"))).unwrap();
                fs::hard_link(base.join(name), base.join(format!("dir/{name}.third"))).unwrap();
            }
        });
        kept.with_base_untouched(|kept| {
            for (name, len) in [("small", 10_000), ("large", 1_000_000)] {
                links_are_one_file(kept, name, len);
            }
        });
    }
}

fn links_are_one_file(kept: &mut Kept, name: &str, len: usize) {
    let (second, third) = (format!("dir/{name}"), format!("dir/{name}.third"));
    let number = inode(kept.base.join(name));
    let check = |kept: &Kept, names: &[&str], expected: &[u8], count: u64| {
        for name in names {
            let meta = kept.at(name).metadata().unwrap();
            assert_eq!((meta.ino(), meta.nlink()), (number, count), "{name}");
            assert_content(kept.at(name), expected);
        }
    };
    let mut expected = pattern(len);
    check(kept, &[name, &second, &third], &expected, 3);
    let early = open(kept.at(&third), OFlags::RDONLY).unwrap();
    let file = create(kept.at(&second));
    file.write_all_at(b"shared by all", 5000).unwrap();
    expected[5000..5013].copy_from_slice(b"shared by all");
    check(kept, &[name, &second, &third], &expected, 3);
    assert_bytes(&read_at(&early, 0, len), &expected);
    fs::remove_file(kept.at(name)).unwrap();
    check(kept, &[&second, &third], &expected, 2);
    fs::hard_link(kept.at(&third), kept.at("fourth")).unwrap();
    check(kept, &["fourth", &second, &third], &expected, 3);
    assert_eq!(early.metadata().unwrap().nlink(), 3);
    fs::rename(kept.at(&second), kept.at("fifth")).unwrap();
    drop((file, early));
    kept.remount();
    check(kept, &["fourth", "fifth", &third], &expected, 3);
    fs::remove_file(kept.at(&third)).unwrap();
    fs::remove_file(kept.at("fifth")).unwrap();
    check(kept, &["fourth"], &expected, 1);
    fs::remove_file(kept.at("fourth")).unwrap();
    let index = fs::read_dir(kept.scratch().join("index")).unwrap().count();
    assert_eq!(index, 0, "the index keeps what is gone");
}
