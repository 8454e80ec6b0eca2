//! Range arithmetic: what every advice and flush begins with.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mmapfs::range::{ByteRange, RangeSpec};

fn arithmetic(c: &mut Criterion) {
    let mut group = c.benchmark_group("range");
    let range = ByteRange { start: 5_000, end: 70_000_001 };
    group.bench_function("outward", |b| b.iter(|| black_box(range).outward(black_box(4096))));
    group.bench_function("inward", |b| b.iter(|| black_box(range).inward(black_box(4096))));
    group.bench_function("pages", |b| b.iter(|| black_box(range).pages(black_box(4096))));
    group.bench_function("clamp_to", |b| b.iter(|| black_box(range).clamp_to(black_box(80_000))));
    let other = ByteRange { start: 4096, end: 1 << 20 };
    group.bench_function("intersect", |b| b.iter(|| black_box(range).intersect(black_box(other))));
    let spec = RangeSpec::Length { start: 4096, len: 1 << 20 };
    group.bench_function("resolve", |b| b.iter(|| black_box(spec).resolve(black_box(1 << 30))));
    group.bench_function("parse", |b| b.iter(|| black_box("64K-16M").parse::<RangeSpec>()));
    group.finish();
}

criterion_group!(benches, arithmetic);
criterion_main!(benches);
