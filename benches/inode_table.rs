//! The inode table, with 100,000 and 1,000,000 files known.
//!
//! It is reached through `Volume`, over empty files in memory. `forget` is the table alone; `find`
//! (a lookup of a known file) and `insert` (of one that is not known) have the system calls that
//! find the file in them, which `bare` makes without a volume. What grows from 100,000 to
//! 1,000,000 beyond what `bare` grows by is the table's.

#![allow(clippy::unwrap_used)] // A bench that cannot go on says where.

mod common;

use std::ffi::OsString;
use std::fs;
use std::time::{Duration, Instant};

use common::{Served, make_file, memory_dir, name, only_trying, scattered};
use criterion::{Criterion, criterion_group, criterion_main};
use mmapfs::tree::{Ino, Inspect, Names};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use tempfile::TempDir;

/// Files that are forgotten and found again in one go, each of the two measured by itself.
const BATCH: usize = 1024;

/// Files in memory, and the order in which they are asked for.
struct Files {
    dir: TempDir,
    names: Vec<OsString>,
}

impl Files {
    fn new(count: usize) -> Files {
        let dir = memory_dir();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let mut names: Vec<OsString> = (0..count).map(name).collect();
        names.iter().for_each(|name| make_file(&sub.join(name)));
        names = scattered(count).map(name).collect();
        Files { dir, names }
    }
}

fn table(c: &mut Criterion) {
    let sizes: [(&str, usize); 2] = if only_trying() {
        [("2k", 2048), ("4k", 4096)]
    } else {
        [("100k", 100_000), ("1M", 1_000_000)]
    };
    for (label, count) in sizes {
        let files = Files::new(count);
        let served = Served::new(files.dir.path(), "access=write");
        let parent = served.find(Ino::ROOT, "sub");
        let lookup = |name: &OsString| served.volume.lookup(parent, name).unwrap().attr.ino;
        let numbers: Vec<Ino> = files.names.iter().map(lookup).collect();
        let look = |name: &OsString| {
            lookup(name);
        };
        // Each file is known now, by one lookup, and is so again after each measurement.
        let mut group = c.benchmark_group(format!("inode_table/{label}"));
        let mut at = 0;
        let mut next = move || {
            at = (at + 1) % count;
            at
        };
        let sub = fs::File::open(files.dir.path().join("sub")).unwrap();
        group.bench_function("bare", |b| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            b.iter(|| {
                let name = &files.names[next()];
                let fd = rustix::fs::openat(&sub, name, flags, Mode::empty()).unwrap();
                rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap()
            });
        });
        group.bench_function("find", |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for at in batches(rounds, count) {
                    let begun = Instant::now();
                    files.names[at.clone()].iter().for_each(look);
                    spent += begun.elapsed();
                    numbers[at].iter().for_each(|ino| served.volume.forget(*ino, 1));
                }
                spent
            });
        });
        group.bench_function("forget", |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for at in batches(rounds, count) {
                    let begun = Instant::now();
                    numbers[at.clone()].iter().for_each(|ino| served.volume.forget(*ino, 1));
                    spent += begun.elapsed();
                    files.names[at].iter().for_each(look);
                }
                spent
            });
        });
        group.bench_function("insert", |b| {
            b.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for at in batches(rounds, count) {
                    numbers[at.clone()].iter().for_each(|ino| served.volume.forget(*ino, 1));
                    let begun = Instant::now();
                    files.names[at].iter().for_each(look);
                    spent += begun.elapsed();
                }
                spent
            });
        });
        group.finish();
        assert_eq!(served.volume.counts().inodes, count as u64 + 2, "the root and the directory");
    }
}

/// As many indices as there are rounds, in batches, all over the files.
fn batches(rounds: u64, count: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let places = count / BATCH;
    let whole = rounds.div_ceil(BATCH as u64);
    (0..whole).map(move |batch| {
        let from = batch as usize * 7 % places * BATCH;
        let left = rounds - batch * BATCH as u64;
        from..from + left.min(BATCH as u64) as usize
    })
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = table
}
criterion_main!(benches);
