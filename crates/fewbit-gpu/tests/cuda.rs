//! The CUDA backend over a driver that runs the kernels on the CPU: results are bit for bit those of the CPU, and what fails
//! is said as such. It needs a C++ compiler; without one these tests are left out, which they say.
//!
//! With `FEWBIT_TEST_CUDA=0` those that compare bits run on the GPU with that number instead, as `cargo xtask gpu-check` does.
#![cfg(feature = "cuda")]

#[path = "support/cases.rs"]
mod cases;
#[allow(dead_code)]
mod cuda_shim;
#[allow(dead_code)]
mod fake_driver;
#[path = "../../fewbit-model/tests/support/mod.rs"]
#[allow(dead_code)]
mod models;
mod support;

// The support code of `fewbit-model` expects this module here.
use models::random;

use fake_driver::{FakeDriver, device};
use fewbit_format::GgufFile;
use fewbit_gpu::cuda::{CudaDevice, DeviceInfo};
use fewbit_model::{Chunk, Decoder, Device, DeviceError, KvType, LoadOptions, LogitsFor, ModelError, Placement};
use fewbit_quant::TensorType;
use std::sync::Arc;
use support::golden::golden_models;
use support::{bits, logits, options};

/// The number of the GPU to test, if there is one.
fn real() -> Option<usize> {
    std::env::var("FEWBIT_TEST_CUDA").ok().map(|number| number.parse().expect("the number of a device"))
}

/// A device, as the cases want it.
fn any() -> Option<Arc<dyn Device>> {
    match real() {
        Some(number) => Some(Arc::new(CudaDevice::open(Some(number)).expect("the GPU to test"))),
        None => Some(device()?.0),
    }
}

#[test]
fn every_configuration_has_the_bits_of_the_cpu() {
    let Some(device) = any() else { return };
    // In tiles, and in graphs of four rows and of one.
    for size in [9, 4] {
        cases::configurations(&device, size);
    }
}

#[test]
fn whole_families_have_the_bits_of_the_cpu() {
    let Some(device) = any() else { return };
    // In tiles, and in graphs of four rows.
    cases::families(&device, [TensorType::Q4_0, TensorType::Q8_0], 13, [9, 4]);
}

#[test]
fn pages_windows_and_heads_of_any_size_have_the_bits_of_the_cpu() {
    let Some(device) = any() else { return };
    cases::pages(&device, [&KvType::ALL, &KvType::ALL]);
}

#[test]
fn every_weight_type_has_the_bits_of_the_cpu() {
    let Some(device) = any() else { return };
    // Rows of a tile and of a graph of two.
    cases::weight_types(&device, &[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], 9);
}

#[test]
fn experts_on_the_cpu_have_the_bits_of_the_cpu() {
    let Some(device) = any() else { return };
    cases::cpu_experts(&device);
}

#[test]
fn sequences_move_between_the_cpu_and_a_device() {
    let Some(device) = any() else { return };
    cases::moves(&device, &[KvType::F16, KvType::F32]);
}

#[test]
fn kernels_are_timed_by_the_clock_of_the_device() {
    let Some(device) = any() else { return };
    cases::timing(&device);
}

#[test]
fn adapters_and_hidden_states_match_the_cpu() {
    let Some(device) = any() else { return };
    cases::adapters(&device);
}

/// A model of stories, of five layers.
fn stories() -> GgufFile {
    GgufFile::from_bytes(include_bytes!("../../../tests/data/stories260K-f32.gguf").to_vec()).expect("a valid file")
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).expect("a vocabulary") as u32
}

#[test]
fn stories_are_continued_with_the_bits_of_the_cpu_wherever_layers_are() {
    let Some(device) = any() else { return };
    let n_steps = if real().is_some() { 200 } else { 6 };
    let recipe = "Q8_0".parse().expect("a recipe");
    for (what, options) in [
        ("as it is", LoadOptions::new()),
        ("in Q8_0, with a window of 64", LoadOptions::new().quantize(recipe).sliding_window(Some(64))),
    ] {
        let options = options.threads(1);
        let cpu = Decoder::load(&stories(), &options).expect("loads");
        // A prompt that is longer than the window, in chunks; then greedy tokens, one at a time.
        let prompt: Vec<u32> = (0..70).map(|i| (i * i / 3 + i * 7) % 500 + 3).collect();
        let mut cache = cpu.new_cache();
        let mut want = vec![logits(&cpu, &mut cache, &prompt, 70).split_off(69 * cpu.n_vocab())];
        for _ in 0..n_steps {
            let token = argmax(want.last().expect("the prompt's"));
            want.push(logits(&cpu, &mut cache, &[token], 1));
        }
        let n = cpu.config().n_layers();
        for on_cpu in 0..=n {
            // The head is on the device, but where it is alone there.
            let placement = Placement::new().cpu(on_cpu).device(n - on_cpu, device.clone());
            let placement = if on_cpu == 1 { placement } else { placement.head(device.clone()) };
            let gpu = Decoder::load(&stories(), &options.clone().placement(placement)).expect("loads");
            let mut cache = gpu.new_cache();
            let mut got = vec![logits(&gpu, &mut cache, &prompt, 33).split_off(69 * gpu.n_vocab())];
            for _ in 0..n_steps {
                let token = argmax(got.last().expect("the prompt's"));
                got.push(logits(&gpu, &mut cache, &[token], 1));
            }
            for (step, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(bits(got) == bits(want), "{what}, {on_cpu} layers on the CPU: step {step}");
            }
        }
    }
}

#[test]
fn steps_of_few_rows_are_captured_once_and_repeated() {
    let Some((device, driver)) = device() else { return };
    let device: Arc<dyn Device> = device;
    let options = LoadOptions::new().threads(1);
    let cpu = Decoder::load(&stories(), &options).expect("loads");
    let gpu = Decoder::load(&stories(), &options.placement(cases::on(&device, 5))).expect("loads");
    // Eight sequences of different lengths, together and in part, so that rows and pages of the graphs change.
    let start = |decoder: &Decoder, i: usize| {
        let mut cache = decoder.new_cache();
        let tokens: Vec<u32> = (0..3 + 2 * i as u32).map(|t| (t * 31 + 7 * i as u32) % 500).collect();
        logits(decoder, &mut cache, &tokens, 64);
        cache
    };
    let mut here: Vec<_> = (0..8).map(|i| start(&cpu, i)).collect();
    let mut there: Vec<_> = (0..8).map(|i| start(&gpu, i)).collect();
    let before = driver.counts();
    for step in 0..12 {
        let n = [8, 4, 2, 1, 3, 8][step % 6];
        let tokens: Vec<u32> = (0..n).map(|i| (i * 13 + step * 29) as u32 % 500).collect();
        let run = |decoder: &Decoder, caches: &mut [fewbit_model::KvCache]| {
            let chunks = caches.iter_mut().zip(&tokens);
            let chunk = |(cache, token)| Chunk { cache, tokens: std::slice::from_ref(token), logits: LogitsFor::Last };
            let mut chunks: Vec<_> = chunks.map(chunk).collect();
            decoder.forward(&mut chunks).expect("runs").values_mut().to_vec()
        };
        assert!(bits(&run(&gpu, &mut there[..n])) == bits(&run(&cpu, &mut here[..n])), "step {step}");
    }
    let after = driver.counts();
    assert_eq!(after.replays - before.replays, 24, "each step, in the layers and in the head");
    // Some sizes were captured for the prompts, which end with a row for the head.
    assert!(after.captures - before.captures <= 10, "{before:?}, {after:?}");
    drop((here, there, gpu, device));
    assert_eq!(driver.used_bytes(), 0, "everything is given back");
}

#[test]
fn many_pages_are_attended_to_with_the_bits_of_the_cpu() {
    let Some(device) = any() else { return };
    let model = &models::tiny_models()[0];
    let tokens: Vec<u32> = (0..1100).map(|i| (i * i / 3 + i * 7) % 60).collect();
    let load =
        |placement| Decoder::load(&model.file, &LoadOptions::new().threads(1).placement(placement)).expect("loads");
    let (cpu, gpu) = (load(Placement::new()), load(cases::last_of_two(&device)));
    // The CPU computes what is before: four pages, of which the last one ends just before the next begins.
    let mut cache = cpu.new_cache();
    logits(&cpu, &mut cache, &tokens[..1022], 512);
    let mut saved = Vec::new();
    cache.serialize(&mut saved).expect("in memory");
    let mut moved = gpu.restore_cache(&Default::default(), 1022, &saved).expect("what was saved");
    let mut want = logits(&cpu, &mut cache, &tokens[1022..1037], 64);
    for (at, size) in [(1022, 1), (1023, 1), (1024, 1), (1025, 3), (1028, 9)] {
        let got = logits(&gpu, &mut moved, &tokens[at..at + size], size);
        let rest = want.split_off(got.len());
        assert!(bits(&got) == bits(&want), "{size} rows at {at}");
        want = rest;
    }
}

#[test]
fn memory_that_runs_out_is_reported_with_figures() {
    let Some(driver) = FakeDriver::new(300 << 10) else { return };
    let device: Arc<dyn Device> = Arc::new(CudaDevice::with_driver(driver.clone()).expect("a device"));
    let options = LoadOptions::new().threads(1).placement(cases::on(&device, 5));
    // Before anything is loaded, by the estimate.
    match Decoder::load(&stories(), &options).expect_err("1 MB of weights") {
        ModelError::Device { source: DeviceError::DoesNotFit { needed_bytes, free_bytes, .. }, .. } => {
            assert!(needed_bytes > free_bytes && free_bytes == 300 << 10, "{needed_bytes}, {free_bytes}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(driver.used_bytes(), 0);

    // When pages grow: the weights fit, and what is free is enough for some pages.
    let Some(driver) = FakeDriver::new(64 << 20) else { return };
    let device: Arc<dyn Device> =
        Arc::new(CudaDevice::with_driver(driver.clone()).expect("a device").limit_memory(6 << 20));
    let options = LoadOptions::new().threads(1).placement(cases::on(&device, 5));
    let gpu = Decoder::load(&stories(), &options).expect("it fits");
    let mut caches = Vec::new();
    let error = loop {
        let mut cache = gpu.new_cache();
        let chunk = Chunk { cache: &mut cache, tokens: &[1], logits: LogitsFor::None };
        if let Err(error) = gpu.forward(&mut [chunk]) {
            break error;
        }
        caches.push(cache);
        assert!(caches.len() < 200, "6 MiB are not endless");
    };
    match error {
        ModelError::Device { device, source: DeviceError::OutOfMemory { needed_bytes, free_bytes: Some(free) } } => {
            assert_eq!(device, "cuda:0");
            assert!(needed_bytes > free, "{needed_bytes}, {free}");
        }
        other => panic!("{other:?}"),
    }
    // Those that there are go on, and memory that is given back can be used again.
    assert!(caches.len() >= 4, "{}", caches.len());
    logits(&gpu, &mut caches[0], &[2], 1);
    caches.truncate(2);
    logits(&gpu, &mut gpu.new_cache(), &[3], 1);
}

#[test]
fn lost_device_is_reported_by_everything_on_it() {
    let Some((device, driver)) = device() else { return };
    let device: Arc<dyn Device> = device;
    let options = LoadOptions::new().threads(1).placement(cases::on(&device, 5));
    let gpu = Decoder::load(&stories(), &options).expect("loads");
    let mut cache = gpu.new_cache();
    logits(&gpu, &mut cache, &[1, 2, 3], 3);
    driver.lose_after(20);
    let mut step = || gpu.forward(&mut [Chunk { cache: &mut cache, tokens: &[4], logits: LogitsFor::Last }]).map(drop);
    for _ in 0..2 {
        match step().expect_err("it is lost in the middle of the step") {
            ModelError::Device { device, source: DeviceError::Lost { why } } => {
                assert_eq!(device, "cuda:0");
                assert!(why.contains("CUDA_ERROR_LAUNCH_FAILED"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(cache.len(), 3, "no sequence got longer");
    assert!(cache.serialize(&mut Vec::new()).is_err());
}

#[test]
fn ceilings_of_a_gpu_are_measured() {
    // A CPU would take hours for as much as a GPU does; that the two kernels run is tested in `cuda_kernels`.
    let Some(number) = real() else { return };
    let device = CudaDevice::open(Some(number)).expect("the GPU to test");
    let ceilings = device.ceilings().expect("the device works").expect("measured by this backend");
    assert!((1e10..1e14).contains(&ceilings.read_bytes_per_s), "{ceilings:?}");
    assert!((1e11..1e16).contains(&ceilings.int8_macs_per_s), "{ceilings:?}");
}

#[test]
fn devices_that_the_kernels_do_not_run_on_are_refused() {
    let refused = DeviceInfo::new("cuda:0", "GeForce GTX 1080", (6, 1)).check().expect_err("Pascal");
    assert!(refused.to_string().contains("compute capability 6.1; 7.5 is needed"), "{refused}");
    assert_eq!(DeviceInfo::new("cuda:0", "T4", (7, 5)).check(), Ok(()));
    assert_eq!(DeviceInfo::new("cuda:0", "B200", (10, 0)).check(), Ok(()));
    // Without a driver there is a reason, and no panic.
    if let Err(error) = fewbit_gpu::cuda::devices() {
        assert!(matches!(error, DeviceError::Unavailable { .. }), "{error:?}");
        let opened = CudaDevice::open(Some(0)).err().expect("as listing them");
        assert_eq!(opened, error);
    }
}

#[test]
fn unsupported_features_are_rejected_with_the_device_name() {
    let Some(device) = any() else { return };
    let model = &golden_models()[0];
    let file = model.file();
    let n = Decoder::load(&file, &options(model)).expect("loads").config().n_layers();
    let decoder = Decoder::load(&file, &options(model).placement(cases::on(&device, n))).expect("loads");
    let mut collector = fewbit_model::quantize::Collector::default();
    let chunk = Chunk { cache: &mut decoder.new_cache(), tokens: &[1, 2], logits: LogitsFor::None };
    match decoder.forward_collecting(&mut [chunk], &mut collector).expect_err("refused") {
        ModelError::Device { device, source: DeviceError::Unsupported { what } } => {
            assert_eq!(device, "cuda:0");
            assert!(what.contains("importance"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}
