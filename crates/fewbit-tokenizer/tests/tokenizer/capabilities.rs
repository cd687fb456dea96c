//! What templates can render, against Python's Jinja2 by the same rules: `tests/data/templates/capabilities.py --own`.

use fewbit_tokenizer::{ArgumentsForm, CallContent, ChatTemplate, Message, TokenKind, ToolCall, Vocabulary};
use fewbit_tokenizer::{TemplateInput, Tokenizer};
use serde_json::{Map, Value, json};

/// The special tokens that `capabilities.py` gives to templates.
fn tokenizer() -> Tokenizer {
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<pad>"].map(String::from).into();
    Tokenizer::new(&Vocabulary {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        kinds: vec![TokenKind::Control; tokens.len()],
        tokens: tokens.into(),
        unknown: Some(0),
        bos: Some(1),
        eos: Some(2),
        padding: Some(3),
        ..Vocabulary::default()
    })
    .expect("valid")
}

fn own_templates() -> Map<String, Value> {
    serde_json::from_str(include_str!("../data/templates/own_templates.json")).expect("valid")
}

fn load_template(name: &str, tokenizer: &Tokenizer) -> ChatTemplate {
    let sources = own_templates();
    ChatTemplate::new(sources[name].as_str().expect("a source"), tokenizer).expect("valid")
}

#[test]
fn capabilities_match_those_found_with_jinja2() {
    let expected: Map<String, Value> =
        serde_json::from_str(include_str!("../data/templates/own_capabilities.json")).expect("valid");
    let sources = own_templates();
    assert!(sources.len() > 20 && sources.keys().eq(expected.keys()));
    let tokenizer = tokenizer();
    for (name, mut expected) in expected {
        let template = load_template(&name, &tokenizer);
        let found = template.capabilities();
        // Python says which names could be variables; those that are only read must be there, others may.
        let names =
            |value: Option<Value>| -> Vec<String> { serde_json::from_value(value.expect("a list")).expect("names") };
        let fields = expected.as_object_mut().expect("an object");
        let (read, perhaps) = (names(fields.shift_remove("variables")), names(fields.shift_remove("perhaps")));
        assert!(read.iter().all(|x| found.variables.contains(x)), "{name}: {:?}", found.variables);
        assert!(
            found.variables.iter().all(|x| read.contains(x) || perhaps.contains(x)),
            "{name}: {:?}",
            found.variables
        );
        let found = json!({
            "system": found.system,
            "tools": found.tools,
            "tool_calls": found.tool_calls,
            "arguments": format!("{:?}", found.arguments),
            "call_content": format!("{:?}", found.call_content),
            "parallel_calls": found.parallel_calls,
            "tool_results": found.tool_results,
            "reasoning": found.reasoning,
        });
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn variables_set_to_themselves_are_found() {
    let tokenizer = tokenizer();
    let template = load_template("variables", &tokenizer);
    let names = ["effort", "enable_thinking", "hidden", "never_so", "quick", "suffix"];
    assert_eq!(template.capabilities().variables, names);
}

#[test]
fn messages_are_adapted_to_the_template() {
    let tokenizer = tokenizer();
    let call = ToolCall { id: Some("a1".into()), name: "f".into(), arguments: json!({"x": 1, "y": "é"}) };
    let messages = [Message::user("go"), Message::assistant("").with_tool_calls(&[call])];
    let render = |name: &str| {
        let template = load_template(name, &tokenizer);
        let fitted = template.fitted(&messages);
        template.render(&TemplateInput::new(&fitted)).expect("rendered").text()
    };
    let expected = "<user>go<assistant>f {\"x\": 1, \"y\": \"é\"}<assistant>";
    for name in ["object as JSON", "text joined", "text written", "only where content is null"] {
        assert_eq!(render(name), expected, "{name}");
    }
    assert_eq!(render("only where there is no content"), expected);

    // The text of a JSON object becomes an object again; other texts, and the content of messages, are unchanged.
    let object = load_template("object as JSON", &tokenizer);
    let text = |arguments: &str| {
        let call = ToolCall { id: None, name: "f".into(), arguments: arguments.into() };
        [Message::assistant("said").with_tool_calls(&[call])]
    };
    let arguments = |message: &Message| message.fields["tool_calls"][0]["function"]["arguments"].clone();
    assert_eq!(arguments(&object.fitted(&text("{\"x\": [1]}"))[0]), json!({"x": [1]}));
    assert_eq!(arguments(&object.fitted(&text("{\"x\": "))[0]), json!("{\"x\": "));
    let null = load_template("only where content is null", &tokenizer);
    assert_eq!(null.capabilities().call_content, CallContent::Null);
    assert_eq!(null.fitted(&text("{}"))[0].content, "said");
    assert_eq!(null.capabilities().arguments, ArgumentsForm::Object);
    assert_eq!(null.source(), own_templates()["only where content is null"]);
}
