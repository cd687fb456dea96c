//! Layers on devices that fail: whatever was being computed goes on, with the same tokens.
//!
//! The device of most tests is a CPU that fails when it is told to, so they run everywhere. With the feature `cuda`, others run
//! the CUDA backend over a driver that computes on the CPU, as in `fewbit-gpu/tests/cuda.rs`. With the feature `wgpu`, the
//! last tests destroy a real one: the first adapter of this machine, or none, as in `fewbit-gpu/tests/wgpu.rs`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fewbit::evaluate::PerplexityOptions;
use fewbit::expert::decoder;
use fewbit::expert::engine::{
    AdaptedRows, AdapterPart, Cpu, CpuDevice, Device, DeviceError, Head, Isa, LayerLoader, LowRank, ModelError,
    Placement, Segment, StatePage, StateStore, Step,
};
use fewbit::{ErrorKind, FinishReason, Generate, Model, Speculation};

use crate::lora::adapter;
use crate::{STORIES, load, stories, together};

/// A CPU that can be lost, and whose memory for keys and values can be limited.
struct Fragile {
    cpu: CpuDevice,
    state: Arc<State>,
}

struct State {
    is_lost: AtomicBool,
    /// Steps until it is lost.
    steps_left: AtomicUsize,
    /// The most pages that it has memory for.
    most_pages: usize,
    /// The model whose pages are counted.
    model: Mutex<Option<Model>>,
}

impl State {
    fn error(&self, source: DeviceError) -> ModelError {
        ModelError::Device { device: "fragile".to_owned(), source }
    }

    fn check(&self) -> Result<(), ModelError> {
        match self.is_lost.load(Ordering::SeqCst) {
            true => Err(self.error(DeviceError::Lost { why: "a test".to_owned() })),
            false => Ok(()),
        }
    }

    /// Counts a step; from the last one on, everything fails.
    fn step(&self) -> Result<(), ModelError> {
        if self.steps_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.is_lost.store(true, Ordering::SeqCst);
        }
        self.check()
    }
}

/// A new device, which is lost in the step after this many, and the last layers of the stories model on it.
fn fragile(steps: usize, most_pages: usize) -> (Placement, Arc<State>) {
    let (is_lost, steps_left) = (AtomicBool::new(false), AtomicUsize::new(steps));
    let state = Arc::new(State { is_lost, steps_left, most_pages, model: Mutex::default() });
    let cpu = CpuDevice::new(Cpu::new(Isa::best(), 1).unwrap());
    let device = Arc::new(Fragile { cpu, state: Arc::clone(&state) });
    (Placement::new().cpu(2).device(3, device.clone()).head(device), state)
}

impl Device for Fragile {
    fn name(&self) -> String {
        "fragile".to_owned()
    }

    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError> {
        let segment = self.cpu.load_segment(loader, layers)?;
        Ok(Box::new(FragileSegment { segment, state: Arc::clone(&self.state) }))
    }

    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError> {
        Ok(Box::new(FragileHead { head: self.cpu.load_head(loader)?, state: Arc::clone(&self.state) }))
    }
}

struct FragileSegment {
    segment: Box<dyn Segment>,
    state: Arc<State>,
}

impl Segment for FragileSegment {
    fn layers(&self) -> Range<usize> {
        self.segment.layers()
    }

    fn weight_bytes(&self) -> u64 {
        self.segment.weight_bytes()
    }

    fn states(&self) -> Arc<dyn StateStore> {
        Arc::new(FragileStates { states: self.segment.states(), state: Arc::clone(&self.state) })
    }

    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError> {
        // What it leaves behind is of no use.
        self.state.step().inspect_err(|_| x.fill(f32::NAN))?;
        self.segment.forward(step, x)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.state.check()
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        self.state.check()?;
        self.segment.load_adapter(adapter)
    }
}

struct FragileHead {
    head: Box<dyn Head>,
    state: Arc<State>,
}

impl Head for FragileHead {
    fn n_vocab(&self) -> usize {
        self.head.n_vocab()
    }

    fn weight_bytes(&self) -> u64 {
        self.head.weight_bytes()
    }

    fn norm(&self, rows: &mut [f32]) -> Result<(), ModelError> {
        self.state.check()?;
        self.head.norm(rows)
    }

    fn logits(&self, rows: &[f32], loras: &[AdaptedRows], out: &mut [f32]) -> Result<(), ModelError> {
        self.state.check()?;
        self.head.logits(rows, loras, out)
    }

    fn check(&self) -> Result<(), ModelError> {
        self.state.check()
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        self.state.check()?;
        self.head.load_adapter(adapter)
    }
}

/// Pages of the device, of which there are at most so many.
struct FragileStates {
    states: Arc<dyn StateStore>,
    state: Arc<State>,
}

impl FragileStates {
    fn check_room(&self) -> Result<(), ModelError> {
        self.state.check()?;
        let n_pages = self.state.model.lock().unwrap().as_ref().map_or(0, |model| decoder(model).kv_pages());
        if n_pages >= self.state.most_pages {
            let needed_bytes = self.states.page_bytes() as u64;
            return Err(self.state.error(DeviceError::OutOfMemory { needed_bytes, free_bytes: Some(0) }));
        }
        Ok(())
    }
}

impl StateStore for FragileStates {
    fn page_bytes(&self) -> usize {
        self.states.page_bytes()
    }

    fn saved_bytes(&self) -> usize {
        self.states.saved_bytes()
    }

    fn new_page(&self) -> Result<StatePage, ModelError> {
        self.check_room()?;
        self.states.new_page()
    }

    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError> {
        self.check_room()?;
        self.states.copy_page(page)
    }

    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.state.check()?;
        self.states.save_page(page, out)
    }

    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError> {
        self.check_room()?;
        self.states.load_page(bytes)
    }
}

const TEXT: &str = "Once upon a time, there was a little girl named Lily. She loved to play and to run and to sing.";

/// Requests of all kinds.
fn request(model: &Model, i: usize) -> Generate {
    let text = if i.is_multiple_of(3) { TEXT.to_owned() } else { format!("{i} {}", &TEXT[i % 7..]) };
    let request = model.generate(text).seed(i as u64).max_tokens(40).ignore_eos(true);
    match i % 4 {
        0 => request.temperature(0.0),
        1 => request.temperature(1.2).speculation(Speculation::Always),
        2 => request
            .options(fewbit::GenerateOptions::new().share_prefix(false))
            .temperature(0.0)
            .seed(i as u64)
            .max_tokens(40),
        _ => request.temperature(0.7),
    }
}

/// Checks that the device was lost once, and that everything is on the CPU now and nothing is left over.
fn assert_moved(model: &Model) {
    assert_eq!(model.metrics().devices_lost, 1);
    assert!(model.placement().iter().all(|part| part.is_host && part.device.starts_with("cpu")), "{model:?}");
    assert_eq!(model.clear_prefixes().unwrap(), 0, "no page is left over");
}

#[test]
fn requests_go_on_with_the_same_tokens_when_a_device_is_lost() {
    let alone = load(|b| b.max_running(1).prefix_memory(0));
    let want: Vec<_> = (0..8).map(|i| request(&alone, i).run().unwrap()).collect();
    // While the prompts are computed, while some decode, and near the end.
    for steps in [0, 1, 5, 20, 38] {
        let (placement, state) = fragile(steps, usize::MAX);
        let model = load(|b| b.placement(placement).prefill_chunk(64));
        assert!(model.placement().iter().any(|part| part.device == "fragile"));
        let got = together(8, |i| request(&model, i).run().unwrap());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let (got, want) = ((&got.tokens, &got.text, got.usage.completion), (&want.tokens, &want.text, 40));
            assert_eq!(got, want, "request {i}, lost after {steps} steps");
        }
        assert!(state.is_lost.load(Ordering::SeqCst));
        assert_moved(&model);
        assert_eq!(model.metrics().outcomes.failed, 0);
    }
}

#[test]
fn adapters_conversations_and_scores_go_on_when_a_device_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (path, session) = (adapter(folder.path(), 3), folder.path().join("chat.session"));
    let text = [TEXT; 12].join(" ");
    let windows = PerplexityOptions::default().ctx(64).chunks(3);
    let run = |model: &Model, lose: &dyn Fn()| {
        let lora = model.load_lora(&path).unwrap();
        let adapted = || model.generate(TEXT).lora(&lora, 0.8).temperature(0.0).max_tokens(20).run().unwrap().tokens;
        let mut chat = model.chat().temperature(0.0).max_tokens(12).start().unwrap();
        let first = (adapted(), chat.send("Who is it?").unwrap().text);
        lose();
        // The cache is lost, but what was said is not.
        chat.save(&session).unwrap();
        let mut restored = model.chat().temperature(0.0).max_tokens(12).restore(&session).unwrap();
        let texts = (chat.send("And then?").unwrap().text, restored.send("And then?").unwrap().text);
        (first, texts, adapted())
    };
    let want = run(stories(), &|| {});
    let (placement, state) = fragile(usize::MAX, usize::MAX);
    let model = load(|b| b.placement(placement));
    assert_eq!(run(&model, &|| state.is_lost.store(true, Ordering::SeqCst)), want);
    drop(model);

    // What is scored, and what is embedded, is computed on the engine's thread too.
    let want = stories().perplexity(&text, &windows, |_| {}).unwrap().nll_per_token;
    let vector = stories().embed([&text[..]]).run().unwrap();
    for steps in [0, 1, 4] {
        let (placement, _state) = fragile(steps, usize::MAX);
        let model = load(|b| b.placement(placement));
        assert_eq!(model.perplexity(&text, &windows, |_| {}).unwrap().nll_per_token, want, "lost after {steps} steps");
        assert_moved(&model);
        let (placement, _state) = fragile(steps, usize::MAX);
        let model = load(|b| b.placement(placement).prefill_chunk(32));
        assert_eq!(model.embed([&text[..]]).run().unwrap().vectors, vector.vectors, "lost after {steps} steps");
        assert_moved(&model);
    }
}

#[test]
fn draft_model_on_a_lost_device_goes_on_drafting() {
    let want = stories().generate(TEXT).temperature(0.0).max_tokens(60).ignore_eos(true).run().unwrap().tokens;
    let (placement, _state) = fragile(7, usize::MAX);
    let draft = load(|b| b.placement(placement));
    let model = load(|b| b);
    let request = model.generate(TEXT).temperature(0.0).max_tokens(60).ignore_eos(true);
    let out = request.speculation(Speculation::Always).draft(&draft).run().unwrap();
    assert_eq!(out.tokens, want);
    // Eight tokens for a step are too many for the seven steps that there were before.
    assert!(out.usage.accepted > 20, "{:?}", out.usage);
    assert_eq!(draft.metrics().devices_lost, 1);
}

#[test]
fn lost_weights_that_cannot_be_read_again_fail_requests() {
    let bytes = std::fs::read(STORIES).unwrap();
    let error_of = |model: &Model| {
        let error = request(model, 0).run().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Model), "{error:?}");
        assert!(matches!(error.cause(), Some(DeviceError::Lost { .. })), "{error:?}");
        assert_eq!(model.metrics().devices_lost, 0);
    };
    let (placement, _state) = fragile(2, usize::MAX);
    error_of(&Model::builder().threads(1).placement(placement).load_bytes("from memory", bytes.clone()).unwrap());

    // A file that was replaced meanwhile is another model.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let (placement, _state) = fragile(2, usize::MAX);
    let model = Model::builder().threads(1).placement(placement).load_file(&path).unwrap();
    let mut other = bytes;
    let at = other.len() - 4096;
    other[at..].fill(0);
    std::fs::write(&path, &other).unwrap();
    error_of(&model);
    // When the file is there again, so is the model.
    std::fs::copy(STORIES, &path).unwrap();
    let want = request(stories(), 0).run().unwrap().tokens;
    assert_eq!(request(&model, 0).run().unwrap().tokens, want);
    assert_moved(&model);
}

#[test]
fn device_without_memory_for_more_pages_computes_fewer_requests_at_once() {
    let long = |model: &Model, i: usize| model.generate(TEXT).seed(i as u64).max_tokens(300).ignore_eos(true);
    let alone = load(|b| b.max_running(1).prefix_memory(0));
    let want: Vec<_> = (0..4).map(|i| long(&alone, i).run().unwrap().tokens).collect();
    let (placement, state) = fragile(usize::MAX, 3);
    let model = load(|b| b.placement(placement));
    *state.model.lock().unwrap() = Some(model.clone());
    let got = together(4, |i| long(&model, i).run().unwrap().tokens);
    assert!(got == want);
    let metrics = model.metrics();
    assert!(metrics.preempted > 0 && metrics.outcomes.failed == 0, "{metrics:?}");
    assert_eq!((metrics.kv_pages_limit, metrics.devices_lost), (3, 0));
    // One that is alone and finds no room ends, as with a limit of its own.
    let (placement, small) = fragile(usize::MAX, 1);
    let model = load(|b| b.placement(placement).prefix_memory(0));
    *small.model.lock().unwrap() = Some(model.clone());
    let out = long(&model, 0).run().unwrap();
    assert_eq!((out.finish_reason, out.usage.prompt + out.usage.completion), (FinishReason::Length, 257));
    for state in [state, small] {
        state.model.lock().unwrap().take();
    }
}

/// The tokens of a text with an adapter, of which `stop` is told the number of each piece, and those of a chat after it.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn adapted(model: &Model, adapter: &std::path::Path, stop: impl Fn(usize)) -> (Vec<u32>, Vec<u32>) {
    let lora = model.load_lora(adapter).unwrap();
    let request = model.generate(TEXT).lora(&lora, 0.7).temperature(0.0).max_tokens(16).ignore_eos(true);
    let mut tokens = Vec::new();
    for (i, piece) in request.stream().unwrap().enumerate() {
        tokens.extend(piece.unwrap().token_ids);
        stop(i);
    }
    let mut chat = model.chat().temperature(0.0).max_tokens(4).start().unwrap();
    (tokens, chat.send("Who?").unwrap().tokens)
}

/// Over a driver of CUDA that runs the kernels on the CPU.
#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use fewbit::expert::engine::{Device, Placement};
    use fewbit_gpu::cuda::CudaDevice;

    use super::{TEXT, adapted, adapter, assert_moved};
    use crate::fake_driver::FakeDriver;
    use crate::{load, stories, together};

    /// The last two layers of the stories model and its head on a device, whose driver has so much memory.
    fn placement(bytes: u64) -> Option<(Placement, Arc<FakeDriver>)> {
        let driver = FakeDriver::new(bytes)?;
        let device: Arc<dyn Device> = Arc::new(CudaDevice::with_driver(driver.clone()).unwrap());
        Some((Placement::new().cpu(3).device(2, Arc::clone(&device)).head(device), driver))
    }

    #[test]
    fn lost_device_is_replaced_by_the_cpu_in_mid_generation() {
        let folder = tempfile::tempdir().unwrap();
        let path = adapter(folder.path(), 5);
        let Some((placement, driver)) = placement(1 << 30) else { return };
        let model = load(|b| b.placement(placement));
        assert!(model.placement().iter().any(|part| part.device == "cuda:0 (a GPU of the tests)"));
        let want = adapted(stories(), &path, |_| {});
        // In the middle of a later step.
        let got = adapted(&model, &path, |i| {
            if i == 5 {
                driver.lose_after(40)
            }
        });
        assert_eq!(got, want);
        assert_moved(&model);
    }

    #[test]
    fn requests_together_get_the_tokens_of_the_cpu() {
        let Some((placement, _driver)) = placement(1 << 30) else { return };
        let model = load(|b| b.placement(placement));
        let run = |model: &fewbit::Model, i: usize| {
            let request = model.generate(format!("{i} {TEXT}")).seed(i as u64).max_tokens(6).ignore_eos(true);
            request.temperature(if i.is_multiple_of(2) { 0.0 } else { 1.1 }).run().unwrap().tokens
        };
        let got = together(4, |i| run(&model, i));
        let want: Vec<_> = (0..4).map(|i| run(stories(), i)).collect();
        assert_eq!(got, want);
        assert_eq!(model.metrics().devices_lost, 0);
    }
}

/// With an adapter of this machine, such as Mesa's lavapipe.
#[cfg(feature = "wgpu")]
mod gpu {
    use std::io::Write;
    use std::sync::Arc;

    use fewbit::expert::engine::{DeviceError, Placement};
    use fewbit::{DeviceName, ErrorKind, Inspection, Model, ModelBuilder, ModelPart, devices, expert};
    use fewbit_gpu::wgpu::{Arithmetic, Backend, WgpuDevice};

    use super::{TEXT, adapted, adapter, assert_moved};
    use crate::{STORIES, load, stories};

    /// The first adapter, opened anew; `None`, in a line that the test harness does not hide, if there is none.
    fn device(arithmetic: Arithmetic) -> Option<Arc<WgpuDevice>> {
        let backend = if cfg!(target_vendor = "apple") { Backend::Metal } else { Backend::Vulkan };
        match WgpuDevice::open(backend, Some(0), arithmetic) {
            Ok(device) => Some(Arc::new(device)),
            Err(error @ DeviceError::Unavailable { .. }) if std::env::var_os("FEWBIT_TEST_GPU").is_none() => {
                let line = format!("\nLEFT OUT, a test on a GPU: {error} (`cargo xtask gpu` installs a driver)\n");
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn destroyed_gpu_is_replaced_by_the_cpu_in_mid_generation() {
        let folder = tempfile::tempdir().unwrap();
        let path = adapter(folder.path(), 5);
        // In f32 native arithmetic gives the CPU's tokens too.
        for arithmetic in [Arithmetic::Exact, Arithmetic::Native] {
            let Some(device) = device(arithmetic) else { return };
            let placement = Placement::new().cpu(4).device(1, device.clone()).head(device.clone());
            let model = load(|b| b.placement(placement));
            assert!(model.placement().iter().any(|part| !part.is_host));
            let want = adapted(stories(), &path, |_| {});
            let got = adapted(&model, &path, |i| {
                if i == 5 {
                    device.destroy()
                }
            });
            assert_eq!(got, want, "{arithmetic:?}");
            assert_moved(&model);
        }
    }

    /// The stories model on the first adapter, which may be one that computes on the CPU.
    fn builder() -> ModelBuilder {
        let name = if cfg!(target_vendor = "apple") { DeviceName::Metal(Some(0)) } else { DeviceName::Vulkan(Some(0)) };
        Model::builder().threads(1).device(name)
    }

    fn tokens(model: &Model) -> Vec<u32> {
        model.generate(TEXT).temperature(0.0).max_tokens(12).ignore_eos(true).run().unwrap().tokens
    }

    #[test]
    fn as_many_layers_as_fit_are_on_the_gpu() {
        if device(Arithmetic::Native).is_none() {
            return;
        }
        let inspection = builder().inspect(STORIES).unwrap();
        let needed = |model: &Inspection| {
            let [device] = &model.devices(Some(512)).unwrap()[..] else { panic!("one device") };
            (device.needed_bytes, device.parts.clone())
        };
        let (all, parts) = needed(&inspection);
        assert_eq!(parts, [ModelPart::Layers(0..5), ModelPart::Head]);
        assert!(devices().iter().any(|device| device.name.contains(":0") && device.memory.total_bytes > Some(all)));

        // Less by a bit: the first layer stays on the CPU.
        let (less, parts) = needed(&builder().gpu_memory(all - 1).inspect(STORIES).unwrap());
        assert_eq!(parts, [ModelPart::Layers(1..5), ModelPart::Head]);
        assert!(less < all);
        let model = builder().gpu_memory(all - 1).load(STORIES).unwrap();
        let gpu: Vec<_> = model.placement().into_iter().filter(|part| !part.is_host).map(|part| part.part).collect();
        assert_eq!(gpu, [ModelPart::Layers(1..5), ModelPart::Head]);
        assert_eq!(tokens(&model), tokens(stories()));
        // What was estimated is enough: also for a prompt that fills the context.
        model.generate([TEXT; 16].join(" ")).max_tokens(2).run().unwrap();
        let [used] = &expert::decoder(&model).devices()[..] else { panic!("one device") };
        assert_eq!(
            used.weight_bytes,
            model.placement().iter().filter(|p| !p.is_host).map(|p| p.weight_bytes).sum::<u64>()
        );
        assert!(used.memory.free_bytes.unwrap() < less - used.weight_bytes, "{used:?} of {less}");
    }

    #[test]
    fn layers_that_do_not_fit_are_refused_with_figures() {
        if device(Arithmetic::Native).is_none() {
            return;
        }
        let refused = |builder: ModelBuilder| {
            let error = builder.load(STORIES).unwrap_err();
            let ErrorKind::Device { device } = error.kind() else { panic!("{error:?}") };
            assert!(device.contains(":0"), "{error:?}");
            match error.cause::<DeviceError>() {
                Some(&DeviceError::DoesNotFit { needed_bytes, free_bytes, fitting_layers }) => {
                    (needed_bytes, free_bytes, fitting_layers, format!("{error:#}"))
                }
                other => panic!("{other:?}"),
            }
        };
        let (needed, free, fitting, text) = refused(builder().gpu_layers(5).gpu_memory(3 << 20));
        assert!(needed > free && free == 3 << 20 && (1..5).contains(&fitting), "{needed} {free} {fitting}");
        assert!(text.contains("3 MiB of its memory are free") && text.contains("--gpu-layers"), "{text}");
        // So many do fit.
        let model = builder().gpu_layers(fitting).gpu_memory(3 << 20).load(STORIES).unwrap();
        assert_eq!(tokens(&model), tokens(stories()));
        // Not even one: that was asked for by name, so the CPU is not taken in its place.
        let (.., fitting, text) = refused(builder().gpu_memory(1 << 20));
        assert_eq!(fitting, 0);
        assert!(text.contains("not even one layer"), "{text}");
    }

    #[test]
    fn gpu_without_memory_for_more_keys_and_values_computes_fewer_requests_at_once() {
        let Some(device) = device(Arithmetic::Native) else { return };
        drop(device);
        let needed = builder().inspect(STORIES).unwrap().devices(Some(512)).unwrap()[0].needed_bytes;
        // As much as a few pages need, of the many that the CPU would have room for.
        let model = builder().gpu_memory(needed).kv_memory(1 << 30).prefix_memory(0).load(STORIES).unwrap();
        let text = [TEXT; 8].join(" ");
        let run = |model: &Model, i: usize| {
            let text = format!("{i} {text}");
            model.generate(text).temperature(0.0).max_tokens(3).ignore_eos(true).run().unwrap().tokens
        };
        let got = crate::together(12, |i| run(&model, i));
        let want: Vec<_> = (0..12).map(|i| run(stories(), i)).collect();
        assert!(got == want);
        let metrics = model.metrics();
        assert!(metrics.kv_pages_limit < 12 && metrics.outcomes.failed == 0, "{metrics:?}");
    }
}
