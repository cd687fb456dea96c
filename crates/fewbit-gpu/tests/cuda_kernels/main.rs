//! The CUDA kernels, compiled for the host, have the bits of the CPU for every operation, type and shape.
#![cfg(feature = "cuda")]

#[path = "../cuda_shim/mod.rs"]
mod cuda_shim;

mod attention;
mod experts;
mod memory;
mod products;
mod rows;

use fewbit_gpu::cuda::kernels::Module;
use memory::{Memory, params_bytes};

#[test]
fn parameters_have_the_size_that_the_compiler_of_the_kernels_gives_them() {
    use fewbit_gpu::cuda::kernels::*;
    use fewbit_model::KvType;
    use fewbit_quant::{ActivationKind, TensorType};
    let attend = AttendParams { n_rows: 1, n_heads: 1, n_kv_heads: 1, heads: 1, tokens: 1, ..AttendParams::default() };
    let product = ProductParams { n_rows: 1, n_out: 1, n_cols: 1, ..ProductParams::default() };
    let experts = ExpertParams { product, ..ExpertParams::default() };
    let rotate = RotateParams { head_dim: 1, ..RotateParams::default() };
    let gate = GateParams::default().launch(fewbit_kernels::GateFunction::Silu);
    for (launch, bytes) in [
        (NormParams::default().launch(), size_of::<NormParams>()),
        (QuantizeParams::default().launch(ActivationKind::Q8Block32), size_of::<QuantizeParams>()),
        (gate, size_of::<GateParams>()),
        (RowsParams::default().launch(RowsOp::Add), size_of::<RowsParams>()),
        (rotate.launch(fewbit_kernels::RopeStyle::HalfSplit), size_of::<RotateParams>()),
        (product.launch(TensorType::Q4_K), size_of::<ProductParams>()),
        (experts.launch(TensorType::Q4_K), size_of::<ExpertParams>()),
        (experts.launch_tiles(TensorType::Q4_K, 1), size_of::<ExpertParams>()),
        (GroupParams::default().launch(), size_of::<GroupParams>()),
        (RouteParams::default().launch(), size_of::<RouteParams>()),
        (RoutedParams::default().launch(true), size_of::<RoutedParams>()),
        (RoutedParams::default().launch(false), size_of::<RoutedParams>()),
        (CombineParams::default().launch(), size_of::<CombineParams>()),
        (AdaptParams::default().launch(true), size_of::<AdaptParams>()),
        (AppendParams::default().launch(KvType::Q8_0), size_of::<AppendParams>()),
        (attend.launches(KvType::Q8_0).remove(0), size_of::<AttendParams>()),
        (CeilingParams::default().launch(Ceiling::Read, 1), size_of::<CeilingParams>()),
        (CeilingParams::default().launch(Ceiling::Multiply, 1), size_of::<CeilingParams>()),
    ] {
        let Some(want) = params_bytes(&launch) else { return };
        assert_eq!(bytes as u64, want, "{}", launch.name);
    }
}

#[test]
fn types_with_the_same_layout_share_a_module() {
    use fewbit_quant::TensorType;
    assert_eq!(Module::of_product(TensorType::IQ2_XS), Module::Product(TensorType::IQ2_S));
    // 20 layouts of 22 quantized types, three types of floats, three of caches, and the other files.
    assert_eq!(Module::all().len(), 20 + 3 + 3 + 4);
}

#[test]
fn limits_of_a_device_are_measured_by_kernels_that_run() {
    use fewbit_gpu::cuda::kernels::{Ceiling, CeilingParams};
    let from = Memory::of(&(0..4000u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect::<Vec<_>>());
    let to = Memory::<u32>::new(512);
    let params = CeilingParams { from: from.address(), to: to.address(), n: 1000 };
    if memory::run(&params.launch(Ceiling::Read, 2), &params).is_none() {
        return;
    }
    let all = |words: &[u32]| words.iter().fold(0, |all, word| all ^ word);
    assert_eq!(all(to.get()), all(from.get()));
    let params = CeilingParams { n: 2, ..params };
    memory::run(&params.launch(Ceiling::Multiply, 2), &params);
    assert!(to.get().iter().any(|&word| word != 0));
}
