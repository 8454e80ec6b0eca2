//! Random operations on a scratch and on a plain copy of its base: results, errnos and trees are
//! the same, also after unmounting and mounting again, and the base stays as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::base;
use super::common::*;
use super::operation::Operation;
use super::world::{Directories, World};

/// How often a failing sequence is tried again, to make it shorter.
const SHRINKS: usize = 300;

/// One step of a sequence.
#[derive(Debug, Clone)]
pub enum Step {
    Call(Operation),
    /// Everything is closed, unmounted, and mounted again.
    Remount,
    /// The daemon is killed, and the scratch mounted again.
    Kill,
    /// The same as a remount with the top layer frozen in between.
    Freeze,
}

/// What went wrong, and after how many steps.
struct Difference {
    steps: usize,
    text: String,
}

/// Where sequences run: mounts of one base, and plain copies of it.
pub struct Stage {
    pub dir: TestDir,
    pub base: PathBuf,
    before: BTreeMap<PathBuf, String>,
    /// Kept on disk, else in memory.
    on_disk: bool,
    options: String,
    runs: std::cell::Cell<usize>,
}

/// A scratch of one run.
pub struct Run {
    pub mounted: Option<MountedFs>,
    pub plain: PathBuf,
    dir: PathBuf,
    base: PathBuf,
    options: String,
    scratch: Option<PathBuf>,
}

impl Stage {
    pub fn new(options: &str, on_disk: bool) -> Stage {
        let options = match rustix::process::geteuid().is_root() {
            true => format!("access=copy,{options},allow_other,suid,dev"),
            false => format!("access=copy,{options}"),
        };
        let dir = TestDir::new();
        let base = dir.directory("base");
        base::make(&base);
        base::copy(&base, &dir.path().join("template"));
        base::set_access_times(&base);
        let before = base::state(&base);
        Stage { dir, base, before, on_disk, options, runs: 0.into() }
    }

    pub fn start(&self) -> Run {
        self.runs.set(self.runs.get() + 1);
        let dir = self.dir.directory(&self.runs.get().to_string());
        for name in ["run", "state"] {
            std::fs::create_dir(dir.join(name)).unwrap();
        }
        let plain = dir.join("plain");
        base::copy(&self.dir.path().join("template"), &plain);
        let scratch = self.on_disk.then(|| dir.join("scratch"));
        let mut run = Run {
            mounted: None,
            plain,
            base: self.base.clone(),
            options: self.options.clone(),
            scratch,
            dir,
        };
        run.mount();
        run
    }

    pub fn assert_untouched(&self) {
        base::assert_untouched(&self.base, &self.before);
    }

    /// Runs a sequence on both, and compares everything there is to compare.
    fn run(&self, steps: &[Step]) -> Option<Difference> {
        let mut run = self.start();
        let mut worlds = run.worlds();
        for (index, step) in steps.iter().enumerate() {
            let text = match step {
                Step::Call(operation) => {
                    let (actual, expected) = (worlds.0.apply(operation), worlds.1.apply(operation));
                    let renumbered = worlds.0.renumbered().unwrap_or_default();
                    match actual == expected {
                        true => renumbered,
                        false => format!("the scratch gives {actual}, the copy {expected}"),
                    }
                }
                Step::Remount | Step::Kill | Step::Freeze => {
                    let text = run.again(&mut worlds, step);
                    worlds = run.worlds();
                    text
                }
            };
            if !text.is_empty() {
                drop(worlds);
                return Some(Difference { steps: index + 1, text });
            }
        }
        let open = worlds.0.compare_open_files(&worlds.1);
        let mut lines: Vec<String> = open.into_iter().collect();
        lines.extend(run.differences());
        drop(worlds);
        drop(run.mounted.take());
        // What a killed daemon left went when it was mounted again.
        if let Some(scratch) = &run.scratch {
            lines.extend(super::tidy::untidy(scratch));
        }
        self.assert_untouched();
        let _ = std::fs::remove_dir_all(&run.dir);
        let text = lines.join("\n");
        (!text.is_empty()).then_some(Difference { steps: steps.len(), text })
    }

    /// Leaves out what the failure does not need, in ever smaller pieces.
    fn shrink(&self, steps: &[Step]) -> Vec<Step> {
        let mut shortest = steps.to_vec();
        let mut piece = shortest.len() / 2;
        let mut left = SHRINKS;
        while piece > 0 && left > 0 {
            let mut start = 0;
            while start < shortest.len() && left > 0 {
                left -= 1;
                let end = (start + piece).min(shortest.len());
                let mut shorter = shortest.clone();
                shorter.drain(start..end);
                match self.run(&shorter) {
                    Some(difference) => {
                        shorter.truncate(difference.steps);
                        shortest = shorter;
                    }
                    None => start = end,
                }
            }
            piece /= 2;
        }
        shortest
    }

    fn check(&self, seed: u64, count: usize) {
        let mut random = Random::new(seed);
        let steps: Vec<Step> = (0..count).map(|_| self.random_step(&mut random)).collect();
        self.check_steps(seed, steps);
    }

    /// The same with so many layers at the end, by freezing the top one between operations.
    fn check_layers(&self, seed: u64, count: usize, layers: usize) {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        for at in 0..count {
            steps.push(self.random_step(&mut random));
            if (at + 1) * layers / count > at * layers / count && at + 1 < count {
                steps.push(Step::Freeze);
            }
        }
        self.check_steps(seed, steps);
    }

    fn check_steps(&self, seed: u64, mut steps: Vec<Step>) {
        let Some(difference) = self.run(&steps) else { return };
        steps.truncate(difference.steps);
        eprintln!("MMAPFS_TEST_SEED={seed} after {} steps: {}", steps.len(), difference.text);
        let shortest = self.shrink(&steps);
        let last = self.run(&shortest);
        let text = last.map_or_else(
            || format!("{} (once; not seen again)", difference.text),
            |difference| difference.text,
        );
        let steps: Vec<String> =
            shortest.iter().enumerate().map(|(at, step)| format!("{at:3} {step:?}")).collect();
        panic!("MMAPFS_TEST_SEED={seed}\n{}\n{text}", steps.join("\n"));
    }

    fn random_step(&self, random: &mut Random) -> Step {
        match random.below(400) {
            0 if self.on_disk => Step::Remount,
            1 => Step::Kill,
            _ => Step::Call(random_call(random)),
        }
    }
}

/// An operation on the base or on what came after it. What the kernel writes itself loses setuid at
/// any write.
pub fn random_call(random: &mut Random) -> Operation {
    let mut operation = Operation::random_on(random, &base::NAMES);
    operation.leave_set_id_out();
    operation
}

impl Run {
    fn mount(&mut self) {
        let mut options = self.options.clone();
        if let Some(scratch) = &self.scratch {
            options += &format!(",scratch={}", scratch.display());
        }
        let (run, state) = (self.dir.join("run"), self.dir.join("state"));
        let places = [("MMAPFS_RUN_DIR", run.as_path()), ("MMAPFS_STATE_DIR", state.as_path())];
        self.mounted = Some(MountedFs::over_with(&self.base, &options, &places));
    }

    /// A directory of this run: `run` or `state`.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory of the scratch, of one that has been made there.
    pub fn scratch(&self) -> &Path {
        self.scratch.as_deref().unwrap()
    }

    pub fn root(&self) -> &Path {
        self.mounted.as_ref().unwrap().path()
    }

    pub fn worlds(&self) -> (World, World) {
        let world = |root: &Path| World::with(root, Directories::Uncounted);
        (world(self.root()), world(&self.plain))
    }

    /// How the scratch differs from the plain copy.
    pub fn differences(&self) -> Vec<String> {
        snapshot(self.root()).differences(&snapshot(&self.plain), Scope::MergedHistory)
    }

    /// Ends the daemon, well or not, and mounts the scratch again. Tells what is different then.
    fn again(&mut self, worlds: &mut (World, World), step: &Step) -> String {
        worlds.0.close_all();
        worlds.1.close_all();
        let before = snapshot(self.root());
        if matches!(step, Step::Kill) {
            self.mounted.as_mut().unwrap().kill();
        }
        if matches!(step, Step::Freeze) {
            drop(self.mounted.take());
            mmapfs::layers::scratch::freeze(self.scratch()).unwrap();
        }
        self.mount_again();
        snapshot(self.root()).differences(&before, Scope::Remounted).join("\n")
    }

    /// Mounts the scratch again after its daemon has ended or is to end.
    pub fn mount_again(&mut self) {
        drop(self.mounted.take());
        if self.scratch.is_none() {
            let left: Vec<_> = std::fs::read_dir(self.dir.join("run/scratches"))
                .expect("a scratch in memory outlives its daemon")
                .map(|entry| entry.unwrap().path())
                .collect();
            assert_eq!(left.len(), 1, "{left:?}");
            self.scratch = left.into_iter().next();
        }
        self.mount();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.mounted.take());
        let Some(scratch) = self.scratch.take() else { return };
        // One in memory that was mounted again is a filesystem of its own.
        let _ = rustix::mount::unmount(&scratch, rustix::mount::UnmountFlags::DETACH);
    }
}

fn random_operations_agree_in_layers(layers: usize, salt: u64) {
    if !require_fuse() {
        return;
    }
    let stage = Stage::new("copy_up=8K", true);
    let (seed, operations) = match std::env::var("MMAPFS_TEST_SEED") {
        Ok(seed) => (seed.parse().expect("a number"), 1000),
        Err(_) => (Random::from_environment().next() ^ salt, if long() { 4000 } else { 1000 }),
    };
    eprintln!("MMAPFS_TEST_SEED={seed}");
    stage.check_layers(seed, operations, layers);
}

#[test]
fn random_operations_agree_in_two_layers_of_a_scratch() {
    random_operations_agree_in_layers(2, 21);
}

#[test]
fn random_operations_agree_in_five_layers_of_a_scratch() {
    random_operations_agree_in_layers(5, 22);
}

#[test]
fn random_operations_agree_in_forty_layers_of_a_scratch() {
    random_operations_agree_in_layers(40, 23);
}

fn random_operations_agree(options: &str, on_disk: bool, salt: u64) {
    if !require_fuse() {
        return;
    }
    let stage = Stage::new(options, on_disk);
    if let Ok(seed) = std::env::var("MMAPFS_TEST_SEED") {
        return stage.check(seed.parse().expect("a number"), 2000);
    }
    let (seeds, operations) = if long() { (50, 2000) } else { (3, 600) };
    let mut random = Random::from_environment();
    for _ in 0..seeds {
        let seed = random.next() ^ salt;
        eprintln!("MMAPFS_TEST_SEED={seed}");
        stage.check(seed, operations);
    }
}

#[test]
fn random_operations_agree_in_a_scratch_on_disk() {
    random_operations_agree("copy_up=0", true, 11);
}

#[test]
fn random_operations_agree_in_a_scratch_on_disk_that_copies_small_files() {
    random_operations_agree("threads=4", true, 12);
}

#[test]
fn random_operations_agree_in_a_scratch_with_a_bound() {
    random_operations_agree("scratch_max=1G,copy_up=8K", true, 15);
}

#[test]
fn random_operations_agree_in_a_scratch_in_memory() {
    random_operations_agree("copy_up=0", false, 13);
}

#[test]
fn random_operations_agree_in_a_scratch_in_memory_that_copies_small_files() {
    random_operations_agree("plane=mapped", false, 14);
}
