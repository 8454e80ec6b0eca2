//! Whether the base of a file with pages in two layers is still as it was at first touch.
//!
//! While the base is under a lease nobody can have changed it. Without one its fingerprint is
//! compared after each read: bytes that were read before a change are right, and what is read
//! after one is refused (EIO), never mixed with the pages of the upper file.

use crate::shown::Show;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::changed::Fate;
use super::pages::{Comparison, Doubt, Fingerprint};

/// The base of one file.
#[derive(Debug)]
pub struct BaseState {
    /// For messages.
    path: PathBuf,
    expected: Mutex<Fingerprint>,
    /// A lease has been held since the base was found as expected.
    leased: AtomicBool,
    changed: AtomicBool,
    /// It was said that it cannot be told.
    doubted: AtomicBool,
    /// A base that has changed is shown as it is (`base_changed=mix`).
    mix: bool,
    told: Arc<ChangedFiles>,
}

/// The files whose base has changed, or may have, where they are shown.
#[derive(Debug, Default)]
pub struct ChangedFiles(Mutex<BTreeMap<PathBuf, Fate>>);

impl ChangedFiles {
    /// Takes note of one.
    pub fn note(&self, path: &Path, fate: Fate) {
        self.0.lock().insert(path.to_owned(), fate);
    }

    /// Takes note that nothing of the base of a file shows any more.
    pub fn forget(&self, path: &Path) {
        self.0.lock().remove(path);
    }

    /// All of them, with what became of their base.
    #[must_use]
    pub fn all(&self) -> Vec<(PathBuf, String)> {
        self.0.lock().iter().map(|(path, fate)| (path.clone(), fate.to_string())).collect()
    }
}

impl BaseState {
    /// Of a file that is shown at a path, whose base was so at first touch.
    pub fn new(
        path: PathBuf,
        expected: Fingerprint,
        mix: bool,
        told: Arc<ChangedFiles>,
    ) -> BaseState {
        BaseState {
            path,
            expected: Mutex::new(expected),
            leased: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            mix,
            told,
        }
    }

    /// Whether it was found changed.
    pub fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Where the file is shown.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that what was read of the base before this call is of the base as it was.
    ///
    /// # Errors
    /// EIO when it has changed; those of statx(2).
    pub fn check(&self, base: &OwnedFd) -> Result<(), Errno> {
        if self.leased.load(Ordering::Acquire) || self.mix {
            return Ok(());
        }
        match self.compare(&Fingerprint::of(base)?) {
            Comparison::Changed => {
                if !self.changed.swap(true, Ordering::AcqRel) {
                    self.told.note(&self.path, Fate::Changed);
                    log::error!(
                        "{}: its base has changed since the first touch: pages of the base are \
                         refused (EIO), those of the scratch are shown",
                        self.path.shown()
                    );
                }
                Err(Errno::IO)
            }
            Comparison::Unknown(doubt) => {
                if !self.doubted.swap(true, Ordering::AcqRel) {
                    self.told.note(&self.path, Fate::Unknown(doubt));
                    log::warn!("{}: {}", self.path.shown(), in_words(doubt));
                }
                Ok(())
            }
            Comparison::Same => Ok(()),
        }
    }

    fn compare(&self, now: &Fingerprint) -> Comparison {
        self.expected.lock().compare(now)
    }

    /// Takes note that a lease is held from before this call on. False when the base had changed
    /// by then.
    pub fn lease_begins(&self, base: impl AsFd) -> bool {
        let now = Fingerprint::of(base);
        let same = self.mix || now.is_ok_and(|now| self.compare(&now) != Comparison::Changed);
        self.leased.store(same, Ordering::Release);
        same
    }

    /// Takes note that the lease ends soon after this call. What has changed meanwhile is not the
    /// content but a mode, an owner or a number of names.
    pub fn lease_ends(&self, base: impl AsFd) {
        if self.leased.load(Ordering::Acquire)
            && let Ok(now) = Fingerprint::of(base)
        {
            let mut expected = self.expected.lock();
            if expected.compare(&now) != Comparison::Changed {
                *expected = now;
            }
        }
        self.leased.store(false, Ordering::Release);
    }
}

/// Why it is not known whether a base has changed.
fn in_words(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::Racy => {
            "its base was written so shortly before the first touch that a change since may not \
             show; its pages are shown"
        }
        Doubt::OnlyCtime => {
            "attributes, names or links of its base were changed since the first touch, or its \
             content with the time of modification put back; its pages are shown"
        }
    }
}
