//! Commands: what can be asked of a mount, parsed from a line and printed as one.
//!
//! The grammar is in [`crate::control`]. [`Line::parse`] and [`Line::to_bytes`] are inverse to each
//! other for every command that a line can hold. Nothing here touches a file or a mount: whether a
//! path exists, a range lies in its file or an advice is allowed there is for the executor to say,
//! with a [`CommandError`] of the fitting kind.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::advice::Advice;
use crate::range::{RangeError, RangeSpec};
use crate::shown::Show;

pub mod help;
mod parse;
#[cfg(test)]
mod tests;

/// The longest line that is taken, in bytes, without its newline.
pub const LONGEST_LINE: usize = 64 * 1024;

/// One line: a command, and the form of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Whether the answer is one line of JSON instead of text.
    pub json: bool,
    /// The command that is asked for.
    pub command: Command,
}

/// A command. Paths are relative to the root of the mount and hold neither `.` nor `..`; the empty
/// path is the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Gives advice for the pages of a range.
    Advise {
        /// The advice.
        advice: Advice,
        /// Whether the word `destroy` was said, which an advice that destroys bytes needs.
        destroy: bool,
        /// The bytes meant.
        range: RangeSpec,
        /// The file.
        path: PathBuf,
    },
    /// Writes changed pages to the backing file.
    Flush {
        /// The mode of the flush.
        mode: FlushMode,
        /// The bytes meant.
        range: RangeSpec,
        /// The file.
        path: PathBuf,
    },
    /// Reports on the mount, or on one path of it.
    Status {
        /// The file or directory, or None for the mount.
        path: Option<PathBuf>,
    },
    /// Lists the differences between a scratch and its base.
    Diff {
        /// Whether the ranges of bytes that differ are listed.
        ranges: bool,
        /// Whether everything below a deleted directory is listed.
        expand: bool,
        /// The file or directory, or None for the whole mount. It need not exist any more.
        path: Option<PathBuf>,
    },
    /// Lists the mappings.
    Maps,
    /// Locks pages in memory.
    Lock {
        /// The bytes meant.
        range: RangeSpec,
        /// The file.
        path: PathBuf,
    },
    /// Undoes `Lock`.
    Unlock {
        /// The bytes meant.
        range: RangeSpec,
        /// The file.
        path: PathBuf,
    },
    /// Reads the rules file again.
    Reload,
    /// Explains the verbs, or one of them.
    Help {
        /// The verb, or None for all.
        verb: Option<Verb>,
    },
    /// Reports the versions of the program and of the protocol.
    Version,
    /// Sets the level of the log.
    Log {
        /// The most talkative level that is logged.
        level: log::LevelFilter,
    },
}

/// The mode of a flush, in the words of msync(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlushMode {
    /// MS_SYNC: waits until the bytes are on the device.
    Sync,
    /// MS_ASYNC: leaves the writing to the kernel.
    Async,
    /// MS_SYNC and MS_INVALIDATE: also asks for other mappings of the file to be brought up to
    /// date; EBUSY where pages are locked.
    Invalidate,
}

/// The first word of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The table in `help` has a paragraph for each.
pub enum Verb {
    Advise,
    Flush,
    Status,
    Diff,
    Maps,
    Lock,
    Unlock,
    Reload,
    Help,
    Version,
    Log,
}

impl FlushMode {
    /// Every mode.
    pub const ALL: &'static [FlushMode] =
        &[FlushMode::Sync, FlushMode::Async, FlushMode::Invalidate];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            FlushMode::Sync => "sync",
            FlushMode::Async => "async",
            FlushMode::Invalidate => "invalidate",
        }
    }
}

impl fmt::Display for FlushMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Line {
    /// Parses one line, with or without its newline. Fails with [`ErrorKind::Unknown`] for a verb
    /// or an advice that does not exist, and with [`ErrorKind::Argument`] for every other mistake.
    pub fn parse(line: &[u8]) -> Result<Line, CommandError> {
        parse::line(line)
    }

    /// Whether a line asks for its answer as JSON. It is known even of a line that does not parse.
    pub fn wants_json(line: &[u8]) -> bool {
        parse::wants_json(line)
    }

    /// Prints the line, without a newline, so that [`Line::parse`] gives the same value. Parsing
    /// fails for what is no command: a path with a NUL or a `..` in it, or one that makes the line
    /// longer than [`LONGEST_LINE`].
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

impl fmt::Display for Line {
    /// The same line as text: a path that is not UTF-8 is quoted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = if self.json { "json " } else { "" };
        write!(f, "{json}{}", self.command.verb())?;
        let mut word = |word: &str| write!(f, " {word}");
        match &self.command {
            Command::Advise { advice, destroy, .. } => {
                if *destroy {
                    word("destroy")?;
                }
                word(advice.name())?;
            }
            Command::Flush { mode, .. } => word(mode.name())?,
            Command::Diff { ranges, expand, .. } => {
                if *ranges {
                    word("ranges")?;
                }
                if *expand {
                    word("expand")?;
                }
            }
            Command::Help { verb: Some(verb) } => word(verb.name())?,
            Command::Log { level } => word(&level.as_str().to_ascii_lowercase())?,
            _ => {}
        }
        if let Some(range) = self.command.range().filter(|range| *range != RangeSpec::All) {
            word(&range.to_string())?;
        }
        match self.command.path().map(|path| path.shown()) {
            Some(path) if path.is_plain() => write!(f, " /{path}"),
            // The root is nameless, and needs no quotes.
            Some(path) if path == "".shown() => f.write_str(" /"),
            Some(path) => write!(f, " {}", path.quoted()),
            None => Ok(()),
        }
    }
}

/// A path of a mount, printed so that a person can give it to any verb: the root is `.`, and a
/// name that would be taken for something else is quoted.
#[derive(Debug, Clone, Copy)]
pub struct PathWord<'a>(pub &'a Path);

impl fmt::Display for PathWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PathWord(path) = self;
        if path.as_os_str().is_empty() {
            return f.write_str(".");
        }
        let plain = path.shown();
        // Of all verbs this one takes the most words before the path.
        let line = [b"flush ", path.as_os_str().as_bytes()].concat();
        let is_taken = Line::parse(&line).is_ok_and(|line| {
            let Command::Flush { mode: FlushMode::Sync, range: RangeSpec::All, path: taken } =
                line.command
            else {
                return false;
            };
            taken.as_os_str() == path.as_os_str()
        });
        if is_taken { write!(f, "{plain}") } else { f.write_str(&plain.quoted()) }
    }
}

impl Command {
    /// Its first word.
    pub fn verb(&self) -> Verb {
        match self {
            Command::Advise { .. } => Verb::Advise,
            Command::Flush { .. } => Verb::Flush,
            Command::Status { .. } => Verb::Status,
            Command::Diff { .. } => Verb::Diff,
            Command::Maps => Verb::Maps,
            Command::Lock { .. } => Verb::Lock,
            Command::Unlock { .. } => Verb::Unlock,
            Command::Reload => Verb::Reload,
            Command::Help { .. } => Verb::Help,
            Command::Version => Verb::Version,
            Command::Log { .. } => Verb::Log,
        }
    }

    /// The path it is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Command::Advise { path, .. }
            | Command::Flush { path, .. }
            | Command::Lock { path, .. }
            | Command::Unlock { path, .. } => Some(path),
            Command::Status { path } | Command::Diff { path, .. } => path.as_deref(),
            _ => None,
        }
    }

    /// The range it is about, if it takes one.
    pub fn range(&self) -> Option<RangeSpec> {
        match self {
            Command::Advise { range, .. }
            | Command::Flush { range, .. }
            | Command::Lock { range, .. }
            | Command::Unlock { range, .. } => Some(*range),
            _ => None,
        }
    }
}

/// Why a command was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandError {
    /// Decides the errno of write(2).
    pub kind: ErrorKind,
    /// The path that it is about, relative to the root of the mount.
    pub path: Option<PathBuf>,
    /// The failed step and the reason, as one line for a person without the path.
    pub message: String,
    /// The advice that is carried out with the word `destroy` alone, where that was missing.
    pub needs_destroy: Option<Advice>,
}

/// The kinds of failure of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A verb or an advice that does not exist.
    Unknown,
    /// A word that is missing, superfluous or wrong.
    Argument,
    /// No such path.
    NotFound,
    /// Not allowed: an advice that needs `destroy`, or that is always refused.
    NotAllowed,
    /// A range that reaches past the end of its file.
    OutOfRange,
    /// Not possible on this kernel, filesystem or kind of mapping.
    NotSupported,
    /// Anything else, by its errno.
    Io(i32),
}

impl CommandError {
    /// An error of a kind, with its line for a person.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> CommandError {
        CommandError { kind, path: None, message: message.to_string(), needs_destroy: None }
    }

    /// The same about a path.
    pub fn about(self, path: &Path) -> CommandError {
        CommandError { path: Some(path.to_owned()), ..self }
    }

    /// The same for an advice that needs the word `destroy`.
    pub fn needing_destroy(self, advice: Advice) -> CommandError {
        CommandError { needs_destroy: Some(advice), ..self }
    }

    /// The errno that write(2) on the control file fails with.
    pub fn errno(&self) -> i32 {
        match self.kind {
            ErrorKind::Unknown | ErrorKind::Argument => libc::EINVAL,
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::NotAllowed => libc::EPERM,
            ErrorKind::OutOfRange => libc::ERANGE,
            ErrorKind::NotSupported => libc::ENOTSUP,
            ErrorKind::Io(errno) => errno,
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", PathWord(path))?;
        }
        f.write_str(&self.message)?;
        match self.needs_destroy {
            Some(advice) => write!(f, ": say `advise destroy {advice}` if that is meant"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CommandError {}

impl From<RangeError> for CommandError {
    fn from(error: RangeError) -> CommandError {
        let kind = match error {
            RangeError::Outside { .. } => ErrorKind::OutOfRange,
            _ => ErrorKind::Argument,
        };
        CommandError::new(kind, error)
    }
}
