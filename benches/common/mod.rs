//! What the benches share: a volume over a directory, as the daemon has one, and a tree of many
//! files.

#![allow(dead_code)] // Not every bench uses all of it.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use mmapfs::config::options::{MountOptions, Unknown};
use mmapfs::config::rules::RuleSet;
use mmapfs::sys::cred::Caller;
use mmapfs::tree::{BackingRegistration, Files, Ino, Lifecycle, Names, Open};
use mmapfs::volume::{Policy, Volume, VolumeOptions};
use rustix::fs::{CWD, FileType, Mode};
use tempfile::TempDir;

/// Whether nothing is to be measured, only tried: `cargo test --benches` says `--test`.
pub fn only_trying() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// A volume, with the thread that the daemon gives it.
pub struct Served {
    pub volume: Arc<Volume>,
    expiring: Option<JoinHandle<()>>,
}

impl Served {
    /// Over a directory, with these mount options.
    pub fn new(source: &Path, options: &str) -> Served {
        mmapfs::sys::guard::install().unwrap();
        mmapfs::sys::file::raise_descriptor_limit();
        let view = MountOptions::parse([options], Unknown::Refused).unwrap().view;
        let options = VolumeOptions {
            source: source.to_owned(),
            only: None,
            root_is_file: false,
            reserved: None,
            policy: Policy { mode: view.resolve().unwrap(), rules: RuleSet::default() },
            max_mappings: 10_000,
            keeps_atime: false,
            keeps_attributes: true,
        };
        let volume = Arc::new(Volume::open_source(options).unwrap());
        let expiring = Arc::clone(&volume);
        let expiring = std::thread::spawn(move || expiring.expire());
        Served { volume, expiring: Some(expiring) }
    }

    /// The number of a name in a directory, looked up once.
    pub fn find(&self, parent: Ino, name: &str) -> Ino {
        self.volume.lookup(parent, name.as_ref()).unwrap().attr.ino
    }

    /// Opens for reading, on the mapped plane, and releases.
    pub fn open_and_release(&self, ino: Ino) {
        let how = Open { read: true, wait: true, ..Open::default() };
        let caller = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        };
        let nobody_takes_it = |_: BorrowedFd<'_>| -> std::io::Result<BackingRegistration> {
            Err(rustix::io::Errno::PERM.into())
        };
        let opened = self.volume.open(ino, how, &caller, &nobody_takes_it).unwrap();
        self.volume.release(opened.id).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.volume.end();
        if let Some(expiring) = self.expiring.take() {
            expiring.join().unwrap();
        }
    }
}

/// A directory in memory, where /dev/shm is to be had.
pub fn memory_dir() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = memory.is_dir().then(|| TempDir::new_in(memory));
    made.and_then(Result::ok).unwrap_or_else(|| TempDir::new().unwrap())
}

/// Makes an empty file.
pub fn make_file(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// The numbers below `count`, each once, in an order without neighbours. `count` is a product of
/// twos and fives.
pub fn scattered(count: usize) -> impl Iterator<Item = usize> {
    let step = count / 10 * 6 + 1;
    (0..count).map(move |index| index.wrapping_mul(step) % count)
}

/// The name of a file by its number.
pub fn name(number: usize) -> OsString {
    format!("file-{number:07}").into()
}
