//! The commands that a running daemon answers.
//!
//! Each builds a [`Command`], sends it to the control file of the mount that its path lies in, and
//! prints the [`Report`] that comes back. Nothing is decided here: whether a path exists or an
//! advice is allowed is the daemon's word.

use std::path::{Path, PathBuf};

use super::args::{
    AdviseArgs, FlushArgs, Form, LogArgs, MapsArgs, RangeArgs, ReloadArgs, StatusArgs, VersionArgs,
};
use super::{output, tell};
use crate::control::command::Command;
use crate::control::report::{ErrorReport, Report};
use crate::error::Failure;
use crate::shown::Show;

mod cached;
mod channel;
mod target;
#[cfg(test)]
mod tests;
mod writers;

use target::Target;

/// Asks daemons, and prints their answers. Its methods return the exit code.
pub struct Client {
    json: bool,
}

impl Client {
    /// A client that prints in this form.
    pub fn new(form: &Form) -> Client {
        Client { json: form.json }
    }

    /// `mmapfs advise`.
    pub fn advise(&self, args: &AdviseArgs) -> Result<u8, Failure> {
        let (advice, destroy, range) = (args.advice, args.destroy, args.span.range);
        self.each(&args.paths.paths, |path| Command::Advise { advice, destroy, range, path })
    }

    /// `mmapfs flush`.
    pub fn flush(&self, args: &FlushArgs) -> Result<u8, Failure> {
        let (mode, range) = (args.mode, args.span.range);
        self.each(&args.paths.paths, |path| Command::Flush { mode, range, path })
    }

    /// `mmapfs lock`.
    pub fn lock(&self, args: &RangeArgs) -> Result<u8, Failure> {
        let range = args.span.range;
        self.each(&args.paths.paths, |path| Command::Lock { range, path })
    }

    /// `mmapfs unlock`.
    pub fn unlock(&self, args: &RangeArgs) -> Result<u8, Failure> {
        let range = args.span.range;
        self.each(&args.paths.paths, |path| Command::Unlock { range, path })
    }

    /// `mmapfs status`: of the mount for its root, of the file for any other path.
    pub fn status(&self, args: &StatusArgs) -> Result<u8, Failure> {
        let of = |path: PathBuf| Command::Status {
            path: (!path.as_os_str().is_empty()).then_some(path),
        };
        if args.paths.is_empty() {
            let command = Command::Status { path: None };
            let mut report = succeeded(channel::ask(&Target::default()?, command)?, None)?;
            writers::complete(&mut report);
            return self.print(&report);
        }
        self.each(&args.paths, of)
    }

    /// `mmapfs maps`: those of one file or directory only, if one is named.
    pub fn maps(&self, args: &MapsArgs) -> Result<u8, Failure> {
        let target = args.path.as_deref().map_or_else(Target::default, Target::find)?;
        let mut report = succeeded(channel::ask(&target, Command::Maps)?, None)?;
        if let Report::Maps(maps) = &mut report {
            maps.retain(|map| map.path.as_path().starts_with(&target.path));
        }
        self.print(&report)
    }

    /// `mmapfs reload`.
    pub fn reload(&self, args: &ReloadArgs) -> Result<u8, Failure> {
        self.mount(&args.mountpoint, Command::Reload)
    }

    /// `mmapfs log`.
    pub fn log(&self, args: &LogArgs) -> Result<u8, Failure> {
        self.mount(&args.mountpoint, Command::Log { level: args.level })
    }

    /// `mmapfs version`: of the daemon, if a mount is named; of this program otherwise.
    pub fn version(&self, args: &VersionArgs) -> Result<u8, Failure> {
        let version = env!("CARGO_PKG_VERSION");
        match &args.mountpoint {
            Some(mountpoint) => return self.mount(mountpoint, Command::Version),
            None if self.json => output::print_json(&serde_json::json!({ "version": version }))?,
            None => output::print(&format!("mmapfs {version}"))?,
        }
        Ok(0)
    }

    fn mount(&self, path: &Path, command: Command) -> Result<u8, Failure> {
        let report = channel::ask(&Target::find(path)?, command)?;
        self.print(&succeeded(report, None)?)
    }

    /// Asks about every path, whatever became of the others.
    fn each(&self, paths: &[PathBuf], command: impl Fn(PathBuf) -> Command) -> Result<u8, Failure> {
        let mut code = 0;
        for path in paths {
            let asked = Target::find(path).and_then(|target| {
                let command = command(target.path.clone());
                let before = cached::before(&command, path);
                let mut report = succeeded(channel::ask(&target, command)?, Some((path, &target)))?;
                cached::complete(&mut report, path, before);
                writers::complete(&mut report);
                Ok(report)
            });
            code = match asked {
                Ok(report) => {
                    warn(path, &report);
                    self.print(&report)?.max(code)
                }
                Err(failure) => tell(&failure).max(code),
            };
        }
        Ok(code)
    }

    fn print(&self, report: &Report) -> Result<u8, Failure> {
        if self.json {
            output::print_json(report)?
        } else {
            output::print(&report.to_string())?
        };
        Ok(0)
    }
}

/// Says on standard error that an advice was given for nothing.
fn warn(path: &Path, report: &Report) {
    if let Report::Advise(report) = report
        && report.effect == "none"
    {
        let reason = report.effect_reason.as_deref().unwrap_or("the reason is unknown");
        let why = format!("{} has no effect: {reason}", report.advice);
        tell(&Failure::failed(path.shown(), why));
    }
}

/// A report of success. A failure that the daemon told is about the path as it was typed, not as
/// the daemon names it.
fn succeeded(report: Report, typed: Option<(&Path, &Target)>) -> Result<Report, Failure> {
    match (report, typed) {
        (Report::Error(report), Some((path, target))) => {
            let remedy =
                report.needs.as_ref().map(|word| format!(": say `--{word}` if that is meant"));
            let reason = reason(report, &target.path) + remedy.as_deref().unwrap_or_default();
            Err(Failure::failed(path.shown(), reason))
        }
        (Report::Error(report), None) => Err(Failure::failed("", report.error)),
        (report, _) => Ok(report),
    }
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
