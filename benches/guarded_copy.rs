//! The copy that survives a page that is gone, against one that does not.
//!
//! The mapping is of a file in memory with all its pages in place. `copy_from_slice` moves the
//! same number of bytes between ordinary memory. Write requests come at any alignment: `odd` is
//! 8 bytes off.

#![allow(clippy::unwrap_used)] // A bench that cannot go on says where.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mmapfs::sys::guard;
use mmapfs::sys::region::Region;
use rustix::fs::MemfdFlags;

const SIZES: [(&str, usize); 3] = [("4K", 4 << 10), ("128K", 128 << 10), ("1M", 1 << 20)];
/// Bytes between a page border and what is copied from or to.
const ODD: usize = 8;
const LARGEST: usize = (1 << 20) + 4096;

fn mapped() -> Region {
    let file = rustix::fs::memfd_create("bench", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, LARGEST as u64).unwrap();
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    Region::map(file, LARGEST, prot, libc::MAP_SHARED | libc::MAP_POPULATE).unwrap()
}

fn copies(c: &mut Criterion) {
    guard::install().unwrap();
    let region = mapped();
    let (from, mut to) = (vec![7_u8; LARGEST], vec![1_u8; LARGEST]);
    let mut group = c.benchmark_group("guarded_copy");
    for (name, len) in SIZES {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("copy_from_slice", name), |b| {
            b.iter(|| black_box(&mut to[..len]).copy_from_slice(black_box(&from[..len])));
        });
        group.bench_function(BenchmarkId::new("copy_from_slice_odd", name), |b| {
            b.iter(|| black_box(&mut to[..len]).copy_from_slice(black_box(&from[ODD..ODD + len])));
        });
        group.bench_function(BenchmarkId::new("copy_in", name), |b| {
            b.iter(|| assert_eq!(guard::copy_in(&region, 0, black_box(&from[..len])), len));
        });
        group.bench_function(BenchmarkId::new("copy_in_odd", name), |b| {
            let odd = &from[ODD..ODD + len];
            b.iter(|| assert_eq!(guard::copy_in(&region, 0, black_box(odd)), len));
        });
        group.bench_function(BenchmarkId::new("copy_out", name), |b| {
            b.iter(|| assert_eq!(guard::copy_out(&region, 0, black_box(&mut to[..len])), len));
        });
    }
    group.finish();
}

criterion_group!(benches, copies);
criterion_main!(benches);
