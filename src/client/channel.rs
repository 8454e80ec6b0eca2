//! The control file: one command in, one report out.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::io::Errno;

use super::target::Target;
use crate::control::command::{Command, Line};
use crate::control::report::Report;
use crate::error::Failure;
use crate::shown::Show;
use crate::sys;

/// The attribute of a mount's root that names its control directory.
const XATTR: &str = "user.mmapfs.control";
/// The longest file name (limits.h, `NAME_MAX`).
const LONGEST_NAME: usize = 255;
/// The bytes of an answer that are read at once.
const PIECE: usize = 64 * 1024;

/// Sends a command to the daemon of the mount that the target lies in, and gives its answer.
///
/// # Errors
/// The mount has no control directory, this user may not enter it, or there is no answer. A refusal
/// of the daemon is a report of an error.
pub fn ask(target: &Target, command: Command) -> Result<Report, Failure> {
    let directory = target.mountpoint.join(name(target)?);
    let path = directory.join("control");
    let line = line(command);
    // By ioctl where the line fits: that needs no right to write, which a mount with the option
    // ro refuses, and no open file of our own, which one with open=none does not have.
    let by_ioctl = line.len() <= sys::file::LONGEST_COMMAND;
    let opened = OpenOptions::new().read(true).write(!by_ioctl).open(&path);
    let file = opened.map_err(|error| Failure::failed(path.shown(), error))?;
    Channel { file, path, by_ioctl }.ask(&line)
}

fn line(command: Command) -> Vec<u8> {
    let mut line = Line { json: true, command }.to_bytes();
    line.push(b'\n');
    line
}

/// An open control file.
struct Channel {
    file: File,
    path: PathBuf,
    by_ioctl: bool,
}

impl Channel {
    fn ask(self, line: &[u8]) -> Result<Report, Failure> {
        // One write is one command: its errno is the command's.
        let sent = self.send(line);
        let answer = self.answer().map_err(|error| self.failed(&error));
        match (sent, answer) {
            (_, Ok(Some(report @ Report::Error(_)))) => Ok(report),
            (Ok(count), Ok(Some(report))) if count == line.len() => Ok(report),
            (Err(error), _) => Err(self.failed(&error)),
            (Ok(_), Err(failure)) => Err(failure),
            (Ok(_), Ok(_)) => Err(self.failed(&"the daemon did not answer")),
        }
    }

    /// Sends a line and says how much of it was taken.
    fn send(&self, line: &[u8]) -> io::Result<usize> {
        if !self.by_ioctl {
            return (&self.file).write(line);
        }
        sys::file::send_command(&self.file, line)?;
        Ok(line.len())
    }

    /// The next piece of the answer; empty at its end.
    fn piece(&self, at: u64) -> io::Result<Vec<u8>> {
        if self.by_ioctl {
            return Ok(sys::file::take_answer(&self.file)?);
        }
        let mut piece = vec![0; PIECE];
        let count = self.file.read_at(&mut piece, at)?;
        piece.truncate(count);
        Ok(piece)
    }

    /// Reads one line; `None` when there is none.
    fn answer(&self) -> io::Result<Option<Report>> {
        let mut text = Vec::new();
        while !text.contains(&b'\n') {
            let piece = self.piece(text.len() as u64)?;
            if piece.is_empty() {
                break;
            }
            text.extend_from_slice(&piece);
        }
        let text = String::from_utf8_lossy(&text);
        let Some(line) = text.lines().next() else { return Ok(None) };
        Report::from_json(line).map(Some).map_err(io::Error::from)
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> Failure {
        Failure::failed(self.path.shown(), reason)
    }
}

/// Asks the mount's root for the name of the control directory. A directory of the source that is
/// called `.mmapfs` can so never be taken for it.
fn name(target: &Target) -> Result<OsString, Failure> {
    let mut name = vec![0; LONGEST_NAME];
    match rustix::fs::getxattr(&target.mountpoint, XATTR, &mut name) {
        Ok(len) => {
            name.truncate(len);
            Ok(OsString::from_vec(name))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => {
            let reason = "it has no control directory: it is off, or the root is a file";
            Err(Failure::failed(target.mountpoint.shown(), reason))
        }
        Err(errno) => Err(Failure::failed(target.mountpoint.shown(), io::Error::from(errno))),
    }
}
