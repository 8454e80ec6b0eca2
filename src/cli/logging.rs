//! Where the log goes and what is in it.
//!
//! The level is that of `-o log=`, otherwise `MMAPFS_LOG`, otherwise `info`. A bare level is for
//! mmapfs alone, and other crates stay at `warn`; it can be changed later by `log::set_max_level`.
//! With directives of env_logger in `MMAPFS_LOG`, a later level can only take away from what they
//! let through.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use env_logger::fmt::Formatter;
use env_logger::{Builder, Target};
use log::{Level, LevelFilter, Record};

use crate::config::options::LEVELS;
use crate::control::exec::LogPlace;
use crate::error::Failure;
use crate::fuse::LOG_TARGETS;
use crate::shown::{Clean, Show};
use crate::sys;

mod aside;
mod system;
#[cfg(test)]
mod tests;

use aside::Aside;
use system::System;

/// The environment variable with the level or the directives.
const VARIABLE: &str = "MMAPFS_LOG";
/// The severity of warnings; what is worse is smaller.
const WARNING: u8 = 4;

/// Where the log goes.
#[derive(Debug)]
pub enum Place<'a> {
    /// Standard error; with priorities where that is the journal.
    Stderr,
    /// A file that [`open`] has opened.
    File(File),
    /// The system log, for the mount at this point, and where there is none a file. Warnings and
    /// errors go to standard error too, which leads nowhere once the daemon is in the background.
    System(&'a Path),
}

/// Starts the log of this process. Returns who tells where it goes, which may change.
///
/// # Errors
/// There is a log already.
pub fn start(level: Option<LevelFilter>, place: Place<'_>) -> Result<LogPlace, Failure> {
    let mut builder = Builder::new();
    let ceiling = filter(&mut builder, level, std::env::var(VARIABLE).ok().as_deref());
    let told: LogPlace = match place {
        Place::Stderr if is_journal() => {
            builder.format(journal_line);
            Box::new(|| String::from("the journal, by standard error"))
        }
        Place::Stderr => {
            builder.format(dated_line);
            Box::new(|| String::from("standard error"))
        }
        Place::File(file) => {
            let path = std::fs::read_link(sys::fd_path(file.as_fd())).unwrap_or_default();
            builder.format(dated_line).target(Target::Pipe(Box::new(file)));
            Box::new(move || path.shown().to_string())
        }
        Place::System(mountpoint) => {
            let mut system = System::new(mountpoint, Aside::of_process());
            if ceiling != Some(LevelFilter::Off)
                && let Err(error) = system.find()
            {
                // There is no other place to say it.
                let _ = writeln!(io::stderr(), "mmapfs: log: it goes nowhere: {error}");
            }
            let place = system.place();
            builder.format(system_line).target(Target::Pipe(Box::new(system)));
            Box::new(move || place.lock().clone())
        }
    };
    let logger = builder.build();
    log::set_max_level(ceiling.unwrap_or_else(|| logger.filter()));
    log::set_boxed_logger(Box::new(logger)).map_err(|error| Failure::failed("log", error))?;
    Ok(told)
}

/// Opens a file to be appended to.
pub fn open(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| Failure::failed(path.shown(), format_args!("opening the log: {error}")))
}

/// Sets what is let through. Returns the level to begin with, or `None` for that of the
/// directives.
fn filter(
    builder: &mut Builder,
    level: Option<LevelFilter>,
    variable: Option<&str>,
) -> Option<LevelFilter> {
    let directives = variable.map(str::trim).unwrap_or_default();
    let bare = LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(directives));
    match level.or(bare.map(|(_, level)| *level)) {
        None if !directives.is_empty() => {
            builder.parse_filters(directives);
            None
        }
        level => {
            builder.filter_level(LevelFilter::Warn);
            builder.filter_module(env!("CARGO_CRATE_NAME"), LevelFilter::Trace);
            // Replies that the kernel no longer waits for: of clients that were killed, of a mount
            // that is gone. The daemon itself counts and reports their requests.
            builder.filter_module(LOG_TARGETS.1, LevelFilter::Off);
            Some(level.unwrap_or(LevelFilter::Info))
        }
    }
}

/// Whether standard error is a stream of the journal (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|found| stream == format!("{}:{}", found.st_dev, found.st_ino))
}

/// The severity of syslog(3).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => WARNING,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// The text of a record as one line, with the control characters of names escaped.
fn said(record: &Record<'_>) -> String {
    let (level, target) = (name(record.level()), record.target());
    Clean(&format!("{level} {target}: {}", record.args())).to_string()
}

fn dated_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    writeln!(out, "{time} {}", said(record))
}

fn journal_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    writeln!(out, "<{}>{}", severity(record.level()), said(record))
}

fn system_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    write!(out, "<{} {time}>{}", severity(record.level()), said(record))
}
