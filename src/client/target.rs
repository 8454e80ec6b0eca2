//! Where a path lies: in which mount, and how it is named there.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::config::MountTable;
use crate::config::mountinfo::Mount;
use crate::error::Failure;
use crate::shown::Show;

#[cfg(test)]
mod tests;

/// A path in a mount of mmapfs.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// A mount point that shows the real root of the filesystem.
    pub mountpoint: PathBuf,
    /// Relative to that root; empty for the root itself.
    pub path: PathBuf,
}

impl Target {
    /// Finds a path, which need not exist. Links on the way to it are followed; a link at its end
    /// is followed only if the link itself lies outside of every mount of mmapfs.
    pub fn find(path: &Path) -> Result<Target, Failure> {
        let table = mounts(path)?;
        let failed = |error: io::Error| Failure::failed(path.shown(), error);
        let place = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let here = parent.as_os_str().is_empty();
                let parent = if here { Path::new(".") } else { parent };
                real(parent).map_err(failed)?.join(name)
            }
            _ => path.canonicalize().map_err(failed)?,
        };
        if let Some(target) = Target::in_table(&table, &place)? {
            return Ok(target);
        }
        let place = path.canonicalize().map_err(failed)?;
        Target::in_table(&table, &place)?
            .ok_or_else(|| Failure::failed(path.shown(), "it is not in a mount of mmapfs"))
    }

    /// The mount around the current directory, or else the only one there is.
    pub fn default() -> Result<Target, Failure> {
        let here = Path::new(".");
        let table = mounts(here)?;
        if let Ok(place) = here.canonicalize()
            && let Some(target) = Target::in_table(&table, &place)?
        {
            return Ok(Target { path: PathBuf::new(), ..target });
        }
        let mut ours = table.whole_mounts();
        match (ours.next(), ours.next()) {
            (Some(only), None) => {
                Ok(Target { mountpoint: only.mountpoint.clone(), path: PathBuf::new() })
            }
            (None, _) => Err(Failure::failed("", "nothing is mounted by mmapfs")),
            (Some(first), Some(second)) => {
                let all = [first, second].into_iter().chain(ours);
                let all = all.map(|mount| mount.mountpoint.shown().to_string());
                let reason = format!(
                    "there are several mounts, name one of {}",
                    all.collect::<Vec<_>>().join(" ")
                );
                Err(Failure::usage("", reason))
            }
        }
    }

    /// The target at a path (absolute, without links but at its end); `None` outside of every
    /// mount of mmapfs.
    fn in_table(table: &MountTable, place: &Path) -> Result<Option<Target>, Failure> {
        let Some(mount) = table.above(place).filter(|mount| mount.is_ours()) else {
            return Ok(None);
        };
        let Ok(below) = place.strip_prefix(&mount.mountpoint) else { return Ok(None) };
        let whole = table.whole(mount).ok_or_else(|| only_a_part(mount))?;
        let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
        // Joining an empty path would leave a slash at the end.
        let path = if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) };
        Ok(Some(Target { mountpoint: whole.mountpoint.clone(), path }))
    }
}

/// A path without links of which the end may be missing.
fn real(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut rest = path;
    loop {
        let here = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
        match (here.canonicalize(), rest.parent(), rest.file_name()) {
            (Err(error), Some(parent), Some(name)) if error.kind() == ErrorKind::NotFound => {
                missing.push(name);
                rest = parent;
            }
            (found, ..) => {
                let missing = missing.iter().rev();
                return found.map(|found| missing.fold(found, |path, name| path.join(name)));
            }
        }
    }
}

fn mounts(path: &Path) -> Result<MountTable, Failure> {
    MountTable::read().map_err(|error| {
        Failure::failed(path.shown(), format_args!("reading the table of mounts: {error}"))
    })
}

fn only_a_part(mount: &Mount) -> Failure {
    let reason = "it shows a part of a mount of mmapfs whose root, and so its control directory, \
                  is mounted nowhere";
    Failure::failed(mount.mountpoint.shown(), reason)
}
