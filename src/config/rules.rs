//! The rules file: view options that differ by path.
//!
//! ```toml
//! [[rule]]
//! match = "**/*.db"      # a glob on the path relative to the source
//! advice = "random"
//!
//! [[rule]]
//! match = "published/**"
//! access = "read"
//! ```
//!
//! The first rule whose `match` fits a path decides, and no other. The options of the mount give
//! the rest, so that a rule with only an `advice` changes nobody's access. In `match`, `*` and `?`
//! stop at a slash, `**` crosses directories, `[a-z]` and `{a,b}` are as in the shell. Every
//! mistake is a [`Failure`] about `FILE:LINE`, and a file with a mistake gives no rules at all.
//! Nothing here looks at the paths of the source.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::Failure;
use crate::flags::{Access, FlagsError, MapMode, ViewOptions};
use crate::shown::Show;
use crate::units::{nearest, quote};

#[cfg(test)]
mod tests;

/// The largest rules file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// The keys of a rule.
const KEYS: [&str; 6] = ["match", "access", "flags", "prot", "advice", "plane"];

/// The rules of a mount, in their order.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
    globs: GlobSet,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The glob, as given.
    pub pattern: String,
    /// The line of the file where the rule begins, from 1.
    pub line: usize,
    /// Its options, completed by those of the mount.
    pub view: ViewOptions,
    /// The mode that `view` resolves to.
    pub mode: MapMode,
}

impl RuleSet {
    /// Reads the rules of a file for a mount with the view options `base`.
    ///
    /// # Errors
    /// Kind `Failed` when the file cannot be read; kind `Usage` and subject `FILE:LINE` when it has
    /// a mistake.
    pub fn load(path: &Path, base: &ViewOptions) -> Result<RuleSet, Failure> {
        let name = path.shown().to_string();
        let failed = |error| Failure::failed(&name, format_args!("cannot read the rules: {error}"));
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST_FILE {
            let reason = format_args!("a rules file has at most {LARGEST_FILE} bytes");
            return Err(Failure::usage(&name, reason));
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => RuleSet::parse(text, &name, base),
            Err(error) => {
                let line = Lines::of(&bytes).at(error.valid_up_to());
                Err(Failure::usage(format_args!("{name}:{line}"), "this is not UTF-8 text"))
            }
        }
    }

    /// Parses rules for a mount with the view options `base`. `name` is the file's name in errors,
    /// which are all of kind `Usage` with subject `NAME:LINE`.
    pub fn parse(text: &str, name: &str, base: &ViewOptions) -> Result<RuleSet, Failure> {
        let lines = Lines::of(text.as_bytes());
        parse(text, &lines, base).map_err(|mistake| {
            Failure::usage(format_args!("{name}:{}", lines.at(mistake.at)), mistake.reason)
        })
    }

    /// The first rule that matches a path, which is relative to the source.
    pub fn matching(&self, rel_path: &Path) -> Option<&Rule> {
        let first = self.globs.matches(rel_path).into_iter().min()?;
        self.rules.get(first)
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The number of rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether what is written somewhere stays in a scratch.
    pub fn any_copies(&self) -> bool {
        self.rules.iter().any(|rule| rule.mode.copies())
    }

    /// The same rules with other modes: those of the files behind the views.
    pub fn with_modes(mut self, mode: impl Fn(MapMode) -> MapMode) -> RuleSet {
        self.rules.iter_mut().for_each(|rule| rule.mode = mode(rule.mode));
        self
    }

    /// The rules in their order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl fmt::Display for RuleSet {
    /// Prints a rules file that parses to the same rules for a mount with the same options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ViewOptions { access, flags, prot, advice, plane } = &self.view;
        writeln!(f, "[[rule]]\nmatch = {}", TomlString(&self.pattern))?;
        let others = flags.is_some() || prot.is_some() || advice.is_some() || plane.is_some();
        if *access != Access::Default || !others {
            writeln!(f, "access = \"{access}\"")?;
        }
        if let Some(flags) = flags {
            writeln!(f, "flags = \"{flags}\"")?;
        }
        if let Some(prot) = prot {
            writeln!(f, "prot = \"{prot}\"")?;
        }
        if let Some(advice) = advice {
            writeln!(f, "advice = \"{advice}\"")?;
        }
        match plane {
            Some(plane) => writeln!(f, "plane = \"{plane}\""),
            None => Ok(()),
        }
    }
}

/// A string as TOML writes it, in quotes.
struct TomlString<'a>(&'a str);

impl fmt::Display for TomlString<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for letter in self.0.chars() {
            match letter {
                '"' | '\\' => write!(f, "\\{letter}")?,
                _ if letter.is_control() => write!(f, "\\u{:04X}", u32::from(letter))?,
                _ => write!(f, "{letter}")?,
            }
        }
        f.write_str("\"")
    }
}

/// A mistake, and the offset in bytes where it is.
struct Mistake {
    at: usize,
    reason: String,
}

impl Mistake {
    fn new(span: Range<usize>, reason: impl fmt::Display) -> Mistake {
        Mistake { at: span.start, reason: reason.to_string() }
    }
}

/// The offsets of a text's newlines, in their order.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &[u8]) -> Lines {
        let newlines = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        Lines(newlines.map(|(offset, _)| offset).collect())
    }

    /// The line of an offset, from 1.
    fn at(&self, offset: usize) -> usize {
        1 + self.0.partition_point(|newline| *newline < offset)
    }
}

fn parse(text: &str, lines: &Lines, base: &ViewOptions) -> Result<RuleSet, Mistake> {
    let document = DeTable::parse(text).map_err(|error| {
        let reason = error.message().replace('\n', ", ");
        Mistake::new(error.span().unwrap_or(0..0), reason)
    })?;
    let mut globs = GlobSetBuilder::new();
    let mut rules = Vec::new();
    for (key, value) in in_order(document.get_ref()) {
        if key.get_ref() != "rule" {
            return Err(unknown_key(key.get_ref(), key.span(), &["rule"]));
        }
        for (place, table) in rule_tables(key.span(), value)? {
            let (rule, glob) = rule(lines.at(place.start), place, table, base)?;
            globs.add(glob);
            rules.push(rule);
        }
    }
    let globs = globs.build().map_err(|error| Mistake::new(0..0, error))?;
    Ok(RuleSet { rules, globs })
}

type Entry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

/// The entries of a table as they stand in the file, so that the first mistake is named first.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<Entry<'a, 'i>> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// The tables of `[[rule]]`, each with its place.
fn rule_tables<'a, 'i>(
    place: Range<usize>,
    value: &'a Spanned<DeValue<'i>>,
) -> Result<Vec<(Range<usize>, &'a DeTable<'i>)>, Mistake> {
    let wrong = |span| Mistake::new(span, "rules are tables in double brackets: write [[rule]]");
    let DeValue::Array(array) = value.get_ref() else { return Err(wrong(place)) };
    let table = |item: &'a Spanned<DeValue<'i>>| match item.get_ref() {
        DeValue::Table(table) => Ok((item.span(), table)),
        _ => Err(wrong(item.span())),
    };
    array.iter().map(table).collect()
}

/// Parses one rule.
fn rule(
    line: usize,
    place: Range<usize>,
    table: &DeTable<'_>,
    base: &ViewOptions,
) -> Result<(Rule, Glob), Mistake> {
    let mut given = ViewOptions::default();
    let mut found = None;
    for (key, value) in in_order(table) {
        let entry = Word::new(key, value)?;
        match entry.key {
            "match" => found = Some((entry.word.to_owned(), entry.glob()?)),
            "access" => given.access = entry.parse()?,
            "flags" => given.flags = Some(entry.parse()?),
            "prot" => given.prot = Some(entry.parse()?),
            "advice" => given.advice = Some(entry.parse()?),
            "plane" => given.plane = Some(entry.parse()?),
            unknown => return Err(unknown_key(unknown, key.span(), &KEYS)),
        }
    }
    let Some((pattern, glob)) = found else {
        return Err(Mistake::new(place, "the rule has no `match`"));
    };
    if table.len() == 1 {
        let reason = "the rule has no effect: give it access, flags, prot, advice or plane";
        return Err(Mistake::new(place, reason));
    }
    let view_and_mode = complete(given, base).and_then(|view| Ok((view, view.resolve()?)));
    let (view, mode) = view_and_mode
        .map_err(|error| Mistake::new(culprit(&error, table).unwrap_or(place), error))?;
    Ok((Rule { pattern, line, view, mode }, glob))
}

/// The options of a rule, completed by those of the mount. An access mode is said as a whole: flags
/// and protection of the mount do not mix with it.
fn complete(given: ViewOptions, base: &ViewOptions) -> Result<ViewOptions, FlagsError> {
    let (advice, plane) = (given.advice.or(base.advice), given.plane.or(base.plane));
    if given.access != Access::Default {
        return Ok(ViewOptions { advice, plane, ..given });
    }
    if given.flags.is_none() && given.prot.is_none() {
        return Ok(ViewOptions { advice, plane, ..*base });
    }
    let of_mount = base.resolve()?;
    Ok(ViewOptions {
        access: Access::Default,
        flags: given.flags.or(Some(of_mount.flags)),
        prot: given.prot.or(Some(of_mount.prot)),
        advice,
        plane,
    })
}

/// Where the option stands that most likely has to be changed, if the rule has it.
fn culprit(error: &FlagsError, table: &DeTable<'_>) -> Option<Range<usize>> {
    let wanted = match error {
        FlagsError::AccessWithFlags(_) => "access",
        FlagsError::StartingAdvice(_) => "advice",
        FlagsError::Unknown { .. } | FlagsError::Refused { .. } => return None,
    };
    table.iter().find(|(key, _)| key.get_ref() == wanted).map(|(_, value)| value.span())
}

/// One `key = "word"` of a rule.
struct Word<'a> {
    key: &'a str,
    word: &'a str,
    place: Range<usize>,
}

impl<'a> Word<'a> {
    fn new(
        key: &'a Spanned<DeString<'_>>,
        value: &'a Spanned<DeValue<'_>>,
    ) -> Result<Self, Mistake> {
        let (name, place) = (key.get_ref(), value.span());
        match value.get_ref() {
            DeValue::String(word) => Ok(Word { key: name, word, place }),
            _ if !KEYS.contains(&name.as_ref()) => Err(unknown_key(name, key.span(), &KEYS)),
            _ => Err(Mistake::new(place, format_args!("{name}: give a string, in quotes"))),
        }
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&self) -> Result<T, Mistake> {
        self.word.parse().map_err(|error| self.mistake(error))
    }

    /// The pattern as a glob. A slash before it changes nothing: every pattern begins at the root.
    fn glob(&self) -> Result<Glob, Mistake> {
        let pattern = self.word.trim_start_matches('/');
        if pattern.is_empty() || pattern.ends_with('/') {
            return Err(self.mistake(format_args!("{} can match no path", quote(self.word))));
        }
        GlobBuilder::new(pattern).literal_separator(true).empty_alternates(true).build().map_err(
            |error| {
                self.mistake(format_args!("{} is no pattern: {}", quote(self.word), error.kind()))
            },
        )
    }

    fn mistake(&self, reason: impl fmt::Display) -> Mistake {
        Mistake::new(self.place.clone(), format_args!("{}: {reason}", self.key))
    }
}

fn unknown_key(key: &str, place: Range<usize>, known: &[&'static str]) -> Mistake {
    let key_name = quote(key);
    let reason = match nearest(key, known.iter().copied()) {
        Some(near) => format!("there is no key {key_name}: did you mean `{near}`?"),
        None => format!("there is no key {key_name}: known are {}", known.join(" ")),
    };
    Mistake::new(place, reason)
}
