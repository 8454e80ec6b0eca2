//! The parser of a line. It reads the line once, from left to right, and copies only the path.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use super::{Command, CommandError, ErrorKind, FlushMode, LONGEST_LINE, Line, Verb};
use crate::advice::Advice;
use crate::range::RangeSpec;
use crate::shown::unquote;
use crate::units::{nearest, quote};

/// Parses a line, with or without its newline.
pub(super) fn line(line: &[u8]) -> Result<Line, CommandError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > LONGEST_LINE {
        return Err(argument(format!(
            "the line has {} bytes: at most {LONGEST_LINE} are taken",
            line.len()
        )));
    }
    if line.contains(&b'\n') {
        return Err(argument("a line cannot hold a newline"));
    }
    let mut words = Words { rest: line };
    let json = words.take("json");
    let Some(word) = words.next() else {
        return Err(argument("there is no command: `help` lists them"));
    };
    let verb = text(word).parse()?;
    Ok(Line { json, command: command(verb, &mut words)? })
}

/// Whether the first word is `json`.
pub(super) fn wants_json(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    Words { rest: line }.take("json")
}

/// Parses what follows the verb.
fn command(verb: Verb, words: &mut Words<'_>) -> Result<Command, CommandError> {
    let command = match verb {
        Verb::Advise => {
            let destroy = words.take("destroy");
            let advice = advice(words.required(verb, "ADVICE")?)?;
            Command::Advise { advice, destroy, range: words.range(), path: words.path(verb)? }
        }
        Verb::Flush => {
            let mode = FlushMode::ALL.iter().copied().find(|mode| words.take(mode.name()));
            let mode = mode.unwrap_or(FlushMode::Sync);
            Command::Flush { mode, range: words.range(), path: words.path(verb)? }
        }
        Verb::Status if words.is_empty() => Command::Status { path: None },
        Verb::Status => Command::Status { path: Some(words.path(verb)?) },
        Verb::Diff => {
            let (ranges, expand) = (words.take("ranges"), words.take("expand"));
            let path = if words.is_empty() { None } else { Some(words.path(verb)?) };
            Command::Diff { ranges, expand, path }
        }
        Verb::Maps => Command::Maps,
        Verb::Lock => Command::Lock { range: words.range(), path: words.path(verb)? },
        Verb::Unlock => Command::Unlock { range: words.range(), path: words.path(verb)? },
        Verb::Reload => Command::Reload,
        Verb::Help => {
            Command::Help { verb: words.next().map(|word| text(word).parse()).transpose()? }
        }
        Verb::Version => Command::Version,
        Verb::Log => Command::Log { level: level(words.required(verb, "LEVEL")?)? },
    };
    match words.next() {
        None => Ok(command),
        Some(word) => Err(argument(format!(
            "{verb}: {} is one word too many; usage: {}",
            quote(&text(word)),
            verb.usage()
        ))),
    }
}

fn advice(word: &[u8]) -> Result<Advice, CommandError> {
    text(word).parse().map_err(|error| CommandError::new(ErrorKind::Unknown, error))
}

fn level(word: &[u8]) -> Result<log::LevelFilter, CommandError> {
    let word = text(word);
    log::LevelFilter::from_str(&word).map_err(|_| {
        argument(format!(
            "there is no log level {}: give off, error, warn, info, debug or trace",
            quote(&word)
        ))
    })
}

impl FromStr for Verb {
    type Err = CommandError;

    fn from_str(word: &str) -> Result<Verb, CommandError> {
        let known = Verb::ALL.iter().copied().find(|verb| verb.name() == word);
        known.ok_or_else(|| {
            let answer = match nearest(word, Verb::ALL.iter().map(|verb| verb.name())) {
                Some(name) => format!("did you mean `{name}`?"),
                None => "`help` lists the verbs".to_owned(),
            };
            let message = format!("there is no verb {}: {answer}", quote(word));
            CommandError::new(ErrorKind::Unknown, message)
        })
    }
}

impl FromStr for FlushMode {
    type Err = CommandError;

    fn from_str(word: &str) -> Result<FlushMode, CommandError> {
        let known = FlushMode::ALL.iter().copied().find(|mode| mode.name() == word);
        known.ok_or_else(|| {
            argument(format!(
                "there is no way to flush named {}: give sync, async or invalidate",
                quote(word)
            ))
        })
    }
}

fn argument(message: impl std::fmt::Display) -> CommandError {
    CommandError::new(ErrorKind::Argument, message)
}

/// A word as text; what is not UTF-8 is replaced, and so is no known word.
fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(word).into_owned()
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The words of a line that are not parsed yet.
struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    /// The next word and what follows it, blanks before the following word dropped.
    fn peek(&self) -> Option<(&'a [u8], &'a [u8])> {
        let line = skip_blanks(self.rest);
        let end = line.iter().position(is_blank).unwrap_or(line.len());
        let (word, rest) = line.split_at_checked(end)?;
        (!word.is_empty()).then(|| (word, skip_blanks(rest)))
    }

    fn next(&mut self) -> Option<&'a [u8]> {
        let (word, rest) = self.peek()?;
        self.rest = rest;
        Some(word)
    }

    fn is_empty(&self) -> bool {
        self.peek().is_none()
    }

    /// Takes the next word when it is `wanted`, and says whether it was.
    fn take(&mut self, wanted: &str) -> bool {
        let found = self.peek().filter(|(word, _)| *word == wanted.as_bytes());
        if let Some((_, rest)) = found {
            self.rest = rest;
        }
        found.is_some()
    }

    fn required(&mut self, verb: Verb, what: &str) -> Result<&'a [u8], CommandError> {
        self.next()
            .ok_or_else(|| argument(format!("{verb}: {what} is missing; usage: {}", verb.usage())))
    }

    /// Takes the next word when it is a range and a further word follows.
    fn range(&mut self) -> RangeSpec {
        let found = self.peek().filter(|(_, rest)| !rest.is_empty()).and_then(|(word, rest)| {
            let range = std::str::from_utf8(word).ok()?.parse().ok()?;
            Some((range, rest))
        });
        let Some((range, rest)) = found else { return RangeSpec::All };
        self.rest = rest;
        range
    }

    /// Takes the rest of the line as a path, as it is or in quotes.
    fn path(&mut self, verb: Verb) -> Result<PathBuf, CommandError> {
        self.take("--");
        let given = skip_blanks(self.rest);
        self.rest = &[];
        if given.is_empty() {
            return Err(argument(format!(
                "{verb}: PATH is missing (`.` is the root); usage: {}",
                verb.usage()
            )));
        }
        let refused = |why: &str| Err(argument(format!("{} {why}", quote(&text(given)))));
        let bytes = match given.starts_with(b"\"").then(|| unquote(given)) {
            None => Cow::Borrowed(given),
            Some(Ok((name, rest))) if rest.iter().all(is_blank) => Cow::Owned(name),
            Some(Ok(_)) => return refused("is no path: something follows its closing quote"),
            Some(Err(error)) => return refused(&format!("is no path: {error}")),
        };
        if bytes.is_empty() {
            return refused("is no path: it is empty, and `.` is the root");
        }
        if bytes.contains(&0) {
            return refused("is no path: it holds a NUL");
        }
        let path = Path::new(OsStr::from_bytes(&bytes));
        if path.components().any(|part| part == Component::ParentDir) {
            return refused("is not taken: a path here cannot hold `..`");
        }
        Ok(path.components().filter(|part| matches!(part, Component::Normal(_))).collect())
    }
}

fn skip_blanks(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_blank(byte)).unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default()
}
