//! Products of packed matrices with a batch, in parallel sections: which thread takes which panels, and what happens to
//! the results. `panel.rs` multiplies a single panel.

use crate::activations::{Activations, Planes};
use crate::cpu::Cpu;
use crate::elementwise;
use crate::pack::Matrix;
use crate::panel::{self, UNPACKED_BYTES};
use crate::shared::SharedMut;
use crate::weights::PANEL_ROWS;
use fewbit_quant::{ActivationKind, GateFunction};
use std::cell::RefCell;
use std::ops::Range;

/// One of several products that run in the same section.
#[derive(Debug)]
pub enum Product<'a> {
    /// `out = w x`. `out`: `[x.n_rows, w.n_rows]`.
    Store {
        /// The matrix.
        w: &'a Matrix,
        /// Its input.
        x: &'a Activations,
        /// Its output.
        out: &'a mut [f32],
    },
    /// `out += w x`. `out`: `[x.n_rows, w.n_rows]`.
    Add {
        /// The matrix.
        w: &'a Matrix,
        /// Its input.
        x: &'a Activations,
        /// The output that the product is added to.
        out: &'a mut [f32],
    },
    /// `out = f(gate x) * (up x)`. `out`: `[x.n_rows, gate.n_rows]`.
    Gated {
        /// The function `f`.
        function: GateFunction,
        /// The matrix of the gate.
        gate: &'a Matrix,
        /// The other matrix, of the same shape.
        up: &'a Matrix,
        /// The input of both.
        x: &'a Activations,
        /// The output.
        out: &'a mut [f32],
    },
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
}

/// With fewer pieces than this, some threads may run idle while others work on their last piece.
const PIECES_PER_THREAD: usize = 8;

/// Number of rows of a product with `w`, over as many planes as its type has.
fn rows_for(w: &Matrix, x: &Activations, planes: Planes) -> usize {
    x.rows_of(ActivationKind::of(w.ty).expect("checked when the matrix was packed"), planes)
}

/// What is done with the products of a panel.
enum Output<'a> {
    /// `out = w x`
    Store(&'a Matrix, SharedMut<'a, f32>, Planes),
    /// `out += w x`
    Add(&'a Matrix, SharedMut<'a, f32>),
    /// `out = f(gate x) * (up x)`
    Gated(GateFunction, &'a Matrix, &'a Matrix, SharedMut<'a, f32>),
}

impl Cpu {
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

    /// Several products with one input, in one parallel section, each with the planes that it needs.
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

    /// Products with different inputs, in one parallel section, such as those of the experts of a layer.
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
        // With few rows, the time is spent reading weights, which is fastest in long stretches. With many rows, each
        // panel takes long, and small pieces keep the threads in step.
        if outputs.iter().all(|(_, x)| x.n_rows < 32) {
            self.pool().for_stretches(n_panels, work);
        } else {
            let pairs = n_panels >= 2 * PIECES_PER_THREAD * self.pool().n_threads();
            self.pool().for_chunks(n_panels, if pairs { 2 } else { 1 }, work);
        }
    }

    /// Computes the first panel, or the first two, of a range of panels of one product. Returns how many it computed.
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
            elementwise::gate_mul(self.isa(), *function, &mut y[..m], &z[..m]);
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

    /// Computes panel `p` of `w` times every row, with the planes added up, into the first `x.n_rows` rows of `y`.
    fn panel(&self, w: &Matrix, p: usize, x: &Activations, planes: Planes, y: &mut [f32], unpacked: &mut [u8]) {
        let n_rows = rows_for(w, x, planes);
        panel::multiply(w, p, x, n_rows, &mut y[..n_rows * PANEL_ROWS], unpacked);
        self.add_planes(x, n_rows, planes, y);
    }

    /// As [`panel`](Self::panel), for two panels.
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
            elementwise::add(self.isa(), first, second);
        }
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

    /// Writes the products of panel `p`, `[n_rows][16]`, to their place in the output.
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
        // With a known length, this is a few vector instructions on any instruction set.
        out.iter_mut().zip(y).for_each(|(out, &y)| *out = f(*out, y));
    } else {
        out.iter_mut().zip(y).for_each(|(out, &y)| *out = f(*out, y));
    }
}

fn out_len(w: &Matrix, x: &Activations) -> usize {
    w.n_rows * x.n_rows
}
