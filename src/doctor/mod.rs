//! Examines what this machine and this user can have.
//!
//! Every check tries the thing itself, on the directory that was named or on something that is
//! made for it and goes again; versions decide nothing. A check has a name that stays the same,
//! for programs; what it is used for, and what happens without it, stand beside it.

use std::fmt::Display;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::fuse::probe::{self, Found};
use crate::shown::Name;

mod directory;
mod fuse;
mod kernel;
mod limits;
mod mounting;
mod privilege;
mod scratch;
mod subject;
#[cfg(test)]
mod tests;
mod text;

use subject::Subject;

/// Whether a thing is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// It is, and less of it than mmapfs could use.
    Limited,
    /// It could not be found out.
    Unknown,
}

/// The subject of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Making a mount.
    Mount,
    /// Features that the kernel's FUSE client offers.
    Fuse,
    /// The rights of this process.
    Privilege,
    /// System calls.
    Kernel,
    /// The directory that was named, and its filesystem.
    Directory,
    /// Needs of a scratch (`access=copy`): for the directory as one to keep it in, and as a base.
    Scratch,
    /// Limits of this process and of the machine.
    Limits,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    state: State,
    detail: String,
    values: Map<String, Value>,
}

impl Finding {
    fn new(state: State, detail: impl ToString) -> Finding {
        Finding { state, detail: detail.to_string(), values: Map::new() }
    }

    fn yes(detail: impl ToString) -> Finding {
        Finding::new(State::Yes, detail)
    }

    fn no(detail: impl ToString) -> Finding {
        Finding::new(State::No, detail)
    }

    fn limited(detail: impl ToString) -> Finding {
        Finding::new(State::Limited, detail)
    }

    fn unknown(detail: impl ToString) -> Finding {
        Finding::new(State::Unknown, detail)
    }

    /// With a value for programs.
    fn with(mut self, name: &str, value: impl Into<Value>) -> Finding {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}

/// One check and what it found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Its name, which is that of no other.
    pub name: &'static str,
    /// The subject of the check.
    pub group: Group,
    /// Whether it is to be had.
    pub state: State,
    /// The result, in words.
    pub detail: String,
    /// The same as values: numbers, truths, names. Limits without end are null.
    pub values: Map<String, Value>,
    /// Its use in mmapfs.
    pub used_for: &'static str,
    /// The effect of its absence.
    pub without: &'static str,
}

/// A check's name, what it is used for, and what happens without it.
struct Topic(&'static str, &'static str, &'static str);

impl Topic {
    fn found(&self, group: Group, finding: Finding) -> Check {
        let Topic(name, used_for, without) = *self;
        let Finding { state, detail, values } = finding;
        Check { name, group, state, detail, values, used_for, without }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "report", rename = "doctor")]
pub struct Examination {
    /// The directory that was named, absolute.
    pub directory: Name,
    /// Whether a mount could be made, and was.
    pub mountable: bool,
    /// The checks, by group.
    pub checks: Vec<Check>,
    /// Why no mount could be made.
    #[serde(skip)]
    refusal: Option<Failure>,
}

impl Examination {
    /// Examines the machine, for mounts whose source is `dir`. A mount is made for a moment.
    ///
    /// # Errors
    /// Kind `Failed` for a directory that cannot be opened.
    pub fn of(dir: &Path) -> Result<Examination, Failure> {
        let subject = Subject::open(dir)?;
        let found = probe::probe(subject.backing());
        let topics = [
            mounting::checks(&found),
            fuse::checks(&found, &subject),
            privilege::checks(),
            kernel::checks(&subject),
            directory::checks(&subject),
            scratch::checks(&subject),
            limits::checks(),
        ];
        Ok(Examination {
            directory: subject.name(),
            mountable: found.is_ok(),
            checks: topics.into_iter().flatten().collect(),
            refusal: found.err(),
        })
    }

    /// The examination as text: with everything said of every check, or only of those that found
    /// something missing.
    pub fn text(&self, verbose: bool) -> impl Display {
        text::Shown { examination: self, verbose }
    }

    /// Why no mount could be made, and how one can be had.
    pub fn refusal(&self) -> Option<Failure> {
        let mut failure = self.refusal.clone()?;
        if let Some(advice) = mounting::advice() {
            failure.reason = format!("{}: {advice}", failure.reason);
        }
        Some(failure)
    }
}

/// The outcome of the probing mount.
type Probed = Result<Found, Failure>;
