//! Warnings about failures that are no answer to what a client asked for.
//!
//! EIO, ENOSPC and a request that goes on failing with ESTALE leave a line in the log, with the
//! path and the cause, which the code that found the error has noted ([`cause`]). Each kind has one
//! line in five seconds at most, and the next line has the number of those that were left out.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::control::counters::Operation;
use crate::error::cause;
use crate::shown::Show;
use crate::tree::{Ino, Tree};

/// Time between two lines of one kind.
const REST: Duration = Duration::from_secs(5);

/// Number of ESTALE for one subject, with no pause of [`PAUSE`], that is a loop. One ESTALE is the
/// usual way to have the kernel look a name up anew.
const LOOP: u32 = 4;

/// Time after which an ESTALE does not belong to the earlier ones.
const PAUSE: Duration = Duration::from_secs(1);

/// The state of the rate limit.
#[derive(Default)]
pub(super) struct Failures(Mutex<Limit>);

#[derive(Default)]
struct Limit {
    io: Line,
    space: Line,
    stale: Line,
    run: Option<Run>,
}

/// The last line of a kind.
#[derive(Default)]
struct Line {
    at: Option<Instant>,
    left_out: u64,
}

/// The file that a request is about: an inode, or a name in a directory.
pub(super) type Subject<'a> = (Ino, Option<&'a OsStr>);

/// ESTALE for one subject, again and again.
struct Run {
    ino: Ino,
    name: Option<OsString>,
    last: Instant,
    count: u32,
}

impl Limit {
    /// Whether a failure is to be told, with the number of those that were left out before it.
    fn admit(&mut self, err: Errno, (ino, name): Subject<'_>, now: Instant) -> Option<u64> {
        let line = match err {
            Errno::IO => &mut self.io,
            Errno::NOSPC => &mut self.space,
            Errno::STALE => {
                let goes_on = |run: &Run| {
                    run.ino == ino && run.name.as_deref() == name && now < run.last + PAUSE
                };
                let count = self.run.take().filter(goes_on).map_or(0, |run| run.count);
                let (count, name) = (count.saturating_add(1), name.map(OsStr::to_owned));
                self.run = Some(Run { ino, name, last: now, count });
                if count < LOOP {
                    return None;
                }
                &mut self.stale
            }
            _ => return None,
        };
        if line.at.is_some_and(|at| now < at + REST) {
            line.left_out += 1;
            return None;
        }
        line.at = Some(now);
        Some(std::mem::take(&mut line.left_out))
    }
}

impl Failures {
    /// Logs a failure of the request that this thread has served, unless one of its kind was logged
    /// a moment ago.
    pub(super) fn note(
        &self,
        tree: &dyn Tree,
        operation: Operation,
        subject: Subject<'_>,
        err: Errno,
    ) {
        if !matches!(err, Errno::IO | Errno::NOSPC | Errno::STALE) {
            return;
        }
        let admitted = self.0.lock().admit(err, subject, Instant::now());
        let Some(left_out) = admitted else { return };
        let cause = cause::take(err);
        let mut line =
            format!("{}: {} failed: {err}", path(tree, subject).shown(), operation.name());
        if let Some(cause) = cause {
            line.push_str(": ");
            line.push_str(cause);
        }
        if err == Errno::NOSPC
            && let Ok(stat) = tree.statistics(subject.0)
        {
            line.push_str(&format!(": {} bytes are left", stat.f_bavail * stat.f_frsize));
        }
        if err == Errno::STALE {
            line.push_str(": again and again");
        }
        if left_out > 0 {
            line.push_str(&format!("; {left_out} more since the last such line"));
        }
        log::warn!("{line}");
    }
}

/// The path of a request, relative to the root.
fn path(tree: &dyn Tree, (ino, name): Subject<'_>) -> PathBuf {
    let found = tree.path_of_inode(ino);
    let mut path = found.unwrap_or_else(|| PathBuf::from(format!("inode {ino}")));
    path.extend(name);
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Subject<'_> = (Ino(7), None);
    const OTHER: Subject<'_> = (Ino(8), None);

    #[test]
    fn one_line_of_a_kind_is_admitted_and_the_next_counts_those_between() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        assert_eq!(limit.admit(Errno::IO, FILE, start), Some(0));
        for _ in 0..3 {
            assert_eq!(limit.admit(Errno::IO, OTHER, start + REST / 2), None);
        }
        assert_eq!(limit.admit(Errno::NOSPC, FILE, start + REST / 2), Some(0));
        assert_eq!(limit.admit(Errno::IO, FILE, start + REST), Some(3));
        assert_eq!(limit.admit(Errno::IO, FILE, start + 2 * REST), Some(0));
    }

    #[test]
    fn stale_is_told_only_as_a_loop() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        for _ in 1..LOOP {
            assert_eq!(limit.admit(Errno::STALE, FILE, start), None);
        }
        assert_eq!(limit.admit(Errno::STALE, FILE, start), Some(0));
        assert_eq!(limit.admit(Errno::STALE, FILE, start + PAUSE), None, "a new run");
        assert_eq!(limit.admit(Errno::STALE, OTHER, start + PAUSE), None, "another file");
    }

    #[test]
    fn names_of_one_directory_are_no_loop() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        let name = |name: &'static str| (Ino(7), Some(OsStr::new(name)));
        for _ in 0..LOOP {
            assert_eq!(limit.admit(Errno::STALE, name("one"), now), None);
            assert_eq!(limit.admit(Errno::STALE, name("other"), now), None);
        }
        for _ in 2..LOOP {
            assert_eq!(limit.admit(Errno::STALE, name("other"), now), None);
        }
        assert_eq!(limit.admit(Errno::STALE, name("other"), now), Some(0));
    }

    #[test]
    fn an_answer_is_no_failure() {
        let mut limit = Limit::default();
        for err in [Errno::NOENT, Errno::ACCESS, Errno::EXIST, Errno::DQUOT] {
            assert_eq!(limit.admit(err, FILE, Instant::now()), None);
        }
    }
}
