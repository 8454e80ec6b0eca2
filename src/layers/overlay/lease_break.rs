//! Copying what still shows of a base file that somebody is about to change.
//!
//! Whoever changes the base waits meanwhile, and so does nobody here: what is copied is copied in
//! parts, between which others read and write. No lock is held while anything waits for a writer of
//! the base, who may wait for this.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use rustix::io::Errno;

use super::Overlay;
use super::base_guard::{Guard, was_late};
use super::control_impl::MOST_LINKS;
use super::ino::original;
use super::merged_open::SharedOpen;
use super::node::{LowerInode, Node};
use super::quota::TWO_PAGES;
use crate::layers::base_state::BaseState;
use crate::layers::merged::STEP;
use crate::layers::pages::{Fingerprint, MapAccess, MapId, PAGE, PageMap};
use crate::shown::Show;
use crate::sys::lease::Breaks;

impl Overlay {
    /// Guards the base from now on, by a thread of its own, until the end.
    ///
    /// # Errors
    /// When there can be no thread, or it cannot be told of leases.
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

    /// Copies files until there is none that somebody waits for.
    fn rescue_all(&self) {
        while let Some((node, asked)) = self.guard.next() {
            self.rescue(&node, asked);
            let ino = node.ino;
            drop(node);
            self.drop_unused(ino);
        }
    }

    /// Copies what still shows of the base of a file, and lets whoever waits for that go on.
    fn rescue(&self, node: &Arc<Node>, asked: Instant) {
        let path = self.path_of(node);
        let content = self.shared_open_of(node);
        let copied = match &content {
            Ok(content) => self.copy_rest(node, content, &path),
            // It is whole, or gone, and shows nothing of the base.
            Err(Errno::STALE) => Ok(()),
            Err(err) => Err(*err),
        };
        let (waited, late) = was_late(asked);
        let failure = match copied {
            Ok(()) => None,
            Err(err) if late => {
                Some(format!("{err}, after {waited:?}, when the kernel waits no longer"))
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
            let _ = caches.inode(node.lower_share.number(), false); // The kernel may not know it.
        }
        if let Ok(content) = content
            && let Err(err) = self.close_shared_open(node, content)
        {
            log::warn!("{shown}: making it whole: {err}");
        }
    }

    /// Copies all that still shows of the base of a file that is open.
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
            let (own, all) = merged.own_pages();
            let step = STEP.min((all - own) * PAGE);
            let part = self.with_room(node, step + TWO_PAGES, || merged.materialize_part(at))?;
            let Some((next, bytes)) = part else { return Ok(()) };
            self.guard.progress(node, path, bytes);
            at = next;
        }
    }

    /// What says whether the base of a partial copy is as it was.
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

    /// Guards the base of a partial copy that nobody has open, unless as many are guarded as may be.
    pub(super) fn guard_partial(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let needs = || {
            let stack = node.stack();
            let (at, pages) = (stack.lowers.first().copied()?, stack.pages?);
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
            return Ok(()); // Somebody was faster.
        }
        self.guard.opened(node, &base);
        self.base_state(node, &expected);
        let released = self.guard.closed(node);
        drop(slot);
        drop(released);
        self.guard.confirm(node);
        Ok(())
    }

    /// Copies the rest of files whose base has lost its name, as the descriptor that is held is the
    /// last that is left of it, and ends the guard.
    pub(super) fn end_guard(&self) {
        let stays = self.scratch.lock().as_ref().is_some_and(|scratch| !scratch.is_temporary());
        for node in self.guard.all().into_iter().filter(|_| stays) {
            if node.stack().pages.is_some() && node.is_linked() && !self.is_found_again(&node) {
                self.copy_for_good(&node);
            }
        }
        self.guard.moved().iter().filter(|_| stays).for_each(|(node, now)| self.expect(node, now));
        self.guard.end();
    }

    /// Has the marks and the page map of a partial copy say how its base is by now, whose content is
    /// that of first touch.
    fn expect(&self, node: &Node, now: &Fingerprint) {
        let stack = node.stack();
        let (Some(upper), Some(pages)) = (stack.upper, stack.pages) else { return };
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

    /// Whether the marks of a partial copy lead to the base that it has.
    fn is_found_again(&self, node: &Arc<Node>) -> bool {
        let found = self.with_names(|names| {
            let stack = node.stack();
            let marks = stack.upper.and_then(|upper| self.top.xattrs.read(&self.upper, upper).ok());
            let marked = marks.and_then(|marks| marks.redirect).filter(|path| path.is_absolute());
            let path = marked.unwrap_or_else(|| self.path_below(node));
            let found = self.below_path(names, &self.roots_below(0), &path)?;
            self.let_go(&found.stack);
            Ok(found.stack.lowers.first() == stack.lowers.first())
        });
        found.unwrap_or(false)
    }

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

    /// Guards the bases of the partial copies that were there when the scratch was opened.
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

    /// Lets go of bases that are too many to be held.
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

/// Waits for leases to be asked for.
fn attend(breaks: &Breaks, overlay: &Weak<Overlay>) {
    loop {
        let asked = match breaks.wait() {
            Ok(Some(asked)) => asked,
            Ok(None) => return,
            Err(err) => return log::error!("guard: waiting for leases to be asked for: {err}"),
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
