//! A fork-join pool for work that comes every few microseconds.
//!
//! A decode step of a small model is some 150 parallel sections of 10 to 50 microseconds, so the cost of waking a
//! thread (tens of microseconds through the kernel) would dominate. Workers spin for a short while after each section
//! and then park; a section that finds them spinning starts within a fraction of a microsecond. Work is taken in chunks
//! from an atomic counter, because cores are not equally fast and a virtual machine may lose one for a while.
//!
//! For the same reason, a section never waits for a worker that has not started: it ends when its chunks are done, and
//! a worker that is scheduled only afterwards finds it closed. With more threads than cores, this happens in every
//! section.
//!
//! Every section also runs on the calling thread, so a pool of one thread has no workers at all. Sections of different
//! callers take turns. A section that is started inside a section of the same pool runs on the thread that starts it.
//!
//! ```text
//! state   [ epoch | open: 1 bit | active: 10 bits ]
//!
//! caller  job = ..; state = (epoch + 1, open, 0); wake the parked; work; clear open; wait for active = 0
//! worker  wait for another epoch; if it is open, active += 1 (in one step); work; active -= 1
//! ```

use crate::KernelError;
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins for the next section before it parks.
const SPIN: Duration = Duration::from_micros(100);

/// Fields of [`Shared::state`]: the number of active workers, whether more may enter, and the step of the epoch.
const ACTIVE: usize = OPEN - 1;
const OPEN: usize = 1 << 10;
const EPOCH: usize = 1 << 11;

/// The job of a section: called at most once per thread with the thread's index.
type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// See the top of this file. The epoch counts sections; a change tells workers that `job` is new.
    state: AtomicUsize,
    /// Valid while a worker is active.
    job: JobCell,
    /// Workers that have finished the current section.
    finished: AtomicUsize,
    stop: AtomicBool,
    /// There are more threads than cores, so waiting threads give up their core at once.
    is_crowded: bool,
    /// Which workers are parked or about to be.
    parked: Vec<AtomicBool>,
    /// The payload of the first panic of a worker.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

thread_local! {
    /// The pool whose section this thread is in (the address of its `Shared`, or 0), and the thread's index.
    static INSIDE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Marks this thread as inside a section while `f` runs.
fn inside<R>(pool: usize, index: usize, f: impl FnOnce() -> R) -> R {
    struct Restore((usize, usize));
    impl Drop for Restore {
        fn drop(&mut self) {
            INSIDE.set(self.0);
        }
    }
    let _restore = Restore(INSIDE.replace((pool, index)));
    f()
}

struct JobCell(std::cell::UnsafeCell<Option<Job>>);

// SAFETY: written only by the thread that holds the pool's turn, while the section is closed and no worker is
// active; read by workers only while they are active.
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
    /// The largest number of threads of a pool.
    pub const MAX_THREADS: usize = 256;

    /// Creates a pool whose sections run on `n_threads` threads (1 to [`MAX_THREADS`](Self::MAX_THREADS)), including
    /// the calling thread.
    ///
    /// # Errors
    /// [`KernelError::Thread`] if the operating system cannot start a thread.
    pub fn new(n_threads: usize) -> Result<Self, KernelError> {
        let n_workers = n_threads.clamp(1, Self::MAX_THREADS) - 1;
        let n_cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            job: JobCell(std::cell::UnsafeCell::new(None)),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            is_crowded: n_threads > n_cores,
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

    /// Number of threads that a section runs on.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread)` once for every `thread` in `0..n_threads()`, each on a thread of its own, and returns when
    /// all are done. Inside a section of the same pool they run one after another.
    ///
    /// # Panics
    /// If the job panicked on any thread; the pool stays usable.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.inside().is_some() {
            return (0..self.n_threads()).for_each(job);
        }
        self.section(job, self.workers.len());
    }

    /// The index of this thread, if it is in a section of this pool.
    fn inside(&self) -> Option<usize> {
        let (pool, index) = INSIDE.get();
        (pool == self.address()).then_some(index)
    }

    /// An address that identifies the pool.
    fn address(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    /// Runs `job` on this thread and on the workers that join before it is done here; at least `n_needed` of them are
    /// waited for.
    fn section(&self, job: &(dyn Fn(usize) + Sync), n_needed: usize) {
        if self.workers.is_empty() {
            return inside(self.address(), 0, || job(0));
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: `turn` makes this thread the only writer, and no worker is active in a closed section.
        // The lifetime is extended only until this function returns, and it waits for every active worker first.
        unsafe {
            *shared.job.0.get() = Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job));
        }
        shared.finished.store(0, Ordering::Relaxed);
        let closed = shared.state.load(Ordering::Relaxed);
        // SeqCst here and in `wait_for_section`: a worker announces that it parks and then reads the epoch, while this
        // thread changes the epoch and then reads the announcements. At least one of them sees the other's write.
        shared.state.store(closed.wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for (parked, handle) in shared.parked.iter().zip(&self.handles) {
            if parked.load(Ordering::SeqCst) {
                handle.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| inside(self.address(), 0, || job(0))));
        self.wait_until(|| shared.finished.load(Ordering::Acquire) >= n_needed);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        self.wait_until(|| shared.state.load(Ordering::Acquire) & ACTIVE == 0);
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(turn);
        if let Some(payload) = mine.err().or(theirs) {
            resume_unwind(payload);
        }
    }

    /// Because of the chunks, threads finish within microseconds of each other. A longer wait means that a worker has
    /// lost its core, perhaps to this very loop.
    fn wait_until(&self, is_done: impl Fn() -> bool) {
        let mut spins = if self.shared.is_crowded { 1 << 10 } else { 0u32 };
        while !is_done() {
            spins = spins.saturating_add(1);
            if spins > 1 << 10 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// Cuts `0..n_items` into chunks of `chunk` items and calls `f(range, thread)` for each, on all threads.
    ///
    /// # Panics
    /// If `f` does, or `chunk` is 0.
    pub fn for_chunks(&self, n_items: usize, chunk: usize, f: impl Fn(Range<usize>, usize) + Sync) {
        assert_ne!(chunk, 0, "chunks have at least one item");
        if n_items <= chunk || self.workers.is_empty() || self.inside().is_some() {
            return self.alone(n_items, f);
        }
        let next = AtomicUsize::new(0);
        let job = |thread| {
            loop {
                let start = next.fetch_add(chunk, Ordering::Relaxed);
                if start >= n_items {
                    break;
                }
                f(start..n_items.min(start + chunk), thread);
            }
        };
        self.section(&job, 0);
    }

    /// As [`for_chunks`](Self::for_chunks), in stretches that start long and get shorter: for work that is fastest when
    /// a thread continues where it stopped, such as reading a stretch of memory.
    ///
    /// # Panics
    /// If `f` does.
    pub fn for_stretches(&self, n_items: usize, f: impl Fn(Range<usize>, usize) + Sync) {
        if n_items <= 1 || self.workers.is_empty() || self.inside().is_some() {
            return self.alone(n_items, f);
        }
        let share = 2 * self.n_threads();
        let next = AtomicUsize::new(0);
        let end_of = |start: usize| start + (n_items - start).div_ceil(share);
        let job = |thread| {
            while let Ok(start) = next
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |start| (start < n_items).then(|| end_of(start)))
            {
                f(start..end_of(start), thread);
            }
        };
        self.section(&job, 0);
    }

    /// Runs all items on this thread.
    fn alone(&self, n_items: usize, f: impl Fn(Range<usize>, usize)) {
        let index = self.inside().unwrap_or(0);
        if n_items > 0 {
            inside(self.address(), index, || f(0..n_items, index));
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // No thread is in a section, because a section would borrow the pool.
        self.shared.state.fetch_add(EPOCH, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its panics, so the result of `join` can be ignored.
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
        let enter = |state: usize| (state / EPOCH == seen && state & OPEN != 0).then_some(state + 1);
        if shared.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter).is_err() {
            continue;
        }
        // SAFETY: this worker is active now, in a section that was open: the job is in place, and it stays valid
        // until the decrement below.
        let job = unsafe { (*shared.job.0.get()).map(|job| &*job) };
        let pool = std::ptr::from_ref(shared).addr();
        if let Some(job) = job
            && let Err(payload) = catch_unwind(AssertUnwindSafe(|| inside(pool, index, || job(index))))
        {
            shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
        shared.finished.fetch_add(1, Ordering::Release);
        shared.state.fetch_sub(1, Ordering::Release);
    }
}

/// Spins, then parks, until the epoch is no longer `seen`; returns the new one.
fn wait_for_section(shared: &Shared, index: usize, seen: usize) -> usize {
    let epoch = || shared.state.load(Ordering::SeqCst) / EPOCH;
    let start = Instant::now();
    loop {
        for _ in 0..256 {
            let epoch = epoch();
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            break;
        }
        if shared.is_crowded {
            std::thread::yield_now();
        }
    }
    let parked = &shared.parked[index - 1];
    parked.store(true, Ordering::SeqCst);
    let epoch = loop {
        let epoch = epoch();
        if epoch != seen {
            break epoch;
        }
        std::thread::park();
    };
    parked.store(false, Ordering::SeqCst);
    epoch
}
