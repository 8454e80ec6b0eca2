//! Parsers of argument values that know their words: for the completions, and for errors that name
//! the nearest one.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::str::FromStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command};

use crate::advice::Advice;
use crate::config::options::{Group, LEVELS, known};
use crate::control::command::FlushMode;
use crate::range::RangeSpec;
use crate::units::{nearest, quote};

/// A parser with the words that it takes.
#[derive(Clone)]
pub struct Value<T> {
    words: fn() -> Vec<&'static str>,
    parse: fn(&OsStr) -> Result<T, String>,
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Value<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        _argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        (self.parse)(value).map_err(|reason| {
            clap::Error::raw(ErrorKind::ValueValidation, format!("{reason}\n")).with_cmd(command)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = (self.words)();
        (!words.is_empty()).then(|| Box::new(words.into_iter().map(PossibleValue::new)) as Box<_>)
    }
}

/// Lists of mount options; what is in them is read later, where unknown ones may be passed over.
pub fn mount_options() -> Value<OsString> {
    let words = || {
        let usable = known().iter().filter(|known| known.group != Group::Refused);
        usable.map(|known| known.name).collect()
    };
    Value { words, parse: |value| Ok(value.to_owned()) }
}

/// The names of advice.
pub fn advice() -> Value<Advice> {
    let words = || Advice::ALL.iter().map(|advice| advice.name()).collect();
    Value { words, parse: parsed }
}

/// The modes of `flush`.
pub fn flush_mode() -> Value<FlushMode> {
    Value {
        words: || FlushMode::ALL.iter().map(|mode| mode.name()).collect(),
        parse: |value| {
            one_of("mode", value, FlushMode::ALL.iter().map(|mode| (mode.name(), *mode)))
        },
    }
}

/// The levels of the log.
pub fn level() -> Value<log::LevelFilter> {
    Value {
        words: || LEVELS.iter().map(|(name, _)| *name).collect(),
        parse: |value| one_of("level", value, LEVELS.into_iter()),
    }
}

/// Ranges of bytes.
pub fn range() -> Value<RangeSpec> {
    Value { words: Vec::new, parse: parsed }
}

fn parsed<T>(value: &OsStr) -> Result<T, String>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    value.to_string_lossy().parse().map_err(|error: T::Err| error.to_string())
}

fn one_of<T>(
    what: &str,
    value: &OsStr,
    mut known: impl Iterator<Item = (&'static str, T)> + Clone,
) -> Result<T, String> {
    let word = value.to_string_lossy();
    let names = known.clone().map(|(name, _)| name);
    if let Some((_, found)) = known.find(|(name, _)| name.eq_ignore_ascii_case(&word)) {
        return Ok(found);
    }
    match nearest(&word, names.clone()) {
        Some(near) => Err(format!("there is no {what} {}: did you mean `{near}`?", quote(&word))),
        None => {
            let all = names.collect::<Vec<_>>().join(" ");
            Err(format!("there is no {what} {}: known are {all}", quote(&word)))
        }
    }
}
