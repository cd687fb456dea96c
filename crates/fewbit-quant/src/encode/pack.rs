//! Packs codes into the bits of a block: the inverse of `block.rs`, which documents the layouts.

use half::f16;

/// A scale as it is stored. Weights were checked before, but a fitted scale may slightly exceed the largest `f16`.
#[inline(always)]
pub(super) fn half(v: f32) -> f16 {
    f16::from_f32(v.clamp(-super::MAX_MAGNITUDE, super::MAX_MAGNITUDE))
}

#[inline(always)]
pub(super) fn put_half(out: &mut [u8], v: f16) {
    out[..2].copy_from_slice(&v.to_le_bytes());
}

/// 32 codes of 4 bits: elements 0..16 in the low nibbles, 16..32 in the high ones.
#[inline(always)]
pub(super) fn nibbles32(codes: &[u8; 32], out: &mut [u8]) {
    for (e, out) in out[..16].iter_mut().enumerate() {
        *out = codes[e] & 15 | codes[e + 16] << 4;
    }
}

/// Bit 4 of 32 codes.
#[inline(always)]
pub(super) fn fifth_bits32(codes: &[u8; 32], out: &mut [u8]) {
    let mut bits = 0u32;
    for (e, &code) in codes.iter().enumerate() {
        bits |= u32::from(code >> 4 & 1) << e;
    }
    out[..4].copy_from_slice(&bits.to_le_bytes());
}

/// 256 codes of 4 bits: each run of 64 elements is 32 bytes, low nibbles first.
#[inline(always)]
pub(super) fn nibbles256(codes: &[u8; 256], out: &mut [u8]) {
    for run in 0..4 {
        for l in 0..32 {
            out[32 * run + l] = codes[64 * run + l] & 15 | codes[64 * run + 32 + l] << 4;
        }
    }
}

/// 256 codes of 2 bits: each half of the block is 32 bytes, one bit pair per run of 32 elements.
#[inline(always)]
pub(super) fn pairs256(codes: &[u8; 256], shift: u32, out: &mut [u8]) {
    for half in 0..2 {
        for l in 0..32 {
            let mut byte = 0;
            for run in 0..4 {
                byte |= (codes[128 * half + 32 * run + l] >> shift & 3) << (2 * run);
            }
            out[32 * half + l] = byte;
        }
    }
}

/// One bit of 256 codes: bit `r` of byte `l` belongs to element `32 r + l`.
#[inline(always)]
pub(super) fn bits256(codes: &[u8; 256], shift: u32, out: &mut [u8]) {
    for l in 0..32 {
        let mut byte = 0;
        for run in 0..8 {
            byte |= (codes[32 * run + l] >> shift & 1) << run;
        }
        out[l] = byte;
    }
}

/// The low nibbles of 256 codes in the order of Q6_K: in each half of the block, runs 0 and 2 of 32 elements share
/// bytes, and runs 1 and 3 share the next ones.
#[inline(always)]
pub(super) fn nibbles_q6_k(codes: &[u8; 256], out: &mut [u8]) {
    for half in 0..2 {
        for l in 0..64 {
            out[64 * half + l] = codes[128 * half + l] & 15 | (codes[128 * half + 64 + l] & 15) << 4;
        }
    }
}

/// Eight 6-bit scales and eight 6-bit minimums in 12 bytes (Q4_K, Q5_K).
#[inline(always)]
pub(super) fn scales_and_mins(scales: &[u8], mins: &[u8], out: &mut [u8]) {
    for j in 0..4 {
        out[j] = scales[j] & 63 | scales[j + 4] >> 4 << 6;
        out[j + 4] = mins[j] & 63 | mins[j + 4] >> 4 << 6;
        out[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
}

/// Sixteen 6-bit scales with 32 added, in 12 bytes (Q3_K).
#[inline(always)]
pub(super) fn scales_q3_k(scales: &[u8; 16], out: &mut [u8]) {
    for j in 0..8 {
        out[j] = scales[j] & 15 | scales[j + 8] << 4;
    }
    for j in 0..4 {
        out[8 + j] = scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 | scales[j + 12] >> 4 << 6;
    }
}
