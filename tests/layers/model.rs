//! Random operations on a stack of layers, and on a vector of bytes.

use std::fs;

use mmapfs::tree::SeekTo;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::common::{Random, TestDir, long};
use super::stack::{Stack, caller};

/// No file grows beyond this, in bytes.
const LARGEST: u64 = (1 << 20) + 100_000;

struct World {
    stack: Stack,
    model: Vec<u8>,
    random: Random,
}

impl World {
    /// An offset: anywhere, at a border of pages, near the end or behind it.
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

    fn len(&mut self) -> u64 {
        let random = &mut self.random;
        match random.below(6) {
            0 => 1 + random.below(10),
            1 => 4096,
            2 => 4096 * (1 + random.below(5)),
            3 => 1 + random.below(200_000),
            _ => 1 + random.below(9000),
        }
    }

    fn grow_model(&mut self, end: u64) {
        if self.model.len() < end as usize {
            self.model.resize(end as usize, 0);
        }
    }

    fn step(&mut self) -> String {
        let top = self.stack.top().clone();
        match self.random.below(24) {
            0..=8 => {
                let (offset, len) = (self.offset(), self.len());
                let data = self.random.bytes(len as usize);
                assert_eq!(top.write(offset, &data, &caller()), Ok(data.len()));
                self.grow_model(offset + len);
                self.model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                format!("write {offset}+{len}")
            }
            9 => {
                let len = self.random.below(5000).min(LARGEST - self.model.len() as u64 / 2);
                let data = self.random.bytes(len as usize);
                let end = self.model.len() as u64;
                assert_eq!(top.append(&data, &caller()), Ok((end, data.len())));
                self.model.extend_from_slice(&data);
                format!("append {len}")
            }
            10..=12 => {
                let size = self.offset();
                top.truncate(size, &caller()).unwrap();
                self.model.resize(size as usize, 0);
                format!("truncate {size}")
            }
            13..=17 => self.allocate(),
            18 if self.random.once_in(4) => {
                top.materialize().unwrap();
                assert!(top.is_complete());
                let upper = fs::read(rustix_path(&top)).unwrap();
                assert!(upper == self.model, "the upper file alone");
                "materialize".into()
            }
            19 => {
                self.check_holes();
                "seek".into()
            }
            20 => {
                top.sync(self.random.once_in(2)).unwrap();
                "sync".into()
            }
            21 | 22 => {
                drop(top);
                self.stack.reopen();
                "reopen".into()
            }
            _ => {
                let (offset, len) = (self.offset(), self.len());
                let size = self.model.len() as u64;
                let expected =
                    &self.model[offset.min(size) as usize..(offset + len).min(size) as usize];
                let same = top.read_with(offset, len as usize, |bytes| bytes == expected);
                assert_eq!(same, Ok(true), "read {offset}+{len}");
                format!("read {offset}+{len}")
            }
        }
    }

    fn allocate(&mut self) -> String {
        const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
        let (offset, len) = (self.offset(), self.len());
        let mode = self.random.pick(&[
            FallocateFlags::empty(),
            KEEP,
            FallocateFlags::PUNCH_HOLE | KEEP,
            FallocateFlags::PUNCH_HOLE | KEEP,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | KEEP,
            FallocateFlags::UNSHARE_RANGE,
        ]);
        self.stack.top().allocate(offset, len, mode, &caller()).unwrap();
        if !mode.contains(KEEP) {
            self.grow_model(offset + len);
        }
        if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let size = self.model.len();
            let (start, end) = (offset as usize, (offset + len) as usize);
            self.model[start.min(size)..end.min(size)].fill(0);
        }
        format!("fallocate {offset}+{len} {mode:?}")
    }

    /// Holes are zeros, and data and holes follow each other to the end.
    fn check_holes(&self) {
        let top = self.stack.top();
        let size = self.model.len() as u64;
        let mut at = 0;
        while at < size {
            let data = match top.seek(at, SeekTo::Data) {
                Err(Errno::NXIO) => size,
                data => data.unwrap(),
            };
            assert!(data >= at);
            let zeros = self.model[at as usize..data as usize].iter().all(|byte| *byte == 0);
            assert!(zeros, "a hole at {at}-{data} has data");
            if data == size {
                break;
            }
            at = top.seek(data, SeekTo::Hole).unwrap();
            assert!(at > data && at <= size, "data at {data} ends at {at} of {size}");
        }
        assert_eq!(top.seek(size, SeekTo::Hole), Err(Errno::NXIO));
        assert_eq!(top.seek(size + 1, SeekTo::Data), Err(Errno::NXIO));
    }

    fn check_all(&self) {
        let top = self.stack.top();
        assert_eq!(top.size(), Ok(self.model.len() as u64));
        let content = self.stack.content();
        let wrong = content.iter().zip(&self.model).position(|(is, should)| is != should);
        assert_eq!((wrong, content.len()), (None, self.model.len()), "first wrong byte, size");
        let (own, pages) = top.own_pages();
        assert!(own <= pages && top.is_complete() == (own == pages));
        assert!(top.blocks().is_ok() && top.stored().is_ok());
    }
}

fn rustix_path(top: &mmapfs::layers::merged::Merged) -> std::path::PathBuf {
    use std::os::fd::AsFd;
    mmapfs::sys::fd_path(top.upper().as_fd())
}

/// Bytes of a base; some have holes.
fn base_content(random: &mut Random) -> Vec<u8> {
    let size = random.pick(&[0, 1, 4095, 4096, 4097, 40_000, (1 << 20) + 3, 1 << 20]);
    let mut content = random.bytes(size);
    if random.once_in(2) {
        for page in content.chunks_mut(4096 * 7) {
            if random.once_in(2) {
                page.fill(0);
            }
        }
    }
    content
}

fn run(seed: u64, deepest: u64, steps: u64) {
    let dir = TestDir::new();
    let mut random = Random::new(seed);
    let model = base_content(&mut random);
    let stack = Stack::new(dir.path(), &model);
    let base = model.clone();
    let mut world = World { stack, model, random };
    let depth = 1 + world.random.below(deepest);
    let mut done = Vec::new();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.check_all();
        for layer in 1..=depth {
            for _ in 0..steps / depth {
                done.push(world.step());
                world.check_all();
            }
            if layer < depth {
                done.push("new layer".into());
                world.stack.add_layer();
                world.check_all();
            }
        }
        world.check_holes();
        assert!(fs::read(world.stack.base_path()).unwrap() == base, "the base is as it was");
    }));
    if let Err(panic) = result {
        eprintln!("seed {seed}, base of {} bytes, {depth} layers:", base.len());
        done.iter().rev().take(25).rev().for_each(|step| eprintln!("  {step}"));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_stack_of_layers_shows_what_one_file_would() {
    let mut random = Random::from_environment();
    let (runs, steps) = if long() { (600, 400) } else { (25, 150) };
    for _ in 0..runs {
        run(random.next(), 4, steps);
    }
}
