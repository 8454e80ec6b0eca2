//! Names and messages that others chose, in the form in which they are shown to people.
//!
//! Control characters and bidirectional marks of a file name can move the cursor of a terminal, end
//! the line that they stand in, or reverse it. [`Show::shown`] prints a name so that none of that
//! happens and every byte can be told: as it is where all of it is printable, and otherwise in
//! double quotes, with escapes. [`unquote`] reads the quoted form back, so that a name from a
//! message can be given to the control file. [`Clean`] is for whole messages: it escapes the same
//! characters, and quotes nothing. The sinks (standard output and error, the log) use it for all
//! that they print.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Write as _};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::ser::Formatter;

#[cfg(test)]
mod tests;

/// Whether a character is never shown as it is: control characters (C0, DEL, C1), separators of
/// lines and paragraphs, and bidirectional marks.
pub fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Names and paths that can be shown; in place of [`Path::display`], which hides and obeys what is
/// in them.
pub trait Show: AsRef<OsStr> {
    /// The name, printed as [`Shown`] says.
    fn shown(&self) -> Shown<'_> {
        Shown(self.as_ref().as_bytes())
    }
}

impl<T: AsRef<OsStr> + ?Sized> Show for T {}

/// A name that prints as it is where it is printable text, and otherwise in double quotes with
/// escapes. Quoted as well are the empty name, one that begins with a quote, and one that begins
/// or ends with a blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a>(&'a [u8]);

impl Shown<'_> {
    /// Whether the name prints as it is.
    pub fn is_plain(&self) -> bool {
        let blank = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_whitespace);
        !(blank(self.0.first()) || blank(self.0.last()) || self.0.starts_with(b"\""))
            && std::str::from_utf8(self.0).is_ok_and(|text| !text.contains(is_harmful))
    }

    /// The quoted form, whether it is needed or not.
    pub fn quoted(&self) -> String {
        let mut text = String::with_capacity(self.0.len() + 2);
        text.push('"');
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '"' | '\\' => text.extend(['\\', character]),
                    _ => push_escaped(&mut text, character),
                }
            }
            chunk.invalid().iter().for_each(|byte| push_byte(&mut text, *byte));
        }
        text.push('"');
        text
    }
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if self.is_plain() => f.pad(text),
            _ => f.pad(&self.quoted()),
        }
    }
}

/// A message with its harmful characters escaped; newlines are among them.
#[derive(Debug, Clone, Copy)]
pub struct Clean<'a>(pub &'a str);

impl Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clean(self.0, |_| false))
    }
}

/// The same for a text of several lines, whose newlines and tabs are its own.
#[derive(Debug, Clone, Copy)]
pub struct CleanLines<'a>(pub &'a str);

impl Display for CleanLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clean(self.0, |character| matches!(character, '\n' | '\t')))
    }
}

fn clean(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match keep(character) {
            true => clean.push(character),
            false => push_escaped(&mut clean, character),
        }
    }
    clean
}

/// A value as one line of JSON, in which harmful characters are escaped as JSON does it.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn to_json(value: &(impl Serialize + ?Sized)) -> Result<String, serde_json::Error> {
    let mut json = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Escaping))?;
    String::from_utf8(json).map_err(serde::ser::Error::custom)
}

/// Compact JSON; of control characters serde_json escapes those below the blank alone.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for piece in fragment.split_inclusive(is_harmful) {
            match piece.char_indices().next_back().filter(|(_, last)| is_harmful(*last)) {
                Some((at, last)) => {
                    out.write_all(piece.as_bytes().get(..at).unwrap_or_default())?;
                    write!(out, "\\u{:04x}", u32::from(last))?; // None is above U+FFFF.
                }
                None => out.write_all(piece.as_bytes())?,
            }
        }
        Ok(())
    }
}

/// Appends a character, escaped where it is harmful: the bytes of its UTF-8 form.
fn push_escaped(text: &mut String, character: char) {
    match character {
        '\n' => text.push_str("\\n"),
        '\t' => text.push_str("\\t"),
        '\r' => text.push_str("\\r"),
        _ if is_harmful(character) => {
            character.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_byte(text, byte));
        }
        _ => text.push(character),
    }
}

fn push_byte(text: &mut String, byte: u8) {
    // A string takes everything that is written into it.
    let _ = write!(text, "\\x{byte:02x}");
}

/// Why a quoted name cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuoteError {
    /// The closing quote is missing.
    Unended,
    /// The text after a backslash is no escape.
    Escape,
}

impl Display for QuoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuoteError::Unended => "its closing quote is missing",
            QuoteError::Escape => {
                "a backslash in quotes begins an escape: \\\\ \\\" \\n \\t \\xHH, \\NNN (octal)"
            }
        })
    }
}

impl std::error::Error for QuoteError {}

/// Reads a name in double quotes, and gives its bytes and what follows the closing quote. The
/// escapes are those of C, of git and of JSON: `\\`, `\"`, `\/`, `\a`, `\b`, `\f`, `\n`, `\r`,
/// `\t`, `\v`, `\xHH`, `\NNN` in octal, `\uXXXX`. Every other byte stands for itself.
///
/// # Errors
/// The text is not such a name.
pub fn unquote(text: &[u8]) -> Result<(Vec<u8>, &[u8]), QuoteError> {
    let mut rest = text.strip_prefix(b"\"").ok_or(QuoteError::Unended)?;
    let mut name = Vec::with_capacity(rest.len());
    loop {
        let (byte, after) = rest.split_first().ok_or(QuoteError::Unended)?;
        rest = after;
        match byte {
            b'"' => return Ok((name, rest)),
            b'\\' => rest = escape(rest, &mut name).ok_or(QuoteError::Escape)?,
            byte => name.push(*byte),
        }
    }
}

/// Reads what follows a backslash, and gives what follows that.
fn escape<'a>(text: &'a [u8], name: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (byte, rest) = text.split_first()?;
    let plain = match byte {
        b'\\' | b'"' | b'/' => *byte,
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'x' => {
            let (value, rest) = digits(rest, 2, 16)?;
            name.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        b'0'..=b'3' => {
            let (value, rest) = digits(text, 3, 8)?;
            name.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        b'u' => return escape_utf16(rest, name),
        _ => return None,
    };
    name.push(plain);
    Some(rest)
}

/// Reads the digits of `\uXXXX`, and those of a second one that a surrogate needs.
fn escape_utf16<'a>(text: &'a [u8], name: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (first, rest) = digits(text, 4, 16)?;
    let (character, rest) = match char::from_u32(first) {
        Some(character) => (character, rest),
        None => {
            let (second, rest) = digits(rest.strip_prefix(b"\\u")?, 4, 16)?;
            let pair = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
            (char::decode_utf16(pair).next()?.ok()?, rest)
        }
    };
    name.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    Some(rest)
}

/// Reads exactly so many digits.
fn digits(text: &[u8], count: usize, radix: u32) -> Option<(u32, &[u8])> {
    let (digits, rest) = text.split_at_checked(count)?;
    let value = digits
        .iter()
        .try_fold(0, |value, digit| Some(value * radix + char::from(*digit).to_digit(radix)?))?;
    Some((value, rest))
}

/// A name or a path of a report. In JSON it is a string where it is UTF-8, and otherwise an array
/// of its bytes; as text it is printed as [`Shown`] says.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(OsString);

impl Name {
    /// The path that it is.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl AsRef<OsStr> for Name {
    fn as_ref(&self) -> &OsStr {
        &self.0
    }
}

impl<T: AsRef<OsStr> + ?Sized> From<&T> for Name {
    fn from(name: &T) -> Name {
        Name(name.as_ref().to_owned())
    }
}

impl From<PathBuf> for Name {
    fn from(path: PathBuf) -> Name {
        Name(path.into_os_string())
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => out.serialize_str(text),
            None => out.collect_seq(self.0.as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Name, D::Error> {
        input.deserialize_any(TextOrBytes)
    }
}

struct TextOrBytes;

impl<'de> Visitor<'de> for TextOrBytes {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Name, E> {
        Ok(Name::from(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Name, A::Error> {
        let mut name = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            name.push(byte);
        }
        Ok(Name(OsString::from_vec(name)))
    }
}
