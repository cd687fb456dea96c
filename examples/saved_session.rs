//! A conversation that outlives the program: each run asks the next question and saves; the next run continues from the
//! file without recomputing earlier turns. Run it several times:
//! `cargo run --release --example saved_session`.

use std::path::Path;

use fewbit::{Chat, Error, ErrorKind, Model};

const QUESTIONS: [&str; 3] = ["My name is Ada. Who are you?", "What is my name?", "Tell me a short story about me."];

/// The conversation in the file, or a new one if there is none that fits this model.
fn begin(model: &Model, path: &Path) -> Result<Chat, Error> {
    let settings = || model.chat().temperature(0.0).max_tokens(60);
    if path.exists() {
        match settings().restore(path) {
            Err(error) if matches!(error.kind(), ErrorKind::Session) => {
                println!("a new conversation, because {error:#}");
            }
            other => return other,
        }
    }
    settings().system("You answer in one short sentence.").start()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load("smollm2-135m-instruct")?;
    let path = std::env::temp_dir().join("fewbit-example.session");
    let mut chat = begin(&model, &path)?;

    let asked = chat.messages().iter().filter(|message| message.role == "user").count();
    let Some(question) = QUESTIONS.get(asked) else {
        std::fs::remove_file(&path)?;
        println!("That was all; the next run begins anew.");
        return Ok(());
    };
    let answer = chat.send(*question)?;
    println!("> {question}\n{answer}");
    println!("  ({} of {} prompt tokens came from the file)", answer.usage.cached, answer.usage.prompt);
    chat.save(&path)?;
    println!("  saved to {}, {} KiB", path.display(), std::fs::metadata(&path)?.len() >> 10);
    Ok(())
}
