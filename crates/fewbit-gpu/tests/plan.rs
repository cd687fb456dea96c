//! Plans run by the interpreter give bit for bit the results of the CPU segment, for every feature of a configuration.

#[path = "support/cases.rs"]
#[allow(dead_code)]
mod cases;
#[path = "../../fewbit-model/tests/support/mod.rs"]
#[allow(dead_code)]
mod models;
mod support;

// The support code of `fewbit-model` expects this module here.
use models::random;

use fewbit_gpu::Interpreter;
use fewbit_gpu::plan::{Buffer, Op};
use fewbit_model::{Chunk, Decoder, Device, DeviceError, KvType, LogitsFor, ModelError, Placement};
use fewbit_quant::TensorType;
use std::sync::Arc;
use support::golden::golden_models;
use support::{bits, logits, options};

fn interpreter() -> Arc<Interpreter> {
    Arc::new(Interpreter::new().expect("one thread"))
}

#[test]
fn plans_have_the_bits_of_the_cpu_in_every_configuration() {
    for model in golden_models() {
        let tokens = &model.tokens[..24.min(model.tokens.len())];
        // Where each expert has a tensor of its own, alternating types would give the experts of one layer different
        // types.
        let in_turn = |[a, b]: [TensorType; 2]| if model.name.contains("a tensor for each") { [a, a] } else { [a, b] };
        for (file, what) in [
            (model.file(), "f32"),
            (model.quantized(in_turn([TensorType::Q4_0, TensorType::Q8_0])), "Q4_0 and Q8_0"),
            (model.quantized(in_turn([TensorType::Q4_1, TensorType::F16])), "Q4_1 and F16"),
        ] {
            let what = format!("{}, {what}", model.name);
            let cpu = Decoder::load(&file, &options(&model)).expect("loads");
            let n = cpu.config().n_layers();
            let want = bits(&logits(&cpu, &mut cpu.new_cache(), tokens, 64));
            let placement = Placement::new().device(n, interpreter()).head(interpreter());
            let planned = Decoder::load(&file, &options(&model).placement(placement)).expect("loads");
            assert!(bits(&logits(&planned, &mut planned.new_cache(), tokens, 7)) == want, "{what}");
            assert_eq!(planned.fingerprint(), cpu.fingerprint(), "{what}: it is the same model");
        }
    }
}

#[test]
fn plans_of_whole_families_have_the_bits_of_the_cpu() {
    let interpreter = interpreter() as Arc<dyn Device>;
    for types in [[TensorType::F32; 2], [TensorType::Q4_0, TensorType::Q8_0]] {
        cases::families(&interpreter, types, 24, [24, 7]);
    }
}

#[test]
fn sequences_move_from_the_cpu_to_a_plan_and_back() {
    cases::moves(&(interpreter() as Arc<dyn Device>), &[KvType::F16, KvType::F32]);
}

#[test]
fn adapters_and_hidden_states_match_the_cpu() {
    cases::adapters(&(interpreter() as Arc<dyn Device>));
}

#[test]
fn collecting_importance_is_rejected_with_the_device_name() {
    let model = &golden_models()[0];
    let file = model.file();
    let placement = Placement::new().device(1, interpreter());
    let decoder = Decoder::load(&file, &options(model).placement(placement)).expect("loads");
    let mut collector = fewbit_model::quantize::Collector::default();
    let (mut cache, tokens) = (decoder.new_cache(), &model.tokens[..3]);
    let chunk = Chunk { cache: &mut cache, tokens, logits: LogitsFor::None };
    let error = decoder.forward_collecting(&mut [chunk], &mut collector).expect_err("refused");
    match error {
        ModelError::Device { device, source: DeviceError::Unsupported { .. } } => assert_eq!(device, "interpreter"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn experts_of_different_types_in_a_layer_are_rejected() {
    let models = golden_models();
    let mixed = models.iter().find(|model| model.name.contains("a tensor for each")).expect("in the list");
    let placement = Placement::new().device(1, interpreter());
    let file = mixed.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    let error = Decoder::load(&file, &options(mixed).placement(placement)).expect_err("refused");
    match error {
        ModelError::Device { source: DeviceError::Unsupported { what }, .. } => {
            assert!(what.contains("experts of different weight types"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn operations_list_the_buffers_they_read_and_write() {
    let op = Op::Gate { gate: Buffer::Gate, up: Buffer::Up };
    assert_eq!((op.reads(), op.writes()), (vec![Buffer::Gate, Buffer::Up], Some(Buffer::Gate)));
    let op = Op::Combine { weighs: true, has_shared: true, has_shared_score: false };
    assert_eq!(op.reads(), [Buffer::ExpertOut, Buffer::SharedOut]);
    let op = Op::Weigh { from: Buffer::Normed, to: Buffer::ExpertIn };
    assert_eq!((op.reads(), op.writes()), (vec![Buffer::Normed], Some(Buffer::ExpertIn)));
}
