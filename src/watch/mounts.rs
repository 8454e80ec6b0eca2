//! Mounts and unmounts below the source, which fanotify does not report.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::senders::Work;
use crate::config::MountTable;
use crate::volume::Volume;

/// Mount points below the source, with mount ids and device numbers.
type Below = BTreeSet<(PathBuf, (u64, (u32, u32)))>;

pub(super) struct Mounts {
    /// `/proc/self/mountinfo`, which is ready for POLLPRI after each change of the mount table.
    table: File,
    source: PathBuf,
    below: Below,
}

impl Mounts {
    /// Present mounts below `source`; `None` if the table cannot be read.
    pub(super) fn below(source: &Path) -> Option<Mounts> {
        let table = File::open("/proc/self/mountinfo").ok()?;
        Some(Mounts { table, below: read(source)?, source: source.to_owned() })
    }

    /// Reads the table again. Returns the names that lead to another file now.
    pub(super) fn work(&mut self, volume: &Volume) -> Vec<Work> {
        let Some(below) = read(&self.source) else { return Vec::new() };
        // A mount that came and went between two reads is in neither table. So each name where the
        // kernel has seen the root of a mount that does not exist is invalidated. Names of existing
        // mounts are not: a mount inside of this mount below such a name would be unmounted.
        let is_there = |id: u64| below.iter().any(|(_, mount)| mount.0 == id);
        let seen = volume.mount_points_seen().into_iter();
        let mut work: Vec<_> = seen
            .filter(|(.., id)| !is_there(*id))
            .map(|(parent, name, _)| Work::Entry(parent, name, false))
            .collect();
        for (path, _) in below.symmetric_difference(&self.below) {
            // Names inside another mount have a short validity anyway.
            let inside = |(other, _): &(PathBuf, _)| path != other && path.starts_with(other);
            if below.iter().chain(&self.below).any(inside) {
                continue;
            }
            let place = volume.place_of(path);
            work.extend(place.map(|(parent, name)| Work::Entry(parent, name, false)));
        }
        self.below = below;
        work
    }
}

impl AsFd for Mounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

/// Mount points inside the mount on `mountpoint`, by whichever path it is reached, relative to its
/// root.
pub(super) fn inside(mountpoint: &Path) -> Vec<PathBuf> {
    let Ok(table) = MountTable::read() else { return Vec::new() };
    let Some(dev) = table.at(mountpoint).map(|mount| mount.dev) else { return Vec::new() };
    let mut inside = Vec::new();
    for own in table.all().filter(|mount| mount.dev == dev) {
        let below = |path: &Path| path.strip_prefix(&own.mountpoint).ok().map(Path::to_owned);
        let places = table.all().filter_map(|mount| below(&mount.mountpoint));
        let root = own.root.strip_prefix("/").unwrap_or(&own.root);
        inside.extend(places.filter(|path| path.parent().is_some()).map(|path| root.join(path)));
    }
    inside
}

fn read(source: &Path) -> Option<Below> {
    let table = MountTable::read().ok()?;
    let below = table.all().filter_map(|mount| {
        let path = mount.mountpoint.strip_prefix(source).ok()?;
        (!path.as_os_str().is_empty()).then(|| (path.to_owned(), (mount.id, mount.dev)))
    });
    Some(below.collect())
}
