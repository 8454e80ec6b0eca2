//! Warnings about failures that are no answer to what a client asked for.
//!
//! EIO, ENOSPC and a request that goes on failing with ESTALE leave a line in the log, with the
//! path and the cause. Each kind has one line in five seconds at most, and the next line has the
//! number of those that were left out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::control::counters::Operation;
use crate::shown::Show;
use crate::tree::{Ino, Tree};

/// Time between two lines of one kind.
const REST: Duration = Duration::from_secs(5);

/// Number of ESTALE for one inode, with no pause of [`PAUSE`], that is a loop. One ESTALE is the
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

/// ESTALE for one inode, again and again.
struct Run {
    ino: Ino,
    last: Instant,
    count: u32,
}

impl Limit {
    /// Whether a failure is to be told, with the number of those that were left out before it.
    fn admit(&mut self, err: Errno, ino: Ino, now: Instant) -> Option<u64> {
        let line = match err {
            Errno::IO => &mut self.io,
            Errno::NOSPC => &mut self.space,
            Errno::STALE => {
                let run = self.run.take().filter(|run| run.ino == ino && now < run.last + PAUSE);
                let count = run.map_or(0, |run| run.count).saturating_add(1);
                self.run = Some(Run { ino, last: now, count });
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
    /// Logs a failure, unless one of its kind was logged a moment ago.
    pub(super) fn note(&self, tree: &dyn Tree, operation: Operation, ino: Ino, err: Errno) {
        if !matches!(err, Errno::IO | Errno::NOSPC | Errno::STALE) {
            return;
        }
        let admitted = self.0.lock().admit(err, ino, Instant::now());
        let Some(left_out) = admitted else { return };
        let path = tree.path_of_inode(ino).unwrap_or_else(|| PathBuf::from(format!("inode {ino}")));
        let path = if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        let cause = match err {
            Errno::NOSPC => match tree.statistics(ino) {
                Ok(stat) => format!(": {} bytes are left", stat.f_bavail * stat.f_frsize),
                Err(_) => String::new(),
            },
            Errno::STALE => String::from(": again and again"),
            _ => String::new(),
        };
        let more = match left_out {
            0 => String::new(),
            count => format!("; {count} more since the last such line"),
        };
        log::warn!("{}: {} failed: {err}{cause}{more}", path.shown(), operation.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Ino = Ino(7);

    #[test]
    fn one_line_of_a_kind_is_admitted_and_the_next_counts_those_between() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        assert_eq!(limit.admit(Errno::IO, FILE, start), Some(0));
        for _ in 0..3 {
            assert_eq!(limit.admit(Errno::IO, Ino(8), start + REST / 2), None);
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
        assert_eq!(limit.admit(Errno::STALE, Ino(8), start + PAUSE), None, "another file");
    }

    #[test]
    fn an_answer_is_no_failure() {
        let mut limit = Limit::default();
        for err in [Errno::NOENT, Errno::ACCESS, Errno::EXIST, Errno::DQUOT] {
            assert_eq!(limit.admit(err, FILE, Instant::now()), None);
        }
    }
}
