//! Opens and closes of the same few files by many threads, while rules change which plane their
//! first open takes: whatever meets whatever, no call fails that cannot fail on a plain directory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::common::mapped::Mapped;
use crate::common::*;
use crate::{EXCHANGED, NEIGHBOURS};

/// The names; those of one plane and of the other.
const NAMES: [&str; 4] = ["f1", "f2", "o1", "o2"];
const LEN: usize = 8192;

/// Uses a file that others use, replace and remove at the same time.
fn use_a_file(dir: &Path, random: &mut Random) -> Result<(), Errno> {
    let access = random.pick(&[OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR]);
    let more = random.pick(&[
        OFlags::CREATE,
        OFlags::CREATE,
        OFlags::CREATE | OFlags::APPEND,
        OFlags::CREATE | OFlags::NONBLOCK,
        OFlags::CREATE | OFlags::EXCL,
        OFlags::empty(),
    ]);
    let path = dir.join(random.pick(&NAMES));
    let file = open(&path, access | more)?;
    match random.below(6) {
        0 => errno(fs::remove_file(&path))?,
        1 => errno(fs::rename(&path, dir.join(random.pick(&NAMES))))?,
        2 => errno(fs::hard_link(&path, dir.join(random.pick(&NAMES))))?,
        3 => {
            // The file never gets shorter, so nothing behind its end is touched. While somebody
            // writes, stat(2) tells the size that FUSE will have: what was read is there.
            let map = errno(Mapped::shared_for_reading(&file, LEN))?;
            let there = errno(file.read_at(&mut [0; LEN], 0))?;
            map.read(0, there);
        }
        _ if access == OFlags::RDONLY => drop(errno(file.read_at(&mut [0; 100], 10))?),
        _ => drop(errno(file.write_at(&[7; 100], random.below(LEN as u64 - 100)))?),
    }
    Ok(())
}

/// What a plain directory gives too: names that are there or not, and descriptors and mappings
/// that were not opened for what they are used for.
const FAIR: [Errno; 4] = [Errno::NOENT, Errno::EXIST, Errno::BADF, Errno::ACCESS];

#[test]
fn many_threads_on_few_files_never_get_an_error_of_their_planes() {
    if !(require_fuse() && require_root()) {
        return;
    }
    let rounds = if long() { 50_000 } else { 3000 };
    let dir = TestDir::new();
    let rules = dir.path().join("rules.toml");
    fs::write(&rules, NEIGHBOURS).unwrap();
    let small = SmallFs::tmpfs(64 << 20);
    let options = format!("access=write,suid,rules={}", rules.display());
    let mut mounted = MountedFs::over(small.path(), &options);
    let root = mounted.path();
    let mut seeds = Random::from_environment();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            let mut texts = [EXCHANGED, NEIGHBOURS].into_iter().cycle();
            while !ended.load(Ordering::Relaxed) {
                fs::write(&rules, texts.next().unwrap()).unwrap();
                ask(root, "reload").text();
            }
        });
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let mut random = Random::new(seeds.next());
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    for _ in 0..rounds {
                        match use_a_file(root, &mut random) {
                            Err(err) if !FAIR.contains(&err) => wrong.push(err),
                            _ => {}
                        }
                    }
                    wrong
                })
            })
            .collect();
        let wrong: Vec<Errno> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        ended.store(true, Ordering::Relaxed);
        reloads.join().unwrap();
        assert!(wrong.is_empty(), "{} calls failed, among them {:?}", wrong.len(), wrong[0]);
    });
    mounted.assert_alive();
}
