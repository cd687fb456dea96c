//! Position embeddings of `config.json` in every spelling, compared with the results of `transformers`, from which
//! `golden/ropes.py` computed the numbers. Also tests which keys are errors.

#[path = "support/config.rs"]
mod config;

use config::read;
use fewbit_checkpoint::{CheckpointError, RopeConfig};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    rope: Ropes,
}

#[derive(Deserialize)]
struct Ropes {
    global: Rope,
    local: Option<Rope>,
    /// Beyond this many positions, `global_long` is in the place of `global`.
    original_context: Option<usize>,
    global_long: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    frequencies: Vec<f64>,
    attention_factor: f64,
}

impl Rope {
    fn assert_matches(&self, rope: &RopeConfig, context: usize, what: &str) {
        let got = rope.frequencies(context);
        assert_eq!(got.len(), self.frequencies.len(), "{what}: elements");
        for (i, (got, want)) in got.iter().zip(&self.frequencies).enumerate() {
            assert!((got / want - 1.0).abs() < 1e-12, "{what}: pair {i} has {got}, not {want}");
        }
        let (got, want) = (rope.attention_factor, self.attention_factor);
        assert!((got / want - 1.0).abs() < 1e-12, "{what}: an attention factor of {got}, not {want}");
    }
}

#[test]
fn every_rope_spelling_is_read_like_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("golden/ropes.json")).expect("valid JSON");
    assert!(golden.cases.len() >= 85);
    for case in &golden.cases {
        let config = read(case.config.clone()).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let context = case.rope.original_context.unwrap_or(config.context_length);
        case.rope.global.assert_matches(&config.rope, context, &case.name);
        if let Some(long) = &case.rope.global_long {
            long.assert_matches(&config.rope, context + 1, &format!("{}, beyond {context}", case.name));
        }
        match (&case.rope.local, &config.local_rope) {
            (Some(want), Some(got)) => want.assert_matches(got, context, &format!("{}, local layers", case.name)),
            (None, None) => {}
            (want, _) => panic!("{}: local layers of their own: {}", case.name, want.is_some()),
        }
    }
}

#[test]
fn unsupported_rope_settings_are_rejected_by_key() {
    let refused = |settings: Value| match read(settings) {
        Err(CheckpointError::UnsupportedFeature { key, value, .. }) => format!("{key} = {value}"),
        other => panic!("{other:?}"),
    };
    let mut checked = 0;
    for (class, settings, expected) in [
        ("LlamaForCausalLM", json!({ "rope_scaling": { "rope_type": "xdrope" } }), "rope_scaling.rope_type"),
        ("LlamaForCausalLM", json!({ "rope_scaling": { "type": "mrope" } }), "rope_scaling.type"),
        (
            "Gemma3ForCausalLM",
            json!({ "rope_parameters": { "full_attention": { "rope_type": "proportional" } } }),
            "rope_parameters.full_attention.rope_type",
        ),
        ("LlamaForCausalLM", json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor"),
        (
            "LlamaForCausalLM",
            json!({ "rope_parameters": { "rope_theta": 1e4, "partial_rotary_factor": 0.5 } }),
            "rope_parameters.partial_rotary_factor",
        ),
    ] {
        let mut settings = settings;
        settings["architectures"] = json!([class]);
        let found = refused(settings);
        assert!(found.starts_with(expected), "{found}");
        checked += 1;
    }
    for (kind, missing) in
        [("linear", "factor"), ("yarn", "factor"), ("llama3", "factor"), ("longrope", "short_factor")]
    {
        let settings = json!({ "architectures": ["LlamaForCausalLM"], "rope_scaling": { "rope_type": kind } });
        let error = read(settings).expect_err("incomplete").to_string();
        assert!(error.contains(&format!("rope_scaling.{missing}")), "{error}");
        checked += 1;
    }
    assert_eq!(checked, 9);
}
