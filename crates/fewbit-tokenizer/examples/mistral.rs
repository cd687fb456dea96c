//! Compares Mistral's tokenizers, and the chat templates for them, with Mistral's own library.
//!
//! `tests/data/mistral.py --folders DIR > tests/data/mistral_ids.json` lays out a folder for each tokenizer and
//! writes the ids; `cargo run --release -p fewbit-tokenizer --example mistral -- DIR` compares.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use fewbit_tokenizer::{ChatTemplate, Message, SpecialTokens, TemplateInput, Tokenizer, encode_rendered};
use serde::Deserialize;
use serde_json::Value;

type AnyError = Box<dyn std::error::Error>;

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
}

#[derive(Deserialize)]
struct Expected {
    conversations: Vec<Option<Vec<u32>>>,
    texts: Vec<Vec<u32>>,
}

fn main() -> Result<ExitCode, AnyError> {
    let folder = std::env::args_os().nth(1).ok_or("usage: mistral DIR")?;
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let read = |name| std::fs::read_to_string(data.join(name));
    let conversations: Vec<Conversation> = serde_json::from_str(&read("mistral_conversations.json")?)?;
    let texts: Vec<String> = serde_json::from_str(&read("texts.json")?)?;
    let expected: BTreeMap<String, Expected> = serde_json::from_str(&read("mistral_ids.json")?)?;
    let mut all_agree = true;
    for (name, expected) in &expected {
        let tokenizer = Tokenizer::from_hf_folder(&Path::new(&folder).join(name))?;
        let template = ChatTemplate::new(tokenizer.chat_template().ok_or("no template")?, &tokenizer)?;
        let mut n_agree = 0;
        for (conversation, expected) in conversations.iter().zip(&expected.conversations) {
            let messages = conversation.messages.iter().cloned().map(Message::from_json);
            let messages = messages.collect::<Result<Vec<_>, _>>()?;
            let input = TemplateInput { tools: conversation.tools.clone(), ..TemplateInput::new(&messages) };
            let rendered = template.render(&input);
            let found = rendered.as_ref().ok().map(|prompt| encode_rendered(&tokenizer, prompt));
            if found == *expected {
                n_agree += 1;
                continue;
            }
            println!("{name}: {:?}\n  expected {expected:?}\n  found    {found:?}", rendered.map(|r| r.text()));
            if let Some(ids) = expected {
                println!("  expected text {:?}", tokenizer.decode_with_special(ids));
            }
        }
        for (text, expected) in texts.iter().zip(&expected.texts) {
            let found = tokenizer.encode(text, SpecialTokens::Plain);
            if found == *expected {
                n_agree += 1;
            } else {
                println!("{name}: {text:?}\n  expected {expected:?}\n  found    {found:?}");
            }
        }
        let n_cases = conversations.len() + texts.len();
        println!("{name}: {n_agree} of {n_cases} agree");
        all_agree &= n_agree == n_cases;
    }
    Ok(if all_agree { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
