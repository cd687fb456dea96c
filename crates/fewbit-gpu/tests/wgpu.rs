//! The wgpu backend on an adapter of this machine. In exact arithmetic, the results are bit for bit those of the CPU;
//! in native arithmetic, they are close.
//!
//! Without an adapter these tests are skipped, and report that in a line that the test harness does not hide. With
//! `FEWBIT_TEST_GPU=1` they fail instead. `cargo xtask gpu` sets it, after installing Debian's `mesa-vulkan-drivers`,
//! which needs no GPU.
#![cfg(feature = "wgpu")]

#[path = "../../fewbit-model/tests/support/mod.rs"]
#[allow(dead_code)]
mod models;
mod support;

// The support code of `fewbit-model` expects this module here.
use models::random;

use fewbit_format::GgufFile;
use fewbit_gpu::wgpu::{Arithmetic, Backend, WgpuDevice, devices};
use fewbit_model::{Chunk, Decoder, DeviceError, KvType, LoadOptions, LogitsFor, LoraSet, ModelError, Placement};
use fewbit_quant::TensorType;
use models::{Shape, tiny_models};
use std::io::Write;
use std::sync::{Arc, LazyLock, Once};
use support::golden::golden_models;
use support::{adapter, bits, logits, options};

/// The first adapter, of any kind. All tests share it, so that each kernel is compiled only once.
fn device(arithmetic: Arithmetic) -> Option<Arc<WgpuDevice>> {
    static DEVICES: LazyLock<[Result<Arc<WgpuDevice>, DeviceError>; 2]> = LazyLock::new(|| {
        // `cargo xtask gpu-check` tests any of several.
        let index = std::env::var("FEWBIT_TEST_DEVICE").ok().and_then(|index| index.parse().ok()).unwrap_or(0);
        [Arithmetic::Exact, Arithmetic::Native].map(|a| WgpuDevice::open(backend(), Some(index), a).map(Arc::new))
    });
    static REPORTED: Once = Once::new();
    match &DEVICES[usize::from(arithmetic == Arithmetic::Native)] {
        Ok(device) => Some(Arc::clone(device)),
        Err(error) if std::env::var("FEWBIT_TEST_GPU").is_ok_and(|v| v == "1") => {
            panic!("{error} (Debian: apt-get install mesa-vulkan-drivers)")
        }
        Err(error) => {
            REPORTED.call_once(|| {
                let line = format!("\nLEFT OUT, the tests on a GPU: {error} (`cargo xtask gpu` installs a driver)\n");
                std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
            });
            None
        }
    }
}

fn backend() -> Backend {
    if cfg!(target_vendor = "apple") { Backend::Metal } else { Backend::Vulkan }
}

/// The last of two layers and the head on the device: exact arithmetic is slow, and both layers are alike.
fn last_of_two(device: &Arc<WgpuDevice>) -> Placement {
    Placement::new().cpu(1).device(1, device.clone()).head(device.clone())
}

fn on(device: &Arc<WgpuDevice>, n_layers: usize) -> Placement {
    Placement::new().device(n_layers, device.clone()).head(device.clone())
}

/// Compares the logits of tokens, computed in chunks of this size, with those of the CPU.
fn compare(what: &str, file: &GgufFile, options: LoadOptions, tokens: &[u32], size: usize) {
    let Some(device) = device(Arithmetic::Exact) else { return };
    let n_layers = Decoder::load(file, &options).expect("loads").config().n_layers();
    compare_on(on(&device, n_layers), what, file, options, tokens, size);
}

/// Like [`compare`], with this placement of the layers.
fn compare_on(placement: Placement, what: &str, file: &GgufFile, options: LoadOptions, tokens: &[u32], size: usize) {
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

#[test]
fn every_configuration_has_the_bits_of_the_cpu() {
    for model in golden_models() {
        // Where each expert has a tensor of its own, alternating types would give the experts of one layer different
        // types.
        let types = match model.name.contains("a tensor for each") {
            true => [TensorType::Q4_0; 2],
            false => [TensorType::Q4_0, TensorType::Q8_0],
        };
        let tokens = &model.tokens[..9.min(model.tokens.len())];
        compare(&model.name, &model.quantized(types), options(&model), tokens, 4);
    }
}

#[test]
fn pages_windows_and_heads_of_any_size_have_the_bits_of_the_cpu() {
    let Some(device) = device(Arithmetic::Exact) else { return };
    let tokens: Vec<u32> = (0..262).map(|i| (i * i / 3 + i * 7) % 60).collect();
    for (i, model) in tiny_models().into_iter().enumerate() {
        // Pages do not depend on the weights, so f32 is tested with every other model only: plain heads and odd ones.
        let types = if i % 2 == 0 { &[KvType::F16, KvType::F32][..] } else { &[KvType::F16] };
        for &ty in types {
            let what = format!("{}, {ty}", model.name);
            let options = LoadOptions::new().threads(1).kv_type(ty);
            let cpu = Decoder::load(&model.file, &options).expect("loads");
            let gpu = Decoder::load(&model.file, &options.placement(last_of_two(&device))).expect("loads");
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
fn blocks(ty: TensorType, n_elems: usize, seed: u64) -> Vec<u8> {
    use TensorType::*;
    let mut bytes = random::Random(seed).blocks(ty, n_elems);
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
fn model_of_type(ty: TensorType) -> GgufFile {
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
    let mut w = fewbit_format::GgufWriter::with_metadata(plain.metadata().clone());
    for (i, tensor) in plain.tensors().iter().enumerate() {
        let n: u64 = tensor.shape.iter().product();
        let (ty, bytes) = match tensor.shape.len() {
            1 => (TensorType::F32, plain.tensor_bytes(tensor).to_vec()),
            _ => (
                ty,
                match ty {
                    TensorType::F32 => support::golden::values(&tensor.name, n as usize, 0.2, 0.0),
                    ty => blocks(ty, n as usize, i as u64),
                },
            ),
        };
        w.tensor(&tensor.name, &tensor.shape, ty, bytes).expect("a valid tensor");
    }
    GgufFile::from_bytes(w.to_bytes().expect("a valid file")).expect("a valid file")
}

#[test]
fn every_weight_type_has_the_bits_of_the_cpu() {
    let Some(device) = device(Arithmetic::Exact) else { return };
    for ty in TensorType::all().filter(|ty| ty.is_supported()) {
        let file = model_of_type(ty);
        compare_on(last_of_two(&device), &ty.to_string(), &file, LoadOptions::new(), &[3, 1, 4, 1], 4);
    }
}

#[test]
fn experts_on_the_cpu_have_the_bits_of_the_cpu() {
    let Some(device) = device(Arithmetic::Exact) else { return };
    let models = golden_models();
    let has_experts = |model: &&support::golden::GoldenModel| {
        let decoder = Decoder::load(&model.file(), &options(model)).expect("loads");
        decoder.config().experts.is_some()
    };
    let model = models.iter().find(has_experts).expect("in the list");
    let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    let n = Decoder::load(&file, &options(model)).expect("loads").config().n_layers();
    let placement = on(&device, n).cpu_experts(1);
    compare_on(placement, &model.name, &file, options(model), &model.tokens[..7], 4);
}

#[test]
fn prefill_in_tiles_has_the_bits_of_the_cpu() {
    let Some(device) = device(Arithmetic::Exact) else { return };
    let model = &golden_models()[0];
    let tokens: Vec<u32> = model.tokens.iter().copied().cycle().take(19).collect();
    // Blocks of 32 and of 256 columns, without and with minimums. A tile has 16 tokens: full ones, and one that is not.
    let (file, options) = (model.quantized([TensorType::Q4_0, TensorType::Q8_0]), options(model));
    let n = Decoder::load(&file, &options).expect("loads").config().n_layers();
    let placement = Placement::new().cpu(n - 1).device(1, device.clone()).head(device.clone());
    compare_on(placement, &model.name, &file, options, &tokens[..19], 19);
    for ty in [TensorType::Q4_1, TensorType::Q4_K] {
        let (file, placement) = (model_of_type(ty), Placement::new().cpu(1).device(1, device.clone()));
        compare_on(placement, &ty.to_string(), &file, LoadOptions::new(), &tokens[..17], 17);
    }
}

#[test]
fn sequences_move_between_the_cpu_and_a_device() {
    let Some(device) = device(Arithmetic::Exact) else { return };
    let model = &golden_models()[0];
    let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    for ty in [KvType::F16, KvType::F32] {
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

#[test]
fn adapters_and_hidden_states_match_the_cpu() {
    let Some(device) = device(Arithmetic::Exact) else { return };
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
    assert!(run(on(&device, n)) == cpu);
}

#[test]
fn native_arithmetic_is_close_to_the_cpu_and_deterministic() {
    let Some(device) = device(Arithmetic::Native) else { return };
    let tokens: Vec<u32> = (0..40).map(|i| (i * i / 3 + i * 7) % 60).collect();
    for model in tiny_models() {
        let cpu = Decoder::load(&model.file, &LoadOptions::new().threads(1)).expect("loads");
        let placement = on(&device, cpu.config().n_layers());
        let gpu = Decoder::load(&model.file, &LoadOptions::new().threads(1).placement(placement)).expect("loads");
        let want = logits(&cpu, &mut cpu.new_cache(), &tokens, 64);
        let got = logits(&gpu, &mut gpu.new_cache(), &tokens, 16);
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let worst = got.iter().zip(&want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        // An activation that is rounded to the neighboring code changes a logit by more than inexact arithmetic does.
        assert!(worst <= 0.02 * largest, "{}: {worst} of {largest}", model.name);
        assert!(bits(&logits(&gpu, &mut gpu.new_cache(), &tokens, 16)) == bits(&got), "{}: it repeats", model.name);
    }
}

/// The Kullback-Leibler divergence of `q` from `p`, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log = |x: &[f32]| {
        let top = x.iter().fold(f32::MIN, |m, &v| m.max(v));
        let sum: f64 = x.iter().map(|&v| f64::from(v - top).exp()).sum();
        let x: Vec<f64> = x.iter().map(|&v| f64::from(v - top) - sum.ln()).collect();
        x
    };
    log(p).iter().zip(log(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).expect("a vocabulary")
}

#[test]
fn native_arithmetic_follows_the_greedy_tokens_of_the_cpu() {
    let Some(device) = device(Arithmetic::Native) else { return };
    // In the program, because `cargo xtask gpu-check` runs it on machines without the repository.
    let bytes = include_bytes!("../../../tests/data/stories260K-f32.gguf");
    let original = GgufFile::from_bytes(bytes.to_vec()).expect("a valid file");
    let recipe = "Q8_0".parse().expect("a recipe");
    // With f32 weights only arithmetic rounds: 2e-11 nats on lavapipe. With quantized weights, a difference in the last
    // bit can move an activation to the next code: 4e-4 nats, and in one of 200 steps another token, which is 2 % less
    // likely on the CPU.
    let (exact, rounded) = ((1e-9, 0.0, 0), (2e-3, 0.05, 2));
    for (what, options, (most_nats, most_apart, most_steps)) in [
        ("as it is", LoadOptions::new(), exact),
        ("with a window of 64", LoadOptions::new().sliding_window(Some(64)), exact),
        ("in Q8_0", LoadOptions::new().quantize(recipe), rounded),
    ] {
        let options = options.threads(1);
        let cpu = Decoder::load(&original, &options).expect("loads");
        let placement = on(&device, cpu.config().n_layers());
        let gpu = Decoder::load(&original, &options.placement(placement)).expect("loads");
        let (mut here, mut there) = (cpu.new_cache(), gpu.new_cache());
        let (mut token, mut worst, mut parted) = (1, 0.0f64, 0);
        // Both continue with the CPU's tokens: otherwise all steps after a difference could not be compared.
        for step in 0..200 {
            let (want, got) = (logits(&cpu, &mut here, &[token], 1), logits(&gpu, &mut there, &[token], 1));
            worst = worst.max(divergence(&want, &got));
            let (best, other) = (argmax(&want), argmax(&got));
            if best != other {
                parted += 1;
                let gap = want[best] - want[other];
                assert!(gap < most_apart, "{what}: step {step} has a gap of {gap}");
            }
            token = best as u32;
        }
        assert!(worst < most_nats, "{what}: {worst:e}");
        assert!(parted <= most_steps, "{what}: {parted} steps");
    }
}

#[test]
fn ceilings_of_the_device_are_measured() {
    let Some(device) = device(Arithmetic::Native) else { return };
    use fewbit_model::Device;
    let ceilings = device.ceilings().expect("the device works").expect("measured by this backend");
    // A slow CPU and the fastest GPUs.
    assert!((1e8..1e14).contains(&ceilings.read_bytes_per_s), "{ceilings:?}");
    assert!((1e7..1e16).contains(&ceilings.int8_macs_per_s), "{ceilings:?}");
    let memory = device.memory();
    assert!(memory.total_bytes.is_some_and(|bytes| bytes > 64 << 20), "{memory:?}");
}

#[test]
fn unsupported_features_are_rejected_with_the_device_name() {
    let Some(device) = device(Arithmetic::Native) else { return };
    let refused = |error: ModelError| match error {
        ModelError::Device { device: name, source: DeviceError::Unsupported { what } } => {
            assert_eq!(name, device.info().name);
            what
        }
        other => panic!("{other:?}"),
    };
    let model = &tiny_models()[3];
    let options = LoadOptions::new().threads(1).kv_type(KvType::Q8_0).placement(on(&device, 2));
    assert!(refused(Decoder::load(&model.file, &options).expect_err("refused")).contains("q8_0"));

    let models = golden_models();
    let mixed = models.iter().find(|model| model.name.contains("a tensor for each")).expect("in the list");
    let file = mixed.quantized([TensorType::Q4_0, TensorType::Q8_0]);
    let error = Decoder::load(&file, &options_on(mixed, &device)).expect_err("refused");
    assert!(refused(error).contains("experts of different weight types"));

    let model = &models[0];
    let file = model.file();
    let decoder = Decoder::load(&file, &options_on(model, &device)).expect("loads");
    let mut collector = fewbit_model::quantize::Collector::default();
    let chunk = Chunk { cache: &mut decoder.new_cache(), tokens: &[1, 2], logits: LogitsFor::None };
    let error = decoder.forward_collecting(&mut [chunk], &mut collector).expect_err("refused");
    assert!(refused(error).contains("importance"));
}

fn options_on(model: &support::golden::GoldenModel, device: &Arc<WgpuDevice>) -> LoadOptions {
    let n_layers = Decoder::load(&model.file(), &options(model)).expect("loads").config().n_layers();
    options(model).placement(on(device, n_layers))
}

#[test]
fn missing_device_fails_with_an_error_listing_the_devices() {
    if device(Arithmetic::Native).is_none() {
        return;
    }
    let found = devices(backend()).expect("at least the one above");
    let error = WgpuDevice::open(backend(), Some(found.len()), Arithmetic::Native).err().expect("there are fewer");
    assert!(matches!(&error, DeviceError::Unavailable { why } if why.contains(&found[0].name)), "{error:?}");
    // A software renderer is only used if it is named.
    if found.iter().all(|info| info.is_software) {
        let error = WgpuDevice::open(backend(), None, Arithmetic::Native).err().expect("none is a GPU");
        assert!(matches!(&error, DeviceError::Unavailable { why } if why.contains("give its number")), "{error:?}");
    }
    let other = if backend() == Backend::Metal { Backend::Vulkan } else { Backend::Metal };
    assert!(matches!(devices(other), Err(DeviceError::Unavailable { .. })) || cfg!(windows));
}
