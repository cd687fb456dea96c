//! Forced calls in every style, constraints that apply after the reasoning, and reasoning budgets.
//!
//! The stories model writes random text within what is allowed: a correct output means that nothing else was possible.

use fewbit::expert::format::{Array, GgufFile, GgufWriter, Value as Metadata};
use fewbit::{
    ChatBuilder, Completion, Constraint, FinishReason, GenerateOptions, Model, ModelBuilder, Tool, ToolChoice,
    ToolError, ToolFallback, ToolStyle,
};
use serde_json::{Value, json};

use crate::{STORIES, load, smollm2, together};

const TEMPLATE: &str = "{% if tools %}{% for t in tools %}[{{ t.function.name }}]{% endfor %}{% endif %}\
    {% for m in messages %}{{ m.content }}\n{% endfor %}";

/// The same, ending inside reasoning.
const REASONING_TEMPLATE: &str = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}\
    {% for m in messages %}{{ m.content }}\n{% endfor %}<think>\n";

const STYLES: [ToolStyle; 22] = [
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
    ToolStyle::Harmony,
    ToolStyle::Json,
    ToolStyle::Generic,
];

/// The stories model, in whose vocabulary the marks are control tokens, in place of rare letters.
fn with_marks(configure: impl FnOnce(ModelBuilder) -> ModelBuilder) -> Model {
    const MARKS: [&str; 18] = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[CALL_ID]",
        "[ARGS]",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "<|channel|>",
        "<|message|>",
        "<|constrain|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|\"|>",
    ];
    let file = GgufFile::open(STORIES.as_ref()).unwrap();
    let mut tokens = file.metadata().require_str_array("tokenizer.ggml.tokens").unwrap().to_vec();
    let Some(Metadata::Array(Array::I32(types))) = file.metadata().get("tokenizer.ggml.token_type") else { panic!() };
    let mut types = types.clone();
    let at = tokens.len() - MARKS.len();
    for (i, mark) in MARKS.iter().enumerate() {
        tokens[at + i] = (*mark).to_owned();
        types[at + i] = 3;
    }
    let mut writer = GgufWriter::with_metadata(file.metadata().clone());
    writer.set("tokenizer.ggml.tokens", tokens);
    writer.set("tokenizer.ggml.token_type", types);
    for tensor in file.tensors() {
        writer.tensor(&tensor.name, &tensor.shape, tensor.ty, file.tensor_bytes(tensor).to_vec()).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("marks.gguf");
    writer.write_file(&path).unwrap();
    configure(Model::builder().threads(1).chat_template(TEMPLATE)).load_file(&path).unwrap()
}

/// Parameters of every kind that a style writes in its own way.
fn drive() -> Tool {
    let schema = json!({
        "type": "object",
        "properties": {
            "to": { "enum": ["up", "down"] },
            "far": { "type": "integer", "minimum": 0, "maximum": 99 },
            "fast": { "type": "boolean" },
            "by": { "$ref": "#/$defs/Way" },
            "stops": { "type": "array", "items": { "enum": [1, 2, 3] }, "minItems": 1, "maxItems": 2 }
        },
        "required": ["to", "fast", "by"],
        "$defs": { "Way": { "enum": ["a road", "it's \"rail\""] } }
    });
    Tool::new("drive", "Drives.", schema)
}

/// A call of a few tokens.
fn go() -> Tool {
    Tool::new(
        "go",
        "Goes.",
        json!({ "type": "object", "properties": { "to": { "enum": ["up", "down"] } }, "required": ["to"] }),
    )
}

fn check(answer: &Completion, tools: &[Tool]) {
    for call in &answer.tool_calls {
        let tool = tools.iter().find(|tool| tool.name == call.name).unwrap();
        assert!(jsonschema::is_valid(&tool.parameters, &call.arguments), "{call:?}");
    }
    assert!(!answer.tool_calls.is_empty() && answer.text.is_empty() && answer.malformed_calls.is_empty(), "{answer:?}");
    assert_eq!(answer.finish_reason, FinishReason::ToolCalls, "{answer:?}");
}

fn forced(model: &Model, choice: ToolChoice, seed: u64) -> ChatBuilder {
    model.chat().tool_choice(choice).reasoning_budget(8).seed(seed).temperature(1.0).max_tokens(440)
}

#[test]
fn every_style_generates_required_calls() {
    let tools = [go(), drive()];
    for style in STYLES {
        for model in [load(|b| b.chat_template(TEMPLATE).tool_style(style)), with_marks(|b| b.tool_style(style))] {
            let mut most = 0;
            for seed in 0..3 {
                let named = ToolChoice::Named("drive".to_owned());
                let answer = forced(&model, named, seed).tools(tools.clone()).start().unwrap().send("Go.").unwrap();
                check(&answer, &tools);
                assert_eq!((answer.tool_calls.len(), answer.tool_calls[0].name.as_str()), (1, "drive"), "{style:?}");

                let one = forced(&model, ToolChoice::Required, seed).tools(tools.clone()).parallel_tool_calls(false);
                let answer = one.start().unwrap().send("Go.").unwrap();
                check(&answer, &tools);
                assert_eq!(answer.tool_calls.len(), 1, "{style:?}");

                let answer =
                    forced(&model, ToolChoice::Required, seed).tools([go()]).start().unwrap().send("Go.").unwrap();
                if answer.finish_reason != FinishReason::Length {
                    check(&answer, &tools);
                }
                most = most.max(answer.tool_calls.len());
            }
            assert!(most >= 1, "{style:?}");
        }
    }
}

#[test]
fn unbounded_string_arguments_end() {
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    let tools = [Tool::new("weather", "The weather in a city.", schema)];
    for style in [ToolStyle::Hermes, ToolStyle::Llama3Pythonic] {
        let template = "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
        let model = smollm2::load(Model::builder().chat_template(template).tool_style(style));
        let builder = model.chat().tools(tools.clone()).tool_choice(ToolChoice::Required).parallel_tool_calls(false);
        let answer = builder.temperature(0.0).max_tokens(100).start().unwrap().send("Weather in Paris?").unwrap();
        check(&answer, &tools);
        assert!(!answer.tool_calls[0].arguments["city"].as_str().unwrap().is_empty(), "{answer:?}");
    }
}

/// However much a model likes to go on.
#[test]
fn number_of_required_calls_is_limited() {
    let template = "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    for style in [ToolStyle::Hermes, ToolStyle::MistralArgs] {
        let model = smollm2::load(Model::builder().chat_template(template).tool_style(style));
        let end = model.tokenizer().id_of("<|im_end|>").unwrap();
        let options = GenerateOptions::new().logit_bias(end, -100.0).temperature(0.0).max_tokens(1000);
        let builder = model.chat().options(options).tools([go()]).tool_choice(ToolChoice::Required);
        let answer = builder.start().unwrap().send("Go, go, go, and never stop.").unwrap();
        assert_eq!(
            (answer.tool_calls.len(), answer.finish_reason),
            (16, FinishReason::ToolCalls),
            "{style:?} {answer:?}"
        );
    }
}

#[test]
fn invalid_tool_choices_fail_with_typed_errors() {
    let model = load(|b| b.chat_template(TEMPLATE));
    let started = |builder: ChatBuilder| match builder.start().and_then(|mut chat| chat.send("Go.")) {
        Err(error) => *error.into_source().unwrap().downcast::<ToolError>().unwrap(),
        other => panic!("{other:?}"),
    };
    let required = || model.chat().tool_choice(ToolChoice::Required).max_tokens(4);
    assert_eq!(started(required()), ToolError::ChoiceWithoutTools);
    let unknown = ToolError::UnknownTool { name: "run".into(), known: vec!["go".into()] };
    assert_eq!(started(model.chat().tools([go()]).tool_choice(ToolChoice::Named("run".into()))), unknown);
    let both = required().tools([go()]).constraint(Constraint::choice(["yes"]));
    assert_eq!(started(both), ToolError::ChoiceAndConstraint);
    let options = GenerateOptions::new().tool_choice(ToolChoice::Required);
    let alone = model.generate("Go.").options(options).run();
    assert!(matches!(alone.as_ref().err().and_then(|e| e.cause()), Some(ToolError::ChoiceWithoutTools)), "{alone:?}");
    let no_object = Tool::new("go", "", json!({ "type": "string" }));
    assert!(matches!(started(required().tools([no_object])), ToolError::Definition { .. }));
    // A rejected turn leaves nothing in the conversation.
    let mut chat = model.chat().tools([go()]).max_tokens(4).start().unwrap();
    assert!(chat.ask("Go.").tool_choice(ToolChoice::Named("run".into())).run().is_err());
    assert!(chat.messages().is_empty());
}

#[test]
fn tool_choice_none_hides_the_tools() {
    let call = r#"<tool_call>{"name": "go", "arguments": {"to": "up"}}</tool_call>"#;
    let known = load(|b| b.chat_template(TEMPLATE));
    let told = load(|b| b);
    for model in [&known, &told] {
        let builder = model.chat().tools([go()]).tool_fallback(ToolFallback::SystemPrompt).temperature(0.0);
        let mut chat = builder.max_tokens(200).start().unwrap();
        let ask = chat.ask("Go.").tool_choice(ToolChoice::None).constraint(Constraint::choice([call]));
        let answer = ask.run().unwrap();
        let prompt = model.tokenizer().decode(&answer.prompt_tokens);
        assert!(!prompt.contains("go") && !prompt.contains("tool"), "{prompt}");
        assert_eq!((answer.text.as_str(), answer.tool_calls.len()), (call, 0));
        chat.clear();
        let answer = chat.ask("Go.").constraint(Constraint::choice([call])).run().unwrap();
        assert!(model.tokenizer().decode(&answer.prompt_tokens).contains("go"));
        assert_eq!(answer.tool_calls.len(), 1);
    }
}

#[test]
fn constraints_apply_after_the_end_of_reasoning() {
    for model in [load(|b| b.chat_template(REASONING_TEMPLATE)), with_marks(|b| b.chat_template(REASONING_TEMPLATE))] {
        let end = model.tokenizer().end_of_generation().next().unwrap();
        for seed in 0..4 {
            let ask = |budget: Option<usize>| {
                let options = budget.map_or_else(GenerateOptions::new, |n| GenerateOptions::new().reasoning_budget(n));
                // The model wants the end of the text most, but is not allowed to write it.
                let options = options.logit_bias(end, 100.0).seed(seed).temperature(1.0);
                let mut chat = model.chat().options(options).max_tokens(60).start().unwrap();
                chat.ask("Is it so?").constraint(Constraint::choice(["yes", "no"])).run().unwrap()
            };
            let answer = ask(Some(12));
            assert!(["yes", "no"].contains(&answer.text.as_str()), "{answer:?}");
            assert!(
                !answer.reasoning.is_empty() && answer.finish_reason == FinishReason::EndOfGeneration,
                "{answer:?}"
            );
            let answer = ask(Some(0));
            assert!(answer.reasoning.is_empty() && ["yes", "no"].contains(&answer.text.as_str()), "{answer:?}");
            // Nothing ends the reasoning: the whole output is reasoning, and none of it is the requested text.
            let answer = ask(None);
            assert_eq!((answer.text.as_str(), answer.finish_reason), ("", FinishReason::Length), "{answer:?}");
        }
        // Also for a prompt that is not a conversation, and for forced calls.
        let answer = model.generate("Is it so?").templated().reasoning_budget(5).temperature(1.0).max_tokens(60);
        let answer = answer.constraint(Constraint::choice(["yes", "no"])).run().unwrap();
        assert!(["yes", "no"].contains(&answer.text.as_str()), "{answer:?}");
        let builder = forced(&model, ToolChoice::Named("go".to_owned()), 1).tools([go()]).reasoning_budget(9);
        let answer = builder.start().unwrap().send("Go.").unwrap();
        check(&answer, &[go()]);
        assert!(!answer.reasoning.is_empty(), "{answer:?}");
    }
}

#[test]
fn reasoning_budget_limits_the_reasoning_tokens() {
    for model in [load(|b| b.chat_template(REASONING_TEMPLATE)), with_marks(|b| b.chat_template(REASONING_TEMPLATE))] {
        for budget in [0, 1, 7] {
            let mut chat =
                model.chat().reasoning_budget(budget).temperature(1.0).seed(3).max_tokens(30).start().unwrap();
            let answer = chat.send("Why?").unwrap();
            let all = model.tokenizer();
            let after: String = answer.tokens[budget..]
                .iter()
                .map(|&id| match all.token_bytes(id) {
                    [] => all.token_text(id).unwrap().to_owned(),
                    bytes => String::from_utf8_lossy(bytes).into_owned(),
                })
                .collect();
            assert!(after.trim_start().starts_with("</think>"), "{after:?}");
            assert_eq!(answer.reasoning.is_empty(), all.decode(&answer.tokens[..budget]).trim().is_empty());
        }
    }
}

#[test]
fn model_may_reason_before_a_required_call() {
    // Its template names the marks, and the prompt does not open them.
    let template = format!("{TEMPLATE}{{% if false %}}<think>{{% endif %}}");
    let model = with_marks(|b| b.chat_template(template.clone()));
    let start = model.tokenizer().id_of("<think>").unwrap();
    let of = |bias: f32| {
        let options = GenerateOptions::new().logit_bias(start, bias).reasoning_budget(4);
        let builder = forced(&model, ToolChoice::Named("go".to_owned()), 1).tools([go()]).options(options);
        let answer = builder.start().unwrap().send("Go.").unwrap();
        check(&answer, &[go()]);
        answer.tokens[0] == start
    };
    assert!(of(1000.0), "it may");
    assert!(!of(-1000.0), "it need not");
}

#[test]
fn sixty_four_streamed_calls_equal_unstreamed_ones() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% for t in tools or [] %}{{ t.function.name }} {% endfor %}<|im_start|>assistant\n";
    let model = smollm2::load(Model::builder().chat_template(template).tool_style(ToolStyle::Hermes));
    let schema = json!({
        "type": "object",
        "properties": {
            "colour": { "enum": ["red", "green", "blue"] },
            "layers": { "type": "integer", "minimum": 1, "maximum": 9 }
        },
        "required": ["colour", "layers"]
    });
    let tools = [go(), Tool::new("paint", "Paints.", schema)];
    let chat = |i: usize| {
        let choice = if i.is_multiple_of(3) { ToolChoice::Required } else { ToolChoice::Named("paint".to_owned()) };
        let builder = model.chat().tools(tools.clone()).tool_choice(choice).parallel_tool_calls(false);
        builder.seed(i as u64).temperature(1.0).max_tokens(120).start().unwrap()
    };
    let question = |i: usize| format!("Please do it {i} times.");
    let streamed = together(64, |i| {
        let mut chat = chat(i);
        let mut stream = chat.send_stream(question(i)).unwrap();
        let mut pieces: Vec<(String, String)> = Vec::new();
        for piece in stream.by_ref() {
            for delta in piece.unwrap().tool_calls {
                match delta.name {
                    Some(name) => pieces.push((name, delta.arguments)),
                    None => pieces[delta.index].1 += &delta.arguments,
                }
            }
        }
        let answer = stream.into_completion();
        check(&answer, &tools);
        let whole: Vec<(String, Value)> =
            pieces.iter().map(|(name, text)| (name.clone(), serde_json::from_str(text).unwrap())).collect();
        let calls: Vec<_> = answer.tool_calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect();
        assert_eq!((whole.len(), &whole), (1, &calls));
        answer
    });
    let unstreamed = together(64, |i| chat(i).send(question(i)).unwrap());
    for (i, (one, other)) in streamed.iter().zip(&unstreamed).enumerate() {
        assert_eq!((&one.tokens, &one.tool_calls), (&other.tokens, &other.tool_calls), "{i}");
    }
    // And alone.
    let alone = chat(5).send(question(5)).unwrap();
    assert_eq!((&alone.tokens, &alone.tool_calls), (&streamed[5].tokens, &streamed[5].tool_calls));
}
