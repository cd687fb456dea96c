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
}
