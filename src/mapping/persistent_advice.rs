//! Advice and locks that belong to the file and outlive a mapping.

use crate::advice::Advice;
use crate::range::ByteRange;

/// An advice that holds for a range until it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistentRange {
    /// Bytes of the file, whole pages.
    pub range: ByteRange,
    /// The advice that was given.
    pub advice: Advice,
}

/// The advice and locks that a new mapping of the file must be given.
#[derive(Debug, Default)]
pub(super) struct PersistentAdvice {
    advice: Vec<PersistentRange>,
    locked: Vec<ByteRange>,
}

/// Whether an advice only undoes others: a mapping without any advice has it.
fn is_neutral(advice: Advice) -> bool {
    matches!(
        advice,
        Advice::Normal | Advice::DoDump | Advice::DoFork | Advice::KeepOnFork | Advice::Unmergeable
    )
}

impl PersistentAdvice {
    /// Whether the file must stay open for its advice or locks.
    pub(super) fn holds(&self) -> bool {
        !self.advice.is_empty() || !self.locked.is_empty()
    }

    pub(super) fn advice(&self) -> &[PersistentRange] {
        &self.advice
    }

    pub(super) fn locked(&self) -> &[ByteRange] {
        &self.locked
    }

    /// Bytes that are locked in memory.
    pub(super) fn locked_bytes(&self) -> u64 {
        self.locked.iter().map(ByteRange::len).sum()
    }

    /// Records a persistent advice; others are ignored.
    pub(super) fn record(&mut self, range: ByteRange, advice: Advice) {
        if !advice.is_persistent() {
            return;
        }
        let (replaced, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.advice)
            .into_iter()
            .partition(|old| advice.replaces(old.advice));
        for old in replaced {
            kept.extend(without(old.range, range).map(|range| PersistentRange { range, ..old }));
        }
        if !is_neutral(advice) && !range.is_empty() {
            kept.push(PersistentRange { range, advice });
        }
        self.advice = kept;
    }

    /// Records that a range is locked or unlocked.
    pub(super) fn record_lock(&mut self, range: ByteRange, locked: bool) {
        let old = std::mem::take(&mut self.locked);
        self.locked = old.into_iter().flat_map(|old| without(old, range)).collect();
        if locked && !range.is_empty() {
            self.locked.push(range);
        }
    }
}

/// The parts of `old` outside `cut`: none, one or two.
fn without(old: ByteRange, cut: ByteRange) -> impl Iterator<Item = ByteRange> {
    let before = ByteRange::new(old.start, old.end.min(cut.start).max(old.start));
    let after = ByteRange::new(old.start.max(cut.end).min(old.end), old.end);
    [before, after].into_iter().flatten().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn normal_advice_cuts_a_hole_into_random_advice() {
        let mut persistent = PersistentAdvice::default();
        persistent.record(range(0, 100), Advice::Random);
        persistent.record(range(40, 60), Advice::Normal);
        let left: Vec<_> = persistent.advice().iter().map(|advice| advice.range).collect();
        assert_eq!(left, [range(0, 40), range(60, 100)]);
    }

    #[test]
    fn advice_of_different_groups_stays_side_by_side() {
        let mut persistent = PersistentAdvice::default();
        persistent.record(range(0, 10), Advice::Random);
        persistent.record(range(0, 10), Advice::DontDump);
        assert_eq!(persistent.advice().len(), 2);
        persistent.record(range(0, 10), Advice::DoDump);
        assert_eq!(
            persistent.advice(),
            [PersistentRange { range: range(0, 10), advice: Advice::Random }]
        );
    }

    #[test]
    fn passing_advice_is_not_remembered() {
        let mut persistent = PersistentAdvice::default();
        persistent.record(range(0, 10), Advice::WillNeed);
        assert!(!persistent.holds());
    }

    #[test]
    fn unlocking_a_part_leaves_the_rest_locked() {
        let mut persistent = PersistentAdvice::default();
        persistent.record_lock(range(0, 100), true);
        persistent.record_lock(range(0, 30), false);
        assert_eq!(persistent.locked_bytes(), 70);
        persistent.record_lock(range(0, 200), false);
        assert!(!persistent.holds());
    }
}
