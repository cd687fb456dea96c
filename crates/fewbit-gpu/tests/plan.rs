//! Plans run by the interpreter give bit for bit the results of the CPU segment, for every feature of a configuration.

#[path = "../../fewbit-model/tests/support/random.rs"]
#[allow(dead_code)]
mod random;
mod support;

use fewbit_gpu::Interpreter;
use fewbit_gpu::plan::{Buffer, Op};
use fewbit_model::{Chunk, Decoder, DeviceError, KvType, LogitsFor, LoraSet, ModelError, Placement};
use fewbit_quant::TensorType;
use std::sync::Arc;
use support::golden::golden_models;
use support::{adapter, bits, logits, options};

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
fn sequences_move_from_the_cpu_to_a_plan_and_back() {
    let model = &golden_models()[0];
    let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    for ty in [KvType::F16, KvType::F32] {
        let load = |placement| Decoder::load(&file, &options(model).kv_type(ty).placement(placement)).expect("loads");
        let cpu = load(Placement::new());
        let n = cpu.config().n_layers();
        let half = load(Placement::new().cpu(1).device(n - 1, interpreter()));
        let mut cache = cpu.new_cache();
        let tokens = &model.tokens;
        logits(&cpu, &mut cache, &tokens[..9], 9);
        let mut saved = Vec::new();
        cache.serialize(&mut saved).expect("in memory");
        let mut moved = half.restore_cache(&LoraSet::default(), 9, &saved).expect("what was saved");
        let mut again = Vec::new();
        moved.serialize(&mut again).expect("in memory");
        assert!(again == saved, "{ty}");
        let want = bits(&logits(&cpu, &mut cache, &tokens[9..20], 64));
        assert!(bits(&logits(&half, &mut moved, &tokens[9..20], 3)) == want, "{ty}");
        // Two sequences with a common past, in one batch.
        let mut fork = moved.fork();
        let (a, b) = (&tokens[20..23], &tokens[5..7]);
        let batch = &mut [
            Chunk { cache: &mut fork, tokens: a, logits: LogitsFor::All },
            Chunk { cache: &mut moved, tokens: b, logits: LogitsFor::All },
        ];
        let got = half.forward(batch).expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        let mut other = cache.fork();
        let want = [logits(&cpu, &mut cache, a, 9), logits(&cpu, &mut other, b, 9)].concat();
        assert!(got == bits(&want), "{ty}: in one batch");
    }
}

#[test]
fn adapters_and_hidden_states_match_the_cpu() {
    let model = &golden_models()[0];
    let file = model.file();
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down"].map(|part| format!("blk.1.{part}.weight"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let path = adapter(folder.path(), &file, &names);
    let run = |placement: Placement| {
        let decoder = Decoder::load(&file, &options(model).placement(placement)).expect("loads");
        let lora = decoder.load_lora(&path).expect("an adapter of this model");
        let set = decoder.lora_set(&[(lora, 0.5)]).expect("of this model");
        let (mut adapted, mut plain) = (decoder.new_cache_with(&set), decoder.new_cache());
        let batch = &mut [
            Chunk { cache: &mut plain, tokens: &model.tokens[..5], logits: LogitsFor::All },
            Chunk { cache: &mut adapted, tokens: &model.tokens[..7], logits: LogitsFor::All },
        ];
        let mut out = decoder.forward(batch).expect("runs").values_mut().to_vec();
        let chunk = Chunk { cache: &mut adapted, tokens: &model.tokens[7..9], logits: LogitsFor::Hidden };
        out.extend(decoder.forward(&mut [chunk]).expect("runs").take_hidden());
        bits(&out)
    };
    let cpu = run(Placement::new());
    let n = Decoder::load(&file, &options(model)).expect("loads").config().n_layers();
    assert!(run(Placement::new().device(n, interpreter()).head(interpreter())) == cpu);
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
    let op = Op::Combine { has_shared: true, has_shared_score: false };
    assert_eq!(op.reads(), [Buffer::ExpertOut, Buffer::SharedOut]);
}
