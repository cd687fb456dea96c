//! Recipes, which choose the type of each tensor of a model.
//!
//! A recipe is named after the type of most tensors, and gives more bits to those whose errors cost most: the values of
//! attention, the second half of the feed-forward part, the output. The choices are those of llama.cpp's
//! `llama-quantize`, so that a file made here has the size and the types that its name promises; [`RULES`] holds them
//! as data.

use fewbit_format::Metadata;
use fewbit_quant::TensorType;

use fewbit_checkpoint::{CheckpointError, ModelConfig};

/// Declares [`Recipe`] with its names, their numbers in `general.file_type`, and the type of most tensors.
macro_rules! recipes {
    ($($variant:ident = $id:literal, $name:literal, $ty:ident;)*) => {
        /// The quantization of a model, under the name that llama.cpp's users know.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Recipe {
            $($variant,)*
        }

        impl Recipe {
            /// Every recipe.
            pub fn all() -> impl Iterator<Item = Self> {
                [$(Self::$variant,)*].into_iter()
            }

            /// The name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The number of this recipe in the metadata value `general.file_type`.
            pub fn file_type(self) -> u32 {
                match self {
                    $(Self::$variant => $id,)*
                }
            }

            /// The type of most tensors.
            pub fn main_type(self) -> TensorType {
                match self {
                    $(Self::$variant => TensorType::$ty,)*
                }
            }
        }
    };
}

recipes! {
    F32 = 0, "F32", F32;
    F16 = 1, "F16", F16;
    BF16 = 32, "BF16", BF16;
    Q4_0 = 2, "Q4_0", Q4_0;
    Q4_1 = 3, "Q4_1", Q4_1;
    Q5_0 = 8, "Q5_0", Q5_0;
    Q5_1 = 9, "Q5_1", Q5_1;
    Q8_0 = 7, "Q8_0", Q8_0;
    Q2_K = 10, "Q2_K", Q2_K;
    Q2_K_S = 21, "Q2_K_S", Q2_K;
    Q3_K_S = 11, "Q3_K_S", Q3_K;
    Q3_K_M = 12, "Q3_K_M", Q3_K;
    Q3_K_L = 13, "Q3_K_L", Q3_K;
    Q4_K_S = 14, "Q4_K_S", Q4_K;
    Q4_K_M = 15, "Q4_K_M", Q4_K;
    Q5_K_S = 16, "Q5_K_S", Q5_K;
    Q5_K_M = 17, "Q5_K_M", Q5_K;
    Q6_K = 18, "Q6_K", Q6_K;
    IQ4_NL = 25, "IQ4_NL", IQ4_NL;
    IQ4_XS = 30, "IQ4_XS", IQ4_XS;
    MXFP4 = 38, "MXFP4", MXFP4;
    MXFP4_MOE = 38, "MXFP4_MOE", MXFP4;
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// There is no recipe of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown quantization {name:?}; known are: {}", Recipe::all().map(Recipe::name).collect::<Vec<_>>().join(", "))]
pub struct UnknownRecipe {
    /// The given name.
    pub name: String,
}

impl std::str::FromStr for Recipe {
    type Err = UnknownRecipe;

    /// Parses a name in any case; `Q3_K`, `Q4_K` and `Q5_K` mean their `_M` variants.
    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        let long = ["Q3_K", "Q4_K", "Q5_K"].into_iter().find(|short| is(short)).map(|short| format!("{short}_M"));
        let name = long.as_deref().unwrap_or(name);
        Self::all()
            .find(|recipe| recipe.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownRecipe { name: name.to_owned() })
    }
}

/// The role of a tensor, as far as recipes distinguish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Output,
    Embedding,
    /// Also the joint matrices of q, k and v.
    Value,
    Key,
    AttentionOutput,
    Down,
    Other,
}

/// Parts of tensor names; the first one that occurs in a name decides.
const ROLES: [(&str, Role); 6] = [
    ("attn_qkv.weight", Role::Value),
    ("attn_kv_b.weight", Role::Value),
    ("attn_v.weight", Role::Value),
    ("attn_k.weight", Role::Key),
    ("attn_output.weight", Role::AttentionOutput),
    ("ffn_down", Role::Down),
];

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "output.weight" => Self::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Self::Embedding,
            _ => ROLES.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, role)| *role),
        }
    }
}

/// The condition of a rule. Fractions of the layers are rounded down to whole layers.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// At least four query heads share a key and value head.
    Gqa4,
    /// The first `n` layers.
    FirstLayers(usize),
    /// The first 1 / `n` of the layers.
    FirstPart(usize),
    /// As [`FirstPart`](Self::FirstPart) of 8, with an importance matrix.
    FirstEighthWithImportance,
    /// As [`FirstPart`](Self::FirstPart) of 8, without one.
    FirstEighthWithoutImportance,
    /// The first and the last eighth of the layers, and every third one between them.
    Spread,
    EightExperts,
    NotEightExperts,
}

/// Tensors that get another type than most: recipe, role, condition, type. The first rule that holds decides.
#[rustfmt::skip]
const RULES: &[(Recipe, Role, When, TensorType)] = &[
    (Recipe::Q2_K,   Role::Value,           When::Gqa4,            TensorType::Q4_K),
    (Recipe::Q2_K,   Role::Value,           When::Always,          TensorType::Q3_K),
    (Recipe::Q2_K,   Role::Down,            When::Always,          TensorType::Q3_K),
    (Recipe::Q2_K,   Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
    (Recipe::Q2_K,   Role::AttentionOutput, When::Always,          TensorType::Q3_K),
    (Recipe::Q2_K_S, Role::Value,           When::Gqa4,            TensorType::Q4_K),
    (Recipe::Q2_K_S, Role::Down,            When::FirstPart(8),    TensorType::Q4_K),
    (Recipe::Q3_K_S, Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
    (Recipe::Q3_K_M, Role::Value,           When::FirstLayers(2),  TensorType::Q5_K),
    (Recipe::Q3_K_M, Role::Value,           When::Always,          TensorType::Q4_K),
    (Recipe::Q3_K_M, Role::Down,            When::FirstPart(16),   TensorType::Q5_K),
    (Recipe::Q3_K_M, Role::Down,            When::Always,          TensorType::Q4_K),
    (Recipe::Q3_K_M, Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
    (Recipe::Q3_K_M, Role::AttentionOutput, When::Always,          TensorType::Q4_K),
    (Recipe::Q3_K_L, Role::Value,           When::Always,          TensorType::Q5_K),
    (Recipe::Q3_K_L, Role::Down,            When::Always,          TensorType::Q5_K),
    (Recipe::Q3_K_L, Role::AttentionOutput, When::NotEightExperts, TensorType::Q5_K),
    (Recipe::Q4_0,   Role::Down,            When::FirstEighthWithImportance, TensorType::Q4_1),
    (Recipe::Q5_0,   Role::Down,            When::FirstEighthWithImportance, TensorType::Q5_1),
    (Recipe::Q4_K_S, Role::Value,           When::FirstLayers(4),  TensorType::Q5_K),
    (Recipe::Q4_K_S, Role::Down,            When::FirstPart(8),    TensorType::Q5_K),
    (Recipe::Q4_K_S, Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
    (Recipe::Q4_K_M, Role::Value,           When::Spread,          TensorType::Q6_K),
    (Recipe::Q4_K_M, Role::Down,            When::Spread,          TensorType::Q6_K),
    (Recipe::Q4_K_M, Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
    (Recipe::Q5_K_M, Role::Value,           When::Spread,          TensorType::Q6_K),
    (Recipe::Q5_K_M, Role::Down,            When::Spread,          TensorType::Q6_K),
    (Recipe::IQ4_NL, Role::Value,           When::Gqa4,            TensorType::Q5_K),
    (Recipe::IQ4_NL, Role::Down,            When::FirstEighthWithoutImportance, TensorType::Q5_K),
    (Recipe::IQ4_NL, Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
    (Recipe::IQ4_XS, Role::Value,           When::Gqa4,            TensorType::Q5_K),
    (Recipe::IQ4_XS, Role::Down,            When::FirstEighthWithoutImportance, TensorType::Q5_K),
    (Recipe::IQ4_XS, Role::AttentionOutput, When::EightExperts,    TensorType::Q5_K),
];

/// Parts of the names of matrices that are never quantized, because they are small and errors in them cost much.
const KEPT: [&str; 17] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_",
    "attn_rel_b.weight",
    ".position_embd",
    ".rel_pos",
    ".patch_embd",
];

/// The facts about a model that recipes depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFacts {
    /// `general.architecture`.
    pub architecture: String,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of query heads of the first layer.
    pub n_heads: usize,
    /// Number of key and value heads of the first layer.
    pub n_kv_heads: usize,
    /// Number of routed experts; 0 for a model without experts.
    pub n_experts: usize,
    /// Whether the output uses the matrix of the embedding.
    pub tied: bool,
}

impl ModelFacts {
    /// Creates the facts for a model of `architecture`, to be filled in: one layer, one head, no experts, untied.
    pub fn new(architecture: impl Into<String>) -> Self {
        Self { architecture: architecture.into(), n_layers: 1, n_heads: 1, n_kv_heads: 1, n_experts: 0, tied: false }
    }

    /// Reads the facts from a GGUF file's metadata. `tied`: the file has no tensor `output.weight`.
    ///
    /// # Errors
    /// The errors of the format, for keys that are missing or have the wrong type.
    pub fn from_gguf(meta: &Metadata, tied: bool) -> Result<Self, CheckpointError> {
        let architecture = meta.require_str("general.architecture")?;
        let key = |suffix: &str| format!("{architecture}.{suffix}");
        // Some models have a different number of heads in each layer.
        let heads = |suffix: &str| match meta.u32_array(&key(suffix)) {
            Ok(Some(list)) => Ok(list.first().copied()),
            _ => match meta.i32_array(&key(suffix)) {
                Ok(Some(list)) => Ok(list.first().and_then(|&n| u32::try_from(n).ok())),
                _ => meta.u32(&key(suffix)),
            },
        };
        let n_heads = heads("attention.head_count")?.unwrap_or(1);
        Ok(Self {
            architecture: architecture.to_owned(),
            n_layers: meta.require_u32(&key("block_count"))? as usize,
            n_heads: n_heads as usize,
            n_kv_heads: heads("attention.head_count_kv")?.unwrap_or(n_heads) as usize,
            n_experts: meta.u32(&key("expert_count"))?.unwrap_or(0) as usize,
            tied,
        })
    }

    /// Takes the facts from a configuration. `tied`: the output has no matrix of its own.
    pub fn from_config(config: &ModelConfig, tied: bool) -> Self {
        Self {
            architecture: config.architecture.clone(),
            n_layers: config.n_layers(),
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads_of(0),
            n_experts: config.experts.map_or(0, |experts| experts.n_experts),
            tied,
        }
    }

    /// Whether the model has the shape of Llama 2 70B, whose value matrices are small compared with what depends on
    /// them.
    fn is_70b(&self) -> bool {
        self.n_layers == 80
            && match self.architecture.as_str() {
                "llama" => self.n_heads != self.n_kv_heads,
                "qwen2" => true,
                _ => false,
            }
    }
}

/// A recipe with further choices of the caller.
///
/// ```
/// use fewbit_model::quantize::{ModelFacts, Plan, Recipe};
/// use fewbit_quant::TensorType;
///
/// let mut facts = ModelFacts::new("llama");
/// (facts.n_layers, facts.n_heads, facts.n_kv_heads) = (32, 32, 8);
/// let plan = Plan::new(Recipe::Q4_K_M);
/// let ty = |name: &str, shape: &[u64]| plan.tensor_type(&facts, name, shape, TensorType::F16);
/// assert_eq!(ty("blk.9.attn_q.weight", &[4096, 4096]), TensorType::Q4_K);
/// assert_eq!(ty("blk.0.attn_v.weight", &[1024, 4096]), TensorType::Q6_K);
/// assert_eq!(ty("blk.0.attn_norm.weight", &[4096]), TensorType::F16, "vectors stay as they are");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// Gives every matrix the recipe's main type.
    pub pure: bool,
    /// Leaves `output.weight` unchanged.
    pub keep_output: bool,
    /// Type of `output.weight`, instead of the recipe's choice.
    pub output_type: Option<TensorType>,
    /// Type of the token embedding, instead of the recipe's choice.
    pub embedding_type: Option<TensorType>,
    /// Whether there is an importance matrix.
    pub importance: bool,
}

impl Plan {
    /// Creates a plan for an unmodified recipe.
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, pure: false, keep_output: false, output_type: None, embedding_type: None, importance: false }
    }

    /// Whether a tensor is quantized at all: matrices whose name ends in `weight`, except for a few small ones.
    pub fn quantizes(&self, name: &str, shape: &[u64]) -> bool {
        // Leading dimensions of 1 do not make a vector a matrix.
        let n_dims = shape.len() - shape.iter().take_while(|&&n| n == 1).count();
        n_dims >= 2
            && name.ends_with("weight")
            && !(self.keep_output && name == "output.weight")
            && !KEPT.iter().any(|part| name.contains(part))
    }

    /// The type for a tensor. `shape` has the rows first and the contiguous columns last; `stored` is the tensor's
    /// current type, which it keeps if it is not quantized.
    pub fn tensor_type(&self, facts: &ModelFacts, name: &str, shape: &[u64], stored: TensorType) -> TensorType {
        if !self.quantizes(name, shape) {
            return stored;
        }
        let role = Role::of(name);
        match role {
            Role::Embedding if self.embedding_type.is_some() => return self.embedding_type.unwrap_or(stored),
            Role::Output if self.output_type.is_some() => return self.output_type.unwrap_or(stored),
            _ => {}
        }
        let main = self.recipe.main_type();
        // F16 and similar types are not mixtures: every matrix gets them.
        if main.block_elems() == 1 {
            return main;
        }
        let n_cols = shape.last().copied().unwrap_or(0);
        let chosen = if self.pure { main } else { self.chosen(facts, name, role, shape) };
        fitting(chosen, n_cols)
    }

    fn chosen(&self, facts: &ModelFacts, name: &str, role: Role, shape: &[u64]) -> TensorType {
        let main = self.recipe.main_type();
        if role == Role::Output || (facts.tied && role == Role::Embedding) {
            let whole = shape.last().is_some_and(|n| n.is_multiple_of(main.block_elems() as u64));
            return match self.output_type {
                Some(ty) => ty,
                None if matches!(self.recipe, Recipe::MXFP4 | Recipe::MXFP4_MOE | Recipe::Q8_0) => TensorType::Q8_0,
                None if !whole => TensorType::Q8_0,
                None => TensorType::Q6_K,
            };
        }
        if self.recipe == Recipe::MXFP4_MOE {
            // Only the matrices of experts are robust enough.
            let stacked = shape.len() > 2 && shape[shape.len() - 3] > 1;
            return if stacked { TensorType::MXFP4 } else { TensorType::Q8_0 };
        }
        if self.recipe == Recipe::MXFP4 && role == Role::Embedding {
            return TensorType::Q8_0;
        }
        let rule = RULES.iter().find(|(recipe, of, when, _)| {
            *recipe == self.recipe && *of == role && self.holds(*when, facts, layer(name))
        });
        let ty = rule.map_or(main, |rule| rule.3);
        match role {
            Role::Value | Role::Key if facts.n_experts == 8 => TensorType::Q8_0,
            Role::Value if facts.is_70b() && matches!(ty, TensorType::Q3_K | TensorType::Q4_K) => TensorType::Q5_K,
            _ => ty,
        }
    }

    fn holds(&self, when: When, facts: &ModelFacts, layer: usize) -> bool {
        let n = facts.n_layers;
        match when {
            When::Always => true,
            When::Gqa4 => facts.n_kv_heads > 0 && facts.n_heads / facts.n_kv_heads >= 4,
            When::FirstLayers(count) => layer < count,
            When::FirstPart(parts) => layer < n / parts,
            When::FirstEighthWithImportance => self.importance && layer < n / 8,
            When::FirstEighthWithoutImportance => !self.importance && layer < n / 8,
            When::Spread => layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2,
            When::EightExperts => facts.n_experts == 8,
            When::NotEightExperts => facts.n_experts != 8,
        }
    }
}

/// The layer in a tensor's name; 0 if there is none.
fn layer(name: &str) -> usize {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A type close to `ty` whose blocks fill rows of `n_cols`.
fn fitting(ty: TensorType, n_cols: u64) -> TensorType {
    let fits = |ty: TensorType| n_cols.is_multiple_of(ty.block_elems() as u64);
    if fits(ty) {
        return ty;
    }
    let smaller = ty.format().and_then(|format| format.for_short_rows).unwrap_or(TensorType::F16);
    if fits(smaller) { smaller } else { TensorType::F16 }
}
