//! How fast would a model of this shape be here? `cargo run --release --example bench [SHAPE TYPE]`.
//!
//! Measures random weights, which need no download, and prints how many tokens per second each of several users would
//! get.

use fewbit::bench::{Bench, BenchTest, Target};
use fewbit::expert::DeviceOptions;
use fewbit::expert::engine::LoadOptions;
use fewbit::random::{RandomWeights, Shape};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let shape = Shape::named(&args.next().unwrap_or_else(|| "smollm2-135m".to_owned()))?;
    let weights = RandomWeights::new(shape, &args.next().unwrap_or_else(|| "Q4_K_M".to_owned()))?;

    let target = Target::random(&weights, &LoadOptions::new(), &DeviceOptions::new())?;
    let report = Bench::new().prompt([64]).n_gen([16]).batch([1, 2, 4]).repetitions(1).run(&target)?;
    println!("{}: {} MB of weights, {}", shape.name, report.weight_bytes / 1_000_000, report.isa);
    for result in &report.results {
        let rate = result.tokens_per_s.median;
        let of_ceiling =
            result.fraction.map_or(String::new(), |f| format!(", {:.0} % of what the machine can", 100.0 * f));
        match result.test {
            BenchTest::Prefill { prompt, .. } => println!("a prompt of {prompt}: {rate:.0} tokens/s{of_ceiling}"),
            BenchTest::Decode { batch, .. } => {
                println!("{batch} at a time: {:.1} tokens/s each{of_ceiling}", rate / batch as f64)
            }
            _ => {}
        }
    }
    Ok(())
}
