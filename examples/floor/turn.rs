//! When a request begins and ends.

use std::sync::OnceLock;

use mmapfs::fuse::BusyPoll;

/// As mmapfs stays awake for the next request.
pub static POLLING: OnceLock<BusyPoll> = OnceLock::new();

/// A request: it has arrived, and when this is dropped it was answered.
pub struct Turn;

impl Turn {
    pub fn begin() -> Turn {
        POLLING.get().inspect(|polling| polling.arrived());
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        POLLING.get().inspect(|polling| polling.answered());
    }
}
