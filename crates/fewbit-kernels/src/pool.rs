//! A fork-join pool for work that comes every few microseconds.
//!
//! A decode step of a small model is some 150 parallel sections of 10 to 50 microseconds, so the cost of
//! waking a thread (tens of microseconds through the kernel) would be most of the time. Workers spin for a
//! short while after each section and then park; a section that finds them spinning starts within a
//! fraction of a microsecond. Work is taken in chunks from an atomic counter, because cores are not equally
//! fast and a virtual machine may lose one for a while.
//!
//! Every section runs on the calling thread as well, so a pool of one thread has no workers at all. Sections
//! of different callers take turns.

use crate::KernelError;
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins for the next section before it parks.
const SPIN: Duration = Duration::from_micros(100);

/// The job of a section: called once per thread with the thread's index.
type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Counts sections; a change tells workers that `job` is new. Odd and even have no meaning.
    epoch: AtomicUsize,
    /// Valid while `running` is not 0.
    job: JobCell,
    /// Workers that have not finished the current section.
    running: AtomicUsize,
    stop: AtomicBool,
    /// Which workers are parked or about to be.
    parked: Vec<AtomicBool>,
    /// What the first panicking worker threw.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

struct JobCell(std::cell::UnsafeCell<Option<Job>>);

// SAFETY: written only by the thread that holds the pool's turn while `running` is 0, read by workers only
// between the epoch's change and their decrement of `running`.
unsafe impl Sync for JobCell {}
// SAFETY: as above.
unsafe impl Send for JobCell {}

/// A pool of worker threads.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    turn: Mutex<()>,
}

impl ThreadPool {
    /// More threads than this are never of use.
    pub const MAX_THREADS: usize = 256;

    /// A pool in which sections run on `n_threads` threads (at least 1), the caller's included.
    ///
    /// # Errors
    /// [`KernelError::Thread`] if the operating system gives no thread.
    pub fn new(n_threads: usize) -> Result<Self, KernelError> {
        let n_workers = n_threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: JobCell(std::cell::UnsafeCell::new(None)),
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            parked: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), handles: Vec::new(), turn: Mutex::new(()) };
        for index in 1..=n_workers {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("fewbit-{index}"))
                .spawn(move || work(&shared, index))
                .map_err(|error| KernelError::Thread { index, reason: error.to_string() })?;
            pool.handles.push(worker.thread().clone());
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that a section runs on.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread)` once on every thread, `thread` in `0..n_threads()`, and returns when all are done.
    ///
    /// A job must not start a section of the same pool: it would wait for itself.
    ///
    /// # Panics
    /// If the job panicked on any thread; the pool stays usable.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: `turn` makes this thread the only writer, and no worker reads before the epoch changes.
        // The lifetime is extended only until this function returns, and it waits for every worker first.
        unsafe {
            *shared.job.0.get() = Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job));
        }
        shared.running.store(self.workers.len(), Ordering::Relaxed);
        // SeqCst here and in `wait_for_section`: a worker announces that it parks and then looks at the
        // epoch, this thread changes the epoch and then looks at the announcements; one of them sees.
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (parked, handle) in shared.parked.iter().zip(&self.handles) {
            if parked.load(Ordering::SeqCst) {
                handle.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut spins = 0u32;
        while shared.running.load(Ordering::Acquire) != 0 {
            // Chunks make the threads finish within microseconds of each other. A longer wait means that a
            // worker has lost its core, perhaps to this very loop.
            spins = spins.saturating_add(1);
            if spins > 1 << 10 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(payload) = mine.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Cuts `0..n_items` into chunks of `chunk` and calls `f(range, thread)` for each, on all threads.
    ///
    /// # Panics
    /// If `f` does, or `chunk` is 0.
    pub fn for_chunks(&self, n_items: usize, chunk: usize, f: impl Fn(Range<usize>, usize) + Sync) {
        assert_ne!(chunk, 0, "chunks have at least one item");
        if n_items <= chunk || self.workers.is_empty() {
            if n_items > 0 {
                f(0..n_items, 0);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|thread| {
            loop {
                let start = next.fetch_add(chunk, Ordering::Relaxed);
                if start >= n_items {
                    break;
                }
                f(start..n_items.min(start + chunk), thread);
            }
        });
    }

    /// As [`for_chunks`](Self::for_chunks), in stretches that begin long and get shorter: for work that is
    /// fastest when a thread goes on where it was, such as reading a stretch of memory.
    ///
    /// # Panics
    /// If `f` does.
    pub fn for_stretches(&self, n_items: usize, f: impl Fn(Range<usize>, usize) + Sync) {
        if n_items <= 1 || self.workers.is_empty() {
            if n_items > 0 {
                f(0..n_items, 0);
            }
            return;
        }
        let share = 2 * self.n_threads();
        let next = AtomicUsize::new(0);
        let end_of = |start: usize| start + (n_items - start).div_ceil(share);
        self.run(&|thread| {
            while let Ok(start) = next
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |start| (start < n_items).then(|| end_of(start)))
            {
                f(start..end_of(start), thread);
            }
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its panics, so there is nothing to hear from it.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("n_threads", &self.n_threads()).finish()
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        seen = wait_for_section(shared, index, seen);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the epoch has changed, so the job is in place, and it stays valid until `running` is 0,
        // which this worker's decrement below is part of.
        let job = unsafe { (*shared.job.0.get()).map(|job| &*job) };
        if let Some(job) = job
            && let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(index)))
        {
            shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// Spins, then parks, until the epoch is no longer `seen`; returns the new one.
fn wait_for_section(shared: &Shared, index: usize, seen: usize) -> usize {
    let start = Instant::now();
    loop {
        for _ in 0..256 {
            let epoch = shared.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            break;
        }
    }
    let parked = &shared.parked[index - 1];
    parked.store(true, Ordering::SeqCst);
    let epoch = loop {
        let epoch = shared.epoch.load(Ordering::SeqCst);
        if epoch != seen {
            break epoch;
        }
        std::thread::park();
    };
    parked.store(false, Ordering::SeqCst);
    epoch
}
