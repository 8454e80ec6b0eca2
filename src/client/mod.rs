//! The control verbs of a mount, for programs.

use std::path::{Path, PathBuf};

use crate::advice::Advice;
use crate::control::command::{Command, FlushMode};
use crate::control::report::{
    AdviseReport, DiffReport, ErrorReport, FileReport, FlushReport, LockReport, MapReport,
    ReloadReport, Report, StatusReport, VersionReport,
};
use crate::error::{Failure, FailureKind};
use crate::range::RangeSpec;
use crate::shown::Show;

mod cached;
mod channel;
mod target;
#[cfg(test)]
mod tests;
mod writers;

use target::Target;

/// A file, a directory or the mount point of a mount of mmapfs, and the control verbs of that
/// mount. Whoever serves the mount answers them: a daemon, another process, or this one.
///
/// Each verb is one request to the control file of the mount (`.mmapfs/control`), and its answer
/// comes as a [report](crate::report). Whether a path exists or an advice is allowed is the word of
/// the process that serves the mount.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use mmapfs::{Advice, Client, FlushMode, Mount};
/// # if !std::path::Path::new("/dev/fuse").exists() { return Ok(()); }
/// # let dir = tempfile::tempdir()?;
/// # let (source, mnt) = (dir.path().join("source"), dir.path().join("mnt"));
/// # std::fs::create_dir(&source)?;
/// # std::fs::create_dir(&mnt)?;
///
/// let mount = Mount::builder(&source).spawn(&mnt)?;
/// std::fs::write(mnt.join("data"), vec![1; 1 << 16])?;
///
/// let data = Client::open(mnt.join("data"))?;
/// assert_eq!(data.file()?.size, 1 << 16);
/// data.flush(FlushMode::Sync, ..)?;
/// let advised = data.advise(Advice::WillNeed, 0..4096)?;
/// assert_eq!((advised.range, advised.pages), ([0, 4096], 1));
///
/// let status = Client::open(&mnt)?.status()?;
/// assert_eq!(status.mountpoint.as_path(), mount.mountpoint());
/// mount.unmount()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    /// As it was given, for messages.
    given: PathBuf,
    target: Target,
}

impl Client {
    /// Finds the mount that a path lies in. Links on the way to the path are followed; a link at
    /// its end only where the link itself lies outside of every mount of mmapfs. Nothing is asked
    /// of the mount, and the path need not exist in it.
    ///
    /// # Errors
    /// The path is in no mount of mmapfs; the table of mounts cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Client, Failure> {
        let given = path.as_ref().to_owned();
        Ok(Client { target: Target::find(&given)?, given })
    }

    /// The mount around the current directory, or else the only one there is.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn of_only_mount() -> Result<Client, Failure> {
        let target = Target::default()?;
        Ok(Client { given: target.mountpoint.clone(), target })
    }

    /// The mount point of the mount.
    pub fn mountpoint(&self) -> &Path {
        &self.target.mountpoint
    }

    /// The path relative to the root of the mount; empty for the root.
    pub fn path(&self) -> &Path {
        &self.target.path
    }

    /// The state of the mount, whichever of its paths this is.
    ///
    /// # Errors
    /// As all verbs: the mount has no control directory, this user may not enter it, or nobody
    /// answers.
    pub fn status(&self) -> Result<StatusReport, Failure> {
        match self.ask_mount(Command::Status { path: None })? {
            Report::Status(mut status) => {
                writers::complete(&mut status);
                Ok(*status)
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// The state of the file or directory, its pages in caches among it.
    ///
    /// # Errors
    /// As all verbs; there is no such path.
    pub fn file(&self) -> Result<FileReport, Failure> {
        match self.ask_path(Command::Status { path: Some(self.target.path.clone()) })? {
            Report::File(mut file) => {
                cached::add_to_file(&mut file, &self.given);
                Ok(*file)
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// The differences between a scratch and its base, at and below the path, sorted by path. The
    /// path need not exist any more. With `ranges` the ranges of bytes that differ are listed, with
    /// `expand` everything below a deleted directory.
    ///
    /// # Errors
    /// As all verbs; the mount is no scratch.
    pub fn diff(&self, ranges: bool, expand: bool) -> Result<DiffReport, Failure> {
        let path = Some(self.target.path.clone()).filter(|path| !path.as_os_str().is_empty());
        match self.ask_path(Command::Diff { ranges, expand, path })? {
            Report::Diff(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The mappings of the serving process: of the whole mount, or of the file, or of the files
    /// below the directory, that this is.
    ///
    /// # Errors
    /// As all verbs.
    pub fn maps(&self) -> Result<Vec<MapReport>, Failure> {
        match self.ask_mount(Command::Maps)? {
            Report::Maps(mut maps) => {
                maps.retain(|map| map.path.as_path().starts_with(&self.target.path));
                Ok(maps)
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Gives an advice for a range of the file, as madvise(2) does.
    ///
    /// # Errors
    /// As all verbs; the kind [`NeedsDestroy`](FailureKind::NeedsDestroy) for an advice that
    /// throws bytes away, see [`Client::advise_destroying`].
    pub fn advise(
        &self,
        advice: Advice,
        range: impl Into<RangeSpec>,
    ) -> Result<AdviseReport, Failure> {
        self.give(advice, false, range.into())
    }

    /// As [`Client::advise`], where the bytes may be thrown away.
    ///
    /// # Errors
    /// As all verbs.
    pub fn advise_destroying(
        &self,
        advice: Advice,
        range: impl Into<RangeSpec>,
    ) -> Result<AdviseReport, Failure> {
        self.give(advice, true, range.into())
    }

    fn give(
        &self,
        advice: Advice,
        destroy: bool,
        range: RangeSpec,
    ) -> Result<AdviseReport, Failure> {
        let path = self.target.path.clone();
        let before = cached::resident(&self.given, range);
        match self.ask_path(Command::Advise { advice, destroy, range, path })? {
            Report::Advise(mut report) => {
                cached::add_to_advice(&mut report, &self.given, before);
                Ok(report)
            }
            other => Err(self.unexpected(&other)),
        }
    }

    /// Writes the changed pages of a range of the file to the backing file, as msync(2) does.
    ///
    /// # Errors
    /// As all verbs.
    pub fn flush(
        &self,
        mode: FlushMode,
        range: impl Into<RangeSpec>,
    ) -> Result<FlushReport, Failure> {
        let (range, path) = (range.into(), self.target.path.clone());
        match self.ask_path(Command::Flush { mode, range, path })? {
            Report::Flush(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Locks a range of the file in memory, until it is unlocked or the mount ends.
    ///
    /// # Errors
    /// As all verbs.
    pub fn lock(&self, range: impl Into<RangeSpec>) -> Result<LockReport, Failure> {
        let (range, path) = (range.into(), self.target.path.clone());
        self.lock_or_unlock(Command::Lock { range, path })
    }

    /// Undoes [`Client::lock`].
    ///
    /// # Errors
    /// As all verbs.
    pub fn unlock(&self, range: impl Into<RangeSpec>) -> Result<LockReport, Failure> {
        let (range, path) = (range.into(), self.target.path.clone());
        self.lock_or_unlock(Command::Unlock { range, path })
    }

    fn lock_or_unlock(&self, command: Command) -> Result<LockReport, Failure> {
        match self.ask_path(command)? {
            Report::Lock(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Has the rules file of the mount read again.
    ///
    /// # Errors
    /// As all verbs; the file has a mistake, and the old rules stay.
    pub fn reload(&self) -> Result<ReloadReport, Failure> {
        match self.ask_mount(Command::Reload)? {
            Report::Reload(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The versions of the serving program and of the FUSE protocol.
    ///
    /// # Errors
    /// As all verbs.
    pub fn version(&self) -> Result<VersionReport, Failure> {
        match self.ask_mount(Command::Version)? {
            Report::Version(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sets the level of the log of the daemon that serves the mount, and returns its name.
    ///
    /// # Errors
    /// As all verbs; ENOTSUP from a program that serves the mount by [`Mount`](crate::Mount) and
    /// has a log of its own.
    pub fn set_log_level(&self, level: log::LevelFilter) -> Result<String, Failure> {
        match self.ask_mount(Command::Log { level })? {
            Report::Log { level } => Ok(level),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks about the mount. A refusal is told in the words of the daemon.
    fn ask_mount(&self, command: Command) -> Result<Report, Failure> {
        succeeded(channel::ask(&self.target, command)?, None)
    }

    /// Asks about the path. A refusal is about the path as it was given, not as the daemon names
    /// it.
    fn ask_path(&self, command: Command) -> Result<Report, Failure> {
        succeeded(channel::ask(&self.target, command)?, Some((&self.given, &self.target)))
    }

    fn unexpected(&self, report: &Report) -> Failure {
        log::debug!("unexpected answer: {report:?}");
        Failure::failed(self.given.shown(), "the daemon has answered another question")
    }
}

/// A report of success.
fn succeeded(report: Report, given: Option<(&Path, &Target)>) -> Result<Report, Failure> {
    let Report::Error(report) = report else { return Ok(report) };
    let kind = match &report.needs {
        Some(_) => FailureKind::NeedsDestroy,
        None => FailureKind::Failed,
    };
    let errno = Some(report.errno);
    let failure = match given {
        Some((path, target)) => Failure::failed(path.shown(), reason(report, &target.path)),
        None => Failure::failed("", report.error),
    };
    Err(Failure { kind, errno, ..failure })
}

/// Why a command on `path` failed, without the path, which a daemon of an older version puts before
/// it.
fn reason(report: ErrorReport, path: &Path) -> String {
    if !report.reason.is_empty() {
        return report.reason;
    }
    let named = format!("{}: ", path.to_string_lossy());
    report.error.strip_prefix(&named).map(String::from).unwrap_or(report.error)
}
