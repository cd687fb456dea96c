//! Arithmetic options that model files select and devices implement.

/// How rotary embedding pairs the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Elements `2i` and `2i + 1` (GGUF files of architecture `llama`).
    Interleaved,
    /// Elements `i` and `i + n / 2` (Hugging Face and most other architectures).
    HalfSplit,
}

/// The activation function of the gate in a gated feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    /// `x / (1 + e^-x)`
    Silu,
    /// GELU in its tanh form; `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// SwiGLU as gpt-oss has it, which limits both factors: with `g = min(x, 7)`, the block's hidden values are
    /// `g / (1 + e^(-1.702 g)) (clamp(up, -7, 7) + 1)`.
    ClampedSilu,
}

impl GateFunction {
    /// The limit of both factors of [`ClampedSilu`](Self::ClampedSilu).
    pub const CLAMP: f32 = 7.0;
    /// The factor in the exponent of [`ClampedSilu`](Self::ClampedSilu).
    pub const CLAMPED_ALPHA: f32 = 1.702;
}
