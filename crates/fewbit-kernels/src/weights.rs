//! Weight types as the generic kernels see them: constants that follow from a type's row in `fewbit_quant::types`.
//!
//! A product multiplies bytes. The bytes are the codes themselves, or the levels that a table of 16 assigns to them.
//! They are unsigned (the level plus a power of two), unless that power would be 128 or more; then they are the levels
//! as signed bytes (Q8_0, IQ4). With `|x| <= 127`, a pair of products is at most `2 * 127 * byte`, so a 16-bit sum has
//! room for this many steps:
//!
//! ```text
//! IQ4_NL, IQ4_XS   -127..=113            1    one pair of signed products: 2 * 127 * 127 = 32258
//! IQ3_XXS          -62..=62 + 64         1    2 * 127 * 126 = 32004
//! IQ2              -43..=43 + 64         1    2 * 127 * 107 = 27178
//! IQ3_S            -15..=15 + 16         4    4 * 2 * 127 * 31 = 31496
//! IQ1              -9..=9 + 16           4    4 * 2 * 127 * 25 = 25400
//! MXFP4            -12..=12 + 16         4    4 * 2 * 127 * 28 = 28448
//! TQ1_0, TQ2_0     -1..=2 + 1            8
//! ```
//!
//! | type | bits in the file | bits in memory |
//! | --- | --- | --- |
//! | IQ4_NL | 4.5 | 4.5 |
//! | MXFP4 | 4.25 | 4.5: the exponent as bf16 |
//! | IQ4_XS | 4.25 | 4.3125 |
//! | IQ3_S, IQ3_XXS | 3.4375, 3.0625 | 4.1875 |
//! | IQ2_S, IQ2_XS, IQ2_XXS | 2.5625, 2.3125, 2.0625 | 3.3125, 3.3125, 3.1875 |
//! | IQ1_M, IQ1_S | 1.75, 1.5625 | 3.3125, 3.1875 |
//! | TQ2_0, TQ1_0 | 2.0625, 1.6875 | 2.0625 |
//!
//! The grid types take more space in memory, because looking up a code word in a table of up to 16 KiB is a gathered
//! load for every 4 elements of every row. That is an order of magnitude more work than reading one or two more bits.

use fewbit_quant::ActivationKind;
use fewbit_quant::format::{FloatScale, Format, IntegerScales, Levels, Quantized};

/// Rows of a packed panel: the unit in which weights are interleaved.
pub(crate) const PANEL_ROWS: usize = 16;

/// What a product with a quantized type needs to know.
pub(crate) trait Weights: Quantized {
    /// The kind of activations that the weights are multiplied with.
    const KIND: ActivationKind = Self::FORMAT.activation_kind();
    /// Bits of a stored code.
    const BITS: usize = Self::FORMAT.bits;
    /// Whether the bytes are signed values. If not, they are values plus [`OFFSET`](Self::OFFSET).
    const SIGNED: bool = offset(Self::FORMAT.levels) >= 128;
    /// What is subtracted from an unsigned byte: a power of two, or 0.
    const OFFSET: i32 = offset(Self::FORMAT.levels);
    /// The byte for each code, if it is not the code itself. Unpacked stretches (see
    /// [`unpack`](crate::generic::unpack)) hold these bytes.
    const TABLE: Option<[u8; 16]> = table(Self::FORMAT.levels);
    /// Largest magnitude of a byte.
    const BYTE_MAX: usize = match Self::TABLE {
        _ if Self::SIGNED => 128,
        Some(table) => largest(table),
        None => (1 << Self::BITS) - 1,
    };
    /// Whether blocks have minimums.
    const HAS_MIN: bool = Self::FORMAT.scale.has_min();
    /// Whether float scales are bf16 instead of f16.
    const BF16_SCALES: bool = has_bf16_scales(&Self::FORMAT);
    /// The factor that the stored scale is multiplied by.
    const FACTOR: f32 = Self::FORMAT.scale_factor;
    /// Storage of the integer scales.
    const SCALES: IntegerScales = Self::FORMAT.integer_scales;
    /// Columns of a sub-block: 16 or 32.
    const SUB: usize = Self::SCALES.sub_elems();
    /// Bytes of the float scales of one block of a panel, before the integer ones.
    const FLOATS: usize = PANEL_ROWS * float_bytes_per_row(&Self::FORMAT);
    /// Bytes of scales and minimums of one block of a panel.
    const META: usize = PANEL_ROWS * meta_bytes_per_row(&Self::FORMAT);
}

impl<T: Quantized> Weights for T {}

/// Whether packed scales are bf16: such scales are powers of two beyond the range of f16, which bf16 holds exactly.
pub(crate) const fn has_bf16_scales(format: &Format) -> bool {
    matches!(format.scale, FloatScale::Exponent(_))
}

/// Bytes of the float scales and minimums of one row of one block, before its integer scales.
pub(crate) const fn float_bytes_per_row(format: &Format) -> usize {
    if format.scale.has_min() { 4 } else { 2 }
}

/// Bytes of scales and minimums of one row of one block. [`q256`](crate::generic::q256) documents the layout of integer
/// scales.
pub(crate) const fn meta_bytes_per_row(format: &Format) -> usize {
    let n_subs = 256 / format.integer_scales.sub_elems();
    float_bytes_per_row(format)
        + match format.integer_scales {
            IntegerScales::One => 0,
            IntegerScales::Signed(_) | IntegerScales::Nibbles(_) => n_subs,
            IntegerScales::Odd(_) => n_subs / 2,
            IntegerScales::SixBits(_) => 2 * n_subs,
        }
}

/// The number that makes levels unsigned: the code's offset, or the power of two that the table's largest magnitude
/// needs.
const fn offset(levels: Levels) -> i32 {
    match levels {
        Levels::Offset(offset) => offset,
        Levels::Table(levels) => {
            let (mut max, mut i) = (0, 0);
            while i < 16 {
                if levels[i].unsigned_abs() > max {
                    max = levels[i].unsigned_abs();
                }
                i += 1;
            }
            (max as u32).next_power_of_two() as i32
        }
    }
}

/// The byte of each level: the level itself, or the level plus its offset.
const fn table(levels: Levels) -> Option<[u8; 16]> {
    let Levels::Table(table) = levels else { return None };
    let add = if offset(levels) >= 128 { 0 } else { offset(levels) };
    let (mut bytes, mut i) = ([0; 16], 0);
    while i < 16 {
        bytes[i] = (table[i] as i32 + add) as u8;
        i += 1;
    }
    Some(bytes)
}

const fn largest(bytes: [u8; 16]) -> usize {
    let (mut max, mut i) = (0, 0);
    while i < 16 {
        if bytes[i] > max {
            max = bytes[i];
        }
        i += 1;
    }
    max as usize
}

/// How the codes that a kernel reads are stored.
pub(crate) trait Stored: 'static {
    /// The weight type.
    type Of: Weights;
    /// Bits per stored code.
    const BITS: usize;
    /// Whether the vectors of two quads are interleaved, on instruction sets [with pairs](crate::generic::Simd::HAS_PAIRS).
    const ZIPPED: bool;
}

/// Codes as the matrix stores them.
pub(crate) struct Packed<T>(std::marker::PhantomData<T>);

/// One byte per code, as [`unpack`](crate::generic::unpack) writes them.
pub(crate) struct Unpacked<T>(std::marker::PhantomData<T>);

impl<T: Weights> Stored for Packed<T> {
    type Of = T;
    const BITS: usize = T::BITS;
    const ZIPPED: bool = false;
}

impl<T: Weights> Stored for Unpacked<T> {
    type Of = T;
    const BITS: usize = 8;
    // Codes of 8 bits are read where they are.
    const ZIPPED: bool = T::BITS != 8;
}
