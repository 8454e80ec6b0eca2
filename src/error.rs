//! The error a person reads: what it is about, what failed, and why.

use std::fmt;

/// A failure of a whole command or of the daemon, printed as one line
/// `mmapfs: SUBJECT: what failed: reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Decides the exit code.
    pub kind: FailureKind,
    /// The thing it is about: a path, an option, a verb.
    pub subject: String,
    /// The failed step and the reason, as `what failed: reason` or only the reason.
    pub reason: String,
}

/// The kinds of failure, by exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The command line, an option or a rules file is wrong: exit code 2.
    Usage,
    /// Everything else: exit code 1.
    Failed,
}

impl Failure {
    /// A mistake in what was asked: exit code 2.
    pub fn usage(subject: impl fmt::Display, reason: impl fmt::Display) -> Failure {
        Failure {
            kind: FailureKind::Usage,
            subject: subject.to_string(),
            reason: reason.to_string(),
        }
    }

    /// A request that was understood and could not be carried out: exit code 1.
    pub fn failed(subject: impl fmt::Display, reason: impl fmt::Display) -> Failure {
        Failure {
            kind: FailureKind::Failed,
            subject: subject.to_string(),
            reason: reason.to_string(),
        }
    }

    /// The exit code of a process that ends with this failure: 2 for usage, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            FailureKind::Usage => 2,
            FailureKind::Failed => 1,
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
