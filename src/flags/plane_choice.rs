//! The way on which the bytes of an open file reach its reader.

use std::fmt;
use std::str::FromStr;

use super::{FlagsError, bare};

/// The plane that is wanted for a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PlaneChoice {
    /// Passthrough where the kernel allows it and nothing in the view asks for a mapping.
    #[default]
    Auto,
    /// The daemon answers every request from its mapping.
    Mapped,
    /// The kernel reads and writes the backing file itself, also where `auto` would map it.
    Passthrough,
}

impl PlaneChoice {
    /// Every choice.
    pub const ALL: [PlaneChoice; 3] =
        [PlaneChoice::Auto, PlaneChoice::Mapped, PlaneChoice::Passthrough];

    /// The word of `-o plane=`.
    pub fn name(self) -> &'static str {
        match self {
            PlaneChoice::Auto => "auto",
            PlaneChoice::Mapped => "mapped",
            PlaneChoice::Passthrough => "passthrough",
        }
    }
}

impl FromStr for PlaneChoice {
    type Err = FlagsError;

    /// Reads a name in any case.
    fn from_str(text: &str) -> Result<PlaneChoice, FlagsError> {
        let word = bare(text, "plane_");
        let names = PlaneChoice::ALL.into_iter().map(PlaneChoice::name);
        PlaneChoice::ALL
            .into_iter()
            .find(|plane| plane.name() == word)
            .ok_or_else(|| FlagsError::unknown("plane", text, names))
    }
}

impl fmt::Display for PlaneChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
