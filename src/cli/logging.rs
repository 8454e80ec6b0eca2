//! Where the log goes and what is in it.
//!
//! The level is that of `-o log=`, otherwise `MMAPFS_LOG`, otherwise `info`. A bare level is for
//! mmapfs alone, and other crates stay at `warn`; it can be changed later by `log::set_max_level`.
//! With directives of env_logger in `MMAPFS_LOG`, a later level can only take away from what they
//! let through.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use env_logger::fmt::Formatter;
use env_logger::{Builder, Target};
use log::{Level, LevelFilter, Record};

use crate::config::options::LEVELS;
use crate::error::Failure;
use crate::fuse::LOG_TARGETS;

#[cfg(test)]
mod tests;

/// The environment variable with the level or the directives.
const VARIABLE: &str = "MMAPFS_LOG";
/// The local system log (syslog(3)).
const SYSLOG: &str = "/dev/log";
/// The facility `daemon` of syslog(3), in the place that it has in a priority.
const FACILITY: u8 = 3 << 3;
/// The severity of warnings; what is worse is smaller.
const WARNING: u8 = 4;

/// Where the log goes.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Standard error; with priorities where that is the journal.
    Stderr,
    /// Appended to a file.
    File(&'a Path),
    /// The system log, if there is one. Warnings and errors go to standard error too, which leads
    /// nowhere once the daemon is in the background.
    System,
}

/// Starts the log of this process.
///
/// # Errors
/// The file cannot be opened, or there is a log already.
pub fn start(level: Option<LevelFilter>, place: Place<'_>) -> Result<(), Failure> {
    let mut builder = Builder::new();
    let ceiling = filter(&mut builder, level, std::env::var(VARIABLE).ok().as_deref());
    match place {
        Place::Stderr if is_journal() => builder.format(journal_line),
        Place::Stderr => builder.format(dated_line),
        Place::File(path) => {
            let file = open(path)?;
            builder.format(dated_line).target(Target::Pipe(Box::new(file)))
        }
        Place::System => {
            let system = System { socket: connect() };
            builder.format(syslog_line).target(Target::Pipe(Box::new(system)))
        }
    };
    let logger = builder.build();
    log::set_max_level(ceiling.unwrap_or_else(|| logger.filter()));
    log::set_boxed_logger(Box::new(logger)).map_err(|error| Failure::failed("log", error))
}

/// Opens a file to be appended to.
pub fn open(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| Failure::failed(path.display(), format_args!("opening the log: {error}")))
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
            // Replies that the kernel no longer waits for: of clients that were killed, of a
            // mount that is gone. What they were about is counted and told by ourselves.
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

fn connect() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(SYSLOG).ok()?;
    Some(socket)
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

fn dated_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = out.timestamp_millis();
    writeln!(out, "{time} {} {}: {}", name(record.level()), record.target(), record.args())
}

fn journal_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let level = record.level();
    writeln!(out, "<{}>{} {}: {}", severity(level), name(level), record.target(), record.args())
}

fn syslog_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = FACILITY | severity(record.level());
    let (level, pid) = (name(record.level()), std::process::id());
    write!(out, "<{priority}>mmapfs[{pid}]: {level} {}: {}", record.target(), record.args())
}

/// Sends every line to the system log, and copies what matters to standard error.
struct System {
    socket: Option<UnixDatagram>,
}

impl Write for System {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Neither place can take a complaint about the other: a log that is full, or gone, loses
        // this line.
        if let Some(shown) = terminal_line(&String::from_utf8_lossy(line)) {
            let _ = writeln!(io::stderr(), "{shown}");
        }
        if let Some(socket) = &self.socket {
            let _ = socket.send(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line for the system log as a person in front of a terminal wants it: nothing but warnings and
/// errors, without priority and process.
fn terminal_line(line: &str) -> Option<&str> {
    let (priority, rest) = line.strip_prefix('<')?.split_once('>')?;
    let (_, shown) = rest.split_once(": ")?;
    let severity = priority.parse::<u8>().ok()? & 7;
    (severity <= WARNING).then_some(shown)
}
