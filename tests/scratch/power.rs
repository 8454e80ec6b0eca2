//! The machine stops: what the disk has at a moment is mounted again, without all that was in memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use rustix::mount::{UnmountFlags, unmount};

use super::common::*;

const PAGE: usize = 4096;
const SIZE: usize = 256 * PAGE;

/// A filesystem in an image, unmounted at the end.
struct Image {
    dir: TestDir,
    kind: &'static str,
}

impl Image {
    fn new(kind: &'static str) -> Image {
        let image = Image { dir: TestDir::new(), kind };
        File::create(image.file()).unwrap().set_len(400 << 20).unwrap();
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(image.file()));
        image.mount()
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("image")
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("point")
    }

    fn mount(self) -> Image {
        self.dir.directory("point");
        let options = if self.kind == "xfs" { "loop,nouuid" } else { "loop" };
        run(Command::new("mount").args(["-o", options]).arg(self.file()).arg(self.path()));
        self
    }

    /// What is on the disk at this moment.
    fn after_a_cut(&self) -> Image {
        let image = Image { dir: TestDir::new(), kind: self.kind };
        run(Command::new("cp").arg("--sparse=always").arg(self.file()).arg(image.file()));
        image.mount()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(err) = unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("{}: cannot unmount: {err}", self.path().display());
        }
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mounted(base: &Path, image: &Image) -> MountedFs {
    let scratch = image.path().join("scratch");
    MountedFs::over(base, &format!("access=copy,copy_up=0,scratch={}", scratch.display()))
}

fn page_of(path: &Path, page: usize) -> Vec<u8> {
    read_at(&File::open(path).unwrap(), (page * PAGE) as u64, PAGE)
}

fn writer(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

fn punch(file: &File, page: usize) {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, (page * PAGE) as u64, PAGE as u64).unwrap();
}

#[test]
fn what_was_synchronised_is_there_and_nothing_else_turns_to_zeros() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for kind in ["ext4", "xfs"] {
        if require_program(&format!("mkfs.{kind}")) {
            cut_power_on(kind, Stop::OfMachine);
        }
    }
}

#[test]
fn a_disk_that_is_lost_while_the_machine_goes_on_is_put_in_order_as_after_a_power_cut() {
    if !(require_fuse() && require_root()) {
        return;
    }
    for kind in ["ext4", "xfs"] {
        if require_program(&format!("mkfs.{kind}")) {
            cut_power_on(kind, Stop::OfDisk);
        }
    }
}

/// What stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    OfMachine,
    /// The machine goes on, and so does the daemon that has lost its disk.
    OfDisk,
}

fn cut_power_on(kind: &'static str, stop: Stop) {
    eprintln!("-- {kind}, {stop:?}");
    let place = TestDir::new();
    let base = place.directory("base");
    fs::create_dir_all(base.join("a/b/c")).unwrap();
    let content = pattern(SIZE);
    for name in ["big", "synced", "one", "a/b/c/deep", "cut", "only-opened"] {
        fs::write(base.join(name), &content).unwrap();
    }
    fs::hard_link(base.join("one"), base.join("two")).unwrap();

    let image = Image::new(kind);
    let scratch = image.path().join("scratch");
    let first = mounted(&base, &image);
    let at = |name: &str| first.path().join(name);
    let (new, newer) = ([7; PAGE], [9; PAGE]);

    let big = writer(&at("big"));
    big.write_all_at(&newer, 10 * PAGE as u64).unwrap();
    big.write_all_at(&newer[..100], 12 * PAGE as u64).unwrap();
    punch(&big, 20);
    let cut = writer(&at("cut"));
    cut.set_len(5 * PAGE as u64).unwrap();
    set_mode(at("only-opened"), 0o600);
    // The bits reach the disk, and the data does not.
    for name in names(scratch.join("pages")) {
        File::open(scratch.join("pages").join(name)).unwrap().sync_all().unwrap();
    }
    let synced = writer(&at("synced"));
    synced.write_all_at(&new, 3 * PAGE as u64).unwrap();
    synced.write_all_at(&new, 4 * PAGE as u64).unwrap();
    punch(&synced, 5);
    synced.sync_all().unwrap();
    synced.write_all_at(&newer, 4 * PAGE as u64).unwrap();
    synced.write_all_at(&newer, 7 * PAGE as u64).unwrap();
    punch(&synced, 3);
    for name in ["one", "a/b/c/deep"] {
        let file = writer(&at(name));
        file.write_all_at(&new, 0).unwrap();
        file.sync_data().unwrap();
    }

    let after = image.after_a_cut();
    drop((big, cut, synced));
    let scratch = after.path().join("scratch");
    let upper = File::open(scratch.join("upper/big")).unwrap();
    let data = rustix::fs::seek(&upper, SeekFrom::Data(10 * PAGE as u64));
    eprintln!("data of the page that was not synchronised: {data:?}");
    let state = fs::read_to_string(scratch.join("state.json")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(state.contains(boot.trim()));
    if stop == Stop::OfMachine {
        let mut state: serde_json::Value = serde_json::from_str(&state).unwrap();
        state["boot"] = "before".into();
        // A state of before has none, and is believed.
        state.as_object_mut().unwrap().remove("checksum").unwrap();
        fs::write(scratch.join("state.json"), state.to_string()).unwrap();
    }

    let second = mounted(&base, &after);
    let at = |name: &str| second.path().join(name);
    let below = |page: usize| content[page * PAGE..(page + 1) * PAGE].to_vec();
    #[track_caller]
    fn one_of(found: &[u8], allowed: &[&[u8]]) {
        let head = found.get(..8);
        assert!(allowed.contains(&found), "neither old nor new, it begins with {head:?}");
    }
    let zeros = [0; PAGE];
    one_of(&page_of(&at("big"), 10), &[&below(10), &newer]);
    let mut partly = below(12);
    partly[..100].fill(9);
    one_of(&page_of(&at("big"), 12), &[&below(12), &partly]);
    one_of(&page_of(&at("big"), 20), &[&below(20), &zeros]);
    one_of(&page_of(&at("big"), 11), &[&below(11)]);
    one_of(&page_of(&at("synced"), 3), &[&new, &zeros]);
    one_of(&page_of(&at("synced"), 4), &[&new, &newer]);
    one_of(&page_of(&at("synced"), 5), &[&zeros]);
    one_of(&page_of(&at("synced"), 7), &[&below(7), &newer]);
    for name in ["one", "two", "a/b/c/deep"] {
        let mut expected = content.clone();
        expected[..PAGE].fill(7);
        assert_content(at(name), &expected);
    }
    let left = fs::read(at("cut")).unwrap();
    one_of(&left, &[&content, &content[..5 * PAGE]]);
    assert_content(at("only-opened"), &content);
    for name in ["big", "synced", "cut", "only-opened"] {
        writer(&at(name)).write_all_at(&new, 100 * PAGE as u64).unwrap();
        assert_bytes(&page_of(&at(name), 100), &new);
    }
}
