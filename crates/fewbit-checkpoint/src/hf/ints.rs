//! Matrices of 4-bit or 8-bit integers in groups: GPTQ, AWQ, compressed-tensors.
//!
//! ```text
//! weight[row, col] = scale[row, g] * (code[row, col] - zero[row, g])      g = col / group, or g_idx[col]
//!
//! layout   codes                                  scales, zeros
//! GPTQ     i32 [n_cols / P, n_rows], along cols   [n_groups, n_rows], zeros packed along rows
//! AWQ      i32 [n_cols, n_rows / P], along rows   the same; eight rows in the order 0 2 4 6 1 3 5 7
//! packed   i32 [n_rows, n_cols / P], along cols   [n_rows, n_groups], zeros packed along rows
//! bytes    i8 [n_rows, n_cols]                    [n_rows, n_groups], zeros i8
//! ```
//! with `P = 32 / bits` codes in a word, the first in its lowest bits.
//!
//! They are converted to blocks of 32, whose scale is that of their group:
//!
//! | codes | zero points | become | error |
//! | --- | --- | --- | --- |
//! | 4 bits | all 8 | Q4_0 | none |
//! | 4 bits | any | Q4_1 | `2^-11 * scale * zero`, at most 1/128 of a step |
//! | 8 bits | all 128 | Q8_0 | none |
//! | any other: 8 bits with zero points, columns in an order of their own, groups that are not a multiple of 32 | | F16 | `2^-11` of the weight |
//!
//! Scales that are not F16 in the file are first rounded to F16, with an error of at most `2^-11` of the scale (BF16
//! scales of `2^-14` and more are not changed at all); below `2^-14`, F16 is coarser, with steps of `2^-24`.

use super::HfError;
use super::part::{check_dtype, check_shape, scales_of};
use crate::CheckpointError;
use fewbit_format::SafetensorsModel;
use fewbit_format::safetensors::{Dtype, TensorInfo};
use fewbit_quant::TensorType;
use half::f16;

/// The layout of codes and zero points in their tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Gptq {
        /// Whether zero points are stored minus 1.
        zeros_minus_one: bool,
    },
    Awq,
    Packed,
    Bytes,
}

/// The tensors of a matrix as in the file.
pub(super) struct Parts<'a> {
    pub(super) codes: &'a TensorInfo,
    pub(super) scales: &'a TensorInfo,
    pub(super) zeros: Option<&'a TensorInfo>,
    pub(super) g_idx: Option<&'a TensorInfo>,
}

/// A matrix of integer codes.
#[derive(Clone)]
pub(super) struct Ints {
    pub(super) codes: TensorInfo,
    pub(super) scales: TensorInfo,
    pub(super) zeros: Option<TensorInfo>,
    layout: Layout,
    bits: usize,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    n_groups: usize,
    /// Number of columns in a group.
    group: usize,
    /// `[n_cols]`: the group of each column, if columns are not in group order.
    g_idx: Option<Vec<u32>>,
    /// Whether all weights share one scale.
    one_scale: bool,
    /// The type that it is converted to.
    pub(super) ty: TensorType,
}

/// What [`Ints::write_rows`] reads.
pub(super) struct Data<'a> {
    codes: &'a [u8],
    zeros: Option<&'a [u8]>,
    scales: Vec<f32>,
}

impl Ints {
    /// A `group` of `None` means whole rows, or follows from the shape of the scales.
    pub(super) fn new(
        files: &SafetensorsModel,
        layout: Layout,
        bits: usize,
        group: Option<usize>,
        [n_rows, n_cols]: [usize; 2],
        parts: &Parts<'_>,
    ) -> Result<Self, CheckpointError> {
        let words = |n: usize| n.div_ceil(32 / bits);
        let codes_shape = match layout {
            Layout::Gptq { .. } => [words(n_cols), n_rows],
            Layout::Awq => [n_cols, words(n_rows)],
            Layout::Packed => [n_rows, words(n_cols)],
            Layout::Bytes => [n_rows, n_cols],
        };
        check_shape(parts.codes, codes_shape)?;
        check_dtype(parts.codes, if layout == Layout::Bytes { Dtype::I8 } else { Dtype::I32 })?;

        let by_group = matches!(layout, Layout::Gptq { .. } | Layout::Awq);
        let one_scale = !by_group && parts.scales.shape.iter().all(|&n| n == 1) && parts.scales.shape.len() < 2;
        let group = match (group, &parts.scales.shape[..]) {
            (Some(group), _) => group,
            (None, &[_, n_groups]) if !by_group && n_groups > 0 => {
                n_cols.div_ceil(usize::try_from(n_groups).unwrap_or(usize::MAX))
            }
            (None, _) => n_cols,
        }
        .max(1);
        let n_groups = if one_scale { 1 } else { n_cols.div_ceil(group) };
        let per_row = |n: usize| if by_group { [n_groups, n] } else { [n, n_groups] };
        if !one_scale {
            check_shape(parts.scales, per_row(n_rows))?;
        }
        if let Some(zeros) = parts.zeros {
            if layout == Layout::Bytes {
                let is_one = one_scale && zeros.shape.iter().all(|&n| n == 1);
                if !is_one {
                    check_shape(zeros, per_row(n_rows))?;
                }
                check_dtype(zeros, Dtype::I8)?;
            } else {
                check_shape(zeros, per_row(words(n_rows)))?;
                check_dtype(zeros, Dtype::I32)?;
            }
        }
        let g_idx = match parts.g_idx {
            Some(tensor) => columns(files, tensor, n_cols, n_groups, group)?,
            None => None,
        };
        let mut ints = Self {
            codes: parts.codes.clone(),
            scales: parts.scales.clone(),
            zeros: parts.zeros.cloned(),
            layout,
            bits,
            n_rows,
            n_cols,
            n_groups,
            group,
            g_idx,
            one_scale,
            ty: TensorType::F16,
        };
        let in_blocks = n_cols.is_multiple_of(32) && (group.is_multiple_of(32) || n_groups == 1);
        if in_blocks && ints.g_idx.is_none() {
            ints.ty = match (bits, ints.is_symmetric(files)) {
                (4, true) => TensorType::Q4_0,
                (4, false) => TensorType::Q4_1,
                (8, true) => TensorType::Q8_0,
                _ => TensorType::F16,
            };
        }
        Ok(ints)
    }

    /// Whether every zero point is the middle code.
    fn is_symmetric(&self, files: &SafetensorsModel) -> bool {
        let Some(zeros) = &self.zeros else { return true };
        let zeros = files.tensor_bytes(zeros);
        let middle = 1 << (self.bits - 1);
        (0..self.n_groups).all(|g| (0..self.n_rows).all(|row| self.zero(Some(zeros), row, g) == middle))
    }

    /// The bytes of the tensors, and the scales, which are checked to give weights within the range of F16.
    pub(super) fn data<'f>(&self, files: &'f SafetensorsModel) -> Result<Data<'f>, CheckpointError> {
        let limit = f16::MAX.to_f32() / (1 << self.bits) as f32;
        Ok(Data {
            codes: files.tensor_bytes(&self.codes),
            zeros: self.zeros.as_ref().map(|zeros| files.tensor_bytes(zeros)),
            scales: scales_of(files, &self.scales, limit)?,
        })
    }

    fn scale(&self, scales: &[f32], row: usize, group: usize) -> f32 {
        match self.layout {
            _ if self.one_scale => scales[0],
            Layout::Gptq { .. } | Layout::Awq => scales[group * self.n_rows + row],
            Layout::Packed | Layout::Bytes => scales[row * self.n_groups + group],
        }
    }

    fn zero(&self, zeros: Option<&[u8]>, row: usize, group: usize) -> i32 {
        let Some(zeros) = zeros else { return 1 << (self.bits - 1) };
        let per_word = 32 / self.bits;
        let (words, shift) = (self.n_rows.div_ceil(per_word), self.bits * (row % per_word));
        let mask = (1 << self.bits) - 1;
        match self.layout {
            Layout::Gptq { zeros_minus_one } => {
                (word(zeros, group * words + row / per_word) >> shift & mask) as i32 + i32::from(zeros_minus_one)
            }
            Layout::Awq => (word(zeros, group * words + row / per_word) >> awq_shift(row) & mask) as i32,
            Layout::Packed => (word(zeros, row / per_word * self.n_groups + group) >> shift & mask) as i32,
            Layout::Bytes if zeros.len() == 1 => i32::from(zeros[0] ^ 0x80),
            Layout::Bytes => i32::from(zeros[row * self.n_groups + group] ^ 0x80),
        }
    }

    fn code(&self, codes: &[u8], row: usize, col: usize) -> u8 {
        let per_word = 32 / self.bits;
        let shift = self.bits * (col % per_word);
        let mask = ((1u32 << self.bits) - 1) as u8;
        let word = match self.layout {
            Layout::Gptq { .. } => word(codes, col / per_word * self.n_rows + row) >> shift,
            Layout::Awq => word(codes, col * self.n_rows.div_ceil(per_word) + row / per_word) >> awq_shift(row),
            Layout::Packed => word(codes, row * self.n_cols.div_ceil(per_word) + col / per_word) >> shift,
            Layout::Bytes => return codes[row * self.n_cols + col] ^ 0x80,
        };
        word as u8 & mask
    }

    /// Converts some rows to their target type. Rows whose codes share cache lines should be converted together.
    pub(super) fn write_rows(&self, data: &Data<'_>, rows: &[usize], out: &mut [u8]) {
        if self.ty.block_elems() == 1 {
            return self.write_floats(data, rows, out);
        }
        let (block_bytes, n_blocks) = (self.ty.block_bytes(), self.n_cols / 32);
        for b in 0..n_blocks {
            let group = if self.n_groups == 1 { 0 } else { 32 * b / self.group };
            for (i, &row) in rows.iter().enumerate() {
                let codes: [u8; 32] = std::array::from_fn(|k| self.code(data.codes, row, 32 * b + k));
                let at = (i * n_blocks + b) * block_bytes;
                let block = &mut out[at..at + block_bytes];
                let d = f16::from_f32(self.scale(&data.scales, row, group));
                block[..2].copy_from_slice(&d.to_le_bytes());
                let nibbles: [u8; 16] = std::array::from_fn(|k| codes[k] & 15 | codes[k + 16] << 4);
                match self.ty {
                    TensorType::Q4_0 => block[2..].copy_from_slice(&nibbles),
                    TensorType::Q4_1 => {
                        let zero = self.zero(data.zeros, row, group) as f32;
                        block[2..4].copy_from_slice(&f16::from_f32(-d.to_f32() * zero).to_le_bytes());
                        block[4..].copy_from_slice(&nibbles);
                    }
                    _ => block[2..].copy_from_slice(&codes.map(|code| code ^ 0x80)),
                }
            }
        }
    }

    fn write_floats(&self, data: &Data<'_>, rows: &[usize], out: &mut [u8]) {
        for col in 0..self.n_cols {
            let group = match &self.g_idx {
                Some(g_idx) => g_idx[col] as usize,
                None if self.n_groups == 1 => 0,
                None => col / self.group,
            };
            for (i, &row) in rows.iter().enumerate() {
                let code = i32::from(self.code(data.codes, row, col));
                let value = self.scale(&data.scales, row, group) * (code - self.zero(data.zeros, row, group)) as f32;
                let at = 2 * (i * self.n_cols + col);
                out[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
        }
    }
}

fn word(bytes: &[u8], i: usize) -> u32 {
    let at = 4 * i;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Bit position of a row within its word: even rows are in the lower half.
fn awq_shift(row: usize) -> usize {
    let r = row % 8;
    4 * (r / 2 + 4 * (r % 2))
}

/// The group of each column, unless columns are in group order.
fn columns(
    files: &SafetensorsModel,
    tensor: &TensorInfo,
    n_cols: usize,
    n_groups: usize,
    group: usize,
) -> Result<Option<Vec<u32>>, HfError> {
    if tensor.shape != [n_cols as u64] {
        let (expected, found) = (vec![n_cols as u64], tensor.shape.clone());
        return Err(HfError::PartShape { name: tensor.name.clone(), expected, found });
    }
    check_dtype(tensor, Dtype::I32)?;
    let bytes = files.tensor_bytes(tensor);
    let all: Vec<i32> = (0..n_cols).map(|i| word(bytes, i) as i32).collect();
    // -1 everywhere means that the order was never set.
    if all.iter().all(|&g| g == -1) || all.iter().enumerate().all(|(i, &g)| g as usize == i / group) {
        return Ok(None);
    }
    let checked = all.iter().enumerate().map(|(column, &g)| match u32::try_from(g) {
        Ok(g) if (g as usize) < n_groups => Ok(g),
        _ => Err(HfError::GroupIndex { name: tensor.name.clone(), column, group: i64::from(g), n_groups }),
    });
    checked.collect::<Result<_, _>>().map(Some)
}
