//! Conversations with tools: what the template gets, how calls come out, and that their text does not.

use fewbit::{Constraint, Model, Tool, ToolCall};
use serde_json::json;

use crate::{altered, load};

const TEMPLATE: &str = "{% if tools %}{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% endif %}\
    {% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}\
    <{{ c.function.name }} {{ c.id }}>{% endfor %}{% endif %}\n{% endfor %}assistant:";

fn model() -> Model {
    load(|b| b.chat_template(TEMPLATE))
}

fn add() -> Tool {
    Tool::new("add", "Adds.", json!({ "type": "object" }))
}

const CALL: &str = r#"<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>"#;

#[test]
fn a_call_is_read_and_its_result_goes_back() {
    let model = model();
    let mut chat = model.chat().tools([add()]).temperature(0.0).max_tokens(10).start().unwrap();
    let say = |text: &str| Constraint::choice([text]);
    let answer = chat.ask("1 + 2?").max_tokens(200).constraint(say(&format!("I add. {CALL}"))).run().unwrap();
    assert_eq!(answer.text, "I add.");
    let [call] = &answer.tool_calls[..] else { panic!("{:?}", answer.tool_calls) };
    assert_eq!((call.name.as_str(), &call.arguments), ("add", &json!({ "a": 1, "b": 2 })));
    let prompt = model.tokenizer().decode(&answer.prompt_tokens);
    assert!(prompt.starts_with("[add]"), "{prompt}");

    let results: Vec<(ToolCall, _)> = answer.tool_calls.iter().map(|call| (call.clone(), json!(3))).collect();
    let answer = chat.send_tool_results(results).unwrap();
    assert!(answer.tool_calls.is_empty());
    let prompt = model.tokenizer().decode(&answer.prompt_tokens);
    assert!(prompt.contains("<add call00000>") && prompt.contains("tool: 3"), "{prompt}");
    let roles: Vec<_> = chat.messages().iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
}

#[test]
fn a_model_with_a_template_for_tools_uses_it_where_there_are_tools() {
    let model = altered(
        |writer| {
            writer.set("tokenizer.chat_template", "plain:");
            writer.set("tokenizer.chat_template.tool_use", "{{ tools[0].function.name }}:");
        },
        |_, _| {},
    );
    let prompt = |tools: Vec<Tool>| {
        let mut chat = model.chat().tools(tools).temperature(0.0).max_tokens(1).start().unwrap();
        let prompt = chat.send("1 + 2?").unwrap().prompt_tokens;
        model.tokenizer().decode(&prompt)
    };
    assert_eq!(prompt(vec![]), "plain:");
    assert_eq!(prompt(vec![add()]), "add:");
}

#[test]
fn a_stream_shows_no_part_of_a_call() {
    let model = model();
    let shown = |text: &str, tools: Vec<Tool>| {
        let mut chat = model.chat().tools(tools).temperature(0.0).start().unwrap();
        let stream = chat.ask("?").max_tokens(300).constraint(Constraint::choice([text])).stream().unwrap();
        stream.map(|piece| piece.unwrap().text).collect::<String>()
    };
    assert_eq!(shown(&format!("So: {CALL}"), vec![add()]), "So: ");
    assert_eq!(shown(r#"{"name": "add", "parameters": {}}"#, vec![add()]), "");
    // What only looks like one comes out whole, and so does everything where there are no tools.
    for text in
        [r#"{"name": "other", "parameters": {}}"#, "a <tool_cal", "x < y <t", "<tool_call>{}</tool_call>", " \n{}"]
    {
        assert_eq!(shown(text, vec![add()]), text);
    }
    assert_eq!(shown(CALL, Vec::new()), CALL);
}

#[test]
fn a_failed_turn_takes_its_results_back() {
    let model = model();
    let mut chat = model.chat().tools([add()]).temperature(0.0).max_tokens(5).start().unwrap();
    let answer = chat.ask("?").max_tokens(200).constraint(Constraint::choice([CALL])).run().unwrap();
    let before = chat.messages().len();
    let long = json!("word ".repeat(5000));
    let results: Vec<_> = answer.tool_calls.into_iter().map(|call| (call, long.clone())).collect();
    assert!(matches!(chat.send_tool_results(results), Err(fewbit::Error::PromptTooLong { .. })));
    assert_eq!(chat.messages().len(), before);
}
