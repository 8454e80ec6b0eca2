//! The words after `-o`: split, looked up in one table, and turned into typed options.
//!
//! The table ([`known`]) is the one source of the parser, of `--help`, of the manual and of the
//! completions. Words come as libfuse and mount(8) give them: joined by commas, a backslash before
//! a comma or a backslash that belongs to a value, the last of two contrary words holding. Nothing
//! here touches the disk.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::mount::MountFlags;

use super::{ControlVisibility, KernelOptions, ScratchConfig, Settings};
use crate::error::Failure;
use crate::flags::ViewOptions;
use crate::units::{nearest, quote};

mod group;
mod set;
mod table;
#[cfg(test)]
mod tests;

pub use group::Group;
pub use set::LEVELS;
use table::Action;
pub use table::{Known, known};

/// The options of a mount as given, with the defaults of those that were not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// `access=`, `flags=`, `prot=`, `advice=`.
    pub view: ViewOptions,
    /// `rules=`, as typed.
    pub rules: Option<PathBuf>,
    /// `scratch=` (as typed), `scratch_max=`, `copy_up=`, `share`, `rebase`.
    pub scratch: ScratchConfig,
    /// `control=`.
    pub control: ControlVisibility,
    /// `log_file=`, as typed.
    pub log_file: Option<PathBuf>,
    /// The settings that hold as they are typed.
    pub settings: Settings,
    /// `fsname=`; the source when it is not given.
    pub fsname: Option<OsString>,
    /// The options for the kernel; their `fsname` is empty here.
    pub kernel: KernelOptions,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            view: ViewOptions::default(),
            rules: None,
            scratch: ScratchConfig::default(),
            control: ControlVisibility::default(),
            log_file: None,
            settings: Settings::default(),
            fsname: None,
            kernel: KernelOptions {
                read_only: false,
                flags: MountFlags::NOSUID | MountFlags::NODEV,
                fsname: OsString::new(),
                subtype: "mmapfs".into(),
                allow_other: false,
                allow_root: false,
                auto_unmount: false,
                default_permissions: true,
                max_read: None,
                contexts: Vec::new(),
            },
        }
    }
}

/// The treatment of an option that the table does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is an error.
    Refused,
    /// It is passed over: the `-s` of mount(8).
    Tolerated,
}

impl MountOptions {
    /// Reads the arguments of every `-o`, in their order.
    ///
    /// # Errors
    /// Kind `Usage`, with the option as subject: one that is unknown (with the nearest that is
    /// known), one that is refused, a value that is bad, missing or not wanted.
    pub fn parse<I>(lists: I, unknown: Unknown) -> Result<MountOptions, Failure>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut options = MountOptions::default();
        for list in lists {
            for word in split(list.as_ref()) {
                options.set(&word, unknown)?;
            }
        }
        options.check()?;
        Ok(options)
    }

    /// Takes one option, `NAME` or `NAME=VALUE`.
    ///
    /// # Errors
    /// As [`MountOptions::parse`].
    pub fn set(&mut self, word: &OsStr, unknown: Unknown) -> Result<(), Failure> {
        self.take(word, unknown).map_err(|reason| mistake(word, reason))
    }

    /// Checks that the options fit each other, as far as that can be told without the disk.
    ///
    /// # Errors
    /// Kind `Usage`.
    pub fn check(&self) -> Result<(), Failure> {
        if self.kernel.allow_other && self.kernel.allow_root {
            let reason = "it excludes allow_other: give one of them";
            return Err(Failure::usage("option `allow_root`", reason));
        }
        Ok(())
    }

    fn take(&mut self, word: &OsStr, unknown: Unknown) -> Result<(), String> {
        let (name, value) = name_and_value(word);
        let Some(known) = Known::find(&name) else {
            return match unknown {
                Unknown::Tolerated => Ok(()),
                Unknown::Refused => Err(no_such_option(&name)),
            };
        };
        match (known.action, value) {
            (Action::Pass, _) => {}
            (Action::Refuse(reason), _) => return Err(format!("it is refused: {reason}")),
            (Action::Value(_, set), Some(value)) if !value.is_empty() => set(self, value)?,
            (Action::Value(metavar, _), _) => {
                return Err(format!("it needs a value: {name}={metavar}"));
            }
            (Action::Switch(set), value) => set(self, on_or_off(value)?),
            (Action::Flag(_) | Action::Mount { .. }, Some(_)) => {
                return Err("it takes no value".into());
            }
            (Action::Flag(set), None) => set(self),
            (Action::Mount { set, clear }, None) => {
                self.kernel.flags.remove(clear);
                self.kernel.flags.insert(set);
            }
        }
        Ok(())
    }
}

/// The group of the option that a word names.
pub fn group_of(word: &OsStr) -> Option<Group> {
    Known::find(&name_and_value(word).0).map(|known| known.group)
}

/// A mistake in an option.
pub fn mistake(word: &OsStr, reason: impl fmt::Display) -> Failure {
    Failure::usage(format_args!("option {}", quote(&word.to_string_lossy())), reason)
}

fn no_such_option(name: &str) -> String {
    let names = known().iter().map(|known| known.name);
    match nearest(name, names) {
        Some(near) => format!("there is no such option: did you mean `{near}`?"),
        None => "there is no such option".into(),
    }
}

fn name_and_value(word: &OsStr) -> (String, Option<&OsStr>) {
    let bytes = word.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, rest) = bytes.split_at(at);
            (String::from_utf8_lossy(name).into_owned(), rest.get(1..).map(OsStr::from_bytes))
        }
        None => (word.to_string_lossy().into_owned(), None),
    }
}

fn on_or_off(value: Option<&OsStr>) -> Result<bool, String> {
    match value.map(OsStr::as_bytes) {
        None | Some(b"on" | b"yes" | b"true" | b"1") => Ok(true),
        Some(b"off" | b"no" | b"false" | b"0") => Ok(false),
        Some(_) => Err("its value is `on` or `off`".into()),
    }
}

/// Splits a list at its commas. A backslash takes the special meaning from the byte after it, and
/// three octal digits after it are a byte, both as in libfuse. Empty words are dropped.
fn split(list: &OsStr) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut rest = list.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b',', _) => words.push(std::mem::take(&mut word)),
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                word.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            (b'\\', [next, after @ ..]) => {
                word.push(*next);
                rest = after;
            }
            _ => word.push(byte),
        }
    }
    words.push(word);
    words.into_iter().filter(|word| !word.is_empty()).map(OsString::from_vec).collect()
}

/// Writes a value so that this module and fusermount3(1) read it back: commas and backslashes are
/// escaped.
pub fn escape(value: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}
