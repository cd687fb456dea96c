//! The types that recipes give, compared with those that llama-quantize gives (`golden/make_recipes.py`).

use fewbit_model::quantize::{ModelFacts, Plan, Recipe};
use fewbit_quant::TensorType;

/// The models of `make_recipes.py`: name, architecture, layers, heads, key and value heads, experts, tied.
const MODELS: [(&str, &str, usize, usize, usize, usize, bool); 9] = [
    ("gqa", "llama", 32, 32, 8, 0, false),
    ("mha", "llama", 22, 32, 32, 0, true),
    ("moe", "llama", 16, 32, 8, 8, false),
    ("moe4", "llama", 9, 32, 16, 4, false),
    ("70b", "llama", 80, 64, 8, 0, false),
    ("72b", "qwen2", 80, 64, 8, 0, false),
    ("narrow", "llama", 30, 9, 3, 0, true),
    ("odd", "llama", 3, 5, 5, 0, false),
    ("joint", "phi3", 16, 32, 32, 0, false),
];

fn facts(model: &str) -> ModelFacts {
    let row = MODELS.iter().find(|row| row.0 == model).unwrap();
    let mut facts = ModelFacts::new(row.1);
    (facts.n_layers, facts.n_heads, facts.n_kv_heads, facts.n_experts, facts.tied) =
        (row.2, row.3, row.4, row.5, row.6);
    facts
}

/// The shape of a matrix of these models: four rows, as many columns as `make_recipes.py` gives it.
fn shape(model: &str, name: &str, n_experts: usize) -> Vec<u64> {
    let n_cols = match (model, name.contains("ffn_down")) {
        ("narrow", false) => 576,
        ("narrow", true) => 1536,
        ("odd", false) => 80,
        ("odd", true) => 272,
        _ => 256,
    };
    if name.contains("_exps") { vec![n_experts as u64, 4, n_cols] } else { vec![4, n_cols] }
}

/// `0-3,6` as numbers.
fn layers(text: &str) -> Vec<usize> {
    let ends = |part: &str| {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        a.parse::<usize>().unwrap()..=b.parse::<usize>().unwrap()
    };
    text.split(',').flat_map(ends).collect()
}

#[test]
fn tensor_types_match_llama_quantize() {
    let (mut n_checked, mut wrong) = (0, Vec::new());
    for line in include_str!("golden/recipes.txt").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [model, recipe, ty, name, numbers] = fields[..] else { panic!("{line}") };
        let facts = facts(model);
        let mut plan = Plan::new(recipe.trim_end_matches('+').parse().unwrap());
        plan.importance = recipe.ends_with('+');
        for layer in layers(numbers) {
            let name = name.replace('*', &layer.to_string());
            let found = plan.tensor_type(&facts, &name, &shape(model, &name, facts.n_experts), TensorType::F16);
            n_checked += 1;
            if found.name() != ty {
                wrong.push(format!("{model} {recipe} {name}: {found}, llama-quantize has {ty}"));
            }
        }
    }
    assert!(n_checked > 30_000, "{n_checked}");
    assert!(wrong.is_empty(), "{} of {n_checked} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn vectors_and_small_matrices_keep_their_type() {
    let plan = Plan::new(Recipe::Q4_K_M);
    for (name, shape) in [
        ("blk.0.attn_norm.weight", &[256][..]),
        ("blk.0.attn_q.bias", &[256]),
        ("blk.0.attn_q.weight", &[1, 256]),
        ("blk.0.attn_q_norm.weight", &[4, 256]),
        ("blk.0.ffn_gate_inp.weight", &[8, 256]),
        ("rope_freqs.weight", &[64]),
    ] {
        assert_eq!(plan.tensor_type(&facts("gqa"), name, shape, TensorType::F32), TensorType::F32, "{name}");
    }
}

#[test]
fn the_caller_overrides_the_recipe() {
    let types = |plan: &Plan, model: &str| {
        ["token_embd.weight", "output.weight", "blk.0.attn_v.weight"]
            .map(|name| plan.tensor_type(&facts(model), name, &[8, 256], TensorType::F16))
    };
    let mut plan = Plan::new(Recipe::Q4_K_M);
    assert_eq!(types(&plan, "gqa"), [TensorType::Q4_K, TensorType::Q6_K, TensorType::Q6_K]);
    assert_eq!(types(&plan, "mha")[0], TensorType::Q6_K, "the embedding is the output");
    plan.pure = true;
    assert_eq!(types(&plan, "gqa"), [TensorType::Q4_K; 3]);
    plan.pure = false;
    plan.output_type = Some(TensorType::Q8_0);
    plan.embedding_type = Some(TensorType::F16);
    assert_eq!(types(&plan, "gqa"), [TensorType::F16, TensorType::Q8_0, TensorType::Q6_K]);
    plan.keep_output = true;
    assert_eq!(types(&plan, "gqa")[1], TensorType::F16);
}

#[test]
fn recipe_names_can_be_parsed_and_printed() {
    for recipe in Recipe::all() {
        assert_eq!(recipe.name().to_lowercase().parse(), Ok(recipe));
        assert_eq!(recipe.to_string(), recipe.name());
    }
    for (short, long) in [("Q3_K", Recipe::Q3_K_M), ("q4_k", Recipe::Q4_K_M), ("Q5_K", Recipe::Q5_K_M)] {
        assert_eq!(short.parse(), Ok(long));
    }
    let error = "Q4_K_XL".parse::<Recipe>().unwrap_err().to_string();
    assert!(error.contains("Q4_K_XL") && error.contains("Q4_K_M"), "{error}");
}
