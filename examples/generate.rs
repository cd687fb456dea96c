//! Continues a text and prints the speed: `cargo run --release --example generate`.
//!
//! The first run fetches SmolLM2 (98 MB). Arguments: the text, and a model's name or path.

use fewbit::Model;

fn main() -> Result<(), fewbit::Error> {
    let mut args = std::env::args().skip(1);
    let prompt = args.next().unwrap_or_else(|| "The three primary colours are".to_owned());
    let name = args.next().unwrap_or_else(|| "smollm2-135m-instruct".to_owned());

    let model = Model::load(name)?;
    let out = model.generate(&prompt).max_tokens(60).temperature(0.0).stop("\n\n").run()?;

    println!("{prompt}{}", out.text);
    println!(
        "\n{} tokens in, {} out at {:.0} tokens/s, loaded in {:.2} s, ended by {}",
        out.usage.prompt,
        out.usage.completion,
        out.timings.decode_tokens_per_second(),
        out.timings.load.as_secs_f64(),
        out.finish_reason,
    );
    Ok(())
}
