//! A conversation of three turns, which computes each token of it once:
//! `cargo run --release --example chat`.

use fewbit::Model;

fn main() -> Result<(), fewbit::Error> {
    let model = Model::load("smollm2-135m-instruct")?;
    let mut chat = model.chat().system("You answer in one short sentence.").temperature(0.0).max_tokens(60).start()?;

    for question in ["What is the capital of France?", "Which river flows through it?", "Where does that river end?"] {
        let answer = chat.send(question)?;
        println!("> {question}\n{answer}");
        // What earlier turns left in the KV cache is not computed again.
        println!("  ({} of {} prompt tokens were cached)\n", answer.usage.cached, answer.usage.prompt);
    }
    Ok(())
}
