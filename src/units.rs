//! Sizes, seconds and words, in the form in which people type and read them.
//!
//! Every size is binary: `K` is 1024 bytes whether it is written `K`, `k`, `KB` or `KiB`. A size
//! that is printed by [`format_size`] is exact and parses back to the same number;
//! [`human_size`] is rounded, for reading only. [`quote`] and [`nearest`] are what error messages
//! are made with: a foreign word cannot break the line it is quoted in.

use std::fmt;
use std::time::Duration;

#[cfg(test)]
mod tests;

/// The suffixes of [`parse_size`] and [`format_size`], with their factors, largest first.
const SUFFIXES: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

/// The units of [`human_size`], each 1024 times the one before.
const HUMAN_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Words longer than this are cut when quoted, and have no nearest word.
const LONGEST_WORD: usize = 64;

/// Why a word is not a size or a number of seconds. Each holds the word as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitError {
    /// Not a whole number with an optional suffix.
    NotASize(String),
    /// A size of 2^64 bytes or more.
    SizeTooLarge(String),
    /// Not a decimal number of seconds, or negative, or not finite.
    NotSeconds(String),
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnitError::NotASize(word) => write!(
                f,
                "{} is not a size: give a whole number, with K, M, G or T for its binary multiples \
                 (4096, 64K, 1M)",
                quote(word)
            ),
            UnitError::SizeTooLarge(word) => {
                write!(f, "{} is too large: sizes end at {} bytes", quote(word), u64::MAX)
            }
            UnitError::NotSeconds(word) => {
                write!(f, "{} is not a time: give seconds, zero or more (0, 1.5, 60)", quote(word))
            }
        }
    }
}

impl std::error::Error for UnitError {}

/// Parses a size in bytes: decimal digits, then `K`, `M`, `G` or `T` in either case, then `B` or
/// `iB`. A bare `B` is allowed. All multiples are binary.
pub fn parse_size(word: &str) -> Result<u64, UnitError> {
    let not_a_size = || UnitError::NotASize(word.to_owned());
    let digits_end = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (digits, suffix) = word.split_at(digits_end);
    if digits.is_empty() {
        return Err(not_a_size());
    }
    let factor = suffix_factor(suffix).ok_or_else(not_a_size)?;
    let too_large = || UnitError::SizeTooLarge(word.to_owned());
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    number.checked_mul(factor).ok_or_else(too_large)
}

/// The factor that a suffix stands for, or None when it is not one.
fn suffix_factor(suffix: &str) -> Option<u64> {
    let mut letters = suffix.chars();
    let Some(first) = letters.next() else { return Some(1) };
    let first = first.to_ascii_uppercase();
    let rest = letters.as_str();
    if first == 'B' && rest.is_empty() {
        return Some(1);
    }
    let (_, factor) = SUFFIXES.into_iter().find(|(letter, _)| *letter == first)?;
    let spelled = rest.is_empty() || ["b", "ib"].iter().any(|end| rest.eq_ignore_ascii_case(end));
    spelled.then_some(factor)
}

/// Prints a size exactly, with the largest suffix that leaves a whole number: `64K`, `1M`, `1000`.
pub fn format_size(bytes: u64) -> String {
    let exact = |(_, factor): &(char, u64)| bytes != 0 && bytes.is_multiple_of(*factor);
    match SUFFIXES.into_iter().find(exact) {
        Some((letter, factor)) => format!("{}{letter}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// Prints a size for reading, rounded to a tenth of its unit: `512 B`, `64 KiB`, `1.5 MiB`.
pub fn human_size(bytes: u64) -> String {
    let mut unit: u128 = 1;
    for name in HUMAN_UNITS {
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        if tenths < 10_240 {
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return match tenth {
                0 => format!("{whole} {name}"),
                _ => format!("{whole}.{tenth} {name}"),
            };
        }
        unit *= 1024;
    }
    format!("{bytes} B")
}

/// Parses a time in decimal seconds as libfuse's timeout options take it: `0`, `1.5`, `60`. It is
/// rounded to the nanosecond.
pub fn parse_seconds(word: &str) -> Result<Duration, UnitError> {
    let not_seconds = || UnitError::NotSeconds(word.to_owned());
    let seconds: f64 = word.parse().map_err(|_| not_seconds())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| not_seconds())
}

/// Quotes a word for a message: what is not printable is escaped, so that the message stays one
/// line, and a word of more than 64 characters is cut, with `...` in place of the rest.
pub fn quote(word: &str) -> String {
    let mut kept = word.chars();
    let shown: String = kept.by_ref().take(LONGEST_WORD).flat_map(char::escape_debug).collect();
    let rest = if kept.as_str().is_empty() { "" } else { "..." };
    format!("`{shown}{rest}`")
}

/// Finds the known word (of lower-case letters) that `word` was most likely meant to be, or None
/// when none is near: up to a third of its letters may differ, and always one. Case does not count.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.is_empty() || word.len() > LONGEST_WORD {
        return None;
    }
    let lower = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
