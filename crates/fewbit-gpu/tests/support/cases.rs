//! What every backend that computes the CPU's bits must do: models on a device against the CPU.

use crate::models::random::Random;
use crate::models::{Shape, tiny_models};
use crate::support::families;
use crate::support::golden::{GoldenModel, golden_models, values};
use crate::support::{adapter, bits, logits, options};
use fewbit_format::{GgufFile, GgufWriter};
use fewbit_model::{
    Chunk, Decoder, Device, DeviceError, KvType, LoadOptions, LogitsFor, LoraSet, ModelError, Placement,
};
use fewbit_quant::TensorType;
use std::sync::Arc;

type AnyDevice = Arc<dyn Device>;

/// The last of two layers and the head on the device: both layers are alike.
pub(crate) fn last_of_two(device: &AnyDevice) -> Placement {
    Placement::new().cpu(1).device(1, device.clone()).head(device.clone())
}

/// All of so many layers and the head on the device.
pub(crate) fn on(device: &AnyDevice, n_layers: usize) -> Placement {
    Placement::new().device(n_layers, device.clone()).head(device.clone())
}

/// Compares the logits of tokens, computed with this placement in chunks of this size, with those of the CPU.
pub(crate) fn compare_on(
    placement: Placement,
    what: &str,
    file: &GgufFile,
    options: LoadOptions,
    tokens: &[u32],
    size: usize,
) {
    let options = options.threads(1);
    let cpu = Decoder::load(file, &options).expect("loads");
    let want = bits(&logits(&cpu, &mut cpu.new_cache(), tokens, 64));
    let gpu = Decoder::load(file, &options.placement(placement)).expect("loads");
    let got = bits(&logits(&gpu, &mut gpu.new_cache(), tokens, size));
    if got != want {
        let first = got.iter().zip(&want).position(|(a, b)| a != b).expect("of one length");
        let (got, want) = (f32::from_bits(got[first]), f32::from_bits(want[first]));
        panic!("{what}: {got:e}, not {want:e}, as logit {first}");
    }
}

/// Every part of a configuration.
pub(crate) fn configurations(device: &AnyDevice, size: usize) {
    for model in golden_models() {
        // Where each expert has a tensor of its own, alternating types would give the experts of one layer different
        // types.
        let types = match model.name.contains("a tensor for each") {
            true => [TensorType::Q4_0; 2],
            false => [TensorType::Q4_0, TensorType::Q8_0],
        };
        let tokens = &model.tokens[..9.min(model.tokens.len())];
        let (file, options) = (model.quantized(types), options(&model));
        let n_layers = Decoder::load(&file, &options).expect("loads").config().n_layers();
        compare_on(on(device, n_layers), &model.name, &file, options, tokens, size);
    }
}

/// Whole models of every family that GPUs run, all on the device or without the first layer, in chunks of these sizes.
pub(crate) fn families(device: &AnyDevice, types: [TensorType; 2], n_tokens: u32, sizes: [usize; 2]) {
    let tokens: Vec<u32> = (0..n_tokens).map(|i| (i * i / 3 + i * 7) % 60).collect();
    let mut names = Vec::new();
    for family in families::families() {
        let (file, options) = (family.file(types), family.options());
        let cpu = Decoder::load(&file, &options).unwrap_or_else(|error| panic!("{}: {error}", family.name));
        let (n_layers, refused) = (cpu.config().n_layers(), cpu.config().only_on_cpu());
        if let Some(what) = refused {
            let error = Decoder::load(&file, &options.placement(on(device, n_layers))).expect_err("refused");
            let found = error.device_error();
            assert!(
                matches!(found, Some(DeviceError::Unsupported { what: found }) if found == what),
                "{}: {error:?}",
                family.name
            );
            continue;
        }
        names.push(family.name.clone());
        for (on_cpu, size) in [0, 1].into_iter().zip(sizes) {
            let placement = Placement::new().cpu(on_cpu).device(n_layers - on_cpu, device.clone()).head(device.clone());
            compare_on(
                placement,
                &format!("{}, {on_cpu} layers on the CPU", family.name),
                &file,
                family.options(),
                &tokens,
                size,
            );
        }
    }
    assert_eq!(names, families::ON_GPUS);
}

/// Pages, windows, and heads of any size, with caches of these types.
pub(crate) fn pages(device: &AnyDevice, types: [&[KvType]; 2]) {
    let tokens: Vec<u32> = (0..262).map(|i| (i * i / 3 + i * 7) % 60).collect();
    for (i, model) in tiny_models().into_iter().enumerate() {
        for &ty in types[i % 2] {
            let what = format!("{}, {ty}", model.name);
            if !ty.supports(Decoder::load(&model.file, &LoadOptions::new()).expect("loads").config().head_dim) {
                continue;
            }
            let options = LoadOptions::new().threads(1).kv_type(ty);
            let cpu = Decoder::load(&model.file, &options).expect("loads");
            let gpu = Decoder::load(&model.file, &options.placement(last_of_two(device))).expect("loads");
            // The CPU computes most of the first page; the GPU continues across its end, in chunks that begin at odd
            // positions.
            let mut cache = cpu.new_cache();
            logits(&cpu, &mut cache, &tokens[..251], 64);
            let mut saved = Vec::new();
            cache.serialize(&mut saved).expect("in memory");
            let mut moved = gpu.restore_cache(&LoraSet::default(), 251, &saved).expect("what was saved");
            let want = bits(&logits(&cpu, &mut cache, &tokens[251..], 64));
            assert!(bits(&logits(&gpu, &mut moved, &tokens[251..257], 3)) == want[..6 * gpu.n_vocab()], "{what}");
            assert!(bits(&logits(&gpu, &mut moved, &tokens[257..], 1)) == want[6 * gpu.n_vocab()..], "{what}");
            // Rejected drafts: tokens are computed, and removed from the cache.
            assert_eq!(moved.truncate(253), 253);
            assert!(bits(&logits(&gpu, &mut moved, &tokens[253..], 9)) == want[2 * gpu.n_vocab()..], "{what}");
        }
    }
}

/// Random blocks of any type, with finite scales.
pub(crate) fn blocks(ty: TensorType, n_elems: usize, seed: u64) -> Vec<u8> {
    use TensorType::*;
    let mut bytes = Random(seed).blocks(ty, n_elems);
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        let at: &[usize] = match ty {
            Q5_1 | Q5_K => &[0, 2],
            Q2_K => &[80, 82],
            Q3_K => &[108],
            TQ1_0 => &[52],
            TQ2_0 => &[64],
            _ => &[],
        };
        at.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&half(0.002).to_le_bytes()));
        match ty {
            MXFP4 => block[0] = 122,
            // The bits of the scale are in the upper nibbles of four 16-bit words.
            IQ1_M => (0..4).for_each(|i| {
                let nibble = (half(0.02) >> (4 * i) & 15) as u8;
                block[49 + 2 * i] = block[49 + 2 * i] & 15 | nibble << 4;
            }),
            _ => {}
        }
    }
    bytes
}

fn half(x: f32) -> u16 {
    half::f16::from_f32(x).to_bits()
}

/// Two layers whose matrices all have this type.
pub(crate) fn model_of_type(ty: TensorType) -> GgufFile {
    let shape = Shape {
        dim: 256,
        ffn: 256,
        heads: 2,
        kv_heads: 1,
        head_dim: 128,
        window: None,
        tied: false,
        ty: TensorType::F32,
        other: TensorType::F32,
    };
    let plain = GgufFile::from_bytes(shape.writer(5).to_bytes().expect("a valid file")).expect("a valid file");
    let mut w = GgufWriter::with_metadata(plain.metadata().clone());
    for (i, tensor) in plain.tensors().iter().enumerate() {
        let n: u64 = tensor.shape.iter().product();
        let (ty, bytes) = match tensor.shape.len() {
            1 => (TensorType::F32, plain.tensor_bytes(tensor).to_vec()),
            _ => (
                ty,
                match ty {
                    TensorType::F32 => values(&tensor.name, n as usize, 0.2, 0.0),
                    ty => blocks(ty, n as usize, i as u64),
                },
            ),
        };
        w.tensor(&tensor.name, &tensor.shape, ty, bytes).expect("a valid tensor");
    }
    GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
}

/// Every weight type, in chunks of so many tokens.
pub(crate) fn weight_types(device: &AnyDevice, tokens: &[u32], size: usize) {
    for ty in TensorType::all().filter(|ty| ty.is_supported()) {
        let file = model_of_type(ty);
        compare_on(last_of_two(device), &ty.to_string(), &file, LoadOptions::new(), tokens, size);
    }
}

/// Experts that stay on the CPU.
pub(crate) fn cpu_experts(device: &AnyDevice) {
    let models = golden_models();
    let has_experts = |model: &&GoldenModel| {
        let decoder = Decoder::load(&model.file(), &options(model)).expect("loads");
        decoder.config().experts.is_some()
    };
    let model = models.iter().find(has_experts).expect("in the list");
    let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    let n = Decoder::load(&file, &options(model)).expect("loads").config().n_layers();
    let placement = on(device, n).cpu_experts(1);
    compare_on(placement, &model.name, &file, options(model), &model.tokens[..7], 4);
}

/// Sequences that go from the CPU to the device and back, are forked, and share pages.
pub(crate) fn moves(device: &AnyDevice, types: &[KvType]) {
    let model = &golden_models()[0];
    let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    for &ty in types {
        let load = |placement| Decoder::load(&file, &options(model).kv_type(ty).placement(placement)).expect("loads");
        let cpu = load(Placement::new());
        let n = cpu.config().n_layers();
        // The first layer and the head on the CPU, the other layers on the device.
        let gpu = load(Placement::new().cpu(1).device(n - 1, device.clone()));
        assert_eq!((gpu.fingerprint(), gpu.kv_page_bytes()), (cpu.fingerprint(), cpu.kv_page_bytes()), "{ty}");
        let tokens = &model.tokens;
        let mut cache = cpu.new_cache();
        logits(&cpu, &mut cache, &tokens[..9], 9);
        let mut saved = Vec::new();
        cache.serialize(&mut saved).expect("in memory");
        let mut moved = gpu.restore_cache(&LoraSet::default(), 9, &saved).expect("what was saved");
        let mut again = Vec::new();
        moved.serialize(&mut again).expect("the device works");
        assert!(again == saved, "{ty}: the same bytes");
        let want = bits(&logits(&cpu, &mut cache, &tokens[9..20], 64));
        assert!(bits(&logits(&gpu, &mut moved, &tokens[9..20], 3)) == want, "{ty}");
        // Two sequences with a common past, in one batch: the page to which both append is copied.
        let mut fork = moved.fork();
        let (a, b) = (&tokens[20..23], &tokens[5..7]);
        let batch = &mut [
            Chunk { cache: &mut fork, tokens: a, logits: LogitsFor::All },
            Chunk { cache: &mut moved, tokens: b, logits: LogitsFor::All },
        ];
        let got = gpu.forward(batch).expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        let mut other = cache.fork();
        let want = [logits(&cpu, &mut cache, a, 9), logits(&cpu, &mut other, b, 9)].concat();
        assert!(got == bits(&want), "{ty}: in one batch");
        // The CPU continues from a cache that was computed on the device.
        saved.clear();
        fork.serialize(&mut saved).expect("the device works");
        let mut back = cpu.restore_cache(&LoraSet::default(), fork.len(), &saved).expect("what was saved");
        let want = bits(&logits(&cpu, &mut cache, &tokens[..4], 4));
        assert!(bits(&logits(&cpu, &mut back, &tokens[..4], 4)) == want, "{ty}: back on the CPU");
        let pages = gpu.kv_pages();
        drop((fork, moved));
        assert!(gpu.kv_pages() < pages && gpu.kv_pages() == 0, "{ty}: everything is given back");
    }
}

/// Adapters of some rows, and hidden states.
pub(crate) fn adapters(device: &AnyDevice) {
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
    assert!(run(on(device, n)) == cpu);
}

/// Kernels are timed while that is asked for, with an adapter among them, and results stay the same.
pub(crate) fn timing(device: &AnyDevice) {
    let model = &golden_models()[0];
    let file = model.file();
    let folder = tempfile::tempdir().expect("a folder");
    let n = Decoder::load(&file, &options(model)).expect("loads").config().n_layers();
    let decoder = Decoder::load(&file, &options(model).placement(on(device, n))).expect("loads");
    let lora = decoder.load_lora(&adapter(folder.path(), &file, &["blk.1.attn_q.weight"])).expect("an adapter");
    let set = decoder.lora_set(&[(lora, 0.5)]).expect("of this model");
    let run = || {
        let mut cache = decoder.new_cache_with(&set);
        let mut all = logits(&decoder, &mut cache, &model.tokens[..5], 5);
        all.extend(logits(&decoder, &mut cache, &model.tokens[5..7], 1));
        bits(&all)
    };
    let want = run();
    let mut got = Vec::new();
    let timed = decoder.time_kernels(|| {
        got = run();
        Ok::<_, ModelError>(())
    });
    let timed = timed.expect("the device works");
    assert!(got == want, "timing changed results");
    let [(name, times)] = &timed[..] else { panic!("one device, not {timed:?}") };
    assert_eq!(*name, device.name());
    // Three steps, of each layer and of the head.
    let launches = |kernel: &str| times.iter().find(|time| time.kernel == kernel).map(|time| time.n_launches);
    assert_eq!((launches("Append"), launches("Attend")), (Some(3 * n as u64), Some(3 * n as u64)), "{times:?}");
    assert!(launches("Adapt").is_some_and(|launches| launches >= 3), "{times:?}");
    let products: Vec<_> = times.iter().filter(|time| time.kernel.starts_with("Product F32")).collect();
    assert_eq!(products.iter().map(|time| time.n_launches).sum::<u64>(), 3 * (7 * n as u64 + 1), "{times:?}");
    assert!(products.iter().all(|time| time.weight_bytes > 0 && !time.time.is_zero()), "{times:?}");
    assert!(times.is_sorted_by(|a, b| a.time >= b.time), "{times:?}");

    // Nothing is left of it, and a run that fails is an error.
    assert!(run() == want && device.stop_timing().is_empty());
    let failed = decoder.time_kernels(|| Err("no run"));
    assert_eq!(failed.err(), Some("no run"));
}
