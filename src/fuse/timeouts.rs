//! Times for which the kernel may use what it is told.

use std::time::Duration;

use crate::tree::Validity;

/// For what is invalidated when it changes.
const UNTIL_TOLD: Duration = Duration::from_secs(3600);
/// For what nobody tells about.
const BRIEFLY: Duration = Duration::from_secs(1);

/// The timeouts of a mount: those that were given hold for everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timeouts {
    /// For names.
    pub entry: Option<Duration>,
    /// For attributes, and cached data with them.
    pub attr: Option<Duration>,
    /// For names that do not exist.
    pub negative: Option<Duration>,
}

fn by(validity: Validity, given: Option<Duration>, otherwise: Duration) -> Duration {
    match (validity, given) {
        (Validity::Uncached, _) => Duration::ZERO,
        (_, Some(given)) => given,
        (Validity::UntilInvalidated, None) => UNTIL_TOLD,
        (Validity::Timeout, None) => otherwise,
    }
}

impl Timeouts {
    /// For a name.
    pub fn entry(&self, validity: Validity) -> Duration {
        by(validity, self.entry, BRIEFLY)
    }

    /// For attributes.
    pub fn attr(&self, validity: Validity) -> Duration {
        by(validity, self.attr, BRIEFLY)
    }

    /// For a name that does not exist. Only the kernel knows which it was told of: unless it can
    /// drop `all_names` when changes were lost, some could be left over.
    pub fn negative(&self, validity: Validity, all_names: bool) -> Duration {
        let timeout = by(validity, self.negative, Duration::ZERO);
        if self.negative.is_none() && !all_names { timeout.min(BRIEFLY) } else { timeout }
    }

    /// Whether a file's cached data may outlive the file's being open: where attributes may be
    /// trusted for some time.
    pub fn keep_data(&self) -> bool {
        !self.attr(Validity::Timeout).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_holds_for_everything_but_what_changed_meanwhile() {
        let given = Some(Duration::from_secs(7));
        let timeouts = Timeouts { entry: given, attr: given, negative: given };
        for validity in [Validity::Timeout, Validity::UntilInvalidated] {
            assert_eq!(Some(timeouts.entry(validity)), given);
            assert_eq!(Some(timeouts.attr(validity)), given);
            assert_eq!(Some(timeouts.negative(validity, false)), given);
        }
        assert_eq!(timeouts.attr(Validity::Uncached), Duration::ZERO);
    }

    #[test]
    fn what_is_watched_is_trusted_for_long_and_the_rest_briefly() {
        let timeouts = Timeouts::default();
        assert_eq!(timeouts.attr(Validity::UntilInvalidated), UNTIL_TOLD);
        assert_eq!(timeouts.negative(Validity::UntilInvalidated, true), UNTIL_TOLD);
        assert_eq!(timeouts.entry(Validity::Timeout), BRIEFLY);
        assert_eq!(timeouts.negative(Validity::Timeout, true), Duration::ZERO);
        assert_eq!(timeouts.negative(Validity::UntilInvalidated, false), BRIEFLY);
    }
}
