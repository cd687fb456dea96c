//! Reads one block of each quantized format into unsigned codes, scales and minimums.
//!
//! The layouts are those of GGUF files. `byte[a..b]` are positions in the block, little-endian; `lo`/`hi`
//! are the nibbles of a byte. Element order is the order along the row.
//!
//! ```text
//! Q4_0   d: f16[0..2]   q: byte[2..18]                 code e = e < 16 ? lo(q[e]) : hi(q[e-16])
//! Q4_1   d: f16[0..2]   m: f16[2..4]   q: byte[4..20]  codes as Q4_0
//! Q5_0   d: f16[0..2]   h: u32[2..6]   q: byte[6..22]  codes as Q4_0, bit 4 = bit e of h
//! Q5_1   d, m: f16      h: u32[4..8]   q: byte[8..24]  codes as Q5_0
//! Q8_0   d: f16[0..2]   q: i8[2..34]                   code = q + 128
//!
//! Q2_K   s: byte[0..16]   q: byte[16..80]   d, dmin: f16[80..84]
//! Q3_K   h: byte[0..32]   q: byte[32..96]   s: byte[96..108]   d: f16[108..110]
//! Q4_K   d, dmin: f16[0..4]   s: byte[4..16]   q: byte[16..144]
//! Q5_K   d, dmin: f16[0..4]   s: byte[4..16]   h: byte[16..48]   q: byte[48..176]
//! Q6_K   q: byte[0..128]   h: byte[128..192]   s: i8[192..208]   d: f16[208..210]
//! ```
//!
//! `codebook.rs` has the formats whose codes are looked up. The positions of `d` and `m` are given by [`FloatScale`] in
//! the table of types; the functions here read the rest.
//!
//! [`FloatScale`]: crate::format::FloatScale

use crate::TensorType;
use crate::format::Reader;
pub use crate::format::{FloatScale, IntegerScales, Levels};
pub use crate::layout::{Block32, Block256};
use crate::layout::{nibbles32, pairs_of_bits, runs};

/// Whether a block of this type has minimums.
pub fn has_min(ty: TensorType) -> bool {
    ty.format().is_some_and(|format| format.scale.has_min())
}

/// Reads one block of a type of the 32-element family.
///
/// # Panics
/// If `ty` is not of this family or `block` is not [`block_bytes`](TensorType::block_bytes) long.
pub fn read_block32(ty: TensorType, block: &[u8]) -> Block32 {
    assert_eq!(block.len(), ty.block_bytes(), "one block of {ty}");
    let (format, read) = match ty.format().map(|format| (format, format.reader)) {
        Some((format, Reader::Of32(read))) => (format, read),
        _ => panic!("{ty} has no blocks of 32"),
    };
    let (d, m) = format.scale.read(block);
    let mut b = Block32 { d, m, codes: [0; 32] };
    read(block, &mut b.codes);
    b
}

/// Reads one block of a type of the 256-element family.
///
/// # Panics
/// If `ty` is not of this family or `block` is not [`block_bytes`](TensorType::block_bytes) long.
pub fn read_block256(ty: TensorType, block: &[u8]) -> Block256 {
    assert_eq!(block.len(), ty.block_bytes(), "one block of {ty}");
    let (format, read) = match ty.format().map(|format| (format, format.reader)) {
        Some((format, Reader::Of256(read))) => (format, read),
        _ => panic!("{ty} has no blocks of 256"),
    };
    let (d, dmin) = format.scale.read(block);
    let mut b = Block256 { d: d * format.scale_factor, dmin, scales: [1; 16], mins: [0; 16], codes: [0; 256] };
    read(block, &mut b);
    b
}

pub(crate) fn q4_0(block: &[u8], codes: &mut [u8; 32]) {
    nibbles32(&block[2..], codes);
}

pub(crate) fn q4_1(block: &[u8], codes: &mut [u8; 32]) {
    nibbles32(&block[4..], codes);
}

pub(crate) fn q5_0(block: &[u8], codes: &mut [u8; 32]) {
    nibbles32(&block[6..], codes);
    fifth_bits(&block[2..6], codes);
}

pub(crate) fn q5_1(block: &[u8], codes: &mut [u8; 32]) {
    nibbles32(&block[8..], codes);
    fifth_bits(&block[4..8], codes);
}

pub(crate) fn q8_0(block: &[u8], codes: &mut [u8; 32]) {
    for (code, &q) in codes.iter_mut().zip(&block[2..]) {
        *code = q ^ 0x80;
    }
}

pub(crate) fn q2_k(block: &[u8], b: &mut Block256) {
    for (j, &s) in block[..16].iter().enumerate() {
        b.scales[j] = (s & 15) as i8;
        b.mins[j] = s >> 4;
    }
    pairs_of_bits(&block[16..80], &mut b.codes);
}

pub(crate) fn q3_k(block: &[u8], b: &mut Block256) {
    b.scales = scales_q3_k(&block[96..108]);
    pairs_of_bits(&block[32..96], &mut b.codes);
    bits256(&block[..32], 2, &mut b.codes);
}

pub(crate) fn q4_k(block: &[u8], b: &mut Block256) {
    (b.scales, b.mins) = scales_and_mins(&block[4..16]);
    nibbles256(&block[16..144], &mut b.codes);
}

pub(crate) fn q5_k(block: &[u8], b: &mut Block256) {
    (b.scales, b.mins) = scales_and_mins(&block[4..16]);
    nibbles256(&block[48..176], &mut b.codes);
    bits256(&block[16..48], 4, &mut b.codes);
}

pub(crate) fn q6_k(block: &[u8], b: &mut Block256) {
    for (scale, &s) in b.scales.iter_mut().zip(&block[192..208]) {
        *scale = s as i8;
    }
    for (i, codes) in b.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (i / 4, i % 4);
        let low = &runs(block)[2 * half + quarter % 2];
        let high = &runs(&block[128..])[half];
        for ((code, low), high) in codes.iter_mut().zip(low).zip(high) {
            *code = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
        }
    }
}

fn fifth_bits(h: &[u8], codes: &mut [u8; 32]) {
    for (e, code) in codes.iter_mut().enumerate() {
        *code |= ((h[e / 8] >> (e % 8)) & 1) << 4;
    }
}

/// 32 bytes of single bits, one per run of 32 elements, that become bit `to` of the codes.
fn bits256(h: &[u8], to: u32, codes: &mut [u8; 256]) {
    for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, h) in codes.iter_mut().zip(&runs(h)[0]) {
            *code |= (h >> i & 1) << to;
        }
    }
}

/// 128 bytes of nibbles: each run of 64 elements is 32 bytes, low nibbles first.
fn nibbles256(q: &[u8], codes: &mut [u8; 256]) {
    for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, q) in codes.iter_mut().zip(&runs(q)[i / 2]) {
            *code = q >> (4 * (i % 2)) & 15;
        }
    }
}

/// The 12 bytes of eight 6-bit scales and minimums that Q4_K and Q5_K share, each repeated for its two
/// halves of 16 elements.
fn scales_and_mins(s: &[u8]) -> ([i8; 16], [u8; 16]) {
    let (mut scales, mut mins) = ([0i8; 16], [0u8; 16]);
    for j in 0..8 {
        let (scale, min) = if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
        };
        scales[2 * j..2 * j + 2].fill(scale as i8);
        mins[2 * j..2 * j + 2].fill(min);
    }
    (scales, mins)
}

/// The 12 bytes of sixteen 6-bit scales of Q3_K: low nibbles in bytes 0..8, the upper pairs in 8..12.
fn scales_q3_k(s: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = s[j % 8] >> (4 * (j / 8)) & 15;
        let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}
