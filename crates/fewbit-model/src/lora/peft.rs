//! Adapters in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensors determine which matrices are changed, and the rank. Only the scale is taken from the configuration. If
//! it has an option that would change the result, the error names this option.

use super::{Half, LoraError, Pair, from_gguf};
use crate::ModelConfig;
use fewbit_checkpoint::hf::json::{self, Object};
use fewbit_checkpoint::hf::{HfError, permutes, plain_type};
use fewbit_checkpoint::names::{self, Part};
use fewbit_format::safetensors::TensorInfo;
use fewbit_format::{FormatError, SafetensorsModel};
use regex_automata::meta::Regex;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Options that must be `false`, empty or missing.
const REFUSED: [&str; 10] = [
    "use_dora",
    "lora_bias",
    "use_qalora",
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
];

/// Initialization methods that change the model's own weights.
const REFUSED_BEGINNINGS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Memory limit for a pattern for module names.
const PATTERN_BYTES: usize = 1 << 20;

/// An opened folder.
pub(super) struct Adapter {
    path: PathBuf,
    json: Map<String, Value>,
    file: SafetensorsModel,
}

/// How the scale of a module follows from the configuration.
struct Scales {
    rank: usize,
    alpha: f64,
    by_root: bool,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
}

impl Adapter {
    pub(super) fn open(path: &Path) -> Result<Self, LoraError> {
        let config = |source: HfError| LoraError::Config { path: path.to_owned(), source: source.into() };
        let json_path = path.join(CONFIG);
        let map = json::read(&json_path).map_err(config)?;
        let json = map.ok_or_else(|| config(HfError::MissingFile { path: json_path }))?;
        let weights = path.join(WEIGHTS);
        let file = SafetensorsModel::open(&weights).map_err(|source| match source {
            FormatError::NotFound { .. } => config(HfError::MissingFile { path: weights.clone() }),
            source => LoraError::Format { path: path.to_owned(), source: source.into() },
        })?;
        let adapter = Self { path: path.to_owned(), json, file };
        adapter.refuse()?;
        Ok(adapter)
    }

    fn object(&self) -> Object<'_> {
        Object::new(CONFIG, &self.json)
    }

    fn config(&self, source: HfError) -> LoraError {
        LoraError::Config { path: self.path.clone(), source: source.into() }
    }

    fn unsupported(&self, option: &str, value: impl ToString) -> LoraError {
        LoraError::Unsupported { path: self.path.clone(), option: option.to_owned(), value: value.to_string() }
    }

    /// Returns an error for options that would change the result and are not implemented.
    fn refuse(&self) -> Result<(), LoraError> {
        let json = self.object();
        for (key, wanted) in [("peft_type", "LORA"), ("bias", "none")] {
            match json.str(key).map_err(|e| self.config(e))? {
                Some(value) if value != wanted => return Err(self.unsupported(key, value)),
                _ => {}
            }
        }
        for key in REFUSED {
            let is_off = match json.get(key) {
                None | Some(Value::Bool(false)) => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !is_off {
                return Err(self.unsupported(key, json.get(key).unwrap_or(&Value::Null)));
            }
        }
        match json.get("init_lora_weights") {
            Some(Value::String(way)) if REFUSED_BEGINNINGS.iter().any(|name| way.starts_with(name)) => {
                Err(self.unsupported("init_lora_weights", way))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn shapes(&self) -> impl Iterator<Item = &[u64]> {
        self.file.tensors().iter().map(|tensor| &tensor.shape[..])
    }

    fn scales(&self) -> Result<Scales, LoraError> {
        let json = self.object();
        let read = || {
            Ok::<_, HfError>(Scales {
                rank: json.required_count("r")?,
                alpha: json.require("lora_alpha", json.f64("lora_alpha")?)?,
                by_root: json.bool("use_rslora")?.unwrap_or(false),
                ranks: Vec::new(),
                alphas: Vec::new(),
            })
        };
        let mut scales = read().map_err(|e| self.config(e))?;
        scales.ranks = self.patterns("rank_pattern", "rank_pattern.")?;
        scales.alphas = self.patterns("alpha_pattern", "alpha_pattern.")?;
        Ok(scales)
    }

    /// Numbers for the modules whose names match a regular expression.
    fn patterns(&self, key: &str, prefix: &str) -> Result<Vec<(Regex, f64)>, LoraError> {
        let object = self.object().object(key, prefix).map_err(|e| self.config(e))?;
        let Some(object) = object else { return Ok(Vec::new()) };
        let compile = |pattern: &str| {
            let value = object.f64(pattern).map_err(|e| self.config(e))?.unwrap_or(f64::NAN);
            let whole = format!("^(?:(?:.*\\.)?(?:{pattern}))$");
            let limits = Regex::config().nfa_size_limit(Some(PATTERN_BYTES));
            let regex = Regex::builder().configure(limits).build(&whole);
            regex.map(|regex| (regex, value)).map_err(|_| self.unsupported(key, pattern))
        };
        object.keys().map(compile).collect()
    }

    pub(super) fn pairs(&self, config: &ModelConfig) -> Result<Vec<Pair<'_>>, LoraError> {
        let scales = self.scales()?;
        let mut pairs = Vec::new();
        for tensor in self.file.tensors() {
            let name = &tensor.name;
            let unknown = || LoraError::UnknownTarget {
                path: self.path.clone(),
                tensor: name.clone(),
                architecture: config.architecture.clone(),
            };
            let (module, is_a) = match (name.strip_suffix(".lora_A.weight"), name.strip_suffix(".lora_B.weight")) {
                (Some(module), _) => (module, true),
                (_, Some(module)) => (module, false),
                _ => return Err(unknown()),
            };
            let missing = format!("{module}.lora_{}.weight", if is_a { 'B' } else { 'A' });
            let other = self.file.tensor(&missing).ok_or_else(|| LoraError::MissingHalf {
                path: self.path.clone(),
                tensor: name.clone(),
                missing: missing.clone(),
            })?;
            if !is_a {
                continue;
            }
            let module = module.strip_prefix("base_model.model.").ok_or_else(unknown)?;
            // Adapters of vision models have the prefix of the text part; the vision part is never computed.
            let Some(plain) = names::plain_hf(module, true, None) else { continue };
            let gguf = names::from_hf(&plain, &config.architecture).map(|(_, gguf)| gguf);
            let (part, layer) = gguf.as_deref().and_then(from_gguf).ok_or_else(unknown)?;
            let is_permuted = matches!(part, Part::Q | Part::K) && permutes(config);
            let (rank, scale) = scales.of(module);
            if !scale.is_finite() {
                let (key, found) = (format!("the scale of {module}"), scale.to_string());
                return Err(LoraError::BadNumber { path: self.path.clone(), key, found });
            }
            let (a, b) = (self.half(tensor)?, self.half(other)?);
            pairs.push(Pair { part, layer, a, b, scale, rank: Some(rank), is_permuted });
        }
        Ok(pairs)
    }

    fn half<'a>(&'a self, tensor: &'a TensorInfo) -> Result<Half<'a>, LoraError> {
        let ty = plain_type(tensor).map_err(|_| LoraError::Type {
            path: self.path.clone(),
            tensor: tensor.name.clone(),
            ty: tensor.dtype.to_string(),
        })?;
        Ok(Half { name: &tensor.name, shape: &tensor.shape, ty, bytes: self.file.tensor_bytes(tensor) })
    }
}

impl Scales {
    /// The rank of a module, and the factor of its products.
    fn of(&self, module: &str) -> (usize, f32) {
        let find = |patterns: &[(Regex, f64)]| patterns.iter().find(|(p, _)| p.is_match(module)).map(|(_, v)| *v);
        let rank = find(&self.ranks).unwrap_or(self.rank as f64);
        let alpha = find(&self.alphas).unwrap_or(self.alpha);
        let divisor = if self.by_root { rank.sqrt() } else { rank };
        // A rank that is not a valid number of rows matches no shape.
        (rank as usize, (alpha / divisor) as f32)
    }
}
