//! candle's `QMatMul` and `QLinear` in one run: `cargo bench -p fewbit-candle`.
//!
//! Each case is a matrix of a 1.1B model (5,632 x 2,048) with one row of input, as in decode, with 8, as in small
//! batches, and with 512, as in prefill. The two implementations are measured in turn, so that changes in the machine's
//! speed affect both; the figures are medians, in billions of multiply-adds per second. candle multiplies plain types
//! in f32, as fewbit does. With `--smoke`, a small matrix is multiplied once, to check that everything runs.

use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor};
use fewbit_candle::{Kernels, QLinear};

const TYPES: [GgmlDType; 12] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Number of measurements of each implementation.
const TURNS: usize = 7;

/// Minimum duration of a measurement.
const TURN: Duration = Duration::from_millis(40);

fn main() -> Result<()> {
    let smoke = std::env::args().any(|arg| arg == "--smoke");
    let (n_rows, n_cols) = if smoke { (64, 256) } else { (5632, 2048) };
    let kernels = Kernels::shared()?;
    println!("fewbit: {} on {} threads; GMAC/s", kernels.isa(), kernels.n_threads());
    println!("{:8}{:>6}{:>10}{:>10}{:>8}", "type", "rows", "candle", "fewbit", "ratio");
    let plain = Tensor::randn(0f32, 1f32, (n_rows, n_cols), &Device::Cpu)?;
    for ty in TYPES {
        let weights = std::sync::Arc::new(QTensor::quantize(&plain, ty)?);
        let (theirs, ours) = (QMatMul::from_arc(weights.clone())?, QLinear::from_arc(weights)?);
        for n in [1, 8, 512] {
            let x = Tensor::randn(0f32, 1f32, (n, n_cols), &Device::Cpu)?;
            if smoke {
                theirs.forward(&x)?;
                ours.forward(&x)?;
                continue;
            }
            let (mut candle, mut fewbit) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                candle.push(seconds(&theirs, &x)?);
                fewbit.push(seconds(&ours, &x)?);
            }
            let work = (n * n_rows * n_cols) as f64 * 1e-9;
            let (candle, fewbit) = (work / median(candle), work / median(fewbit));
            println!("{:8}{n:6}{candle:10.1}{fewbit:10.1}{:8.2}", format!("{ty:?}"), fewbit / candle);
        }
    }
    Ok(())
}

/// Seconds per product, after a first one that is not counted, which loads the weights and wakes the threads.
fn seconds(linear: &impl Module, x: &Tensor) -> Result<f64> {
    linear.forward(x)?;
    let (start, mut n) = (Instant::now(), 0);
    while start.elapsed() < TURN {
        linear.forward(x)?;
        n += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(n))
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
