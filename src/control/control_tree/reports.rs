//! Reports that are read without a handle: each stays the same while it is being read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::now;
use crate::tree::{Ino, Time};

/// Time without a look at a report, after which it is made anew.
const IDLE: Duration = Duration::from_secs(1);

struct Made {
    text: Arc<[u8]>,
    at: Time,
    used: Instant,
}

/// The reports as they were made last.
#[derive(Default)]
pub(super) struct Reports(Mutex<HashMap<Ino, Made>>);

impl Reports {
    /// A report and when it was made: now, by `make`, unless it was looked at a moment ago.
    pub(super) fn recent(
        &self,
        ino: Ino,
        make: impl FnOnce() -> Option<String>,
    ) -> Option<(Arc<[u8]>, Time)> {
        let mut reports = self.0.lock();
        if let Some(made) = reports.get_mut(&ino)
            && made.used.elapsed() < IDLE
        {
            made.used = Instant::now();
            return Some((Arc::clone(&made.text), made.at));
        }
        let text: Arc<[u8]> = make()?.into_bytes().into();
        let at = now();
        reports.insert(ino, Made { text: Arc::clone(&text), at, used: Instant::now() });
        Some((text, at))
    }
}
