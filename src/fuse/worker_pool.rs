//! Threads that answer requests, so that those that wait never keep the others waiting.
//!
//! A request may wait for as long as its backing file does: a slow disk, a server that is gone.
//! The event loops answer by themselves while another one is free to read the next request; the
//! last free one hands its request to a pool, whose threads are started when they are needed and
//! end when they are not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The most threads of the pool: as many requests may wait at one time and the rest goes on.
const MOST_THREADS: usize = 512;

/// Time that an idle thread of the pool waits for a request before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The event loops of a session, and the pool behind them.
pub(super) struct WorkerPool {
    loops: usize,
    /// Event loops that answer a request by themselves.
    busy: AtomicUsize,
    pool: Arc<Pool>,
}

/// An event loop that answers a request by itself.
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WorkerPool {
    pub(super) fn new(loops: usize) -> WorkerPool {
        WorkerPool { loops, busy: AtomicUsize::new(0), pool: Arc::default() }
    }

    /// Lets an event loop answer its request by itself, unless it is the last free one of several.
    pub(super) fn enter(&self) -> Option<Busy<'_>> {
        let busy = Busy(&self.busy);
        let others = self.busy.fetch_add(1, Ordering::AcqRel);
        (self.loops == 1 || others + 1 < self.loops).then_some(busy)
    }

    /// Does a job on a thread of the pool, or here when there can be no more threads.
    pub(super) fn elsewhere(&self, job: impl FnOnce() + Send + 'static) {
        if let Err(job) = Pool::take(&self.pool, Box::new(job)) {
            job();
        }
    }
}

#[derive(Default)]
struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job, and those that there are.
    idle: usize,
    threads: usize,
}

impl Pool {
    /// Gives the job back when no thread can take it.
    fn take(pool: &Arc<Pool>, job: Job) -> Result<(), Job> {
        let mut queue = pool.queue.lock();
        if queue.idle > queue.jobs.len() {
            queue.jobs.push_back(job);
            drop(queue);
            pool.wake.notify_one();
            return Ok(());
        }
        if queue.threads >= MOST_THREADS {
            return Err(job);
        }
        queue.threads += 1;
        // A thread that finds no job ends: the job is there before the thread is.
        queue.jobs.push_back(job);
        drop(queue);
        let worker = Worker(Arc::clone(pool));
        let spawned =
            std::thread::Builder::new().name(String::from("pool")).spawn(move || worker.work());
        match spawned {
            Ok(_) => Ok(()),
            Err(err) => {
                // The worker was dropped, and has counted itself out.
                log::error!("pool: starting a thread: {err}");
                match pool.queue.lock().jobs.pop_back() {
                    Some(job) => Err(job),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A thread of the pool; it counts itself out at its end, however that comes.
struct Worker(Arc<Pool>);

impl Worker {
    fn work(&self) {
        loop {
            let mut queue = self.0.queue.lock();
            if queue.jobs.is_empty() {
                queue.idle += 1;
                self.0.wake.wait_for(&mut queue, IDLE);
                queue.idle -= 1;
            }
            let Some(job) = queue.jobs.pop_front() else { return };
            drop(queue);
            job();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.queue.lock().threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_last_free_loop_hands_its_request_on() {
        let workers = WorkerPool::new(3);
        let (one, two) = (workers.enter(), workers.enter());
        assert!(one.is_some() && two.is_some());
        assert!(workers.enter().is_none());
        drop(one);
        assert!(workers.enter().is_some());
    }

    #[test]
    fn jobs_that_wait_for_one_another_all_end() {
        let workers = WorkerPool::new(2);
        let (ended, ends) = channel();
        let mut previous: Option<std::sync::mpsc::Sender<()>> = None;
        // Every job waits for the one that is handed on after it.
        for _ in 0..50 {
            let (sender, receiver) = channel::<()>();
            let (wakes, ended) = (previous.replace(sender), ended.clone());
            workers.elsewhere(move || {
                receiver.recv().unwrap();
                wakes.map_or(Ok(()), |wakes| wakes.send(())).unwrap();
                ended.send(()).unwrap();
            });
        }
        previous.unwrap().send(()).unwrap();
        for _ in 0..50 {
            ends.recv_timeout(Duration::from_secs(30)).unwrap();
        }
    }

    #[test]
    fn a_thread_that_panics_is_counted_out() {
        let workers = WorkerPool::new(1);
        workers.elsewhere(|| std::panic::resume_unwind(Box::new(())));
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while workers.pool.queue.lock().threads > 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
