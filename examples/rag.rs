//! Answers a question from the texts of a folder (this project's documentation, or the one given):
//! `cargo run --release --example rag -- [FOLDER] [QUESTION]`.

use std::env;
use std::fs;

use fewbit::{Model, Pooling};

/// A prompt for models that were made to continue texts, not for embeddings: their hidden state says most about a text
/// just before they sum up its meaning in one word.
fn in_one_word(text: &str) -> String {
    format!("This text: \"{}\" means in one word: \"", text.replace('\n', " "))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let folder = args.next().unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/docs").to_owned());
    let question = args.next().unwrap_or_else(|| "What happens when I drop a stream?".to_owned());
    let model = Model::load("smollm2-135m-instruct")?;

    let mut passages = Vec::new();
    for entry in fs::read_dir(folder)? {
        // Files that are not text are left out.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        passages.extend(text.split("\n\n").filter(|part| (80..1000).contains(&part.len())).map(str::to_owned));
    }
    let embed = |texts: &[String]| model.embed(texts.iter().map(|text| in_one_word(text))).pooling(Pooling::Last).run();
    let embedded = embed(&passages)?;
    println!("{} passages, {} tokens, {:?}", passages.len(), embedded.usage.prompt, embedded.elapsed);

    // All of them are compared: for some thousand passages that takes less than the answer's first token, and misses
    // none. The vectors have length 1, so that their product is the cosine of the angle between them.
    let of_question = embed(std::slice::from_ref(&question))?.vectors.remove(0);
    let cosine = |vector: &Vec<f32>| vector.iter().zip(&of_question).map(|(a, b)| a * b).sum::<f32>();
    let mut ranked: Vec<_> = embedded.vectors.iter().map(cosine).zip(&passages).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best: Vec<&str> = ranked.iter().take(3).map(|(_, passage)| passage.as_str()).collect();
    for passage in &best {
        println!("- {}", passage.lines().next().unwrap_or_default());
    }

    let prompt = format!("{}\n\nAnswer from the text above, in one sentence: {question}", best.join("\n\n"));
    let mut chat = model.chat().temperature(0.0).max_tokens(80).start()?;
    println!("{question}\n{}", chat.send(prompt)?.text.trim());
    Ok(())
}
