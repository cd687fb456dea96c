//! Weight types whose codes are looked up, as the generic kernels see them: a table from code to byte, and how
//! scales are stored.
//!
//! A table holds signed levels (IQ4: they reach -127, and no offset makes them unsigned bytes whose pairwise
//! products fit 16 bits) or levels plus a power of two. With `|x| <= 127` a pair of products is at most
//! `2 * 127 * byte`, and so many steps fit a 16-bit sum:
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
//! The grid types grow because looking up a code word, in a table of up to 16 KiB, is a gathered load for every 4
//! elements of every row, an order of magnitude more work than reading a bit or two more.

use crate::generic::q32::Weights32;
use crate::generic::q256::{Scales, Weights256};
use crate::generic::{Codes, biased};
use fewbit_quant::TensorType;
use fewbit_quant::codebook::{
    LEVELS_FP4, LEVELS_IQ1, LEVELS_IQ2, LEVELS_IQ3_S, LEVELS_IQ3_XXS, LEVELS_IQ4, scale_factor,
};

/// The levels of IQ4 as they are.
const SIGNED_IQ4: Option<[u8; 16]> = {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < 16 {
        bytes[i] = LEVELS_IQ4[i] as u8;
        i += 1;
    }
    Some(bytes)
};

/// The largest byte of a table.
const fn largest(table: Option<[u8; 16]>) -> usize {
    let Some(bytes) = table else { return 0 };
    let (mut max, mut i) = (0, 0);
    while i < 16 {
        if bytes[i] > max {
            max = bytes[i];
        }
        i += 1;
    }
    max as usize
}

pub(crate) struct IQ4NL;

impl Codes for IQ4NL {
    const BITS: usize = 4;
    const TABLE: Option<[u8; 16]> = SIGNED_IQ4;
    const SIGNED: bool = true;
}

impl Weights32 for IQ4NL {
    const OFFSET: i32 = 0;
    const MIN: bool = false;
}

pub(crate) struct MXFP4;

impl Codes for MXFP4 {
    const BITS: usize = 4;
    const TABLE: Option<[u8; 16]> = biased(&LEVELS_FP4, 16);
    const BYTE_MAX: usize = largest(Self::TABLE);
}

impl Weights32 for MXFP4 {
    const OFFSET: i32 = 16;
    const MIN: bool = false;
    const BF16_SCALES: bool = true;
}

pub(crate) struct IQ4XS;

impl Codes for IQ4XS {
    const BITS: usize = 4;
    const TABLE: Option<[u8; 16]> = SIGNED_IQ4;
    const SIGNED: bool = true;
}

impl Weights256 for IQ4XS {
    const OFFSET_SHIFT: u32 = 0;
    const SUB: usize = 32;
    const SCALES: Scales = Scales::Signed;
}

/// Ternary weights: no table, and all scales are 1.
pub(crate) struct TQ2;

impl Codes for TQ2 {
    const BITS: usize = 2;
}

impl Weights256 for TQ2 {
    const OFFSET_SHIFT: u32 = 0;
    const SUB: usize = 32;
    const SCALES: Scales = Scales::One;
}

macro_rules! grids {
    ($($name:ident $ty:ident $bits:literal $levels:ident $offset_shift:literal $sub:literal;)*) => {$(
        pub(crate) struct $name;

        impl Codes for $name {
            const BITS: usize = $bits;
            const TABLE: Option<[u8; 16]> = biased(&$levels, 1 << $offset_shift);
            const BYTE_MAX: usize = largest(Self::TABLE);
        }

        impl Weights256 for $name {
            const OFFSET_SHIFT: u32 = $offset_shift;
            const FACTOR: f32 = scale_factor(TensorType::$ty);
            const SUB: usize = $sub;
            const SCALES: Scales = Scales::OddNibbles;
        }
    )*};
}

grids! {
    IQ3XXS IQ3_XXS 4 LEVELS_IQ3_XXS 6 32;
    IQ3S IQ3_S 4 LEVELS_IQ3_S 4 32;
    IQ2XXS IQ2_XXS 3 LEVELS_IQ2 6 32;
    IQ2S IQ2_S 3 LEVELS_IQ2 6 16;
    IQ1S IQ1_S 3 LEVELS_IQ1 4 32;
    IQ1M IQ1_M 3 LEVELS_IQ1 4 16;
}
