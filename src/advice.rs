//! Page advice: every MADV_* of Linux by name, with what it does and what it can destroy.
//!
//! The facts of each advice are in one table, `Advice::facts`: its name, its number, its effect
//! on the bytes, the mark it leaves on a mapping and a line for the manual. This module gives no
//! advice to the kernel and does not know which kinds of mapping the kernel takes it for. Source:
//! madvise(2) and include/uapi/asm-generic/mman-common.h.

use std::fmt;
use std::str::FromStr;

use crate::units::{nearest, quote};

#[cfg(test)]
mod tests;

/// The numbers that the libc crate lacks on some targets. They are the same on every
/// architecture that this program builds for.
const MADV_COLLAPSE: i32 = 25;
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;

/// One advice of madvise(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // `facts` has a line for each.
pub enum Advice {
    Normal,
    Random,
    Sequential,
    WillNeed,
    DontNeed,
    DontNeedLocked,
    Free,
    Remove,
    DontFork,
    DoFork,
    Mergeable,
    Unmergeable,
    HugePage,
    NoHugePage,
    DontDump,
    DoDump,
    WipeOnFork,
    KeepOnFork,
    Cold,
    PageOut,
    PopulateRead,
    PopulateWrite,
    Collapse,
    HwPoison,
    SoftOffline,
    GuardInstall,
    GuardRemove,
}

/// Effect of an advice on the bytes of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// The bytes stay what they are. Ranges are rounded outward to pages.
    Hint,
    /// The mapping lets go of its pages. Nothing is lost in a shared mapping: the next access
    /// takes them from the page cache or the backing file. Ranges are rounded inward to pages.
    Discard,
    /// The bytes are gone from the backing file. Needs the word `destroy`; ranges are rounded
    /// inward to pages.
    Destroy,
    /// Never passed on: it breaks memory or page tables of the daemon.
    Forbidden,
}

/// The property of a mapping that a sticky advice sets. The later of two advices with the same
/// mark replaces the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Readahead,
    Fork,
    Merge,
    Huge,
    Dump,
    Wipe,
}

/// The facts about an advice.
struct Facts {
    name: &'static str,
    number: i32,
    effect: Effect,
    mark: Option<Mark>,
    summary: &'static str,
}

impl Advice {
    /// Every advice, in the order of the manual.
    pub const ALL: &'static [Advice] = &[
        Advice::Normal,
        Advice::Random,
        Advice::Sequential,
        Advice::WillNeed,
        Advice::PopulateRead,
        Advice::PopulateWrite,
        Advice::Cold,
        Advice::PageOut,
        Advice::Collapse,
        Advice::HugePage,
        Advice::NoHugePage,
        Advice::Mergeable,
        Advice::Unmergeable,
        Advice::DontDump,
        Advice::DoDump,
        Advice::DontFork,
        Advice::DoFork,
        Advice::WipeOnFork,
        Advice::KeepOnFork,
        Advice::DontNeed,
        Advice::DontNeedLocked,
        Advice::Free,
        Advice::Remove,
        Advice::HwPoison,
        Advice::SoftOffline,
        Advice::GuardInstall,
        Advice::GuardRemove,
    ];

    /// Its name: that of the MADV_* constant without the prefix, in lower case.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The number that madvise(2) takes.
    pub fn number(self) -> i32 {
        self.facts().number
    }

    /// Its effect on the bytes.
    pub fn effect(self) -> Effect {
        self.facts().effect
    }

    /// Whether it marks the mapping, not its pages, so that a new mapping of the same range needs
    /// it again.
    pub fn is_persistent(self) -> bool {
        self.facts().mark.is_some()
    }

    /// Whether, given later for the same range, it takes the place of the sticky `earlier`:
    /// `normal` replaces `random`, `nohugepage` replaces `hugepage`. Every sticky advice replaces
    /// itself.
    pub fn replaces(self, earlier: Advice) -> bool {
        self.is_persistent() && self.facts().mark == earlier.facts().mark
    }

    /// One line that says what the kernel does, for the manual. No full stop at its end.
    pub fn summary(self) -> &'static str {
        self.facts().summary
    }

    fn facts(self) -> Facts {
        use Effect::{Destroy, Discard, Forbidden, Hint};
        let fact =
            |name, number, effect, mark, summary| Facts { name, number, effect, mark, summary };
        match self {
            Advice::Normal => fact(
                "normal",
                libc::MADV_NORMAL,
                Hint,
                Some(Mark::Readahead),
                "read ahead as usual; undoes random and sequential",
            ),
            Advice::Random => fact(
                "random",
                libc::MADV_RANDOM,
                Hint,
                Some(Mark::Readahead),
                "expect reads in random order: read no more than is asked for",
            ),
            Advice::Sequential => fact(
                "sequential",
                libc::MADV_SEQUENTIAL,
                Hint,
                Some(Mark::Readahead),
                "expect reads in order: read far ahead, let go of pages soon after",
            ),
            Advice::WillNeed => fact(
                "willneed",
                libc::MADV_WILLNEED,
                Hint,
                None,
                "start to read the range into the page cache, without waiting for it",
            ),
            Advice::PopulateRead => fact(
                "populate_read",
                libc::MADV_POPULATE_READ,
                Hint,
                None,
                "read the range in and map its pages, and wait until that is done (Linux 5.14)",
            ),
            Advice::PopulateWrite => fact(
                "populate_write",
                libc::MADV_POPULATE_WRITE,
                Hint,
                None,
                "as populate_read, ready for writing: allocates holes, dirties pages (Linux 5.14)",
            ),
            Advice::Cold => fact(
                "cold",
                libc::MADV_COLD,
                Hint,
                None,
                "make the pages the first to go when memory is short (Linux 5.4)",
            ),
            Advice::PageOut => fact(
                "pageout",
                libc::MADV_PAGEOUT,
                Hint,
                None,
                "take the pages out of memory now; dirty and shared ones may stay (Linux 5.4)",
            ),
            Advice::Collapse => fact(
                "collapse",
                MADV_COLLAPSE,
                Hint,
                None,
                "gather the pages into huge pages now (Linux 6.1; few filesystems can)",
            ),
            Advice::HugePage => fact(
                "hugepage",
                libc::MADV_HUGEPAGE,
                Hint,
                Some(Mark::Huge),
                "use transparent huge pages where the filesystem can",
            ),
            Advice::NoHugePage => fact(
                "nohugepage",
                libc::MADV_NOHUGEPAGE,
                Hint,
                Some(Mark::Huge),
                "use no transparent huge pages",
            ),
            Advice::Mergeable => fact(
                "mergeable",
                libc::MADV_MERGEABLE,
                Hint,
                Some(Mark::Merge),
                "let KSM merge equal pages; without effect on a shared file mapping",
            ),
            Advice::Unmergeable => fact(
                "unmergeable",
                libc::MADV_UNMERGEABLE,
                Hint,
                Some(Mark::Merge),
                "undo mergeable",
            ),
            Advice::DontDump => fact(
                "dontdump",
                libc::MADV_DONTDUMP,
                Hint,
                Some(Mark::Dump),
                "leave the range out of the daemon's core dumps",
            ),
            Advice::DoDump => {
                fact("dodump", libc::MADV_DODUMP, Hint, Some(Mark::Dump), "undo dontdump")
            }
            Advice::DontFork => fact(
                "dontfork",
                libc::MADV_DONTFORK,
                Hint,
                Some(Mark::Fork),
                "leave the range out of child processes of the daemon",
            ),
            Advice::DoFork => {
                fact("dofork", libc::MADV_DOFORK, Hint, Some(Mark::Fork), "undo dontfork")
            }
            Advice::WipeOnFork => fact(
                "wipeonfork",
                libc::MADV_WIPEONFORK,
                Hint,
                Some(Mark::Wipe),
                "show zeros to child processes; anonymous memory only (Linux 4.14)",
            ),
            Advice::KeepOnFork => {
                fact("keeponfork", libc::MADV_KEEPONFORK, Hint, Some(Mark::Wipe), "undo wipeonfork")
            }
            Advice::DontNeed => fact(
                "dontneed",
                libc::MADV_DONTNEED,
                Discard,
                None,
                "unmap the pages; the next access takes them from the page cache or the file",
            ),
            Advice::DontNeedLocked => fact(
                "dontneed_locked",
                libc::MADV_DONTNEED_LOCKED,
                Discard,
                None,
                "as dontneed, also for pages that are locked in memory (Linux 5.18)",
            ),
            Advice::Free => fact(
                "free",
                libc::MADV_FREE,
                Discard,
                None,
                "let the pages go when memory is short; anonymous memory only (Linux 4.5)",
            ),
            Advice::Remove => fact(
                "remove",
                libc::MADV_REMOVE,
                Destroy,
                None,
                "punch a hole into the backing file: the range reads as zeros from then on",
            ),
            Advice::HwPoison => fact(
                "hwpoison",
                libc::MADV_HWPOISON,
                Forbidden,
                None,
                "mark the memory as broken, for tests of the kernel",
            ),
            Advice::SoftOffline => fact(
                "soft_offline",
                libc::MADV_SOFT_OFFLINE,
                Forbidden,
                None,
                "take the memory out of use, for tests of the kernel",
            ),
            Advice::GuardInstall => fact(
                "guard_install",
                MADV_GUARD_INSTALL,
                Forbidden,
                None,
                "make every access to the range fail (Linux 6.13)",
            ),
            Advice::GuardRemove => fact(
                "guard_remove",
                MADV_GUARD_REMOVE,
                Forbidden,
                None,
                "undo guard_install (Linux 6.13)",
            ),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Advice {
    type Err = AdviceError;

    /// Takes the name in any case, with or without `MADV_`, with `-` or `_`.
    fn from_str(word: &str) -> Result<Advice, AdviceError> {
        let lower = word.to_ascii_lowercase().replace('-', "_");
        let name = lower.strip_prefix("madv_").unwrap_or(&lower);
        let by_name = |name: &str| Advice::ALL.iter().copied().find(|known| known.name() == name);
        by_name(name).ok_or_else(|| AdviceError {
            word: word.to_owned(),
            nearest: nearest(name, Advice::ALL.iter().map(|known| known.name())).and_then(by_name),
        })
    }
}

/// A word that names no advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdviceError {
    /// The word as it was given.
    pub word: String,
    /// The advice that was most likely meant.
    pub nearest: Option<Advice>,
}

impl fmt::Display for AdviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no advice {}", quote(&self.word))?;
        match self.nearest {
            Some(known) => write!(f, ": did you mean `{known}`?"),
            None => {
                f.write_str(": known are")?;
                Advice::ALL.iter().try_for_each(|known| write!(f, " {known}"))
            }
        }
    }
}

impl std::error::Error for AdviceError {}
