//! Mounts that come and go below the source, which is no change of any directory.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::senders::Work;
use crate::config::MountTable;
use crate::volume::Volume;

/// The mounts below the source, with their numbers and devices.
type Below = BTreeSet<(PathBuf, (u64, (u32, u32)))>;

pub(super) struct Mounts {
    /// Has something urgent (POLLPRI) after every change of the table of mounts.
    table: File,
    source: PathBuf,
    below: Below,
}

impl Mounts {
    /// The mounts below `source` now; `None` when the table cannot be read.
    pub(super) fn below(source: &Path) -> Option<Mounts> {
        let table = File::open("/proc/self/mountinfo").ok()?;
        Some(Mounts { table, below: read(source)?, source: source.to_owned() })
    }

    /// Takes the change in, and tells which names lead to something else now.
    pub(super) fn work(&mut self, volume: &Volume) -> Vec<Work> {
        let Some(below) = read(&self.source) else { return Vec::new() };
        // A mount that came and went since the last look is in neither table: what the kernel has
        // seen of mounts that are not there it looks at anew. Not of those that are: what is
        // mounted inside of this mount below a name would go with it.
        let is_there = |id: u64| below.iter().any(|(_, mount)| mount.0 == id);
        let seen = volume.mount_points_seen().into_iter();
        let mut work: Vec<_> = seen
            .filter(|(.., id)| !is_there(*id))
            .map(|(parent, name, _)| Work::Entry(parent, name))
            .collect();
        for (path, _) in below.symmetric_difference(&self.below) {
            // A place inside another mount is not trusted for long anyway.
            let inside = |(other, _): &(PathBuf, _)| path != other && path.starts_with(other);
            if below.iter().chain(&self.below).any(inside) {
                continue;
            }
            work.extend(volume.place_of(path).map(|(parent, name)| Work::Entry(parent, name)));
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

/// Where something is mounted inside the mount on `mountpoint`, by whatever way it is reached:
/// paths relative to its root.
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
