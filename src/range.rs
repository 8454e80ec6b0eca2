//! Byte ranges: as a person types them, as they lie in a file, and as they fall on pages.
//!
//! A [`RangeSpec`] is what was typed; [`RangeSpec::resolve`] checks it against a file's size and
//! gives a [`ByteRange`]. All page arithmetic of the program is here. Invariant: a range made by
//! this module has `start <= end`, and nothing here overflows.

use std::fmt;
use std::ops::{Range, RangeFrom, RangeFull, RangeTo};
use std::str::FromStr;

use crate::units::{UnitError, format_size, parse_size, quote};

#[cfg(test)]
mod tests;

/// The bytes `start..end` of a file: half open, in bytes, `start <= end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// The range `start..end`, or None when it ends before it starts.
    pub fn new(start: u64, end: u64) -> Option<ByteRange> {
        (start <= end).then_some(ByteRange { start, end })
    }

    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole pages that hold any byte of the range. The end saturates at `u64::MAX`. An empty
    /// range stays empty, at the page border below it. `page` is in bytes.
    pub fn outward(self, page: u64) -> ByteRange {
        let page = page.max(1);
        let start = self.start - self.start % page;
        if self.is_empty() {
            return ByteRange { start, end: start };
        }
        ByteRange { start, end: self.end.checked_next_multiple_of(page).unwrap_or(u64::MAX) }
    }

    /// The whole pages that lie inside the range. Empty, at the page border below its start, when
    /// there is none. `page` is in bytes.
    pub fn inward(self, page: u64) -> ByteRange {
        let page = page.max(1);
        let below = self.start - self.start % page;
        let end = self.end - self.end % page;
        match self.start.checked_next_multiple_of(page) {
            Some(start) if start < end => ByteRange { start, end },
            _ => ByteRange { start: below, end: below },
        }
    }

    /// The number of pages that hold any byte of the range. `page` is in bytes.
    pub fn pages(self, page: u64) -> u64 {
        self.outward(page).len().div_ceil(page.max(1))
    }

    /// The part of the range that a file of `len` bytes has; empty at `len` when it has none.
    pub fn clamp_to(self, len: u64) -> ByteRange {
        ByteRange { start: self.start.min(len), end: self.end.min(len) }
    }

    /// The bytes that both ranges hold, or None when they share none.
    pub fn intersect(self, other: ByteRange) -> Option<ByteRange> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(ByteRange { start, end })
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// A range as it is typed. Offsets, ends and lengths are in bytes; ends are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RangeSpec {
    /// `-`, or no range at all: the whole file.
    All,
    /// `OFF-END`.
    Span {
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// `OFF+LEN`.
    Length {
        /// The first byte.
        start: u64,
        /// The number of bytes.
        len: u64,
    },
    /// `-END`: from the file's start.
    UpTo {
        /// One past the last byte.
        end: u64,
    },
    /// `OFF-`: to the file's end.
    From {
        /// The first byte.
        start: u64,
    },
}

impl From<RangeFull> for RangeSpec {
    fn from(_: RangeFull) -> RangeSpec {
        RangeSpec::All
    }
}

impl From<Range<u64>> for RangeSpec {
    fn from(range: Range<u64>) -> RangeSpec {
        RangeSpec::Span { start: range.start, end: range.end }
    }
}

impl From<RangeFrom<u64>> for RangeSpec {
    fn from(range: RangeFrom<u64>) -> RangeSpec {
        RangeSpec::From { start: range.start }
    }
}

impl From<RangeTo<u64>> for RangeSpec {
    fn from(range: RangeTo<u64>) -> RangeSpec {
        RangeSpec::UpTo { end: range.end }
    }
}

impl RangeSpec {
    /// The bytes it means in a file of `size` bytes. Fails with [`RangeError::Reversed`] or, when
    /// it reaches past the end, [`RangeError::Outside`]; `size` itself is a valid start and end.
    pub fn resolve(&self, size: u64) -> Result<ByteRange, RangeError> {
        let outside = RangeError::Outside { range: *self, size };
        let (start, end) = match *self {
            RangeSpec::All => (0, size),
            RangeSpec::Span { start, end } => (start, end),
            RangeSpec::Length { start, len } => match start.checked_add(len) {
                Some(end) => (start, end),
                None => return Err(outside),
            },
            RangeSpec::UpTo { end } => (0, end),
            RangeSpec::From { start } if start > size => return Err(outside),
            RangeSpec::From { start } => (start, size),
        };
        let range = ByteRange::new(start, end).ok_or(RangeError::Reversed { start, end })?;
        if range.end > size { Err(outside) } else { Ok(range) }
    }
}

impl FromStr for RangeSpec {
    type Err = RangeError;

    fn from_str(word: &str) -> Result<RangeSpec, RangeError> {
        let malformed = || RangeError::Malformed { word: word.to_owned() };
        let border = word.find(['-', '+']).ok_or_else(malformed)?;
        let (left, right) = (&word[..border], &word[border + 1..]);
        let size = |part: &str| {
            parse_size(part).map_err(|reason| RangeError::BadSize { word: word.to_owned(), reason })
        };
        if word[border..].starts_with('+') {
            if left.is_empty() || right.is_empty() {
                return Err(malformed());
            }
            return Ok(RangeSpec::Length { start: size(left)?, len: size(right)? });
        }
        match (left.is_empty(), right.is_empty()) {
            (true, true) => Ok(RangeSpec::All),
            (true, false) => Ok(RangeSpec::UpTo { end: size(right)? }),
            (false, true) => Ok(RangeSpec::From { start: size(left)? }),
            (false, false) => match (size(left)?, size(right)?) {
                (start, end) if start > end => Err(RangeError::Reversed { start, end }),
                (start, end) => Ok(RangeSpec::Span { start, end }),
            },
        }
    }
}

impl fmt::Display for RangeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            RangeSpec::All => f.write_str("-"),
            RangeSpec::Span { start, end } => {
                write!(f, "{}-{}", format_size(start), format_size(end))
            }
            RangeSpec::Length { start, len } => {
                write!(f, "{}+{}", format_size(start), format_size(len))
            }
            RangeSpec::UpTo { end } => write!(f, "-{}", format_size(end)),
            RangeSpec::From { start } => write!(f, "{}-", format_size(start)),
        }
    }
}

/// Why a range cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeError {
    /// The word has none of the four forms.
    Malformed {
        /// The word as it was given.
        word: String,
    },
    /// The word has the form of a range, but a part of it is not a size.
    BadSize {
        /// The word as it was given.
        word: String,
        /// The error in its part.
        reason: UnitError,
    },
    /// The range ends before it starts.
    Reversed {
        /// The first byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The range reaches past the end of the file.
    Outside {
        /// The range as it was given.
        range: RangeSpec,
        /// The file's size in bytes.
        size: u64,
    },
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RangeError::Malformed { word } => write!(
                f,
                "{} is not a range: give OFF-END, OFF+LEN, -END or OFF- (0-1M, 64K+4K, -1M, 1M-)",
                quote(word)
            ),
            RangeError::BadSize { word, reason } => {
                write!(f, "{} is not a range: {reason}", quote(word))
            }
            RangeError::Reversed { start, end } => {
                write!(f, "the range {start}-{end} ends before it starts")
            }
            RangeError::Outside { range, size } => {
                write!(f, "the range {range} is outside the file, which has {size} bytes")
            }
        }
    }
}

impl std::error::Error for RangeError {}
