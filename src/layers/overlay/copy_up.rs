//! Copy-up: what is only below gets a file of its own in the upper volume, without its data.
//!
//! The copy is made in the work directory and moved to its place when all of it is there, so that
//! a daemon that is killed leaves either nothing or all. No directory above it is seen to change.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::ino::original as original_number;
use super::layer::is_whiteout;
use super::lower_answers::Original;
use super::names::Upper;
use super::namespace_lock::{Halt, NamesWrite, Step};
use super::node::{LayerStack, LowerInode, Node};
use super::overlay_xattrs::Links;
use crate::layers::pages::Fingerprint;
use crate::layers::scratch::{LONGEST_IN_MARK, PathId};
use crate::mapping::OpenMode;
use crate::shown::Show;
use crate::tree::{
    Attributes, Entry, Files, Ino, Names, NewNode, NewTime, Open, SetAttr, Stat, WhyMapped,
    XattrFlags, Xattrs,
};

impl Overlay {
    /// A name that nothing else has.
    pub(super) fn temporary_name(&self) -> OsString {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{}{serial:x}", super::TEMPORARY).into()
    }

    /// The number of a node in the upper volume, where it is copied first if it is only below.
    ///
    /// # Errors
    /// ENOSPC and the others of making a file.
    pub(super) fn ensure_upper(&self, names: &NamesWrite<'_>, node: &Arc<Node>) -> Step<Ino> {
        // Those above it first: one after the other, however deep it is.
        let mut missing: Vec<(Arc<Node>, Rc<Original>)> = Vec::new();
        let mut next = Some(Arc::clone(node));
        while let Some(lowest) = next.filter(|node| node.upper().is_none()) {
            next = lowest.parent().filter(|_| lowest.is_linked());
            let at = lowest.stack().lowers.first().copied().ok_or(Errno::STALE)?;
            missing.push((lowest, names.below().original(at)?));
        }
        for (node, original) in missing.iter().rev() {
            self.for_a_record(|| self.copy_up(names, node, original))?;
        }
        node.upper().ok_or(Halt::Failed(Errno::STALE))
    }

    fn copy_up(
        &self,
        names: &NamesWrite<'_>,
        node: &Arc<Node>,
        original: &Original,
    ) -> Result<Ino, Errno> {
        self.check_room()?;
        let stat = original.stat;
        let (name, cloned) = original.clone.take().unzip();
        let temporary = name.unwrap_or_else(|| self.temporary_name());
        let (entry, stack) = match node.kind {
            libc::S_IFDIR => (self.copy_dir(&temporary)?, LayerStack::default()),
            libc::S_IFREG => self.copy_regular(&temporary, node, &original.fingerprint, cloned)?,
            libc::S_IFLNK => {
                let link = (self.work, &*original.target);
                let entry = self.upper.make_symlink(link.0, &temporary, link.1, &self.me)?;
                (entry, LayerStack::default())
            }
            _ => {
                let entry = self.make_device(
                    self.work,
                    &temporary,
                    &self.own(stat.kind() | 0o600),
                    stat.rdev,
                )?;
                let null_device = is_whiteout(&stat);
                (entry, LayerStack { null_device, ..LayerStack::default() })
            }
        };
        let upper = entry.attr.ino;
        let finished = self
            .copy_attributes(original, upper)
            .and_then(|()| {
                let (origin, number) = (&original.fingerprint, original_number(node.ino));
                self.top.xattrs.keep_origin(&self.upper, upper, origin, number)
            })
            .and_then(|()| self.put_in_place(names, node, &temporary, (upper, &stat)));
        let links = match finished {
            Ok(links) => links,
            Err(err) => {
                // One that was moved to its place before the error names its map there.
                let removed = self.upper.remove(self.work, &temporary, node.is_dir()).is_ok();
                stack.pages.filter(|_| removed).into_iter().for_each(|id| self.drop_page_map(id));
                self.upper.forget(upper, 1);
                return Err(err);
            }
        };
        let whole = !node.is_dir() && stack.pages.is_none();
        let mut left = LayerStack::default();
        node.change_stack(|known| {
            known.upper = Some(upper);
            known.pages = stack.pages;
            known.path = stack.path;
            known.links = links;
            known.null_device = stack.null_device;
            if whole {
                left.lowers = std::mem::take(&mut known.lowers);
            }
        });
        node.set_namespace_dirty();
        self.nodes.note_not_below(node.ino, &left.lowers);
        if whole && node.is_regular() {
            self.note_complete(node, &stat);
        }
        self.let_go(&left);
        self.count_stored(node);
        self.nodes.copied_up(node, upper);
        names.note_copied_up(node);
        self.count_copy(node);
        Ok(upper)
    }

    /// Guards the base of a copy that was just made.
    pub(super) fn guard_copied_up(&self, node: Arc<Node>) {
        if let Err(err) = self.guard_partial(&node) {
            log::warn!("{}: guarding its base: {err}", self.path_of(&node).shown());
        }
        let ino = node.ino;
        drop(node);
        self.drop_unused(ino);
    }

    fn copy_dir(&self, name: &OsStr) -> Result<Entry, Errno> {
        let new = NewNode { mode: libc::S_IFDIR | 0o700, umask: 0, caller: &self.me };
        self.upper.make_dir(self.work, name, &new)
    }

    /// mknod(2) in the upper volume. A character device 0/0 gets another number and a mark.
    pub(super) fn make_device(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode<'_>,
        device: u64,
    ) -> Result<Entry, Errno> {
        if new.mode & libc::S_IFMT != libc::S_IFCHR || device != 0 {
            return self.upper.make_node(parent, name, new, device);
        }
        let mut entry = self.upper.make_node(parent, name, new, rustix::fs::makedev(0, 1))?;
        let inner = entry.attr.ino;
        self.top.xattrs.write(&self.upper, inner, "mmapfs.null", b"").inspect_err(|_| {
            let _ = self.upper.remove(parent, name, false);
            self.upper.forget(inner, 1);
        })?;
        entry.attr.stat.rdev = 0;
        Ok(entry)
    }

    /// A regular file of the same length: a clone of the one below, if there is one, else one that
    /// has no page of its own yet.
    fn copy_regular(
        &self,
        name: &OsStr,
        node: &Node,
        origin: &Fingerprint,
        cloned: Option<Entry>,
    ) -> Result<(Entry, LayerStack), Errno> {
        let entry = match cloned {
            Some(entry) => entry,
            None => self.create_empty(name)?,
        };
        let upper = entry.attr.ino;
        match self.prepare_data(upper, node, origin, cloned.is_some()) {
            Ok(stack) => Ok((entry, stack)),
            Err(err) => {
                let _ = self.upper.remove(self.work, name, false);
                self.upper.forget(upper, 1);
                Err(err)
            }
        }
    }

    fn create_empty(&self, name: &OsStr) -> Result<Entry, Errno> {
        let new = NewNode { mode: libc::S_IFREG | 0o600, umask: 0, caller: &self.me };
        let how =
            Open { read: true, write: true, unlent: Some(WhyMapped::Merged), ..Open::default() };
        let refuse = super::never_registered;
        let (entry, opened) = self.upper.create(self.work, name, &new, &how, true, &refuse)?;
        self.upper.release(opened.id)?;
        Ok(entry)
    }

    fn prepare_data(
        &self,
        upper: Ino,
        node: &Node,
        origin: &Fingerprint,
        cloned: bool,
    ) -> Result<LayerStack, Errno> {
        let whole = origin.size == 0 || cloned;
        // Descriptors that wait for what is written have a page map, which may be that of a whole
        // file.
        if whole && node.shared_open.lock().strong_count() == 0 {
            return Ok(LayerStack::default());
        }
        self.prepare_sparse(upper, node, origin, if whole { 0 } else { origin.size })
    }

    /// A clone of a file below in the work directory, where both are on a filesystem that makes
    /// these (FICLONE of ioctl_ficlonerange(2)): no byte is copied, and later changes of the one
    /// below are none of the copy's. Not where the scratch is bounded by counting: each shared
    /// block counts. It may take long (a file of many pieces, or one with pages that are not on the
    /// disk yet): nothing is locked.
    pub(super) fn make_clone(&self, at: LowerInode) -> Result<Option<(OsString, Entry)>, Errno> {
        if !self.may_clone() {
            return Ok(None);
        }
        let Ok(below) = self.open_below(at) else { return Ok(None) };
        let name = self.temporary_name();
        let entry = self.create_empty(&name)?;
        if self.clone_data(entry.attr.ino, &below) {
            return Ok(Some((name, entry)));
        }
        self.drop_clone(&name, &entry);
        Ok(None)
    }

    /// Removes a clone that nothing is made of.
    pub(super) fn drop_clone(&self, name: &OsStr, entry: &Entry) {
        if let Err(err) = self.upper.remove(self.work, name, false) {
            log::warn!("{}: removing a clone: {err}", name.shown()); // It goes at the next mount.
        }
        self.upper.forget(entry.attr.ino, 1);
    }

    fn clone_data(&self, upper: Ino, below: &OwnedFd) -> bool {
        let to = self.upper.open_descriptor(upper, OpenMode::Write);
        let cloned = to.and_then(|to| rustix::fs::ioctl_ficlone(to.any()?, below));
        match cloned {
            Ok(()) => {
                self.stats.cloned_files.fetch_add(1, Ordering::Relaxed);
                true
            }
            // Another filesystem than that of the scratch, or one without clones. Where a file was
            // cloned before, it is one that is mounted in the base.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY) => {
                if self.stats.cloned_files.load(Ordering::Relaxed) == 0 {
                    self.clones.store(false, Ordering::Relaxed);
                }
                false
            }
            // This file cannot be cloned: the pages of it are copied as they are written.
            Err(err) => {
                log::debug!("cloning a file of the base: {err}");
                false
            }
        }
    }

    /// Whether files of the base may be cloned, as far as it is known.
    pub(super) fn may_clone(&self) -> bool {
        self.quota.is_none() && self.clones.load(Ordering::Relaxed)
    }

    /// Gives a new upper file its size, and a map that says that the pages up to `limit`, in bytes,
    /// are those of the base.
    fn prepare_sparse(
        &self,
        upper: Ino,
        node: &Node,
        base: &Fingerprint,
        limit: u64,
    ) -> Result<LayerStack, Errno> {
        if limit > 0 {
            let size = SetAttr { size: Some(base.size), ..SetAttr::default() };
            self.upper.set_attr(upper, None, size, &self.me)?;
        }
        let path = self.path_below(node);
        let pages = self.new_page_map(base, limit, upper)?;
        let mark =
            |name: &str, value: &[u8]| self.top.xattrs.write(&self.upper, upper, name, value);
        let marked = mark("mmapfs.pages", pages.to_string().as_bytes())
            .and_then(|()| self.write_redirect(upper, &path))
            .and_then(|path| mark("overlay.metacopy", b"").map(|()| path));
        let path = marked.inspect_err(|_| self.drop_page_map(pages))?;
        Ok(LayerStack { pages: Some(pages), path, ..LayerStack::default() })
    }

    /// XattrStore where in the lower layers something is. A path that is too long for a mark is stored
    /// beside the page maps, and the mark names it.
    pub(super) fn write_redirect(&self, upper: Ino, path: &Path) -> Result<Option<PathId>, Errno> {
        use std::os::unix::ffi::OsStrExt;
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= LONGEST_IN_MARK {
            self.top.xattrs.write(&self.upper, upper, "overlay.redirect", bytes)?;
            return Ok(None);
        }
        let id = PathId::store(&self.top.pages, bytes)?;
        let named =
            self.top.xattrs.write(&self.upper, upper, "mmapfs.path", id.to_string().as_bytes());
        named.inspect_err(|_| self.drop_path(id))?;
        self.count_own();
        Ok(Some(id))
    }

    /// Removes a path that nothing names any more.
    pub(super) fn drop_path(&self, id: PathId) {
        if let Err(err) = id.remove(&self.top.pages) {
            log::warn!("path {id}: removing it: {err}"); // It goes at the next mount.
        }
    }

    /// Owner, attributes, permissions and times, in the order in which one does not undo another.
    fn copy_attributes(&self, original: &Original, upper: Ino) -> Result<(), Errno> {
        let stat = &original.stat;
        let owner = SetAttr { uid: Some(stat.uid), gid: Some(stat.gid), ..SetAttr::default() };
        let now = self.upper.attr(upper, None)?.stat;
        if (now.uid, now.gid) != (stat.uid, stat.gid) {
            self.upper.set_attr(upper, None, owner, &self.me)?;
        }
        self.copy_xattrs(original, upper)?;
        if stat.kind() != libc::S_IFLNK {
            let mode = SetAttr { mode: Some(stat.mode & 0o7777), ..SetAttr::default() };
            self.upper.set_attr(upper, None, mode, &self.me)?;
        }
        self.set_times(upper, stat)
    }

    /// Gives an upper file the times of access and change that `stat` has.
    pub(super) fn set_times(&self, upper: Ino, stat: &Stat) -> Result<(), Errno> {
        let times = SetAttr {
            atime: Some(NewTime::At(stat.atime)),
            mtime: Some(NewTime::At(stat.mtime)),
            ..SetAttr::default()
        };
        self.upper.set_attr(upper, None, times, &self.me).map(drop)
    }

    fn copy_xattrs(&self, original: &Original, upper: Ino) -> Result<(), Errno> {
        for (name, value) in &original.xattrs {
            match self.upper.set_xattr(upper, name, value, XattrFlags::empty(), &self.me) {
                Ok(()) => {}
                // ERANGE: the name is too long when it is escaped.
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::RANGE) => {
                    log::warn!("{}: the scratch cannot hold this attribute", name.shown());
                }
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Moves a copy to where it belongs. Returns the count of names of a file with several.
    fn put_in_place(
        &self,
        names: &NamesWrite<'_>,
        node: &Arc<Node>,
        temporary: &OsStr,
        (upper, stat): (Ino, &Stat),
    ) -> Result<Option<i64>, Errno> {
        if node.is_dir() || stat.nlink < 2 {
            return self.move_up(node, temporary).map(|()| None);
        }
        // The index has one more link of it, by which its other names find it. Until all links are
        // made their number says nothing.
        let all = i64::from(stat.nlink);
        self.top.xattrs.write_links(&self.upper, upper, Links::All(all))?;
        self.enter_in_index(names, node, upper)?;
        let more = all - if node.is_linked() { 2 } else { 1 };
        self.move_up(node, temporary).inspect_err(|_| {
            let _ = self.leave_index(node, upper);
        })?;
        if let Err(err) = self.top.xattrs.write_links(&self.upper, upper, Links::More(more)) {
            log::warn!("{}: writing how many names it has: {err}", self.path_of(node).shown());
        }
        Ok(Some(more))
    }

    /// Moves a copy from the work directory to the place where its node is.
    fn move_up(&self, node: &Arc<Node>, temporary: &OsStr) -> Result<(), Errno> {
        let place = node.seen().filter(|_| node.is_linked());
        let Some((parent, name)) = place else {
            // It has lost its name: only those who have it open see it.
            return self.upper.remove(self.work, temporary, node.is_dir());
        };
        let above = parent.upper().ok_or(Errno::STALE)?; // It was copied up before.
        let times = self.upper.attr(above, None)?.stat;
        let move_by =
            |flags| self.upper.rename((self.work, temporary), (above, &name), flags, &self.me);
        let moved = match move_by(RenameFlags::NOREPLACE) {
            // Network filesystems have no such rename, and nobody else gives a name here.
            Err(Errno::INVAL) if self.upper_at(above, &name) == Ok(Upper::Nothing) => {
                move_by(RenameFlags::empty())
            }
            moved => moved,
        };
        if moved == Err(Errno::EXIST) {
            // Another copy than that of the node: no file is lost for it.
            log::error!("{}: there is a copy already", self.path_of(node).shown());
            return Err(Errno::STALE);
        }
        moved?;
        self.count_names(&[&parent]);
        self.set_times(above, &times)
    }
}
