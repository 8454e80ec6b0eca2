//! A scratch that is kept in a directory of the test's own, and its base.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::base;
use super::common::*;

/// A base, a scratch of it on disk or in memory, and its mount.
pub struct Kept {
    pub dir: TestDir,
    pub base: PathBuf,
    place: PathBuf,
    also: Option<TestDir>,
    mounted: Option<MountedFs>,
    options: String,
}

impl Kept {
    /// Fills a base and mounts a scratch of it, which is in the directory `scratch`.
    pub fn new(options: &str, fill: impl FnOnce(&Path)) -> Kept {
        let dir = TestDir::new();
        let scratch = dir.path().join("scratch");
        Kept::start(dir, scratch, options, fill)
    }

    /// The same with base and scratch below this directory.
    pub fn within(place: &Path, options: &str, fill: impl FnOnce(&Path)) -> Kept {
        let dir = TestDir::within(place);
        let scratch = dir.path().join("scratch");
        Kept::start(dir, scratch, options, fill)
    }

    /// The same with the scratch in this directory.
    pub fn in_place(scratch: &Path, options: &str, fill: impl FnOnce(&Path)) -> Kept {
        Kept::start(TestDir::new(), scratch.to_owned(), options, fill)
    }

    /// The same with a scratch in memory.
    pub fn in_memory(options: &str, fill: impl FnOnce(&Path)) -> Kept {
        Kept::start(TestDir::new(), PathBuf::new(), options, fill)
    }

    fn start(dir: TestDir, place: PathBuf, options: &str, fill: impl FnOnce(&Path)) -> Kept {
        let kept_in = match place.as_os_str().is_empty() {
            true => String::new(),
            false => format!("scratch={},", place.display()),
        };
        let options = format!("access=copy,{kept_in}{options}");
        let base = dir.directory("base");
        open_to_all(&base);
        fill(&base);
        for name in ["run", "state"] {
            dir.directory(name);
        }
        let options = match rustix::process::geteuid().is_root() {
            true => format!("{options},allow_other,suid,dev"),
            false => options,
        };
        let mut kept = Kept { dir, base, place, also: None, mounted: None, options };
        kept.mount();
        kept
    }

    /// Keeps a directory as long as itself.
    pub fn keep(&mut self, dir: TestDir) {
        self.also = Some(dir);
    }

    pub fn mount(&mut self) {
        let (run, state) = (self.dir.path().join("run"), self.dir.path().join("state"));
        let places = [("MMAPFS_RUN_DIR", run.as_path()), ("MMAPFS_STATE_DIR", state.as_path())];
        self.mounted = Some(MountedFs::over_with(&self.base, &self.options, &places));
    }

    /// Adds options for the next mount.
    pub fn add_options(&mut self, options: &str) {
        self.options = format!("{},{options}", self.options);
    }

    /// Unmounts and mounts again.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Freezes the top layer while the scratch is not mounted.
    pub fn freeze(&mut self) {
        let scratch = self.scratch();
        self.unmount();
        mmapfs::layers::scratch::freeze(&scratch).unwrap();
        self.mount();
    }

    /// Kills the daemon and mounts again.
    pub fn kill_and_mount(&mut self) {
        let mut mounted = self.mounted.take().unwrap();
        mounted.kill();
        drop(mounted);
        self.mount();
    }

    pub fn unmount(&mut self) {
        self.mounted.take().unwrap().unmount();
    }

    pub fn mounted(&self) -> &MountedFs {
        self.mounted.as_ref().unwrap()
    }

    pub fn root(&self) -> &Path {
        self.mounted().path()
    }

    /// A path below the mount.
    pub fn at(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// The directory of the scratch.
    pub fn scratch(&self) -> PathBuf {
        self.place.clone()
    }

    /// Bytes that the filesystem of the scratch keeps for it.
    pub fn stored(&self) -> u64 {
        let mut seen = HashSet::new();
        stored_below(&self.scratch(), &mut seen)
    }

    /// Number of regular files that the scratch has for what was written.
    pub fn regular_files(&self) -> u64 {
        regular_files_below(&self.scratch().join("upper"))
    }

    /// Fails when a call stores more than `most` bytes in the scratch. Directories count as well.
    #[track_caller]
    pub fn assert_stores_at_most<T>(&self, most: u64, what: &str, call: impl FnOnce() -> T) -> T {
        let before = self.stored();
        let result = call();
        let more = self.stored().saturating_sub(before);
        assert!(more <= most, "{what} stored {more} bytes, at most {most} are due");
        result
    }

    /// Runs `calls` and fails when they change anything of the base.
    #[track_caller]
    pub fn with_base_untouched(&mut self, calls: impl FnOnce(&mut Kept)) {
        base::set_access_times(&self.base);
        let before = base::state(&self.base);
        calls(self);
        base::assert_untouched(&self.base, &before);
    }
}

fn stored_below(path: &Path, seen: &mut HashSet<u64>) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    let own = if seen.insert(meta.ino()) { meta.blocks() * 512 } else { 0 };
    let below: u64 = match meta.is_dir() {
        true => fs::read_dir(path)
            .unwrap()
            .map(|entry| stored_below(&entry.unwrap().path(), seen))
            .sum(),
        false => 0,
    };
    own + below
}

fn regular_files_below(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    match meta.is_dir() {
        true => fs::read_dir(path)
            .unwrap()
            .map(|entry| regular_files_below(&entry.unwrap().path()))
            .sum(),
        false => u64::from(meta.is_file()),
    }
}
