//! Constraints: every output satisfies its constraint, and an impossible constraint is an error before anything runs.

use fewbit::{Completion, Constraint, ConstraintError, ErrorKind, FinishReason, Generate};
use serde_json::{Value, json};

use crate::schemas::{self, Closing};
use crate::{stories, together};

/// A generation from a model that knows nothing about JSON, so that every token is random.
fn generate(constraint: Constraint, seed: u64) -> Generate {
    stories()
        .generate("Once")
        .temperature(1.0)
        .top_k(0)
        .top_p(1.0)
        .min_p(0.0)
        .seed(seed)
        .constraint(constraint)
        .custom_sampler(|| Closing::new(stories(), 60))
        .max_tokens(440)
}

fn run(constraint: Constraint, seed: u64) -> Completion {
    generate(constraint, seed).run().unwrap()
}

/// The error for a rejected constraint.
fn refusal(constraint: Constraint) -> ConstraintError {
    match generate(constraint, 0).stream() {
        Err(error) => *error.into_source().unwrap().downcast().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// A validator that looks at formats too. Second 60 is in the grammar of RFC 3339, and the validator's own check takes
/// it only at the end of a day.
fn validator(schema: &Value) -> jsonschema::Validator {
    fn of_format(format: &'static str) -> impl Fn(&str) -> bool {
        let schema = serde_json::json!({ "format": format });
        let strict = jsonschema::options().should_validate_formats(true).build(&schema).expect("a valid schema");
        move |text| strict.is_valid(&Value::from(text.replacen(":60", ":59", 1)))
    }
    jsonschema::options()
        .should_validate_formats(true)
        .with_format("date-time", of_format("date-time"))
        .with_format("time", of_format("time"))
        .build(schema)
        .expect("a valid schema")
}

/// What a stop string ends is complete.
#[test]
fn json_before_a_stop_string_is_parsed() {
    let request = stories().generate("Once").constraint(Constraint::choice(["{\"a\": 1}; and more"]));
    let out = request.stop(";").max_tokens(60).run().unwrap();
    assert_eq!((out.finish_reason, out.text.as_str()), (FinishReason::StopString, "{\"a\": 1}"));
    assert_eq!(out.json::<Value>().unwrap()["a"], 1);
}

#[test]
fn random_outputs_of_five_hundred_schemas_validate() {
    let all = schemas::all();
    assert!(all.len() >= 500, "{} schemas", all.len());
    let mut cut = 0;
    for (i, (name, schema)) in all.into_iter().enumerate() {
        let validator = validator(&schema);
        let compact = i % 2 == 0;
        let constraint = Constraint::json_schema(schema.clone());
        let out = run(if compact { constraint.compact() } else { constraint }, i as u64);
        if out.finish_reason == FinishReason::Length {
            cut += 1;
            assert!(matches!(out.json::<Value>().map_err(fewbit::Error::into_kind), Err(ErrorKind::Incomplete { .. })));
            continue;
        }
        assert_eq!(out.finish_reason, FinishReason::EndOfGeneration);
        let value: Value = out.json().unwrap_or_else(|error| panic!("{name}: {error}: {}", out.text));
        let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {schema}: {}: {errors:?}", out.text);
    }
    assert!(cut <= 10, "{cut} outputs were cut");
}

#[test]
fn real_vocabulary_gives_valid_json() {
    let model = crate::smollm2::model();
    for (i, (name, schema)) in schemas::all().into_iter().enumerate().step_by(17) {
        let out = model
            .generate("A record as JSON:")
            .temperature(1.0)
            .seed(i as u64)
            .constraint(Constraint::json_schema(schema.clone()))
            .custom_sampler(|| Closing::new(crate::smollm2::model(), 25))
            .max_tokens(250)
            .run()
            .unwrap();
        assert_eq!(out.finish_reason, FinishReason::EndOfGeneration, "{name}: {}", out.text);
        let value: Value = serde_json::from_str(&out.text).unwrap();
        assert!(jsonschema::is_valid(&schema, &value), "{name}: {}", out.text);
    }
}

#[test]
fn regex_matches_the_whole_text() {
    let dates = regex::Regex::new(r"^[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]( [a-zé]{2,5})?$").unwrap();
    for seed in 0..20 {
        let out = run(Constraint::regex(r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]( [a-zé]{2,5})?"), seed);
        assert_eq!(out.finish_reason, FinishReason::EndOfGeneration);
        assert!(dates.is_match(&out.text), "{:?}", out.text);
    }
}

#[test]
fn choice_gives_one_of_the_texts() {
    let texts = ["yes", "no", "perhaps", "yes, but \"maybe\"\nnot", "né"];
    let found: std::collections::BTreeSet<String> =
        (0..60).map(|seed| run(Constraint::choice(texts), seed).text).collect();
    assert!(found.iter().all(|text| texts.contains(&text.as_str())), "{found:?}");
    assert!(found.len() > 2, "{found:?}");
}

/// Numbers end even if a model prefers digits to everything else.
#[test]
fn numbers_end_even_if_digits_are_preferred() {
    let model = stories();
    let digits: Vec<u32> = (0..model.tokenizer().n_vocab() as u32)
        .filter(|&id| matches!(model.tokenizer().token_bytes(id), [b'0'..=b'9']))
        .collect();
    for schema in [json!({ "type": "number", "minimum": 0.1, "maximum": 0.2 }), json!({})] {
        let request = digits.iter().fold(
            model.generate("1").temperature(0.0).max_tokens(120).constraint(Constraint::json_schema(schema.clone())),
            |request, &id| request.options(fewbit::GenerateOptions::new().logit_bias(id, 50.0)),
        );
        let out = request.run().unwrap();
        assert_eq!(out.finish_reason, FinishReason::EndOfGeneration, "{schema}: {:?}", out.text);
        assert!(serde_json::from_str::<f64>(&out.text).is_ok(), "{:?}", out.text);
    }
}

/// Numbers of any size are the numbers of the schema, digit by digit.
#[test]
fn large_numbers_are_exact() {
    let of = |schema: &str, seed| run(Constraint::json_schema_str(schema).unwrap().compact(), seed).text;
    let large = ["175928847299117063", "-18446744073709551617", "1234567890123456789012345678901"];
    for (seed, n) in (0..).zip(large) {
        assert_eq!(of(&format!(r#"{{ "const": {n} }}"#), seed), n);
        assert_eq!(of(&format!(r#"{{ "type": "integer", "enum": [{n}] }}"#), seed), n);
        assert_eq!(of(&format!(r#"{{ "const": {{ "id": [{n}] }} }}"#), seed), format!(r#"{{"id":[{n}]}}"#));
        assert_eq!(of(&format!(r#"{{ "type": "integer", "minimum": {n}, "maximum": {n} }}"#), seed), n);
    }
    for seed in 0..20 {
        let neighbours =
            of(r#"{ "type": "integer", "minimum": 175928847299117063, "exclusiveMaximum": 175928847299117066 }"#, seed);
        assert!((175_928_847_299_117_063_i64..175_928_847_299_117_066).contains(&neighbours.parse().unwrap()));
    }
}

#[test]
fn tagged_unions_by_reference_give_one_of_their_variants() {
    let part = |tag: &str, field: &str| {
        json!({
            "type": "object",
            "properties": { "kind": { "const": tag }, field: { "type": "integer", "minimum": 1, "maximum": 9 } },
            "required": ["kind", field],
            "additionalProperties": false
        })
    };
    let schema = json!({
        "oneOf": [{ "$ref": "#/$defs/a~1b%20c" }, { "allOf": [{ "$ref": "#/$defs/Square" }] }],
        "$defs": { "a/b c": part("circle", "r"), "Square": part("square", "side") }
    });
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let out = run(Constraint::json_schema(schema.clone()).compact(), seed);
        let value: Value = out.json().unwrap();
        assert!(jsonschema::is_valid(&schema, &value), "{value}");
        kinds.insert(value["kind"].to_string());
    }
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    // The alternatives cannot be distinguished, and a multiple cannot be negated.
    let error = refusal(Constraint::json_schema(json!({ "oneOf": [{ "multipleOf": 2 }, { "multipleOf": 3 }] })));
    assert!(error.to_string().contains("#/oneOf"), "{error}");
}

/// Pushes a random text towards the end of a sum, because white space and digits could go on forever.
struct Sum {
    begun_at: Option<usize>,
}

impl fewbit::sample::CustomSampler for Sum {
    fn adjust(&mut self, tokens: &[u32], logits: &mut [f32]) {
        let begun_at = *self.begun_at.get_or_insert(tokens.len());
        if tokens.len() < begun_at + 12 {
            return;
        }
        let bytes = |id: u32| stories().tokenizer().token_bytes(id);
        let after_digit = tokens.last().is_some_and(|id| bytes(*id) == b"7");
        for (id, logit) in (0..).zip(logits) {
            *logit += match bytes(id) {
                b"=" | b")" => 70.0,
                b"7" if !after_digit => 50.0,
                b"\n" if after_digit => 50.0,
                _ => 0.0,
            };
        }
    }
}

/// With the end of the text as likely as can be, every grammar can come to it (llama.cpp's arithmetic and JSON).
#[test]
fn recursive_grammars_can_end() {
    let model = stories();
    let arithmetic = "root ::= (expr \"=\" ws term \"\\n\")+\nexpr ::= term ([-+*/] term)*\n\
                      term ::= ident | num | \"(\" ws expr \")\" ws\nident ::= [a-z] [a-z0-9_]* ws\n\
                      num ::= [0-9]+ ws\nws ::= [ \\t\\n]*";
    let json = r#"root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}"#;
    let sums = regex::Regex::new(r"^([a-z0-9_()+\-*/ \t\n]+=[a-z0-9_()+\-*/ \t\n]*\n)+$").unwrap();
    let ends: Vec<u32> = model.tokenizer().end_of_generation().collect();
    for seed in 0..20 {
        for (grammar, is_json) in [(arithmetic, false), (json, true)] {
            let mut request = generate(Constraint::gbnf(grammar).unwrap(), seed);
            if !is_json {
                request = request.custom_sampler(|| Sum { begun_at: None });
            }
            let bias = |options: fewbit::GenerateOptions, id: &u32| options.logit_bias(*id, 100.0);
            let out = request.options(ends.iter().fold(fewbit::GenerateOptions::new(), bias)).run().unwrap();
            assert_eq!(out.finish_reason, FinishReason::EndOfGeneration, "{:?}", out.text);
            match is_json {
                // Exponents may be beyond what a value holds.
                true => assert!(serde_json::from_str::<serde::de::IgnoredAny>(&out.text).is_ok(), "{:?}", out.text),
                false => assert!(sums.is_match(&out.text), "{:?}", out.text),
            }
        }
    }
}

/// Schemas that would take the compiler forever are errors with a clear message.
#[test]
fn hostile_schemas_take_bounded_time() {
    let product: Vec<Value> =
        (0..40).map(|i| json!({ "anyOf": [{ "minimum": i }, { "minLength": i }, { "minItems": i }] })).collect();
    for schema in [
        json!({ "allOf": product }),
        json!({ "type": "array", "minItems": 1_000_000_000 }),
        json!({ "type": "string", "minLength": 1_000_000_000 }),
        json!({ "type": "integer", "multipleOf": 123_456_789 }),
        json!({ "type": "string", "pattern": "^(a{1000}){1000}$" }),
    ] {
        let error = refusal(Constraint::json_schema(schema.clone()));
        let is_typed = matches!(error, ConstraintError::TooLarge { .. } | ConstraintError::Invalid { .. });
        assert!(is_typed, "{schema}: {error:?}");
    }
    // A graph of 30 parts that would have 2^30 parts as a tree.
    let mut defs = json!({ "a30": { "type": "null" } });
    for i in 0..30 {
        let next = json!({ "$ref": format!("#/$defs/a{}", i + 1) });
        defs[format!("a{i}")] = json!({ "type": "object", "properties": { "x": next, "y": next } });
    }
    let out = run(Constraint::json_schema(json!({ "$ref": "#/$defs/a0", "$defs": defs })), 1);
    assert!(!out.text.is_empty());
}

#[test]
fn gbnf_and_lark_grammars_are_enforced() {
    let balanced = |text: &str| {
        let depths: Vec<i32> = text
            .chars()
            .scan(0, |depth, c| {
                *depth += if c == '(' { 1 } else { -1 };
                Some(*depth)
            })
            .collect();
        depths.iter().all(|depth| *depth >= 0) && depths.last() == Some(&0)
    };
    let sum = regex::Regex::new(r"^(0|[1-9][0-9]{0,3})( [-+*] (0|[1-9][0-9]{0,3}))* = -?[0-9]{1,5}$").unwrap();
    let leading_zeros = regex::Regex::new(r"\b0+(\d)").unwrap();
    for seed in 0..20 {
        let out = run(Constraint::lark("start: pair+\npair: \"(\" pair* \")\""), seed);
        assert!(out.finish_reason == FinishReason::Length || balanced(&out.text), "{:?}", out.text);
        let grammar = "root ::= num (\" \" [-+*] \" \" num)* \" = \" \"-\"? [0-9]{1,5}\n\
                       num ::= \"0\" | [1-9] [0-9]{0,3} # no leading zeros";
        let out = run(Constraint::gbnf(grammar).unwrap(), seed);
        assert!(out.finish_reason == FinishReason::Length || sum.is_match(&out.text), "{:?}", out.text);
        // Recursive, with white space that may be empty.
        let list = "root ::= value\nvalue ::= num | \"[\" ws (value (\",\" ws value)*)? ws \"]\"\n\
                    num ::= [0-9]{1,2}\nws ::= \" \"?";
        let out = run(Constraint::gbnf(list).unwrap(), seed);
        if out.finish_reason == FinishReason::EndOfGeneration {
            let text = leading_zeros.replace_all(&out.text, "$1");
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "{:?}", out.text);
        }
    }
}

#[test]
fn unsatisfiable_constraints_fail_before_running() {
    let unsatisfiable = |schema| refusal(Constraint::json_schema(schema));
    for schema in [
        json!(false),
        json!({ "type": "integer", "minimum": 3, "maximum": 2 }),
        json!({ "allOf": [{ "type": "string" }, { "type": "number" }] }),
        json!({ "type": "object", "properties": { "a": false }, "required": ["a"] }),
    ] {
        let error = unsatisfiable(schema.clone());
        assert!(matches!(error, ConstraintError::Unsatisfiable { .. }), "{schema}: {error:?}");
    }
    for schema in [
        json!(3),
        json!({ "type": "nonsense" }),
        json!({ "type": "object", "patternProperties": { "(": {} } }),
        json!({ "$ref": "#/$defs/missing" }),
        json!({ "type": "array", "uniqueItems": true }),
        json!({ "not": { "multipleOf": 2 } }),
    ] {
        let error = unsatisfiable(schema.clone());
        assert!(matches!(error, ConstraintError::Invalid { .. }), "{schema}: {error:?}");
    }
    let mut deep = json!({ "type": "string" });
    for _ in 0..200 {
        deep = json!({ "type": "array", "items": deep });
    }
    for schema in [deep, json!({ "enum": ["x".repeat(2 << 20)] })] {
        let error = unsatisfiable(schema);
        assert!(matches!(error, ConstraintError::TooLarge { .. }), "{error:?}");
    }
    for (constraint, kind) in
        [(Constraint::regex("("), "regular expression"), (Constraint::lark("start: x"), "grammar")]
    {
        let error = refusal(constraint);
        assert!(matches!(error, ConstraintError::Invalid { kind: found, .. } if found == kind), "{error:?}");
    }
    let deep = refusal(Constraint::lark(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))));
    assert!(!deep.to_string().is_empty());
    assert_eq!(refusal(Constraint::choice::<String>([])), ConstraintError::NoChoice);
    // The model is as usable as before.
    assert_eq!(run(Constraint::choice(["yes"]), 1).text, "yes");
}

#[test]
fn truncated_json_is_an_error_and_complete_json_is_parsed() {
    #[derive(Debug, PartialEq, serde::Deserialize, schemars::JsonSchema)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Shape {
        Circle { radius: u8 },
        Square { side: u8, name: Option<Name> },
    }
    #[derive(Debug, PartialEq, serde::Deserialize, schemars::JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Name {
        Big,
        Small,
    }
    let begin =
        |seed| stories().generate("Once").temperature(1.0).seed(seed).custom_sampler(|| Closing::new(stories(), 40));
    for seed in 0..20 {
        let shapes: Vec<Shape> = begin(seed).max_tokens(500).json().unwrap();
        println!("{shapes:?}");
    }
    let error = begin(1).max_tokens(3).json::<Shape>().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Incomplete { reason: FinishReason::Length, .. }), "{error:?}");
    let mut chat = stories().chat().temperature(1.0).seed(5).start().unwrap();
    let shape: Shape = chat.ask("Draw.").custom_sampler(|| Closing::new(stories(), 40)).max_tokens(300).json().unwrap();
    let answer = &chat.messages().last().unwrap().content;
    assert_eq!(serde_json::from_str::<Shape>(answer).unwrap(), shape);
}

#[test]
fn concurrent_constraints_do_not_affect_each_other() {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
    let one = |i: u64| match i % 3 {
        0 => run(Constraint::json_schema(schema.clone()), i).text,
        1 => run(Constraint::regex("[a-f]{3,9}"), i).text,
        _ => stories().generate("Once").seed(i).max_tokens(30).run().unwrap().text,
    };
    let alone: Vec<_> = (0..12).map(one).collect();
    assert_eq!(together(12, |i| one(i as u64)), alone);
}
