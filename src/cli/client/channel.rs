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
use crate::sys;

/// The attribute of a mount's root that names its control directory.
const XATTR: &str = "user.mmapfs.control";
/// The longest file name (limits.h, `NAME_MAX`).
const LONGEST_NAME: usize = 255;
/// How much of an answer is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Sends a command to the daemon of the mount that the target lies in, and gives its answer.
///
/// # Errors
/// The daemon refuses or fails: then the reason is its own, without a subject. Or the mount has no
/// control directory, this user may not enter it, or there is no answer.
pub fn ask(target: &Target, command: Command) -> Result<Report, Failure> {
    let directory = target.mountpoint.join(name(target)?);
    let path = directory.join("control");
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => Channel { file, path, send: |file, line| (&*file).write(line) }.ask(command),
        // With the option ro the kernel refuses every write into the mount.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            match File::open(&path) {
                Ok(file) => Channel { file, path, send: send_by_ioctl }.ask(command),
                Err(error) => Err(Failure::failed(path.display(), error)),
            }
        }
        Err(error) => Err(Failure::failed(path.display(), error)),
    }
}

fn send_by_ioctl(file: &File, line: &[u8]) -> io::Result<usize> {
    sys::file::send_command(&file, line)?;
    Ok(line.len())
}

/// An open control file.
struct Channel {
    file: File,
    path: PathBuf,
    /// Sends a line and says how much of it was taken.
    send: fn(&File, &[u8]) -> io::Result<usize>,
}

impl Channel {
    fn ask(self, command: Command) -> Result<Report, Failure> {
        let mut line = Line { json: true, command }.to_bytes();
        line.push(b'\n');
        // One write is one command: its errno is the command's.
        let sent = (self.send)(&self.file, &line);
        let answer = self.answer().map_err(|error| self.failed(&error));
        match (sent, answer) {
            (_, Ok(Some(Report::Error { error, .. }))) => Err(Failure::failed("", error)),
            (Ok(count), Ok(Some(report))) if count == line.len() => Ok(report),
            (Err(error), _) => Err(self.failed(&error)),
            (Ok(_), Err(failure)) => Err(failure),
            (Ok(_), Ok(_)) => Err(self.failed(&"the daemon did not answer")),
        }
    }

    /// Reads one line; `None` when there is none.
    fn answer(&self) -> io::Result<Option<Report>> {
        let mut text = Vec::new();
        let mut piece = vec![0; PIECE];
        while !text.contains(&b'\n') {
            let count = self.file.read_at(&mut piece, text.len() as u64)?;
            if count == 0 {
                break;
            }
            text.extend_from_slice(piece.get(..count).unwrap_or_default());
        }
        let text = String::from_utf8_lossy(&text);
        let Some(line) = text.lines().next() else { return Ok(None) };
        Report::from_json(line).map(Some).map_err(io::Error::from)
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> Failure {
        Failure::failed(self.path.display(), reason)
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
            Err(Failure::failed(target.mountpoint.display(), reason))
        }
        Err(errno) => Err(Failure::failed(target.mountpoint.display(), io::Error::from(errno))),
    }
}
