//! Changes that were read from the queue together, each once, and the invalidations for them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::sync::atomic::Ordering;

use super::senders::Work;
use crate::sys::fanotify::Event;
use crate::sys::handle::FileHandle;
use crate::tree::Coherence;
use crate::volume::Volume;

#[cfg(test)]
mod tests;

/// Changes that were told and not passed on yet.
#[derive(Default)]
pub(super) struct Batch {
    events: u64,
    /// Changes were lost.
    lost: bool,
    /// Names in directories; true where a directory was made and nothing else happened.
    names: HashMap<(FileHandle, OsString), bool>,
    /// Files and directories; true when content has changed too.
    objects: HashMap<FileHandle, bool>,
    /// Files that were written.
    written: HashSet<FileHandle>,
    /// The names of directories that came, went or were moved.
    directories: HashSet<OsString>,
    /// The objects that have left a name (true) or come to it, in order.
    moves: Vec<(FileHandle, FileHandle, OsString, bool)>,
    own: Option<u32>,
}

impl Batch {
    /// Changes that this process makes are left out unless `all` are told: the kernel knows them
    /// where the mount has made them.
    pub(super) fn new(all: bool) -> Batch {
        let own = (!all).then(std::process::id);
        Batch { own, ..Batch::default() }
    }

    /// Says that changes were lost.
    pub(super) fn lose(&mut self) {
        self.lost = true;
    }

    pub(super) fn add(&mut self, event: Event) {
        self.events += 1;
        self.lost |= event.is_overflow();
        if Some(event.pid) == self.own {
            return;
        }
        let content = event.is_of_content();
        if !event.is_of_a_name() {
            let itself = event.name.filter(|(_, name)| name == ".").map(|(directory, _)| directory);
            if let Some(object) = event.object.or(itself) {
                if event.mask & libc::FAN_MODIFY != 0 && !self.written.contains(&object) {
                    self.written.insert(object.clone());
                }
                *self.objects.entry(object).or_default() |= content;
            }
            return;
        }
        let Some((directory, name)) = event.name else { return };
        if let Some(object) = event.object {
            if event.mask & libc::FAN_MOVED_TO != 0 {
                self.moves.push((object.clone(), directory.clone(), name.clone(), false));
            } else if event.mask & (libc::FAN_MOVED_FROM | libc::FAN_DELETE) != 0 {
                self.moves.push((object.clone(), directory.clone(), name.clone(), true));
            }
            self.objects.entry(object).or_default();
        }
        if event.mask & libc::FAN_ONDIR != 0 && !self.directories.contains(&name) {
            self.directories.insert(name.clone());
        }
        // Its times, its size and its cached listing change with its names.
        self.objects.insert(directory.clone(), true);
        let others = libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO | libc::FAN_DELETE;
        let is_made = event.mask & libc::FAN_ONDIR != 0 && event.mask & others == 0;
        let made = self.names.entry((directory, name)).or_insert(true);
        *made &= is_made;
    }

    /// The files that were written.
    pub(super) fn written(&self) -> impl Iterator<Item = &FileHandle> {
        self.written.iter()
    }

    /// The parts of the kernel's knowledge that this invalidates.
    pub(super) fn work(self, volume: &Volume) -> Vec<Work> {
        let counts = volume.watch_counts();
        counts.events.fetch_add(self.events, Ordering::Relaxed);
        volume.count_changes();
        if self.lost {
            counts.overflows.fetch_add(1, Ordering::Relaxed);
            log::warn!("watch: changes were lost: everything is asked for anew");
            return vec![Work::Everything];
        }
        let mut found = HashMap::new();
        let mut find = |handle: &FileHandle| {
            *found.entry(handle.clone()).or_insert_with(|| volume.known_by(handle))
        };
        for (object, directory, name, away) in &self.moves {
            if let (Some(ino), Some(parent)) = (find(object), find(directory)) {
                volume.moved_directly(ino, parent, name, *away);
            }
        }
        let mut work = Vec::new();
        for ((directory, name), made) in self.names {
            work.extend(find(&directory).map(|parent| Work::Entry(parent, name, made)));
        }
        for (object, data) in self.objects {
            work.extend(find(&object).map(|ino| Work::Inode(ino, data)));
        }
        if !self.directories.is_empty() {
            work.push(Work::Directories(self.directories));
        }
        work
    }
}
