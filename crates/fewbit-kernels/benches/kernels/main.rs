//! The kernels on one thread, compared with what the machine can do: `cargo bench -p fewbit-kernels`.
//!
//! Items are multiply-adds (or sections), bytes are what must be read. `FEWBIT_ISA` restricts to one instruction set,
//! `FEWBIT_BENCH=Q4_0,attention` to cases whose name contains one of these words. With `--csv`, each case is one line,
//! with the fraction of the ceiling that it reaches: `cargo xtask record-bench` keeps those. With `--smoke`, small cases
//! run once, to see that they run.

mod attention;
mod products;
mod rows;
mod sections;

use std::time::{Duration, Instant};

use divan::counter::{BytesCount, ItemsCount};
use fewbit_kernels::{Cpu, ISA_VARIABLE, Isa, ceiling};

/// What one call of a case does.
#[derive(Clone, Copy, Default)]
struct Work {
    /// Multiply-adds, or whatever the case counts.
    items: usize,
    /// Bytes that have to be read.
    bytes: usize,
    /// Whether it is the multiply-adds that the int8 instruction bounds.
    is_int8: bool,
    /// Whether it is reading from memory that bounds it.
    is_read: bool,
}

/// A case that is set up: what a call does, and the call.
type Ready = (Work, Box<dyn FnMut()>);

/// A case: its name, its instruction set, and how to set it up.
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

/// Instruction sets to measure: the one that is asked for, or those of this CPU that are not the lot of lesser ones, which
/// take minutes. A smoke test takes all but the scalar definitions.
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

/// One line per case: the median of some runs, after one that is not counted.
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

/// Seconds of one call: the median of samples of at least a millisecond each.
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
