//! How fast candle runs a Llama model of a GGUF file, on the CPU or on a GPU: to be set beside `fewbit bench` of the same file.
//!
//! usage: cargo run --release -p fewbit-oracle --example candle_speed -- FILE.gguf [DEVICE [PROMPT [N_GEN]]]
//!
//! DEVICE is cpu, cuda:0 (add `--features cuda`; candle needs nvcc and a C++ compiler for it) or metal:0 (`--features metal`).
//! Candle's models are compiled without optimization in this workspace, where they are only compared; for a measurement
//! add `--config 'profile.release.package.candle-transformers.opt-level=3'`.

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

const REPETITIONS: usize = 5;

fn device(name: &str) -> Result<Device, Box<dyn Error>> {
    Ok(match name.split_once(':') {
        None if name == "cpu" => Device::Cpu,
        Some(("cuda", index)) => Device::new_cuda(index.parse()?)?,
        Some(("metal", index)) => Device::new_metal(index.parse()?)?,
        _ => return Err(format!("{name:?} is not a device: cpu, cuda:N or metal:N").into()),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(path) = args.first() else {
        return Err("usage: candle_speed FILE.gguf [DEVICE [PROMPT [N_GEN]]]".into());
    };
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |text| text.parse());
    let (prompt, n_gen) = (number(2, 512)?, number(3, 64)?);
    let device = device(args.get(1).map_or("cpu", String::as_str))?;
    let mut file = File::open(path)?;
    let content = Content::read(&mut file).map_err(|error| error.with_path(path))?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &device)?;

    // Logits are read back, which waits for the device. A step at position 0 begins a new sequence.
    let mut step = |tokens: &[u32], position: usize| -> candle_core::Result<f64> {
        let start = Instant::now();
        let input = Tensor::new(tokens, &device)?.unsqueeze(0)?;
        model.forward(&input, position)?.squeeze(0)?.to_vec1::<f32>()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let tokens: Vec<u32> = (0..prompt as u32).map(|i| i * 31 % 997 + 3).collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    // The first round is not counted: it reads the file, and compiles kernels.
    for round in 0..=REPETITIONS {
        let seconds = step(&tokens, 0)?;
        let steps = (0..n_gen).map(|i| step(&[tokens[i % prompt]], prompt + i)).sum::<candle_core::Result<f64>>()?;
        if round > 0 {
            prefill.push(prompt as f64 / seconds);
            decode.push(n_gen as f64 / steps);
        }
    }
    println!("        tokens  depth   tokens/s       min       max");
    for (name, n, depth, rates) in [("prefill", prompt, 0, &mut prefill), ("decode", n_gen, prompt, &mut decode)] {
        rates.sort_by(f64::total_cmp);
        let (median, min, max) = (rates[REPETITIONS / 2], rates[0], rates[REPETITIONS - 1]);
        println!("{name:7} {n:6} {depth:6} {median:10.1} {min:9.1} {max:9.1}");
    }
    Ok(())
}
