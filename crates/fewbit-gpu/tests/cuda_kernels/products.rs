//! Products, of matrices and of experts' matrices, and adapters.

use crate::memory::{FormMemory, Memory, Random, activate, assert_bits, cpu, run};
use fewbit_gpu::cuda::kernels::{
    AdaptParams, AdaptedRow, ExpertParams, Form, GroupParams, ProductParams, QuantizeParams, Route,
};
use fewbit_kernels::{Isa, Matrix};
use fewbit_quant::{ActivationKind, TensorType};

/// All types of weights.
fn types() -> impl Iterator<Item = TensorType> {
    TensorType::all().filter(|&ty| ActivationKind::of(ty).is_some())
}

/// A matrix as the device has it, and as the scalar definition reads it.
struct TestMatrix {
    ty: TensorType,
    n_out: usize,
    n_cols: usize,
    scalar: Matrix,
    panels: Vec<u8>,
    panel_bytes: usize,
    meta_bytes: usize,
}

impl TestMatrix {
    fn new(random: &mut Random, ty: TensorType, n_out: usize, n_cols: usize) -> Self {
        let bytes = random.blocks(ty, n_out * n_cols);
        let pool = cpu().pool().clone();
        let pack = |isa| Matrix::pack(&pool, isa, ty, n_out, n_cols, &bytes).expect("a valid matrix");
        let packed = pack(Isa::best());
        let (layout, panels) = packed.panels().expect("packed in panels");
        let panels = panels.to_vec();
        let (panel_bytes, meta_bytes) = (layout.panel, layout.meta);
        Self { ty, n_out, n_cols, scalar: pack(Isa::Scalar), panels, panel_bytes, meta_bytes }
    }

    /// The parameters but for the addresses of the weights and the output.
    fn params(&self, input: &Input, n_rows: usize) -> ProductParams {
        ProductParams {
            values: input.values.address(),
            form: input.form.as_ref().map_or(Form::default(), FormMemory::form),
            panel_bytes: self.panel_bytes as u64,
            meta_bytes: self.meta_bytes as u64,
            n_rows: n_rows as u32,
            n_cols: self.n_cols as u32,
            n_out: self.n_out as u32,
            planes: input.planes as u32,
            ..ProductParams::default()
        }
    }

    /// The product with all rows, by the definition.
    fn product(&self, x: &[f32], planes: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len() / self.n_cols * self.n_out];
        cpu().matmul(&self.scalar, &activate(&cpu(), self.ty, x, self.n_cols, planes), &mut out);
        out
    }
}

/// Rows on the device, quantized there.
struct Input {
    values: Memory<f32>,
    form: Option<FormMemory>,
    planes: usize,
}

impl Input {
    fn new(ty: TensorType, x: &[f32], n_cols: usize, planes: usize) -> Option<Self> {
        let values = Memory::of(x);
        let kind = ActivationKind::of(ty).expect("a type of weights");
        let mut form = None;
        if kind != ActivationKind::F32 {
            let n_rows = x.len() / n_cols;
            let made = FormMemory::new(kind, planes * n_rows, n_cols);
            let (from, to) = (values.address(), made.form());
            let (n_rows, n_cols, planes) = (n_rows as u32, n_cols as u32, planes as u32);
            let params = QuantizeParams { from, to, n_rows, n_cols, planes, unused: 0 };
            run(&params.launch(kind), &params)?;
            form = Some(made);
        }
        Some(Self { values, form, planes })
    }
}

fn check(random: &mut Random, matrix: &TestMatrix, n_rows: usize, planes: usize, adds: bool) -> Option<()> {
    let (ty, n_out, n_cols) = (matrix.ty, matrix.n_out, matrix.n_cols);
    let x = random.floats(n_rows * n_cols, 3.0);
    let before = random.floats(n_rows * n_out, 1.0);
    let input = Input::new(ty, &x, n_cols, planes)?;
    let (weights, mut to) = (Memory::of(&matrix.panels), Memory::of(&before));
    let params = ProductParams {
        weights: weights.address(),
        to: to.address(),
        adds: u32::from(adds),
        ..matrix.params(&input, n_rows)
    };
    run(&params.launch(ty), &params)?;
    let mut want = matrix.product(&x, planes);
    if adds {
        want.iter_mut().zip(&before).for_each(|(y, before)| *y += before);
    }
    assert_bits(to.get(), &want, &format!("{ty}, {n_rows} rows times {n_out} x {n_cols}, {planes} planes"));
    to.check();
    Some(())
}

#[test]
fn products_of_every_type_have_the_bits_of_the_definition() {
    let random = &mut Random(1);
    for ty in types() {
        // Whole panels and a part of one; columns of one stretch, of parts of a stretch, of several.
        let (short, long) = match ty.block_elems() {
            32 => (96, 2144),
            256 => (256, 2304),
            _ => (77, 301),
        };
        let matrix = TestMatrix::new(random, ty, 70, short);
        for (i, n_rows) in [1, 2, 3, 7, 8, 9, 33].into_iter().enumerate() {
            if check(random, &matrix, n_rows, 1 + i % 2, i % 3 == 1).is_none() {
                return;
            }
        }
        let matrix = TestMatrix::new(random, ty, 5, long);
        for (i, n_rows) in [1, 2, 4, 8, 20].into_iter().enumerate() {
            check(random, &matrix, n_rows, 1 + (i + 1) % 2, false);
        }
    }
}

#[test]
fn products_with_many_rows_have_the_bits_of_the_definition() {
    let random = &mut Random(2);
    for (ty, n_cols) in [
        (TensorType::Q4_0, 160),
        (TensorType::Q5_1, 64),
        (TensorType::Q4_K, 256),
        (TensorType::Q6_K, 256),
        (TensorType::IQ2_S, 256),
        (TensorType::F16, 131),
    ] {
        let matrix = TestMatrix::new(random, ty, 33, n_cols);
        for n_rows in [64, 65, 300] {
            if check(random, &matrix, n_rows, 2, n_rows == 65).is_none() {
                return;
            }
        }
    }
}

/// Inputs that are not finite, and zeros, give what they give on the CPU.
#[test]
fn products_with_nan_and_zeros_match_the_definition() {
    let random = &mut Random(3);
    for (ty, n_cols) in [(TensorType::Q8_0, 128), (TensorType::Q4_K, 512), (TensorType::F32, 128)] {
        let matrix = TestMatrix::new(random, ty, 17, n_cols);
        for n_rows in [4, 12] {
            let mut x = random.floats(n_rows * n_cols, 1.0);
            x[..n_cols].fill(0.0);
            x[n_cols + 3] = f32::NAN;
            x[2 * n_cols + 5] = f32::INFINITY;
            x[3 * n_cols..].iter_mut().for_each(|x| *x *= 1e-33);
            let Some(input) = Input::new(ty, &x, n_cols, 2) else { return };
            let (weights, to) = (Memory::of(&matrix.panels), Memory::new(n_rows * 17));
            let params = matrix.params(&input, n_rows);
            let params = ProductParams { weights: weights.address(), to: to.address(), ..params };
            run(&params.launch(ty), &params);
            assert_bits(to.get(), &matrix.product(&x, 2), &format!("{ty}, {n_rows} rows"));
        }
    }
}

#[test]
fn expert_products_have_the_bits_of_the_definition() {
    let random = &mut Random(4);
    const EXPERTS: usize = 5;
    for ty in types() {
        let n_cols = ty.block_elems().max(96);
        let experts: Vec<_> = (0..EXPERTS).map(|_| TestMatrix::new(random, ty, 21, n_cols)).collect();
        let weights: Vec<u8> = experts.iter().flat_map(|m| &m.panels).copied().collect();
        let weights = Memory::of(&weights);
        // A row for each token, or for each route; many rows only with types that stand for others.
        let is_large = [TensorType::Q4_0, TensorType::Q4_K, TensorType::Q6_K, TensorType::F16].contains(&ty);
        for (n_tokens, routes_per_row) in [(3, 1), (2, 3), (if is_large { 90 } else { 4 }, 2)] {
            let n_routes = n_tokens * routes_per_row;
            let x = random.floats(n_tokens * n_cols, 2.0);
            // Most routes go to one expert, so that it has several tiles.
            let mut expert = || if random.next().is_multiple_of(4) { random.next() % EXPERTS as u32 } else { 3 };
            let routes: Vec<_> = (0..n_routes).map(|_| Route { expert: expert(), weight: 0.5 }).collect();
            let Some(input) = Input::new(ty, &x, n_cols, 1) else { return };
            let (routes_memory, mut to) = (Memory::of(&routes), Memory::new(n_routes * 21));
            let mut group = GroupParams { n_routes: n_routes as u32, n_experts: EXPERTS as u32, ..Default::default() };
            let (mut order, mut tiles) = (Memory::<u32>::new(n_routes), Memory::<u32>::new(group.tile_words()));
            let scratch = Memory::<u32>::new(2 * EXPERTS);
            let params = ExpertParams {
                product: ProductParams {
                    weights: weights.address(),
                    to: to.address(),
                    ..experts[0].params(&input, n_tokens)
                },
                routes: routes_memory.address(),
                order: order.address(),
                tiles: tiles.address(),
                expert_bytes: experts[0].panels.len() as u64,
                n_routes: n_routes as u32,
                routes_per_row: routes_per_row as u32,
            };
            let mut want = vec![0.0; n_routes * 21];
            for (i, route) in routes.iter().enumerate() {
                let x = &x[i / routes_per_row * n_cols..][..n_cols];
                want[i * 21..(i + 1) * 21].copy_from_slice(&experts[route.expert as usize].product(x, 1));
            }
            run(&params.launch(ty), &params);
            assert_bits(to.get(), &want, &format!("{ty}, {n_routes} routes"));
            to.check();
            let mut to = Memory::new(n_routes * 21);
            let product = ProductParams { to: to.address(), ..params.product };
            let params = ExpertParams { product, ..params };
            (group.routes, group.order) = (routes_memory.address(), order.address());
            (group.tiles, group.scratch) = (tiles.address(), scratch.address());
            run(&group.launch(), &group);
            run(&params.launch_tiles(ty, EXPERTS as u32), &params);
            assert_bits(to.get(), &want, &format!("{ty}, {n_routes} routes in tiles"));
            to.check();
            order.check();
            tiles.check();
        }
    }
}

#[test]
fn adapters_have_the_bits_of_the_definition() {
    let random = &mut Random(5);
    for (rank, n_in, n_out) in [(1, 5, 3), (16, 300, 65), (33, 128, 16)] {
        let (batch, rows) = (4, [AdaptedRow { row: 2, scale: 0.7 }, AdaptedRow { row: 0, scale: -1.5 }]);
        let (a, b) = (random.floats(rank * n_in, 0.3), random.floats(n_out * rank, 0.3));
        let (x, mut y) = (random.floats(batch * n_in, 1.0), random.floats(batch * n_out, 1.0));
        let (a_memory, b_memory, x_memory) = (Memory::of(&a), Memory::of(&b), Memory::of(&x));
        let (mut t, mut to, row_memory) = (Memory::<f32>::new(2 * rank), Memory::of(&y), Memory::of(&rows));
        let down = AdaptParams {
            w: a_memory.address(),
            x: x_memory.address(),
            rows: row_memory.address(),
            to: t.address(),
            n_rows: 2,
            n_in: n_in as u32,
            n_out: rank as u32,
            unused: 0,
        };
        let up = AdaptParams {
            w: b_memory.address(),
            x: t.address(),
            to: to.address(),
            n_in: rank as u32,
            n_out: n_out as u32,
            ..down
        };
        if run(&down.launch(true), &down).and_then(|()| run(&up.launch(false), &up)).is_none() {
            return;
        }
        let chain = |w: &[f32], x: &[f32]| w.iter().zip(x).fold(0.0f32, |sum, (w, x)| w.mul_add(*x, sum));
        for AdaptedRow { row, scale } in rows {
            let row = row as usize;
            let x = &x[row * n_in..(row + 1) * n_in];
            let t: Vec<f32> = a.chunks_exact(n_in).map(|a| chain(a, x) * scale).collect();
            let y = &mut y[row * n_out..(row + 1) * n_out];
            y.iter_mut().zip(b.chunks_exact(rank)).for_each(|(y, b)| *y += chain(b, &t));
        }
        assert_bits(to.get(), &y, &format!("rank {rank}"));
        to.check();
        t.check();
    }
}
