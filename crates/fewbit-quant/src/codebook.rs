//! Reading blocks of the formats whose codes are looked up: IQ1 to IQ4, MXFP4, and the ternary TQ1 and TQ2.
//!
//! Each of them becomes a [`Block32`](crate::Block32) or [`Block256`] like any other. The codes are indices into the
//! type's [`Levels`](crate::format::Levels), of which there are at most 16, so a kernel needs one byte shuffle per code
//! and no large table. A stored word of a grid format stands for 8 (IQ1, IQ2) or 4 (IQ3) elements, which `grid.rs`
//! lists.
//!
//! ```text
//! IQ4_NL   d: f16[0..2]   q: byte[2..18]                           codes as Q4_0
//! MXFP4    e: byte[0]     q: byte[1..17]                           codes as Q4_0; d = 2^(e - 128)
//!
//! IQ4_XS   d: f16[0..2]   h: u16[2..4]   s: byte[4..8]   q: byte[8..136]
//!          scale j (of 32) = (nibble j of s | bit pair j of h << 4) - 32; 16 bytes of q each, codes as Q4_0
//! IQ2_XXS  d: f16[0..2]   8 x { index: byte[4], u32: 4 x 7 sign bits, 4-bit scale of 32 }
//! IQ2_XS   d: f16[0..2]   u16[32]: 9-bit index, 7 sign bits    s: byte[66..74], nibbles: scales of 16
//! IQ2_S    d: f16[0..2]   index: byte[2..34]   sign: byte[34..66]   h: byte[66..74], bit pairs: index bits 8, 9
//!          s: byte[74..82], nibbles: scales of 16
//! IQ3_XXS  d: f16[0..2]   index: byte[2..66]   u32[66..98]: as IQ2_XXS
//! IQ3_S    d: f16[0..2]   index: byte[2..66]   h: byte[66..74], bits: index bit 8   sign: byte[74..106]
//!          s: byte[106..110], nibbles: scales of 32
//! IQ1_S    d: f16[0..2]   index: byte[2..34]   u16[34..50]: 4 x 3 bits: index bits 8..11; 3-bit scale of 32; shift
//! IQ1_M    index: byte[0..32]   h: byte[32..48], nibbles: 3 index bits, shift
//!          s: u16[48..56]: 4 x 3-bit scales of 16; the upper nibbles of the four are d
//! TQ1_0    q: byte[0..48], 5 base-3 digits each   q: byte[48..52], 4 digits each   d: f16[52..54]
//! TQ2_0    q: byte[0..64]   d: f16[64..66]                         codes as Q2_K
//! ```
//!
//! The formats define scales of IQ1, IQ2 and IQ3 as `(s + 1/2) / 4`, `(s + 1/2) / 2` or `2 s + 1`. Here the integer
//! scale is `2 s + 1` for all of them, and the remaining power of two goes into `d`
//! ([`scale_factor`](crate::format::Format::scale_factor)). This does not change a bit: `d` has 11 significant bits, a
//! scale 5 and a level 6, so every product of them is exact in `f32`. (IQ4_XS does round, in the order that its format
//! defines.)

use crate::grid;
use crate::layout::{Block256, nibbles32, pairs_of_bits};

/// Levels of IQ4_NL and IQ4_XS.
pub const LEVELS_IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Levels of MXFP4: twice the values of E2M1.
pub const LEVELS_FP4: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Levels of IQ2: index of the magnitude in bits 0 and 1, sign in bit 2.
pub const LEVELS_IQ2: [i8; 16] = [8, 25, 43, 0, -8, -25, -43, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Levels of IQ3_XXS: index of the magnitude in bits 0 to 2, sign in bit 3.
pub const LEVELS_IQ3_XXS: [i8; 16] = [4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62];

/// Levels of IQ3_S: as [`LEVELS_IQ3_XXS`].
pub const LEVELS_IQ3_S: [i8; 16] = [1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15];

/// Levels of IQ1, times 8: -1, 0 or 1 (bits 0 and 1), plus an eighth or (bit 2) minus an eighth.
pub const LEVELS_IQ1: [i8; 16] = [-7, 1, 9, 0, -9, -1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) use crate::block::q4_0 as iq4_nl;

pub(crate) fn mxfp4(block: &[u8], codes: &mut [u8; 32]) {
    nibbles32(&block[1..], codes);
}

pub(crate) fn tq1_0(block: &[u8], b: &mut Block256) {
    trits(block, &mut b.codes);
}

pub(crate) fn tq2_0(block: &[u8], b: &mut Block256) {
    pairs_of_bits(&block[..64], &mut b.codes);
}

pub(crate) fn iq4_xs(block: &[u8], b: &mut Block256) {
    let high = u16_at(block, 2);
    for (j, codes) in b.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = nibble(&block[4..8], j) | ((high >> (2 * j) & 3) as u8) << 4;
        b.scales[2 * j..2 * j + 2].fill(scale as i8 - 32);
        nibbles32(&block[8 + 16 * j..], codes);
    }
}

pub(crate) fn iq2_xxs(block: &[u8], b: &mut Block256) {
    for j in 0..8 {
        let word = u32_at(block, 2 + 8 * j + 4);
        b.scales[2 * j..2 * j + 2].fill(odd((word >> 28) as u8));
        for l in 0..4 {
            let entry = grid::IQ2_XXS[usize::from(block[2 + 8 * j + l])];
            run_of_8(entry, seven_signs(word >> (7 * l)), &mut b.codes[32 * j + 8 * l..]);
        }
    }
}

pub(crate) fn iq2_xs(block: &[u8], b: &mut Block256) {
    for (i, codes) in b.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u16_at(block, 2 + 2 * i);
        run_of_8(grid::IQ2_XS[usize::from(word & 511)], seven_signs(u32::from(word >> 9)), codes);
    }
    nibble_scales(&block[66..74], 1, &mut b.scales);
}

pub(crate) fn iq2_s(block: &[u8], b: &mut Block256) {
    for (i, codes) in b.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = block[66 + i / 4] >> (2 * (i % 4)) & 3;
        let index = usize::from(block[2 + i]) | usize::from(high) << 8;
        run_of_8(grid::IQ2_S[index], block[34 + i], codes);
    }
    nibble_scales(&block[74..82], 1, &mut b.scales);
}

pub(crate) fn iq3_xxs(block: &[u8], b: &mut Block256) {
    for j in 0..8 {
        let word = u32_at(block, 66 + 4 * j);
        b.scales[2 * j..2 * j + 2].fill(odd((word >> 28) as u8));
        for l in 0..4 {
            let signs = seven_signs(word >> (7 * l));
            for half in 0..2 {
                let entry = grid::IQ3_XXS[usize::from(block[2 + 8 * j + 2 * l + half])];
                run_of_4(entry, signs >> (4 * half), &mut b.codes[32 * j + 8 * l + 4 * half..]);
            }
        }
    }
}

pub(crate) fn iq3_s(block: &[u8], b: &mut Block256) {
    for (i, codes) in b.codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let high = block[66 + i / 8] >> (i % 8) & 1;
        let index = usize::from(block[2 + i]) | usize::from(high) << 8;
        run_of_4(grid::IQ3_S[index], block[74 + i / 2] >> (4 * (i % 2)), codes);
    }
    nibble_scales(&block[106..110], 2, &mut b.scales);
}

pub(crate) fn iq1_s(block: &[u8], b: &mut Block256) {
    for j in 0..8 {
        let word = u16_at(block, 34 + 2 * j);
        b.scales[2 * j..2 * j + 2].fill(odd((word >> 12 & 7) as u8));
        for l in 0..4 {
            let index = usize::from(block[2 + 4 * j + l]) | usize::from(word >> (3 * l) & 7) << 8;
            let shift = if word & 0x8000 == 0 { 0 } else { 0xFF };
            run_of_8(grid::IQ1_S[index], shift, &mut b.codes[32 * j + 8 * l..]);
        }
    }
}

pub(crate) fn iq1_m(block: &[u8], b: &mut Block256) {
    for (i, codes) in b.codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = nibble(&block[32..48], i);
        let index = usize::from(block[i]) | usize::from(high & 7) << 8;
        run_of_8(grid::IQ1_S[index], if high & 8 == 0 { 0 } else { 0xFF }, codes);
    }
    for (j, scale) in b.scales.iter_mut().enumerate() {
        *scale = odd((u16_at(block, 48 + j / 4 * 2) >> (3 * (j % 4)) & 7) as u8);
    }
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn odd(s: u8) -> i8 {
    (2 * s + 1) as i8
}

/// Nibble `i` of some bytes, low ones first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (4 * (i % 2)) & 15
}

/// Scales stored in nibbles, each for `repeat` runs of 16 elements.
fn nibble_scales(bytes: &[u8], repeat: usize, scales: &mut [i8; 16]) {
    for (j, scale) in scales.iter_mut().enumerate() {
        *scale = odd(nibble(bytes, j / repeat));
    }
}

/// Seven signs, and an eighth that makes the number of negative ones even.
fn seven_signs(bits: u32) -> u8 {
    let signs = (bits & 127) as u8;
    signs | ((signs.count_ones() & 1) << 7) as u8
}

/// The codes of 8 elements: 2 bits of magnitude, with the sign in the bit above.
fn run_of_8(entry: u16, signs: u8, codes: &mut [u8]) {
    for (i, code) in codes[..8].iter_mut().enumerate() {
        *code = (entry >> (2 * i) & 3) as u8 | (signs >> i & 1) << 2;
    }
}

/// The codes of 4 elements: 3 bits of magnitude, with the sign in the bit above.
fn run_of_4(entry: u16, signs: u8, codes: &mut [u8]) {
    for (i, code) in codes[..4].iter_mut().enumerate() {
        *code = (entry >> (3 * i) & 7) as u8 | (signs >> i & 1) << 3;
    }
}

/// Base-3 digits. A byte holds the number as a fraction of 256, rounded up. Multiplying by a power of three and keeping
/// the low eight bits drops the leading digits; multiplying by three once more carries out the next digit.
fn trits(block: &[u8], codes: &mut [u8; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    for (e, code) in codes.iter_mut().enumerate() {
        let (byte, digit) = match e {
            0..160 => (e % 32, e / 32),
            160..240 => (32 + (e - 160) % 16, (e - 160) / 16),
            _ => (48 + (e - 240) % 4, (e - 240) / 4),
        };
        let rest = block[byte].wrapping_mul(POWERS[digit]);
        *code = ((u16::from(rest) * 3) >> 8) as u8;
    }
}
