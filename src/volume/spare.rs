//! Spare descriptors: descriptors that are held only to save time, and are closed when few are
//! left.
//!
//! The kernel gives the lowest free number to a new descriptor. So its number shows that at least
//! as many are in use, without a count of all descriptors of the process.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rustix::io::Errno;

use super::Volume;
use crate::sys;

/// Number of descriptors that are kept free for files that have to be opened.
const LEFT: u64 = 128;

/// Pauses before a file is opened again for which no descriptor was left. close(2) does not wait
/// for the release of its file, which is another request.
const WAITS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
];

/// Limit of descriptors, and the other holders of spare ones.
#[derive(Debug)]
pub(super) struct Spare {
    /// Descriptor number from which on few are left.
    last: u64,
    /// The other volumes of the mount.
    others: OnceLock<Vec<Weak<Volume>>>,
    /// Few were left at some time since that was asked for.
    were_few: AtomicBool,
}

impl Default for Spare {
    fn default() -> Spare {
        let limit = sys::file::descriptor_limit().0;
        Spare {
            last: limit - LEFT.min(limit / 4),
            others: OnceLock::new(),
            were_few: AtomicBool::new(false),
        }
    }
}

impl Volume {
    /// Lets volumes close spare descriptors for each other.
    pub fn share_descriptors(volumes: &[Arc<Volume>]) {
        for volume in volumes {
            let others = volumes.iter().filter(|other| !Arc::ptr_eq(other, volume));
            let others = others.map(Arc::downgrade).collect();
            if volume.spare.others.set(others).is_err() {
                log::error!("a volume shares its descriptors a second time");
            }
        }
    }

    /// Runs `open`. If no descriptor is left, closes the spare descriptors and runs it again, for
    /// as long as the release of a file that a client has closed may be under way.
    pub(super) fn with_a_descriptor<T>(
        &self,
        open: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut opened = open();
        for pause in WAITS {
            if !matches!(opened, Err(Errno::MFILE | Errno::NFILE)) {
                break;
            }
            self.close_spare();
            std::thread::sleep(pause);
            opened = open();
        }
        opened
    }

    /// Whether a new descriptor is one of the last, so that it must not be held as a spare one. All
    /// spare descriptors are closed then.
    pub(super) fn is_one_of_the_last(&self, new: impl AsFd) -> bool {
        let number = u64::try_from(new.as_fd().as_raw_fd()).unwrap_or(0);
        let is_last = number >= self.spare.last;
        if is_last {
            self.close_spare();
        }
        is_last
    }

    /// Whether few descriptors were left since the last call, so that others who hold some let go.
    pub fn had_few_descriptors(&self) -> bool {
        self.spare.were_few.load(Ordering::Relaxed)
            && self.spare.were_few.swap(false, Ordering::Relaxed)
    }

    fn close_spare(&self) {
        self.spare.were_few.store(true, Ordering::Relaxed);
        self.close_own_spare();
        let others = self.spare.others.get().into_iter().flatten();
        others.filter_map(Weak::upgrade).for_each(|other| other.close_own_spare());
    }

    fn close_own_spare(&self) {
        drop(self.short_lived.clear());
        drop(self.streams.clear());
        self.unopened.clear().iter().for_each(|open| self.close(open));
        self.directories.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::config::RuleSet;
    use crate::flags::ViewOptions;
    use crate::tree::{Ino, Names};
    use crate::volume::{Policy, VolumeOptions};

    fn volume(source: &std::path::Path) -> Volume {
        Volume::open_source(VolumeOptions {
            source: source.to_owned(),
            only: None,
            root_is_file: false,
            reserved: None,
            policy: Policy {
                mode: ViewOptions::default().resolve().unwrap(),
                rules: RuleSet::default(),
            },
            max_mappings: 100,
            keeps_atime: false,
            keeps_attributes: false,
        })
        .unwrap()
    }

    #[test]
    fn the_last_descriptors_are_not_held_and_all_volumes_let_go() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        std::fs::write(dir.path().join("file"), "content").unwrap();
        let first = Arc::new(volume(dir.path()));
        let mut second = volume(dir.path());
        second.spare.last = 0;
        let second = Arc::new(second);
        Volume::share_descriptors(&[Arc::clone(&first), Arc::clone(&second)]);
        let look_up = |volume: &Volume| {
            for name in ["dir", "file"] {
                volume.lookup(Ino::ROOT, OsStr::new(name)).unwrap();
            }
        };
        look_up(&first);
        assert!(!first.short_lived.is_empty());
        look_up(&second);
        assert!(first.short_lived.is_empty() && second.short_lived.is_empty());
        let dir = |volume: &Volume| volume.lookup(Ino::ROOT, OsStr::new("dir")).unwrap().attr.ino;
        assert!(second.directories.get(dir(&second)).is_none());
    }
}
