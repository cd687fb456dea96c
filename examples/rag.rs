//! Answers a question from the texts of a folder (this project's documentation, or the one given):
//! `cargo run --release --example rag -- [FOLDER] [QUESTION]`.

use std::env;
use std::fs;

use fewbit::{Model, Pooling};
use instant_distance::{Builder, Point, Search};

/// A vector of length 1: the smaller the angle between two vectors, the closer the texts.
#[derive(Clone)]
struct Vector(Vec<f32>);

impl Point for Vector {
    fn distance(&self, other: &Self) -> f32 {
        1.0 - self.0.iter().zip(&other.0).map(|(a, b)| a * b).sum::<f32>()
    }
}

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
    let vectors = embedded.vectors.into_iter().map(Vector).collect();
    let index = Builder::default().seed(1).build(vectors, passages);

    let of_question = Vector(embed(std::slice::from_ref(&question))?.vectors.remove(0));
    let mut search = Search::default();
    let best: Vec<&str> = index.search(&of_question, &mut search).take(3).map(|item| item.value.as_str()).collect();
    for passage in &best {
        println!("- {}", passage.lines().next().unwrap_or_default());
    }

    let prompt = format!("{}\n\nAnswer from the text above, in one sentence: {question}", best.join("\n\n"));
    let mut chat = model.chat().temperature(0.0).max_tokens(80).start()?;
    println!("{question}\n{}", chat.send(prompt)?.text.trim());
    Ok(())
}
