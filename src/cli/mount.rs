//! `mmapfs mount`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

use super::args::{HelperArgs, MountArgs};
use super::background::{self, Child};
use super::logging::{self, Place};
use super::plan::Plan;
use super::{output, ready};
use crate::config::options::Unknown;
use crate::config::{MountConfig, MountOptions};
use crate::daemon;
use crate::error::Failure;
use crate::shown::Show;
use crate::sys;

/// The part that `mount` and the helper of mount(8) share.
struct Request<'a> {
    source: &'a Path,
    mountpoint: &'a Path,
    lists: &'a [OsString],
    sloppy: bool,
    verbose: bool,
}

/// Mounts, or says what would be mounted. `argv` are the words that this process was started with.
/// Returns the exit code of a daemon whose parent prints its failure.
pub fn run(args: &MountArgs, argv: &[OsString]) -> Result<u8, Failure> {
    let request = Request {
        source: &args.source,
        mountpoint: &args.mountpoint,
        lists: &args.options,
        sloppy: args.sloppy,
        verbose: args.verbose,
    };
    if args.check {
        let plan = Plan::of(&request.prepare()?)?;
        return if args.json {
            output::print_json(&plan)
        } else {
            output::print(&plan.to_string())
        }
        .map(|()| 0);
    }
    if args.foreground {
        return request.serve_in_front().map(|()| 0);
    }
    request.serve_behind(argv)
}

/// Mounts for mount(8).
pub fn run_helper(args: &HelperArgs, argv: &[OsString]) -> Result<u8, Failure> {
    let request = Request {
        source: &args.source,
        mountpoint: &args.mountpoint,
        lists: &args.options,
        sloppy: args.sloppy,
        verbose: args.verbose,
    };
    if args.fake {
        return request.prepare().map(|_| 0);
    }
    request.serve_behind(argv)
}

impl Request<'_> {
    fn options(&self) -> Result<MountOptions, Failure> {
        let unknown = if self.sloppy { Unknown::Tolerated } else { Unknown::Refused };
        MountOptions::parse(self.lists, unknown)
    }

    fn prepare(&self) -> Result<MountConfig, Failure> {
        MountConfig::prepare(self.source, self.mountpoint, self.options()?)
    }

    fn serve_in_front(&self) -> Result<(), Failure> {
        let config = self.prepare()?;
        let log = config.log_file.as_deref().map(logging::open).transpose()?;
        let told = logging::start(config.settings.log, log.map_or(Place::Stderr, Place::File))?;
        let served = daemon::serve(config, told, Box::new(ready::notify_ready));
        ready::notify_stopping();
        served
    }

    /// As the parent: starts the daemon and waits for it. As the daemon: serves.
    fn serve_behind(&self, argv: &[OsString]) -> Result<u8, Failure> {
        if let Some(child) = Child::detect()? {
            return Ok(self
                .serve_as_child(&child)
                .map_or_else(|failure| child.fail(&failure), |()| 0));
        }
        self.options()?;
        background::start(argv, self.mountpoint)?;
        if self.verbose {
            let (source, mountpoint) = (self.source.shown(), self.mountpoint.shown());
            output::print(&format!("{source} is mounted on {mountpoint}"))?;
        }
        Ok(0)
    }

    fn serve_as_child(&self, child: &Child) -> Result<(), Failure> {
        let inherited =
            sys::process::inherited().map_err(|error| Failure::failed("/proc/self/fd", error))?;
        let config = self.prepare()?;
        let log = config.log_file.as_deref().map(logging::open).transpose()?;
        // Options may name them (rules=/dev/fd/63, log_file=/dev/fd/3). From here on the daemon
        // keeps nothing of its parent's: no lock, and no pipe whose end somebody waits for.
        drop(inherited);
        let errors = log.as_ref().map(File::try_clone).transpose().map_err(|error| {
            Failure::failed("log", format_args!("a second descriptor: {error}"))
        })?;
        let place = log.map_or(Place::System(&config.mountpoint), Place::File);
        let told = logging::start(config.settings.log, place)?;
        rustix::process::chdir("/")
            .map_err(|errno| Failure::failed("/", io::Error::from(errno)))?;
        let child = child.clone();
        daemon::serve(config, told, Box::new(move || child.ready(errors)))
    }
}
