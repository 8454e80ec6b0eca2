//! Why a mode of mapping is refused.

use std::fmt;

use super::Access;
use crate::advice::Advice;
use crate::units::{nearest, quote};

/// Why a mode of mapping is refused. It prints as a reason, without the option's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagsError {
    /// A word that no table knows.
    Unknown {
        /// The expected kind: `mapping flag`, `protection`, `access mode`.
        what: &'static str,
        /// As typed.
        word: String,
        /// The known word that it was most likely meant to be.
        nearest: Option<&'static str>,
    },
    /// A word that is known and not taken.
    Refused {
        /// As typed.
        word: String,
        /// Why not.
        reason: &'static str,
    },
    /// An `access` that is not the default together with `flags` or `prot`.
    AccessWithFlags(Access),
    /// An advice that a mapping cannot start with: it is no hint.
    StartingAdvice(Advice),
}

impl FlagsError {
    pub(super) fn unknown(
        what: &'static str,
        word: &str,
        known: impl IntoIterator<Item = &'static str>,
    ) -> FlagsError {
        let nearest = nearest(word, known);
        FlagsError::Unknown { what, word: word.to_owned(), nearest }
    }

    pub(super) fn refused(word: &str, reason: &'static str) -> FlagsError {
        FlagsError::Refused { word: word.to_owned(), reason }
    }
}

impl fmt::Display for FlagsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlagsError::Unknown { what, word, nearest } => {
                write!(f, "there is no {what} {}", quote(word))?;
                match nearest {
                    Some(near) => write!(f, ": did you mean `{near}`?"),
                    None => Ok(()),
                }
            }
            FlagsError::Refused { word, reason } => {
                write!(f, "{} is refused: {reason}", quote(word))
            }
            FlagsError::AccessWithFlags(access) => write!(
                f,
                "access={access} decides flags and prot, as in Python's mmap: give either access \
                 or flags and prot"
            ),
            FlagsError::StartingAdvice(advice) => write!(
                f,
                "a mapping cannot start with advice={advice}: it is not a hint, it discards pages"
            ),
        }
    }
}

impl std::error::Error for FlagsError {}
