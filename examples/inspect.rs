//! Will a model fit? `cargo run --release --example inspect --features hub [MODEL]`.
//!
//! Inspects a model by its headers. For a model on the Hugging Face Hub that is not on this machine, only those are
//! fetched.

use fewbit::Model;
use fewbit::expert::engine::available_bytes;
use fewbit::quantize::Recipe;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "tests/data/stories260K-f32.gguf".to_owned());
    let model = Model::builder().inspect(&name)?;
    if let Some(remote) = model.remote() {
        println!("{} of {} bytes were fetched to see this", remote.fetched_bytes(), remote.total_bytes());
    }
    println!("{name}: {} weights, {:.2} bits each", model.n_weights(), model.bits_per_weight());
    for (name, of_type) in model.types() {
        println!("  {name}: {} tensors, {} bytes", of_type.tensors, of_type.bytes);
    }

    // The same model as it would be after quantizing, with half of its maximum context.
    let n_ctx = model.context_length().unwrap_or(4096) / 2;
    let smaller = Model::builder().quantize(Recipe::Q4_K_M).inspect(&name)?;
    for (what, model) in [("as it is", &model), ("as Q4_K_M", &smaller)] {
        let needed = model.memory(n_ctx)?.total_bytes();
        let fits = available_bytes().is_none_or(|free| needed < free);
        println!("{what}, {n_ctx} tokens of context: {needed} bytes, {}", if fits { "fits" } else { "does not fit" });
    }
    Ok(())
}
