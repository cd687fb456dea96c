//! Weight matrices in memory: rows interleaved in panels of 16, with as many bits per weight as in the file (except for
//! the grid types: see `weights`).
//!
//! ```text
//! matrix   [ceil(n_rows / 16)] panels
//! panel    meta  [n_blocks] { d: f16[16] (bf16: powers of two), m or dmin: f16[16]?, integer scales: see generic::q256 }, padded to 64
//!          codes [n_cols / 32] { planes of 4, 2, 1 or 8 bits: see generic::quad }
//! floats   panel [n_cols][16]
//! ```
//! Scales and codes are stored apart so that code loads never straddle a cache line. Rows after the last one are zero.
//! Under [`Isa::Scalar`] the bytes stay as they are in the file and the definitions of `fewbit_quant::dot` read them,
//! so forcing it also checks the packing.

use crate::aligned::AlignedBytes;
use crate::shared::SharedMut;
use crate::weights::PANEL_ROWS;
use crate::weights::{float_bytes_per_row, has_bf16_scales, meta_bytes_per_row};
use crate::{Isa, KernelError, ThreadPool};
use fewbit_quant::block::{read_block32, read_block256};
use fewbit_quant::decode::{values32, values256};
use fewbit_quant::format::{Format, IntegerScales};
use fewbit_quant::{ActivationKind, Block32, Block256, TensorType};
use half::{bf16, f16};
use std::ops::Range;

/// A weight matrix `[n_rows, n_cols]`, ready to be multiplied.
pub struct Matrix {
    pub(crate) ty: TensorType,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) isa: Isa,
    pub(crate) layout: PanelLayout,
    pub(crate) bytes: AlignedBytes,
}

/// Byte sizes of the parts of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    /// Scales and minimums of one block.
    pub block_meta: usize,
    /// All scales and minimums, padded to a cache line.
    pub meta: usize,
    /// The whole panel.
    pub panel: usize,
}

impl PanelLayout {
    fn new(ty: TensorType, n_cols: usize) -> Self {
        let (code_bits, block_meta) = match ty.format() {
            Some(format) => (format.bits, PANEL_ROWS * meta_bytes_per_row(format)),
            None => (8 * ty.block_bytes(), 0),
        };
        let codes = n_cols * PANEL_ROWS * code_bits / 8;
        let meta = (n_cols / ty.block_elems() * block_meta).next_multiple_of(64);
        Self { block_meta, meta, panel: meta + codes.next_multiple_of(64) }
    }
}

impl Matrix {
    /// Packs a matrix whose rows are stored one after another in `bytes`.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`], [`KernelError::UnsupportedType`], [`KernelError::Size`],
    /// [`KernelError::OutOfMemory`].
    pub fn pack(
        pool: &ThreadPool,
        isa: Isa,
        ty: TensorType,
        n_rows: usize,
        n_cols: usize,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        // Products run on the matrix's instruction set, whichever `Cpu` runs them.
        let isa = isa.require()?;
        if ActivationKind::of(ty).is_none() {
            return Err(KernelError::UnsupportedType { ty });
        }
        let row_bytes = ty.row_bytes(n_cols).unwrap_or(0);
        let expected = row_bytes.checked_mul(n_rows).unwrap_or(0);
        if expected != bytes.len() || (expected == 0 && n_rows > 0 && n_cols > 0) {
            return Err(KernelError::Size { ty, n_rows, n_cols, expected, found: bytes.len() });
        }
        let layout = PanelLayout::new(ty, n_cols);
        let n_panels = n_rows.div_ceil(PANEL_ROWS);
        let scalar = isa == Isa::Scalar;
        let n_bytes = if scalar { expected } else { n_panels * layout.panel };
        let mut packed = AlignedBytes::zeroed(n_bytes)?;
        let out = SharedMut::new(&mut packed);
        pool.for_chunks(n_panels, 4, |panels, _| {
            for p in panels {
                let rows = p * PANEL_ROWS..n_rows.min((p + 1) * PANEL_ROWS);
                let from = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                let to = if scalar { rows.start * row_bytes..rows.end * row_bytes } else { panel_range(&layout, p) };
                // SAFETY: each panel is handed out once, and ranges of different panels do not overlap.
                let to = unsafe { out.range(to) };
                if scalar {
                    to.copy_from_slice(from);
                } else {
                    pack_panel(ty, &layout, row_bytes, from, to);
                }
            }
        });
        Ok(Self { ty, n_rows, n_cols, isa, layout, bytes: packed })
    }

    /// The type of the weights.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Number of rows: the length of an output.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of columns: the length of an input.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Size of the packed form in bytes.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Number of bytes that [`pack`](Self::pack) would allocate; `None` if it would return an error.
    pub fn packed_bytes(isa: Isa, ty: TensorType, n_rows: usize, n_cols: usize) -> Option<usize> {
        ActivationKind::of(ty)?;
        let row_bytes = ty.row_bytes(n_cols)?;
        if isa == Isa::Scalar {
            return row_bytes.checked_mul(n_rows);
        }
        PanelLayout::new(ty, n_cols).panel.checked_mul(n_rows.div_ceil(PANEL_ROWS))
    }

    /// Decodes one row: `out` is `[n_cols]`.
    ///
    /// # Panics
    /// If there is no such row or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n_rows && out.len() == self.n_cols, "row {row} of {self:?}");
        if self.isa == Isa::Scalar {
            let row_bytes = self.ty.row_bytes(self.n_cols).expect("checked when the matrix was packed");
            let bytes = &self.bytes[row * row_bytes..(row + 1) * row_bytes];
            fewbit_quant::decode(self.ty, bytes, out).expect("checked when the matrix was packed");
            return;
        }
        let (meta, codes) = self.panel(row / PANEL_ROWS).split_at(self.layout.meta);
        let r = row % PANEL_ROWS;
        match self.ty.format() {
            None => {
                let n = self.ty.block_bytes();
                let weight = |k: usize| &codes[(k * PANEL_ROWS + r) * n..(k * PANEL_ROWS + r + 1) * n];
                for (k, y) in out.iter_mut().enumerate() {
                    fewbit_quant::decode(self.ty, weight(k), std::slice::from_mut(y)).expect("one element");
                }
            }
            Some(format) if self.ty.block_elems() == 32 => {
                for (b, y) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let (d, m) = get_float_scales(format, r, &meta[b * self.layout.block_meta..]);
                    values32(self.ty, &Block32 { d, m, codes: get_codes(format.bits, r, codes, b) }, y);
                }
            }
            Some(format) => {
                for (b, y) in out.as_chunks_mut::<256>().0.iter_mut().enumerate() {
                    let mut block = get_scales_256(format, r, &meta[b * self.layout.block_meta..]);
                    for (g, to) in block.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                        *to = get_codes(format.bits, r, codes, 8 * b + g);
                    }
                    values256(self.ty, &block, y);
                }
            }
        }
    }

    /// The panels as they are in memory, one after another, for devices that read the same layout. `None` under
    /// [`Isa::Scalar`], which keeps the bytes of the file.
    pub fn panels(&self) -> Option<(PanelLayout, &[u8])> {
        (self.isa != Isa::Scalar).then_some((self.layout, &self.bytes))
    }

    pub(crate) fn n_panels(&self) -> usize {
        self.n_rows.div_ceil(PANEL_ROWS)
    }

    pub(crate) fn panel(&self, p: usize) -> &[u8] {
        &self.bytes[panel_range(&self.layout, p)]
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} x {}, {}, {})", self.n_rows, self.n_cols, self.ty, self.isa)
    }
}

fn panel_range(layout: &PanelLayout, p: usize) -> Range<usize> {
    p * layout.panel..(p + 1) * layout.panel
}

/// Interleaves up to 16 rows. `to` is zero on entry.
fn pack_panel(ty: TensorType, layout: &PanelLayout, row_bytes: usize, from: &[u8], to: &mut [u8]) {
    let (meta, codes) = to.split_at_mut(layout.meta);
    for (r, row) in from.chunks_exact(row_bytes.max(1)).enumerate() {
        let blocks = row.chunks_exact(ty.block_bytes()).enumerate();
        match ty.format() {
            None => {
                for (k, w) in blocks {
                    let at = (k * PANEL_ROWS + r) * w.len();
                    codes[at..at + w.len()].copy_from_slice(w);
                }
            }
            Some(format) if ty.block_elems() == 32 => {
                for (b, block) in blocks {
                    let unpacked = read_block32(ty, block);
                    put_float_scales(format, r, unpacked.d, unpacked.m, &mut meta[b * layout.block_meta..]);
                    put_codes(format.bits, r, &unpacked.codes, group(format.bits, codes, b));
                }
            }
            Some(format) => {
                for (b, block) in blocks {
                    let unpacked = read_block256(ty, block);
                    put_scales_256(format, r, &unpacked, &mut meta[b * layout.block_meta..(b + 1) * layout.block_meta]);
                    for (g, codes32) in unpacked.codes.as_chunks::<32>().0.iter().enumerate() {
                        put_codes(format.bits, r, codes32, group(format.bits, codes, 8 * b + g));
                    }
                }
            }
        }
    }
}

/// The bytes of the codes of 32 columns of a panel.
fn group(bits: usize, codes: &mut [u8], g: usize) -> &mut [u8] {
    &mut codes[g * bits * 64..(g + 1) * bits * 64]
}

/// Writes one row's float scales of one block. In the file they are f16 or powers of two, so nothing is rounded.
fn put_float_scales(format: &Format, r: usize, d: f32, m: f32, meta: &mut [u8]) {
    let stored = match has_bf16_scales(format) {
        true => bf16::from_f32(d).to_le_bytes(),
        false => f16::from_f32(d / format.scale_factor).to_le_bytes(),
    };
    meta[2 * r..2 * r + 2].copy_from_slice(&stored);
    if format.scale.has_min() {
        meta[2 * (PANEL_ROWS + r)..][..2].copy_from_slice(&f16::from_f32(m).to_le_bytes());
    }
}

/// Reads back what [`put_float_scales`] wrote.
fn get_float_scales(format: &Format, r: usize, meta: &[u8]) -> (f32, f32) {
    let d = match has_bf16_scales(format) {
        true => bf16_at(meta, r),
        false => half_at(meta, r) * format.scale_factor,
    };
    (d, if format.scale.has_min() { half_at(meta, PANEL_ROWS + r) } else { 0.0 })
}

/// Writes one row's scales of one block of 256; see [`q256`](crate::generic::q256).
fn put_scales_256(format: &Format, r: usize, unpacked: &Block256, meta: &mut [u8]) {
    put_float_scales(format, r, unpacked.d, unpacked.dmin, meta);
    let ints = &mut meta[float_bytes_per_row(format) * PANEL_ROWS..];
    let n_subs = 256 / format.integer_scales.sub_elems();
    for sub in 0..n_subs {
        // `Block256` holds one scale per 16 elements.
        let j = sub * 16 / n_subs;
        let (scale, min) = (unpacked.scales[j] as u8, unpacked.mins[j]);
        match format.integer_scales {
            IntegerScales::One => {}
            IntegerScales::Signed(_) => ints[sub * PANEL_ROWS + r] = scale,
            IntegerScales::Odd(_) => ints[sub / 2 * PANEL_ROWS + r] |= (scale / 2) << (4 * (sub % 2)),
            IntegerScales::Nibbles(_) => ints[sub * PANEL_ROWS + r] = scale | min << 4,
            IntegerScales::SixBits(_) => {
                ints[sub * PANEL_ROWS + r] = scale;
                ints[(n_subs + sub) * PANEL_ROWS + r] = min;
            }
        }
    }
}

/// Reads back what [`put_scales_256`] wrote; the codes stay 0.
fn get_scales_256(format: &Format, r: usize, meta: &[u8]) -> Block256 {
    let (d, dmin) = get_float_scales(format, r, meta);
    let ints = &meta[float_bytes_per_row(format) * PANEL_ROWS..];
    let int = |i: usize| ints[i * PANEL_ROWS + r];
    let n_subs = 256 / format.integer_scales.sub_elems();
    let both = |j: usize| {
        let sub = j * n_subs / 16;
        match format.integer_scales {
            IntegerScales::One => (1, 0),
            IntegerScales::Signed(_) => (int(sub), 0),
            IntegerScales::Odd(_) => (2 * (int(sub / 2) >> (4 * (sub % 2)) & 15) + 1, 0),
            IntegerScales::Nibbles(_) => (int(sub) & 15, int(sub) >> 4),
            IntegerScales::SixBits(_) => (int(sub), int(n_subs + sub)),
        }
    };
    Block256 {
        d,
        dmin,
        scales: std::array::from_fn(|j| both(j).0 as i8),
        mins: std::array::from_fn(|j| both(j).1),
        codes: [0; 256],
    }
}

/// Writes one row's codes of 32 columns into the planes of a group.
///
/// Loading a model is mostly this function, so it moves a quad (four codes) as one word at a time.
fn put_codes(bits: usize, r: usize, codes: &[u8; 32], group: &mut [u8]) {
    let codes = codes.as_chunks::<4>().0;
    let quad = |q: usize| u32::from_le_bytes(codes[q]);
    let mut put = |at: usize, word: u32| {
        group[at + r * 4..at + r * 4 + 4].copy_from_slice(&word.to_le_bytes());
    };
    match bits {
        8 => (0..8).for_each(|q| put(q * 64, quad(q) ^ 0x8080_8080)),
        4..=6 => {
            for q in 0..4 {
                put(q * 64, quad(q) & 0x0f0f_0f0f | (quad(q + 4) & 0x0f0f_0f0f) << 4);
            }
            match bits {
                5 => put(256, bit_plane(&quad, 4)),
                6 => (0..2).for_each(|h| put(256 + h * 64, two_bit_plane(&quad, h, 4))),
                _ => {}
            }
        }
        _ => {
            (0..2).for_each(|h| put(h * 64, two_bit_plane(&quad, h, 0)));
            if bits == 3 {
                put(128, bit_plane(&quad, 2));
            }
        }
    }
}

/// Bit `from` of every code: bit `q` of byte `k` belongs to code `4 q + k`.
fn bit_plane(quad: &impl Fn(usize) -> u32, from: u32) -> u32 {
    (0..8).fold(0, |plane, q| plane | (quad(q) >> from & 0x0101_0101) << q)
}

/// Bits `from` and `from + 1` of every code of half `h`: the pair `q` of byte `k` belongs to code `16 h + 4 q + k`.
fn two_bit_plane(quad: &impl Fn(usize) -> u32, h: usize, from: u32) -> u32 {
    (0..4).fold(0, |plane, q| plane | (quad(4 * h + q) >> from & 0x0303_0303) << (2 * q))
}

/// Reads back what [`put_codes`] wrote.
fn get_codes(bits: usize, r: usize, codes: &[u8], g: usize) -> [u8; 32] {
    let group = &codes[g * bits * 64..(g + 1) * bits * 64];
    std::array::from_fn(|k| {
        let (q, at) = (k / 4, r * 4 + k % 4);
        let nibble = || group[q % 4 * 64 + at] >> (4 * (q / 4)) & 15;
        let two_bits = |base: usize| group[base + q / 4 * 64 + at] >> (2 * (q % 4)) & 3;
        let bit = |base: usize| group[base + at] >> q & 1;
        match bits {
            8 => group[q * 64 + at] ^ 0x80,
            4 => nibble(),
            5 => nibble() | bit(256) << 4,
            6 => nibble() | two_bits(256) << 4,
            2 => two_bits(0),
            _ => two_bits(0) | bit(128) << 2,
        }
    })
}

/// The `i`-th f16 of some scales.
fn half_at(meta: &[u8], i: usize) -> f32 {
    f16::from_le_bytes([meta[2 * i], meta[2 * i + 1]]).to_f32()
}

/// The `i`-th bf16 of some scales.
fn bf16_at(meta: &[u8], i: usize) -> f32 {
    bf16::from_le_bytes([meta[2 * i], meta[2 * i + 1]]).to_f32()
}
