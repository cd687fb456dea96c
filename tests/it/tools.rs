//! Conversations with tools: the input of the template, parsed calls, and that their text is hidden.

use fewbit::{Constraint, Message, Model, Tool, ToolCall, ToolStyle};
use serde_json::json;

use crate::{altered, load};

const TEMPLATE: &str = "{% if tools %}{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% endif %}\
    {% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}\
    <{{ c.function.name }} {{ c.id }} {{ c.function.arguments | tojson }}>{% endfor %}{% endif %}\n{% endfor %}assistant:";

fn model() -> Model {
    load(|b| b.chat_template(TEMPLATE))
}

fn add() -> Tool {
    Tool::new("add", "Adds.", json!({ "type": "object" }))
}

const CALL: &str = r#"<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>"#;

#[test]
fn call_is_parsed_and_its_result_is_sent_back() {
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
    assert!(prompt.contains("<add call00000 {\"a\": 1, \"b\": 2}>") && prompt.contains("tool: 3"), "{prompt}");
    let roles: Vec<_> = chat.messages().iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
}

#[test]
fn tool_use_template_is_used_if_there_are_tools() {
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
fn streams_emit_no_part_of_a_call() {
    let model = model();
    let shown = |text: &str, tools: Vec<Tool>| {
        let mut chat = model.chat().tools(tools).temperature(0.0).start().unwrap();
        let stream = chat.ask("?").max_tokens(300).constraint(Constraint::choice([text])).stream().unwrap();
        stream.map(|piece| piece.unwrap().text).collect::<String>()
    };
    assert_eq!(shown(&format!("So: {CALL}"), vec![add()]), "So:");
    assert_eq!(shown(r#"{"name": "add", "parameters": {}}"#, vec![add()]), "");
    // Text that only looks like a call is output unchanged, and so is everything if there are no tools.
    for text in
        [r#"{"name": "other", "parameters": {}}"#, "a <tool_cal", "x < y <t", "<tool_call>{}</tool_call>", " \n{}"]
    {
        assert_eq!(shown(text, vec![add()]), text);
    }
    assert_eq!(shown(CALL, Vec::new()), CALL);
}

#[test]
fn streamed_pieces_add_up_to_the_answer() {
    let model = model();
    let text = format!("<think>\nAn easy one.\n</think>\n\nI add. {CALL}\n{CALL}");
    let ask = || {
        let mut chat = model.chat().tools([add()]).temperature(0.0).start().unwrap();
        let ask = chat.ask("?").max_tokens(400).constraint(Constraint::choice([text.as_str()]));
        let mut stream = ask.stream().unwrap();
        let pieces: Vec<_> = stream.by_ref().map(|piece| piece.unwrap()).collect();
        (pieces, stream.into_completion())
    };
    let (pieces, streamed) = ask();
    let mut chat = model.chat().tools([add()]).temperature(0.0).start().unwrap();
    let whole = chat.ask("?").max_tokens(400).constraint(Constraint::choice([text.as_str()])).run().unwrap();
    let of = |out: &fewbit::Completion| {
        (out.text.clone(), out.reasoning.clone(), out.tool_calls.clone(), out.finish_reason, out.tokens.clone())
    };
    assert_eq!(of(&streamed), of(&whole));
    assert_eq!((whole.text.as_str(), whole.reasoning.as_str()), ("I add.", "An easy one."));
    assert_eq!((whole.tool_calls.len(), whole.finish_reason), (2, fewbit::FinishReason::ToolCalls));
    assert_eq!(chat.messages()[1].fields["reasoning_content"], "An easy one.");
    assert_eq!(pieces.iter().map(|piece| piece.reasoning.as_str()).collect::<String>(), whole.reasoning);
    assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), whole.text);
    for (i, call) in whole.tool_calls.iter().enumerate() {
        let deltas: Vec<_> =
            pieces.iter().flat_map(|piece| &piece.tool_calls).filter(|delta| delta.index == i).collect();
        assert_eq!((deltas[0].name.as_deref(), deltas[0].id.as_deref()), (Some("add"), Some(call.id.as_str())));
        assert!(deltas.len() > 3 && deltas[1..].iter().all(|delta| delta.name.is_none()), "in pieces: {deltas:?}");
        let text: String = deltas.iter().map(|delta| delta.arguments.as_str()).collect();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), call.arguments);
    }

    // One call is enough where there may be no more.
    let mut chat = model.chat().tools([add()]).temperature(0.0).parallel_tool_calls(false).start().unwrap();
    let one = chat.ask("?").max_tokens(400).constraint(Constraint::choice([text.as_str()])).run().unwrap();
    assert_eq!((one.tool_calls.len(), one.finish_reason), (1, fewbit::FinishReason::ToolCalls));
    assert!(one.tokens.len() < whole.tokens.len());
}

#[test]
fn truncated_call_is_reported_as_malformed() {
    let model = model();
    let mut chat = model.chat().tools([add()]).temperature(0.0).start().unwrap();
    let cut = chat.ask("?").max_tokens(20).constraint(Constraint::choice([CALL])).run().unwrap();
    assert_eq!((cut.tool_calls.len(), cut.finish_reason), (0, fewbit::FinishReason::Length));
    assert!(CALL.starts_with(&cut.text) && cut.malformed_calls[0].text == cut.text, "{cut:?}");
}

#[test]
fn tools_are_never_silently_dropped() {
    use fewbit::{ToolError, ToolFallback};
    let model = load(|b| b);
    let refused = model.chat().tools([add()]).start();
    assert!(
        matches!(refused.as_ref().err().and_then(|e| e.cause()), Some(ToolError::TemplateWithoutTools { .. })),
        "{refused:?}"
    );
    let builder = model.chat().tools([add()]).tool_fallback(ToolFallback::SystemPrompt).temperature(0.0).max_tokens(4);
    let mut chat = builder.start().unwrap();
    let answer = chat.ask("1 + 2?").max_tokens(200).constraint(Constraint::choice([CALL])).run().unwrap();
    let prompt = model.tokenizer().decode(&answer.prompt_tokens);
    assert!(prompt.contains("\"name\":\"add\",\"description\":\"Adds.\""), "{prompt}");
    let results = answer.tool_calls.iter().map(|call| (call.clone(), json!(3)));
    let prompt = model.tokenizer().decode(&chat.send_tool_results(results).unwrap().prompt_tokens);
    assert!(prompt.contains("<tool_response>\n3\n</tool_response>") && prompt.contains("<tool_call>"), "{prompt}");
    let twice = model.chat().tools([add(), add()]).start();
    assert!(matches!(twice.as_ref().err().and_then(|e| e.cause()), Some(ToolError::SameName { .. })));
}

#[test]
fn template_for_single_calls_gets_one_call_per_message() {
    let source = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}\
        {% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one at a time') }}{% endif %}\
        {{ m.tool_calls[0].function | tojson }}={% else %}{{ m.content }};{% endif %}{% endfor %}";
    let model = load(|b| b.chat_template(source));
    let mut chat = model.chat().tools([add()]).temperature(0.0).max_tokens(2).start().unwrap();
    let both = r#"{"name": "add", "parameters": {"a": 1}}; {"name": "add", "parameters": {"a": 2}}"#;
    let answer = chat.ask("?").max_tokens(200).constraint(Constraint::choice([both])).run().unwrap();
    // In any order; each call has one.
    let [one, two] = &answer.tool_calls[..] else { panic!("{answer:?}") };
    let wrong = [(one.clone(), json!("x"))];
    assert!(matches!(
        chat.send_tool_results(wrong).as_ref().err().and_then(|e| e.cause()),
        Some(fewbit::ToolError::NoResult { .. })
    ));
    let results = [(two.clone(), json!("rainy")), (one.clone(), json!("sunny"))];
    let next = chat.send_tool_results(results).unwrap();
    let prompt = model.tokenizer().decode(&next.prompt_tokens);
    let call = |a: i32| format!("{{\"name\": \"add\", \"arguments\": {{\"a\": {a}}}}}=");
    assert!(prompt.ends_with(&format!("{}sunny;{}rainy;", call(1), call(2))), "{prompt}");
    // The conversation keeps the output of the model.
    assert_eq!(chat.messages()[1].fields["tool_calls"].as_array().unwrap().len(), 2);
}

#[test]
fn calls_not_rendered_by_the_template_become_text() {
    let call = json!([{"type": "function", "id": "a", "function": {"name": "add", "arguments": {"a": 1}}}]);
    let history = || {
        let asked = [Message::user("1?"), Message::assistant("So:").with_field("tool_calls", call.clone())];
        asked.into_iter().chain([Message::tool("add", Some("a"), "1")])
    };
    for (style, written) in [
        (ToolStyle::Hermes, "So:\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>"),
        (ToolStyle::Granite, "So:\n<|tool_call|>[{\"name\": \"add\", \"arguments\": {\"a\": 1}}]"),
    ] {
        // The template of these tests supports neither tools nor calls.
        let model = load(|b| b.tool_style(style));
        let mut chat = model.chat().history(history()).temperature(0.0).max_tokens(1).start().unwrap();
        let prompt = model.tokenizer().decode(&chat.reply().run().unwrap().prompt_tokens);
        assert!(prompt.contains(written) && prompt.contains("tool: 1"), "{prompt}");
        assert!(chat.messages().iter().any(|message| message.content == "So:"));
    }
}

/// As Gemma 2's: only user and model, in turns, and an error for anything else.
const NO_SYSTEM: &str = "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}\
    {{ raise_exception('No ' + m.role + '!') }}{% endif %}\
    {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('In turns!') }}{% endif %}\
    <{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";

#[test]
fn template_without_a_system_role_gets_it_in_the_user_message() {
    let model = load(|b| b.chat_template(NO_SYSTEM));
    let mut chat = model.chat().system("Be brief.").temperature(0.0).max_tokens(1).start().unwrap();
    let prompt = model.tokenizer().decode(&chat.send("Hi").unwrap().prompt_tokens);
    assert_eq!(prompt, "<user>Be brief.\n\nHi<assistant>");
    assert_eq!(chat.messages()[0].role, "system");
    let out = model.generate("Hi").templated().system("Be brief.").max_tokens(1).run().unwrap();
    assert_eq!(model.tokenizer().decode(&out.prompt_tokens), prompt);
    // So do descriptions of tools, and results come from the user.
    let builder = model.chat().system("Be brief.").tools([add()]).tool_fallback(fewbit::ToolFallback::SystemPrompt);
    let mut chat = builder.temperature(0.0).max_tokens(1).start().unwrap();
    let answer = chat.ask("1 + 2?").max_tokens(200).constraint(Constraint::choice([CALL])).run().unwrap();
    let prompt = model.tokenizer().decode(&answer.prompt_tokens);
    assert!(prompt.starts_with("<user>Be brief.\n\nYou can call these tools."), "{prompt}");
    assert!(prompt.ends_with("</tool_response>.\n\n1 + 2?<assistant>"), "{prompt}");
    let results = answer.tool_calls.iter().map(|call| (call.clone(), json!(3)));
    let prompt = model.tokenizer().decode(&chat.send_tool_results(results).unwrap().prompt_tokens);
    let end = "</tool_call><user><tool_response>\n3\n</tool_response><assistant>";
    assert!(prompt.ends_with(end), "{prompt}");
}

#[test]
fn saved_conversation_keeps_all_messages_and_fields() {
    use fewbit::expert::tokenizer::CallContent;
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tools.session");
    let calls = json!([{"type": "function", "id": "a1", "function": {"name": "add", "arguments": {"b": 2, "a": 1.0}}}]);
    let call = |form| Message::assistant("").with_field("tool_calls", calls.clone()).without_text(form);
    let history = [
        Message::user("").with_field("content", json!([{"type": "text", "text": "1?"}])),
        call(CallContent::Omitted).with_reasoning("Hm."),
        Message::tool("add", Some("a1"), "1"),
        call(CallContent::Null),
        Message::tool("add", Some("a2"), "2"),
    ];
    let chat = model.chat().tools([add()]).history(history.clone()).start().unwrap();
    chat.save(&path).unwrap();
    let restored = model.chat().tools([add()]).restore(&path).unwrap();
    // The model's own system message comes first, if it has one.
    assert!(restored.messages().ends_with(&history));
    // The order of fields too.
    assert_eq!(format!("{:?}", restored.messages()), format!("{:?}", chat.messages()));
}

#[test]
fn template_variables_reach_the_template() {
    let source = "{{ name | default('nobody') }} {{ effort | default('none') }} {{ messages[0].content }}";
    let model = load(|b| b.chat_template(source).template_var("name", "Ada"));
    let prompt = |ids: &[u32]| model.tokenizer().decode(ids);
    let plain = model.generate("Hi").templated().max_tokens(1).run().unwrap();
    assert_eq!(prompt(&plain.prompt_tokens).trim(), "Ada none Hi");
    let mut chat = model.chat().template_var("effort", json!({ "level": 3 })).max_tokens(1).start().unwrap();
    assert!(prompt(&chat.send("Hi").unwrap().prompt_tokens).contains("level"));
    let reserved = chat.ask("Hi").template_var("messages", json!([])).run();
    assert!(matches!(reserved.map_err(fewbit::Error::into_kind), Err(fewbit::ErrorKind::TemplateVariable { .. })));
}

#[test]
fn failed_turn_removes_its_tool_results() {
    let model = model();
    let mut chat = model.chat().tools([add()]).temperature(0.0).max_tokens(5).start().unwrap();
    let answer = chat.ask("?").max_tokens(200).constraint(Constraint::choice([CALL])).run().unwrap();
    let before = chat.messages().len();
    let long = json!("word ".repeat(5000));
    let results: Vec<_> = answer.tool_calls.into_iter().map(|call| (call, long.clone())).collect();
    assert!(matches!(
        chat.send_tool_results(results).map_err(fewbit::Error::into_kind),
        Err(fewbit::ErrorKind::TooLong { .. })
    ));
    assert_eq!(chat.messages().len(), before);
}
