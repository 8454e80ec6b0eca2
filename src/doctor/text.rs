//! An examination as text for people: a line for what is there or not known, with what it is used
//! for; three for what is missing, with what that costs.

use std::fmt::{self, Display, Formatter};

use super::{Check, Examination, Group, State};
use crate::shown::Clean;

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Yes => "yes",
            State::No => "no",
            State::Limited => "limited",
            State::Unknown => "unknown",
        })
    }
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Group::Mount => "Mounting",
            Group::Fuse => "FUSE in this kernel",
            Group::Privilege => "Privilege",
            Group::Kernel => "System calls",
            Group::Directory => "The directory",
            Group::Scratch => "Scratch overlays",
            Group::Limits => "Limits",
        }
    }
}

/// An examination to be printed.
pub(super) struct Shown<'a> {
    pub examination: &'a Examination,
    /// Three lines for everything.
    pub verbose: bool,
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Examination { directory, checks, .. } = self.examination;
        writeln!(f, "For mounts of {directory}")?;
        let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut group = None;
        for check in checks {
            if group.replace(check.group) != Some(check.group) {
                writeln!(f, "\n{}", check.group.title())?;
            }
            row(f, check, width, self.verbose)?;
        }
        let counts = [State::Yes, State::Limited, State::No, State::Unknown].map(|state| {
            let count = checks.iter().filter(|check| check.state == state).count();
            format!("{count} {state}")
        });
        writeln!(f, "\n{}", counts.join(", "))
    }
}

fn row(f: &mut Formatter<'_>, check: &Check, width: usize, verbose: bool) -> fmt::Result {
    let Check { name, state, detail, used_for, without, .. } = check;
    write!(f, "  {state:<7}  {name:<width$}  {}", Clean(detail))?;
    if matches!(state, State::Yes | State::Unknown) && !verbose {
        return writeln!(f, ": {used_for}");
    }
    let (blank, margin) = ("", width + 13);
    writeln!(f, "\n{blank:<margin$}for: {used_for}")?;
    writeln!(f, "{blank:<margin$}without: {without}")
}
