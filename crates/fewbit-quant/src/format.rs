//! The description of a quantized type in numbers: its row in the table of `types.rs`, from which everything else is
//! derived.
//!
//! Decoding, dot products, the packed layout and the kernels of `fewbit-kernels`, memory estimates and random weights
//! read these fields; none of them checks for a type by name. The arrangement of the bits in a block, which numbers
//! cannot describe, is implemented by the row's `Reader`.

use crate::layout::Block256;
use crate::{ActivationKind, TensorType, decode};
use half::f16;

/// The description of a quantized type.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Format {
    /// Bits of a code, as kernels store it: 2, 3, 4, 5, 6 or 8.
    pub bits: usize,
    /// The values that codes stand for.
    pub levels: Levels,
    /// Where and how a block stores its float scale and its minimum.
    pub scale: FloatScale,
    /// The factor that the stored float scale is multiplied by: a power of two.
    pub scale_factor: f32,
    /// The integer scales of sub-blocks; [`IntegerScales::One`] in blocks of 32.
    pub integer_scales: IntegerScales,
    /// Whether `encode` supports this type.
    pub is_encodable: bool,
    /// For types with blocks of 256: the type with blocks of 32 that llama.cpp uses for rows that are not a multiple of
    /// 256.
    pub for_short_rows: Option<TensorType>,
    /// Reads codes and integer scales.
    pub(crate) reader: Reader,
}

impl Format {
    /// The kind of activations that weights of this type are multiplied with.
    pub const fn activation_kind(&self) -> ActivationKind {
        match self.reader {
            Reader::Of32(_) => ActivationKind::Q8Block32,
            Reader::Of256(_) => ActivationKind::Q8Block256,
        }
    }
}

/// A quantized type as a Rust type, for code that is generic over the format and compiled once for each.
pub trait Quantized: 'static {
    /// The tensor type.
    const TYPE: TensorType;
    /// Its description.
    const FORMAT: Format;
    /// The first type in the table that has the same layout in memory once it is unpacked into codes and integer
    /// scales. Both run the same kernels.
    type Kernel: Quantized;
}

/// A function that [`TensorType::dispatch`] calls with a [`Quantized`] type.
pub trait ForQuantized {
    /// The return type.
    type Out;
    /// Called with the type.
    fn call<T: Quantized>(self) -> Self::Out;
}

/// The integer values that the codes of a type stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// The code minus this number.
    Offset(i32),
    /// The table entry at the index of the code.
    Table(&'static [i8; 16]),
}

impl Levels {
    /// The levels of a quantized type; `None` for others.
    pub fn of(ty: TensorType) -> Option<Self> {
        ty.format().map(|format| format.levels)
    }

    /// The level of `code`.
    ///
    /// # Panics
    /// If a table has no such code.
    #[inline]
    pub fn at(self, code: u8) -> i32 {
        match self {
            Self::Offset(offset) => i32::from(code) - offset,
            Self::Table(table) => i32::from(table[usize::from(code)]),
        }
    }
}

/// Where a block stores its float scale `d`. The numbers are byte positions in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatScale {
    /// An `f16`.
    Half(usize),
    /// An `f16`, and the `f16` of the minimum (in blocks of 256: the scale of the minimums).
    HalfAndMin(usize, usize),
    /// An `f16` that is split into four nibbles: the upper nibbles of the four `u16` from this position on (IQ1_M).
    HalfInNibbles(usize),
    /// A byte `e` for `2^(e - 128)` (MXFP4).
    Exponent(usize),
}

impl FloatScale {
    /// Whether there is a minimum.
    pub const fn has_min(self) -> bool {
        matches!(self, Self::HalfAndMin(..))
    }

    /// Reads scale and minimum; the minimum is 0 for types without one.
    pub(crate) fn read(self, block: &[u8]) -> (f32, f32) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        match self {
            Self::Half(at) => (half(at), 0.0),
            Self::HalfAndMin(at, min) => (half(at), half(min)),
            Self::HalfInNibbles(at) => {
                let nibble = |i: usize| u16::from(block[at + 1 + 2 * i] >> 4) << (4 * i);
                (f16::from_bits(nibble(0) | nibble(1) | nibble(2) | nibble(3)).to_f32(), 0.0)
            }
            Self::Exponent(at) => (exponent(block[at]), 0.0),
        }
    }

    /// Writes a scale, and a minimum if the type has one, rounded to what the block can store: an `f16`, or the largest
    /// power of two that does not exceed the scale.
    pub fn write(self, block: &mut [u8], scale: f32, min: f32) {
        let mut half = |at: usize, value: f32| block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        match self {
            Self::Half(at) => half(at, scale),
            Self::HalfAndMin(at, min_at) => {
                half(at, scale);
                half(min_at, min);
            }
            Self::HalfInNibbles(at) => {
                let bits = f16::from_f32(scale).to_bits();
                for i in 0..4 {
                    let byte = &mut block[at + 1 + 2 * i];
                    *byte = *byte & 15 | ((bits >> (4 * i) & 15) as u8) << 4;
                }
            }
            Self::Exponent(at) => block[at] = ((scale.to_bits() >> 23 & 255) + 1).min(255) as u8,
        }
    }
}

/// The scale of an MXFP4 block: `2^(e - 128)`, for every byte. All significant bits are in the exponent (two values are
/// subnormal), so `bf16` holds it exactly.
fn exponent(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Sets the float scales of a block with arbitrary bits so that the root mean square of its weights is near `spread`: a
/// power of two, and a minimum that puts the middle code near zero. Random weights for speed measurements are made this
/// way.
///
/// # Panics
/// If `ty` is not quantized or `block` is not one block of it.
pub fn write_random_scales(ty: TensorType, block: &mut [u8], spread: f32) {
    let format = ty.format().expect("a quantized type");
    let middle = (1u32 << (format.bits - 1)) as f32;
    // Minimums are added in blocks of 32 and subtracted in blocks of 256.
    let min = if ty.block_elems() == 32 { -middle } else { middle };
    format.scale.write(block, 1.0, min);
    let mut values = vec![0.0; ty.block_elems()];
    decode(ty, block, &mut values).expect("one block");
    let mean_square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
    let unit = if mean_square > 0.0 { (spread / mean_square.sqrt()).log2().round().exp2() } else { spread };
    format.scale.write(block, unit, min * unit);
}

/// The integer scales of the sub-blocks of a block of 256, by their range; the number is the size of a sub-block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegerScales {
    /// All scales are 1, and none are stored.
    One,
    /// -128..=127.
    Signed(usize),
    /// `2 s + 1`, where `s` is below 16.
    Odd(usize),
    /// Scales and minimums below 16.
    Nibbles(usize),
    /// Scales and minimums below 64.
    SixBits(usize),
}

impl IntegerScales {
    /// Number of elements in a sub-block. If all scales are 1, any size is correct, and a larger one is faster.
    pub const fn sub_elems(self) -> usize {
        match self {
            Self::One => 32,
            Self::Signed(n) | Self::Odd(n) | Self::Nibbles(n) | Self::SixBits(n) => n,
        }
    }
}

/// Reads the codes of a block of 32, or the codes, integer scales and minimums of a block of 256. The latter starts
/// with codes and minimums of 0 and scales of 1.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reader {
    Of32(fn(&[u8], &mut [u8; 32])),
    Of256(fn(&[u8], &mut Block256)),
}
