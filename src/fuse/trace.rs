//! One line per request in the log at level debug, its count, and a warning where it fails.

use std::ffi::OsStr;
use std::time::Instant;

use rustix::io::Errno;

use super::adapter::Adapter;
use super::convert;
use crate::control::counters::Operation;
use crate::error::cause;
use crate::sys::cred::Caller;
use crate::tree::Ino;

/// A request under way.
pub(super) struct Trace<'a> {
    adapter: &'a Adapter,
    operation: Operation,
    ino: Ino,
    name: Option<&'a OsStr>,
    pid: u32,
    range: Option<(u64, u64)>,
    started: Option<Instant>,
}

impl<'a> Trace<'a> {
    pub(super) fn start(
        adapter: &'a Adapter,
        operation: Operation,
        who: &Caller,
        ino: fuser::INodeNo,
    ) -> Trace<'a> {
        adapter.counters.count(operation);
        cause::clear();
        let started = log::log_enabled!(log::Level::Debug).then(Instant::now);
        let ino = convert::ino(ino);
        Trace { adapter, operation, ino, name: None, pid: who.pid, range: None, started }
    }

    /// Adds the name in the directory that it is about.
    pub(super) fn name(mut self, name: &'a OsStr) -> Trace<'a> {
        self.name = Some(name);
        self
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

    /// Ends the request: logs it, counts and tells a failure, and turns its error into the kernel's.
    pub(super) fn end<T>(self, result: Result<T, Errno>) -> Result<T, fuser::Errno> {
        match &result {
            Ok(_) => self.log("ok"),
            Err(err) if self.started.is_some() => self.log(&format!("{err:?}: {err}")),
            Err(_) => {}
        }
        result.map_err(|err| {
            let Adapter { counters, failures, tree, .. } = self.adapter;
            counters.count_error(err);
            failures.note(&**tree, self.operation, (self.ino, self.name), err);
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
