//! A model that calls a function of the program: `cargo run --release --example tools`.
//!
//! Larger models decide by themselves to make a call; for a small one, a constraint forces it.

use fewbit::{Constraint, Model, Tool, ToolFallback};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Weather {
    #[schemars(length(min = 1, max = 20))]
    city: String,
}

fn weather(of: &Weather) -> String {
    format!("It is 21 degrees and sunny in {}.", of.city)
}

fn main() -> Result<(), fewbit::Error> {
    let model = Model::load("smollm2-135m-instruct")?;
    let tool = Tool::of::<Weather>("get_weather", "The weather in a city.");
    let call = json!({
        "type": "object",
        "properties": { "name": { "const": tool.name }, "arguments": tool.parameters },
        "required": ["name", "arguments"],
        "additionalProperties": false
    });
    // This model's template does not support tools, so they are described in the system message.
    let chat = model.chat().tools([tool]).tool_fallback(ToolFallback::SystemPrompt);
    let mut chat = chat.temperature(0.0).max_tokens(60).start()?;

    let answer = chat.ask("What is the weather in Paris?").constraint(Constraint::json_schema(call).compact()).run()?;
    assert_eq!(answer.tool_calls.len(), 1, "{}", answer.text);
    let mut results = Vec::new();
    for call in answer.tool_calls {
        let result = weather(&call.parse()?);
        println!("{}({}) -> {result}", call.name, call.arguments);
        results.push((call, json!(result)));
    }
    println!("{}", chat.send_tool_results(results)?);
    Ok(())
}
