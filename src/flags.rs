//! The settings of a view's mapping: sharing, mmap(2) flags, protection, advice.
//!
//! The vocabulary is that of Python's mmap: `access` is a short word for the usual pairs of flags
//! and protection, and `flags` and `prot` say the same at length. [`ViewOptions`] holds what was
//! typed, [`MapMode`] what it means. Nothing here maps anything, and nothing here knows whether a
//! kernel or a file accepts a mode: `MAP_HUGETLB` on a file outside hugetlbfs and `MAP_SYNC`
//! outside DAX are refused by mmap(2) itself, at the first use.
//!
//! Invariant: a [`MapFlags`] holds only flags of the table below that may be passed to mmap(2).

use std::fmt;
use std::str::FromStr;

use crate::advice::{Advice, Effect};

mod error;
mod plane_choice;
mod table;
#[cfg(test)]
mod tests;

pub use error::FlagsError;
pub use plane_choice::PlaneChoice;
use table::{HUGE_MASK, KNOWN, Known, Rule};

/// The access modes of Python's mmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// As `flags` and `prot` say; without them, shared and `rw`.
    #[default]
    Default,
    /// `MAP_SHARED`, `PROT_READ`.
    Read,
    /// `MAP_SHARED`, `PROT_READ | PROT_WRITE`.
    Write,
    /// `MAP_PRIVATE`, `PROT_READ | PROT_WRITE`: what is written stays in a scratch.
    Copy,
}

impl Access {
    /// Every access mode.
    pub const ALL: [Access; 4] = [Access::Default, Access::Read, Access::Write, Access::Copy];

    /// Python's name of it, without `ACCESS_`, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Access::Default => "default",
            Access::Read => "read",
            Access::Write => "write",
            Access::Copy => "copy",
        }
    }
}

impl FromStr for Access {
    type Err = FlagsError;

    /// Reads a name in any case, with or without `ACCESS_`.
    fn from_str(text: &str) -> Result<Access, FlagsError> {
        let word = bare(text, "access_");
        Access::ALL
            .into_iter()
            .find(|access| access.name() == word)
            .ok_or_else(|| FlagsError::unknown("access mode", text, names_of_access()))
    }
}

fn names_of_access() -> impl Iterator<Item = &'static str> {
    Access::ALL.into_iter().map(Access::name)
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The protection of a mapping (mmap(2), `prot`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prot {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub exec: bool,
}

impl Prot {
    /// `PROT_NONE`.
    pub const NONE: Prot = Prot { read: false, write: false, exec: false };
    /// `PROT_READ`.
    pub const READ: Prot = Prot { read: true, write: false, exec: false };
    /// `PROT_READ | PROT_WRITE`.
    pub const READ_WRITE: Prot = Prot { read: true, write: true, exec: false };

    /// The `prot` argument of mmap(2).
    pub fn bits(self) -> i32 {
        let bit = |set, bit| if set { bit } else { libc::PROT_NONE };
        bit(self.read, libc::PROT_READ)
            | bit(self.write, libc::PROT_WRITE)
            | bit(self.exec, libc::PROT_EXEC)
    }
}

impl FromStr for Prot {
    type Err = FlagsError;

    /// Reads letters (`r`, `rw`, `rx`), or names (`read`, `PROT_READ`) joined by `+` or `|`.
    fn from_str(text: &str) -> Result<Prot, FlagsError> {
        let letters = text.to_ascii_lowercase();
        if !letters.is_empty() && letters.chars().all(|letter| "rwx".contains(letter)) {
            return Ok(Prot {
                read: letters.contains('r'),
                write: letters.contains('w'),
                exec: letters.contains('x'),
            });
        }
        let mut prot = Prot::NONE;
        for word in words(text) {
            match bare(word, "prot_").as_str() {
                "none" => {}
                "r" | "read" => prot.read = true,
                "w" | "write" => prot.write = true,
                "x" | "exec" => prot.exec = true,
                "sem" | "growsdown" | "growsup" | "bti" | "mte" => {
                    return Err(FlagsError::refused(
                        word,
                        "it has no meaning for a mapping of a file",
                    ));
                }
                _ => return Err(FlagsError::unknown("protection", word, PROT_NAMES)),
            }
        }
        Ok(prot)
    }
}

const PROT_NAMES: [&str; 7] = ["r", "rw", "rx", "rwx", "read", "write", "exec"];

impl fmt::Display for Prot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Prot::NONE {
            return f.write_str("none");
        }
        for (set, letter) in [(self.read, "r"), (self.write, "w"), (self.exec, "x")] {
            if set {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// Visibility of what is written into a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// `MAP_SHARED`: everybody, and the file.
    Shared,
    /// `MAP_PRIVATE`: this mapping only.
    Private,
    /// `MAP_SHARED_VALIDATE`: as shared; the kernel refuses flags that it does not know.
    SharedValidate,
}

impl Sharing {
    fn name(self) -> &'static str {
        match self {
            Sharing::Shared => "shared",
            Sharing::Private => "private",
            Sharing::SharedValidate => "shared_validate",
        }
    }

    fn bits(self) -> i32 {
        match self {
            Sharing::Shared => libc::MAP_SHARED,
            Sharing::Private => libc::MAP_PRIVATE,
            Sharing::SharedValidate => libc::MAP_SHARED_VALIDATE,
        }
    }
}

/// The `flags` argument of mmap(2), without those that mmapfs refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapFlags {
    /// The type of the mapping: exactly one.
    pub sharing: Sharing,
    bits: i32,
}

impl MapFlags {
    /// `MAP_SHARED` alone.
    pub fn shared() -> MapFlags {
        MapFlags { sharing: Sharing::Shared, bits: 0 }
    }

    /// `MAP_PRIVATE` alone.
    pub fn private() -> MapFlags {
        MapFlags { sharing: Sharing::Private, bits: 0 }
    }

    /// The `flags` argument of mmap(2).
    pub fn bits(&self) -> i32 {
        self.sharing.bits() | self.bits
    }

    /// The names of what is set, the sharing first, without `MAP_`, in lower case.
    pub fn names(&self) -> Vec<&'static str> {
        let passed = KNOWN.iter().filter(|known| self.has(known)).map(|known| known.name);
        std::iter::once(self.sharing.name()).chain(passed).collect()
    }

    /// Whether the flag of this name (lower case, without `MAP_`) is set.
    pub fn contains(&self, name: &str) -> bool {
        self.names().contains(&name)
    }

    fn has(&self, known: &Known) -> bool {
        match known.rule {
            Rule::Pass(bits) if bits & HUGE_MASK != 0 => self.bits & HUGE_MASK == bits,
            Rule::Pass(bits) => self.bits & bits == bits,
            Rule::Share(_) | Rule::Refuse(_) => false,
        }
    }

    fn add(&mut self, word: &str, bits: i32) -> Result<(), FlagsError> {
        let size = self.bits & HUGE_MASK;
        if bits & HUGE_MASK != 0 && size != 0 && size != bits {
            return Err(FlagsError::refused(word, "another huge page size is already given"));
        }
        self.bits |= bits;
        Ok(())
    }

    /// Refuses combinations that mmap(2) would take for something else than was meant.
    fn check(self) -> Result<MapFlags, FlagsError> {
        if self.contains("sync") && self.sharing != Sharing::SharedValidate {
            let reason = "it works only together with shared_validate";
            return Err(FlagsError::refused("sync", reason));
        }
        if self.bits & HUGE_MASK != 0 && !self.contains("hugetlb") {
            let reason = "a huge page size works only together with hugetlb";
            return Err(FlagsError::refused("huge_*", reason));
        }
        Ok(self)
    }
}

impl FromStr for MapFlags {
    type Err = FlagsError;

    /// Reads names joined by `+` or `|`, in any case, with or without `MAP_`. Without a sharing
    /// among them it is `shared`.
    fn from_str(text: &str) -> Result<MapFlags, FlagsError> {
        let mut sharing = None;
        let mut flags = MapFlags::shared();
        for word in words(text) {
            let name = bare(word, "map_");
            let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
                let names = KNOWN.iter().map(|known| known.name);
                return Err(FlagsError::unknown("mapping flag", word, names));
            };
            match known.rule {
                Rule::Pass(bits) => flags.add(word, bits)?,
                Rule::Refuse(reason) => return Err(FlagsError::refused(word, reason)),
                Rule::Share(new) if sharing.is_none_or(|old| old == new) => sharing = Some(new),
                Rule::Share(_) => {
                    return Err(FlagsError::refused(word, "another sharing is already given"));
                }
            }
        }
        flags.sharing = sharing.unwrap_or(Sharing::Shared);
        flags.check()
    }
}

impl fmt::Display for MapFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join("+"))
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(['+', '|']).map(str::trim)
}

fn bare(word: &str, prefix: &str) -> String {
    let lower = word.to_ascii_lowercase();
    lower.strip_prefix(prefix).map(str::to_owned).unwrap_or(lower)
}

/// The settings of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapMode {
    /// Passed to mmap(2).
    pub flags: MapFlags,
    /// Passed to mmap(2).
    pub prot: Prot,
    /// Passed to madvise(2) for the whole of every new mapping.
    pub advice: Advice,
    /// The way on which the bytes are wanted.
    pub plane: PlaneChoice,
}

impl MapMode {
    /// Whether a view of this mode can be read.
    pub fn readable(&self) -> bool {
        self.prot.read
    }

    /// Whether a view of this mode can be written.
    pub fn writable(&self) -> bool {
        self.prot.write
    }

    /// Whether what is written into a view of this mode stays in a scratch: `access=copy`, which
    /// is the same as private and writable.
    pub fn copies(&self) -> bool {
        self.flags.sharing == Sharing::Private && self.prot.write
    }

    /// The mode of a file in the scratch behind a view that copies: writing reaches the file. Any
    /// other mode is left as it is.
    pub fn in_scratch(mut self) -> MapMode {
        if self.copies() {
            self.flags.sharing = Sharing::Shared;
        }
        self
    }

    /// The mode of a file in the base behind a view that copies: nothing is written there. Any
    /// other mode is left as it is.
    pub fn in_base(mut self) -> MapMode {
        if self.copies() {
            self.flags.sharing = Sharing::Shared;
            self.prot.write = false;
        }
        self
    }

    /// Whether the mode needs a mapping, not a file that the kernel reads itself: it has flags or
    /// advice other than the usual.
    pub fn asks_for_mapping(&self) -> bool {
        self.in_scratch().flags != MapFlags::shared() || self.advice != Advice::Normal
    }
}

/// The options of a view as given, by the mount's options or by a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ViewOptions {
    /// `access=`.
    pub access: Access,
    /// `flags=`.
    pub flags: Option<MapFlags>,
    /// `prot=`.
    pub prot: Option<Prot>,
    /// `advice=`.
    pub advice: Option<Advice>,
    /// `plane=`.
    pub plane: Option<PlaneChoice>,
}

impl ViewOptions {
    /// The mode that the options mean together.
    ///
    /// # Errors
    /// `access` other than `default` together with `flags` or `prot` (as in Python's mmap), and
    /// an advice that discards or destroys.
    pub fn resolve(&self) -> Result<MapMode, FlagsError> {
        let advice = self.advice.unwrap_or(Advice::Normal);
        if advice.effect() != Effect::Hint {
            return Err(FlagsError::StartingAdvice(advice));
        }
        let (flags, prot) = match self.access {
            Access::Default => {
                (self.flags.unwrap_or_else(MapFlags::shared), self.prot.unwrap_or(Prot::READ_WRITE))
            }
            Access::Read | Access::Write | Access::Copy
                if self.flags.is_some() || self.prot.is_some() =>
            {
                return Err(FlagsError::AccessWithFlags(self.access));
            }
            Access::Read => (MapFlags::shared(), Prot::READ),
            Access::Write => (MapFlags::shared(), Prot::READ_WRITE),
            Access::Copy => (MapFlags::private(), Prot::READ_WRITE),
        };
        Ok(MapMode { flags, prot, advice, plane: self.plane.unwrap_or_default() })
    }
}
