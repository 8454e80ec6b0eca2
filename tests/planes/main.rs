//! Sequences of steps with one file, on the mount and beside it on a plain directory: whatever is
//! open or mapped on whichever plane, results, errnos and bytes are the same after every step.
//!
//! The usual run takes all pairs and triples of opens, all pairs of steps behind each kind of access,
//! and mappings that outlive their descriptor, in a tmpfs. `MMAPFS_TEST_LONG=1` takes the steps
//! behind every open, and goes through all of it once more where temporary files are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod race;
mod step;
mod world;

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::*;
use rustix::fs::OFlags;
use rustix::io::Errno;
use step::Step;
use world::{Commands, World};

/// A child that is being started has the descriptors of every thread until it executes: a file
/// that was closed would still be open for writing, and so could not be executed.
static STARTS_CHILDREN: Mutex<()> = Mutex::new(());

/// Until the value goes, nobody else starts children, nor executes a file that it has written.
fn start_children_alone() -> MutexGuard<'static, ()> {
    STARTS_CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many sequences that fail are shown.
const SHOWN: usize = 12;

/// Rules that are in force at first, and others that the step `Reload` puts in force.
struct Rules([&'static str; 2]);

const MAPPED: &str = "[[rule]]\nmatch = \"*\"\nplane = \"mapped\"\n";
const PASSTHROUGH: &str = "[[rule]]\nmatch = \"*\"\nplane = \"passthrough\"\n";
/// The first name and the second one are on different planes.
const NEIGHBOURS: &str = "[[rule]]\nmatch = \"f*\"\nplane = \"passthrough\"\n\
                          [[rule]]\nmatch = \"o*\"\nplane = \"mapped\"\n";
const EXCHANGED: &str = "[[rule]]\nmatch = \"f*\"\nplane = \"mapped\"\n\
                         [[rule]]\nmatch = \"o*\"\nplane = \"passthrough\"\n";

/// A mount with rules, and beside it a plain directory of the same filesystem.
struct Stage {
    mounted: MountedFs,
    plain: PathBuf,
    rules: PathBuf,
    texts: [&'static str; 2],
    /// Which of the rules are in force.
    in_force: Rc<Cell<usize>>,
    runs: Cell<usize>,
    _dir: TestDir,
    _tmpfs: Option<SmallFs>,
}

impl Stage {
    /// In a tmpfs, which takes the many truncations fastest, or where temporary files are.
    fn new(options: &str, rules: &Rules, on_tmpfs: bool) -> Stage {
        let _alone = start_children_alone();
        let tmpfs = on_tmpfs.then(|| SmallFs::tmpfs(64 << 20));
        let dir = TestDir::new();
        let root = tmpfs.as_ref().map_or(dir.path(), |tmpfs| tmpfs.path());
        let (source, plain) = (root.join("source"), root.join("plain"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&plain).unwrap();
        let path = dir.path().join("rules.toml");
        fs::write(&path, rules.0[0]).unwrap();
        let options = format!("access=write,suid,{options},rules={}", path.display());
        Stage {
            mounted: MountedFs::over(&source, &options),
            plain,
            rules: path,
            texts: rules.0,
            in_force: Rc::new(Cell::new(0)),
            runs: Cell::new(0),
            _dir: dir,
            _tmpfs: tmpfs,
        }
    }

    /// Runs a sequence on both; tells what differs first, and after which step.
    fn run(&self, steps: &[Step]) -> Option<String> {
        let _alone = steps.contains(&Step::Execute).then(start_children_alone);
        self.runs.set(self.runs.get() + 1);
        let (file, other) = (format!("f{}", self.runs.get()), format!("o{}", self.runs.get()));
        if self.in_force.get() != 0 {
            self.reload()("reload");
        }
        let (mount, plain) = (self.mounted.path(), &*self.plain);
        for dir in [self.mounted.backing(), plain] {
            world::plant(&dir.join(&file));
        }
        let control = self.control(&file);
        let mut left = World::new(mount.join(&file), mount.join(&other), Some(control));
        let mut right = World::new(plain.join(&file), plain.join(&other), None);
        let mut difference = None;
        for (number, &step) in steps.iter().enumerate() {
            let results = (left.apply(step, number), right.apply(step, number));
            let results_agree = results.0 == results.1
                || step == Step::Execute
                    && results.1 == Err(Errno::TXTBSY)
                    && left.is_written_through_mappings_only();
            if !results_agree {
                let text = format!("mount {:?}, plain {:?}", results.0, results.1);
                difference = Some((number, text));
                break;
            }
            let size = left.size().min(right.size());
            let seen = (left.observe(size), right.observe(size));
            if !seen.0.agrees_with(&seen.1) {
                let text = format!("\n  mount {:?}\n  plain {:?}", seen.0, seen.1);
                difference = Some((number, text));
                break;
            }
        }
        drop((left, right));
        for path in [mount, plain].iter().flat_map(|dir| [dir.join(&file), dir.join(&other)]) {
            // One of the names, or both, are gone.
            let _ = fs::remove_file(path);
        }
        difference.map(|(number, text)| format!("{steps:?}: step {number}: {text}"))
    }

    fn control(&self, name: &str) -> Commands {
        let (commands, reload) =
            (world::commands(self.mounted.path().to_owned(), name.to_owned()), self.reload());
        Box::new(move |words| if words == "reload" { reload(words) } else { commands(words) })
    }

    /// Puts the other rules in force.
    fn reload(&self) -> Commands {
        let (path, texts, in_force) = (self.rules.clone(), self.texts, Rc::clone(&self.in_force));
        let root = self.mounted.path().to_owned();
        Box::new(move |_| {
            let next = 1 - in_force.get();
            fs::write(&path, texts[next]).unwrap();
            ask(&root, "reload").text();
            in_force.set(next);
        })
    }

    /// Runs all sequences and fails with those that differ.
    #[track_caller]
    fn check(&mut self, sequences: &[Vec<Step>]) {
        let start = std::time::Instant::now();
        let differences: Vec<String> =
            sequences.iter().filter_map(|steps| self.run(steps)).collect();
        self.mounted.assert_alive();
        eprintln!("{} sequences in {:?}", sequences.len(), start.elapsed());
        if !differences.is_empty() {
            let shown = differences[..differences.len().min(SHOWN)].join("\n");
            panic!("{} of {} sequences differ:\n{shown}", differences.len(), sequences.len());
        }
    }
}

/// Sequences that are run on a mount with these options and rules.
fn agree(options: &str, rules: [&'static str; 2], sequences: impl Fn() -> Vec<Vec<Step>>) {
    if !(require_fuse() && require_root()) {
        return;
    }
    let sequences = sequences();
    Stage::new(options, &Rules(rules), true).check(&sequences);
    if long() {
        Stage::new(options, &Rules(rules), false).check(&sequences);
    }
}

/// All triples of opens, and so all pairs: every triple begins with one. What rules say of other
/// names does not matter to them.
fn opens() -> Vec<Vec<Step>> {
    let opens = step::opens();
    step::product([&opens, &opens, &opens])
}

/// All pairs of steps behind each kind of access, and in the long run behind every open.
fn steps() -> Vec<Vec<Step>> {
    let (all, opens) = (step::all(), step::opens());
    let first = if long() { &opens[..] } else { &opens[..3] };
    step::product([first, &all, &all])
}

/// A mapping that outlives its descriptor, anything, another open, and a change.
fn mappings() -> Vec<Vec<Step>> {
    let (all, opens) = (step::all(), step::opens());
    let opens = if long() { &opens[..] } else { &opens[..3] };
    let kept = [Step::MapShared, Step::MapSharedAndClose, Step::MapPrivateAndClose];
    let changes = [Step::Store, Step::Write, Step::Cut];
    step::product([&[Step::Open(OFlags::RDWR)], &kept, &all, opens, &changes])
}

macro_rules! planes {
    ($($name:ident: $options:expr, $rules:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn any_three_opens_agree_with_a_plain_directory() {
                if $rules[0] != NEIGHBOURS || long() {
                    agree($options, $rules, opens);
                }
            }

            #[test]
            fn any_two_steps_behind_an_open_agree_with_a_plain_directory() {
                agree($options, $rules, steps);
            }

            #[test]
            fn a_mapping_that_outlives_its_descriptor_agrees_with_a_plain_directory() {
                agree($options, $rules, mappings);
            }
        }
    )*};
}

planes! {
    auto: "plane=auto", ["", MAPPED];
    mapped: "plane=mapped", [MAPPED, PASSTHROUGH];
    passthrough: "plane=passthrough", [PASSTHROUGH, MAPPED];
    neighbours: "plane=auto", [NEIGHBOURS, EXCHANGED];
}
