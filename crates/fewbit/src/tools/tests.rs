//! A table of tests: each style with one call and several, cut into pieces of every size, inside reasoning, with marks
//! in strings, and cut off.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::parser::{Parser, Part, Setup};
use super::{ReasoningStyle, Tool, ToolStyle};

fn tools() -> Arc<[Tool]> {
    let schema = json!({ "type": "object", "properties": {
        "city": { "type": "string" }, "days": { "type": "integer" }, "code": { "type": "string" },
        "more": { "type": "array" },
    } });
    ["get_weather", "run"].map(|name| Tool::new(name, "", schema.clone())).into()
}

fn setup(style: ToolStyle) -> Setup {
    Setup { style, reasoning: None, opened: None, tools: tools(), taken_ids: Arc::default(), n_earlier: 0 }
}

/// The result of reading an answer.
#[derive(Debug, Default, PartialEq)]
struct Read {
    text: String,
    reasoning: String,
    /// Name, arguments, id.
    calls: Vec<(String, Value, String)>,
    /// Texts that began like calls but are none.
    malformed: Vec<String>,
}

/// Reads an answer in pieces of `n` characters. Checks that the sources of all parts are the answer, and that the
/// deltas add up to the calls.
fn read_by(setup: &Setup, answer: &str, n: usize) -> Read {
    let mut parser = Parser::new(setup);
    let mut parts = Vec::new();
    let all: Vec<char> = answer.chars().collect();
    for piece in all.chunks(n.max(1)) {
        parts.extend(parser.push(&piece.iter().collect::<String>()));
    }
    parts.extend(parser.finish("length"));
    let (mut read, mut source, mut begun): (Read, String, Vec<(String, String)>) = Default::default();
    for part in parts {
        match part {
            Part::Text(text) => {
                source += &text;
                read.text += &text;
            }
            Part::Reasoning(text) => {
                source += &text;
                read.reasoning += &text;
            }
            Part::Dropped(text) | Part::Gap(text) => source += &text,
            Part::Regained(text) => read.text += &text,
            Part::Between(text) => read.reasoning += text,
            Part::Begin { index, name, .. } => {
                assert_eq!(index, read.calls.len(), "{answer}");
                begun.truncate(index);
                begun.push((name, String::new()));
            }
            Part::Arguments { index, text } => begun[index].1 += &text,
            Part::End { index, call, source: text, .. } => {
                source += &text;
                let (name, arguments) = &begun[index];
                assert_eq!((name, index), (&call.name, read.calls.len()), "{answer}");
                assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), call.arguments, "{answer}");
                read.calls.push((call.name, call.arguments, call.id));
            }
            Part::Malformed(call) => read.malformed.push(call.text),
        }
    }
    assert_eq!(source, answer, "in pieces of {n}");
    read
}

/// Reads an answer, and checks that the size of the pieces makes no difference.
fn read_with(setup: &Setup, answer: &str) -> Read {
    let whole = read_by(setup, answer, usize::MAX);
    for n in [1, 2, 3, 7] {
        assert_eq!(read_by(setup, answer, n), whole, "in pieces of {n}");
    }
    whole
}

fn read(style: ToolStyle, answer: &str) -> Read {
    read_with(&setup(style), answer)
}

/// A call in each style, with an argument `code`.
fn call(style: ToolStyle, code: &str) -> String {
    let json = json!({ "code": code, "days": 2 });
    let quoted = Value::from(code);
    match style {
        ToolStyle::Hermes => format!("<tool_call>\n{{\"name\": \"run\", \"arguments\": {json}}}\n</tool_call>"),
        ToolStyle::Qwen3Coder => format!(
            "<tool_call>\n<function=run>\n<parameter=code>\n{code}\n</parameter>\n<parameter=days>\n2\n</parameter>\n\
             </function>\n</tool_call>"
        ),
        ToolStyle::Glm => format!(
            "<tool_call>run\n<arg_key>code</arg_key>\n<arg_value>{code}</arg_value>\n<arg_key>days</arg_key>\n\
             <arg_value>2</arg_value>\n</tool_call>"
        ),
        ToolStyle::Lfm2 => format!("<|tool_call_start|>[run(code={quoted}, days=2)]<|tool_call_end|>"),
        ToolStyle::Olmo => format!("<function_calls>run(code={quoted}, days=2)</function_calls>"),
        ToolStyle::Hunyuan => {
            format!("<tool_calls>[{{\"name\": \"run\", \"arguments\": {json}}}]</tool_calls>")
        }
        ToolStyle::Seed => format!(
            "<seed:tool_call>\n<function=run>\n<parameter=code>{code}</parameter>\n<parameter=days>2</parameter>\n\
             </function>\n</seed:tool_call>"
        ),
        ToolStyle::DeepSeekR1 => format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>run\n```json\n{json}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        ToolStyle::DeepSeekV31 => format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>run<｜tool▁sep｜>{json}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        ToolStyle::Kimi => format!(
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.run:0<|tool_call_argument_begin|>{json}\
             <|tool_call_end|><|tool_calls_section_end|>"
        ),
        ToolStyle::Cohere => format!(
            "<|START_ACTION|>[\n    {{\"tool_call_id\": \"0\", \"tool_name\": \"run\", \"parameters\": {json}}}\n]<|END_ACTION|>"
        ),
        ToolStyle::Gemma4 => format!("<|tool_call>call:run{{code:<|\"|>{code}<|\"|>,days:2}}<tool_call|>"),
        ToolStyle::Llama3Json => format!("{{\"name\": \"run\", \"parameters\": {json}}}"),
        ToolStyle::Llama3Pythonic => format!("[run(code={quoted}, days=2)]"),
        ToolStyle::MistralList => {
            format!("[TOOL_CALLS] [{{\"name\": \"run\", \"arguments\": {json}, \"id\": \"abcdefghi\"}}]")
        }
        ToolStyle::MistralCallId => format!("[TOOL_CALLS]run[CALL_ID]q1w2e3r4t[ARGS]{json}"),
        ToolStyle::MistralArgs => format!("[TOOL_CALLS]run[ARGS]{json}"),
        ToolStyle::Granite => format!("<|tool_call|>[{{\"name\": \"run\", \"arguments\": {json}}}]"),
        ToolStyle::Phi4 => format!("<|tool_call|>[{{\"name\": \"run\", \"arguments\": {json}}}]<|/tool_call|>"),
        ToolStyle::Harmony => {
            format!("<|channel|>commentary to=functions.run <|constrain|>json<|message|>{json}<|call|>")
        }
        ToolStyle::Json | ToolStyle::Generic => format!("```json\n{{\"name\": \"run\", \"arguments\": {json}}}\n```"),
    }
}

/// Two calls.
fn two_calls(style: ToolStyle) -> &'static str {
    match style {
        ToolStyle::Hermes | ToolStyle::Generic => {
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n\
             <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>"
        }
        ToolStyle::Qwen3Coder => {
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n\
             <tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
        }
        ToolStyle::Glm => {
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>\n\
             <tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>"
        }
        ToolStyle::Lfm2 => {
            "<|tool_call_start|>[get_weather(city='Paris'), get_weather(city=\"Rome\")]<|tool_call_end|>"
        }
        ToolStyle::Olmo => "<function_calls>\nget_weather(city='Paris')\nget_weather(city=\"Rome\")\n</function_calls>",
        ToolStyle::Hunyuan => {
            "<answer>\n<tool_calls>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, \
             {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}]</tool_calls>\n</answer>"
        }
        ToolStyle::Seed => {
            "<seed:tool_call><function=get_weather><parameter=city>Paris</parameter></function></seed:tool_call>\n\
             <seed:tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</seed:tool_call>"
        }
        ToolStyle::DeepSeekR1 => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n```\
             <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n{\"city\": \"Rome\"}\n\
             <｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        ToolStyle::DeepSeekV31 => {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜>\
             <｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rome\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        }
        ToolStyle::Kimi => {
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>\
             {\"city\": \"Paris\"}<|tool_call_end|><|tool_call_begin|>functions.get_weather:1<|tool_call_argument_begin|>\
             {\"city\": \"Rome\"}<|tool_call_end|><|tool_calls_section_end|>"
        }
        ToolStyle::Cohere => {
            "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}},\n    \
             {\"tool_call_id\": \"1\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}\n]<|END_ACTION|>"
        }
        ToolStyle::Gemma4 => {
            "<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>}<tool_call|>\
             <|tool_call>call:get_weather{ \"city\": \"Rome\" }<tool_call|>"
        }
        ToolStyle::Llama3Json => {
            "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; \
             {\"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\"}}"
        }
        ToolStyle::Llama3Pythonic => "[get_weather(city='Paris'), get_weather(city=\"Rome\")]",
        ToolStyle::MistralList => {
            "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, \
             {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}]"
        }
        ToolStyle::MistralCallId => {
            "[TOOL_CALLS]get_weather[CALL_ID]aaaaaaaaa[ARGS]{\"city\": \"Paris\"}\
             [TOOL_CALLS]get_weather[CALL_ID]bbbbbbbbb[ARGS]{\"city\": \"Rome\"}"
        }
        ToolStyle::MistralArgs => {
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]get_weather{\"city\": \"Rome\"}"
        }
        ToolStyle::Granite | ToolStyle::Json => {
            "[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, \
             {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}]"
        }
        ToolStyle::Harmony => {
            "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\"}<|call|>\
             <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>\
             {\"city\": \"Rome\"}<|call|>"
        }
        ToolStyle::Phi4 => {
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, \
             {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}]<|/tool_call|>"
        }
    }
}

const STYLES: [ToolStyle; 21] = [
    ToolStyle::Hermes,
    ToolStyle::Qwen3Coder,
    ToolStyle::Glm,
    ToolStyle::Lfm2,
    ToolStyle::Olmo,
    ToolStyle::Seed,
    ToolStyle::DeepSeekR1,
    ToolStyle::DeepSeekV31,
    ToolStyle::Kimi,
    ToolStyle::Cohere,
    ToolStyle::Gemma4,
    ToolStyle::Llama3Json,
    ToolStyle::Llama3Pythonic,
    ToolStyle::MistralList,
    ToolStyle::MistralCallId,
    ToolStyle::MistralArgs,
    ToolStyle::Hunyuan,
    ToolStyle::Granite,
    ToolStyle::Phi4,
    ToolStyle::Json,
    ToolStyle::Generic,
];

fn ids(read: &Read) -> Vec<&str> {
    read.calls.iter().map(|call| call.2.as_str()).collect()
}

#[test]
fn every_style_is_parsed_in_any_pieces_and_by_generic() {
    for style in STYLES {
        for code in [
            "print(1)",
            "</tool_call> <tool_call>{\"name\": \"run\"} [TOOL_CALLS] \"]}\\\" <|python_tag|>",
            "<think> [/THINK] </function> </parameter> é ''' )],",
        ] {
            for style_read in [style, ToolStyle::Generic] {
                let one = read(style_read, &call(style, code));
                assert_eq!(one.calls.len(), 1, "{style:?} {code}: {one:?}");
                assert_eq!(one.calls[0].1, json!({ "code": code, "days": 2 }), "{style:?}");
                assert_eq!((one.text.as_str(), one.malformed.len()), ("", 0), "{style:?}");
            }
        }
        for style_read in [style, ToolStyle::Generic] {
            let both = read(style_read, two_calls(style));
            let cities: Vec<_> = both.calls.iter().map(|call| call.1["city"].as_str().unwrap()).collect();
            assert_eq!(cities, ["Paris", "Rome"], "{style:?}");
            let ids = ids(&both);
            // These write ids of their own.
            let is_ours = |id: &&str| id.len() == 9 || matches!(style, ToolStyle::Kimi | ToolStyle::Cohere);
            assert!(ids[0] != ids[1] && ids.iter().all(is_ours), "{ids:?}");
        }
    }
    assert_eq!(ids(&read(ToolStyle::MistralCallId, &call(ToolStyle::MistralCallId, "x"))), ["q1w2e3r4t"]);
    assert_eq!(ids(&read(ToolStyle::MistralList, &call(ToolStyle::MistralList, "x"))), ["abcdefghi"]);
}

/// gpt-oss: the forms of its model card and of its library's tests.
#[test]
fn messages_of_harmony_are_told_apart() {
    let known = Setup { reasoning: Some(ReasoningStyle::Harmony), ..setup(ToolStyle::Harmony) };
    let read = |answer: &str| read_with(&known, answer);
    let got = read(
        "<|channel|>analysis<|message|>They greet.\n<|end|><|start|>assistant<|channel|>final<|message|>Hello <|b|>!<|return|>",
    );
    assert_eq!((got.reasoning.as_str(), got.text.as_str()), ("They greet.", "Hello <|b|>!"));
    let headers = [
        "<|channel|>commentary to=functions.run <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.run<|message|>",
        " to=functions.run<|channel|>commentary json<|message|>",
        "to=functions.run<|channel|>analysis code<|message|> ",
    ];
    for header in headers {
        for end in ["<|call|>", ""] {
            let call = format!("{header}{{\"code\": \"<|end|> x\"}}{end}");
            let got = read(&call);
            assert_eq!((got.calls.len(), got.text.as_str(), got.malformed.len()), (1, "", 0), "{call}: {got:?}");
            assert_eq!(got.calls[0].1, json!({ "code": "<|end|> x" }));
            let thought = "<|channel|>analysis<|message|>I call `<|constrain|>` it.<|end|><|start|>assistant";
            let said = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant";
            let got = read(&format!("{thought}{said}{call}"));
            assert_eq!((got.reasoning.as_str(), got.text.as_str()), ("I call `<|constrain|>` it.", "I look it up."));
            assert_eq!((got.calls.len(), got.malformed.len()), (1, 0), "{got:?}");
        }
    }
    // Two messages of text, reasoning in two parts, an answer without headers, and headers that are cut or are none.
    for (answer, text, reasoning) in [
        (
            "<|channel|>commentary<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.",
            "One.\n\nTwo.",
            "",
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b<|end|><|start|>assistant",
            "",
            "a\n\nb",
        ),
        ("{\"a\": 1}", "{\"a\": 1}", ""),
        ("Hi <|end|>", "Hi", ""),
        ("<|channel|>fin", "", ""),
        ("<", "<", ""),
    ] {
        let got = read(answer);
        assert_eq!((got.text.as_str(), got.reasoning.as_str(), got.calls.len()), (text, reasoning, 0), "{answer}");
    }
    let long = format!("<|{}", "x".repeat(3000));
    assert_eq!(read(&long).text, long);
    // The prompt ended inside the reasoning; and reasoning that is not to be told from text.
    let opened = Setup { opened: Some(ReasoningStyle::Harmony), ..known.clone() };
    let got = read_with(&opened, "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.");
    assert_eq!((got.reasoning.as_str(), got.text.as_str()), ("Hm.", "Yes."));
    let plain = Setup { reasoning: Some(ReasoningStyle::None), ..known.clone() };
    assert_eq!(read_with(&plain, "<|channel|>analysis<|message|>Hm.<|end|>").text, "Hm.");
}

#[test]
fn bad_calls_of_harmony_are_text_and_reported() {
    let known = Setup { reasoning: Some(ReasoningStyle::Harmony), ..setup(ToolStyle::Harmony) };
    let head = "<|channel|>commentary to=functions.run <|constrain|>json<|message|>";
    for (body, malformed) in
        [("{\"code\": ", "{\"code\": "), ("{\"code\" 1}<|call|>", "{\"code\" "), ("no<|call|>", "")]
    {
        let got = read_with(&known, &format!("{head}{body}"));
        assert_eq!((got.calls.len(), got.malformed.len()), (0, 1), "{got:?}");
        assert_eq!(got.malformed[0], format!("{head}{malformed}").trim_end(), "{got:?}");
    }
    let got = read_with(&known, "<|channel|>commentary to=functions.fly<|message|>{}<|call|>");
    assert_eq!((got.calls.len(), got.malformed.len()), (0, 1), "no such tool: {got:?}");
    let none = Setup { tools: [].into(), ..known };
    assert_eq!(read_with(&none, &format!("{head}{{}}<|call|>")).text, "{}", "without tools, nothing is a call");
}

/// What is written is read, and a template or a vocabulary of gpt-oss is recognised.
#[test]
fn harmony_calls_are_parsed_back() {
    let known = Setup { reasoning: Some(ReasoningStyle::Harmony), ..setup(ToolStyle::Harmony) };
    let call = json!({"function": {"name": "run", "arguments": {"code": "<|call|> \u{e9}", "days": -2}}});
    let got = read_with(&known, &ToolStyle::Harmony.write(&[call.clone(), call.clone()]));
    assert_eq!((got.calls.len(), got.text.as_str()), (2, ""));
    assert!(got.calls.iter().all(|read| read.1 == call["function"]["arguments"]), "{got:?}");
    let got = read_with(&known, two_calls(ToolStyle::Harmony));
    assert_eq!(got.calls.iter().map(|call| &call.1["city"]).collect::<Vec<_>>(), ["Paris", "Rome"]);
    let got = read_with(&known, &self::call(ToolStyle::Harmony, "x"));
    assert_eq!(got.calls[0].1, json!({ "code": "x", "days": 2 }));
}

#[test]
fn calls_inside_reasoning_are_ignored() {
    for style in STYLES {
        let call = call(style, "x");
        let answer = format!("<think>\nI {call} this.\n</think>\n\n{call}");
        let got = read(style, &answer);
        assert_eq!((got.calls.len(), got.text.as_str(), got.malformed.len()), (1, "", 0), "{style:?}: {got:?}");
        assert_eq!(got.reasoning, format!("I {call} this."));
        let opened = Setup { opened: Some(ReasoningStyle::Think), ..setup(style) };
        let got = read_with(&opened, &format!("I {call}</think>{call}"));
        assert_eq!((got.calls.len(), got.reasoning), (1, format!("I {call}")), "{style:?}");
        // Never closed: all of it is reasoning.
        assert_eq!(read_with(&opened, &call).calls.len(), 0, "{style:?}");
    }
}

/// Reasoning is often quoted and fenced badly, so the first end mark ends it; a start mark in the text counts only at
/// the beginning of a line.
#[test]
fn reasoning_marks_in_quotes_and_code() {
    let known = Setup { reasoning: Some(ReasoningStyle::Think), ..setup(ToolStyle::Hermes) };
    for quoted in ["`</think>`", "\"</think>\"", "```\n</think>\n```"] {
        let (before, after) = quoted.split_once("</think>").unwrap();
        let got = read_with(&known, &format!("<think>\nI end with {quoted} later.\n</think>\n\nSo."));
        assert_eq!(got.reasoning, format!("I end with {before}").trim_end(), "{quoted}");
        assert_eq!(got.text, format!("{} later.\n</think>\n\nSo.", after.trim_start()), "{quoted}");
    }
    for text in [
        "Write `<think>` first.",
        "As in \"<think>x</think>\".",
        "```xml\n<think>\nx\n</think>\n```\nThat.",
        "Use:\n  ```\n<think>x",
    ] {
        let got = read_with(&known, text);
        assert_eq!((got.text.as_str(), got.reasoning.as_str()), (text, ""));
    }
    for (answer, text, reasoning) in [
        ("<think>a</think><think>\nb\n</think> c", "c", "a\n\nb"),
        ("<think>\na\n</think>\n\nSee.\n<think>b</think>\nDone", "See.\n\nDone", "a\n\nb"),
        ("```\nx\n```\n <think>a</think>y", "```\nx\n```\n y", "a"),
        ("<think></think>x\n<think></think>", "x", ""),
    ] {
        let got = read_with(&known, answer);
        assert_eq!((got.text.as_str(), got.reasoning.as_str()), (text, reasoning), "{answer}");
    }
    let call = call(ToolStyle::Hermes, "x");
    let got = read_with(&known, &format!("See: {call}<think>a</think>{call}"));
    assert_eq!((got.text.as_str(), got.reasoning.as_str(), got.calls.len()), ("See:", "a", 2));
}

/// Calls that are written are read as the same calls.
#[test]
fn written_calls_are_parsed_back_in_every_style() {
    let tool = |name: &str, code: &str| {
        json!({"id": "abcdefghi", "function": {"name": name, "arguments": {
            "code": code, "days": -2, "more": [1.5, true, null, {"a": "\u{e9}\n"}]}}})
    };
    for style in STYLES {
        for code in ["print(1)", "", "</tool_call> [TOOL_CALLS] \"]}\\\" <|python_tag|>\n'''", " é "] {
            let mut second = tool("get_weather", code);
            second["id"] = json!("123456789");
            let calls = [tool("run", code), second];
            for n in [1, 2] {
                let got = read(style, &style.write(&calls[..n]));
                let args: Vec<_> = got.calls.iter().map(|call| (call.0.as_str(), &call.1)).collect();
                let wanted: Vec<_> = calls[..n]
                    .iter()
                    .map(|call| (call["function"]["name"].as_str().unwrap(), &call["function"]["arguments"]))
                    .collect();
                assert_eq!(args, wanted, "{style:?}");
                assert_eq!((got.text.as_str(), got.malformed.len()), ("", 0));
                if matches!(style, ToolStyle::MistralList | ToolStyle::MistralCallId) {
                    assert_eq!(ids(&got), ["abcdefghi", "123456789"][..n]);
                }
            }
        }
    }
}

/// Calls as published templates write them into a history: `tests/data/tool_calls.py`.
#[test]
fn calls_written_by_templates_are_parsed_back() {
    let templates: Value = serde_json::from_str(include_str!("../../../../tests/data/tool_calls.json")).unwrap();
    let mut n = 0;
    for template in templates.as_array().unwrap() {
        let name = &template["template"];
        let styles = STYLES.into_iter().chain([ToolStyle::Harmony]);
        let style = styles.into_iter().find(|style| format!("{style:?}") == template["style"]).unwrap();
        for row in template["rows"].as_array().unwrap() {
            let (said, text) = (row["said"].as_str().unwrap(), row["text"].as_str().unwrap());
            let wanted: Vec<_> = row["calls"].as_array().unwrap().iter().collect();
            let same = |got: &Read| {
                let calls = got.calls.iter().map(|call| (call.0.as_str(), &call.1));
                let wanted = wanted.iter().map(|call| (call["name"].as_str().unwrap(), &call["arguments"]));
                assert!(calls.eq(wanted), "{name} {text:?}: {got:?}");
                // Some templates leave out the text of the message.
                let said = if text.contains(said) { said } else { "" };
                assert_eq!((got.text.trim(), got.malformed.len()), (said, 0), "{name}: {text:?}");
            };
            same(&read(style, text));
            n += usize::from(style == ToolStyle::Harmony);
            if style == ToolStyle::Harmony {
                continue;
            }
            if said.is_empty() || style != ToolStyle::Llama3Json {
                same(&read(ToolStyle::Generic, text));
            }
            let known = Setup { reasoning: Some(ReasoningStyle::Think), ..setup(style) };
            let thought = read_with(&known, &format!("<think>\nI could write {text}\n"));
            let is_closed = text.contains("</think>");
            assert!(is_closed || thought.calls.is_empty(), "{name}: {thought:?}");
            same(&read_with(&known, &format!("<think>\nWell.\n</think>\n\n{text}")));
            // For calls that a template does not render, fewbit writes the same text as the template would.
            let calls: Vec<Value> = wanted
                .iter()
                .enumerate()
                .map(|(i, call)| json!({ "id": format!("callid{i:03}"), "function": call }))
                .collect();
            // GLM's newer template leaves out line breaks; those of LFM2 and Seed have Python's values.
            let is_python = matches!(style, ToolStyle::Lfm2 | ToolStyle::Seed);
            // Apriel's has ids.
            let is_other = ["GLM-4.7-Flash", "unsloth-Apriel-1.5"].contains(&name.as_str().unwrap());
            let is_ours = style != ToolStyle::Qwen3Coder && !is_other && !is_python;
            if said.is_empty() && is_ours {
                assert_eq!(style.write(&calls), text.trim(), "{name}");
            }
            n += 1;
        }
    }
    assert!(n > 150, "{n}");
}

#[test]
fn truncated_calls_are_text_and_reported_as_malformed() {
    for style in STYLES {
        let whole = call(style, "print(1)");
        let end = match style {
            ToolStyle::Qwen3Coder | ToolStyle::Seed => whole.find("</function>").unwrap(),
            ToolStyle::Glm => whole.find("</tool_call>").unwrap(),
            _ => whole.rfind(['}', ')']).unwrap_or(0),
        };
        for cut in (1..end).filter(|&cut| whole.is_char_boundary(cut)) {
            let got = read(style, &whole[..cut]);
            assert!(got.calls.is_empty(), "{style:?} cut at {cut}: {got:?}");
            assert_eq!(got.text, whole[..cut], "{style:?}");
        }
        let got = read(style, &whole[..end]);
        assert_eq!(got.malformed.len(), 1, "{style:?}: {got:?}");
        assert_eq!(got.malformed[0].trim(), whole[..end].trim());
    }
}

/// Gemma 4's values without marks have the type of the schema, or their own; JSON's quotes, spaces and one comma too many are
/// read; what cannot be a value is reported.
#[test]
fn values_of_gemma_4_without_marks() {
    for (arguments, wanted) in [
        ("{days:2,code:5}", json!({ "days": 2, "code": "5" })),
        ("{days:two,code:x y}", json!({ "days": "two", "code": "x y" })),
        ("{more:[1,null,None,True,a b,{k:[]},],}", json!({ "more": [1, null, null, true, "a b", { "k": [] }] })),
        ("{other:-1.5e2,<|\"|>a:b<|\"|>:{}}", json!({ "other": -150.0, "a:b": {} })),
        (" {\n \"code\" : \"a\\\"}\\\\\", days: 3 }", json!({ "code": "a\"}\\", "days": 3 })),
        ("{code:<|\"|>\"\\\n<|\"<|\"|>}", json!({ "code": "\"\\\n<|\"" })),
        ("{}", json!({})),
    ] {
        let got = read(ToolStyle::Gemma4, &format!("<|tool_call>call:run{arguments}<tool_call|>"));
        assert_eq!((got.calls.len(), got.text.as_str(), got.malformed.len()), (1, "", 0), "{arguments}: {got:?}");
        assert_eq!(got.calls[0].1, wanted, "{arguments}");
    }
    let deep = format!("{{more:{}", "[".repeat(100));
    for arguments in ["{days:}", "{:1}", "{days 2}", "{days:2]", "{code:\"\\x\"}", "{code:a\"b}", "(days:2)", &deep] {
        let text = format!("<|tool_call>call:run{arguments}<tool_call|>");
        let got = read(ToolStyle::Gemma4, &text);
        assert_eq!((got.calls.len(), got.text.as_str(), got.malformed.len()), (0, text.as_str(), 1), "{got:?}");
    }
    let known = Setup { reasoning: Some(ReasoningStyle::Gemma4), ..setup(ToolStyle::Gemma4) };
    let call = call(ToolStyle::Gemma4, "x");
    let got = read_with(&known, &format!("<|channel>thought\nI {call}\n<channel|>So.{call}"));
    assert_eq!((got.reasoning, got.text.as_str(), got.calls.len()), (format!("I {call}"), "So.", 1));
}

/// OLMo's calls with other values, alone and after text; what is no call is reported.
#[test]
fn lines_of_olmo_are_read() {
    for (text, wanted) in [
        ("run(code=\"a\\n\", more=[1, true, null])", vec![json!({ "code": "a\n", "more": [1, true, null] })]),
        (" run()\n\n run(days=None) \n", vec![json!({}), json!({ "days": null })]),
        ("[run(days=1), run(days=2)]", vec![json!({ "days": 1 }), json!({ "days": 2 })]),
        ("{\"name\": \"run\", \"arguments\": {}}\nrun(days=3)", vec![json!({}), json!({ "days": 3 })]),
        ("\n[run(code='a\nb')]\n[run()]\n", vec![json!({ "code": "a\nb" }), json!({})]),
        ("[{\"name\": \"run\", \"arguments\": {}}]\n[run()]", vec![json!({}), json!({})]),
    ] {
        let got = read(ToolStyle::Olmo, &format!("So.\n<function_calls>{text}</function_calls>"));
        let calls: Vec<_> = got.calls.iter().map(|call| call.1.clone()).collect();
        assert_eq!((calls, got.text.as_str(), got.malformed.len()), (wanted, "So.", 0), "{text}: {got:?}");
    }
    let got = read(ToolStyle::Olmo, "[run(days=1), run()]");
    assert_eq!((got.calls.len(), got.text.as_str()), (2, ""), "{got:?}");
    for text in ["run", "run(1)", "run(days=x)", "other()", "", "run(days=1"] {
        let whole = format!("<function_calls>{text}</function_calls>");
        let got = read(ToolStyle::Olmo, &whole);
        assert_eq!((got.calls.len(), got.text.as_str(), got.malformed.len()), (0, whole.as_str(), 1), "{got:?}");
    }
}

/// Hunyuan's answers after reasoning are in tags; the end of these may be missing.
#[test]
fn calls_in_an_answer_of_hunyuan_are_read() {
    let known = Setup { reasoning: Some(ReasoningStyle::Think), ..setup(ToolStyle::Hunyuan) };
    let call = call(ToolStyle::Hunyuan, "</tool_calls></answer>");
    for answer in [
        format!("<answer>\n{call}\n</answer>"),
        format!("<answer>{call}</answer>"),
        format!("<answer>\n{call}</answer>\n"),
        format!("<answer>{call}\n"),
        format!("{call}\n"),
    ] {
        let got = read_with(&known, &format!("<think>\nI {call}\n</think>\n{answer}"));
        assert_eq!((got.text.as_str(), got.calls.len(), got.malformed.len()), ("", 1, 0), "{answer:?}: {got:?}");
        assert_eq!(got.reasoning, format!("I {call}"));
    }
    let got = read_with(&known, &format!("<answer>\n{call}\nDone</answer>"));
    assert_eq!((got.text.as_str(), got.calls.len()), ("Done</answer>", 1));
    let got = read_with(&known, "<answer>\nHello.\n</answer>");
    assert_eq!((got.text.as_str(), got.calls.len()), ("<answer>\nHello.\n</answer>", 0));
}

/// Models leave out the end of a function.
#[test]
fn function_ends_with_its_call() {
    for (style, tag) in [(ToolStyle::Qwen3Coder, "tool_call"), (ToolStyle::Seed, "seed:tool_call")] {
        let got = read(style, &format!("<{tag}>\n<function=run>\n<parameter=code>\nx\n</parameter>\n</{tag}>"));
        assert_eq!((got.calls.len(), got.text.as_str(), got.malformed.len()), (1, "", 0), "{style:?}: {got:?}");
        assert_eq!(got.calls[0].1, json!({ "code": "x" }), "{style:?}");
    }
}

#[test]
fn text_around_calls_is_kept() {
    let hermes = call(ToolStyle::Hermes, "x");
    let got = read(ToolStyle::Hermes, &format!("Let me see.{hermes}Done"));
    assert_eq!(got.text, "Let me see.Done", "the text is what is left");
    let got = read(ToolStyle::Hermes, &format!(" \nSee. {hermes}\n{hermes} \n"));
    assert_eq!((got.text.as_str(), got.calls.len()), (" \nSee.", 2), "nothing follows");
    let json = read(ToolStyle::Llama3Json, "{\"name\": \"run\", \"parameters\": {}};\n\nDone");
    assert_eq!((json.text.as_str(), json.calls.len()), ("Done", 1));
    let got = read(ToolStyle::Hermes, &format!("Let me see.\n{hermes}\nDone, I hope.\n"));
    assert_eq!((got.text.as_str(), got.calls.len()), ("Let me see.\n\nDone, I hope.\n", 1));
    for text in [
        "",
        " \n{}",
        "Hello. \n",
        "{",
        "[]",
        "[see](url)",
        "{\"city\": \"Paris\"}",
        "[{\"city\": 1}] and",
        "[1, 2]",
        "```json\n{\"a\": 1}\n```",
        "```python\nrun()\n```",
        "a <tool_cal",
        "x < y <t",
        "</think> so",
    ] {
        for style in STYLES {
            let got = read(style, text);
            assert_eq!((got.text.as_str(), got.calls.len(), got.malformed.len()), (text, 0, 0), "{style:?}");
        }
    }
    for text in [
        "{\"name\": \"unknown\", \"arguments\": {}}",
        "{\"name\": \"run\", \"arguments\": [1, 2]}",
        "<tool_call>nonsense</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>{\"name\": \"run\", \"arguments\": {\"code\": 1</tool_call>",
        "[TOOL_CALLS]run",
        "<tool_call><function=other><parameter=x>1</parameter></function></tool_call>",
    ] {
        let got = read(ToolStyle::Generic, text);
        assert_eq!((got.text.as_str(), got.calls.len(), got.malformed.len()), (text, 0, 1), "{text}");
    }
    let broken = "<tool_call>{\"name\": \"run\", \"arguments\": {\"code\": }}</tool_call>";
    let got = read(ToolStyle::Hermes, &format!("{broken} {hermes}"));
    assert_eq!((got.text.trim(), got.calls.len(), &got.malformed[..]), (broken, 1, &[broken.to_owned()][..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any text in any pieces: nothing panics, nothing is lost, and the pieces make no difference.
    #[test]
    fn any_text_is_parsed_without_loss(
        parts in prop::collection::vec(prop_oneof![
            "[a-z \\n{}\\[\\]\":,()='<>/\u{e9}0-9]{0,6}",
            prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "<function=", "run", ">", "<parameter=", "code", "</parameter>",
                "</function>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_tag|>", "<|tool_call|>", "<think>",
                "</think>", "<seed:tool_call>", "<|tool_call_start|>", "<function_calls>", "</function_calls>", "<answer>\n", "</answer>", "<tool_calls>[", "]</tool_calls>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<|tool_calls_section_begin|>",
                "<|tool_call_begin|>", "functions.run:0", "<|tool_call_argument_begin|>", "<|START_ACTION|>",
                "<|tool_call>", "call:run{", "code:", "<|\"|>", "<tool_call|>", "<|channel>thought", "<channel|>", "[THINK]", "[/THINK]", "```json\n", "```", "{\"name\": \"run\"", ", \"arguments\": {",
                "\"code\": \"x\"}", "}", "[run(code='", "')", "]", "; ", "{\"tool_calls\": [", "\n", " ",
            ]).prop_map(str::to_owned),
        ], 0..12),
        style in prop::sample::select(STYLES.to_vec()),
    ) {
        read_with(&setup(style), &parts.concat());
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        read_with(&setup(ToolStyle::Generic), &String::from_utf8_lossy(&bytes));
    }
}
