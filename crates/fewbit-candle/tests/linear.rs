//! `QLinear` gives the bits of fewbit's kernels for every type and layout of the input, is as close to candle's
//! `QMatMul` as 8-bit activations allow, and returns a clear error for anything that it cannot do.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor, Var};
use fewbit_candle::{Error, Kernels, QLinear, rows_to_tensor};
use fewbit_format::{GgufFile, GgufWriter};
use fewbit_kernels::{ActivationKinds, Activations, Cpu, Isa};
use fewbit_quant::TensorType;
use support::{Codes, Random, types, weights};

// Only its weights and random numbers are used.
#[path = "../../fewbit-kernels/tests/support/mod.rs"]
mod support;

/// The types that candle quantizes to.
const CANDLE_TYPES: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

fn floats(n: usize, random: &mut Random) -> Vec<f32> {
    (0..n).map(|_| random.float()).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).expect("a tensor")
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32");
    values.into_iter().map(f32::to_bits).collect()
}

/// The product through the entry point of the kernels.
fn by_kernels(ty: TensorType, n_rows: usize, n_cols: usize, bytes: &[u8], x: &[f32]) -> Vec<u32> {
    let cpu = Cpu::new(Isa::best(), 1).expect("available");
    let w = cpu.pack(ty, n_rows, n_cols, bytes).expect("packs");
    let mut activations = Activations::new();
    cpu.activate(x, n_cols, ActivationKinds::of([ty]), &mut activations);
    let mut out = vec![0.0; x.len() / n_cols * n_rows];
    cpu.matmul(&w, &activations, &mut out);
    out.into_iter().map(f32::to_bits).collect()
}

/// A linear layer of some type that candle has, and the same weights in f32.
fn sample(ty: GgmlDType, n_rows: usize, n_cols: usize, seed: u64) -> (Tensor, QTensor) {
    let plain = tensor(&floats(n_rows * n_cols, &mut Random(seed)), &[n_rows, n_cols]);
    let quantized = QTensor::quantize(&plain, ty).expect("quantizes");
    (quantized.dequantize(&Device::Cpu).expect("decodes"), quantized)
}

/// Root of the mean square of the difference, relative to that of `want`.
fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    let square = |t: &Tensor| -> f64 {
        let t = t.to_dtype(DType::F64).and_then(|t| t.sqr()).and_then(|t| t.sum_all());
        t.and_then(|t| t.to_scalar()).expect("a number")
    };
    (square(&(got - want).expect("same shape")) / square(want)).sqrt()
}

#[test]
fn every_gguf_type_has_the_bits_of_the_kernels() {
    let mut random = Random(1);
    let (n_rows, n_cols) = (35, 512);
    let matrices: Vec<_> =
        types().map(|ty| (ty, weights(ty, n_rows * n_cols, Codes::Random, Some(0x2C00), &mut random))).collect();
    let mut writer = GgufWriter::new();
    for (ty, bytes) in &matrices {
        writer.tensor(ty.to_string(), &[n_rows as u64, n_cols as u64], *ty, bytes).expect("is written");
    }
    let file = GgufFile::from_bytes(writer.to_bytes().expect("a file")).expect("valid");
    let x = floats(6 * n_cols, &mut random);
    for (ty, bytes) in &matrices {
        let want = by_kernels(*ty, n_rows, n_cols, bytes, &x);
        let linear = QLinear::from_gguf(&file, &ty.to_string()).expect("packs");
        assert_eq!((linear.ty(), linear.n_rows(), linear.n_cols()), (*ty, n_rows, n_cols));
        let y = linear.forward(&tensor(&x, &[2, 3, n_cols])).expect("a product");
        assert_eq!(y.dims(), [2, 3, n_rows], "{ty}");
        assert_eq!(bits(&y), want, "{ty}");
        let kernels = Kernels::new(3).expect("threads");
        let other = QLinear::from_bytes(&kernels, *ty, [n_rows, n_cols], bytes).expect("packs");
        assert_eq!(bits(&other.forward(&tensor(&x, &[6, n_cols])).expect("a product")), want, "{ty}");
    }
}

#[test]
fn products_are_as_accurate_as_those_of_candle() {
    let (n_rows, n_cols) = (96, 1024);
    for ty in CANDLE_TYPES {
        let (plain, quantized) = sample(ty, n_rows, n_cols, 2);
        let x = tensor(&floats(11 * n_cols, &mut Random(3)), &[11, n_cols]);
        let exact = x.matmul(&plain.t().expect("two dimensions")).expect("a product");
        let quantized = std::sync::Arc::new(quantized);
        let candle = QMatMul::from_arc(quantized.clone()).and_then(|w| w.forward(&x)).expect("a product");
        let linear = QLinear::from_arc(quantized).expect("packs");
        let ours = linear.forward(&x).expect("a product");
        let (mine, theirs) = (relative_error(&ours, &exact), relative_error(&candle, &exact));
        println!("{ty:?}: {mine:.5} from the exact product, candle {theirs:.5}");
        // Rounding to 127 levels of the largest of a block costs some thousandths; plain weights cost nothing.
        let plain_type = matches!(ty, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16);
        let bound = if plain_type { 1e-6 } else { 0.01 };
        assert!(mine < bound && relative_error(&ours, &candle) < 2.0 * bound, "{ty:?}: {mine} and {theirs}");
        // The weights themselves equal candle's, bit for bit.
        assert_eq!(bits(&linear.dequantize().expect("memory")), bits(&plain), "{ty:?}");
    }
}

#[test]
fn input_strides_do_not_change_the_bits() {
    let (_, quantized) = sample(GgmlDType::Q4_1, 40, 64, 4);
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    let x = tensor(&floats(2 * 3 * 5 * 64, &mut Random(5)), &[2, 3, 5, 64]);
    let want = bits(&linear.forward(&x).expect("a product"));
    let row = |i: usize| want[i * 40..(i + 1) * 40].to_vec();

    // Cut out of a larger tensor; a single row, of one dimension as well.
    let cut = x.narrow(1, 1, 1).and_then(|x| x.narrow(2, 2, 2)).expect("a part");
    assert!(!cut.is_contiguous());
    assert_eq!(bits(&linear.forward(&cut).expect("a product")), [row(7), row(8), row(22), row(23)].concat());
    let one = x.flatten(0, 2).and_then(|x| x.get(9)).expect("a row");
    assert_eq!(one.dims(), [64]);
    let y = linear.forward(&one).expect("a product");
    assert_eq!((y.dims(), bits(&y)), (&[40][..], row(9)));

    // Dimensions swapped among the rows, and the columns lying far apart.
    let swapped = x.transpose(0, 2).expect("dimensions");
    let y = linear.forward(&swapped).expect("a product");
    assert_eq!(y.dims(), [5, 3, 2, 40]);
    assert_eq!(bits(&y.transpose(0, 2).and_then(|y| y.contiguous()).expect("back")), want);
    let columns = x.transpose(2, 3).and_then(|x| x.contiguous()).and_then(|x| x.transpose(2, 3)).expect("layout");
    assert!(!columns.is_contiguous());
    assert_eq!(bits(&linear.forward(&columns).expect("a product")), want);

    // One row, seen many times without being there more than once.
    let repeated = one.reshape((1, 1, 64)).and_then(|x| x.broadcast_as((4, 7, 64))).expect("a broadcast");
    assert_eq!(bits(&linear.forward(&repeated).expect("a product")), row(9).repeat(28));
}

#[test]
fn large_batches_have_the_same_bits_as_single_rows() {
    // More rows than are quantized at a time.
    let (n_rows, n_cols) = (3, 32_768);
    let (_, quantized) = sample(GgmlDType::Q8_0, n_rows, n_cols, 6);
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    let one = floats(n_cols, &mut Random(7));
    let alone = bits(&linear.forward(&tensor(&one, &[1, n_cols])).expect("a product"));
    let many = tensor(&one, &[1, n_cols]).broadcast_as((300, n_cols)).expect("a broadcast");
    assert_eq!(bits(&linear.forward(&many).expect("a product")), alone.repeat(300));
    let many = many.contiguous().expect("memory");
    assert_eq!(bits(&linear.forward(&many).expect("a product")), alone.repeat(300));
}

#[test]
fn f16_and_bf16_inputs_are_computed_in_f32() {
    let (_, quantized) = sample(GgmlDType::Q6K, 48, 256, 8);
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    for ty in [DType::F16, DType::BF16] {
        let x = tensor(&floats(4 * 256, &mut Random(9)), &[4, 256]).to_dtype(ty).expect("converts");
        let y = linear.forward(&x).expect("a product");
        assert_eq!(y.dtype(), ty);
        let wide = linear.forward(&x.to_dtype(DType::F32).expect("converts")).expect("a product");
        let want = wide.to_dtype(ty).and_then(|y| y.to_dtype(DType::F32)).expect("converts");
        assert_eq!(bits(&y.to_dtype(DType::F32).expect("converts")), bits(&want), "{ty:?}");
    }
}

#[test]
fn empty_inputs_give_empty_outputs_or_zeros() {
    let (_, quantized) = sample(GgmlDType::Q4_0, 8, 32, 10);
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    for shape in [&[0, 32][..], &[3, 0, 32], &[0, 0, 0, 32]] {
        let x = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("an empty tensor");
        let y = linear.forward(&x).expect("an empty product");
        assert_eq!(y.dims(), [&shape[..shape.len() - 1], &[8]].concat());
    }
    let kernels = Kernels::new(1).expect("no threads");
    let flat = QLinear::from_bytes(&kernels, TensorType::F32, [0, 4], &[]).expect("no rows");
    let y = flat.forward(&Tensor::zeros((2, 4), DType::F32, &Device::Cpu).expect("a tensor")).expect("a product");
    assert_eq!(y.dims(), [2, 0]);
    let thin = QLinear::from_bytes(&kernels, TensorType::F32, [4, 0], &[]).expect("no columns");
    let y = thin.forward(&Tensor::zeros((2, 0), DType::F32, &Device::Cpu).expect("a tensor")).expect("a product");
    assert_eq!(y.to_vec2::<f32>().expect("f32"), [[0.0; 4]; 2]);
}

#[test]
fn unsuitable_inputs_are_rejected_with_a_reason() {
    let (_, quantized) = sample(GgmlDType::Q8_0, 16, 64, 11);
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    let zeros = |shape: &[usize], ty| Tensor::zeros(shape, ty, &Device::Cpu).expect("a tensor");
    let refused = |x: &Tensor| linear.try_forward(x).expect_err("refused");
    for shape in [&[][..], &[63], &[64, 2], &[2, 64, 1]] {
        let error = refused(&zeros(shape, DType::F32));
        assert!(matches!(&error, Error::InputShape { expected: 64, shape: found } if found == shape), "{error}");
    }
    for ty in [DType::U8, DType::U32, DType::I64, DType::F64] {
        let error = refused(&zeros(&[64], ty));
        assert!(matches!(error, Error::InputType { found } if found == ty), "{error}");
    }
    // candle's own `forward` returns the same message.
    let error = linear.forward(&zeros(&[63], DType::F32)).expect_err("refused").to_string();
    assert!(error.contains("64") && error.contains("[63]"), "{error}");

    // An output of 2^50 and of more than 2^64 bytes, of an input of 64 numbers.
    for n in [1usize << 44, 1 << 58] {
        let x = zeros(&[1, 64], DType::F32).broadcast_as((n, 64)).expect("a broadcast");
        let error = refused(&x).to_string();
        assert!(error.contains("does not fit into memory"), "{error}");
    }

    let bias = |shape: &[usize]| linear.clone().with_bias(zeros(shape, DType::F32)).map(|_| ());
    assert!(bias(&[16]).is_ok());
    for shape in [&[][..], &[15], &[1, 16]] {
        assert!(matches!(bias(shape), Err(Error::BiasShape { expected: 16, .. })), "{shape:?}");
    }

    let shape = (2, 16, 64);
    let experts =
        QTensor::quantize(&Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a tensor"), GgmlDType::Q8_0);
    let error = QLinear::from_qtensor(experts.expect("quantizes")).expect_err("refused");
    assert!(matches!(&error, Error::NotMatrix { shape, .. } if *shape == [2, 16, 64]), "{error}");
    let wide = Tensor::zeros((4, 256), DType::F32, &Device::Cpu).expect("a tensor");
    for ty in [GgmlDType::Q8_1, GgmlDType::Q8K] {
        // candle does not quantize to all of them.
        let Ok(weights) = QTensor::quantize(&wide, ty) else { continue };
        let error = QLinear::from_qtensor(weights).expect_err("refused");
        assert!(matches!(error, Error::Kernel(_)), "{ty:?}: {error}");
    }
    let kernels = Kernels::new(1).expect("no threads");
    for (shape, n_bytes) in [([1, 32], 33), ([1, 33], 34), ([usize::MAX, usize::MAX & !31], 34), ([2, 0], 1)] {
        let error = QLinear::from_bytes(&kernels, TensorType::Q8_0, shape, &vec![0; n_bytes]).expect_err("refused");
        assert!(matches!(error, Error::Kernel(_)), "{shape:?}: {error}");
    }
}

#[test]
fn gguf_tensors_that_are_not_matrices_are_rejected() {
    let mut writer = GgufWriter::new();
    writer.tensor("norm.weight", &[4], TensorType::F32, &[0; 16]).expect("is written");
    writer.tensor("experts.weight", &[2, 2, 1], TensorType::F32, &[0; 16]).expect("is written");
    writer.tensor("ids", &[1, 4], TensorType::I32, &[0; 16]).expect("is written");
    let file = GgufFile::from_bytes(writer.to_bytes().expect("a file")).expect("valid");
    let refused = |name| QLinear::from_gguf(&file, name).expect_err("refused");
    for name in ["norm.weight", "experts.weight"] {
        let error = refused(name);
        assert!(matches!(&error, Error::NotMatrix { what, .. } if what == name), "{error}");
    }
    assert!(matches!(refused("ids"), Error::Kernel(_)));
    assert!(matches!(refused("no"), Error::NoTensor { name } if name == "no"));
}

#[test]
fn embedding_lookup_matches_candle() {
    for ty in [GgmlDType::Q4_1, GgmlDType::Q6K, GgmlDType::F16] {
        let (_, quantized) = sample(ty, 20, 256, 12);
        let ids = Tensor::new(&[[3u32, 19, 0], [7, 7, 1]], &Device::Cpu).expect("a tensor");
        let want = quantized.embedding(&ids).expect("rows");
        let linear = QLinear::from_qtensor(quantized).expect("packs");
        let got = linear.embedding(&ids).expect("rows");
        assert_eq!((got.dims(), bits(&got)), (&[2, 3, 256][..], bits(&want)), "{ty:?}");
        let signed = ids.to_dtype(DType::I64).expect("converts");
        assert_eq!(bits(&linear.embedding(&signed).expect("rows")), bits(&want));
        for id in [20i64, -1, i64::MAX, i64::MIN] {
            let error = linear.embedding(&Tensor::new(&[0, id], &Device::Cpu).expect("a tensor")).expect_err("no row");
            assert!(matches!(error, Error::NoRow { id: found, n_rows: 20 } if found == id), "{error}");
        }
        assert!(linear.embedding(&Tensor::new(&[0.5f32], &Device::Cpu).expect("a tensor")).is_err());
    }
}

#[test]
fn bias_is_added_and_gradients_flow_through() {
    let (plain, quantized) = sample(GgmlDType::Q5K, 24, 256, 13);
    let bias = Var::from_tensor(&tensor(&floats(24, &mut Random(14)), &[24])).expect("a variable");
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    let biased = linear.clone().with_bias(bias.as_tensor().clone()).expect("fits");
    let x = Var::from_tensor(&tensor(&floats(6 * 256, &mut Random(15)), &[2, 3, 256])).expect("a variable");
    let y = biased.forward(&x).expect("a product");
    let want = linear.forward(&x).and_then(|y| y.broadcast_add(&bias)).expect("a sum");
    assert_eq!(bits(&y), bits(&want));

    let gradients = y.sqr().and_then(|y| y.sum_all()).and_then(|y| y.backward()).expect("gradients");
    let (to_x, to_bias) = (gradients.get(&x).expect("of x"), gradients.get(&bias).expect("of the bias"));
    // d/dx sum(y^2) = 2 y W
    let twice = (y.detach() * 2.0).expect("a product");
    let want = twice.reshape((6, 24)).and_then(|y| y.matmul(&plain)).and_then(|d| d.reshape((2, 3, 256)));
    assert_eq!(bits(to_x), bits(&want.expect("a product")));
    let want = twice.sum((0, 1)).expect("a sum");
    assert!(relative_error(to_bias, &want) < 1e-6);
}

#[test]
fn concurrent_forward_calls_give_the_same_bits() {
    let (_, quantized) = sample(GgmlDType::Q4K, 300, 512, 16);
    let linear = QLinear::from_qtensor(quantized).expect("packs");
    let inputs: Vec<Tensor> = (1..6).map(|n| tensor(&floats(n * 512, &mut Random(n as u64)), &[n, 512])).collect();
    let want: Vec<_> = inputs.iter().map(|x| bits(&linear.forward(x).expect("a product"))).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    for (x, want) in inputs.iter().zip(&want) {
                        assert_eq!(&bits(&linear.forward(x).expect("a product")), want);
                    }
                }
            });
        }
    });
}

#[test]
fn rows_to_tensor_stacks_rows_of_equal_length() {
    let rows = [vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]];
    assert_eq!(rows_to_tensor(&rows).expect("equal").to_vec2::<f32>().expect("f32"), rows);
    assert_eq!(rows_to_tensor::<Vec<f32>>(&[]).expect("none").dims(), [0, 0]);
    let error = rows_to_tensor(&[&[1.0][..], &[2.0], &[]]).expect_err("unequal");
    assert!(matches!(error, Error::RowLength { row: 2, expected: 1, found: 0 }), "{error}");
}
