//! Tiny models of whole families: the GGUF files that `golden/transformers_*.json` of `fewbit-model` describe, with values
//! of their own. And some more, for parts that no family has without others that only the CPU runs.

use super::described::Described;
use super::golden::values;
use crate::models::random::Random;
use fewbit_format::GgufFile;
use fewbit_model::LoadOptions;
use fewbit_quant::TensorType;
use serde::Deserialize;

#[derive(Deserialize)]
struct Models {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    gguf: Described,
}

/// One model.
pub(crate) struct Family {
    pub(crate) name: String,
    gguf: Described,
}

/// What of them GPUs run.
pub(crate) const ON_GPUS: &[&str] = &[
    "gpt-oss",
    "gpt-oss, experts in MXFP4",
    "Llama 4 Scout",
    "Llama 4 Maverick",
    "OLMo 2",
    "OLMo 3",
    "GLM-4",
    "EXAONE 4, 32B",
    "EXAONE 4, 1.2B",
    "Hunyuan",
    "Seed-OSS",
    "Command R7B",
    "Command R",
    "GLM-4.5",
    "GLM-4.5 Air",
    "Gemma 4 E2B",
    "Gemma 4 E4B",
    "Gemma 4 31B",
    "Gemma 4 26B-A4B",
    "Gemma 4 12B",
    "GLM-4.5 with groups of experts",
    "Nemotron-H without states",
];

/// All of them, also those that only the CPU runs.
pub(crate) fn families() -> Vec<Family> {
    let all = [
        include_str!("../../../fewbit-model/tests/golden/transformers_models.json"),
        include_str!("../../../fewbit-model/tests/golden/transformers_deepseek.json"),
        include_str!("../../../fewbit-model/tests/golden/transformers_hybrid.json"),
        include_str!("../../../fewbit-model/tests/golden/transformers_gemma.json"),
    ];
    let all = all.into_iter().flat_map(|json| serde_json::from_str::<Models>(json).expect("valid JSON").models);
    let mut all: Vec<_> = all.map(|Model { name, gguf }| Family { name, gguf }).collect();
    let find = |name: &str| all.iter().find(|family| family.name == name).expect("in the list").gguf.clone();
    let more = [
        ("GLM-4.5 with groups of experts", with_groups(find("GLM-4.5"))),
        ("Nemotron-H without states", without_states(find("Nemotron-H"))),
    ];
    all.extend(more.map(|(name, gguf)| Family { name: name.to_owned(), gguf }));
    all
}

/// Twelve experts in four groups, of which two are used.
fn with_groups(mut gguf: Described) -> Described {
    for (key, n) in [("expert_count", 12), ("expert_group_count", 4), ("expert_group_used_count", 2)] {
        gguf.metadata.insert(format!("glm4moe.{key}"), ("uint32".to_owned(), n.into()));
    }
    for (.., shape, _) in &mut gguf.tensors {
        shape[0] = if shape[0] == 7 { 12 } else { shape[0] };
    }
    gguf
}

/// Of nine layers those with attention (3 and 7) and those with feed-forward blocks (4 and 6).
fn without_states(mut gguf: Described) -> Described {
    let list = |n: [i32; 4]| ("array+int32".to_owned(), n.to_vec().into());
    gguf.metadata.insert("nemotron_h.block_count".to_owned(), ("uint32".to_owned(), 4.into()));
    gguf.metadata.insert("nemotron_h.attention.head_count_kv".to_owned(), list([2, 0, 0, 2]));
    gguf.metadata.insert("nemotron_h.feed_forward_length".to_owned(), list([0, 80, 80, 0]));
    gguf.tensors.retain_mut(|(name, ..)| {
        let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { return true };
        let Some(i) = ["3", "4", "6", "7"].iter().position(|kept| *kept == layer) else { return false };
        *name = format!("blk.{i}.{part}");
        true
    });
    gguf
}

impl Family {
    /// The model, with random weights of two types in turn where they fit.
    pub(crate) fn file(&self, types: [TensorType; 2]) -> GgufFile {
        let mut w = self.gguf.writer();
        // So that some of a few tokens are scaled.
        if self.name.starts_with("Llama 4") {
            w.set("llama4.attention.temperature_length", 3u32);
        }
        let (mut random, mut i) = (Random(7), 0);
        for (name, ty, shape, _) in &self.gguf.tensors {
            let n = shape.iter().product::<u64>() as usize;
            let is_matrix = shape.len() > 1 && !name.ends_with(".bias") && !name.contains("ssm_");
            let (ty, bytes) = match (is_matrix, ty.as_str()) {
                (_, "MXFP4") => (TensorType::MXFP4, crate::cases::blocks(TensorType::MXFP4, n, i)),
                (true, _) if shape[shape.len() - 1].is_multiple_of(32) => {
                    i += 1;
                    let ty = types[i as usize % 2];
                    match ty {
                        TensorType::F32 => (ty, values(name, n, 0.2, 0.0)),
                        ty => (ty, random.blocks(ty, n)),
                    }
                }
                (true, _) => (TensorType::F32, values(name, n, 0.2, 0.0)),
                (false, _) if name.contains("norm") || name.contains("freqs") || name.contains("scale") => {
                    (TensorType::F32, values(name, n, 0.4, 1.0))
                }
                // Biases, which some experts are only chosen for, and sinks, which are as large as scores.
                (false, _) => (TensorType::F32, values(name, n, 1.0, 0.0)),
            };
            w.tensor(name.clone(), shape, ty, bytes).expect("a valid tensor");
        }
        GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
    }

    /// How it is loaded: with windows that few tokens fill.
    pub(crate) fn options(&self) -> LoadOptions {
        let has_window = self.gguf.metadata.keys().any(|key| key.ends_with(".sliding_window"));
        let options = LoadOptions::new().threads(1);
        if has_window { options.sliding_window(Some(5)) } else { options }
    }
}
