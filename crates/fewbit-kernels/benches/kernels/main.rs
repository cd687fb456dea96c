//! The kernels on one thread, compared with the limits of the machine: `cargo bench -p fewbit-kernels`.
//!
//! Items are multiply-adds (or sections); bytes are those that have to be read. `FEWBIT_ISA` selects one instruction
//! set, `FEWBIT_BENCH=Q4_0,attention` the cases whose name contains one of these words. With `--csv`, each case is
//! printed as one line with the fraction of the ceiling that it reaches; `cargo xtask record-bench` stores these lines.
//! With `--smoke`, small cases run once, to check that they work.

mod attention;
mod products;
mod rows;
mod sections;

use std::time::{Duration, Instant};

use divan::counter::{BytesCount, ItemsCount};
use fewbit_kernels::{Cpu, ISA_VARIABLE, Isa, ceiling};

/// The work of one call of a case.
#[derive(Clone, Copy, Default)]
struct Work {
    /// Multiply-adds, or whatever the case counts.
    items: usize,
    /// Bytes that have to be read.
    bytes: usize,
    /// Whether the throughput of the int8 instruction is the limit.
    is_int8: bool,
    /// Whether memory read bandwidth is the limit.
    is_read: bool,
}

/// A prepared case: the work of one call, and the function to call.
type Ready = (Work, Box<dyn FnMut()>);

/// A case: its name, its instruction set, and the function that prepares it.
struct Case {
    name: String,
    isa: Isa,
    set_up: Box<dyn Fn() -> Ready + Send + Sync>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.isa, self.name)
    }
}

/// Instruction sets to measure: the one that `FEWBIT_ISA` names, or those of this CPU from AVX2 up (the best one if
/// there is no AVX2), as the slower ones take minutes. A smoke test runs all of them except the scalar definitions.
fn isas() -> Vec<Isa> {
    match std::env::var(ISA_VARIABLE) {
        Ok(name) if !name.is_empty() => vec![Isa::from_env().expect("an instruction set of this CPU")],
        _ => {
            let least = if has("--smoke") { Isa::Portable } else { Isa::best().min(Isa::Avx2) };
            Isa::available().into_iter().filter(|&isa| isa >= least).collect()
        }
    }
}

/// Whether this flag was given.
fn has(flag: &str) -> bool {
    std::env::args().any(|arg| arg == flag)
}

fn ceilings(isa: Isa) -> (f64, Option<f64>) {
    let cpu = Cpu::new(isa, 1).expect("available");
    (ceiling::read_bandwidth(&cpu).expect("enough memory"), ceiling::int8_peak(&cpu))
}

fn all(small: bool) -> Vec<Case> {
    [products::cases(small), attention::cases(small), rows::cases(small), sections::cases()]
        .into_iter()
        .flatten()
        .collect()
}

fn main() {
    if has("--smoke") {
        return all(true).iter().for_each(|case| (case.set_up)().1());
    }
    if has("--csv") {
        return csv();
    }
    for isa in isas() {
        let (read, int8) = ceilings(isa);
        let int8 = int8.map_or("no int8 instruction".to_owned(), |peak| format!("{:.0} GMAC/s", peak * 1e-9));
        println!("{isa}: one thread reads {:.1} GB/s and multiplies {int8}", read * 1e-9);
    }
    divan::main();
}

/// Prints one line per case: the median of several runs, after one warm-up run that is not counted.
fn csv() {
    println!("isa,case,seconds,gb_s,gitems_s,of_read,of_int8");
    let cases = all(false);
    for isa in isas() {
        let (read, int8) = ceilings(isa);
        println!(
            "{isa},ceiling,,{:.2},{},,",
            read * 1e-9,
            int8.map_or(String::new(), |peak| format!("{:.2}", peak * 1e-9))
        );
        for case in cases.iter().filter(|case| case.isa == isa) {
            let (work, mut call) = (case.set_up)();
            let seconds = median(&mut call);
            let fraction = |is: bool, rate: f64, of: Option<f64>| match of {
                Some(of) if is => format!("{:.3}", rate / of),
                _ => String::new(),
            };
            let (bytes, items) = (work.bytes as f64 / seconds, work.items as f64 / seconds);
            println!(
                "{isa},{},{seconds:.3e},{:.2},{:.3},{},{}",
                case.name,
                bytes * 1e-9,
                items * 1e-9,
                fraction(work.is_read, bytes, Some(read)),
                fraction(work.is_int8, items, int8)
            );
        }
    }
}

/// Seconds per call: the median of samples of at least a millisecond each.
fn median(call: &mut dyn FnMut()) -> f64 {
    let mut calls = 1u32;
    let mut sample = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed()
    };
    while sample(calls) < Duration::from_millis(1) && calls < 1 << 20 {
        calls *= 2;
    }
    let mut samples: Vec<f64> = (0..5).map(|_| sample(calls).as_secs_f64() / f64::from(calls)).collect();
    samples.sort_by(f64::total_cmp);
    samples[2]
}

#[divan::bench(args = all(false).into_iter().filter(Case::is_long), sample_count = 5, sample_size = 1)]
fn long(bencher: divan::Bencher<'_, '_>, case: &Case) {
    run(bencher, case);
}

#[divan::bench(args = all(false).into_iter().filter(|case| !case.is_long()), sample_count = 20)]
fn short(bencher: divan::Bencher<'_, '_>, case: &Case) {
    run(bencher, case);
}

impl Case {
    /// Whether a call takes milliseconds.
    fn is_long(&self) -> bool {
        !(self.name.starts_with("section") || self.name.starts_with("rows"))
    }
}

fn run(bencher: divan::Bencher<'_, '_>, case: &Case) {
    let (work, mut call) = (case.set_up)();
    bencher.counter(BytesCount::new(work.bytes)).counter(ItemsCount::new(work.items)).bench_local(&mut call);
}
