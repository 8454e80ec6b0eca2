//! The directory that holds what was written over a base.
//!
//! [`Scratch::open`] makes one, or takes one that is there, and holds its lock until it is dropped;
//! [`list`] and [`remove`] are for those that are not in use. The format is that of
//! docs/scratch-format.md: the upper directory of overlayfs, page maps, and a small state file.
//! Nothing here knows what the files mean.
//!
//! A scratch in memory outlives a daemon that is killed: only the dropped [`Scratch`] of a mount
//! that named no directory removes it.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::config::{Limit, ScratchConfig};
use crate::error::Failure;
use crate::layers::pages::MapId;
use crate::shown::Show;
use crate::sys;

mod adopt;
mod checksum;
mod create;
mod layout;
mod lock;
mod long_path;
mod metadata_reserve;
mod opened;
mod place;
mod quota_ledger;
mod registry;
mod state;
mod sweep;
#[cfg(test)]
mod tests;
mod usage;
mod xattr_namespace;

#[cfg(test)]
pub(super) use checksum::seal;
pub use layout::Layout;
pub use lock::Holder;
pub use long_path::{LONGEST_IN_MARK, PathId};
pub use metadata_reserve::MetadataReserve;
pub use place::Places;
pub use quota_ledger::{QuotaLedger, QuotaSpace};
pub use registry::{Listed, list, remove, unused};
pub use state::{BaseId, Kind, State, VERSION};
pub use sweep::{Partial, TEMPORARY};
pub use usage::{Usage, bytes_used};
pub use xattr_namespace::XattrNamespace;

use layout::Content;
use lock::Lock;
use opened::Opened;
use state::Whereabouts;

/// The size up to which files are copied whole where nothing else is said, in bytes.
pub const COPY_UP: u64 = 128 << 10;

/// The share of the memory that is available that a scratch in memory may take, in percent.
pub const SHARE_OF_MEMORY: u8 = 50;

/// A scratch in use.
#[derive(Debug)]
pub struct Scratch {
    opened: Opened,
    state: State,
    budget: Arc<QuotaLedger>,
    /// Of a tmpfs of its own with a bound.
    reserve: Option<Arc<MetadataReserve>>,
    found: Usage,
    /// Files of which only some pages were in it when it was opened.
    partial: Vec<Partial>,
    contested: HashSet<MapId>,
    /// Goes when this is dropped.
    temporary: AtomicBool,
    /// Held to the end, and while the directory is removed.
    lock: Lock,
}

/// How a directory became a scratch.
enum Begun {
    Made,
    Adopted,
}

/// What [`Scratch::open`] would do.
#[derive(Debug, Clone, PartialEq)]
pub enum Outlook {
    /// Make one in memory, below this directory.
    InMemory(PathBuf),
    /// Make one here.
    New(PathBuf),
    /// Take an upper directory of overlayfs for one.
    Adopt(PathBuf),
    /// Take the one that is here.
    Again(PathBuf, Box<State>),
}

impl Scratch {
    /// Makes a scratch of `base` for a mount on `mountpoint`, or opens the one that the options
    /// name. Both paths are absolute, without symbolic links.
    ///
    /// # Errors
    /// Kind `Failed`: the directory is none and not empty, is in use, was written by a newer
    /// version, belongs to another base, lies in a bad place, or its filesystem lacks something.
    /// What was made is gone then.
    pub fn open(
        config: &ScratchConfig,
        base: &Path,
        mountpoint: &Path,
        places: &Places,
    ) -> Result<Scratch, Failure> {
        let Some(dir) = &config.dir else {
            return create::in_memory(config, base, mountpoint, places);
        };
        ScratchConfig::check_place(dir, base, mountpoint)?;
        check_directory(dir)?;
        let made = !dir.exists();
        if made {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .map_err(|error| told(dir, "making it", error))?;
        }
        let opened = Scratch::in_directory(config, dir, base, mountpoint, places);
        if made && opened.is_err() {
            // Whatever is in it by now is kept, with the first failure as the one to tell.
            let _ = fs::remove_dir(dir);
        }
        opened
    }

    fn in_directory(
        config: &ScratchConfig,
        dir: &Path,
        base: &Path,
        mountpoint: &Path,
        places: &Places,
    ) -> Result<Scratch, Failure> {
        let dir = fs::canonicalize(dir).map_err(|error| told(dir, "opening it", error))?;
        let layout = Layout::at(dir);
        let opened = Opened::at(&layout)?;
        opened.content()?.acceptable(&layout)?;
        let lock = Lock::take(&opened, mountpoint)?;
        // Only now nobody else changes it.
        let (state, kind) = match opened.content()? {
            Content::Scratch(mut state) => {
                state.settle(&opened, config, BaseId::of(base)?)?;
                if places.is_taken(&state.id, &layout) {
                    state.rename(&opened, create::new_id()?)?;
                }
                (*state, None)
            }
            Content::Empty => (create::fill(&opened, config, base, Kind::Disk)?, Some(Begun::Made)),
            Content::Upper => (adopt::adopt(&opened, config, base)?, Some(Begun::Adopted)),
            other => return Err(other.refusal(&layout)),
        };
        match kind {
            Some(Begun::Made) => {
                log::info!("{}: made as the scratch {}", layout.dir().shown(), state.id);
            }
            Some(Begun::Adopted) => log::warn!(
                "{}: it has no state.json, and is taken as an upper directory of overlayfs for the \
                 scratch {} of {}",
                layout.dir().shown(),
                state.id,
                state.base.path.shown()
            ),
            None => {}
        }
        places.register(&layout, &state);
        Scratch::start(opened, state, lock, false)
    }

    /// Counts what is there, and puts in order what a daemon left that was killed, or a machine
    /// that stopped.
    fn start(
        opened: Opened,
        mut state: State,
        lock: Lock,
        temporary: bool,
    ) -> Result<Scratch, Failure> {
        opened.complete()?;
        opened.empty_work()?;
        opened.close_to_others()?;
        let here = Whereabouts::of(opened.fd())
            .map_err(|errno| told(opened.path(), "looking at it", errno.into()))?;
        let swept = sweep::Sweep::run(&opened, &state, &here)?;
        let (found, partial, contested) = swept.found()?;
        // Before anything is written.
        state.begin(&opened, &here)?;
        let used = match state.kind {
            Kind::OwnTmpfs => 0,
            Kind::SharedMemory | Kind::Disk => found.bytes,
        };
        // A tmpfs of its own is as large as the limit: the kernel keeps it.
        let limit = state.max.filter(|_| state.kind != Kind::OwnTmpfs);
        let budget = Arc::new(QuotaLedger::new(limit, used));
        let bounded = state.kind == Kind::OwnTmpfs && state.max.is_some();
        let reserve = bounded.then(|| MetadataReserve::new(opened.fd())).transpose();
        let reserve = reserve
            .map_err(|errno| told(opened.path(), "keeping room for its records", errno.into()))?
            .map(Arc::new);
        let temporary = AtomicBool::new(temporary);
        Ok(Scratch { opened, state, budget, reserve, found, partial, contested, temporary, lock })
    }

    /// What [`Scratch::open`] would do, found out without changing anything.
    ///
    /// # Errors
    /// As [`Scratch::open`], as far as it can be known.
    pub fn outlook(
        config: &ScratchConfig,
        base: &Path,
        mountpoint: &Path,
        places: &Places,
    ) -> Result<Outlook, Failure> {
        let Some(dir) = &config.dir else {
            return Ok(Outlook::InMemory(places.memory_outlook(base, mountpoint)?));
        };
        ScratchConfig::check_place(dir, base, mountpoint)?;
        check_directory(dir)?;
        if !dir.exists() {
            let above = dir.parent().unwrap_or(dir);
            fs::read_dir(above).map_err(|error| told(above, "making a scratch in it", error))?;
            return Ok(Outlook::New(dir.clone()));
        }
        let dir = fs::canonicalize(dir).map_err(|error| told(dir, "opening it", error))?;
        let layout = Layout::at(dir.clone());
        let opened = Opened::at(&layout)?;
        if let Some(holder) = lock::holder(&opened)? {
            return Err(holder.refusal(&layout));
        }
        match opened.content()? {
            Content::Scratch(mut state) => {
                state.settle_in_mind(&opened, config, BaseId::of(base)?)?;
                Ok(Outlook::Again(dir, state))
            }
            Content::Empty => Ok(Outlook::New(dir)),
            Content::Upper => Ok(Outlook::Adopt(dir)),
            other => Err(other.refusal(&layout)),
        }
    }

    /// Where its parts are.
    pub fn layout(&self) -> &Layout {
        self.opened.layout()
    }

    /// Its state as it was opened.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What was in it when it was opened.
    pub fn found(&self) -> Usage {
        self.found
    }

    /// The files of which only some pages were in it when it was opened.
    pub fn partial(&self) -> &[Partial] {
        &self.partial
    }

    /// Page maps that several files name, of which none can be believed.
    pub fn contested(&self) -> &HashSet<MapId> {
        &self.contested
    }

    /// The names of its marks.
    pub fn xattr_namespace(&self) -> XattrNamespace {
        self.state.marks
    }

    /// What it may still hold.
    pub fn quota_ledger(&self) -> &Arc<QuotaLedger> {
        &self.budget
    }

    /// What is kept back for its records, where that is needed.
    pub fn reserve(&self) -> Option<&Arc<MetadataReserve>> {
        self.reserve.as_ref()
    }

    /// Files up to this size, in bytes, are copied whole when they are first opened to be written.
    pub fn copy_up(&self) -> u64 {
        self.state.copy_up
    }

    /// The directory, open.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.opened.fd()
    }

    /// The directory of the page maps, open.
    ///
    /// # Errors
    /// It is no directory by now; those of open(2).
    pub fn pages(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        sys::beneath::open(self.opened.fd(), layout::PAGES, flags, Mode::empty())
    }

    /// The space of the mount: what statfs(2) shows.
    ///
    /// # Errors
    /// Those of statvfs(3).
    pub fn space(&self) -> Result<QuotaSpace, Errno> {
        let found = rustix::fs::fstatvfs(self.opened.fd())?;
        Ok(self.budget.space(&match &self.reserve {
            Some(reserve) => reserve.without(found),
            None => found,
        }))
    }

    /// The bytes that are used: of a tmpfs of its own all of it, else what was counted.
    pub fn used(&self) -> u64 {
        match self.state.kind {
            Kind::OwnTmpfs => rustix::fs::fstatvfs(self.opened.fd()).map_or(0, |found| {
                let held = self.reserve.as_ref().map_or(0, |reserve| reserve.held());
                let used = found.f_blocks.saturating_sub(found.f_bfree);
                used.saturating_mul(found.f_frsize).saturating_sub(held)
            }),
            Kind::SharedMemory | Kind::Disk => self.budget.used(),
        }
    }

    /// Whether it goes when the mount goes.
    pub fn is_temporary(&self) -> bool {
        self.temporary.load(Ordering::Relaxed)
    }

    /// Makes everything in it durable and says so in its state, where it is kept on disk. `note` is
    /// called when the data is durable, and what it writes is durable as well then. Nothing may be
    /// written afterwards.
    ///
    /// # Errors
    /// Those of syncfs(2) and of `note`: then it is not in order, and is put in order when it is
    /// opened on another mount.
    pub fn put_in_order(&self, note: impl FnOnce() -> Result<(), Errno>) -> Result<(), Failure> {
        if self.state.kind != Kind::Disk || self.is_temporary() {
            return Ok(());
        }
        rustix::fs::syncfs(self.opened.fd())
            .and_then(|()| note())
            .and_then(|()| rustix::fs::syncfs(self.opened.fd()))
            .map_err(|errno| told(self.opened.path(), "leaving it in order", errno.into()))?;
        let mut state = self.state.clone();
        state.in_order = true;
        state.write(&self.opened)
    }

    /// Lets it outlive the mount, whatever it was made for.
    pub fn keep(&self) {
        self.temporary.store(false, Ordering::Relaxed);
    }
}

impl Drop for Scratch {
    /// Removes it where it was made for this mount alone. Files of it that are still open do not
    /// hinder that.
    fn drop(&mut self) {
        if *self.temporary.get_mut()
            && let Err(failure) = registry::take_down(&self.opened, &self.state)
        {
            log::error!("{failure}");
        }
        self.lock.release();
    }
}

/// Refuses what is there and is no directory.
fn check_directory(dir: &Path) -> Result<(), Failure> {
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => {
            let what = if found.is_file() { "a file" } else { "no directory" };
            let reason =
                format!("it is {what}: scratch= takes a directory, or a path to make one at");
            Err(Failure::failed(dir.shown(), reason))
        }
        _ => Ok(()),
    }
}

/// A failure about a scratch, in words where the errno alone would not say enough.
fn told(path: &Path, doing: &str, error: io::Error) -> Failure {
    let shown = path.shown();
    match Errno::from_io_error(&error) {
        Some(Errno::ROFS) => Failure::failed(
            shown,
            format_args!("{doing}: its filesystem is mounted read-only, and a scratch is written"),
        ),
        _ => Failure::failed(shown, format_args!("{doing}: {error}")),
    }
}

/// The limit in bytes of a scratch in `dir`; a share is of its filesystem.
fn limit_on_disk(limit: Limit, opened: &Opened) -> Result<Option<u64>, Failure> {
    match limit {
        Limit::None => Ok(None),
        Limit::Bytes(bytes) => Ok(Some(bytes)),
        Limit::Percent(percent) => {
            let found = rustix::fs::fstatvfs(opened.fd())
                .map_err(|errno| told(opened.path(), "asking for its size", errno.into()))?;
            Ok(Some(share(found.f_blocks.saturating_mul(found.f_frsize), percent)))
        }
    }
}

fn share(bytes: u64, percent: u8) -> u64 {
    (bytes / 100).saturating_mul(percent.into()).max(1)
}
