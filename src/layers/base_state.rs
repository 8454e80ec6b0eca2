//! Detection of a change of the base below a partial copy since its first touch.
//!
//! While a read lease is held, the content of the base cannot change. Without one, the fingerprint
//! is compared after each read of the base: bytes that were read before a change are valid, and a
//! read after a change fails with EIO, so changed pages never mix with pages of the upper file.

use crate::error::cause::because;
use crate::shown::Show;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::changed::Fate;
use super::pages::{Comparison, Doubt, Fingerprint};

/// Lease on a base whose content was found unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    None,
    Held,
    /// A writer waits for it; the lease counts as gone from this moment on.
    Until(Instant),
}

/// State of the base of one partial copy.
#[derive(Debug)]
pub struct BaseState {
    /// Path of the file under the mount.
    path: PathBuf,
    expected: Mutex<Fingerprint>,
    lease: Mutex<Lease>,
    /// The first copy of the whole base is under way, and no page was written by a client.
    copying: AtomicBool,
    changed: AtomicBool,
    /// The log has said that a change cannot be ruled out.
    doubted: AtomicBool,
    /// Pages of a changed base are shown (`base_changed=mix`).
    mix: bool,
    changed_files: Arc<ChangedFiles>,
}

/// Files whose base has changed or may have changed, by their path under the mount.
#[derive(Debug, Default)]
pub struct ChangedFiles(Mutex<BTreeMap<PathBuf, Fate>>);

impl ChangedFiles {
    /// Notes the fate of a file's base.
    pub fn note(&self, path: &Path, fate: Fate) {
        self.0.lock().insert(path.to_owned(), fate);
    }

    /// Notes the fate of a file's base unless the file has one.
    pub fn note_also(&self, path: &Path, fate: Fate) {
        self.0.lock().entry(path.to_owned()).or_insert(fate);
    }

    /// Removes a file that does not show its base any more.
    pub fn forget(&self, path: &Path) {
        self.0.lock().remove(path);
    }

    /// Fate of the base of a file that has changed or may have changed; `None` for others.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<Fate> {
        self.0.lock().get(path).copied()
    }

    /// All files, each with the fate of its base in words.
    #[must_use]
    pub fn all(&self) -> Vec<(PathBuf, String)> {
        self.0.lock().iter().map(|(path, fate)| (path.clone(), fate.to_string())).collect()
    }
}

impl BaseState {
    /// State for the file at `path` under the mount; `expected` is its base at first touch.
    pub fn new(
        path: PathBuf,
        expected: Fingerprint,
        mix: bool,
        changed_files: Arc<ChangedFiles>,
    ) -> BaseState {
        BaseState {
            path,
            expected: Mutex::new(expected),
            lease: Mutex::new(Lease::None),
            copying: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            mix,
            changed_files,
        }
    }

    /// Whether [`BaseState::check`] has found a change.
    pub fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    /// Path under the mount.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that bytes which were read from the base before this call are of the unchanged base.
    ///
    /// # Errors
    /// EIO if the base has changed; errors of statx(2).
    pub fn check(&self, base: &OwnedFd) -> Result<(), Errno> {
        if self.mix || self.is_leased() || self.copying.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.compare(&Fingerprint::of(base)?) {
            Comparison::Changed => {
                if !self.changed.swap(true, Ordering::AcqRel) {
                    self.changed_files.note(&self.path, Fate::Changed);
                    log::error!(
                        "{}: its base has changed since the first touch: pages of the base are \
                         refused (EIO), those of the scratch are shown",
                        self.path.shown()
                    );
                }
                Err(because(Errno::IO, "a page of a base that was changed directly"))
            }
            Comparison::Unknown(doubt) => {
                if !self.doubted.swap(true, Ordering::AcqRel) {
                    self.changed_files.note(&self.path, Fate::Unknown(doubt));
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

    /// Whether a lease is held, and has been since the base was found unchanged.
    pub fn is_leased(&self) -> bool {
        match *self.lease.lock() {
            Lease::None => false,
            Lease::Held => true,
            Lease::Until(end) => Instant::now() < end,
        }
    }

    /// Whether the base is not found changed, or is shown changed or not (`base_changed=mix`).
    pub fn is_as_it_was(&self, base: impl AsFd) -> bool {
        let now = Fingerprint::of(base);
        self.mix || now.is_ok_and(|now| self.compare(&now) != Comparison::Changed)
    }

    /// Notes that a lease is held. The caller has found the base unchanged under this lease, or an
    /// earlier state of the file was under it.
    pub fn lease_goes_on(&self) {
        *self.lease.lock() = Lease::Held;
    }

    /// Notes that a writer waits for the lease, which counts as gone from `end` on.
    pub fn lease_is_asked_for(&self, end: Instant) {
        let mut lease = self.lease.lock();
        if *lease == Lease::Held {
            *lease = Lease::Until(end);
        }
    }

    /// Present fingerprint of the base if it differs from the expected one although the lease
    /// proves the content unchanged: times, mode, owner or link count have changed.
    pub fn moved(&self, base: impl AsFd) -> Option<Fingerprint> {
        let now = Fingerprint::of(base).ok()?;
        let expected = *self.expected.lock();
        let same = (expected.size, expected.ino) == (now.size, now.ino);
        // The lease is checked last: it proves that the content did not change before this point.
        Some(now).filter(|now| same && *now != expected && self.is_leased())
    }

    /// Notes that the lease ends soon after this call. The content is unchanged until then; times,
    /// mode, owner and link count may have changed, and become the expected ones.
    pub fn lease_ends(&self, base: impl AsFd) {
        if let Some(now) = self.moved(base) {
            *self.expected.lock() = now;
        }
        *self.lease.lock() = Lease::None;
    }

    /// Runs `copy`, the first copy of the whole base, without checks of the base. No page was
    /// written by a client, so the copy is as good as one by cp(1).
    pub fn during_first_copy<T>(&self, copy: impl FnOnce() -> T) -> T {
        self.copying.store(true, Ordering::Release);
        let copied = copy();
        self.copying.store(false, Ordering::Release);
        copied
    }
}

/// Message for a doubt.
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
