//! Product kernels on one thread: `cargo bench -p fewbit-kernels`.
//!
//! Every weight type on every instruction set of this CPU. `memory`: 65,536 x 2,048 weights, more than a cache
//! holds, with few rows, as in decode. `cache`: 1,024 x 512, the same work without waiting for memory. `batch`:
//! 4,096 x 2,048 with 512 rows, as in prefill. Items are multiply-adds, bytes are packed weights. What the machine
//! could do is printed first.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use fewbit_kernels::{ActivationKinds, Activations, Engine, Isa, ceiling};
use fewbit_quant::TensorType;

const TYPES: [TensorType; 6] =
    [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0, TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K];

fn main() {
    for isa in fast() {
        let engine = Engine::new(isa, 1).expect("available");
        let bandwidth = ceiling::read_bandwidth(&engine).expect("enough memory");
        let peak = ceiling::int8_peak(&engine).unwrap_or(f64::NAN);
        println!("{isa}: one thread reads {:.1} GB/s and multiplies {:.0} GMAC/s", bandwidth * 1e-9, peak * 1e-9);
    }
    divan::main();
}

fn fast() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter().filter(|&isa| isa != Isa::Scalar)
}

/// One kernel and a number of rows in the batch.
#[derive(Clone, Copy)]
struct Case {
    isa: Isa,
    ty: TensorType,
    n: usize,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} x {}", self.isa, self.ty, self.n)
    }
}

fn cases(rows: &'static [usize]) -> impl Iterator<Item = Case> {
    fast().flat_map(move |isa| TYPES.into_iter().flat_map(move |ty| rows.iter().map(move |&n| Case { isa, ty, n })))
}

#[divan::bench(args = cases(&[1, 2, 4, 8]), sample_count = 5, sample_size = 1)]
fn memory(bencher: Bencher<'_, '_>, case: &Case) {
    product(bencher, *case, 65_536, 2_048);
}

#[divan::bench(args = cases(&[1, 2]), sample_count = 20)]
fn cache(bencher: Bencher<'_, '_>, case: &Case) {
    product(bencher, *case, 1_024, 512);
}

#[divan::bench(args = cases(&[512]), sample_count = 5, sample_size = 1)]
fn batch(bencher: Bencher<'_, '_>, case: &Case) {
    product(bencher, *case, 4_096, 2_048);
}

fn product(bencher: Bencher<'_, '_>, case: Case, n_rows: usize, n_cols: usize) {
    let engine = Engine::new(case.isa, 1).expect("available");
    let n_bytes = case.ty.row_bytes(n_rows * n_cols).expect("whole blocks");
    // Any codes will do; small bytes keep the f16 scales finite.
    let bytes: Vec<u8> = (0..n_bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8 & 0x3F).collect();
    let weights = engine.pack(case.ty, n_rows, n_cols, &bytes).expect("packs");
    let x: Vec<f32> = (0..case.n * n_cols).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let mut activations = Activations::new();
    engine.activate(&x, n_cols, ActivationKinds::of([case.ty]), &mut activations);
    let mut out = vec![0.0; case.n * n_rows];
    bencher
        .counter(BytesCount::new(weights.n_bytes()))
        .counter(ItemsCount::new(case.n * n_rows * n_cols))
        .bench_local(|| engine.matmul(&weights, &activations, &mut out));
}
