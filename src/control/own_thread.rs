//! Work that may take long, away from the event loops.

use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

/// Runs `work` on a thread of its own called `name`, or here if no thread can be started.
pub fn run(name: &str, work: impl FnOnce() + Send + 'static) {
    let slot = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&slot);
    let started = thread::Builder::new().name(name.to_owned()).spawn(move || run_once(&theirs));
    if let Err(err) = started {
        log::warn!("{name}: starting a thread: {err}: another request waits for this one");
        run_once(&slot);
    }
}

fn run_once(slot: &Mutex<Option<impl FnOnce()>>) {
    let work = slot.lock().take();
    if let Some(work) = work {
        work();
    }
}
