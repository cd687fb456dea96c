//! The wgpu backend on an adapter of this machine. In exact arithmetic, the results are bit for bit those of the CPU;
//! in native arithmetic, they are close.
//!
//! Without an adapter these tests are skipped, and report that in a line that the test harness does not hide. With
//! `FEWBIT_TEST_GPU=1` they fail instead. `cargo xtask gpu` sets it, after installing Debian's `mesa-vulkan-drivers`,
//! which needs no GPU.
#![cfg(feature = "wgpu")]

#[path = "support/cases.rs"]
mod cases;
#[path = "../../fewbit-model/tests/support/mod.rs"]
#[allow(dead_code)]
mod models;
mod support;

// The support code of `fewbit-model` expects this module here.
use models::random;

use cases::{compare_on, model_of_type};
use fewbit_format::GgufFile;
use fewbit_gpu::wgpu::{Arithmetic, Backend, WgpuDevice, devices};
use fewbit_model::{Chunk, Decoder, Device, DeviceError, KvType, LoadOptions, LogitsFor, ModelError, Placement};
use fewbit_quant::TensorType;
use models::tiny_models;
use std::io::Write;
use std::sync::{Arc, LazyLock, Once};
use support::golden::golden_models;
use support::{bits, logits, options};

/// The first adapter, of any kind. All tests share it, so that each kernel is compiled only once.
fn device(arithmetic: Arithmetic) -> Option<Arc<WgpuDevice>> {
    static DEVICES: LazyLock<[Result<Arc<WgpuDevice>, DeviceError>; 2]> =
        LazyLock::new(|| [Arithmetic::Exact, Arithmetic::Native].map(|arithmetic| open(arithmetic).map(Arc::new)));
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

fn open(arithmetic: Arithmetic) -> Result<WgpuDevice, DeviceError> {
    // `cargo xtask gpu-check` tests any of several.
    let index = std::env::var("FEWBIT_TEST_DEVICE").ok().and_then(|index| index.parse().ok()).unwrap_or(0);
    WgpuDevice::open(backend(), Some(index), arithmetic)
}

/// The adapter in exact arithmetic. It is slow.
fn exact() -> Option<Arc<dyn Device>> {
    Some(device(Arithmetic::Exact)?)
}

fn on(device: &Arc<WgpuDevice>, n_layers: usize) -> Placement {
    Placement::new().device(n_layers, device.clone()).head(device.clone())
}

fn backend() -> Backend {
    if cfg!(target_vendor = "apple") { Backend::Metal } else { Backend::Vulkan }
}

#[test]
fn every_configuration_has_the_bits_of_the_cpu() {
    let Some(device) = exact() else { return };
    cases::configurations(&device, 4);
}

#[test]
fn whole_families_have_the_bits_of_the_cpu() {
    let Some(device) = exact() else { return };
    cases::families(&device, [TensorType::Q4_0, TensorType::Q8_0], 7, [4, 3]);
}

#[test]
fn pages_windows_and_heads_of_any_size_have_the_bits_of_the_cpu() {
    let Some(device) = exact() else { return };
    // Pages do not depend on the weights, so f32 is tested with every other model only: plain heads and odd ones.
    cases::pages(&device, [&[KvType::F16, KvType::F32], &[KvType::F16, KvType::Q8_0]]);
}

#[test]
fn every_weight_type_has_the_bits_of_the_cpu() {
    let Some(device) = exact() else { return };
    cases::weight_types(&device, &[3, 1, 4, 1], 4);
}

#[test]
fn experts_on_the_cpu_have_the_bits_of_the_cpu() {
    let Some(device) = exact() else { return };
    cases::cpu_experts(&device);
}

#[test]
fn prefill_in_tiles_has_the_bits_of_the_cpu() {
    let Some(device) = exact() else { return };
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
    let Some(device) = exact() else { return };
    cases::moves(&device, &[KvType::F16, KvType::F32]);
}

#[test]
fn adapters_and_hidden_states_match_the_cpu() {
    let Some(device) = exact() else { return };
    cases::adapters(&device);
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
fn kernels_are_timed_by_the_clock_of_the_device() {
    if device(Arithmetic::Native).is_some() {
        // One of its own, because the steps of other tests would be counted too.
        cases::timing(&(Arc::new(open(Arithmetic::Native).expect("it is there")) as Arc<dyn Device>));
    }
}

#[test]
fn ceilings_of_the_device_are_measured() {
    let Some(device) = device(Arithmetic::Native) else { return };
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
