//! What a model is, as data: one [`ModelConfig`] describes every member of the Llama family.

use crate::ModelError;
use fewbit_format::Metadata;
use fewbit_kernels::RopeStyle;

/// An architecture that the one decoder can run, as a row of data.
struct Architecture {
    /// `general.architecture`, and the prefix of the model's metadata keys.
    name: &'static str,
    rope_style: RopeStyle,
}

const ARCHITECTURES: [Architecture; 1] = [Architecture { name: "llama", rope_style: RopeStyle::Interleaved }];

/// Shape and constants of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, if the file has one.
    pub name: Option<String>,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of a head. Not always `dim / n_heads`.
    pub head_dim: usize,
    /// Inner width of the feed-forward part.
    pub ffn_dim: usize,
    /// Positions that the model was trained for.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Elements of a head that are rotated.
    pub rope_dims: usize,
    /// Which elements of a head are pairs.
    pub rope_style: RopeStyle,
    /// Positions are divided by this (linear scaling); 1 without scaling.
    pub rope_linear_factor: f64,
    /// The epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Keys that a query sees at most, itself included.
    pub sliding_window: Option<usize>,
}

/// More than any model has, and small enough that no product of two of them overflows.
const MAX_WIDTH: usize = 1 << 24;
const MAX_LAYERS: usize = 4096;

impl ModelConfig {
    /// Reads and checks the configuration of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], [`ModelError::UnsupportedFeature`], [`ModelError::BadConfig`], and
    /// the format's errors for keys that are missing or of the wrong type.
    pub fn from_gguf(meta: &Metadata) -> Result<Self, ModelError> {
        let name = meta.require_str("general.architecture")?;
        let Some(arch) = ARCHITECTURES.iter().find(|a| a.name == name) else {
            let known = ARCHITECTURES.iter().map(|a| a.name).collect();
            return Err(ModelError::UnknownArchitecture { name: name.to_owned(), known });
        };
        let key = |suffix: &str| format!("{name}.{suffix}");
        let required = |suffix: &str, max: usize| bounded(&key(suffix), meta.require_u64(&key(suffix))?, max);
        let optional = |suffix: &str, max: usize, default: usize| match meta.u64(&key(suffix))? {
            Some(value) => bounded(&key(suffix), value, max),
            None => Ok(default),
        };

        refuse(meta, &key("expert_count"), "routed experts", |n| n == 0)?;
        let dim = required("embedding_length", MAX_WIDTH)?;
        let n_heads = required("attention.head_count", MAX_WIDTH)?;
        let n_kv_heads = optional("attention.head_count_kv", MAX_WIDTH, n_heads)?;
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(bad(&key("attention.head_count_kv"), n_kv_heads, format!("a divisor of {n_heads} heads")));
        }
        let head_dim = optional("attention.key_length", MAX_WIDTH, dim / n_heads)?;
        let value_dim = optional("attention.value_length", MAX_WIDTH, head_dim)?;
        if head_dim == 0 || value_dim != head_dim {
            let expected = format!("as long as keys, {head_dim} (from {dim} over {n_heads} heads)");
            return Err(bad(&key("attention.value_length"), value_dim, expected));
        }
        let rope_dims = optional("rope.dimension_count", MAX_WIDTH, head_dim)?;
        if !rope_dims.is_multiple_of(2) || rope_dims > head_dim {
            return Err(bad(&key("rope.dimension_count"), rope_dims, format!("even and at most {head_dim}")));
        }
        let eps_key = key("attention.layer_norm_rms_epsilon");
        let rms_norm_eps = meta.require_f32(&eps_key)?;
        if !(rms_norm_eps.is_finite() && rms_norm_eps >= 0.0) {
            return Err(bad(&eps_key, rms_norm_eps, "a small positive number".to_owned()));
        }
        let theta_key = key("rope.freq_base");
        let rope_theta = f64::from(meta.f32(&theta_key)?.unwrap_or(10_000.0));
        if !(rope_theta.is_finite() && rope_theta >= 1.0) {
            return Err(bad(&theta_key, rope_theta, "at least 1".to_owned()));
        }
        let window = optional("attention.sliding_window", usize::MAX, 0)?;
        Ok(Self {
            architecture: name.to_owned(),
            name: meta.str("general.name")?.map(str::to_owned),
            n_layers: required("block_count", MAX_LAYERS)?,
            dim,
            n_heads,
            n_kv_heads,
            head_dim,
            ffn_dim: required("feed_forward_length", MAX_WIDTH)?,
            context_length: required("context_length", 1 << 31)?,
            rope_theta,
            rope_dims,
            rope_style: arch.rope_style,
            rope_linear_factor: rope_linear_factor(meta, name)?,
            rms_norm_eps,
            sliding_window: (window > 0).then_some(window),
        })
    }
}

/// The factor of linear position scaling. Other kinds than `none` and `linear` are refused by name, because
/// ignoring them gives plausible nonsense.
fn rope_linear_factor(meta: &Metadata, arch: &str) -> Result<f64, ModelError> {
    let kind_key = format!("{arch}.rope.scaling.type");
    let kind = meta.str(&kind_key)?;
    if let Some(kind) = kind.filter(|kind| !matches!(*kind, "none" | "linear")) {
        return Err(ModelError::UnsupportedFeature {
            feature: "this kind of rope scaling",
            key: kind_key,
            value: kind.to_owned(),
        });
    }
    // Files from before `rope.scaling.*` name the linear factor `rope.scale_linear`.
    for key in [format!("{arch}.rope.scaling.factor"), format!("{arch}.rope.scale_linear")] {
        if let Some(factor) = meta.f32(&key)?
            && kind != Some("none")
        {
            if !(factor.is_finite() && factor > 0.0) {
                return Err(bad(&key, factor, "positive".to_owned()));
            }
            return Ok(f64::from(factor));
        }
    }
    Ok(1.0)
}

fn bounded(key: &str, value: u64, max: usize) -> Result<usize, ModelError> {
    match usize::try_from(value) {
        Ok(n) if n <= max && (n > 0 || key.ends_with("sliding_window")) => Ok(n),
        _ => Err(bad(key, value, format!("between 1 and {max}"))),
    }
}

fn bad(key: &str, found: impl ToString, expected: String) -> ModelError {
    ModelError::BadConfig { key: key.to_owned(), found: found.to_string(), expected }
}

fn refuse(meta: &Metadata, key: &str, feature: &'static str, fine: impl Fn(u64) -> bool) -> Result<(), ModelError> {
    match meta.u64(key)? {
        Some(value) if !fine(value) => {
            Err(ModelError::UnsupportedFeature { feature, key: key.to_owned(), value: value.to_string() })
        }
        _ => Ok(()),
    }
}
