//! The cost of a parallel section that does nothing, which is the overhead of the pool, for sections in quick
//! succession. The cases with twice as many threads as cores stand for a machine that is busy with other work.

use fewbit_kernels::ThreadPool;

use crate::{Case, Ready, Work, isas};

pub(crate) fn cases() -> Vec<Case> {
    let n_cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut counts = vec![1, 2, n_cores, 2 * n_cores];
    counts.sort_unstable();
    counts.dedup();
    // The instruction set makes no difference here: the cases carry the name of the best one.
    let Some(isa) = isas().pop() else { return Vec::new() };
    let case = |name: &str, n: usize, set_up: fn(ThreadPool) -> Ready| Case {
        name: format!("section {name} on {n}"),
        isa,
        set_up: Box::new(move || set_up(ThreadPool::new(n).expect("threads"))),
    };
    counts.iter().flat_map(|&n| [case("chunks", n, chunks), case("all threads", n, all_threads)]).collect()
}

fn work() -> Work {
    Work { items: 1, ..Work::default() }
}

fn chunks(pool: ThreadPool) -> Ready {
    let call = move || {
        pool.for_chunks(64, 1, |range, _| {
            std::hint::black_box(range);
        });
    };
    (work(), Box::new(call))
}

fn all_threads(pool: ThreadPool) -> Ready {
    let call = move || {
        pool.run(&|thread| {
            std::hint::black_box(thread);
        });
    };
    (work(), Box::new(call))
}
