//! The settings of a mount for its scratch.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Failure;
use crate::shown::Show;
use crate::units::{format_size, parse_size};

#[cfg(test)]
mod tests;

/// Limit on the contents of a scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The capacity of its filesystem.
    None,
    /// Bytes, more than 0.
    Bytes(u64),
    /// A share, 1 to 100, of the memory that is available, or of the filesystem.
    Percent(u8),
}

impl FromStr for Limit {
    type Err = String;

    /// Reads a size, `20%`, or `none`.
    fn from_str(word: &str) -> Result<Limit, String> {
        if word.eq_ignore_ascii_case("none") {
            return Ok(Limit::None);
        }
        if let Some(share) = word.strip_suffix('%') {
            return match share.parse() {
                Ok(percent @ 1..=100) => Ok(Limit::Percent(percent)),
                _ => Err("a share is from 1% to 100%".into()),
            };
        }
        match parse_size(word).map_err(|error| error.to_string())? {
            0 => Err("its value is larger than 0".into()),
            bytes => Ok(Limit::Bytes(bytes)),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::None => f.write_str("none"),
            Limit::Bytes(bytes) => f.write_str(&format_size(*bytes)),
            Limit::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Treatment of a partial copy whose base has changed since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BaseChanged {
    /// Its pages of the base are refused (EIO), those of the scratch are shown.
    #[default]
    Eio,
    /// There is no mount.
    Refuse,
    /// Both are shown.
    Mix,
}

/// The scratch of a mount, as the options say it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScratchConfig {
    /// `scratch=`: its directory; without it one is made in memory for this mount.
    pub dir: Option<PathBuf>,
    /// `scratch_max=`; without it what the scratch was made with.
    pub max: Option<Limit>,
    /// `copy_up=`, in bytes; without it what the scratch was made with.
    pub copy_up: Option<u64>,
    /// `share`: unchanged files that are opened to be read are read from the base.
    pub share: bool,
    /// `rebase`: a scratch of another base becomes one of this base.
    pub rebase: bool,
    /// `base_changed=`.
    pub base_changed: Option<BaseChanged>,
}

impl ScratchConfig {
    /// The first option of a scratch that was given, without its value.
    pub fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.dir.is_some(), "scratch="),
            (self.max.is_some(), "scratch_max="),
            (self.copy_up.is_some(), "copy_up="),
            (self.share, "share"),
            (self.rebase, "rebase"),
            (self.base_changed.is_some(), "base_changed="),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, option)| option)
    }

    /// Checks that a scratch in `dir`, which need not be there yet, would not serve itself, hide
    /// itself or be written through the mount.
    ///
    /// # Errors
    /// It lies inside of the base or of the mount point, or one of them lies inside of it.
    pub fn check_place(dir: &Path, base: &Path, mountpoint: &Path) -> Result<(), Failure> {
        let refuse = |reason: fmt::Arguments<'_>| {
            Err(Failure::failed(dir.shown(), format_args!("it cannot be the scratch: {reason}")))
        };
        let dir = Spot::of(dir);
        let (base, mountpoint) = (Spot::of(base), Spot::of(mountpoint));
        if dir.is_in(&base) {
            return refuse(format_args!("it lies inside the source {}", base.path.shown()));
        }
        if base.is_in(&dir) {
            return refuse(format_args!("the source {} lies inside it", base.path.shown()));
        }
        if mountpoint.is_in(&dir) {
            let shown = mountpoint.path.shown();
            return refuse(format_args!("the mount point {shown} lies inside it"));
        }
        if dir.is_in(&mountpoint) {
            let shown = mountpoint.path.shown();
            return refuse(format_args!("the mount on {shown} would hide it"));
        }
        Ok(())
    }
}

/// A place that may be missing.
struct Spot {
    /// Without links, as far as it is there.
    path: PathBuf,
    /// Device and inode number of the place, where it is there.
    id: Option<(u64, u64)>,
}

impl Spot {
    fn of(path: &Path) -> Spot {
        let path = real(path);
        let id = identity(&path);
        Spot { path, id }
    }

    /// Whether this is the other, or lies below it, by name or by identity.
    fn is_in(&self, other: &Spot) -> bool {
        let is_other = |above: &Path| identity(above).is_some_and(|id| Some(id) == other.id);
        self.path.starts_with(&other.path) || self.path.ancestors().any(is_other)
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// The path without links, where what is missing at its end stays as it is.
fn real(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
    match found {
        Some((above, real)) => match path.strip_prefix(above) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        },
        None => path.to_owned(),
    }
}
