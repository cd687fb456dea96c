//! Decoding stored bytes to `f32` exactly as the formats define it: one rounding per written operation, so that the
//! result equals that of every other correct decoder bit for bit.

use crate::block::{Levels, has_min, read_block32, read_block256};
use crate::{Block32, Block256, QuantError, TensorType};
use half::{bf16, f16};

/// Decodes `out.len()` elements of type `ty` from `bytes`.
///
/// # Errors
/// [`QuantError::Size`] if the length of `bytes` is not that of the blocks of `out.len()` elements,
/// [`QuantError::Unsupported`] for types that fewbit knows by name only.
///
/// ```
/// use fewbit_quant::{TensorType, decode};
/// // One Q8_0 block: scale 0.5 as f16, then 32 signed bytes.
/// let mut block = vec![0x00, 0x38];
/// block.extend((0..32u8).map(|i| i.wrapping_sub(16)));
/// let mut out = [0.0; 32];
/// decode(TensorType::Q8_0, &block, &mut out)?;
/// assert_eq!((out[0], out[16], out[31]), (-8.0, 0.0, 7.5));
/// # Ok::<(), fewbit_quant::QuantError>(())
/// ```
pub fn decode(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    if !ty.is_decodable() {
        return Err(QuantError::Unsupported { ty });
    }
    let expected = ty.row_bytes(out.len()).unwrap_or(0);
    if expected != bytes.len() || (expected == 0 && !out.is_empty()) {
        return Err(QuantError::Size { ty, n_elems: out.len(), expected, found: bytes.len() });
    }
    let blocks = bytes.chunks_exact(ty.block_bytes());
    match ty {
        TensorType::F32 => plain(bytes, out, f32::from_le_bytes),
        TensorType::F16 => plain(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        TensorType::BF16 => plain(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        TensorType::F64 => plain(bytes, out, |b| f64::from_le_bytes(b) as f32),
        TensorType::I8 => plain(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        TensorType::I16 => plain(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        TensorType::I32 => plain(bytes, out, |b| i32::from_le_bytes(b) as f32),
        TensorType::I64 => plain(bytes, out, |b| i64::from_le_bytes(b) as f32),
        _ => {
            if ty.block_elems() == 32 {
                for (y, bytes) in out.as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
                    values32(ty, &read_block32(ty, bytes), y);
                }
            } else {
                for (y, bytes) in out.as_chunks_mut::<256>().0.iter_mut().zip(blocks) {
                    values256(ty, &read_block256(ty, bytes), y);
                }
            }
        }
    }
    Ok(())
}

/// Converts numbers of `N` bytes each to `f32`: exactly or, from wider types, to the nearest.
fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (y, &b) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *y = value(b);
    }
}

/// The values of a block of the 32-element family.
///
/// # Panics
/// If `ty` is not quantized.
pub fn values32(ty: TensorType, b: &Block32, out: &mut [f32; 32]) {
    let levels = Levels::of(ty).expect("a quantized type");
    for (y, &code) in out.iter_mut().zip(&b.codes) {
        let v = b.d * levels.at(code) as f32;
        *y = if has_min(ty) { v + b.m } else { v };
    }
}

/// The values of a block of the 256-element family.
///
/// # Panics
/// If `ty` is not quantized.
pub fn values256(ty: TensorType, b: &Block256, out: &mut [f32; 256]) {
    let levels = Levels::of(ty).expect("a quantized type");
    for (e, y) in out.iter_mut().enumerate() {
        let v = (b.d * f32::from(b.scales[e / 16])) * levels.at(b.codes[e]) as f32;
        *y = if has_min(ty) { v - b.dmin * f32::from(b.mins[e / 16]) } else { v };
    }
}
