//! A writer that is killed at any moment: what it was told is written is there, and each page is
//! the old one or the new one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::common::{Random, TestDir, long};
use super::stack::{Stack, caller};

/// Where the child finds its files; only the child has it.
const PLACE: &str = "MMAPFS_TEST_KILLED_PLACE";
const SEED: &str = "MMAPFS_TEST_KILLED_SEED";
const PAGES: u64 = 64;

/// What the writer does in its nth step: where, how much, and with which byte.
fn write_of(random: &mut Random, step: u64) -> (u64, usize, u8) {
    let offset = random.below(PAGES * 4096 + 8000);
    let len = random.pick(&[1, 10, 3000, 4096, 9000, 70_000]);
    (offset, len, 1 + (step % 250) as u8)
}

fn apply(model: &mut Vec<u8>, (offset, len, byte): (u64, usize, u8)) {
    let end = offset as usize + len;
    if model.len() < end {
        model.resize(end, 0);
    }
    model[offset as usize..end].fill(byte);
}

fn content() -> Vec<u8> {
    vec![255; PAGES as usize * 4096 - 1000]
}

#[test]
fn the_writer_of_the_test_below() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let mut random = Random::new(seed);
    let stack = Stack::found(Path::new(&place));
    println!();
    for step in 0.. {
        let (offset, len, byte) = write_of(&mut random, step);
        assert_eq!(stack.top().write(offset, &vec![byte; len], &caller()), Ok(len));
        println!("written {step}");
    }
}

#[test]
fn what_was_written_outlives_the_writer() {
    let mut random = Random::from_environment();
    for _ in 0..if long() { 200 } else { 15 } {
        let dir = TestDir::new();
        drop(Stack::new(dir.path(), &content()));
        let seed = random.next();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::the_writer_of_the_test_below", "--nocapture"])
            .env(PLACE, dir.path())
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = random.below(40);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = |line: &str| line.strip_prefix("written ").map(|step| step.parse().unwrap());
        let mut last: Option<u64> = None;
        while last.is_none_or(|step| step < wanted) {
            last = told(&lines.next().unwrap().unwrap()).or(last);
        }
        for _ in 0..random.below(20_000) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it told before it died counts as well; the last line may be half of one.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let whole = &rest[..rest.len().saturating_sub(1)];
        let last = whole.iter().filter_map(|line| told(line)).next_back().or(last).unwrap();

        let mut steps = Random::new(seed);
        let mut old = content();
        (0..=last).for_each(|step| apply(&mut old, write_of(&mut steps, step)));
        // The line that was cut off, and what was under way.
        let mut versions = vec![old];
        for step in last + 1..last + 3 {
            let mut next = versions.last().unwrap().clone();
            apply(&mut next, write_of(&mut steps, step));
            versions.push(next);
        }
        let content = Stack::found(dir.path()).content();
        let sizes: Vec<usize> = versions.iter().map(Vec::len).collect();
        assert!(content.len() >= sizes[0] && content.len() <= sizes[2], "seed {seed}");
        for (page, is) in content.chunks(4096).enumerate() {
            let range = page * 4096..page * 4096 + is.len();
            let known = versions.iter().any(|version| {
                let mut should = version.get(range.start..).unwrap_or_default().to_vec();
                should.resize(should.len().max(is.len()), 0);
                *is == should[..is.len()]
            });
            assert!(known, "seed {seed}, page {page} after step {last}");
        }
    }
}
