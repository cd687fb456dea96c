//! Renders chat templates for a file of conversations, to compare with other implementations.
//!
//! `cargo run -p fewbit-tokenizer --example render -- TEMPLATE... < conversations.json` prints the same as
//! `tests/data/templates/render.py` for the same input.

use fewbit_tokenizer::{ChatTemplate, Clock, Message, TemplateInput, TokenKind, Tokenizer, Vocabulary};
use serde_json::{Map, Value, json};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let conversations: Vec<Map<String, Value>> = serde_json::from_reader(std::io::stdin())?;
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<pad>"].map(String::from).into();
    let tokenizer = Tokenizer::new(&Vocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        kinds: vec![TokenKind::Control; tokens.len()],
        tokens: tokens.into(),
        unknown: Some(0),
        bos: Some(1),
        eos: Some(2),
        padding: Some(3),
        ..Vocabulary::default()
    })?;
    let mut result = Map::new();
    for path in std::env::args().skip(1) {
        let source = std::fs::read_to_string(&path)?;
        let rows = conversations.iter().map(|conversation| match render(&source, &tokenizer, conversation) {
            Ok(text) => json!({ "text": text }),
            Err(error) => json!({ "error": error.to_string() }),
        });
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        result.insert(name, rows.collect());
    }
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}

fn render(source: &str, tokenizer: &Tokenizer, conversation: &Map<String, Value>) -> Result<String, AnyError> {
    let mut extra = conversation.clone();
    let messages = extra.shift_remove("messages").unwrap_or_default();
    let messages = messages.as_array().into_iter().flatten().cloned().map(Message::from_json);
    let messages = messages.collect::<Result<Vec<Message>, _>>()?;
    let input = TemplateInput {
        messages: &messages,
        add_generation_prompt: extra.shift_remove("add_generation_prompt") == Some(json!(true)),
        tools: extra.shift_remove("tools"),
        documents: extra.shift_remove("documents"),
        extra,
        clock: Clock::Fixed { unix_s: 1_741_064_767 },
    };
    let template = ChatTemplate::new(source, tokenizer)?;
    Ok(template.render(&input)?.text())
}
