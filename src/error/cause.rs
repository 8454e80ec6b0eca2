//! The cause of an EIO, ESTALE or ENOSPC, for its line in the log.
//!
//! A request is served on one thread. The code that finds the error notes the cause on that thread;
//! the code that answers takes the note. A note belongs to the request that [`clear`] began, and
//! the last one counts: an error that was recovered from comes before the one that is answered.

use std::cell::Cell;

use rustix::io::Errno;

/// The cause of an ESTALE for an inode number that no table has.
pub(crate) const UNKNOWN_INODE: &str = "the inode number is not known";

thread_local! {
    static NOTE: Cell<Option<(Errno, &'static str)>> = const { Cell::new(None) };
}

/// Begins a request on this thread.
pub(crate) fn clear() {
    NOTE.set(None);
}

/// Notes why the request of this thread fails with `err`, and returns `err`.
pub(crate) fn because(err: Errno, cause: &'static str) -> Errno {
    NOTE.set(Some((err, cause)));
    err
}

/// As [`because`], for the result of a call: other errors than `err` pass without a note.
pub(crate) fn when(err: Errno, cause: &'static str) -> impl Fn(Errno) -> Errno {
    move |failed| if failed == err { because(failed, cause) } else { failed }
}

/// Takes the cause of `err`, if one was noted.
pub(crate) fn take(err: Errno) -> Option<&'static str> {
    NOTE.take().filter(|(noted, _)| *noted == err).map(|(_, cause)| cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_and_for_its_own_error_only() {
        clear();
        assert_eq!(take(Errno::IO), None);
        assert_eq!(because(Errno::IO, "first"), Errno::IO);
        because(Errno::IO, "last");
        assert_eq!((take(Errno::IO), take(Errno::IO)), (Some("last"), None));
        because(Errno::STALE, "recovered from");
        assert_eq!(take(Errno::IO), None);
        let failed: Result<(), Errno> = Err(Errno::NOENT);
        assert_eq!(failed.map_err(when(Errno::IO, "not this")), Err(Errno::NOENT));
        assert_eq!(take(Errno::NOENT), None);
        because(Errno::IO, "of the request before");
        clear();
        assert_eq!(take(Errno::IO), None);
    }

    #[test]
    fn threads_have_causes_of_their_own() {
        because(Errno::IO, "here");
        std::thread::spawn(|| assert_eq!(take(Errno::IO), None)).join().unwrap();
        assert_eq!(take(Errno::IO), Some("here"));
    }
}
