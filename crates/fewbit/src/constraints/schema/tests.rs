//! The JSON Schema Test Suite (draft 2020-12), against the grammars of its schemas.
//!
//! The vocabulary here is the 256 bytes, so that a text can be followed byte by byte: whether an instance of the suite
//! can be written, and what comes of random walks, which the crate `jsonschema` validates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use super::keywords::KEYWORDS;
use super::*;

struct Group {
    file: String,
    description: String,
    schema: String,
    tests: Vec<(String, bool)>,
}

fn suite() -> Vec<Group> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/json_schema_suite.json");
    type Line = (String, String, String, Vec<(String, bool)>);
    let all: Vec<Line> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all.into_iter().map(|(file, description, schema, tests)| Group { file, description, schema, tests }).collect()
}

fn factory() -> Arc<ParserFactory> {
    let env = ApproximateTokEnv::single_byte_env();
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[]).unwrap();
    factory.quiet();
    factory.limits_mut().verbose_errors = false;
    Arc::new(factory)
}

fn compile(factory: &ParserFactory, schema: &str, compact: bool) -> Result<Matcher, ConstraintError> {
    let grammar = grammar(&Json::read(schema)?, compact, false)?;
    let parser =
        factory.create_parser_from_init_default(GrammarInit::Serialized(TopLevelGrammar::from_lark(grammar.clone())));
    parser.map(|parser| Matcher::new(Ok(parser))).map_err(|error| panic!("{schema}: {error}\n{grammar}"))
}

/// Whether a text can be written.
fn accepts(matcher: &Matcher, text: &str) -> bool {
    let mut matcher = matcher.deep_clone();
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    // Where nothing can follow, it stops by itself.
    matcher.try_consume_tokens(&tokens).unwrap() == tokens.len()
        && (matcher.is_stopped() || matcher.is_accepting().unwrap_or(false))
}

/// The text with the properties of its objects in some other orders.
fn orders(value: &Json) -> Vec<String> {
    match value {
        Json::Object(fields) => {
            let mut all = vec![(Vec::new(), (0..fields.len()).collect::<Vec<_>>())];
            for _ in 0..fields.len().min(4) {
                let more = all.into_iter().flat_map(|(begin, left)| {
                    (0..left.len()).map(move |i| {
                        let (mut begin, mut left) = (begin.clone(), left.clone());
                        begin.push(left.remove(i));
                        (begin, left)
                    })
                });
                all = more.collect();
            }
            let texts: Vec<Vec<String>> = fields.iter().map(|(_, value)| orders(value)).collect();
            let mut found = Vec::new();
            for (mut begin, left) in all {
                begin.extend(left);
                // Of the parts, each the n-th of its orders.
                for n in 0..texts.iter().map(Vec::len).max().unwrap_or(1).min(6) {
                    let field =
                        |i: &usize| format!("{}:{}", strings::quoted(&fields[*i].0), texts[*i][n % texts[*i].len()]);
                    found.push(format!("{{{}}}", begin.iter().map(field).collect::<Vec<_>>().join(",")));
                }
            }
            found
        }
        Json::Array(items) => {
            let texts: Vec<Vec<String>> = items.iter().map(orders).collect();
            let n = texts.iter().map(Vec::len).max().unwrap_or(1).min(24);
            let item = |n: usize| texts.iter().map(|texts| texts[n % texts.len()].clone()).collect::<Vec<_>>();
            (0..n).map(|n| format!("[{}]", item(n).join(","))).collect()
        }
        Json::Null => vec!["null".into()],
        Json::Bool(value) => vec![value.to_string()],
        // `1.0` is an integer, and integers have no point.
        Json::Number(number) => vec![number.text(30).unwrap_or_else(|| "1e400".into())],
        Json::String(text) => vec![strings::quoted(text)],
    }
}

/// The keyword and the place that an error names.
fn keyword_of(error: &ConstraintError) -> Option<String> {
    let text = error.to_string();
    let place = text.split('#').nth(1)?.split(": ").next()?;
    place.split('/').rev().find(|name| KEYWORDS.iter().any(|(known, _)| known == name)).map(str::to_owned)
}

/// What each file of the suite came to.
#[derive(Default, Debug)]
struct Row {
    groups: usize,
    compiled: usize,
    refused: BTreeSet<String>,
    valid: usize,
    written: usize,
}

/// Random text, which is pushed towards its end after some bytes.
fn walk(matcher: &mut Matcher, seed: u64) -> Option<String> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let mut text = Vec::new();
    let end = matcher.tok_env().unwrap().tok_trie().eos_token();
    let mut after = 8 + random(60);
    while text.len() < 1500 {
        if matcher.is_stopped() {
            break;
        }
        let mask = matcher.compute_mask_or_eos().unwrap();
        let allowed: Vec<u8> = (0..=255).filter(|byte| mask.is_allowed(u32::from(*byte))).collect();
        let may_end = mask.is_allowed(end);
        if may_end && (allowed.is_empty() || text.len() >= after || random(4) == 0) {
            break;
        }
        // Towards the end: quotes and closing brackets before all else, and nothing that begins something.
        let pick = |of: &[u8]| allowed.iter().copied().filter(|byte| of.contains(byte)).collect::<Vec<_>>();
        let best = if text.len() >= after {
            [
                pick(b"\""),
                pick(b"]}"),
                pick(b"0123456789ntf"),
                allowed.iter().copied().filter(|b| !b"[{(, \n\t\r\\".contains(b)).collect(),
            ]
            .into_iter()
            .find(|found| !found.is_empty())
            .unwrap_or_else(|| allowed.clone())
        } else {
            // White space is as likely as all else together, and not more.
            let dense: Vec<u8> = allowed.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
            if dense.is_empty() || random(12) == 0 { allowed.clone() } else { dense }
        };
        if text.len() > 400 {
            after = 0;
        }
        let byte = best[random(best.len())];
        matcher.consume_token(u32::from(byte)).unwrap();
        text.push(byte);
    }
    (text.len() < 1500).then(|| String::from_utf8(text).unwrap())
}

/// With the formats that are enforced, and no others.
fn validator(schema: &Value) -> Option<jsonschema::Validator> {
    let enforced = |name: &str| formats::FORMATS.iter().any(|(known, _)| *known == name);
    let all = ["idn-email", "idn-hostname", "iri", "iri-reference", "regex", "uri-reference", "uri-template"];
    let mut options = jsonschema::options().should_validate_formats(true);
    for name in all {
        assert!(!enforced(name));
        options = options.with_format(name, |_: &str| true);
    }
    options.build(schema).ok()
}

#[test]
fn suite_schemas_compile_or_fail_naming_the_keyword() {
    let factory = factory();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let (mut n_walks, mut n_cut) = (0, 0);
    let (mut failures, mut written) = (Vec::new(), Vec::new());
    for (i, group) in suite().iter().enumerate() {
        let name = format!("{}: {}: {}", group.file, group.description, group.schema);
        let row = rows.entry(group.file.clone()).or_default();
        row.groups += 1;
        let matcher = match compile(&factory, &group.schema, true) {
            Ok(matcher) => matcher,
            Err(error @ ConstraintError::Unsatisfiable { .. }) => {
                if group.tests.iter().any(|(_, is_valid)| *is_valid) {
                    failures.push(format!("{name}: {error}"));
                }
                row.compiled += 1;
                continue;
            }
            Err(error) => {
                match keyword_of(&error) {
                    Some(keyword) => row.refused.insert(format!("`{keyword}`")),
                    None => {
                        failures.push(format!("{name}: {error}"));
                        false
                    }
                };
                continue;
            }
        };
        row.compiled += 1;
        let value = serde_json::from_str::<Value>(&group.schema).unwrap();
        let validator = validator(&value);
        for (text, is_valid) in &group.tests {
            let mut texts = orders(&Json::read(text).unwrap());
            texts.push(text.clone());
            let is_written = texts.iter().any(|text| accepts(&matcher, text));
            if *is_valid {
                row.valid += 1;
                row.written += usize::from(is_written);
                if !is_written && std::env::var_os("SHOW").is_some() {
                    println!("not written: {name}: {text}");
                }
            } else if is_written
                && (!group.file.contains("format")
                    || validator.as_ref().is_some_and(|v| !v.is_valid(&serde_json::from_str(text).unwrap())))
            {
                failures.push(format!("{name}: accepts {text}"));
            }
        }
        let Some(validator) = validator else { continue };
        for k in 0..4 {
            let mut matcher =
                if k == 2 { compile(&factory, &group.schema, false).unwrap() } else { matcher.deep_clone() };
            n_walks += 1;
            let Some(text) = walk(&mut matcher, (i * 4 + k) as u64) else {
                n_cut += 1;
                continue;
            };
            written.push((group.schema.clone(), text.clone()));
            match serde_json::from_str::<Value>(&text) {
                Ok(value) if validator.is_valid(&value) => {}
                Ok(_) => failures.push(format!("{name}: wrote what is not valid: {text}")),
                Err(error) => failures.push(format!("{name}: wrote no JSON: {error}: {text:?}")),
            }
        }
    }
    if let Some(path) = std::env::var_os("FEWBIT_SCHEMA_TEXTS") {
        std::fs::write(path, serde_json::to_string(&written).unwrap()).unwrap();
    }
    let sum = |of: fn(&Row) -> usize| rows.values().map(of).sum::<usize>();
    let total = [sum(|row| row.groups), sum(|row| row.compiled), sum(|row| row.written), sum(|row| row.valid)];
    println!("groups, compiled, written, valid: {total:?}; {n_walks} random texts, {n_cut} cut");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(n_walks >= 1000, "{n_walks}");
    assert!(n_cut * 50 < n_walks, "{n_cut}");
    documented(&rows, total);
}

/// Compares the tables in the documentation with what was measured, or writes them.
fn documented(rows: &BTreeMap<String, Row>, [groups, compiled, written, valid]: [usize; 4]) {
    let mut suite = String::from(
        "| file | schemas | compile | refused for | valid instances | can be written |\n|---|---|---|---|---|---|\n",
    );
    for (file, row) in rows {
        let refused: Vec<&str> = row.refused.iter().map(String::as_str).collect();
        let (groups, compiled, refused) = (row.groups, row.compiled, refused.join(", "));
        suite += &format!("| {file} | {groups} | {compiled} | {refused} | {} | {} |\n", row.valid, row.written);
    }
    suite += &format!("| all | {groups} | {compiled} | | {valid} | {written} |\n");
    let table = |head: &str, rows: &[(&str, &str)]| {
        let rows: String = rows.iter().map(|(name, text)| format!("| `{name}` | {text} |\n")).collect();
        format!("| {head} | |\n|---|---|\n{rows}").replace("`(others)`", "others")
    };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/constraints.md");
    let found = std::fs::read_to_string(path).unwrap().replace("\r\n", "\n");
    let mut text = found.clone();
    for (name, table) in
        [("keywords", table("keyword", &KEYWORDS)), ("formats", table("format", &formats::FORMATS)), ("suite", suite)]
    {
        let begin = format!("<!-- {name} -->\n");
        let (before, rest) = text.split_once(&begin).unwrap();
        let (_, after) = rest.split_once("<!-- end -->").unwrap();
        text = format!("{before}{begin}{table}<!-- end -->{after}");
    }
    if std::env::var_os("FEWBIT_UPDATE_DOCS").is_some() {
        std::fs::write(path, text).unwrap();
    } else {
        assert!(text == found, "docs/constraints.md is not what was measured; FEWBIT_UPDATE_DOCS=1 writes it");
    }
}
