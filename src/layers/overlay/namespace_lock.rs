//! The namespace lock, under which no plain lower layer is asked.
//!
//! A plain lower layer is a directory of the base, which may lie on a filesystem that does not
//! answer, and every request needs the lock. So an operation under the lock is a step: it gets the
//! answers of plain layers ([`Answers`]) and asks for nothing. A step without an answer that it
//! needs ends with [`Halt::Ask`], before it changes anything but by copy-up. The caller then unlocks,
//! asks the layer and begins the step again. Frozen layers lie beside the upper directory, in the
//! same volume, and are asked like it, under the lock.
//!
//! The lock does not protect answers of plain layers, since the daemon never changes these layers:
//! an answer stays good however long it took, and a step sees the current names and the current upper
//! volume. A direct change of the base that the watch reports discards all answers.
//!
//! The types show who holds the lock: [`NamesRead`] holds it for reading, [`NamesWrite`] for writing.
//! docs/design.md has the order of all locks.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::Overlay;
use super::lower_answers::Answers;
use super::node::Node;

/// Why a step ends without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    /// A lower layer is to be asked first. To be handed on by everybody.
    Ask,
    /// The step has failed.
    Failed(Errno),
}

impl From<Errno> for Halt {
    fn from(err: Errno) -> Halt {
        Halt::Failed(err)
    }
}

/// The result of a step under the lock.
pub(super) type Step<T> = Result<T, Halt>;

thread_local! {
    /// Number of locks that this thread holds and under which no lower layer is asked.
    static LOCKED: Cell<u32> = const { Cell::new(0) };
}

/// Checks that this thread may ask a lower layer.
pub(super) fn may_ask() {
    debug_assert!(LOCKED.get() == 0, "a lower layer is asked with a lock held");
}

/// Notes that this thread has locked something.
struct Noted;

impl Noted {
    fn new() -> Noted {
        LOCKED.set(LOCKED.get() + 1);
        Noted
    }

    /// The same of the names, which are locked before anything else.
    fn names() -> Noted {
        debug_assert!(LOCKED.get() == 0, "the names are locked with another lock held");
        Noted::new()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        LOCKED.set(LOCKED.get() - 1);
    }
}

/// A lock with which no lower layer is asked.
#[derive(Default)]
pub(super) struct Brief<T>(Mutex<T>);

/// The protected value, while it is locked.
pub(super) struct Briefly<'a, T> {
    locked: MutexGuard<'a, T>,
    _noted: Noted,
}

impl<T> Brief<T> {
    pub(super) fn lock(&self) -> Briefly<'_, T> {
        Briefly { locked: self.0.lock(), _noted: Noted::new() }
    }
}

impl<T> Deref for Briefly<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.locked
    }
}

impl<T> DerefMut for Briefly<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.locked
    }
}

/// The names, locked for reading at least.
pub(super) struct NamesRead<'a> {
    answers: &'a Answers<'a>,
    /// Number of times that they were locked for writing so far.
    generation: u64,
    copied_up: RefCell<Vec<Arc<Node>>>,
    dropped: RefCell<Vec<Box<dyn Any>>>,
}

impl<'a> NamesRead<'a> {
    fn new(answers: &'a Answers<'a>, generation: u64) -> NamesRead<'a> {
        let (copied_up, dropped) = Default::default();
        NamesRead { answers, generation, copied_up, dropped }
    }

    /// The answers of the lower layers.
    pub(super) fn below(&self) -> &'a Answers<'a> {
        self.answers
    }

    /// Drops something that has a descriptor of a lower layer when the lock is let go.
    pub(super) fn drop_later<T: 'static>(&self, it: Option<T>) {
        if let Some(it) = it {
            self.dropped.borrow_mut().push(Box::new(it));
        }
    }

    /// The same number says that nothing has changed in between.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }
}

/// The names, locked for writing.
pub(super) struct NamesWrite<'a>(NamesRead<'a>);

impl<'a> Deref for NamesWrite<'a> {
    type Target = NamesRead<'a>;

    fn deref(&self) -> &NamesRead<'a> {
        &self.0
    }
}

impl NamesWrite<'_> {
    /// Notes that a node was copied up, whose base is to be guarded when the lock is let go.
    pub(super) fn note_copied_up(&self, node: &Arc<Node>) {
        self.0.copied_up.borrow_mut().push(Arc::clone(node));
    }
}

impl Overlay {
    /// Takes a step with the names locked for reading.
    ///
    /// # Errors
    /// Errors of the step, and of asking lower layers.
    pub(super) fn with_names<T>(
        &self,
        step: impl FnMut(&NamesRead<'_>) -> Step<T>,
    ) -> Result<T, Errno> {
        self.with_names_and(&Answers::none(self), step)
    }

    /// The same with answers that are there already.
    pub(super) fn with_names_and<T>(
        &self,
        answers: &Answers<'_>,
        mut step: impl FnMut(&NamesRead<'_>) -> Step<T>,
    ) -> Result<T, Errno> {
        loop {
            let (done, dropped) = {
                let names = self.names.read();
                let _noted = Noted::names();
                answers.renew();
                let names = NamesRead::new(answers, *names);
                (step(&names), names.dropped)
            };
            drop(dropped);
            match done {
                Ok(done) => return Ok(done),
                Err(Halt::Failed(err)) => return Err(err),
                Err(Halt::Ask) => answers.ask()?,
            }
        }
    }

    /// Takes a step with the names locked for writing.
    ///
    /// # Errors
    /// Errors of the step, and of asking lower layers.
    pub(super) fn change_names<T>(
        &self,
        step: impl FnMut(&NamesWrite<'_>) -> Step<T>,
    ) -> Result<T, Errno> {
        self.change_names_and(&Answers::none(self), step)
    }

    /// The same with answers that are there already.
    pub(super) fn change_names_and<T>(
        &self,
        answers: &Answers<'_>,
        mut step: impl FnMut(&NamesWrite<'_>) -> Step<T>,
    ) -> Result<T, Errno> {
        loop {
            let (done, NamesRead { copied_up, dropped, .. }) = {
                let mut names = self.names.write();
                *names += 1;
                let _noted = Noted::names();
                answers.renew();
                let names = NamesWrite(NamesRead::new(answers, *names));
                (step(&names), names.0)
            };
            drop(dropped);
            copied_up.into_inner().into_iter().for_each(|node| self.guard_copied_up(node));
            match done {
                Ok(done) => return Ok(done),
                Err(Halt::Failed(err)) => return Err(err),
                Err(Halt::Ask) => answers.ask()?,
            }
        }
    }
}
