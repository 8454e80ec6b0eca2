//! The options of a mount, one call to each.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::Mount;
use super::serving::{self, Host};
use crate::config::options::{self, Group, Unknown};
use crate::config::{MountConfig, MountOptions};
use crate::error::Failure;
use crate::flags::Access;

/// A mount that is not made yet; [`Mount::builder`] begins one.
///
/// Every mount option of `mmapfs mount -o` can be given, by its method or by
/// [`MountBuilder::option`]: `mmapfs mount --help` lists them. The last of two contrary ones holds.
/// Options of the program itself are refused: `log`, `log_file`, `debug` and `sandbox`.
///
/// ```no_run
/// use mmapfs::{Access, Mount};
///
/// let mount = Mount::builder("/srv/data")
///     .access(Access::Read)
///     .option("threads=2")
///     .option("allow_other")
///     .spawn("/mnt/data")?;
/// mount.wait()?;
/// # Ok::<(), mmapfs::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is mounted before `spawn`"]
pub struct MountBuilder {
    source: PathBuf,
    options: MountOptions,
    /// The first option that was wrong.
    mistake: Option<Failure>,
}

impl MountBuilder {
    pub(super) fn new(source: &Path) -> MountBuilder {
        MountBuilder { source: source.to_owned(), options: MountOptions::default(), mistake: None }
    }

    /// The access mode of every file, `access=`; [`Access::Default`] when it is not said.
    pub fn access(mut self, access: Access) -> MountBuilder {
        self.options.view.access = access;
        self
    }

    /// The directory of the scratch, `scratch=`, for [`Access::Copy`]: made where it is missing,
    /// used again where it is a scratch, and kept. Without it the scratch is in memory, and goes
    /// with the mount.
    pub fn scratch(mut self, dir: impl Into<PathBuf>) -> MountBuilder {
        self.options.scratch.dir = Some(dir.into());
        self
    }

    /// The rules file, `rules=`: view options by path.
    pub fn rules(mut self, file: impl Into<PathBuf>) -> MountBuilder {
        self.options.rules = Some(file.into());
        self
    }

    /// Any mount option as one word: `ro`, `threads=2`, `control=visible`. Commas in it are part
    /// of its value.
    pub fn option(mut self, word: impl AsRef<OsStr>) -> MountBuilder {
        let word = word.as_ref();
        let taken = match options::group_of(word) {
            Some(Group::Program) => Err(options::mistake(
                word,
                "it is for the program `mmapfs`: a program that mounts by itself has its own \
                 log and its own rights",
            )),
            _ => self.options.set(word, Unknown::Refused),
        };
        self.mistake = self.mistake.or(taken.err());
        self
    }

    /// Checks everything, mounts on `mountpoint`, and serves the mount in threads of this process.
    /// When it returns, the mount answers.
    ///
    /// The process makes no setting of its own but one: see [the crate](crate#the-process).
    ///
    /// # Errors
    /// [`ErrorKind::Usage`](crate::ErrorKind) for options that are wrong or do not fit each other
    /// and for mistakes in the rules file; otherwise the disk, the table of mounts or the lack of
    /// privilege stands against it. Nothing is mounted then.
    pub fn spawn(self, mountpoint: impl AsRef<Path>) -> Result<Mount, Failure> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        self.options.check()?;
        let config = MountConfig::prepare(&self.source, mountpoint.as_ref(), self.options)?;
        let mountpoint = config.mountpoint.clone();
        Ok(Mount::new(mountpoint, serving::start(config, Host::other_program())?))
    }
}
