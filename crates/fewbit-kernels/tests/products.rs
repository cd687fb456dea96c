//! Every instruction set that this CPU has gives the bits of the scalar definition, for every weight type,
//! batch size and number of threads.

use fewbit_kernels::math::{clamped_silu, gelu_tanh, silu};
use fewbit_kernels::{ActivationKinds, Activations, GateFunction, Isa, Matrix, Planes, Product, ThreadPool};
use fewbit_quant::TensorType;
use fewbit_quant::activation::{ActivationKind, quantize_row};
use support::{Codes, Random, check, cpus, product, put_scales, types, weights};

mod support;

#[test]
fn random_weights_with_all_batch_sizes() {
    let cpus = cpus();
    let mut random = Random(1);
    for ty in types() {
        let block = ty.block_elems().max(16);
        for (rows, blocks) in [(1, 1), (15, 3), (16, 2), (33, 5)] {
            let cols = block * blocks;
            let bytes = weights(ty, rows * cols, Codes::Random, None, &mut random);
            for n in (1..=19).chain([32, 63]) {
                let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
                check(&cpus, ty, rows, cols, &bytes, &x, "random");
            }
        }
    }
}

#[test]
fn long_rows_and_large_batches() {
    let cpus = cpus();
    let mut random = Random(2);
    for ty in types() {
        let (rows, cols) = (40, 2304);
        let bytes = weights(ty, rows * cols, Codes::Random, None, &mut random);
        for n in [1, 2, 9, 300] {
            let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
            check(&cpus, ty, rows, cols, &bytes, &x, "long");
        }
    }
}

#[test]
fn extreme_codes_scales_and_activations() {
    let cpus = cpus();
    let mut random = Random(3);
    let scales: [u16; 8] = [0x0000, 0x8000, 0x0001, 0x7BFF, 0xFBFF, 0x3C00, 0x7C00, 0x7E00];
    for ty in types() {
        let cols = ty.block_elems().max(32) * 2;
        let rows = 17;
        for codes in [Codes::Random, Codes::Maximal, Codes::Zero] {
            for scale in scales {
                let bytes = weights(ty, rows * cols, codes, Some(scale), &mut random);
                // All quantized codes at +127, at -127, alternating; then zeros, tiny, huge, infinite, NaN.
                let patterns: [fn(usize) -> f32; 9] = [
                    |_| 1.0,
                    |_| -1.0,
                    |i| if i % 2 == 0 { 1.0 } else { -1.0 },
                    |_| 0.0,
                    |i| if i % 3 == 0 { 1e-40 } else { -1e-39 },
                    |i| if i % 3 == 0 { 3e38 } else { -3e38 },
                    |i| if i == 5 { f32::INFINITY } else { 1.0 },
                    |i| if i == 5 { f32::NAN } else { 1.0 },
                    |i| if i % 7 == 0 { f32::MIN_POSITIVE } else { 1e-30 },
                ];
                for n in [1, 3, 9] {
                    for (which, pattern) in patterns.iter().enumerate() {
                        let x: Vec<f32> = (0..n * cols).map(pattern).collect();
                        let what = format!("{codes:?} codes, scale {scale:#06x}, pattern {which}");
                        check(&cpus, ty, rows, cols, &bytes, &x, &what);
                    }
                }
            }
        }
    }
}

/// Panels enough for threads to take two at a time, rows of the batch enough for tiles of both.
#[test]
fn tall_matrices() {
    let cpus = cpus();
    let mut random = Random(8);
    for ty in types() {
        let (rows, cols) = (530, ty.block_elems().max(16) * 3);
        let bytes = weights(ty, rows * cols, Codes::Random, None, &mut random);
        for n in [8, 17, 39] {
            let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
            check(&cpus, ty, rows, cols, &bytes, &x, "tall");
        }
        if ty.block_elems() > 1 {
            for sign in [1.0, -1.0] {
                let bytes = heaviest_block(ty, sign).repeat(rows);
                let x = vec![sign; 24 * ty.block_elems()];
                check(&cpus, ty, rows, ty.block_elems(), &bytes, &x, "tall and heaviest");
            }
        }
    }
}

/// A block of largest (or smallest) sum, found byte by byte: codes, signs and integer scales under which sums come
/// closest to the bounds that the kernels rely on.
fn heaviest_block(ty: TensorType, sign: f32) -> Vec<u8> {
    let mut values = vec![0.0; ty.block_elems()];
    let mut sum = |block: &[u8]| -> f32 {
        fewbit_quant::decode(ty, block, &mut values).expect("decodes");
        values.iter().sum::<f32>() * sign
    };
    let mut best = weights(ty, ty.block_elems(), Codes::Zero, Some(0x3C00), &mut Random(0));
    for at in 0..best.len() {
        let candidates = (0..=255).map(|byte| {
            let mut block = best.clone();
            block[at] = byte;
            put_scales(ty, &mut block, || 0x3C00);
            block
        });
        best = candidates.max_by(|a, b| sum(a).total_cmp(&sum(b))).expect("256 of them");
    }
    best
}

#[test]
fn largest_possible_block_sums() {
    let cpus = cpus();
    for ty in types().filter(|ty| ty.block_elems() > 1) {
        for sign in [1.0, -1.0] {
            let block = heaviest_block(ty, sign);
            let (rows, blocks) = (17, 3);
            let bytes = block.repeat(rows * blocks);
            for n in [1, 4, 9, 19] {
                for x in [1.0, -1.0] {
                    let x = vec![x; n * blocks * ty.block_elems()];
                    check(&cpus, ty, rows, blocks * ty.block_elems(), &bytes, &x, "heaviest");
                }
            }
        }
    }
}

#[test]
fn fused_outputs_equal_the_plain_product() {
    let mut random = Random(4);
    // The second size has an odd number of panels: of those that a thread takes at a time, two are of two matrices.
    for (cpu, (rows, n)) in cpus().iter().flat_map(|cpu| [(50, 5), (590, 19)].map(|size| (cpu, size))) {
        let cols = 96;
        let mut matrix = |ty| {
            let bytes = weights(ty, rows * cols, Codes::Random, Some(0x2C00), &mut random);
            cpu.pack(ty, rows, cols, &bytes).expect("packs")
        };
        let (a, b) = (matrix(TensorType::Q4_1), matrix(TensorType::Q8_0));
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        let mut acts = Activations::new();
        cpu.activate(&x, cols, ActivationKinds::of([a.ty(), b.ty()]), &mut acts);
        let (mut ya, mut yb) = (vec![0.0; n * rows], vec![0.0; n * rows]);
        cpu.matmul(&a, &acts, &mut ya);
        cpu.matmul(&b, &acts, &mut yb);

        let (mut ma, mut mb) = (vec![9.0; n * rows], vec![9.0; n * rows]);
        cpu.matmul_many(&mut [(&a, &mut ma, Planes::All), (&b, &mut mb, Planes::First)], &acts);
        assert_eq!((&ma, &mb), (&ya, &yb));

        let mut sum = ya.clone();
        cpu.matmul_add(&b, &acts, &mut sum);
        assert!(sum.iter().zip(ya.iter().zip(&yb)).all(|(s, (a, b))| *s == a + b));

        type Gate = fn(f32, f32) -> f32;
        let functions: [(GateFunction, Gate); 3] = [
            (GateFunction::Silu, |g, u| silu(g) * u),
            (GateFunction::GeluTanh, |g, u| gelu_tanh(g) * u),
            (GateFunction::ClampedSilu, clamped_silu),
        ];
        for (function, f) in functions {
            let mut gated = vec![0.0; n * rows];
            cpu.matmul_gated(function, &a, &b, &acts, &mut gated);
            let want: Vec<f32> = ya.iter().zip(&yb).map(|(&g, &u)| f(g, u)).collect();
            assert_eq!(gated, want);
            let mut apart = ya.clone();
            cpu.gate(function, rows, &mut apart, &yb);
            assert_eq!(apart, want);
        }
    }
}

#[test]
fn gathered_rows_have_the_bits_of_the_whole_batch() {
    let mut random = Random(6);
    for cpu in cpus() {
        let (rows, cols, n) = (40, 256, 7);
        let mut matrix = |ty| {
            let bytes = weights(ty, rows * cols, Codes::Random, Some(0x2C00), &mut random);
            cpu.pack(ty, rows, cols, &bytes).expect("packs")
        };
        let matrices = [matrix(TensorType::Q4_0), matrix(TensorType::Q5_K), matrix(TensorType::F16)];
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        let kinds = ActivationKinds::of(matrices.iter().map(|m| m.ty()));
        for kinds in [kinds, kinds.two_planes()] {
            let (mut all, mut some) = (Activations::new(), Activations::new());
            cpu.activate(&x, cols, kinds, &mut all);
            let picked = [5usize, 0, 3, 3];
            cpu.gather(&all, &picked, kinds, &mut some);
            let mut got = vec![vec![0.0; picked.len() * rows]; 3];
            // All three in one section, the first two of the gathered rows, the last of the whole batch.
            let mut whole = vec![0.0; n * rows];
            let [first, second, third] = &mut got[..] else { panic!("three") };
            cpu.matmul_each(&mut [
                Product::Store { w: &matrices[0], x: &some, out: first },
                Product::Store { w: &matrices[2], x: &all, out: &mut whole },
                Product::Store { w: &matrices[1], x: &some, out: second },
            ]);
            cpu.matmul(&matrices[2], &some, third);
            for (matrix, got) in matrices.iter().zip(&got) {
                let mut want = vec![0.0; n * rows];
                cpu.matmul(matrix, &all, &mut want);
                for (i, &row) in picked.iter().enumerate() {
                    assert_eq!(got[i * rows..(i + 1) * rows], want[row * rows..(row + 1) * rows], "{matrix:?}");
                }
            }
            let mut want = vec![0.0; n * rows];
            cpu.matmul(&matrices[2], &all, &mut want);
            assert_eq!(whole, want);
        }
    }
}

#[test]
fn activations_are_quantized_as_defined() {
    // One weight row that is 1 at column c and 0 elsewhere (Q8_0, scale 1) reads back code times scale.
    let mut random = Random(5);
    let x: Vec<f32> = (0..64).map(|_| random.float()).collect();
    let (mut codes, mut scales, mut sums) = ([0i8; 64], [0.0; 2], [0i16; 2]);
    quantize_row(ActivationKind::Q8Block32, &x, &mut codes, &mut scales, &mut sums);
    for cpu in cpus() {
        for c in 0..64 {
            let mut bytes = vec![0u8; 68];
            for b in 0..2 {
                bytes[34 * b + 1] = 0x3C;
            }
            bytes[34 * (c / 32) + 2 + c % 32] = 1;
            let got = product(&cpu, TensorType::Q8_0, 1, 64, &bytes, &x);
            assert_eq!(f32::from_bits(got[0]), f32::from(codes[c]) * scales[c / 32], "column {c}");
        }
    }
}

#[test]
fn packed_rows_decode_to_the_bits_of_the_file() {
    let mut random = Random(6);
    for ty in types() {
        let (rows, cols) = (35, ty.block_elems().max(16) * 3);
        let bytes = weights(ty, rows * cols, Codes::Random, None, &mut random);
        let mut want = vec![0.0; rows * cols];
        fewbit_quant::decode(ty, &bytes, &mut want).expect("decodes");
        for cpu in cpus() {
            let w = cpu.pack(ty, rows, cols, &bytes).expect("packs");
            let mut got = vec![0.0; cols];
            for (row, want) in want.chunks(cols).enumerate() {
                w.decode_row(row, &mut got);
                let same = got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan());
                assert!(same, "{ty} row {row} {cpu:?}");
            }
        }
    }
}

#[test]
fn packed_bytes_estimates_the_memory_of_a_matrix() {
    for cpu in cpus() {
        for ty in TensorType::all() {
            let (rows, cols) = (48, ty.block_elems().max(16) * 16);
            let estimate = Matrix::packed_bytes(cpu.isa(), ty, rows, cols);
            if !ty.is_supported() {
                assert_eq!(estimate, None, "{ty}");
                continue;
            }
            let bytes = vec![0; ty.row_bytes(rows * cols).expect("whole blocks")];
            let packed = cpu.pack(ty, rows, cols, &bytes).expect("packs").n_bytes();
            assert_eq!(estimate, Some(packed), "{ty} {cpu:?}");
            // How much more than in the file, in bits per weight: see `codebook`.
            let more = 8.0 * (packed as f64 - bytes.len() as f64) / (rows * cols) as f64;
            let expected = match (cpu.isa(), ty) {
                (Isa::Scalar, _) => 0.0,
                (_, TensorType::MXFP4) => 0.25,
                (_, TensorType::IQ4_XS | TensorType::Q3_K) => 0.125,
                (_, TensorType::IQ3_S | TensorType::IQ2_S) => 0.75,
                (_, TensorType::IQ2_XS) => 1.0,
                (_, TensorType::IQ3_XXS | TensorType::IQ2_XXS) => 1.125,
                (_, TensorType::IQ1_M) => 1.5625,
                (_, TensorType::IQ1_S) => 1.625,
                (_, TensorType::TQ1_0) => 0.375,
                (_, TensorType::Q4_K | TensorType::Q5_K) => 0.125,
                _ => 0.0,
            };
            assert!((more - expected).abs() < 0.07, "{ty}: {more} bits more");
        }
    }
}

#[test]
fn second_plane_adds_the_product_of_the_rounding_error() {
    let mut random = Random(7);
    let types = [TensorType::Q4_1, TensorType::Q8_0, TensorType::Q4_K, TensorType::Q6_K, TensorType::F16];
    // Numbers of rows of which one plane ends within a group of interleaved rows, and at the end of one.
    for (ty, n) in types.into_iter().flat_map(|ty| [1, 2, 3, 5, 7, 8, 12, 19].map(|n| (ty, n))) {
        let (rows, cols) = (20, 512);
        let bytes = weights(ty, rows * cols, Codes::Random, Some(0x2C00), &mut random);
        let x: Vec<f32> = (0..n * cols).map(|_| random.float()).collect();
        let mut lost = x.clone();
        let kind = ActivationKind::of(ty).expect("a supported type");
        let block = kind.block_elems();
        if kind != ActivationKind::F32 {
            let (mut codes, mut scales) = (vec![0i8; n * cols], vec![0.0; n * cols / block]);
            quantize_row(kind, &x, &mut codes, &mut scales, &mut vec![0; n * cols / kind.sum_elems()]);
            for (i, v) in lost.iter_mut().enumerate() {
                *v = (-scales[i / block]).mul_add(f32::from(codes[i]), *v);
            }
        }
        for cpu in cpus() {
            let w = cpu.pack(ty, rows, cols, &bytes).expect("packs");
            let product = |x: &[f32], kinds| {
                let (mut acts, mut out) = (Activations::new(), vec![0.0; n * rows]);
                cpu.activate(x, cols, kinds, &mut acts);
                cpu.matmul(&w, &acts, &mut out);
                out
            };
            let kinds = ActivationKinds::of([ty]);
            let (first, second) = (product(&x, kinds), product(&lost, kinds));
            let both = product(&x, kinds.two_planes());
            let (mut acts, mut one) = (Activations::new(), vec![0.0; n * rows]);
            cpu.activate(&x, cols, kinds.two_planes(), &mut acts);
            cpu.matmul_many(&mut [(&w, &mut one, Planes::First)], &acts);
            assert!(one.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()), "{ty} {cpu:?}, {n} rows");
            for ((both, first), second) in both.iter().zip(&first).zip(&second) {
                let want = if kind == ActivationKind::F32 { *first } else { first + second };
                assert_eq!(both.to_bits(), want.to_bits(), "{ty} {cpu:?}");
            }
        }
    }
}

#[test]
fn weights_are_packed_only_for_available_isas() {
    let pool = ThreadPool::new(1).expect("no thread is needed");
    let all = [Isa::Portable, Isa::Sse2, Isa::Neon, Isa::DotProd, Isa::I8mm, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];
    for isa in [Isa::Scalar].into_iter().chain(all) {
        let packed = Matrix::pack(&pool, isa, TensorType::F32, 1, 1, &[0; 4]);
        assert_eq!(packed.is_ok(), isa.is_available(), "{isa}");
    }
}
