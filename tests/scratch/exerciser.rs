//! One file that the base has, exercised as fsx does: random calls of all kinds through one
//! descriptor and another, and the content compared with a vector after each.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, copy_file_range, fallocate};
use rustix::io::Errno;

use super::common::mapped::Mapped;
use super::common::*;
use super::kept::Kept;

/// No file grows beyond this, in bytes.
const LARGEST: u64 = 1 << 20;
const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;

/// Sizes of base files: of nothing, around a page, around the size that is copied, and large ones.
const SIZES: [usize; 10] =
    [0, 1, 4095, 4096, 4097, 60_000, 131_072, 131_073, 500_000, LARGEST as usize];

struct Exerciser {
    /// Closed before the unmount.
    file: File,
    kept: Kept,
    name: String,
    model: Vec<u8>,
    random: Random,
}

impl Exerciser {
    fn offset(&mut self) -> u64 {
        let size = self.model.len() as u64;
        let random = &mut self.random;
        let offset = match random.below(6) {
            0 => random.below(size + 1),
            1 => random.below(size + 1) / 4096 * 4096,
            2 => size.saturating_sub(random.below(9000)),
            3 => size + random.below(9000),
            4 => random.below(20_000),
            _ => (random.below(size + 1) / 4096 * 4096).saturating_sub(1),
        };
        offset.min(LARGEST)
    }

    fn len(&mut self) -> usize {
        let random = &mut self.random;
        let len = match random.below(5) {
            0 => 1 + random.below(10),
            1 => 4096,
            2 => 4096 * (1 + random.below(20)),
            3 => 1 + random.below(200_000),
            _ => 1 + random.below(9000),
        };
        len as usize
    }

    /// Where calls inside of the file take place; None in an empty one.
    fn inside(&mut self) -> Option<(usize, usize)> {
        let (size, len) = (self.model.len(), self.len());
        let offset = self.offset() as usize;
        (offset < size).then(|| (offset, len.min(size - offset)))
    }

    fn grow(&mut self, end: usize) {
        let size = self.model.len().max(end);
        self.model.resize(size, 0);
    }

    fn step(&mut self) -> String {
        match self.random.below(26) {
            0..=6 => {
                let (offset, len) = (self.offset() as usize, self.len());
                let data = self.random.bytes(len);
                self.file.write_all_at(&data, offset as u64).unwrap();
                self.grow(offset + len);
                self.model[offset..offset + len].copy_from_slice(&data);
                format!("write {offset}+{len}")
            }
            7..=9 => {
                let Some((offset, len)) = self.inside() else { return "nothing".into() };
                let data = self.random.bytes(len);
                let map = Mapped::shared(&self.file, self.model.len()).unwrap();
                map.write(offset, &data);
                if self.random.once_in(2) {
                    map.sync().unwrap();
                }
                self.model[offset..offset + len].copy_from_slice(&data);
                format!("mapped write {offset}+{len}")
            }
            10 | 11 => {
                let Some((offset, len)) = self.inside() else { return "nothing".into() };
                let map = Mapped::shared_for_reading(&self.file, self.model.len()).unwrap();
                assert_bytes(&map.read(offset, len), &self.model[offset..offset + len]);
                format!("mapped read {offset}+{len}")
            }
            12..=14 => {
                let size = self.offset();
                rustix::fs::ftruncate(&self.file, size).unwrap();
                self.model.resize(size as usize, 0);
                format!("truncate {size}")
            }
            15..=18 => self.allocate(),
            19 | 20 => self.copy(),
            21 => {
                self.file.sync_all().unwrap();
                "sync".into()
            }
            22 => {
                self.check_holes();
                "seek".into()
            }
            23 => {
                self.file = open(self.kept.at(&self.name), OFlags::RDWR).unwrap();
                "reopen".into()
            }
            24 if self.random.once_in(10) => {
                // Nothing may be open at the unmount.
                self.file = File::open("/dev/null").unwrap();
                self.kept.remount();
                self.file = open(self.kept.at(&self.name), OFlags::RDWR).unwrap();
                "remount".into()
            }
            _ => {
                let (offset, len) = (self.offset(), self.len());
                let mut bytes = vec![0; len];
                let count = self.file.read_at(&mut bytes, offset).unwrap();
                let size = self.model.len();
                let (start, end) = ((offset as usize).min(size), (offset as usize + len).min(size));
                assert_bytes(&bytes[..count], &self.model[start..end]);
                format!("read {offset}+{len}")
            }
        }
    }

    fn freeze(&mut self) -> String {
        // Nothing may be open at the unmount.
        self.file = File::open("/dev/null").unwrap();
        self.kept.freeze();
        self.file = open(self.kept.at(&self.name), OFlags::RDWR).unwrap();
        "freeze".into()
    }

    fn allocate(&mut self) -> String {
        let (offset, len) = (self.offset() as usize, self.len());
        let mode = self.random.pick(&[
            FallocateFlags::empty(),
            KEEP,
            FallocateFlags::PUNCH_HOLE | KEEP,
            FallocateFlags::PUNCH_HOLE | KEEP,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | KEEP,
        ]);
        fallocate(&self.file, mode, offset as u64, len as u64).unwrap();
        if !mode.contains(KEEP) {
            self.grow(offset + len);
        }
        if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let size = self.model.len();
            self.model[offset.min(size)..(offset + len).min(size)].fill(0);
        }
        format!("fallocate {offset}+{len} {mode:?}")
    }

    fn copy(&mut self) -> String {
        let (from, to, len) = (self.offset(), self.offset(), self.len());
        let (mut input, mut output) = (from, to);
        let copied =
            copy_file_range(&self.file, Some(&mut input), &self.file, Some(&mut output), len);
        let count = match copied {
            Err(Errno::INVAL) => 0, // It overlaps.
            copied => copied.unwrap(),
        };
        if count > 0 {
            let data = self.model[from as usize..from as usize + count].to_vec();
            self.grow(to as usize + count);
            self.model[to as usize..to as usize + count].copy_from_slice(&data);
        }
        format!("copy {from}+{len} to {to}: {count}")
    }

    /// Holes are zeros, and data and holes follow each other to the end.
    fn check_holes(&self) {
        let size = self.model.len() as u64;
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(err) => {
                    assert_eq!(err, Errno::NXIO);
                    size
                }
            };
            let hole = &self.model[at as usize..data.min(size) as usize];
            assert!(hole.iter().all(|byte| *byte == 0), "data in the hole {at}..{data}");
            if data >= size {
                return;
            }
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).unwrap();
            assert!(at > data && at <= size, "a hole at {at} after data at {data}");
        }
    }

    fn check(&self) {
        assert_eq!(self.file.metadata().unwrap().len(), self.model.len() as u64);
        assert_content(self.kept.at(&self.name), &self.model);
        assert_bytes(&read_at(&self.file, 0, self.model.len()), &self.model);
    }
}

fn exercise(options: &str, seeds: u64, steps: usize) {
    if require_fuse() {
        exercise_within(&std::env::temp_dir(), options, seeds, (steps, 1));
    }
}

/// Exercises a file for each seed, in a scratch that has so many layers at the end.
fn exercise_within(place: &Path, options: &str, seeds: u64, (steps, layers): (usize, usize)) {
    let mut random = Random::from_environment();
    for round in 0..seeds {
        let size = SIZES[round as usize % SIZES.len()];
        let seed = random.next();
        let mut model = Random::new(seed).bytes(size);
        let sparse = random.once_in(3);
        if sparse {
            // A hole in the middle.
            model[size / 3..size / 3 * 2].fill(0);
        }
        let kept = Kept::within(place, options, |base| {
            let file = create(base.join("file"));
            file.set_len(size as u64).unwrap();
            let (hole, data) = if sparse { (size / 3, size / 3 * 2) } else { (size, size) };
            file.write_all_at(&model[..hole], 0).unwrap();
            file.write_all_at(&model[data..], data as u64).unwrap();
        });
        let file = open(kept.at("file"), OFlags::RDWR).unwrap();
        let random = Random::new(seed);
        let name = String::from("file");
        let mut exerciser = Exerciser { file, kept, name, model, random };
        let mut log = Vec::new();
        for step in 0..steps {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let is_border = (step + 1) * layers / steps > step * layers / steps;
                let made = match is_border && step + 1 < steps {
                    true => exerciser.freeze(),
                    false => exerciser.step(),
                };
                if step % 10 == 0 {
                    exerciser.check();
                }
                made
            }));
            match made {
                Ok(made) => log.push(made),
                Err(reason) => {
                    let last = log.len().saturating_sub(30);
                    eprintln!("base of {size} bytes, seed {seed}, step {step}, after:");
                    eprintln!("{}", log[last..].join("\n"));
                    std::panic::resume_unwind(reason);
                }
            }
        }
        exerciser.check();
        let (base, before) = (exerciser.kept.base.join("file"), Random::new(seed).bytes(size));
        if !sparse {
            assert_bytes(&fs::read(base).unwrap(), &before);
        }
    }
}

#[test]
fn a_base_file_is_what_a_plain_file_would_be() {
    let (seeds, steps) = if long() { (50, 3000) } else { (10, 150) };
    exercise("copy_up=0", seeds, steps);
}

#[test]
fn a_base_file_is_what_a_plain_file_would_be_where_small_ones_are_copied() {
    let (seeds, steps) = if long() { (50, 3000) } else { (10, 150) };
    exercise("copy_up=128K", seeds, steps);
}

#[test]
fn a_base_file_is_what_a_plain_file_would_be_where_the_daemon_moves_all_bytes() {
    let (seeds, steps) = if long() { (30, 3000) } else { (10, 100) };
    exercise("copy_up=128K,plane=mapped", seeds, steps);
}

#[test]
fn a_base_file_is_what_a_plain_file_would_be_where_the_filesystem_clones_it() {
    if !(require_fuse() && require_root() && require_program("mkfs.xfs")) {
        return;
    }
    let filesystem = SmallFs::xfs(600 << 20);
    let (seeds, steps) = if long() { (30, 3000) } else { (10, 100) };
    exercise_within(filesystem.path(), "", seeds, (steps, 1));
    exercise_within(filesystem.path(), "plane=mapped", seeds / 2, (steps, 1));
}

#[test]
fn a_base_file_is_what_a_plain_file_would_be_in_layers() {
    if require_fuse() {
        let (seeds, steps) = if long() { (20, 3000) } else { (5, 150) };
        for layers in [2, 5, 40] {
            let seeds = if layers > 5 { seeds / 5 } else { seeds };
            exercise_within(&std::env::temp_dir(), "copy_up=0", seeds, (steps, layers));
        }
    }
}
