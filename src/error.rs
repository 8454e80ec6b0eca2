//! The error a person reads: what it is about, what failed, and why.

use std::fmt;

pub(crate) mod cause;

/// A failure of a mount, of a control verb or of a whole command, shown as one line
/// `SUBJECT: what failed: reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) subject: String,
    pub(crate) reason: String,
    pub(crate) errno: Option<i32>,
}

/// The kinds of [`Error`](crate::Error).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// An option, a rules file, an argument or the command line is wrong.
    Usage,
    /// Files or directories of a mount are in use.
    Busy,
    /// The advice destroys bytes, which was not said to be meant.
    NeedsDestroy,
    /// Everything else.
    Failed,
}

impl Failure {
    /// A mistake in what was asked: exit code 2.
    pub(crate) fn usage(subject: impl fmt::Display, reason: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Usage, subject, reason)
    }

    /// A request that was understood and could not be carried out: exit code 1.
    pub(crate) fn failed(subject: impl fmt::Display, reason: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Failed, subject, reason)
    }

    /// A mount that is in use.
    pub(crate) fn busy(subject: impl fmt::Display, reason: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Busy, subject, reason)
    }

    fn new(kind: FailureKind, subject: impl fmt::Display, reason: impl fmt::Display) -> Failure {
        let (subject, reason) = (subject.to_string(), reason.to_string());
        Failure { kind, subject, reason, errno: None }
    }

    /// Its kind.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// The thing it is about: a path, an option, a verb; empty where the reason names it.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The failed step and the reason, as `what failed: reason` or only the reason.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The errno that the daemon answered a control verb with.
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// The exit code of a process that ends with this failure: 2 for usage, 1 for the rest.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            FailureKind::Usage => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.subject.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

impl std::error::Error for Failure {}
