//! FP8 matrices (E4M3 or E5M2) with one scale, one scale per row, or one per block of rows and columns.
//!
//! A weight is the value of its code times its scale. Without scales, every value is representable in F16. With scales,
//! the product is rounded to F16, with an error of at most `2^-11` of the weight (`2^-25` for weights below `2^-14`);
//! if scales are so large that F16 might overflow, to BF16, with an error of at most `2^-8`.

use super::HfError;
use super::part::{self, scales_of};
use crate::CheckpointError;
use fewbit_format::SafetensorsModel;
use fewbit_format::safetensors::{Dtype, TensorInfo};
use fewbit_quant::TensorType;
use half::{bf16, f16};

/// An FP8 matrix.
#[derive(Clone)]
pub(super) struct Fp8 {
    /// `[n_rows, n_cols]`
    pub(super) weight: TensorInfo,
    /// `[ceil(n_rows / rows), ceil(n_cols / cols)]`
    pub(super) scale: Option<TensorInfo>,
    n_cols: usize,
    /// Number of rows and of columns that share one scale.
    rows: usize,
    cols: usize,
    /// The type that it is converted to.
    pub(super) ty: TensorType,
}

impl Fp8 {
    /// Whether this is a supported FP8 type.
    pub(super) fn is(dtype: Dtype) -> bool {
        matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
    }

    pub(super) fn new(
        files: &SafetensorsModel,
        weight: &TensorInfo,
        scale: Option<&TensorInfo>,
        block: Option<[usize; 2]>,
    ) -> Result<Self, CheckpointError> {
        let [n_rows, n_cols] = part::matrix_shape(weight)?;
        let mut fp8 = Self {
            weight: weight.clone(),
            scale: None,
            n_cols,
            rows: n_rows.max(1),
            cols: n_cols.max(1),
            ty: TensorType::F16,
        };
        let Some(scale) = scale else { return Ok(fp8) };
        let shape: Vec<usize> = scale.shape.iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        match (&shape[..], block) {
            ([] | [1] | [1, 1], _) => {}
            ([n], _) | ([n, 1], _) if *n == n_rows => fp8.rows = 1,
            (&[r, c], Some([rows, cols])) if r == n_rows.div_ceil(rows) && c == n_cols.div_ceil(cols) => {
                (fp8.rows, fp8.cols) = (rows, cols);
            }
            _ => {
                let expected = match block {
                    Some([rows, cols]) => vec![n_rows.div_ceil(rows) as u64, n_cols.div_ceil(cols) as u64],
                    None => vec![n_rows as u64, 1],
                };
                let (name, found) = (scale.name.clone(), scale.shape.clone());
                return Err(HfError::PartShape { name, expected, found }.into());
            }
        }
        let largest = match weight.dtype {
            Dtype::F8_E4M3 => 448.0,
            _ => 57344.0,
        };
        let scales = scales_of(files, scale, f32::MAX / largest)?;
        if scales.iter().any(|s| s.abs() * largest > f16::MAX.to_f32()) {
            fp8.ty = TensorType::BF16;
        }
        fp8.scale = Some(scale.clone());
        Ok(fp8)
    }

    /// The scales, for [`write_row`](Self::write_row).
    pub(super) fn scales(&self, files: &SafetensorsModel) -> Result<Vec<f32>, CheckpointError> {
        match &self.scale {
            Some(scale) => scales_of(files, scale, f32::MAX),
            None => Ok(vec![1.0]),
        }
    }

    /// Converts one row to its target type. `codes` are the bytes of the whole matrix.
    pub(super) fn write_row(&self, codes: &[u8], scales: &[f32], row: usize, out: &mut [u8]) {
        let codes = &codes[row * self.n_cols..(row + 1) * self.n_cols];
        let scales = &scales[row / self.rows * self.n_cols.div_ceil(self.cols)..];
        let is_e4m3 = self.weight.dtype == Dtype::F8_E4M3;
        for (i, (out, &code)) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes).enumerate() {
            let value = if is_e4m3 { E4M3[usize::from(code)] } else { e5m2(code) };
            let value = value * scales[i / self.cols];
            *out = match self.ty {
                TensorType::BF16 => bf16::from_f32(value).to_le_bytes(),
                _ => f16::from_f32(value).to_le_bytes(),
            };
        }
    }
}

/// Its code is the upper byte of an f16.
fn e5m2(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = e4m3(code as u32);
        code += 1;
    }
    table
};

/// `s eeee mmm` with bias 7, without infinities, and with one NaN for each sign.
const fn e4m3(code: u32) -> f32 {
    let (sign, exponent, mantissa) = (code >> 7, code >> 3 & 15, code & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        // 2^-9 for each.
        (0, m) => m as f32 / 512.0,
        (e, m) => f32::from_bits((e + 120) << 23 | m << 20),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_codes_decode_to_known_values() {
        let known = [(0x00, 0.0), (0x01, 1.0 / 512.0), (0x07, 7.0 / 512.0), (0x08, 1.0 / 64.0), (0x38, 1.0)];
        for (code, value) in known.into_iter().chain([(0x3c, 1.5), (0x7e, 448.0), (0xfe, -448.0), (0xb8, -1.0)]) {
            assert_eq!(E4M3[code], value, "{code:#x}");
        }
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!((e5m2(0x3c), e5m2(0x7b), e5m2(0x01)), (1.0, 57344.0, 2f32.powi(-16)));
    }

    #[test]
    fn every_e4m3_value_is_exact_in_f16() {
        for value in E4M3.into_iter().filter(|v| !v.is_nan()) {
            assert_eq!(f16::from_f32(value).to_f32(), value);
        }
    }
}
