//! Threads for work that would block the runtime: hashing pieces and writing them.
//!
//! Owns: the threads. Does not own: how much is queued, which the buffers bound.

use std::{
    panic::{self, AssertUnwindSafe},
    process, thread,
};

use crossbeam_channel::Sender;

/// Something to do on one of the threads.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// More than this many cores do not make one network card's bytes hash faster: 16 hash some 30 GB/s.
const THREADS_MAX: usize = 16;

/// A fixed set of threads that take jobs in order. They end when the last handle is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    jobs: Sender<Job>,
    count: usize,
}

impl Workers {
    /// One thread a core.
    pub(crate) fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let (jobs, queue) = crossbeam_channel::unbounded::<Job>();
        for number in 0..count {
            let queue = queue.clone();
            let work = move || {
                for job in queue {
                    if panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
                        // Somebody waits for what the job would have reported, and would wait for ever.
                        process::abort();
                    }
                }
            };
            if let Err(error) = thread::Builder::new().name(format!("check-{number}")).spawn(work) {
                // With none at all a job would wait for ever; one less only makes it slower.
                assert!(number > 0, "no thread can be started: {error}");
                break;
            }
        }
        Self { jobs, count }
    }

    /// How many jobs run at once.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Does `job` on one of the threads.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.run_boxed(Box::new(job));
    }

    /// The same, of a job that is kept as one.
    pub(crate) fn run_boxed(&self, job: Job) {
        // The threads live as long as this handle, so that nobody can have hung up.
        let sent = self.jobs.send(job);
        assert!(sent.is_ok(), "the workers outlive their handles");
    }
}
