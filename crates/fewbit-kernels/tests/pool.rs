//! The thread pool: every item once, no deadlock however sections are started, and a pool that goes on after a panic.

use fewbit_kernels::ThreadPool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const RELAXED: Ordering = Ordering::Relaxed;

fn pool(n_threads: usize) -> ThreadPool {
    ThreadPool::new(n_threads).expect("threads")
}

/// How often each item was seen.
struct Seen(Vec<AtomicUsize>);

impl Seen {
    fn new(n: usize) -> Self {
        Self((0..n).map(|_| AtomicUsize::new(0)).collect())
    }

    fn add(&self, items: impl IntoIterator<Item = usize>) {
        for i in items {
            self.0[i].fetch_add(1, RELAXED);
        }
    }

    fn all(&self, times: usize) -> bool {
        self.0.iter().all(|seen| seen.load(RELAXED) == times)
    }
}

#[test]
fn every_item_is_processed_once() {
    // The last of them have more threads than most machines have cores.
    for n_threads in [1, 2, 3, 8, 33] {
        let pool = pool(n_threads);
        for n_items in [0, 1, 2, 7, 100, 1000] {
            for chunk in [1, 3, 64, 5000] {
                let seen = Seen::new(n_items);
                pool.for_chunks(n_items, chunk, |range, thread| {
                    assert!(thread < n_threads && !range.is_empty());
                    seen.add(range);
                });
                assert!(seen.all(1), "{n_threads} threads, {n_items} items in chunks of {chunk}");
            }
            let seen = Seen::new(n_items);
            pool.for_stretches(n_items, |range, _| seen.add(range));
            assert!(seen.all(1), "{n_threads} threads, {n_items} items in stretches");
        }
    }
}

#[test]
fn a_job_runs_once_on_every_thread() {
    for n_threads in [1, 2, 5, 16] {
        let pool = pool(n_threads);
        let (seen, barrier) = (Seen::new(n_threads), Barrier::new(n_threads));
        for _ in 0..200 {
            pool.run(&|thread| {
                // Passed only if all threads are here at the same time.
                barrier.wait();
                seen.add([thread]);
            });
        }
        assert!(seen.all(200), "{n_threads} threads");
    }
}

#[test]
fn sections_run_after_pauses_and_in_quick_succession() {
    let pool = pool(3);
    let seen = Seen::new(16);
    for round in 0..3000 {
        pool.for_chunks(16, 1, |range, _| seen.add(range));
        // Shorter and longer than workers spin, so that they are met spinning, parking and parked.
        if round % 100 == 0 {
            std::thread::sleep(Duration::from_micros(round % 400));
        }
    }
    assert!(seen.all(3000));
}

#[test]
fn callers_on_many_threads_take_turns() {
    let pool = pool(4);
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..300 {
                    pool.for_chunks(50, 4, |range, _| {
                        sum.fetch_add(range.sum(), RELAXED);
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 6 * 300 * 1225);
}

#[test]
fn nested_section_runs_on_the_calling_thread() {
    let (outer, other) = (pool(3), pool(2));
    let (seen, seen_by_run, seen_by_other) = (Seen::new(40 * 10), Seen::new(40 * 3), Seen::new(40 * 10));
    outer.for_chunks(40, 1, |range, thread| {
        for i in range {
            outer.for_chunks(10, 2, |inner, inner_thread| {
                assert_eq!(thread, inner_thread);
                outer.for_stretches(inner.len(), |part, _| {
                    seen.add(part.map(|j| 10 * i + inner.start + j));
                });
            });
            outer.run(&|index| seen_by_run.add([3 * i + index]));
            // Another pool's threads are free.
            other.for_chunks(10, 3, |inner, _| seen_by_other.add(inner.map(|j| 10 * i + j)));
        }
    });
    assert!(seen.all(1) && seen_by_run.all(1) && seen_by_other.all(1));
}

#[test]
fn panic_reaches_the_caller_and_the_pool_stays_usable() {
    for n_threads in [1, 2, 4] {
        let pool = pool(n_threads);
        for bad in 0..n_threads {
            let job = |thread: usize| assert_ne!(thread, bad, "expected in this test");
            assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&job))).is_err());
        }
        for bad in [0, 13, 63] {
            let job = || pool.for_chunks(64, 1, |range, _| assert!(!range.contains(&bad), "expected in this test"));
            assert!(catch_unwind(AssertUnwindSafe(job)).is_err());
            let nested = || pool.for_chunks(4, 1, |_, _| job_inside(&pool));
            assert!(catch_unwind(AssertUnwindSafe(nested)).is_err());
        }
        // Not inside a section any more, on any thread: all threads take part.
        let barrier = Barrier::new(n_threads);
        pool.run(&|_| {
            barrier.wait();
        });
        let seen = Seen::new(1000);
        pool.for_chunks(1000, 7, |range, _| seen.add(range));
        assert!(seen.all(1));
    }
}

fn job_inside(pool: &ThreadPool) {
    pool.for_chunks(8, 1, |_, _| panic!("expected in this test"));
}

#[test]
fn pools_can_be_dropped_while_workers_spin_park_or_are_unused() {
    for round in 0..60 {
        let pool = pool(1 + round % 7);
        if round % 3 > 0 {
            pool.for_chunks(100, 1, |range, _| {
                std::hint::black_box(range);
            });
        }
        if round % 3 > 1 {
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

#[test]
fn the_number_of_threads_is_bounded() {
    assert_eq!(pool(0).n_threads(), 1);
    assert_eq!(pool(3).n_threads(), 3);
    assert_eq!(pool(usize::MAX).n_threads(), ThreadPool::MAX_THREADS);
}
