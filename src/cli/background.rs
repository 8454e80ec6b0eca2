//! Sending the daemon to the background, with its parent waiting until the mount answers.
//!
//! There is no fork: the parent starts the program once more, with the same words and a private
//! variable in its environment. The child's standard output is a pipe on which it says one line:
//! `ready`, or an exit code and the text of a failure.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{OFlags, major, minor};

use crate::config::MountTable;
use crate::config::mountinfo::Answer;
use crate::error::Failure;
use crate::shown::{Clean, Show};

#[cfg(test)]
mod tests;

/// Set in the environment of the child.
const VARIABLE: &str = "MMAPFS_BACKGROUND";
/// The child's line when the mount answers.
const READY: &str = "ready";

/// Starts this program once more, as the daemon, and waits until it serves `mountpoint`.
///
/// # Errors
/// The failure that the child reports, or how it ended.
pub fn start(argv: &[OsString], mountpoint: &Path) -> Result<(), Failure> {
    let failed =
        |what: &str, error: io::Error| Failure::failed("daemon", format_args!("{what}: {error}"));
    let canonical = mountpoint.canonicalize();
    let mut command = Command::new("/proc/self/exe");
    command.env(VARIABLE, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    if let Some((name, words)) = argv.split_first() {
        command.arg0(name).args(words);
    }
    let mut child = command.spawn().map_err(|error| failed("starting it", error))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut said)
            .map_err(|error| failed("waiting for it", error))?;
    }
    match understand(&said) {
        Some(Ok(())) => answers(&canonical.map_err(|error| failed("finding its mount", error))?),
        Some(Err(failure)) => {
            child.wait().map_err(|error| failed("waiting for its end", error))?;
            Err(failure)
        }
        None => {
            let status = child.wait().map_err(|error| failed("waiting for its end", error))?;
            let reason = format_args!("it ended before the mount answered, with {status}");
            Err(Failure::failed("daemon", reason))
        }
    }
}

/// The meaning of a line of the child; `None` when it has none.
fn understand(line: &str) -> Option<Result<(), Failure>> {
    let line = line.strip_suffix('\n')?;
    if line == READY {
        return Some(Ok(()));
    }
    let (code, text) = line.split_once(' ')?;
    Some(Err(match code {
        "2" => Failure::usage("", text),
        _ => Failure::failed("", text),
    }))
}

/// Checks with our own eyes that the mount is there and answers.
fn answers(mountpoint: &Path) -> Result<(), Failure> {
    let failed = |reason: String| Failure::failed(mountpoint.shown(), reason);
    let table = MountTable::read()
        .map_err(|error| failed(format!("reading the table of mounts: {error}")))?;
    let mount = table
        .at(mountpoint)
        .filter(|mount| mount.is_fuse())
        .ok_or_else(|| failed("it was mounted, and unmounted again at once".into()))?;
    match mount.answer() {
        Answer::Alive => {}
        Answer::Gone => return Err(failed("it was mounted, and its daemon has ended".into())),
        Answer::Silent => return Err(failed("it is mounted and does not answer".into())),
        Answer::Refused(errno) => {
            return Err(failed(format!("it is mounted, and says: {}", io::Error::from(errno))));
        }
    }
    let root = rustix::fs::stat(mountpoint)
        .map_err(|errno| failed(format!("it is mounted, and says: {}", io::Error::from(errno))))?;
    match (major(root.st_dev), minor(root.st_dev)) == mount.dev {
        true => Ok(()),
        false => Err(failed("it is mounted, and another mount covers it".into())),
    }
}

/// The side of the child: says once how it fares.
#[derive(Debug, Clone)]
pub struct Child {
    told: Arc<AtomicBool>,
}

impl Child {
    /// Whether this process is the child, which is a session of its own from then on.
    ///
    /// # Errors
    /// No session can be made.
    pub fn detect() -> Result<Option<Child>, Failure> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        rustix::process::setsid()
            .map_err(|errno| Failure::failed("setsid", io::Error::from(errno)))?;
        Ok(Some(Child { told: Arc::new(AtomicBool::new(false)) }))
    }

    /// Says that the mount answers, and lets go of the terminal: standard error goes on into
    /// `log`, if there is one.
    pub fn ready(&self, log: Option<File>) {
        self.say(READY);
        if let Err(failure) = let_go(log) {
            log::error!("{failure}");
        }
    }

    /// Says why there is no mount; where the parent has gone on already, the log gets it. Returns
    /// the exit code.
    pub fn fail(&self, failure: &Failure) -> u8 {
        let text = Clean(&failure.to_string()).to_string();
        if !self.say(&format!("{} {text}", failure.exit_code())) {
            log::error!("{text}");
        }
        failure.exit_code()
    }

    /// Whether this was the first thing said, and so went to the parent.
    fn say(&self, line: &str) -> bool {
        let first = !self.told.swap(true, Ordering::AcqRel);
        if first && let Err(error) = writeln!(io::stdout(), "{line}") {
            // The parent was interrupted. The mount is there as it was asked for.
            log::warn!("nobody waits for the mount any more: {error}");
        }
        first
    }
}

fn let_go(log: Option<File>) -> Result<(), Failure> {
    let failed = |error: rustix::io::Errno| Failure::failed("/dev/null", io::Error::from(error));
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()).map_err(failed)?;
    rustix::stdio::dup2_stdin(&null).map_err(failed)?;
    rustix::stdio::dup2_stdout(&null).map_err(failed)?;
    let errors = log.unwrap_or_else(|| null.into());
    rustix::stdio::dup2_stderr(&errors).map_err(failed)
}
