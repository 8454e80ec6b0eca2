//! From a name to a file: lookup, attributes, open and release, on a volume over a real tree.
//!
//! `lookup/cached` finds names in a directory that the volume holds open; `lookup/uncached` in
//! one of more directories than it holds, so that each is opened by its handle again. `bare` is
//! what a process pays for the same on the plain directory.

#![allow(clippy::unwrap_used)] // A bench that cannot go on says where.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Served, make_file, name};
use criterion::{Criterion, criterion_group, criterion_main};
use mmapfs::tree::{Attributes, Directories, Ino, Names};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use tempfile::TempDir;

/// More directories than a volume holds open.
const DIRECTORIES: usize = 2000;
/// Files in the directory that is held.
const FILES: usize = 1000;

struct Tree {
    dir: TempDir,
}

impl Tree {
    /// `held/file-N`, and `many/N/file-0`.
    fn new() -> Tree {
        let tree = Tree { dir: TempDir::new().unwrap() };
        for directory in ["held", "many"] {
            fs::create_dir(tree.path(directory)).unwrap();
        }
        for number in 0..FILES {
            make_file(&tree.path("held").join(name(number)));
        }
        for number in 0..DIRECTORIES {
            let directory = tree.path("many").join(number.to_string());
            fs::create_dir(&directory).unwrap();
            make_file(&directory.join("file"));
        }
        let file = tree.path("held/content");
        fs::write(file, vec![7; 64 << 10]).unwrap();
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Gives the numbers below `count` one after the other, again and again.
fn cycle(count: usize) -> impl FnMut() -> usize {
    let mut at = 0;
    move || {
        at = (at + 1) % count;
        at
    }
}

fn lookups(c: &mut Criterion, tree: &Tree, served: &Served) {
    let mut group = c.benchmark_group("lookup");
    let statx = |path: &Path| {
        rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS).unwrap()
    };
    let held = served.find(Ino::ROOT, "held");
    let names: Vec<_> = (0..FILES).map(name).collect();
    let paths: Vec<_> = names.iter().map(|name| tree.path("held").join(name)).collect();
    let mut next = cycle(FILES);
    group.bench_function("bare", |b| b.iter(|| statx(&paths[next()])));
    group.bench_function("cached", |b| {
        b.iter(|| {
            let found = served.volume.lookup(held, &names[next()]).unwrap();
            served.volume.forget(found.attr.ino, 1);
        });
    });
    group.bench_function("missing", |b| {
        b.iter(|| served.volume.lookup(held, "nothing".as_ref()).unwrap_err());
    });
    let many = served.find(Ino::ROOT, "many");
    let directories: Vec<Ino> =
        (0..DIRECTORIES).map(|number| served.find(many, &number.to_string())).collect();
    let mut next = cycle(DIRECTORIES);
    group.bench_function("uncached", |b| {
        b.iter(|| {
            let found = served.volume.lookup(directories[next()], "file".as_ref()).unwrap();
            served.volume.forget(found.attr.ino, 1);
        });
    });
    directories.iter().for_each(|ino| served.volume.forget(*ino, 1));
    group.finish();
}

fn attributes(c: &mut Criterion, tree: &Tree, served: &Served) {
    let mut group = c.benchmark_group("getattr");
    let path = tree.path("held/content");
    group.bench_function("bare", |b| b.iter(|| rustix::fs::lstat(&path).unwrap()));
    let held = served.find(Ino::ROOT, "held");
    let files: Vec<Ino> =
        (0..FILES).map(|number| served.find(held, &name(number).to_string_lossy())).collect();
    let mut next = cycle(FILES);
    group.bench_function("file", |b| b.iter(|| served.volume.attr(files[next()], None).unwrap()));
    group.bench_function("directory", |b| b.iter(|| served.volume.attr(held, None).unwrap()));
    files.iter().for_each(|ino| served.volume.forget(*ino, 1));
    group.finish();
}

fn opens(c: &mut Criterion, tree: &Tree, served: &Served) {
    let mut group = c.benchmark_group("open_release");
    let path = tree.path("held/content");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    group.bench_function("bare", |b| {
        b.iter(|| rustix::fs::open(&path, flags, Mode::empty()).unwrap());
    });
    let held = served.find(Ino::ROOT, "held");
    let file = served.find(held, "content");
    group.bench_function("file", |b| b.iter(|| served.open_and_release(file)));
    let empty = served.find(held, &name(0).to_string_lossy());
    group.bench_function("empty_file", |b| b.iter(|| served.open_and_release(empty)));
    let directory = || {
        let id = served.volume.open_dir(held).unwrap();
        served.volume.release_dir(id).unwrap();
    };
    group.bench_function("directory", |b| b.iter(directory));
    group.finish();
}

fn resolution(c: &mut Criterion) {
    let tree = Tree::new();
    let served = Served::new(tree.dir.path(), "access=write,plane=mapped");
    lookups(c, &tree, &served);
    attributes(c, &tree, &served);
    opens(c, &tree, &served);
}

criterion_group!(benches, resolution);
criterion_main!(benches);
