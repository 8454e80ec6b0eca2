//! Scratch: the directory that holds all changes over a base.
//!
//! [`Scratch::open`] makes a scratch or opens an existing one, and holds its lock until the value
//! is dropped. [`list`] and [`remove`] work on scratches that are not in use.
//! docs/scratch-format.md describes the format: the upper directory of overlayfs, page maps, and a
//! small state file. This module does not interpret the files of the upper directory.
//!
//! A scratch in memory outlives a killed daemon. It is removed when the [`Scratch`] of a mount that
//! named no directory is dropped.

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
pub mod freeze;
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
mod xattr_values;

#[cfg(test)]
pub(super) use checksum::seal;
pub use freeze::{freeze, freeze_stepwise};
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

/// Default of the size in bytes up to which a file is copied completely at copy-up.
pub const COPY_UP: u64 = 128 << 10;

/// Default limit of a scratch in memory, in percent of the available memory.
pub const SHARE_OF_MEMORY: u8 = 50;

/// A scratch in use.
#[derive(Debug)]
pub struct Scratch {
    opened: Opened,
    state: State,
    budget: Arc<QuotaLedger>,
    /// Space kept back for metadata; only in a tmpfs of its own with a limit.
    reserve: Option<Arc<MetadataReserve>>,
    found: Usage,
    /// Partial copies at the time of opening.
    partial: Vec<Partial>,
    /// Ids of page maps that more than one file names.
    contested: HashSet<MapId>,
    /// The frozen layers, topmost first.
    frozen: Vec<FrozenLayer>,
    /// Whether the scratch is removed when this is dropped.
    temporary: AtomicBool,
    /// Released last, after the removal of the directory.
    lock: Lock,
}

/// A layer of a scratch that is not written any more.
#[derive(Debug)]
pub struct FrozenLayer {
    /// Its name in `layers/`.
    pub id: String,
    /// Files of which only some pages are in it.
    pub partial: Vec<Partial>,
    /// Ids of page maps that more than one file names. None of these files can use the map.
    pub contested: HashSet<MapId>,
    opened: Opened,
}

impl FrozenLayer {
    /// Those that the state of a scratch lists.
    fn all(
        opened: &Opened,
        state: &State,
        here: &Whereabouts,
    ) -> Result<Vec<FrozenLayer>, Failure> {
        let mut all = Vec::new();
        for id in state.frozen() {
            let layer = opened.layer(id)?;
            let failed = |errno: Errno| told(layer.path(), "looking at it", errno.into());
            let found = sweep::Sweep::partial_in(&layer, state.marks);
            let (partial, contested) = found.map_err(failed)?;
            all.push(FrozenLayer { id: id.clone(), partial, contested, opened: layer });
        }
        if !state.is_in_place(here) {
            let mut copies = all.iter().map(|layer| &layer.opened).chain([opened]);
            copies.try_for_each(Opened::check_index)?;
        }
        Ok(all)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.opened.path()
    }

    /// The directory of its page maps, open.
    ///
    /// # Errors
    /// It is no directory by now; those of open(2).
    pub fn pages(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        sys::beneath::open(self.opened.fd(), layout::PAGES, flags, Mode::empty())
    }
}

/// Origin of a new scratch.
enum Begun {
    Made,
    Adopted,
}

/// Action that [`Scratch::open`] would take.
#[derive(Debug, Clone, PartialEq)]
pub enum Outlook {
    /// Make a scratch in memory, below this directory.
    InMemory(PathBuf),
    /// Make a scratch at this path.
    New(PathBuf),
    /// Make a scratch of an upper directory of overlayfs.
    Adopt(PathBuf),
    /// Open the scratch at this path.
    Again(PathBuf, Box<State>),
}

impl Scratch {
    /// Makes a scratch of `base` for a mount on `mountpoint`, or opens the scratch that `config`
    /// names. Both paths are absolute, without symbolic links.
    ///
    /// # Errors
    /// Kind `Failed`: the directory is no scratch and not empty, is in use, was written by a newer
    /// version, belongs to another base, is inside the base or the mount point, or its filesystem
    /// lacks a feature. A directory that this call has made is removed then.
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
            // A directory that is not empty stays; the first failure is the one to report.
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
        // The lock is held: the content is read again, and does not change any more.
        let (state, kind) = match opened.content()? {
            Content::Scratch(mut state) => {
                state.settle(&opened, config, BaseId::of(base)?)?;
                opened.finish_freezing(&mut state, &mut |_| Ok(()))?;
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

    /// Counts the content, and repairs the state that a killed daemon or a stopped machine has
    /// left.
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
        let frozen = FrozenLayer::all(&opened, &state, &here)?;
        // The state says that the scratch is in use before anything is written.
        state.begin(&opened, &here)?;
        let used = match state.kind {
            Kind::OwnTmpfs => 0,
            Kind::SharedMemory | Kind::Disk => found.bytes,
        };
        // A tmpfs of its own has the size of the limit, which the kernel enforces.
        let limit = state.max.filter(|_| state.kind != Kind::OwnTmpfs);
        let budget = Arc::new(QuotaLedger::new(limit, used));
        let bounded = state.kind == Kind::OwnTmpfs && state.max.is_some();
        let reserve = bounded.then(|| MetadataReserve::new(opened.fd())).transpose();
        let reserve = reserve
            .map_err(|errno| told(opened.path(), "reserving space for its metadata", errno.into()))?
            .map(Arc::new);
        let temporary = AtomicBool::new(temporary);
        Ok(Scratch {
            opened,
            state,
            budget,
            reserve,
            found,
            partial,
            contested,
            frozen,
            temporary,
            lock,
        })
    }

    /// Action that [`Scratch::open`] would take. Nothing is changed.
    ///
    /// # Errors
    /// Errors of [`Scratch::open`] that can be found without a change.
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

    /// Paths of its parts.
    pub fn layout(&self) -> &Layout {
        self.opened.layout()
    }

    /// State as it was when the scratch was opened.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Content as it was when the scratch was opened.
    pub fn found(&self) -> Usage {
        self.found
    }

    /// Partial copies that were in the scratch when it was opened.
    pub fn partial(&self) -> &[Partial] {
        &self.partial
    }

    /// Ids of page maps that more than one file names. None of these files can use the map.
    pub fn contested(&self) -> &HashSet<MapId> {
        &self.contested
    }

    /// The frozen layers, topmost first.
    pub fn frozen(&self) -> &[FrozenLayer] {
        &self.frozen
    }

    /// Namespace of its overlay xattrs.
    pub fn xattr_namespace(&self) -> XattrNamespace {
        self.state.marks
    }

    /// Ledger of the bytes that it uses.
    pub fn quota_ledger(&self) -> &Arc<QuotaLedger> {
        &self.budget
    }

    /// Space kept back for metadata; `None` unless it is a tmpfs of its own with a limit.
    pub fn reserve(&self) -> Option<&Arc<MetadataReserve>> {
        self.reserve.as_ref()
    }

    /// Size in bytes up to which a file is copied completely when it is first opened for writing.
    pub fn copy_up(&self) -> u64 {
        self.state.copy_up
    }

    /// Descriptor of the directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.opened.fd()
    }

    /// Opens the directory of the page maps.
    ///
    /// # Errors
    /// ENOTDIR if it is no directory any more; errors of open(2).
    pub fn pages(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        sys::beneath::open(self.opened.fd(), layout::PAGES, flags, Mode::empty())
    }

    /// Space of the mount as statfs(2) shows it, in bytes.
    ///
    /// # Errors
    /// Errors of statvfs(3).
    pub fn space(&self) -> Result<QuotaSpace, Errno> {
        let found = rustix::fs::fstatvfs(self.opened.fd())?;
        Ok(self.budget.space(&match &self.reserve {
            Some(reserve) => reserve.without(found),
            None => found,
        }))
    }

    /// Used bytes: all used bytes of a tmpfs of its own, else the counted ones.
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

    /// Whether the scratch is removed at unmount.
    pub fn is_temporary(&self) -> bool {
        self.temporary.load(Ordering::Relaxed)
    }

    /// Makes a scratch on disk durable, and then notes in its state that it is in order. `note`
    /// runs when all data is durable; its writes are made durable too. Nothing may be written
    /// afterwards.
    ///
    /// # Errors
    /// Errors of syncfs(2), of `note` and of writing the state. The scratch is
    /// not in order then, and is repaired when it is opened on another mount.
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

    /// Keeps the scratch at unmount, also if it was made for this mount alone.
    pub fn keep(&self) {
        self.temporary.store(false, Ordering::Relaxed);
    }
}

impl Drop for Scratch {
    /// Removes a temporary scratch. Files of it that are still open do not prevent this.
    fn drop(&mut self) {
        if *self.temporary.get_mut()
            && let Err(failure) = registry::take_down(&self.opened, &self.state)
        {
            log::error!("{failure}");
        }
        self.lock.release();
    }
}

/// Refuses a path that exists and is no directory.
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

/// Failure of `doing` on a path of a scratch. A read-only filesystem gets an explanation.
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

/// Limit in bytes of a scratch on disk. A percentage is of the size of its filesystem.
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
