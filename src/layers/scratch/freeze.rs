//! Freezing the top layer of a scratch, and putting an empty one over it.
//!
//! The decision is one replaced `state.json`, which lists the new top layer above the frozen one
//! and says that parts are being moved. The moves are finished by the next one who opens the
//! scratch, whenever a process is killed between two of them:
//!
//! 1. All data and page maps are made durable: data, then the synced bits of all maps, then these.
//! 2. `state.json` is replaced, durably: from here on the layer is frozen.
//! 3. `upper/`, `index/` and `pages/` move to `layers/ID/`, each by one rename. Where `layers/ID/`
//!    has a part, that was moved before.
//! 4. A new `upper/` with the attributes of the frozen one is made in `work/` and moved to its place.
//! 5. The directories are synchronised, and `state.json` says that all is moved.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::create::{LARGEST_XATTR, new_id};
use super::layout::{INDEX, LAYERS, Layout, PAGES, UPPER, WORK};
use super::lock::Lock;
use super::opened::Opened;
use super::state::{Kind, State, Whereabouts};
use super::sweep::Sweep;
use super::xattr_namespace::XattrNamespace;
use super::{FrozenLayer, told};
use crate::error::Failure;
use crate::layers::pages::{MapAccess, MapError, MapId, PageMap};
use crate::shown::Show;
use crate::sys::walk;

/// The parts of a layer.
const MOVED: [&CStr; 3] = [UPPER, INDEX, PAGES];

/// A step of freezing that is about to be taken. An error ends the process there, as a signal
/// would.
pub type Before<'a> = &'a mut dyn FnMut(&str) -> Result<(), Failure>;

/// Freezes the top layer of a scratch that is not in use, and puts an empty one over it. Returns
/// the id of the frozen layer.
///
/// # Errors
/// It is no scratch, is in use, has lost xattrs, or has as many layers as there may be; those of
/// the filesystem.
pub fn freeze(dir: &Path) -> Result<String, Failure> {
    freeze_stepwise(dir, &mut |_| Ok(()))
}

/// The same with a call before each step.
///
/// # Errors
/// As [`freeze`], and those of the call.
pub fn freeze_stepwise(dir: &Path, before: Before<'_>) -> Result<String, Failure> {
    let opened = Opened::at(&Layout::at(dir.to_owned()))?;
    let mut lock = Lock::bare(&opened)?;
    let state = State::read(&opened)?;
    let mut state = state.ok_or_else(|| Failure::failed(dir.shown(), "it is not a scratch"))?;
    let frozen = opened.freeze(&mut state, before);
    lock.release();
    frozen
}

impl Opened {
    fn freeze(&self, state: &mut State, before: Before<'_>) -> Result<String, Failure> {
        let failed = |errno: Errno| told(self.path(), "freezing its top layer", errno.into());
        self.finish_freezing(state, before)?;
        self.complete()?;
        self.empty_work()?;
        let here = Whereabouts::of(self.fd()).map_err(failed)?;
        before("sweep")?;
        Sweep::run(self, state, &here)?.found()?;
        FrozenLayer::all(self, state, &here)?;
        state.begin(self, &here)?;
        let sync = || match state.kind {
            Kind::Disk => rustix::fs::syncfs(self.fd()).map_err(failed),
            Kind::OwnTmpfs | Kind::SharedMemory => Ok(()),
        };
        sync()?;
        before("sync maps")?;
        self.sync_maps()?;
        sync()?;
        let id = state.put_layer_on_top(new_id()?)?;
        state.in_order = state.kind == Kind::Disk;
        before("decide")?;
        state.write(self)?;
        self.finish_freezing(state, before)?;
        Ok(id)
    }

    /// Makes all bits of all page maps synced, whose data is durable.
    fn sync_maps(&self) -> Result<(), Failure> {
        let pages = std::sync::Arc::new(self.directory(PAGES)?);
        let failed = |errno: Errno| self.told(PAGES, "synchronising a page map", errno.into());
        for name in walk::names_in(&pages).map_err(failed)? {
            let Some(id) = name.to_str().ok().and_then(|name| name.parse::<MapId>().ok()) else {
                continue;
            };
            let synced = PageMap::open(&*pages, id, MapAccess::Write).and_then(|mut map| {
                if let Some(seen) = map.unsynced() {
                    map.sync_bits(&seen)?;
                }
                Ok(map.save_limit()?)
            });
            match synced {
                Err(MapError::Io(errno)) => return Err(failed(errno)),
                // The one who opens its file is told.
                Err(err) => log::warn!("page map {id}: {err}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Takes the steps of freezing that are left, after the decision.
    ///
    /// # Errors
    /// Errors of the filesystem.
    pub(super) fn finish_freezing(
        &self,
        state: &mut State,
        before: Before<'_>,
    ) -> Result<(), Failure> {
        let Some(id) = state.freezing().map(str::to_owned) else { return Ok(()) };
        before("make the directory")?;
        self.make_directory(LAYERS)?;
        let layer = self.make_layer(&id)?;
        for part in MOVED {
            before("move a part")?;
            let (from, to) = (self.fd(), layer.fd());
            match rustix::fs::renameat_with(from, part, to, part, RenameFlags::NOREPLACE) {
                // It was moved before.
                Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOENT) => {}
                Err(errno) => return Err(self.told(part, "moving it", errno.into())),
            }
        }
        self.make_upper(&layer, before)?;
        self.make_directory(INDEX)?;
        self.make_directory(PAGES)?;
        before("synchronise")?;
        let layers = self.directory(LAYERS)?;
        let synced = rustix::fs::fsync(layer.fd())
            .and_then(|()| rustix::fs::fsync(&layers))
            .and_then(|()| rustix::fs::fsync(self.fd()));
        synced.map_err(|errno| told(self.path(), "synchronising it", errno.into()))?;
        state.set_frozen();
        before("tell")?;
        state.write(self)
    }

    /// Makes the root of the new top layer, unless it is there.
    fn make_upper(&self, layer: &Opened, before: Before<'_>) -> Result<(), Failure> {
        let failed = |errno: Errno| self.told(UPPER, "making it", errno.into());
        match rustix::fs::statat(self.fd(), UPPER, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            found => return found.map(drop).map_err(failed),
        }
        self.make_directory(WORK)?;
        self.empty_work()?;
        let work = self.directory(WORK)?;
        before("make the root")?;
        rustix::fs::mkdirat(&work, UPPER, Mode::RWXU).map_err(failed)?;
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let upper = crate::sys::beneath::open(&work, UPPER, flags, Mode::empty());
        let upper = upper.map_err(failed)?;
        dress_like(layer.directory(UPPER)?, &upper).map_err(failed)?;
        rustix::fs::fsync(&upper).map_err(failed)?;
        before("move the root")?;
        rustix::fs::renameat(&work, UPPER, self.fd(), UPPER).map_err(failed)
    }
}

/// Gives a new root the attributes of a frozen one: owner, attributes, mode and times. Overlay
/// xattrs are of the frozen layer.
fn dress_like(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let found = rustix::fs::fstat(&from)?;
    let owner = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    if let Err(errno) = rustix::fs::fchown(&to, Some(owner.0), Some(owner.1)) {
        log::debug!("owner of a frozen root: {errno}");
    }
    super::layout::drop_lists(&to);
    rustix::fs::fchmod(&to, Mode::from_raw_mode(found.st_mode & 0o7777))?;
    let (mut names, mut value) = (vec![0; LARGEST_XATTR], vec![0; LARGEST_XATTR]);
    let len = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0, // A filesystem without attributes.
        found => found?,
    };
    for name in names.get(..len).unwrap_or_default().split(|byte| *byte == 0) {
        if name.is_empty() || XattrNamespace::is_overlay_xattr(name) {
            continue;
        }
        let copied = rustix::fs::fgetxattr(&from, name, &mut value[..]).and_then(|len| {
            let value = value.get(..len).unwrap_or_default();
            rustix::fs::fsetxattr(&to, name, value, XattrFlags::empty())
        });
        if let Err(errno) = copied {
            log::debug!("an attribute of a frozen root: {errno}");
        }
    }
    let time = |sec: i64, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec as _ };
    let times = Timestamps {
        last_access: time(found.st_atime, found.st_atime_nsec),
        last_modification: time(found.st_mtime, found.st_mtime_nsec),
    };
    rustix::fs::futimens(&to, &times)
}
