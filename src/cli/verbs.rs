//! The commands that a running daemon answers: each calls [`Client`] and prints the answer.

use std::path::{Path, PathBuf};

use super::args::{
    AdviseArgs, FlushArgs, Form, LogArgs, MapsArgs, RangeArgs, ReloadArgs, StatusArgs, VersionArgs,
};
use super::{output, tell};
use crate::client::Client;
use crate::control::report::Report;
use crate::error::{Failure, FailureKind};
use crate::shown::Show;

/// Asks daemons, and prints their answers. Its methods return the exit code.
pub struct Verbs {
    json: bool,
}

impl Verbs {
    /// Verbs whose answers are printed in this form.
    pub fn new(form: &Form) -> Verbs {
        Verbs { json: form.json }
    }

    /// `mmapfs advise`.
    pub fn advise(&self, args: &AdviseArgs) -> Result<u8, Failure> {
        let (advice, range) = (args.advice, args.span.range);
        self.each(&args.paths.paths, |client| {
            let advised = match args.destroy {
                true => client.advise_destroying(advice, range),
                false => client.advise(advice, range),
            };
            advised.map(Report::Advise)
        })
    }

    /// `mmapfs flush`.
    pub fn flush(&self, args: &FlushArgs) -> Result<u8, Failure> {
        let flush = |client: &Client| client.flush(args.mode, args.span.range);
        self.each(&args.paths.paths, |client| flush(client).map(Report::Flush))
    }

    /// `mmapfs lock`.
    pub fn lock(&self, args: &RangeArgs) -> Result<u8, Failure> {
        let range = args.span.range;
        self.each(&args.paths.paths, |client| client.lock(range).map(Report::Lock))
    }

    /// `mmapfs unlock`.
    pub fn unlock(&self, args: &RangeArgs) -> Result<u8, Failure> {
        let range = args.span.range;
        self.each(&args.paths.paths, |client| client.unlock(range).map(Report::Lock))
    }

    /// `mmapfs status`: of the mount for its root, of the file for any other path.
    pub fn status(&self, args: &StatusArgs) -> Result<u8, Failure> {
        let of_mount = |client: &Client| client.status().map(Box::new).map(Report::Status);
        if args.paths.is_empty() {
            return self.print(&of_mount(&Client::of_only_mount()?)?);
        }
        self.each(&args.paths, |client| match client.path().as_os_str().is_empty() {
            true => of_mount(client),
            false => client.file().map(Box::new).map(Report::File),
        })
    }

    /// `mmapfs maps`: those of one file or directory only, if one is named.
    pub fn maps(&self, args: &MapsArgs) -> Result<u8, Failure> {
        let client = args.path.as_ref().map_or_else(Client::of_only_mount, Client::open)?;
        self.print(&Report::Maps(client.maps()?))
    }

    /// `mmapfs reload`.
    pub fn reload(&self, args: &ReloadArgs) -> Result<u8, Failure> {
        self.print(&Report::Reload(Client::open(&args.mountpoint)?.reload()?))
    }

    /// `mmapfs log`.
    pub fn log(&self, args: &LogArgs) -> Result<u8, Failure> {
        let level = Client::open(&args.mountpoint)?.set_log_level(args.level)?;
        self.print(&Report::Log { level })
    }

    /// `mmapfs version`: of the daemon, if a mount is named; of this program otherwise.
    pub fn version(&self, args: &VersionArgs) -> Result<u8, Failure> {
        let version = env!("CARGO_PKG_VERSION");
        match &args.mountpoint {
            Some(mountpoint) => {
                return self.print(&Report::Version(Client::open(mountpoint)?.version()?));
            }
            None if self.json => output::print_json(&serde_json::json!({ "version": version }))?,
            None => output::print(&format!("mmapfs {version}"))?,
        }
        Ok(0)
    }

    /// Asks about every path, whatever became of the others.
    fn each(
        &self,
        paths: &[PathBuf],
        ask: impl Fn(&Client) -> Result<Report, Failure>,
    ) -> Result<u8, Failure> {
        let mut code = 0;
        for path in paths {
            code = match Client::open(path).and_then(|client| ask(&client)) {
                Ok(report) => {
                    warn(path, &report);
                    self.print(&report)?.max(code)
                }
                Err(failure) => tell(&with_remedy(failure)).max(code),
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

fn with_remedy(mut failure: Failure) -> Failure {
    if failure.kind == FailureKind::NeedsDestroy {
        failure.reason += ": say `--destroy` if that is meant";
    }
    failure
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
