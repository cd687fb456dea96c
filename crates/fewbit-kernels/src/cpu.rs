//! The safe entry: an instruction set and a thread pool, with the operations of a decoder step.
//!
//! Every method checks its shapes and panics on a mismatch, which is a bug of the caller. Results depend on
//! neither the number of threads nor the instruction set nor the size of the batch.

use crate::activations::{
    ActivationKinds, Activations, Form32, Form256, GROUP, OFFSET_SHIFTS_32, OFFSET_SHIFTS_256, Place, Planes, Row,
};
use crate::generic::PANEL_ROWS;
use crate::pack::Matrix;
use crate::panel::{self, UNPACKED_BYTES};
use crate::shared::SharedMut;
use crate::{Isa, KernelError, ThreadPool, elementwise};
use fewbit_quant::{ActivationKind, TensorType};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// How rotary embedding pairs the elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Elements `2i` and `2i + 1` (GGUF files of architecture `llama`).
    Interleaved,
    /// Elements `i` and `i + n / 2` (Hugging Face and most other architectures).
    HalfSplit,
}

/// The function of a gated feed-forward part's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    /// `x / (1 + e^-x)`
    Silu,
    /// GELU in its tanh form; see [`math::gelu_tanh`](crate::math::gelu_tanh).
    GeluTanh,
}

/// One of several products that run in one section.
#[derive(Debug)]
pub enum Product<'a> {
    /// `out = w x`. `out`: `[x.n_rows, w.n_rows]`.
    Store {
        /// The matrix.
        w: &'a Matrix,
        /// Its inputs.
        x: &'a Activations,
        /// Its outputs.
        out: &'a mut [f32],
    },
    /// `out += w x`. `out`: `[x.n_rows, w.n_rows]`.
    Add {
        /// The matrix.
        w: &'a Matrix,
        /// Its inputs.
        x: &'a Activations,
        /// What they are added to.
        out: &'a mut [f32],
    },
    /// `out = f(gate x) * (up x)`. `out`: `[x.n_rows, gate.n_rows]`.
    Gated {
        /// `f`.
        function: GateFunction,
        /// The gate's matrix.
        gate: &'a Matrix,
        /// The other matrix, of the same shape.
        up: &'a Matrix,
        /// Their inputs.
        x: &'a Activations,
        /// Their outputs.
        out: &'a mut [f32],
    },
}

/// An instruction set, and the threads that run its kernels. The threads may do other work in between.
#[derive(Clone, Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Arc<ThreadPool>,
}

/// Buffers of one thread, kept between sections.
#[derive(Default)]
struct PanelBuffers {
    /// `[2][n_rows][16]`
    y: Vec<f32>,
    unpacked: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<PanelBuffers> = RefCell::default();
    /// A row that is being quantized, and what its first quantization lost.
    static ROW: RefCell<(Row, Vec<f32>)> = RefCell::default();
}

/// How rows of a batch can be made.
#[derive(Clone, Copy)]
enum Rows {
    /// Only as a whole.
    Whole,
    /// Any columns by themselves.
    InParts,
}

/// Fewer rows than this are quantized sooner than another thread has heard of them.
const FEW_ROWS: usize = 4;

/// With fewer pieces than this a thread may be left without one while others work on their last.
const PIECES_PER_THREAD: usize = 8;

/// Rows of a product with `w`, in as many planes as its type has.
fn rows_for(w: &Matrix, x: &Activations, planes: Planes) -> usize {
    x.rows_of(ActivationKind::of(w.ty).expect("checked when the matrix was packed"), planes)
}

/// What happens to the products of a panel.
enum Output<'a> {
    /// `out = w x`
    Store(&'a Matrix, SharedMut<'a, f32>, Planes),
    /// `out += w x`
    Add(&'a Matrix, SharedMut<'a, f32>),
    /// `out = f(gate x) * (up x)`
    Gated(GateFunction, &'a Matrix, &'a Matrix, SharedMut<'a, f32>),
}

impl Cpu {
    /// A CPU with `n_threads` threads of its own, the caller's included.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`] if this CPU cannot run `isa`, [`KernelError::Thread`].
    pub fn new(isa: Isa, n_threads: usize) -> Result<Self, KernelError> {
        Self::on(isa, Arc::new(ThreadPool::new(n_threads)?))
    }

    /// A CPU on threads that others use too.
    ///
    /// # Errors
    /// [`KernelError::IsaUnavailable`] if this CPU cannot run `isa`.
    pub fn on(isa: Isa, pool: Arc<ThreadPool>) -> Result<Self, KernelError> {
        Ok(Self { isa: isa.require()?, pool })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The thread pool.
    pub fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    /// Packs a matrix for this CPU; see [`Matrix::pack`].
    ///
    /// # Errors
    /// As [`Matrix::pack`].
    pub fn pack(&self, ty: TensorType, n_rows: usize, n_cols: usize, bytes: &[u8]) -> Result<Matrix, KernelError> {
        Matrix::pack(&self.pool, self.isa, ty, n_rows, n_cols, bytes)
    }

    /// Makes `x` (`[n_rows, n_cols]`) the batch, in the forms that `kinds` names.
    pub fn activate(&self, x: &[f32], n_cols: usize, kinds: ActivationKinds, out: &mut Activations) {
        let n_rows = x.len() / n_cols;
        assert_eq!(x.len(), n_rows * n_cols, "whole rows");
        let make = |row, cols: Range<usize>, y: &mut [f32]| {
            y.copy_from_slice(&x[row * n_cols..][cols]);
        };
        self.fill(n_rows, n_cols, kinds, out, Rows::InParts, make);
    }

    /// Makes the RMS norm of `x` (`[n_rows, weight.len()]`) the batch: `x / sqrt(mean(x^2) + eps) * weight`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, kinds: ActivationKinds, out: &mut Activations) {
        let n_cols = weight.len();
        let n_rows = x.len() / n_cols;
        assert_eq!(x.len(), n_rows * n_cols, "whole rows");
        let make = |row, _, y: &mut [f32]| {
            elementwise::rms_norm(self.isa, &x[row * n_cols..(row + 1) * n_cols], weight, eps, y);
        };
        self.fill(n_rows, n_cols, kinds, out, Rows::Whole, make);
    }

    /// Lets `make` write each row of the batch, or some columns of it, and quantizes it while it is warm.
    fn fill(
        &self,
        n_rows: usize,
        n_cols: usize,
        kinds: ActivationKinds,
        out: &mut Activations,
        rows: Rows,
        make: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        out.resize(n_rows, n_cols, kinds);
        let values = SharedMut::new(&mut out.values);
        let forms = [
            kinds.q8_32.then(|| SharedForm::of_32(&mut out.q32)),
            kinds.q8_256.then(|| SharedForm::of_256(&mut out.q256)),
        ];
        let n_quantized = n_rows * kinds.n_planes();
        // Blocks depend on nothing but their columns: a part of a row is quantized as it is in the whole row.
        let part = |row: usize, cols: Range<usize>, is_made: bool| {
            ROW.with_borrow_mut(|(quantized, lost)| {
                // SAFETY: each part is handed out once, with its places in all planes, and different parts have no
                // element in common.
                let x = unsafe { values.range(row * n_cols + cols.start..row * n_cols + cols.end) };
                if !is_made {
                    make(row, cols.clone(), x);
                }
                for form in forms.iter().flatten() {
                    let kind = form.kind();
                    quantize(self.isa, kind, x, quantized);
                    // SAFETY: as above.
                    unsafe { form.put(quantized, Place::of(row, n_quantized), n_cols, cols.start) };
                    if kinds.two_planes {
                        lost.resize(x.len(), 0.0);
                        let Row { codes, scales, .. } = &*quantized;
                        elementwise::quantization_loss(self.isa, x, codes, scales, kind.block_elems(), lost);
                        quantize(self.isa, kind, lost, quantized);
                        // SAFETY: as above.
                        unsafe { form.put(quantized, Place::of(n_rows + row, n_quantized), n_cols, cols.start) };
                    }
                }
            });
        };
        let n_groups = n_rows.div_ceil(GROUP);
        if n_rows < FEW_ROWS || n_groups >= self.pool.n_threads() {
            self.pool.for_chunks(n_rows, GROUP, |rows, _| rows.for_each(|row| part(row, 0..n_cols, false)));
            return;
        }
        // A group lies interleaved, so that threads which share it take columns: of different rows, they would write
        // to the same cache lines.
        if let Rows::Whole = rows {
            // SAFETY: one row after another, on this thread alone.
            (0..n_rows).for_each(|row| make(row, 0..n_cols, unsafe { values.range(row * n_cols..(row + 1) * n_cols) }));
        }
        let unit = if kinds.q8_256 { 256 } else { 32 };
        let n_units = n_cols.div_ceil(unit);
        self.pool.for_chunks(n_units, n_units.div_ceil(self.pool.n_threads()), |units, _| {
            let cols = units.start * unit..n_cols.min(units.end * unit);
            (0..n_rows).for_each(|row| part(row, cols.clone(), matches!(rows, Rows::Whole)));
        });
    }

    /// `out = w x`. `out`: `[x.n_rows, w.n_rows]`.
    pub fn matmul(&self, w: &Matrix, x: &Activations, out: &mut [f32]) {
        assert_eq!(out.len(), out_len(w, x), "length of the output");
        self.products(&[(Output::Store(w, SharedMut::new(out), Planes::All), x)]);
    }

    /// `out += w x`. `out`: `[x.n_rows, w.n_rows]`.
    pub fn matmul_add(&self, w: &Matrix, x: &Activations, out: &mut [f32]) {
        assert_eq!(out.len(), out_len(w, x), "length of the output");
        self.products(&[(Output::Add(w, SharedMut::new(out)), x)]);
    }

    /// Several products of one input, in one parallel section, each of the planes that it needs.
    pub fn matmul_many(&self, parts: &mut [(&Matrix, &mut [f32], Planes)], x: &Activations) {
        for (w, out, _) in parts.iter() {
            assert_eq!(out.len(), out_len(w, x), "length of the output");
        }
        let outputs: Vec<_> =
            parts.iter_mut().map(|(w, out, planes)| (Output::Store(w, SharedMut::new(out), *planes), x)).collect();
        self.products(&outputs);
    }

    /// `out = f(gate x) * (up x)`. `out`: `[x.n_rows, gate.n_rows]`.
    pub fn matmul_gated(&self, function: GateFunction, gate: &Matrix, up: &Matrix, x: &Activations, out: &mut [f32]) {
        self.matmul_each(&mut [Product::Gated { function, gate, up, x, out }]);
    }

    /// Products of different inputs, in one parallel section: what the experts of a layer do.
    pub fn matmul_each(&self, parts: &mut [Product<'_>]) {
        let outputs: Vec<_> = parts
            .iter_mut()
            .map(|part| match part {
                Product::Store { w, x, out } => {
                    assert_eq!(out.len(), out_len(w, x), "length of the output");
                    (Output::Store(w, SharedMut::new(out), Planes::All), *x)
                }
                Product::Add { w, x, out } => {
                    assert_eq!(out.len(), out_len(w, x), "length of the output");
                    (Output::Add(w, SharedMut::new(out)), *x)
                }
                Product::Gated { function, gate, up, x, out } => {
                    assert!(gate.n_rows == up.n_rows && out.len() == out_len(gate, x), "gate, up and output");
                    (Output::Gated(*function, gate, up, SharedMut::new(out)), *x)
                }
            })
            .collect();
        self.products(&outputs);
    }

    fn products(&self, outputs: &[(Output<'_>, &Activations)]) {
        let n_panels: usize = outputs.iter().map(|(o, _)| o.matrix().n_panels()).sum();
        let work = |panels: Range<usize>, _thread: usize| {
            BUFFERS.with_borrow_mut(|buffers| {
                let (mut at, mut of) = (panels.start, 0);
                let mut left = panels.len();
                while left > 0 {
                    let (output, x) = &outputs[of];
                    let n = output.matrix().n_panels();
                    if at >= n {
                        (at, of) = (at - n, of + 1);
                        continue;
                    }
                    let done = self.product(output, at..n.min(at + left), x, buffers);
                    (at, left) = (at + done, left - done);
                }
            });
        };
        // Few rows: the time goes into reading weights, which wants long stretches. Many rows: each panel is
        // work for long, and small pieces keep the threads together.
        if outputs.iter().all(|(_, x)| x.n_rows < 32) {
            self.pool.for_stretches(n_panels, work);
        } else {
            let pairs = n_panels >= 2 * PIECES_PER_THREAD * self.pool.n_threads();
            self.pool.for_chunks(n_panels, if pairs { 2 } else { 1 }, work);
        }
    }

    /// The first or the first two of some panels of one product. Returns how many.
    fn product(&self, output: &Output<'_>, panels: Range<usize>, x: &Activations, buffers: &mut PanelBuffers) -> usize {
        let n = x.n_rows * x.kinds.n_planes() * PANEL_ROWS;
        buffers.y.resize(2 * n, 0.0);
        buffers.unpacked.resize(UNPACKED_BYTES, 0);
        let (y, z) = buffers.y.split_at_mut(n);
        let (w, p) = (output.matrix(), panels.start);
        let planes = if let Output::Store(_, _, planes) = output { *planes } else { Planes::All };
        let m = x.n_rows * PANEL_ROWS;
        if let Output::Gated(function, _, up, _) = output {
            self.two_panels([(w, p), (up, p)], x, planes, [&mut *y, z], &mut buffers.unpacked);
            elementwise::gate_mul(self.isa, *function, &mut y[..m], &z[..m]);
            // SAFETY: each panel is handed out once.
            unsafe { output.write(p, &y[..m]) };
            return 1;
        }
        if panels.len() == 1 {
            self.panel(w, p, x, planes, y, &mut buffers.unpacked);
            // SAFETY: as above.
            unsafe { output.write(p, &y[..m]) };
            return 1;
        }
        self.two_panels([(w, p), (w, p + 1)], x, planes, [&mut *y, &mut *z], &mut buffers.unpacked);
        // SAFETY: as above.
        unsafe {
            output.write(p, &y[..m]);
            output.write(p + 1, &z[..m]);
        }
        2
    }

    /// Panel `p` of `w` times every row, planes added up: the first `x.n_rows` rows of `y`.
    fn panel(&self, w: &Matrix, p: usize, x: &Activations, planes: Planes, y: &mut [f32], unpacked: &mut [u8]) {
        let n_rows = rows_for(w, x, planes);
        panel::multiply(w, p, x, n_rows, &mut y[..n_rows * PANEL_ROWS], unpacked);
        self.add_planes(x, n_rows, planes, y);
    }

    /// As [`panel`](Self::panel), for two.
    fn two_panels(
        &self,
        w: [(&Matrix, usize); 2],
        x: &Activations,
        planes: Planes,
        [y, z]: [&mut [f32]; 2],
        unpacked: &mut [u8],
    ) {
        let n_rows = rows_for(w[0].0, x, planes);
        if rows_for(w[1].0, x, planes) != n_rows {
            self.panel(w[0].0, w[0].1, x, planes, y, unpacked);
            self.panel(w[1].0, w[1].1, x, planes, z, unpacked);
            return;
        }
        let both = [&mut y[..n_rows * PANEL_ROWS], &mut z[..n_rows * PANEL_ROWS]];
        panel::multiply_two(w, x, n_rows, both, unpacked);
        self.add_planes(x, n_rows, planes, y);
        self.add_planes(x, n_rows, planes, z);
    }

    /// Adds the second plane's outputs to those of the first.
    fn add_planes(&self, x: &Activations, n_rows: usize, planes: Planes, y: &mut [f32]) {
        if n_rows > x.n_rows && planes == Planes::All {
            let (first, second) = y[..n_rows * PANEL_ROWS].split_at_mut(x.n_rows * PANEL_ROWS);
            elementwise::add(self.isa, first, second);
        }
    }

    /// Rotates every head of every row in place. `x`: `[n_rows, n_heads, head_dim]`; `cos` and `sin`:
    /// `[n_rows, n_rotated / 2]`, the angles of each row's position.
    pub fn rope(&self, style: RopeStyle, head_dim: usize, n_heads: usize, cos: &[f32], sin: &[f32], x: &mut [f32]) {
        let width = n_heads * head_dim;
        let n_rows = x.len() / width;
        let half = cos.len() / n_rows.max(1);
        assert!(x.len() == n_rows * width && cos.len() == n_rows * half && sin.len() == cos.len());
        assert!(2 * half <= head_dim, "{half} angles for heads of {head_dim}");
        self.each_row(width, x, |row, x| {
            let angles = row * half..(row + 1) * half;
            for head in x.chunks_exact_mut(head_dim) {
                elementwise::rope(self.isa, style, &cos[angles.clone()], &sin[angles.clone()], head);
            }
        });
    }
}

impl Cpu {
    /// Makes some rows of a batch, in this order, a batch in the forms that `kinds` names.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn gather(&self, x: &Activations, rows: &[usize], kinds: ActivationKinds, out: &mut Activations) {
        // A row's quantized forms depend on nothing else, so that making them again gives the same.
        let make = |row: usize, cols: Range<usize>, y: &mut [f32]| {
            y.copy_from_slice(&x.values()[rows[row] * x.n_cols..][cols]);
        };
        self.fill(rows.len(), x.n_cols, kinds, out, Rows::InParts, make);
    }

    /// Norms every head of every row in place. `x`: `[n_rows, n_heads, weight.len()]`.
    pub fn norm_heads(&self, weight: &[f32], eps: f32, n_heads: usize, x: &mut [f32]) {
        self.each_row(n_heads * weight.len(), x, |_, x| {
            x.chunks_exact_mut(weight.len()).for_each(|x| elementwise::rms_norm_in_place(self.isa, x, weight, eps));
        });
    }

    /// `x += factor * norm(y)`, where the norm is that of [`rms_norm`](Self::rms_norm), or none. Both are
    /// `[n_rows, n_cols]`, and `y` is used up.
    pub fn add_normed(&self, norm: Option<(&[f32], f32)>, factor: f32, n_cols: usize, y: &mut [f32], x: &mut [f32]) {
        assert!(y.len() == x.len() && norm.is_none_or(|(weight, _)| weight.len() == n_cols), "rows of one length");
        let y = SharedMut::new(y);
        self.each_row(n_cols, x, |row, x| {
            // SAFETY: each row is handed out once.
            let y = unsafe { y.range(row * n_cols..(row + 1) * n_cols) };
            if let Some((weight, eps)) = norm {
                elementwise::rms_norm_in_place(self.isa, y, weight, eps);
            }
            elementwise::add_scaled(self.isa, x, y, factor);
        });
    }

    /// `x += factor * y` of one row, as one `mul_add` per element.
    ///
    /// # Panics
    /// If their lengths differ.
    pub fn add_scaled(&self, x: &mut [f32], y: &[f32], factor: f32) {
        assert_eq!(x.len(), y.len(), "rows of one length");
        elementwise::add_scaled(self.isa, x, y, factor);
    }

    /// Adds `bias` to every row. `x`: `[n_rows, bias.len()]`.
    pub fn add_bias(&self, bias: &[f32], x: &mut [f32]) {
        self.each_row(bias.len(), x, |_, x| elementwise::add(self.isa, x, bias));
    }

    /// `gate = f(gate) * up`, for products whose outputs have biases and so cannot be
    /// [`matmul_gated`](Self::matmul_gated).
    pub fn gate(&self, function: GateFunction, n_cols: usize, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up");
        self.each_row(n_cols, gate, |row, gate| {
            elementwise::gate_mul(self.isa, function, gate, &up[row * n_cols..(row + 1) * n_cols]);
        });
    }

    /// `x = cap * tanh(x / cap)`, in rows of `n_cols`.
    pub fn softcap(&self, cap: f32, n_cols: usize, x: &mut [f32]) {
        self.each_row(n_cols, x, |_, x| elementwise::softcap(self.isa, x, cap, 1.0 / cap));
    }

    /// Calls `f` with every row of `x` and its number.
    pub fn each_row(&self, n_cols: usize, x: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
        let n_rows = x.len() / n_cols;
        assert_eq!(x.len(), n_rows * n_cols, "whole rows");
        let x = SharedMut::new(x);
        self.pool.for_chunks(n_rows, 16, |rows, _| {
            for row in rows {
                // SAFETY: each row is handed out once.
                f(row, unsafe { x.range(row * n_cols..(row + 1) * n_cols) });
            }
        });
    }
}

/// A quantized form whose rows are written by several threads.
enum SharedForm<'a> {
    Of32 {
        codes: SharedMut<'a, [i8; 4]>,
        scales: SharedMut<'a, f32>,
        offsets: [SharedMut<'a, i32>; 3],
        scaled_sums: SharedMut<'a, f32>,
    },
    Of256 {
        codes: SharedMut<'a, [i8; 4]>,
        scales: SharedMut<'a, f32>,
        offsets: [SharedMut<'a, i32>; 3],
        pairs_16: SharedMut<'a, [i16; 2]>,
        pairs_32: SharedMut<'a, [i16; 2]>,
    },
}

impl<'a> SharedForm<'a> {
    fn of_32(form: &'a mut Form32) -> Self {
        Self::Of32 {
            codes: SharedMut::new(&mut form.codes),
            scales: SharedMut::new(&mut form.scales),
            offsets: form.offsets.each_mut().map(|offsets| SharedMut::new(offsets)),
            scaled_sums: SharedMut::new(&mut form.scaled_sums),
        }
    }

    fn of_256(form: &'a mut Form256) -> Self {
        Self::Of256 {
            codes: SharedMut::new(&mut form.codes),
            scales: SharedMut::new(&mut form.scales),
            offsets: form.offsets.each_mut().map(|offsets| SharedMut::new(offsets)),
            pairs_16: SharedMut::new(&mut form.pairs_16),
            pairs_32: SharedMut::new(&mut form.pairs_32),
        }
    }

    fn kind(&self) -> ActivationKind {
        match self {
            Self::Of32 { .. } => ActivationKind::Q8Block32,
            Self::Of256 { .. } => ActivationKind::Q8Block256,
        }
    }

    /// Writes a part of a row of `n_cols` to its place: that from column `first_col` on.
    ///
    /// # Safety
    /// No other thread uses this place.
    unsafe fn put(&self, row: &Row, place: Place, n_cols: usize, first_col: usize) {
        let Row { codes, scales, sums } = row;
        let quads = codes.as_chunks::<4>().0;
        let by = place.width;
        // Where the items lie that stand for `elems` columns each.
        let at = |elems: usize| place.start(n_cols / elems) + by * (first_col / elems);
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Of32 { codes, scales: to_scales, offsets, scaled_sums } => {
                    codes.scatter(at(4), by, quads.iter().copied());
                    to_scales.scatter(at(32), by, scales.iter().copied());
                    for (to, shift) in offsets.iter().zip(OFFSET_SHIFTS_32) {
                        to.scatter(at(32), by, sums.iter().map(|&sum| -(i32::from(sum) << shift)));
                    }
                    scaled_sums.scatter(at(32), by, scales.iter().zip(sums).map(|(&d, &sum)| d * f32::from(sum)));
                }
                Self::Of256 { codes, scales: to_scales, offsets, pairs_16, pairs_32 } => {
                    codes.scatter(at(4), by, quads.iter().copied());
                    to_scales.scatter(at(256), by, scales.iter().copied());
                    for (to, shift) in offsets.iter().zip(OFFSET_SHIFTS_256) {
                        to.scatter(at(16), by, sums.iter().map(|&sum| -(i32::from(sum) << shift)));
                    }
                    let pairs = sums.as_chunks::<2>().0;
                    pairs_16.scatter(at(32), by, pairs.iter().copied());
                    let fours = sums.as_chunks::<4>().0;
                    pairs_32.scatter(at(64), by, fours.iter().map(|[a, b, c, d]| [a + b, c + d]));
                }
            }
        }
    }
}

/// Quantizes a row in blocks of `kind`.
fn quantize(isa: Isa, kind: ActivationKind, x: &[f32], out: &mut Row) {
    // For AVX-512 the compiler makes code of a third of the speed.
    let isa = isa.min(Isa::Avx2);
    out.resize(kind, x.len());
    let Row { codes, scales, sums } = out;
    match kind {
        ActivationKind::Q8Block256 => elementwise::quantize_row_256(isa, x, codes, scales, sums),
        _ => elementwise::quantize_row_32(isa, x, codes, scales, sums),
    }
}

impl<'a> Output<'a> {
    fn out(&self) -> &SharedMut<'a, f32> {
        match self {
            Self::Store(_, out, _) | Self::Add(_, out) | Self::Gated(_, _, _, out) => out,
        }
    }

    fn matrix(&self) -> &Matrix {
        match self {
            Self::Store(w, ..) | Self::Add(w, _) | Self::Gated(_, w, _, _) => w,
        }
    }

    /// Puts the products of panel `p`, `[n_rows][16]`, where they belong.
    ///
    /// # Safety
    /// Nobody else writes this panel's part of the output meanwhile.
    unsafe fn write(&self, p: usize, y: &[f32]) {
        let w = self.matrix();
        let rows = p * PANEL_ROWS..w.n_rows.min((p + 1) * PANEL_ROWS);
        for (i, y) in y.as_chunks::<PANEL_ROWS>().0.iter().enumerate() {
            let range = i * w.n_rows + rows.start..i * w.n_rows + rows.end;
            // SAFETY: (row of the batch, panel) names this range alone; the rest is the caller's promise.
            let out = unsafe { self.out().range(range) };
            match self {
                Self::Store(..) | Self::Gated(..) => combine(out, y, |_, y| y),
                Self::Add(..) => combine(out, y, |out, y| out + y),
            }
        }
    }
}

/// `out = f(out, y)`, for as many elements as `out` has.
fn combine(out: &mut [f32], y: &[f32; PANEL_ROWS], f: impl Fn(f32, f32) -> f32) {
    if let Ok(out) = <&mut [f32; PANEL_ROWS]>::try_from(&mut *out) {
        // A known length is a few vector instructions, in any instruction set.
        out.iter_mut().zip(y).for_each(|(out, &y)| *out = f(*out, y));
    } else {
        out.iter_mut().zip(y).for_each(|(out, &y)| *out = f(*out, y));
    }
}

fn out_len(w: &Matrix, x: &Activations) -> usize {
    w.n_rows * x.n_rows
}
