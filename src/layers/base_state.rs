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
use std::time::Instant;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::changed::Fate;
use super::pages::{Comparison, Doubt, Fingerprint};

/// The lease on a base that was found as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lease {
    None,
    Held,
    /// Somebody waits for it; the kernel takes it away at this moment.
    Until(Instant),
}

/// The base of one file.
#[derive(Debug)]
pub struct BaseState {
    /// For messages.
    path: PathBuf,
    expected: Mutex<Fingerprint>,
    lease: Mutex<Lease>,
    /// The first copy is under way, and no page is a client's yet.
    copying: AtomicBool,
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

    /// Takes note of one, unless more is known of it.
    pub fn note_also(&self, path: &Path, fate: Fate) {
        self.0.lock().entry(path.to_owned()).or_insert(fate);
    }

    /// Takes note that nothing of the base of a file shows any more.
    pub fn forget(&self, path: &Path) {
        self.0.lock().remove(path);
    }

    /// The fate of the base of one, where it has changed or may have.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<Fate> {
        self.0.lock().get(path).copied()
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
            lease: Mutex::new(Lease::None),
            copying: AtomicBool::new(false),
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
        if self.mix || self.is_leased() || self.copying.load(Ordering::Acquire) {
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

    /// Whether a lease has been held since the base was found as expected, and is held.
    pub fn is_leased(&self) -> bool {
        match *self.lease.lock() {
            Lease::None => false,
            Lease::Held => true,
            Lease::Until(end) => Instant::now() < end,
        }
    }

    /// Whether the base is as it was, or is shown whatever it is. Under a lease it stays so.
    pub fn is_as_it_was(&self, base: impl AsFd) -> bool {
        let now = Fingerprint::of(base);
        self.mix || now.is_ok_and(|now| self.compare(&now) != Comparison::Changed)
    }

    /// Takes note that a lease is held, and was when the base was found as it was or an earlier
    /// state of it was under the lease.
    pub fn lease_goes_on(&self) {
        *self.lease.lock() = Lease::Held;
    }

    /// Takes note that somebody waits for the lease, which the kernel takes away at `end`.
    pub fn lease_is_asked_for(&self, end: Instant) {
        let mut lease = self.lease.lock();
        if *lease == Lease::Held {
            *lease = Lease::Until(end);
        }
    }

    /// The base as it is at this moment, where that is not as expected and a lease says that its
    /// content is: times, modes, owners or numbers of names have changed.
    pub fn moved(&self, base: impl AsFd) -> Option<Fingerprint> {
        let now = Fingerprint::of(base).ok()?;
        let expected = *self.expected.lock();
        let same = (expected.size, expected.ino) == (now.size, now.ino);
        // Asked last: nobody has changed the content before that.
        Some(now).filter(|now| same && *now != expected && self.is_leased())
    }

    /// Takes note that the lease ends soon after this call. The content is as it was until then:
    /// times, modes, owners and numbers of names may have changed, and are expected from now on.
    pub fn lease_ends(&self, base: impl AsFd) {
        if let Some(now) = self.moved(base) {
            *self.expected.lock() = now;
        }
        *self.lease.lock() = Lease::None;
    }

    /// Has the base taken as it comes while `copy` makes the first copy of all of it, of which no
    /// page is a client's: a copy like that of cp(1).
    pub fn during_first_copy<T>(&self, copy: impl FnOnce() -> T) -> T {
        self.copying.store(true, Ordering::Release);
        let copied = copy();
        self.copying.store(false, Ordering::Release);
        copied
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
