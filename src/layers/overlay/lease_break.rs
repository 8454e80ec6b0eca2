//! Rescue of the visible pages of a base file that a writer is about to change.
//!
//! The writer of the base waits in the kernel until they are copied. Requests of the mount do not
//! wait: pages are copied in steps, between which others read and write. No lock is held while a
//! thread waits for a writer of the base, since the writer may wait for this rescue.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use rustix::io::Errno;

use super::Overlay;
use super::base_guard::{Guard, was_late};
use super::ino::original;
use super::inspect::MOST_LINKS;
use super::lookup::LookupScope;
use super::merged_open::SharedOpen;
use super::node::{LowerInode, Node};
use super::quota::TWO_PAGES;
use crate::layers::base_state::BaseState;
use crate::layers::merged::STEP;
use crate::layers::pages::{Fingerprint, MapAccess, MapId, PAGE, PageMap};
use crate::shown::Show;
use crate::sys::lease::Breaks;
use crate::tree::Names;

impl Overlay {
    /// Starts the guard of the base. A thread of its own waits for lease breaks until the guard
    /// ends.
    ///
    /// # Errors
    /// The thread cannot be started, or cannot receive lease breaks.
    pub fn start_guard(self: &Arc<Overlay>) -> Result<(), Errno> {
        let (begun, begins) = channel();
        let overlay = Arc::downgrade(self);
        let run = move || match Breaks::of_this_thread().and_then(|on| Ok((on.stop()?, on))) {
            Ok((stop, breaks)) => {
                if begun.send(Ok((breaks.keeper(), stop))).is_ok() {
                    attend(&breaks, &overlay);
                }
            }
            Err(err) => drop(begun.send(Err(err))),
        };
        let started = thread::Builder::new().name(String::from("guard")).spawn(run);
        started.map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::AGAIN))?;
        let (keeper, stop) = begins.recv().unwrap_or(Err(Errno::IO))?;
        self.guard.start(keeper, stop);
        Ok(())
    }

    /// Rescues files until no writer waits for one.
    fn rescue_all(&self) {
        while let Some((node, asked)) = self.guard.next() {
            self.rescue(&node, asked);
            let ino = node.ino;
            drop(node);
            self.drop_unused(ino);
        }
    }

    /// Copies the visible pages of a file's base, and then gives the lease back to the waiting
    /// writer.
    fn rescue(&self, node: &Arc<Node>, asked: Instant) {
        let path = self.path_of(node);
        let content = self.shared_open_of(node);
        let copied = match &content {
            Ok(content) => self.copy_rest(node, content, &path),
            // The file is a complete copy or gone, and shows no page of the base.
            Err(Errno::STALE) => Ok(()),
            Err(err) => Err(*err),
        };
        let (waited, late) = was_late(asked);
        let failure = match copied {
            Ok(()) => None,
            Err(err) if late => {
                Some(format!("{err}, after {waited:?}, longer than the kernel waits"))
            }
            Err(err) => Some(err.to_string()),
        };
        let shown = path.shown().to_string();
        let bytes = self.guard.finish(node, path, failure.clone());
        match failure {
            None => log::info!(
                "{shown}: its base is about to be changed: the rest of it, {bytes} bytes, was \
                 copied in {waited:?}"
            ),
            Some(reason) => log::error!(
                "{shown}: its base is about to be changed, and the rest of it was not copied: \
                 {reason}; pages of the base are refused (EIO) once it has changed"
            ),
        }
        if let Some(caches) = self.caches.get() {
            let _ = caches.inode(node.lower_share.number(), false); // It may not know it.
        }
        if let Ok(content) = content
            && let Err(err) = self.close_shared_open(node, content)
        {
            log::warn!("{shown}: finishing its copy: {err}");
        }
    }

    /// Copies all visible pages of the base of an open file.
    pub(super) fn copy_rest(
        &self,
        node: &Arc<Node>,
        content: &SharedOpen,
        path: &Path,
    ) -> Result<(), Errno> {
        let merged = self.merged_to_write(node, content)?;
        let mut at = 0;
        self.guard.progress(node, path, 0);
        loop {
            let (present, all) = merged.own_pages();
            let step = STEP.min((all - present) * PAGE);
            let part = self.with_room(node, step + TWO_PAGES, || merged.materialize_part(at))?;
            let Some((next, bytes)) = part else { return Ok(()) };
            self.guard.progress(node, path, bytes);
            at = next;
        }
    }

    /// New state of the base of a partial copy, attached to its guard entry.
    pub(super) fn base_state(&self, node: &Node, expected: &Fingerprint) -> Arc<BaseState> {
        let state = Arc::new(BaseState::new(
            self.path_of(node),
            *expected,
            self.mixes_bases,
            self.guard.changed(),
        ));
        self.guard.attach(node, &state);
        state
    }

    /// Guards the base of a partial copy that is not open, unless the limit of such bases is
    /// reached.
    pub(super) fn guard_partial(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let needs = || {
            let stack = node.stack();
            let (at, pages) = (stack.lowers.first().copied()?, stack.pages?);
            self.is_over_plain(&stack).then_some(())?;
            let has = self.guard.is_full() || self.guard.file(node).is_some();
            Some((at, pages)).filter(|_| at != LowerInode::GONE && !has)
        };
        let is_open = || node.shared_open.lock().strong_count() > 0;
        let Some((at, pages)) = needs().filter(|_| !is_open()) else { return Ok(()) };
        let base = self.open_below(at)?;
        let expected =
            PageMap::fingerprint(&self.top.pages, MapId(pages)).map_err(|err| err.errno())?;
        let slot = node.shared_open.lock();
        if slot.strong_count() > 0 || needs() != Some((at, pages)) {
            return Ok(()); // Another thread has opened or guarded it.
        }
        self.guard.opened(node, &base);
        self.base_state(node, &expected);
        let released = self.guard.closed(node);
        drop(slot);
        drop(released);
        self.guard.confirm(node);
        Ok(())
    }

    /// Completes the copies whose base has lost its name, since only the guard's descriptor leads
    /// to such a base. Then ends the guard.
    pub(super) fn end_guard(&self) {
        let stays = self.scratch.lock().as_ref().is_some_and(|scratch| !scratch.is_temporary());
        for node in self.guard.all().into_iter().filter(|_| stays) {
            if node.is_partial() && node.is_linked() && !self.is_found_again(&node) {
                self.copy_for_good(&node);
            }
        }
        self.guard.moved().iter().filter(|_| stays).for_each(|(node, now)| self.expect(node, now));
        self.guard.end();
    }

    /// Writes the present fingerprint of the base into overlay xattrs and page map of a partial
    /// copy. The content of the base is unchanged.
    fn expect(&self, node: &Node, now: &Fingerprint) {
        let stack = node.stack();
        let (Some(upper), Some(pages)) = (stack.upper, stack.pages) else { return };
        if !self.is_over_plain(&stack) {
            return; // The base is below a frozen layer, which is never written.
        }
        let known = PageMap::open(&self.top.pages, MapId(pages), MapAccess::Write)
            .map_err(|err| err.errno())
            .and_then(|mut map| map.set_base(*now))
            .and_then(|()| {
                self.top.xattrs.keep_origin(&self.upper, upper, now, original(node.ino))
            });
        if let Err(err) = known {
            log::warn!("{}: noting the times of its base: {err}", self.path_of(node).shown());
        }
    }

    /// Whether the overlay xattrs of a partial copy lead to its present base.
    fn is_found_again(&self, node: &Arc<Node>) -> bool {
        let found = self.with_names(|names| {
            let stack = node.stack();
            let marks = stack.upper.and_then(|upper| self.top.xattrs.read(&self.upper, upper).ok());
            let marked = marks.and_then(|marks| marks.redirect).filter(|path| path.is_absolute());
            let path = marked.unwrap_or_else(|| self.path_below(node));
            let scope = LookupScope { names, parent: node, dirs: &[], layer: 0, path: None };
            let found = self.below_path(scope, &path)?;
            self.let_go(&found.stack);
            Ok(found.stack.lowers == stack.lowers)
        });
        found.unwrap_or(false)
    }

    /// Completes a copy whose base has lost its name.
    fn copy_for_good(&self, node: &Arc<Node>) {
        let path = self.path_of(node);
        let content = self.shared_open_of(node);
        let copied = content.and_then(|content| {
            let copied = self.copy_rest(node, &content, &path);
            self.close_shared_open(node, content).and(copied)
        });
        match copied {
            Ok(()) => {
                log::info!("{}: its base has lost its name: all of it is copied", path.shown())
            }
            Err(err) => log::error!(
                "{}: its base has lost its name, and the rest of it was not copied: {err}",
                path.shown()
            ),
        }
    }

    /// Guards the bases of the partial copies that were in the scratch when it was opened.
    pub fn guard_kept(&self) {
        let kept: Vec<PathBuf> = match &*self.scratch.lock() {
            Some(scratch) => scratch.partial().iter().map(|file| file.path.clone()).collect(),
            None => return,
        };
        for path in kept.iter().take(Guard::most_idle()) {
            if let Err(err) = self.guard_path(path) {
                log::debug!("{}: guarding its base: {err}", path.shown());
            }
        }
    }

    fn guard_path(&self, path: &Path) -> Result<(), Errno> {
        let (ino, _) = self.walk(path, MOST_LINKS)?;
        let guarded = self.node(ino).and_then(|node| self.guard_partial(&node));
        self.forget(ino, 1);
        guarded
    }

    /// Releases the guarded bases above the limit.
    pub(super) fn evict_bases(&self) {
        self.guard.evict().into_iter().for_each(|ino| self.drop_unused(ino));
    }

    /// Opens something with nothing locked. Bases of files that nobody has open are given up where
    /// few descriptors are left, and where none is to be had it is opened once more without them.
    pub(super) fn with_descriptors<T>(
        &self,
        mut open: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let opened = open();
        let lacks = matches!(opened, Err(Errno::MFILE | Errno::NFILE));
        let volumes = self.plain_volumes().chain([&self.upper]);
        let few = volumes.filter(|volume| volume.had_few_descriptors()).count() > 0;
        if !few && !lacks {
            return opened;
        }
        let given_up = self.guard.give_up_some();
        let again = lacks && !given_up.is_empty();
        given_up.into_iter().for_each(|ino| self.drop_unused(ino));
        if again { open() } else { opened }
    }
}

/// Waits for lease breaks, and starts threads that rescue files.
fn attend(breaks: &Breaks, overlay: &Weak<Overlay>) {
    loop {
        let asked = match breaks.wait() {
            Ok(Some(asked)) => asked,
            Ok(None) => return,
            Err(err) => return log::error!("guard: waiting for lease breaks: {err}"),
        };
        let Some(overlay) = overlay.upgrade() else { return };
        asked.into_iter().for_each(|which| overlay.guard.asked(which));
        while overlay.guard.needs_thread() {
            let copying = Arc::clone(&overlay);
            let copy = move || copying.rescue_all();
            if let Err(err) = thread::Builder::new().name(String::from("rescue")).spawn(copy) {
                log::warn!("guard: starting a thread: {err}");
                overlay.rescue_all();
            }
        }
    }
}
