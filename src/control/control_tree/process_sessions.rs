//! Sessions of processes that give commands without an open file of their own.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::tree::HandleId;

/// The most processes that may be in the middle of a command without an open file of their own.
const MOST: usize = 256;

/// The handle of the session of each process, the oldest first.
#[derive(Default)]
pub(super) struct ProcessSessions(Mutex<VecDeque<(u32, HandleId)>>);

impl ProcessSessions {
    /// Gives a process a session, and returns the handles to close: that of its earlier session,
    /// and that of the process that has waited longest for its answer where there are too many.
    pub(super) fn replace(&self, process: u32, new: HandleId) -> impl Iterator<Item = HandleId> {
        let mut sessions = self.0.lock();
        let old = position(&sessions, process).and_then(|at| sessions.remove(at));
        sessions.push_back((process, new));
        let excess = if sessions.len() > MOST { sessions.pop_front() } else { None };
        old.into_iter().chain(excess).map(|(_, id)| id)
    }

    /// The session of a process.
    pub(super) fn of(&self, process: u32) -> Option<HandleId> {
        let sessions = self.0.lock();
        position(&sessions, process).and_then(|at| sessions.get(at)).map(|(_, id)| *id)
    }

    /// Takes a process's session away, and returns the handle to close.
    pub(super) fn end(&self, process: u32) -> Option<HandleId> {
        let mut sessions = self.0.lock();
        position(&sessions, process).and_then(|at| sessions.remove(at)).map(|(_, id)| id)
    }
}

fn position(sessions: &VecDeque<(u32, HandleId)>, process: u32) -> Option<usize> {
    sessions.iter().position(|(owner, _)| *owner == process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_session_and_the_oldest_goes_first() {
        let sessions = ProcessSessions::default();
        let give = |process, id| sessions.replace(process, HandleId(id)).collect::<Vec<_>>();
        assert_eq!(give(1, 10), []);
        assert_eq!(give(1, 11), [HandleId(10)]);
        assert_eq!(sessions.of(1), Some(HandleId(11)));
        for process in 2..=MOST as u32 {
            assert_eq!(give(process, 100 + u64::from(process)), []);
        }
        assert_eq!(give(7000, 7), [HandleId(11)]);
        assert_eq!(sessions.of(1), None);
        assert_eq!(sessions.end(7000), Some(HandleId(7)));
        assert_eq!(sessions.end(7000), None);
    }
}
