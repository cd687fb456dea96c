//! Which quantization is enough? `cargo run --release --example compare [MODEL TEXT]`.
//!
//! Quantizes a model in memory to several types and measures the cost of each on a text, with standard errors.

use fewbit::Model;
use fewbit::evaluate::{Compare, PerplexityOptions};
use fewbit::quantize::Recipe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().unwrap_or_else(|| "tests/data/stories260K-f32.gguf".to_owned());
    let text = std::fs::read_to_string(args.next().unwrap_or_else(|| "tests/data/prose.txt".to_owned()))?;

    let model = Model::load(model)?;
    let types = [Recipe::Q8_0, Recipe::Q5_K_M, Recipe::Q4_K_M];
    let windows = PerplexityOptions::default().ctx(128).chunks(8);
    let found = Compare::new(&model, types).windows(windows).run(&text)?;

    println!("{} tokens scored", found.tokens_scored);
    for row in &found.rows {
        println!(
            "{:8} {:5.2} bits  perplexity {:.2} ± {:.2}  KL {:.4} ± {:.4} nats",
            row.name(),
            row.bits_per_weight,
            row.perplexity,
            row.perplexity_stderr,
            row.kl,
            row.kl_stderr,
        );
    }
    let enough = found.rows.iter().filter(|row| row.kl < 0.01).min_by_key(|row| row.weight_bytes);
    println!("the smallest that differs by less than 0.01 nats: {}", enough.map_or("none", |row| row.name()));
    Ok(())
}
