//! Chat templates against Python's Jinja2, and what must not happen: `tests/data/templates/render.py`.

use fewbit_tokenizer::{
    ChatTemplate, Clock, Message, TemplateError, TemplateInput, TemplateLimits, TokenKind, Tokenizer, Vocabulary,
};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::support::small;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Text(String),
    Error(IgnoredAny),
}

/// The special tokens that `render.py` gives to templates.
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

fn check(name: &str, source: &str) {
    let conversations: Vec<Map<String, Value>> =
        serde_json::from_str(include_str!("../data/templates/conversations.json")).expect("valid");
    let mut expected: Map<String, Value> =
        serde_json::from_str(include_str!("../data/templates/expected.json")).expect("valid");
    let expected: Vec<Expected> = serde_json::from_value(expected.remove(name).expect("rendered")).expect("valid");
    let tokenizer = tokenizer();
    let template = ChatTemplate::new(source, &tokenizer).expect("valid");
    for (conversation, expected) in conversations.into_iter().zip(expected) {
        let mut extra = conversation.clone();
        let messages = extra.shift_remove("messages").unwrap_or_default();
        let messages = messages.as_array().into_iter().flatten().cloned().map(Message::from_json);
        let messages: Vec<Message> = messages.collect::<Result<_, _>>().expect("messages");
        let input = TemplateInput {
            messages: &messages,
            add_generation_prompt: extra.shift_remove("add_generation_prompt") == Some(Value::Bool(true)),
            tools: extra.shift_remove("tools"),
            documents: extra.shift_remove("documents"),
            extra,
            clock: Clock::Fixed { unix_s: 1_741_064_767 },
        };
        match (template.render(&input), expected) {
            (Ok(prompt), Expected::Text(expected)) => {
                assert_eq!(prompt.text(), expected, "{conversation:?}");
                assert_eq!(prompt.marker(), None);
            }
            (Err(_), Expected::Error(_)) => {}
            (found, expected) => panic!("{conversation:?}: {found:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn smollm2_renders_as_in_python() {
    check("smollm2.jinja", include_str!("../data/templates/smollm2.jinja"));
}

#[test]
fn template_features_render_as_in_python() {
    check("features.jinja", include_str!("../data/templates/features.jinja"));
}

fn render(source: &str) -> Result<String, TemplateError> {
    render_with(source, TemplateLimits::default())
}

fn render_with(source: &str, limits: TemplateLimits) -> Result<String, TemplateError> {
    let tokenizer = small();
    let messages = [Message::user("hi")];
    let template = ChatTemplate::with_limits(source, &tokenizer, limits)?;
    Ok(template.render(&TemplateInput::new(&messages))?.text())
}

#[test]
fn floats_print_as_in_python() {
    let text = render("{{ 1e-07 }} {{ 1e20 }} {{ 1e-07|string }} {{ 1.5 }} {{ 2.0|string }} {{ 1e15 }} {{ 3 }}");
    assert_eq!(text.expect("valid"), "1e-07 1e+20 1e-07 1.5 2.0 1000000000000000.0 3");
}

#[test]
fn undefined_values_have_length_zero() {
    let text = render("{{ nothing|length }} {{ messages[0].tool_calls|length > 0 }} {{ messages|count }}");
    assert_eq!(text.expect("valid"), "0 False 1");
    assert!(render("{{ none|length }}").is_err() && render("{{ 3|length }}").is_err());
}

#[test]
fn errors_name_the_line() {
    let error = render("a\nb {% if %}").expect_err("syntax");
    assert!(matches!(error, TemplateError::Syntax { line: 2, .. }), "{error:?}");
    let error = render("a\n\n{{ nothing.attribute }}").expect_err("undefined");
    assert!(matches!(error, TemplateError::Failed { line: 3, .. }), "{error:?}");
    assert!(error.to_string().contains("line 3"), "{error}");
    let error = render("{{ no_such_function() }}").expect_err("unknown");
    assert!(matches!(error, TemplateError::Failed { line: 1, .. }), "{error:?}");
}

#[test]
fn raise_exception_keeps_its_message() {
    for source in [
        "{{ raise_exception('Roles must alternate!') }}",
        "{% macro m() %}{{ raise_exception('Roles must alternate!') }}{% endmacro %}{{ m() }}",
    ] {
        let error = render(source).expect_err("refused");
        assert!(
            matches!(&error, TemplateError::Refused { message } if message == "Roles must alternate!"),
            "{error:?}"
        );
    }
}

#[test]
fn endless_templates_are_stopped() {
    let nested = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    let limits = TemplateLimits { steps: 90_000, steps_per_message: 10_000, ..TemplateLimits::default() };
    let error = render_with(nested, limits).expect_err("too long");
    assert!(matches!(error, TemplateError::OutOfSteps { steps: 100_000 }), "{error:?}");
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(render(recursive).is_err());
}

#[test]
fn deep_templates_do_not_overflow_the_stack() {
    // As many levels as fit the longest template, and the lists that two million steps can nest.
    for level in ["-", "not ", "1+", "1**", "1 if 1 else ", "a and "] {
        let source = format!("{{{{ {}1 }}}}", level.repeat(64_000 / level.len()));
        let _ = render(&source);
    }
    for (level, end) in [("{% elif 0 %}", "{% endif %}"), ("{% if 1 %}", "")] {
        let source = format!("{{% if 0 %}}{}{end}", level.repeat(64_000 / level.len()));
        let _ = render(&source);
    }
    for use_it in ["{{ ns.x }}", "{{ ns.x == ns.y }}", "{{ ns.x ~ '' }}", "{{ ns.x | tojson }}", ""] {
        let source = "{% set ns = namespace(x=[], y=[]) %}{% for a in range(10) %}{% for b in range(90000) %}\
                      {% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% if b == 89000 and a == 0 %}"
            .to_owned()
            + use_it
            + "{% endif %}{% endfor %}{% endfor %}";
        assert!(matches!(render(&source), Err(TemplateError::OutOfSteps { .. } | TemplateError::Failed { .. })));
    }
    let error = render(&"x".repeat(1 << 20)).expect_err("too long");
    assert!(matches!(error, TemplateError::SourceTooLong { bytes: 1_048_576, .. }), "{error}");
}

#[test]
fn output_is_limited() {
    let limits = TemplateLimits { output_bytes: 1000, ..TemplateLimits::default() };
    let error = render_with("{% for a in range(2000) %}x{% endfor %}", limits).expect_err("long");
    assert!(matches!(error, TemplateError::OutputTooLong { output_bytes: 1000 }), "{error:?}");
    assert_eq!(render_with("{{ 'x' * 1000 }}", limits).expect("just fits").len(), 1000);
}

#[test]
fn templates_cannot_read_other_files() {
    for source in ["{% include '/etc/passwd' %}", "{% extends 'x' %}", "{% import 'x' as y %}"] {
        assert!(matches!(render(source), Err(TemplateError::Failed { .. })), "{source}");
    }
}

#[test]
fn absurd_sizes_are_errors() {
    for source in [
        "{{ 'x' | indent(99999999999) }}",
        "{{ 'x' | indent(9999999999999999999999) }}",
        "{{ '%99999999999d' | format(1) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ strftime_now('%99999999999d') }}",
        "{{ [1] | tojson(indent=99999999999) }}",
        "{{ 'x' * 99999999999 }}",
        "{{ range(99999999999) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ [] | slice(99999999999) }}",
        "{{ ''[::-1] }}",
    ] {
        assert!(matches!(render(source), Err(TemplateError::Failed { .. })), "{source}");
    }
}

#[test]
fn the_system_clock_is_used_by_default() {
    let year: i32 = render("{{ strftime_now('%Y') }}").expect("valid").parse().expect("a year");
    assert!((2024..3000).contains(&year), "{year}");
}

#[test]
fn generation_tags_have_no_effect() {
    let source = "a {%- generation -%} b {% endgeneration %}\nc {{ '{% generation %}' }}{# {% #}";
    assert_eq!(render(source).expect("valid"), "ab c {% generation %}");
    // Delimiters that overlap, that are not closed, or that only look like delimiters.
    for source in ["{%}", "{{}", "{#}", "{", "{%", "{% generation", "é{é%}"] {
        let _ = render(source);
    }
}

/// Compares short templates with Jinja2 (`tests/data/templates/constructs.py`), except for known differences.
#[test]
fn constructs_render_as_in_python_except_known_differences() {
    let sources: Vec<String> = serde_json::from_str(include_str!("../data/templates/constructs.json")).expect("valid");
    let expected: Vec<Option<String>> =
        serde_json::from_str(include_str!("../data/templates/constructs_expected.json")).expect("valid");
    let mut differences: Map<String, Value> =
        serde_json::from_str(include_str!("../data/templates/constructs_differences.json")).expect("valid");
    assert!(sources.len() > 200 && sources.len() == expected.len());
    let tokenizer = tokenizer();
    let messages = [Message::user("axb"), Message::assistant("ok")];
    let input = TemplateInput { clock: Clock::Fixed { unix_s: 1_741_064_767 }, ..TemplateInput::new(&messages) };
    let mut wrong = Vec::new();
    for (source, expected) in sources.into_iter().zip(expected) {
        let found = ChatTemplate::new(&source, &tokenizer).and_then(|template| template.render(&input));
        let found = found.ok().map(|prompt| prompt.text());
        let wanted = match differences.shift_remove(&source) {
            Some(here) => {
                let here = here.as_str().map(str::to_owned);
                assert_ne!(here, expected, "no difference: {source}");
                here
            }
            None => expected,
        };
        if found != wanted {
            wrong.push(format!("{source}\n  found    {found:?}\n  expected {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(differences.is_empty(), "of no template: {differences:?}");
}
