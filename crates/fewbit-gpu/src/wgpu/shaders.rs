//! A small preprocessor that makes the source of a kernel from WGSL templates: flags, constants, and code for the
//! weight type.
//!
//! A template contains lines `#if FLAG`, `#else` and `#endif`, and words in capitals that are replaced by numbers or
//! code. It is preceded by the arithmetic (native or [exact](Arithmetic::Exact)) and by `common.wgsl`.

use fewbit_model::KvType;
use fewbit_quant::format::{FloatScale, Format, IntegerScales, Levels};
use fewbit_quant::{ActivationKind, GateFunction, TensorType};
use std::fmt::Write;

/// How kernels compute with floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// With the device's float instructions: fast, repeatable on the same device and driver, and close to the CPU's
    /// results.
    #[default]
    Native,
    /// With integers, rounded as on the CPU, so that the results are bit for bit the same. Some hundred times slower:
    /// for tests.
    Exact,
}

/// A kernel and its variant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Norm {
        in_place: bool,
        has_mean: bool,
    },
    Quantize {
        kind: ActivationKind,
    },
    Product {
        ty: TensorType,
        n_tokens: u32,
        adds: bool,
        experts: bool,
    },
    Rows(RowsOp),
    Rotate,
    Append {
        kv: KvType,
    },
    Attend {
        kv: KvType,
        head_dim: usize,
        is_chunked: bool,
        sinks: bool,
    },
    Route {
        is_sigmoid: bool,
        biased: bool,
        grouped: bool,
    },
    /// Rows of routes: multiplied by their weights, or with the biases of their experts.
    Routed {
        biases: bool,
    },
    Combine {
        weighs: bool,
        shared: bool,
        scored: bool,
    },
    LowRank {
        is_down: bool,
    },
    /// Those that measure what the device can do.
    Read,
    Multiply,
}

/// An operation on each element of some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RowsOp {
    Bias,
    Temper,
    Silu,
    Gelu,
    ClampedSilu,
    SquaredRelu,
    Add,
    Scale,
    Softcap,
}

impl Kernel {
    /// The WGSL source of the kernel.
    pub(super) fn source(&self, arithmetic: Arithmetic) -> String {
        let arithmetic = match arithmetic {
            Arithmetic::Native => include_str!("wgsl/native.wgsl"),
            Arithmetic::Exact => include_str!("wgsl/exact.wgsl"),
        };
        format!("{arithmetic}\n{}{}\n{}", constants(), include_str!("wgsl/common.wgsl"), self.text())
    }

    fn text(&self) -> String {
        match *self {
            Self::Norm { in_place, has_mean } => {
                fill(include_str!("wgsl/norm.wgsl"), &[("IN_PLACE", in_place), ("MEAN", has_mean)], &[])
            }
            Self::Quantize { kind } => {
                let (block, sum) = (kind.block_elems(), kind.sum_elems());
                let words = [("BLOCK", format!("{block}u")), ("SUMMED", format!("{sum}u"))];
                fill(include_str!("wgsl/quantize.wgsl"), &[], &words)
            }
            Self::Product { ty, n_tokens, adds, experts } => product(ty, n_tokens, adds, experts),
            Self::Rows(op) => {
                let (has_second, body) = match op {
                    RowsOp::Bias => (true, "to[at] = add_(to[at], other[id.x]);"),
                    RowsOp::Temper => (true, "to[at] = mul_(to[at], other[step.temperature_at + row]);"),
                    RowsOp::Silu => (true, "let x = to[at]; to[at] = mul_(div_(x, add_(1.0, exp_(-x))), other[at]);"),
                    RowsOp::Gelu => (
                        true,
                        "let x = to[at]; let u = fma_(mul_(mul_(x, x), x), 0.044715, x); \
                         to[at] = mul_(div_(x, add_(1.0, exp_(mul_(-1.595769, u)))), other[at]);",
                    ),
                    RowsOp::ClampedSilu => (
                        true,
                        "let g = at_most(to[at], CLAMP); let u = at_least(at_most(other[at], CLAMP), -CLAMP); \
                         to[at] = mul_(div_(g, add_(1.0, exp_(mul_(-CLAMPED_ALPHA, g)))), add_(u, 1.0));",
                    ),
                    RowsOp::SquaredRelu => (false, "let x = at_least(to[at], 0.0); to[at] = mul_(x, x);"),
                    RowsOp::Add => (true, "to[at] = fma_(other[at], shape.f, to[at]);"),
                    RowsOp::Scale => (false, "to[at] = mul_(to[at], shape.f);"),
                    RowsOp::Softcap => (false, "to[at] = mul_(shape.f, tanh_(mul_(to[at], shape.g)));"),
                };
                fill(include_str!("wgsl/rows.wgsl"), &[("SECOND", has_second)], &[("BODY", body.to_owned())])
            }
            Self::Rotate => include_str!("wgsl/rotate.wgsl").to_owned(),
            Self::Append { kv } => {
                let (half, blocks) = (kv == KvType::F16, kv == KvType::Q8_0);
                let values = [("VALUES_PER_WORD", if half { "2u" } else { "1u" }.to_owned())];
                fill(include_str!("wgsl/append.wgsl"), &[("HALF", half), ("BLOCKS", blocks)], &values)
            }
            Self::Attend { kv, head_dim, is_chunked, sinks } => {
                let words = [
                    ("HEAD", format!("{head_dim}")),
                    ("QUADS", format!("{}", head_dim / 4)),
                    ("BLOCKS_OF_HEAD", format!("{}", head_dim / 32)),
                    ("PER_THREAD", format!("{}u", head_dim.div_ceil(64))),
                ];
                let (half, blocks) = (kv == KvType::F16, kv == KvType::Q8_0);
                let flags = [("HALF", half), ("BLOCKS", blocks), ("CHUNKED", is_chunked), ("SINKS", sinks)];
                fill(include_str!("wgsl/attend.wgsl"), &flags, &words)
            }
            Self::LowRank { is_down } => fill(include_str!("wgsl/low_rank.wgsl"), &[("DOWN", is_down)], &[]),
            Self::Read => include_str!("wgsl/read.wgsl").to_owned(),
            Self::Multiply => include_str!("wgsl/multiply.wgsl").to_owned(),
            Self::Route { is_sigmoid, biased, grouped } => {
                let flags = [("SIGMOID", is_sigmoid), ("BIASED", biased), ("GROUPED", grouped)];
                let flags = [&flags[..], &[("CHOICES", biased || grouped)]].concat();
                fill(include_str!("wgsl/route.wgsl"), &flags, &[])
            }
            Self::Routed { biases } => fill(include_str!("wgsl/routed.wgsl"), &[("BIASES", biases)], &[]),
            Self::Combine { weighs, shared, scored } => {
                let flags = [("WEIGHS", weighs), ("SHARED", shared), ("SCORED", scored)];
                fill(include_str!("wgsl/combine.wgsl"), &flags, &[])
            }
        }
    }
}

/// The constants of `fewbit_kernels::math`, with exactly the same values.
fn constants() -> String {
    let all = [
        ("LOG2_E", std::f32::consts::LOG2_E),
        ("LN2_HI", 0.693_359_4),
        ("LN2_LO", -2.121_944_4e-4),
        ("TAYLOR_7", 1.0 / 5040.0),
        ("TAYLOR_6", 1.0 / 720.0),
        ("TAYLOR_5", 1.0 / 120.0),
        ("TAYLOR_4", 1.0 / 24.0),
        ("TAYLOR_3", 1.0 / 6.0),
        ("TANH_11", -1_382.0 / 155_925.0),
        ("TANH_9", 62.0 / 2_835.0),
        ("TANH_7", -17.0 / 315.0),
        ("TANH_5", 2.0 / 15.0),
        ("TANH_3", -1.0 / 3.0),
        ("CLAMP", GateFunction::CLAMP),
        ("CLAMPED_ALPHA", GateFunction::CLAMPED_ALPHA),
    ];
    // Rust prints the shortest decimal that parses back to the same float.
    all.iter().map(|(name, value)| format!("const {name}: f32 = {value:?};\n")).collect()
}

/// Expands a template: evaluates its conditions and replaces its words.
fn fill(text: &str, flags: &[(&str, bool)], words: &[(&str, String)]) -> String {
    let mut out = String::new();
    // For each open `#if`, whether its current branch is included.
    let mut open: Vec<bool> = Vec::new();
    for line in text.lines() {
        if let Some(flag) = line.strip_prefix("#if ") {
            open.push(flags.iter().any(|(name, is_set)| *name == flag && *is_set));
        } else if line == "#else" {
            let last = open.last_mut().expect("after an #if");
            *last = !*last;
        } else if line == "#endif" {
            open.pop();
        } else if open.iter().all(|counts| *counts) {
            out.push_str(&replaced(line, words));
            out.push('\n');
        }
    }
    out
}

/// Replaces whole words in a line.
fn replaced(line: &str, words: &[(&str, String)]) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_word) {
        let end = rest[start..].find(|c| !is_word(c)).map_or(rest.len(), |n| start + n);
        out.push_str(&rest[..start]);
        let word = &rest[start..end];
        out.push_str(words.iter().find(|(name, _)| *name == word).map_or(word, |(_, with)| with));
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn product(ty: TensorType, n_tokens: u32, adds: bool, experts: bool) -> String {
    let kind = ActivationKind::of(ty).expect("checked when the matrix was packed");
    let (is_float, is_256) = (kind == ActivationKind::F32, kind == ActivationKind::Q8Block256);
    let format = ty.format();
    let bits = format.map_or(8 * ty.block_bytes(), |format| format.bits);
    let integers = format.map_or(IntegerScales::One, |format| format.integer_scales);
    let has_min = format.is_some_and(|format| format.scale.has_min());
    let (table, offset) = match format.map(|format| format.levels) {
        Some(Levels::Table(table)) => (Some(table), 0),
        // 8-bit codes are stored as signed bytes.
        Some(Levels::Offset(offset)) if bits < 8 => (None, offset),
        _ => (None, 0),
    };
    let flags = [
        ("FLOAT", is_float),
        ("ADDS", adds),
        ("EXPERTS", experts),
        ("TILES", n_tokens > 4),
        ("LEVELS", table.is_some()),
        ("BLOCK_256", is_256),
        ("INTEGERS", is_256),
        ("MINIMUM", has_min),
    ];
    let pairs = 8 * (1 + usize::from(has_min));
    let meta = pairs + 4 * integer_rows(integers);
    let factored = match format.map_or(1.0, |format| format.scale_factor) {
        1.0 => String::new(),
        factor => format!("mul_({factor:?}, "),
    };
    let powers_of_two = matches!(format, Some(Format { scale: FloatScale::Exponent(_), .. }));
    let scale_of = if powers_of_two { "bf16_of" } else { "half_of" };
    let words = [
        ("TOKENS", format!("{n_tokens}u")),
        ("TILE", format!("{}u", 8 * n_tokens)),
        ("BLOCK", format!("{}u", kind.block_elems())),
        ("META", format!("{meta}u")),
        ("GROUP", format!("{}u", bits * 16)),
        ("OFFSET", format!("{offset}")),
        ("INTEGERS_AT", format!("{pairs}u")),
        ("SCALE_OF", scale_of.to_owned()),
        ("FACTORED", if factored.is_empty() { String::new() } else { "factored".to_owned() }),
        ("CODES", codes(bits)),
        ("SCALES", if is_256 { integer_scales(integers) } else { String::new() }),
    ];
    let mut text = String::new();
    if let Some(table) = table {
        let words: Vec<String> =
            table.as_chunks::<4>().0.iter().map(|b| format!("{}u", u32::from_le_bytes(b.map(|b| b as u8)))).collect();
        writeln!(text, "var<private> LEVELS: array<u32, 4> = array<u32, 4>({});", words.join(", ")).expect("memory");
    }
    if !factored.is_empty() {
        writeln!(text, "fn factored(d: f32) -> f32 {{ return {factored}d); }}").expect("memory");
    }
    if powers_of_two {
        text.push_str(
            "fn bf16_of(word: u32, i: u32) -> f32 {\n    if ((i & 1u) == 0u) { return bitcast<f32>(word << 16u); }\n    \
             return bitcast<f32>(word & 0xffff0000u);\n}\n",
        );
    }
    text.push_str(&fill(include_str!("wgsl/product.wgsl"), &flags, &words));
    if is_float {
        let body = match ty {
            TensorType::F32 => "bitcast<f32>(w[base + i])",
            TensorType::F16 => "half_of(w[base + i / 2u], i)",
            _ => "bitcast<f32>(select(w[base + i / 2u] << 16u, w[base + i / 2u] & 0xffff0000u, (i & 1u) == 1u))",
        };
        writeln!(text, "fn weight(base: u32, i: u32) -> f32 {{ return {body}; }}").expect("memory");
    }
    text
}

/// How many rows of 16 bytes a block has for integer scales and minimums.
fn integer_rows(integers: IntegerScales) -> usize {
    let n_subs = 256 / integers.sub_elems();
    match integers {
        IntegerScales::One => 0,
        IntegerScales::Odd(_) => n_subs / 2,
        IntegerScales::Signed(_) | IntegerScales::Nibbles(_) => n_subs,
        IntegerScales::SixBits(_) => 2 * n_subs,
    }
}

/// WGSL functions that read the integer scale and minimum of the `j`-th group of 16 elements in a block of 256: the
/// inverse of the packing in `fewbit_kernels`.
fn integer_scales(integers: IntegerScales) -> String {
    // A group of 16 elements is a sub-block or a part of one.
    let n_subs = 256 / integers.sub_elems();
    let sub = format!("(j / {}u)", 16 / n_subs);
    let byte = |row: &str| format!("byte_of(at, {row} * 16u + lane)");
    let (scale, minimum) = match integers {
        IntegerScales::One => ("1".to_owned(), None),
        IntegerScales::Signed(_) => (format!("(i32({} << 24u) >> 24u)", byte(&sub)), None),
        IntegerScales::Odd(_) => {
            let both = byte(&format!("({sub} / 2u)"));
            (format!("i32(2u * (({both} >> (4u * ({sub} & 1u))) & 15u) + 1u)"), None)
        }
        IntegerScales::Nibbles(_) => (format!("i32({} & 15u)", byte(&sub)), Some(format!("i32({} >> 4u)", byte(&sub)))),
        IntegerScales::SixBits(_) => {
            (format!("i32({})", byte(&sub)), Some(format!("i32({})", byte(&format!("({n_subs}u + {sub})")))))
        }
    };
    let mut out = format!("fn scale(at: u32, j: u32, lane: u32) -> i32 {{ return {scale}; }}\n");
    if let Some(minimum) = minimum {
        writeln!(out, "fn minimum(at: u32, j: u32, lane: u32) -> i32 {{ return {minimum}; }}").expect("memory");
    }
    out
}

/// WGSL code that reads the codes of 32 columns of a lane, as 8 groups of 4, into `q`: the inverse of the packing in
/// `fewbit_kernels`.
fn codes(bits: usize) -> String {
    let quad = |q: usize| match bits {
        8 => format!("w[at + {}u]", q * 16),
        2 | 3 => {
            let low = format!("((w[at + {}u] >> {}u) & 0x03030303u)", q / 4 * 16, 2 * (q % 4));
            match bits {
                3 => format!("({low} | (((w[at + 32u] >> {q}u) & 0x01010101u) << 2u))"),
                _ => low,
            }
        }
        _ => {
            let low = format!("((w[at + {}u] >> {}u) & 0x0f0f0f0fu)", q % 4 * 16, 4 * (q / 4));
            match bits {
                5 => format!("({low} | (((w[at + 64u] >> {q}u) & 0x01010101u) << 4u))"),
                6 => format!("({low} | (((w[at + {}u] >> {}u) & 0x03030303u) << 4u))", 64 + q / 4 * 16, 2 * (q % 4)),
                _ => low,
            }
        }
    };
    (0..8).map(|q| format!("q[{q}] = levels4({}); ", quad(q))).collect()
}
