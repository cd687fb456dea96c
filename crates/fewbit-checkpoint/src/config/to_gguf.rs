//! The reverse: the contents of a GGUF file from which its reader gets a given configuration.
//!
//! The result is read back and compared. So a configuration that the GGUF keys of its architecture cannot express is an
//! error, and never a file that computes something else.

use super::gguf::{QK_NORM, ROPE_DIVISORS, ROPE_LONG, ROPE_SHORT};
use super::{AttentionTemperature, Gating, ModelConfig, NormKind, QkNorm, Recurrent, RopeConfig, RopeScaling};
use crate::names::{self, Part};
use crate::{CheckpointError, families};
use fewbit_format::Metadata;

/// The contents of a GGUF file about a model, without its weights.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GgufConfig {
    /// `general.architecture` and the keys that begin with its name.
    pub metadata: Metadata,
    /// Vectors that are stored among the tensors, as F32.
    pub constants: Vec<(&'static str, Vec<f32>)>,
}

/// Collects keys under the architecture's prefix.
struct Keys {
    meta: Metadata,
    prefix: String,
}

impl Keys {
    fn count(&mut self, key: &str, n: usize) {
        let key = format!("{}.{key}", self.prefix);
        match u32::try_from(n) {
            Ok(n) => self.meta.set(key, n),
            Err(_) => self.meta.set(key, n as u64),
        }
    }

    fn float(&mut self, key: &str, x: f64) {
        self.meta.set(format!("{}.{key}", self.prefix), x as f32);
    }

    /// Sets a float unless it has its usual value.
    fn unusual(&mut self, key: &str, x: f64, usual: f64) {
        if !close(x, usual) {
            self.float(key, x);
        }
    }
}

impl ModelConfig {
    /// The metadata and constants of a GGUF file with this configuration.
    ///
    /// # Errors
    /// [`CheckpointError::NoGgufForm`] for anything that GGUF files of this architecture cannot express.
    pub fn to_gguf(&self) -> Result<GgufConfig, CheckpointError> {
        let mut meta = Metadata::default();
        meta.set("general.architecture", self.architecture.as_str());
        if let Some(name) = &self.name {
            meta.set("general.name", name.as_str());
        }
        let mut keys = Keys { meta, prefix: self.architecture.clone() };
        keys.count("context_length", self.context_length);
        keys.count("embedding_length", self.dim);
        keys.count("block_count", self.n_layers() + usize::from(self.mtp.is_some()));
        if self.mtp.is_some() {
            keys.count("nextn_predict_layers", 1);
        }
        let arch = families::architecture(&self.architecture);
        let has_one_mixer = arch.is_some_and(|arch| arch.has_one_mixer);
        let has_wider = self.shared_kv.is_some_and(|shared| shared.ffn_dim != self.ffn_dim);
        if has_one_mixer || has_wider {
            let length =
                |layer: usize| if self.layers[layer].has_feed_forward { self.ffn_dim_of(layer) as i32 } else { 0 };
            let lengths: Vec<i32> = (0..self.n_layers()).map(length).collect();
            keys.meta.set(format!("{}.feed_forward_length", keys.prefix), lengths);
        } else {
            keys.count("feed_forward_length", self.ffn_dim);
        }
        keys.count("attention.head_count", self.n_heads);
        match self.recurrent {
            Some(Recurrent::ShortConvolution { .. } | Recurrent::StateSpace(_)) => {
                let heads = |layer| if self.has_keys_values(layer) { self.n_kv_heads as i32 } else { 0 };
                let heads: Vec<i32> = (0..self.n_layers()).map(heads).collect();
                keys.meta.set(format!("{}.attention.head_count_kv", keys.prefix), heads);
            }
            None if self.local_heads.is_some_and(|heads| heads.n_kv_heads != self.n_kv_heads) => {
                let heads: Vec<i32> = (0..self.n_layers()).map(|layer| self.n_kv_heads_of(layer) as i32).collect();
                keys.meta.set(format!("{}.attention.head_count_kv", keys.prefix), heads);
            }
            _ => keys.count("attention.head_count_kv", self.n_kv_heads),
        }
        keys.count("attention.key_length", self.head_dim);
        keys.count("attention.value_length", self.latent.map_or(self.head_dim, |latent| latent.kv_rank));
        self.write_latent(&mut keys);
        self.write_kinds_of_layers(&mut keys);
        let eps = match self.norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        keys.float(eps, f64::from(self.rms_norm_eps));
        if arch.is_some_and(|arch| arch.has_layer_norm_eps) {
            keys.float("attention.layer_norm_epsilon", f64::from(self.rms_norm_eps));
        }
        self.write_attention(&mut keys);
        let constants = self.write_rope(&mut keys);
        self.write_experts(&mut keys);
        self.write_recurrent(&mut keys);
        if arch.is_some_and(|arch| arch.has_nope_switch) && self.layers.iter().all(|layer| !layer.has_rope) {
            keys.meta.set(format!("{}.rope.scaling.finetuned", self.architecture), false);
        }
        if arch.is_some_and(|arch| arch.has_multipliers) {
            keys.float("embedding_scale", f64::from(self.embedding_scale));
            keys.float("residual_scale", f64::from(self.residual_scale));
            keys.float("logit_scale", 1.0 / f64::from(self.logit_scale));
        }
        if arch.is_some_and(|arch| arch.multiplies_logits) {
            keys.float("logit_scale", f64::from(self.logit_scale));
        }
        let mut gguf = GgufConfig { metadata: keys.meta, constants };
        // The reader's defaults for missing keys depend on the architecture.
        let read = self.read_back(&gguf)?;
        // What follows from the multiplier may differ in its last bit.
        let is_same = self.latent.is_none() || read.attention_scale == self.attention_scale;
        if !is_same || !close(read.attention_scale.into(), self.attention_scale.into()) {
            gguf.metadata.set(format!("{}.attention.scale", self.architecture), self.attention_scale);
        }
        if read.attention_temperature.is_some() && self.attention_temperature.is_none() {
            gguf.metadata.set(format!("{}.attention.temperature_scale", self.architecture), 0f32);
        }
        if read.sliding_window.is_some() && self.sliding_window.is_none() {
            gguf.metadata.set(format!("{}.attention.sliding_window", self.architecture), 0u32);
        }
        match self.difference(&self.read_back(&gguf)?) {
            None => Ok(gguf),
            Some(what) => Err(CheckpointError::NoGgufForm { architecture: self.architecture.clone(), what }),
        }
    }

    fn write_attention(&self, keys: &mut Keys) {
        if let Some(window) = self.sliding_window {
            keys.count("attention.sliding_window", window);
        }
        let has_pattern = self.layers.iter().any(|layer| layer.is_local != self.layers[0].is_local);
        let wants_pattern = families::architecture(&self.architecture).is_some_and(|arch| arch.has_local_heads);
        if self.sliding_window.is_some() && (has_pattern || wants_pattern) {
            let pattern: Vec<bool> = self.layers.iter().map(|layer| layer.is_local).collect();
            keys.meta.set(format!("{}.attention.sliding_window_pattern", keys.prefix), pattern);
        }
        if let Some(cap) = self.attention_softcap {
            keys.float("attn_logit_softcapping", cap.into());
        }
        if let Some(cap) = self.logit_softcap {
            keys.float("final_logit_softcapping", cap.into());
        }
        if let Some(temperature) = self.attention_temperature {
            keys.float("attention.temperature_scale", temperature.scale);
            keys.count("attention.temperature_length", temperature.length);
        }
        let has_dense_lead = families::architecture(&self.architecture).is_some_and(|arch| arch.has_dense_lead);
        match self.experts_every() {
            _ if self.layers.iter().any(|layer| !layer.has_feed_forward) => {}
            Some(first) if has_dense_lead => keys.count("leading_dense_block_count", first - 1),
            Some(every) if every > 1 => keys.count("interleave_moe_layer_step", every),
            _ => {}
        }
    }

    /// Local layers with other heads, layers that share keys and values, per-layer embeddings: other programs need these
    /// keys in all files of such architectures.
    fn write_kinds_of_layers(&self, keys: &mut Keys) {
        let Some(arch) = families::architecture(&self.architecture) else { return };
        if arch.has_local_heads {
            let head_dim = self.local_heads.map_or(self.head_dim, |heads| heads.head_dim);
            keys.count("attention.key_length_swa", head_dim);
            keys.count("attention.value_length_swa", head_dim);
            keys.count("rope.dimension_count_swa", self.local_rope.as_ref().map_or(head_dim, |rope| rope.n_dims));
            keys.count("attention.shared_kv_layers", self.shared_kv.map_or(0, |shared| shared.n_layers));
        }
        if arch.has_per_layer_embeddings {
            keys.count("embedding_length_per_layer_input", self.per_layer_dim.unwrap_or(0));
        }
    }

    fn write_latent(&self, keys: &mut Keys) {
        let Some(latent) = &self.latent else { return };
        if let Some(rank) = latent.q_rank {
            keys.count("attention.q_lora_rank", rank);
        }
        keys.count("attention.kv_lora_rank", latent.kv_rank);
        keys.count("attention.key_length_mla", latent.query_dim());
        keys.count("attention.value_length_mla", latent.value_dim);
        if let RopeScaling::Yarn { factor, .. } = self.rope.scaling {
            // Scores are scaled by the square of YaRN's magnitude; this is its multiplier.
            let square = f64::from(self.attention_scale) * (latent.query_dim() as f64).sqrt();
            let multiplier = (square.sqrt() - 1.0) / libm::log(factor);
            if multiplier > 1e-4 && multiplier.is_finite() {
                keys.float("rope.scaling.yarn_log_multiplier", multiplier);
            }
        }
    }

    fn write_recurrent(&self, keys: &mut Keys) {
        let delta = match self.recurrent {
            None => return,
            Some(Recurrent::ShortConvolution { n_taps }) => return keys.count("shortconv.l_cache", n_taps),
            Some(Recurrent::StateSpace(space)) => {
                keys.count("ssm.conv_kernel", space.n_taps);
                keys.count("ssm.state_size", space.state_dim);
                keys.count("ssm.group_count", space.n_groups);
                keys.count("ssm.time_step_rank", space.n_heads);
                keys.count("ssm.inner_size", space.value_dim());
                return;
            }
            Some(Recurrent::DeltaNet(delta)) => delta,
        };
        keys.count("ssm.conv_kernel", delta.n_taps);
        keys.count("ssm.state_size", delta.k_dim);
        keys.count("ssm.group_count", delta.n_k_heads);
        keys.count("ssm.time_step_rank", delta.n_v_heads);
        keys.count("ssm.inner_size", delta.value_dim());
        let interval = self.layers.iter().position(|layer| !layer.is_recurrent).map_or(1, |first| first + 1);
        if self.layers.iter().enumerate().all(|(i, layer)| layer.is_recurrent == ((i + 1) % interval != 0)) {
            keys.count("full_attention_interval", interval);
        } else {
            let list: Vec<bool> = self.layers.iter().chain(&self.mtp).map(|layer| layer.is_recurrent).collect();
            keys.meta.set(format!("{}.attention.recurrent_layers", keys.prefix), list);
        }
        if families::architecture(&self.architecture).is_some_and(|arch| arch.has_rope_sections) {
            // Which pairs turn with the time, the height and the width of an image; in texts these are the same. Other
            // programs need the key.
            keys.meta.set(format!("{}.rope.dimension_sections", keys.prefix), vec![11i32, 11, 10, 0]);
        }
    }

    /// The number of layers from one with experts to the next, which is the number of layers up to the first.
    fn experts_every(&self) -> Option<usize> {
        self.experts?;
        self.layers.iter().position(|layer| layer.has_experts).map(|first| first + 1)
    }

    fn write_rope(&self, keys: &mut Keys) -> Vec<(&'static str, Vec<f32>)> {
        let rope = &self.rope;
        keys.count("rope.dimension_count", rope.n_dims);
        keys.float("rope.freq_base", rope.theta);
        if let Some(local) = &self.local_rope {
            keys.float("rope.freq_base_swa", local.theta);
        }
        let mut constants = Vec::new();
        if let Some(divisors) = self.divisors() {
            constants.push((ROPE_DIVISORS, divisors));
        }
        let kind = format!("{}.rope.scaling.type", keys.prefix);
        let has_multiplier =
            self.latent.is_some() && keys.meta.contains(&format!("{}.rope.scaling.yarn_log_multiplier", keys.prefix));
        let usual = match has_multiplier {
            true => 1.0,
            false => rope.scaling.default_attention_factor(self.context_length),
        };
        match &rope.scaling {
            RopeScaling::None | RopeScaling::Llama3 { .. } => {
                keys.unusual("rope.scaling.attn_factor", rope.attention_factor, 1.0);
            }
            RopeScaling::Linear { factor } => {
                keys.meta.set(kind, "linear");
                keys.float("rope.scaling.factor", *factor);
                keys.unusual("rope.scaling.attn_factor", rope.attention_factor, 1.0);
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. } => {
                keys.meta.set(kind, "yarn");
                keys.float("rope.scaling.factor", *factor);
                keys.count("rope.scaling.original_context_length", *original_context);
                keys.float("rope.scaling.yarn_beta_fast", *beta_fast);
                keys.float("rope.scaling.yarn_beta_slow", *beta_slow);
                // The value of this key is relative to the usual attention factor.
                keys.unusual("rope.scaling.attn_factor", rope.attention_factor / usual, 1.0);
            }
            RopeScaling::LongRope { original_context, short, long } => {
                keys.meta.set(kind, "longrope");
                keys.count("rope.scaling.original_context_length", *original_context);
                keys.float("rope.scaling.attn_factor", rope.attention_factor);
                constants.push((ROPE_SHORT, short.clone()));
                constants.push((ROPE_LONG, long.clone()));
            }
        }
        constants
    }

    fn write_experts(&self, keys: &mut Keys) {
        let Some(experts) = self.experts else { return };
        keys.count("expert_count", experts.n_experts);
        keys.count("expert_used_count", experts.n_used);
        keys.count("expert_feed_forward_length", experts.ffn_dim);
        let arch = families::architecture(&self.architecture);
        match experts.shared_ffn_dim {
            Some(n) if arch.is_some_and(|arch| arch.counts_shared_experts) && n.is_multiple_of(experts.ffn_dim) => {
                keys.count("expert_shared_count", n / experts.ffn_dim);
            }
            Some(n) => keys.count("expert_shared_feed_forward_length", n),
            None => {}
        }
        let has_groups = arch.is_some_and(|arch| arch.has_groups);
        if has_groups || experts.gating == Gating::Sigmoid {
            // llama.cpp's numbers of gating functions.
            keys.count("expert_gating_func", if experts.gating == Gating::Sigmoid { 2 } else { 1 });
        }
        if has_groups {
            // Older files have no groups, which means the usual ones.
            let groups = experts.groups.map_or([1, 1], |groups| [groups.n_groups, groups.n_used]);
            keys.count("expert_group_count", groups[0]);
            keys.count("expert_group_used_count", groups[1]);
        }
        keys.meta.set(format!("{}.expert_weights_norm", keys.prefix), experts.is_normalized);
        keys.unusual("expert_weights_scale", experts.scale.into(), 1.0);
    }

    /// Divisors of the frequencies as in GGUF files, where Llama 3's scaling is stored as divisors.
    fn divisors(&self) -> Option<Vec<f32>> {
        let rope = &self.rope;
        let RopeScaling::Llama3 { .. } = rope.scaling else { return rope.divisors.clone() };
        let plain = RopeConfig { scaling: RopeScaling::None, divisors: None, ..rope.clone() };
        let (plain, scaled) = (plain.frequencies(self.context_length), rope.frequencies(self.context_length));
        Some(plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect())
    }

    /// Which norms there are.
    fn norms(&self) -> (bool, Option<QkNorm>, bool) {
        (self.has_pre_norms, self.has_qk_norm.then_some(self.qk_norm), self.has_post_norms)
    }

    /// The configuration that a reader of the file gets.
    fn read_back(&self, gguf: &GgufConfig) -> Result<Self, CheckpointError> {
        Self::from_metadata(&gguf.metadata, &|name, _| {
            if name == QK_NORM && self.has_qk_norm {
                return Ok(Some(Vec::new()));
            }
            if self.mtp.is_some() && name == format!("{}.weight", names::gguf(Part::MtpHiddenNorm, self.n_layers())) {
                return Ok(Some(Vec::new()));
            }
            let constant = gguf.constants.iter().find(|(known, _)| *known == name);
            Ok(constant.map(|(_, values)| values.clone()))
        })
    }

    /// The first field in which `read` differs from this configuration, apart from rounding.
    fn difference(&self, read: &Self) -> Option<&'static str> {
        let floats = [
            ("rms_norm_eps", Some(self.rms_norm_eps), Some(read.rms_norm_eps)),
            ("attention_scale", Some(self.attention_scale), Some(read.attention_scale)),
            ("attention_softcap", self.attention_softcap, read.attention_softcap),
            ("embedding_scale", Some(self.embedding_scale), Some(read.embedding_scale)),
            ("residual_scale", Some(self.residual_scale), Some(read.residual_scale)),
            ("logit_scale", Some(self.logit_scale), Some(read.logit_scale)),
            ("logit_softcap", self.logit_softcap, read.logit_softcap),
        ];
        let same = |a: Option<f32>, b: Option<f32>| match (a, b) {
            (Some(a), Some(b)) => close(a.into(), b.into()),
            (a, b) => a == b,
        };
        if let Some((what, ..)) = floats.into_iter().find(|(_, a, b)| !same(*a, *b)) {
            return Some(what);
        }
        let mut rope = self.rope.clone();
        if matches!(rope.scaling, RopeScaling::Llama3 { .. }) {
            (rope.scaling, rope.divisors) = (RopeScaling::None, self.divisors());
        }
        let same_local = match (&self.local_rope, &read.local_rope) {
            (Some(a), Some(b)) => same_rope(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let same_temperature = match (self.attention_temperature, read.attention_temperature) {
            (Some(a), Some(b)) => close(a.scale, b.scale) && AttentionTemperature { scale: b.scale, ..a } == b,
            (a, b) => a == b,
        };
        let others = [
            ("the position embedding", same_rope(&rope, &read.rope)),
            ("the position embedding of local layers", same_local),
            (
                "which layers are local or recurrent, what they consist of, have a position embedding, have experts",
                self.layers == read.layers,
            ),
            ("the layer that predicts a further token", self.mtp == read.mtp),
            ("the heads of each kind of layer", self.local_heads == read.local_heads),
            ("layers that share keys and values", self.shared_kv == read.shared_kv),
            ("per-layer embeddings", self.per_layer_dim == read.per_layer_dim),
            ("norms of values", self.has_value_norm == read.has_value_norm),
            ("factors of layers", self.has_layer_scales == read.has_layer_scales),
            ("recurrent layers", self.recurrent == read.recurrent),
            ("gated attention", self.has_output_gate == read.has_output_gate),
            ("sliding_window", self.sliding_window == read.sliding_window),
            ("the temperature of attention", same_temperature),
            ("experts", self.experts == read.experts),
            ("latent attention", self.latent == read.latent),
            ("the activation function", (self.gate, self.is_gated) == (read.gate, read.is_gated)),
            ("norms", self.norms() == read.norms()),
            ("attention sinks", self.has_sinks == read.has_sinks),
            ("attention in chunks", self.has_chunks == read.has_chunks),
        ];
        others.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }
}

/// Whether two numbers are equal after rounding to f32.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-7 * a.abs().max(b.abs())
}

fn same_rope(a: &RopeConfig, b: &RopeConfig) -> bool {
    let same_scaling = match (&a.scaling, &b.scaling) {
        (RopeScaling::Linear { factor: a }, RopeScaling::Linear { factor: b }) => close(*a, *b),
        (
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, is_truncated },
            RopeScaling::Yarn {
                factor: factor_b,
                original_context: original_b,
                beta_fast: fast_b,
                beta_slow: slow_b,
                is_truncated: truncated_b,
            },
        ) => {
            close(*factor, *factor_b)
                && close(*beta_fast, *fast_b)
                && close(*beta_slow, *slow_b)
                && (original_context, is_truncated) == (original_b, truncated_b)
        }
        (a, b) => a == b,
    };
    same_scaling
        && close(a.theta, b.theta)
        && close(a.attention_factor, b.attention_factor)
        && (a.n_dims, a.style, &a.divisors) == (b.n_dims, b.style, &b.divisors)
}
