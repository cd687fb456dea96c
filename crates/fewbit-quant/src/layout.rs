//! Decoded blocks, and the bit fields that several formats share.

/// 32 weights under one scale: `value[e] = d * level(codes[e]) + m`.
///
/// The value of a code depends on the type: see [`Levels`](crate::format::Levels). `m` is 0 in types without a minimum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block32 {
    /// Scale.
    pub d: f32,
    /// Minimum, added to every element.
    pub m: f32,
    /// Unsigned codes: 0..=15, 0..=31, or 0..=255.
    pub codes: [u8; 32],
}

/// 256 weights in 16 sub-blocks of 16:
/// `value[e] = (d * scales[e / 16]) * level(codes[e]) - dmin * mins[e / 16]`.
///
/// Formats with sub-blocks of 32 store each scale twice here, and formats without sub-blocks have scales of 1. The
/// value of a code depends on the type: see [`Levels`](crate::format::Levels).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block256 {
    /// Scale of the integer scales.
    pub d: f32,
    /// Scale of the integer minimums; 0 in types without minimums.
    pub dmin: f32,
    /// Integer scale of each sub-block.
    pub scales: [i8; 16],
    /// Integer minimum of each sub-block, 0..=63.
    pub mins: [u8; 16],
    /// Unsigned codes: 0..=3, 0..=7, 0..=15, 0..=31 or 0..=63.
    pub codes: [u8; 256],
}

#[inline]
pub(crate) fn nibbles32(q: &[u8], codes: &mut [u8; 32]) {
    for e in 0..16 {
        codes[e] = q[e] & 15;
        codes[e + 16] = q[e] >> 4;
    }
}

/// Splits bytes into runs of 32. All formats of 256 elements keep 32 neighbouring elements in neighbouring bytes, so a
/// loop over a run vectorizes.
#[inline]
pub(crate) fn runs(bytes: &[u8]) -> &[[u8; 32]] {
    bytes.as_chunks().0
}

/// 64 bytes of four 2-bit codes: each half of the block is 32 bytes, one bit pair per run of 32 elements.
#[inline]
pub(crate) fn pairs_of_bits(q: &[u8], codes: &mut [u8; 256]) {
    for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, q) in codes.iter_mut().zip(&runs(q)[i / 4]) {
            *code = q >> (2 * (i % 4)) & 3;
        }
    }
}
