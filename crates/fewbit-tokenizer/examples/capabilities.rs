//! Prints what chat templates can render, to compare with `tests/data/templates/capabilities.py`.
//!
//! `cargo run -p fewbit-tokenizer --example capabilities -- TEMPLATE...` prints the same as that script.

use fewbit_tokenizer::{ChatTemplate, TokenKind, Tokenizer, Vocabulary};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
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
        let row = match ChatTemplate::new(&source, &tokenizer) {
            Ok(template) => row(&template),
            Err(error) => json!({ "error": error.to_string() }),
        };
        let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
        result.insert(name, row);
    }
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}

fn row(template: &ChatTemplate) -> Value {
    let found = template.capabilities();
    json!({
        "system": found.system,
        "tools": found.tools,
        "tool_calls": found.tool_calls,
        "arguments": format!("{:?}", found.arguments),
        "call_content": format!("{:?}", found.call_content),
        "parallel_calls": found.parallel_calls,
        "tool_results": found.tool_results,
        "reasoning": found.reasoning,
        "variables": found.variables,
    })
}
