//! One line per request in the log, and its count.

use std::time::Instant;

use rustix::io::Errno;

use super::convert;
use crate::control::counters::{Counters, Operation};
use crate::sys::cred::Caller;
use crate::tree::Ino;

/// A request under way.
pub(super) struct Trace<'a> {
    counters: &'a Counters,
    operation: Operation,
    ino: Ino,
    pid: u32,
    range: Option<(u64, u64)>,
    started: Option<Instant>,
}

impl<'a> Trace<'a> {
    pub(super) fn start(
        counters: &'a Counters,
        operation: Operation,
        who: &Caller,
        ino: fuser::INodeNo,
    ) -> Trace<'a> {
        counters.count(operation);
        let started = log::log_enabled!(log::Level::Debug).then(Instant::now);
        Trace { counters, operation, ino: convert::ino(ino), pid: who.pid, range: None, started }
    }

    /// Adds the bytes that it is about.
    pub(super) fn range(mut self, offset: u64, len: u64) -> Trace<'a> {
        self.range = Some((offset, len));
        self
    }

    /// Ends a request whose result is another's to tell, or that has none.
    pub(super) fn handed_over(self) {
        self.log("ok");
    }

    /// Ends a request that the kernel is told not to make again.
    pub(super) fn refuse(self, err: Errno) -> fuser::Errno {
        self.log("not needed");
        convert::errno(err)
    }

    /// Ends the request: logs it, counts a failure, and turns its error into the kernel's.
    pub(super) fn end<T>(self, result: Result<T, Errno>) -> Result<T, fuser::Errno> {
        match &result {
            Ok(_) => self.log("ok"),
            Err(err) if self.started.is_some() => self.log(&format!("{err:?}: {err}")),
            Err(_) => {}
        }
        result.map_err(|err| {
            self.counters.count_error(err);
            convert::errno(err)
        })
    }

    fn log(&self, result: &str) {
        let Some(started) = self.started else { return };
        let range = self.range.map(|(offset, len)| format!(" off={offset} len={len}"));
        log::debug!(
            "{} ino={}{} pid={} -> {result} ({} us)",
            self.operation.name(),
            self.ino,
            range.unwrap_or_default(),
            self.pid,
            started.elapsed().as_micros(),
        );
    }
}
