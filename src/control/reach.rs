//! Whom an advice reaches. madvise(2) acts in part on the page cache of the file, which all of its
//! readers share, and in part on the one mapping that it is given for: the daemon's.

use crate::advice::Advice;
use crate::tree::WhyMapped;

/// Whom an advice reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Everybody who reads the file.
    Readers,
    /// The daemon's mapping, and nobody who reads.
    Mapping,
    /// Nobody.
    Nobody,
}

impl Reach {
    /// The word of reports.
    pub(super) fn word(self) -> &'static str {
        match self {
            Reach::Readers => "readers",
            Reach::Mapping => "this mapping",
            Reach::Nobody => "none",
        }
    }
}

/// Whom an advice reaches on a file, and why not its readers. `why_mapped` is why the kernel does
/// not move the bytes of the file itself; `reverts`: pages that were written are dropped.
pub(super) fn of(
    advice: Advice,
    why_mapped: Option<WhyMapped>,
    reverts: bool,
) -> (Reach, Option<String>) {
    match advice {
        Advice::Normal | Advice::Random | Advice::Sequential => match why_mapped {
            None => {
                let why = "the kernel reads the file itself, and its readahead does not know the \
                           daemon's mapping: mount with plane=mapped, or say plane=\"mapped\" by a rule";
                (Reach::Nobody, Some(why.into()))
            }
            Some(reason @ (WhyMapped::Merged | WhyMapped::Below)) => {
                let why = format!("the daemon reads the file without a mapping: {reason}");
                (Reach::Nobody, Some(why))
            }
            Some(_) => (Reach::Readers, None),
        },
        Advice::DontNeed | Advice::DontNeedLocked | Advice::Free if !reverts => {
            let why = "the page cache keeps the pages: `pageout` evicts them";
            (Reach::Mapping, Some(why.into()))
        }
        Advice::WillNeed
        | Advice::PopulateRead
        | Advice::PopulateWrite
        | Advice::Cold
        | Advice::PageOut
        | Advice::Collapse
        | Advice::Remove
        | Advice::DontNeed
        | Advice::DontNeedLocked
        | Advice::Free => (Reach::Readers, None),
        _ => (Reach::Mapping, Some("it marks the daemon's mapping alone".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_for_readahead_reaches_readers_through_the_mapping_alone() {
        for advice in [Advice::Normal, Advice::Random, Advice::Sequential] {
            for (plane, expected) in [
                (None, Reach::Nobody),
                (Some(WhyMapped::Merged), Reach::Nobody),
                (Some(WhyMapped::Below), Reach::Nobody),
                (Some(WhyMapped::Chosen), Reach::Readers),
                (Some(WhyMapped::Mount), Reach::Readers),
            ] {
                let (reach, why) = of(advice, plane, false);
                assert_eq!((reach, why.is_some()), (expected, expected == Reach::Nobody));
            }
        }
    }

    #[test]
    fn advice_about_pages_reaches_readers_on_every_plane() {
        for plane in [None, Some(WhyMapped::Chosen), Some(WhyMapped::Merged)] {
            assert_eq!(of(Advice::PageOut, plane, false), (Reach::Readers, None));
            assert_eq!(of(Advice::WillNeed, plane, false), (Reach::Readers, None));
            assert_eq!(of(Advice::DontNeed, plane, false).0, Reach::Mapping);
            assert_eq!(of(Advice::DontNeed, plane, true), (Reach::Readers, None));
            assert_eq!(of(Advice::DontDump, plane, false).0, Reach::Mapping);
        }
    }
}
