//! Prints an answer while it is generated and stops it after three sentences:
//! `cargo run --release --example stream`.

use std::io::Write;

use fewbit::Model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load("smollm2-135m-instruct")?;
    let question = std::env::args().nth(1).unwrap_or_else(|| "Why is the sky blue?".to_owned());

    let mut stdout = std::io::stdout().lock();
    let mut sentences = 0;
    for piece in model.generate(question).templated().temperature(0.0).stream()? {
        let piece = piece?;
        stdout.write_all(piece.text.as_bytes())?;
        stdout.flush()?;
        sentences += piece.text.matches(['.', '!', '?']).count();
        // Leaving the loop is enough: each step is computed only on demand.
        if sentences >= 3 {
            break;
        }
    }
    writeln!(stdout)?;
    Ok(())
}
