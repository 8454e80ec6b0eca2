//! Validity of replies: replies that the kernel may cache, because a watch reports direct changes
//! of the backing tree.
//!
//! The watch is above this module, and invalidates the kernel's cache. The volume decides which
//! replies the watch covers, and finds the inode of a change. A change may be reported before the
//! outdated reply has reached the inode table, when there is no inode to invalidate. So changes are
//! counted before their inodes are looked up, and a reply during which the count has moved is not
//! cached.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Volume;
use super::identity::Seen;
use super::inode::Node;
use crate::mapping::OpenMode;
use crate::sys;
use crate::sys::handle::FileHandle;
use crate::tree::{
    Caching, Coherence, Entry, Ino, Inspect, Invalidate, Stat, Validity, WatchCounts,
};

/// Way in which clients may be writing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Not,
    /// By requests, which the kernel sees.
    ByRequest,
    /// In the backing file, by passthrough.
    Directly,
}

/// Watches single directories, and the files with one name that are in them.
pub trait WatchDirectories: Send + Sync {
    /// Watches an open directory from now on, unless the limit of watches is reached.
    fn watch(&self, ino: Ino, dir: BorrowedFd<'_>);

    /// Whether a directory is watched.
    fn is_watched(&self, ino: Ino) -> bool;

    /// Ends the watch on a directory, unless `known` says that the kernel knows it again.
    fn forget(&self, ino: Ino, dir: Option<BorrowedFd<'_>>, known: &dyn Fn() -> bool);

    /// Number of watched directories.
    fn count(&self) -> u64;
}

/// The watched places.
pub enum Coverage {
    /// Everything on the source's own mount.
    Filesystem,
    /// Directories in use.
    Directories(Box<dyn WatchDirectories>),
}

/// Receiver of changes that were made directly in a volume, by the numbers of that volume. None of
/// its methods is called by a thread that the kernel waits for, or with a lock held.
pub trait ChangeSink: Send + Sync {
    /// A name in a directory was made, removed, or leads to another file. With `leads_on` it is on
    /// the path of a mount inside of this mount, which stays if the name still leads to the same
    /// file.
    fn name(&self, parent: Ino, name: &OsStr, leads_on: bool);

    /// The attributes of a file or directory have changed, and with `data` its content. Returns
    /// whether the change is to be reported again, because an outdated reply is under way.
    fn inode(&self, ino: Ino, data: bool) -> bool;

    /// Directories with these names were made, removed or moved anywhere in the volume.
    fn directories(&self, names: &HashSet<OsString>);

    /// Anything may have changed. Known names and files are reported one by one.
    fn everything(&self);

    /// Directory and name of a path in the mount; `None` if it is not of this volume.
    fn place_of(&self, path: &Path) -> Option<(Ino, OsString)>;
}

impl ChangeSink for Volume {
    fn name(&self, parent: Ino, name: &OsStr, leads_on: bool) {
        let Some(caches) = self.kernel_caches() else { return };
        self.note_sent(match leads_on {
            true => caches.expire(parent, name),
            false => caches.entry(parent, name),
        });
    }

    fn inode(&self, ino: Ino, data: bool) -> bool {
        let Some(caches) = self.kernel_caches().filter(|_| self.is_told_of(ino)) else {
            return false;
        };
        match caches.inode(ino, data) {
            Err(Errno::NOENT) => self.is_known(ino),
            result => {
                self.note_sent(result);
                false
            }
        }
    }

    fn directories(&self, _: &HashSet<OsString>) {
        // They are found by where they are.
    }

    fn everything(&self) {}

    fn place_of(&self, path: &Path) -> Option<(Ino, OsString)> {
        Volume::place_of(self, path)
    }
}

/// Part of a watch that belongs to the volume.
#[derive(Default)]
pub(super) struct Watched {
    coverage: OnceLock<Coverage>,
    /// Reason why there is no watch.
    reason: OnceLock<String>,
    ended: AtomicBool,
    /// The kernel can drop all cached names at once.
    all_names: AtomicBool,
    /// There is a mount below the mount point, which would be unmounted with the names.
    holds_mounts: AtomicBool,
    changes: AtomicU64,
    counts: WatchCounts,
    root: Option<FileHandle>,
    /// Handles of this filesystem carry the inode number.
    numbered: bool,
}

impl Watched {
    /// For a root with this number.
    pub(super) fn new(root: &OwnedFd, stat: &Stat) -> Watched {
        let root = sys::handle::handle_of(root, c"").ok();
        let carries = |handle: &FileHandle| handle.inode_candidates().contains(&stat.ino);
        Watched { numbered: root.as_ref().is_some_and(carries), root, ..Watched::default() }
    }

    fn coverage(&self) -> Option<&Coverage> {
        self.coverage.get().filter(|_| !self.ended.load(Ordering::Acquire))
    }

    fn directories(&self) -> Option<&dyn WatchDirectories> {
        match self.coverage()? {
            Coverage::Filesystem => None,
            Coverage::Directories(directories) => Some(&**directories),
        }
    }

    /// Number of changes reported so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }
}

impl Caching for Volume {
    fn names_validity(&self, parent: Ino) -> Validity {
        let main = |ino| self.inodes.get(ino).is_some_and(|node| self.devices.is_main(node.key()));
        match self.watched.coverage() {
            Some(Coverage::Filesystem) if main(parent) => Validity::UntilInvalidated,
            Some(Coverage::Directories(watch)) if watch.is_watched(parent) => {
                Validity::UntilInvalidated
            }
            _ => Validity::Timeout,
        }
    }

    fn keeps_listings(&self, _: Ino) -> bool {
        true
    }

    fn drops_all_names(&self) -> bool {
        self.watched.all_names.load(Ordering::Relaxed) && !self.holds_mounts()
    }
}

impl Coherence for Volume {
    fn connect(&self, invalidate: Box<dyn Invalidate>) {
        if self.invalidate.set(invalidate).is_err() {
            log::error!("the volume is connected to a second kernel session");
        }
    }

    fn watch_state(&self) -> Result<String, String> {
        match self.watched.coverage() {
            Some(Coverage::Filesystem) => Ok(String::from("fanotify on the filesystem")),
            Some(Coverage::Directories(directories)) => {
                Ok(format!("fanotify on directories: {}", directories.count()))
            }
            None => Err(self.watched.reason.get().cloned().unwrap_or_else(|| "off".into())),
        }
    }

    fn watch_counts(&self) -> &WatchCounts {
        &self.watched.counts
    }

    fn validity(&self) -> Validity {
        match self.watch_state() {
            Ok(_) => Validity::UntilInvalidated,
            Err(_) => Validity::Timeout,
        }
    }

    fn directories_open_silently(&self) -> bool {
        self.watches_filesystem() && self.cookies_outlive_opens()
    }

    /// Where the kernel opens files without asking, nobody else would keep it from showing their
    /// content. It is dropped soon, by another thread.
    fn drop_unreadable(&self) {
        self.unopened.clear().iter().for_each(|open| self.close(open));
        let mut files = Vec::new();
        self.inodes.for_each(|node| {
            if node.kind() == libc::S_IFREG {
                files.push(node.ino);
            }
        });
        for node in files.into_iter().filter_map(|ino| self.inodes.get(ino)) {
            if !self.mode_of(&node).readable()
                && let Some(caches) = self.kernel_caches()
            {
                caches.soon(node.ino);
            }
        }
    }
}

impl Volume {
    /// Sets the watched places, once, before the first request.
    pub fn watch(&self, coverage: Coverage) {
        if self.watched.coverage.set(coverage).is_err() {
            log::error!("the volume is watched twice");
        }
    }

    /// Sets the reason why nothing is watched.
    pub fn not_watched(&self, reason: String) {
        self.watched.ended.store(true, Ordering::Release);
        let _ = self.watched.reason.set(reason); // The first reason is the one to report.
    }

    /// Whether one file may be at two places of the mount, because a part of the source is mounted
    /// again below it. A change at one place is then a change at the other.
    pub fn shows_twice(&self) -> bool {
        self.devices.has_twin()
    }

    /// Whether every change on the source's own mount is reported.
    pub fn watches_filesystem(&self) -> bool {
        matches!(self.watched.coverage(), Some(Coverage::Filesystem))
    }

    /// The open source directory, to watch its filesystem.
    pub fn watch_point(&self) -> BorrowedFd<'_> {
        self.devices.source().as_fd()
    }

    /// The handle of the root, where the filesystem has handles.
    pub fn root_handle(&self) -> Option<&FileHandle> {
        self.watched.root.as_ref()
    }

    /// Invalidation of the kernel's caches, once the volume is connected.
    pub fn kernel_caches(&self) -> Option<&dyn Invalidate> {
        self.invalidate.get().map(|invalidate| &**invalidate)
    }

    /// Finds out whether the kernel can drop all cached names at once.
    pub fn try_dropping_names(&self) {
        let dropped = self.kernel_caches().is_some_and(|caches| caches.names().is_ok());
        self.watched.all_names.store(dropped, Ordering::Relaxed);
    }

    /// Sets whether there is a mount below the mount point.
    pub fn set_holds_mounts(&self, holds: bool) {
        self.watched.holds_mounts.store(holds, Ordering::Relaxed);
    }

    /// Whether there is a mount below the mount point.
    pub fn holds_mounts(&self) -> bool {
        self.watched.holds_mounts.load(Ordering::Relaxed)
    }

    /// Counts an invalidation that was sent to the kernel.
    pub fn note_sent(&self, result: Result<(), Errno>) {
        self.watched.counts.invalidations.fetch_add(1, Ordering::Relaxed);
        if let Err(err) = result {
            log::debug!("watch: invalidating: {err}");
        }
    }

    /// Counts reported changes. It is called before their inodes are looked up.
    pub fn count_changes(&self) {
        self.watched.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Inode of the file with a handle, if the kernel knows it.
    pub fn known_by(&self, handle: &FileHandle) -> Option<Ino> {
        if self.watched.root.as_ref() == Some(handle) {
            return Some(Ino::ROOT);
        }
        let is = |node: &Node| node.handle.as_ref() == Some(handle);
        for number in handle.inode_candidates() {
            let number = self.devices.main_number(number);
            if let Some(node) = self.inodes.find_where(number, is) {
                return Some(node.ino);
            }
        }
        if self.watched.numbered || !self.by_handle {
            return None;
        }
        // If the handle does not contain the inode number, the file is opened for it.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = sys::handle::open_handle(self.watch_point(), handle, flags).ok()?;
        let seen = Seen::by(&fd).ok()?;
        let number = self.devices.number(&seen.stat, seen.stat.ino);
        Some(self.inodes.find(number, &seen)?.ino)
    }

    /// Whether a change of an inode has to be invalidated, because the kernel may use cached
    /// attributes. Where the kernel asks for attributes at each use, an invalidation would do harm:
    /// the kernel drops a reply whose request is older than the invalidation, and goes on with its
    /// earlier attributes: an old size and old pages, or the setuid bit of a program that another
    /// process has written to. There cached pages are dropped because the reply has another time of
    /// change, which needs exact timestamps. The attributes of a file that a mapping may store to
    /// are asked for at each use as well.
    pub fn is_told_of(&self, ino: Ino) -> bool {
        let Some(node) = self.inodes.get(ino) else { return self.keeps_attributes };
        if node.had_set_id() {
            return false;
        }
        let by_its_times = node.kind() != libc::S_IFREG || self.devices.has_exact_times();
        let keeps_attributes = self.keeps_attributes && !node.stored_to.load(Ordering::SeqCst);
        keeps_attributes || !by_its_times
    }

    /// Whether the kernel knows an inode, or is about to.
    pub fn is_known(&self, ino: Ino) -> bool {
        self.inodes.get(ino).is_some()
    }

    /// Every inode that the kernel knows, with the directory and name where it was seen last.
    pub fn everything_known(&self) -> Vec<(Ino, (Ino, OsString))> {
        let mut known = Vec::new();
        self.inodes.for_each(|node| {
            let (parent, name) = node.seen();
            known.push((node.ino, (parent, name.into())));
        });
        known
    }

    /// Notes that a file was moved from a name (`away`) or to it directly in the backing tree.
    pub fn moved_directly(&self, ino: Ino, parent: Ino, name: &OsStr, away: bool) {
        if self.watched.directories().is_some()
            && let Some(node) = self.inodes.get(ino)
        {
            match away {
                true => node.left(parent, name),
                false => node.seen_at(parent, name, false),
            }
        }
    }

    /// The names at which the kernel has seen the roots of other mounts, with the mounts' numbers.
    pub fn mount_points_seen(&self) -> Vec<(Ino, OsString, u64)> {
        let mut seen = Vec::new();
        if self.devices.has_others() {
            self.inodes.for_each(|node| {
                if !self.devices.is_main(node.key()) {
                    seen.push((node.seen(), node.key().mount));
                }
            });
        }
        let main = |ino| self.inodes.get(ino).is_some_and(|node| self.devices.is_main(node.key()));
        seen.retain(|((parent, _), _)| main(*parent));
        seen.into_iter().map(|((parent, name), mount)| (parent, name.into(), mount)).collect()
    }

    /// Directory and name of a path below the source.
    pub fn place_of(&self, path: &Path) -> Option<(Ino, OsString)> {
        let below: PathBuf = path.parent()?.into();
        Some((self.find(&below).ok()?.ino, path.file_name()?.to_owned()))
    }

    /// Validity of the attributes of a file. A write may clear setuid and setgid bits, and the
    /// kernel's inode would keep them when the file is executed. A file that once had them is never
    /// cached, since the first reply without them must not be dropped for an invalidation: see
    /// [`Volume::is_told_of`]. A store through a client's mapping of a passthrough file changes its
    /// times, which is not reported before the mapping ends: while one may exist, the attributes
    /// are not cached.
    pub fn attr_validity(&self, ino: Ino, stat: &Stat) -> Validity {
        if !stat.is_dir() {
            let set_id = stat.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
            let node = self.inodes.get(ino);
            if let Some(node) = node.as_ref().filter(|_| set_id) {
                node.note_set_id();
            }
            if set_id || node.is_some_and(|node| node.had_set_id()) {
                return Validity::Uncached;
            }
        }
        let written = self.written(ino, stat);
        if written == Written::Directly {
            return Validity::Uncached;
        }
        let told = self.devices.is_main(stat)
            && match self.watched.coverage() {
                None => false,
                Some(Coverage::Filesystem) => true,
                Some(Coverage::Directories(watch)) if stat.is_dir() => watch.is_watched(ino),
                // A change through another name is not reported.
                Some(Coverage::Directories(watch)) => {
                    stat.nlink == 1
                        && self.inodes.get(ino).is_some_and(|node| watch.is_watched(node.seen().0))
                }
            };
        if told && written == Written::Not { Validity::UntilInvalidated } else { Validity::Timeout }
    }

    /// Way in which clients of the mount may be writing a file. A mapping of a passthrough file
    /// outlives its descriptors. After the last close a lease shows whether one is left; if not,
    /// the file counts as not written from the next call on.
    fn written(&self, ino: Ino, stat: &Stat) -> Written {
        if stat.kind() != libc::S_IFREG {
            return Written::Not;
        }
        let node = self.inodes.get(ino);
        let lent = node.as_ref().filter(|node| node.stored_to.load(Ordering::SeqCst));
        let is_open = || self.files.get(stat.key()).is_some_and(|file| file.is_written());
        let Some(node) = lent else {
            return if is_open() { Written::ByRequest } else { Written::Not };
        };
        if is_open() {
            return Written::Directly;
        }
        if let Ok(file) = self.open_backing(node, OpenMode::Read, false)
            && let Ok(fd) = file.any()
        {
            self.planes.note_unwritten(fd.as_fd(), &node.stored_to, is_open);
        }
        // These attributes were read before the test, and a change since then is not reported.
        Written::Directly
    }

    /// Entry whose attributes are not cached if a change was reported since `changes` was read.
    pub(super) fn settled(&self, mut entry: Entry, changes: u64) -> Entry {
        if self.watched.changes() != changes {
            entry.attr.validity = Validity::Uncached;
        }
        entry
    }

    /// Validity of a name that leads to a file. A mount on a name is not reported as a change of
    /// it. Where rules depend on the name, the volume has to know the name by which a file is used.
    pub(super) fn entry_validity(&self, parent: Ino, stat: &Stat) -> Validity {
        let by_name = !stat.is_dir() && self.rule_count() > 0;
        match self.devices.is_main(stat) {
            true if by_name && stat.nlink > 1 => Validity::Uncached,
            true if !by_name => self.names_validity(parent),
            _ => Validity::Timeout,
        }
    }

    /// Watches a directory before its names are looked at.
    pub(super) fn watch_directory(&self, node: &Node, dir: impl AsFd) {
        if let Some(watch) = self.watched.directories()
            && self.devices.is_main(node.key())
        {
            watch.watch(node.ino, dir.as_fd());
        }
    }

    /// Ends the watch on a directory that the kernel has forgotten.
    pub(super) fn unwatch_directory(&self, node: &Node) {
        if let Some(watch) = self.watched.directories()
            && watch.is_watched(node.ino)
        {
            let dir = self.pin_by_name(node);
            watch.forget(node.ino, dir.as_ref().map(|fd| fd.as_fd()), &|| self.is_known(node.ino));
        }
    }
}
