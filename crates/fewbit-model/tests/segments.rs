//! A model that is split into segments gives the bits of the whole one, whatever is done with its sequences, and
//! sequences stay unchanged when a device fails.

#[allow(dead_code)]
#[path = "support/golden.rs"]
mod golden;
#[path = "support/random.rs"]
#[allow(dead_code)]
mod random;
#[path = "support/run.rs"]
mod run;

use fewbit_format::GgufFile;
use fewbit_model::{
    AdapterPart, Chunk, Cpu, CpuDevice, Decoder, Device, Head, Isa, KvCache, KvType, LayerLoader, LoadOptions,
    LogitsFor, LoraSet, LowRank, ModelError, ModelPart, Placement, Segment, StateStore, Step,
};
use fewbit_quant::TensorType;
use golden::{GoldenModel, golden_models};
use run::{bits, logits, stories};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn options(model: &GoldenModel) -> LoadOptions {
    let mut options = LoadOptions::new();
    options.context_length = model.options.context_length;
    options
}

fn load(file: &GgufFile, placement: Placement) -> Decoder {
    Decoder::load(file, &LoadOptions::new().threads(2).placement(placement)).expect("loads")
}

/// Two segments, three segments, and one on a CPU of its own with another instruction set, the head with it.
fn cuts(n_layers: usize) -> Vec<Placement> {
    let other = || Arc::new(CpuDevice::new(Cpu::new(Isa::Scalar, 1).expect("always available")));
    let mut cuts = vec![
        Placement::new().cpu(1),
        Placement::new().cpu(n_layers - 1).cpu(1),
        Placement::new().cpu(1).device(n_layers - 1, other()).head(other()),
    ];
    if n_layers > 2 {
        cuts.push(Placement::new().cpu(1).cpu(1));
        cuts.push(Placement::new().cpu(1).device(n_layers - 2, other()).cpu(1));
    }
    cuts
}

fn some_tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i / 3 + i * 7) % 60).collect()
}

#[test]
fn segmented_model_has_the_bits_of_the_whole_model() {
    for model in golden_models() {
        let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
        let options = options(&model).threads(2);
        let whole = Decoder::load(&file, &options).expect("loads");
        let tokens = &model.tokens[..40.min(model.tokens.len())];
        let want = bits(&logits(&whole, &mut whole.new_cache(), tokens, 64));
        for placement in cuts(whole.config().n_layers()) {
            let what = format!("{}: {placement:?}", model.name);
            let cut = Decoder::load(&file, &options.clone().placement(placement)).expect("loads");
            assert!(cut.segments().count() > 1 && whole.segments().count() == 1, "{what}");
            assert_eq!(cut.segments().flatten().collect::<Vec<_>>(), (0..cut.config().n_layers()).collect::<Vec<_>>());
            assert!(bits(&logits(&cut, &mut cut.new_cache(), tokens, 7)) == want, "{what}");
            assert_eq!(cut.fingerprint(), whole.fingerprint(), "{what}: it is the same model");
            assert_eq!(cut.kv_page_bytes(), whole.kv_page_bytes(), "{what}");
        }
    }
}

#[test]
fn experts_on_the_cpu_give_the_bits_of_the_whole_model() {
    let other = || Arc::new(CpuDevice::new(Cpu::new(Isa::Scalar, 1).expect("always available")));
    let mut n_models = 0;
    for model in golden_models() {
        let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
        let options = options(&model).threads(2);
        let whole = Decoder::load(&file, &options).expect("loads");
        let (n, has_experts) = (whole.config().n_layers(), whole.config().experts.is_some());
        if !has_experts && n_models > 0 {
            continue;
        }
        n_models += 1;
        let tokens = &model.tokens[..30.min(model.tokens.len())];
        let want = bits(&logits(&whole, &mut whole.new_cache(), tokens, 64));
        for (on_cpu, n_experts) in [(0, 1), (0, usize::MAX), (1, 2), (1, 1)] {
            let placement = Placement::new().cpu(on_cpu).device(n - on_cpu, other()).head(other());
            let what = format!("{}: {on_cpu} layers and the experts of {n_experts} on the CPU", model.name);
            let options = options.clone().placement(placement.cpu_experts(n_experts));
            let cut = Decoder::load(&file, &options).expect("loads");
            assert!(bits(&logits(&cut, &mut cut.new_cache(), tokens, 7)) == want, "{what}");
            let same =
                |a: &Decoder, b: &Decoder| (a.fingerprint(), a.kv_page_bytes()) == (b.fingerprint(), b.kv_page_bytes());
            assert!(same(&cut, &whole), "{what}");
            let experts: Vec<_> =
                cut.placed().into_iter().filter(|p| matches!(p.part, ModelPart::Experts(_))).collect();
            let n_halved = if has_experts { n_experts.min(n).saturating_sub(on_cpu) } else { 0 };
            assert_eq!(experts.len(), n_halved, "{what}");
            assert!(experts.iter().all(|part| part.is_host && part.page_bytes == 0), "{what}");
        }
    }
    assert!(n_models > 2, "some models have experts");
}

#[test]
fn segmented_forks_prefixes_and_rollbacks_have_the_same_bits() {
    let file = stories();
    let whole = load(&file, Placement::new());
    let tokens: Vec<u32> = some_tokens(420);
    let want = bits(&logits(&whole, &mut whole.new_cache(), &tokens, 512));
    let row = whole.n_vocab();
    for placement in cuts(whole.config().n_layers()) {
        let what = format!("{placement:?}");
        let cut = load(&file, placement);
        let mut tree = cut.new_prefix_tree();
        let mut first = cut.new_cache();
        logits(&cut, &mut first, &tokens[..300], 512);
        // Two that go on from one: each copies the page that both append to, in every segment.
        let mut fork = first.fork();
        assert_eq!((cut.kv_pages(), fork.pages_to_append(1)), (2, 1), "{what}");
        logits(&cut, &mut fork, &[5; 40], 9);
        tree.insert(&tokens, &first);
        assert!(bits(&logits(&cut, &mut first, &tokens[300..], 50)) == want[300 * row..], "{what}: a fork");
        assert_eq!(cut.kv_pages(), 4, "{what}: one page for all three, and one for each");
        // Drafts that are rejected: computed, and taken back.
        let mut rolled = tree.find(&tokens[..290], &LoraSet::default());
        assert_eq!(rolled.len(), 290, "{what}");
        for at in (290..420).step_by(13) {
            logits(&cut, &mut rolled, &[7, 8, 9, 10], 4);
            assert_eq!(rolled.truncate(at), at);
            let next = &tokens[at..420.min(at + 13)];
            let got = bits(&logits(&cut, &mut rolled, next, 13));
            assert!(got == want[at * row..(at + next.len()) * row], "{what}: after a rollback to {at}");
        }
        // All of them in one batch.
        let (mut a, mut b) = (tree.find(&tokens[..256], &LoraSet::default()), cut.new_cache());
        let got = cut.forward(&mut [
            Chunk { cache: &mut a, tokens: &tokens[256..270], logits: LogitsFor::All },
            Chunk { cache: &mut b, tokens: &tokens[..20], logits: LogitsFor::All },
        ]);
        let got = got.expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        assert!(got == [&want[256 * row..270 * row], &want[..20 * row]].concat(), "{what}: in a batch");
        drop((first, fork, rolled, a, b));
        tree.clear();
        assert_eq!(cut.kv_pages(), 0, "{what}: everything is given back");
    }
}

#[test]
fn saved_sequence_continues_with_any_placement() {
    let file = stories();
    let tokens = some_tokens(300);
    for ty in KvType::ALL.into_iter().filter(|ty| ty.supports(8)) {
        let load = |placement| {
            let options = LoadOptions::new().threads(2).kv_type(ty).placement(placement);
            Decoder::load(&file, &options).expect("loads")
        };
        let whole = load(Placement::new());
        let mut cache = whole.new_cache();
        logits(&whole, &mut cache, &tokens, 512);
        let mut saved = Vec::new();
        cache.serialize(&mut saved).expect("the CPU does not fail");
        assert_eq!(saved.len() as u64, whole.cache_state_bytes(tokens.len()));
        let want = bits(&logits(&whole, &mut cache, &[1, 2, 3], 3));
        for placement in cuts(whole.config().n_layers()) {
            let what = format!("{ty}: {placement:?}");
            let cut = load(placement);
            let mut restored = cut.restore_cache(&LoraSet::default(), tokens.len(), &saved).expect("what was saved");
            let mut again = Vec::new();
            restored.serialize(&mut again).expect("the CPU does not fail");
            assert!(again == saved, "{what}: the same bytes");
            assert!(bits(&logits(&cut, &mut restored, &[1, 2, 3], 2)) == want, "{what}");
        }
    }
}

#[test]
fn placing_too_many_layers_is_rejected() {
    let placement = Placement::new().cpu(3).cpu(usize::MAX);
    let error = Decoder::load(&stories(), &LoadOptions::new().placement(placement)).expect_err("refused");
    assert!(matches!(error, ModelError::Placement { placed: usize::MAX, n_layers: 5 }), "{error:?}");
    // Parts without layers do not become segments.
    let padded = load(&stories(), Placement::new().cpu(0).cpu(5).cpu(0));
    assert!(padded.segments().eq(std::iter::once(0..5)));
}

/// The CPU, with a segment that fails now and then.
struct Fragile {
    cpu: CpuDevice,
    /// Steps until the next failure.
    left: Arc<AtomicUsize>,
}

struct FragileSegment {
    segment: Box<dyn Segment>,
    left: Arc<AtomicUsize>,
}

impl Device for Fragile {
    fn name(&self) -> String {
        "fragile".to_owned()
    }

    fn load_segment(&self, loader: &mut LayerLoader<'_>, layers: Range<usize>) -> Result<Box<dyn Segment>, ModelError> {
        let segment = self.cpu.load_segment(loader, layers)?;
        Ok(Box::new(FragileSegment { segment, left: Arc::clone(&self.left) }))
    }

    fn load_head(&self, loader: &mut LayerLoader<'_>) -> Result<Box<dyn Head>, ModelError> {
        self.cpu.load_head(loader)
    }
}

impl Segment for FragileSegment {
    fn layers(&self) -> Range<usize> {
        self.segment.layers()
    }

    fn weight_bytes(&self) -> u64 {
        self.segment.weight_bytes()
    }

    fn states(&self) -> Arc<dyn StateStore> {
        self.segment.states()
    }

    fn forward(&self, step: &mut Step<'_>, x: &mut [f32]) -> Result<(), ModelError> {
        // It has written half of what it should have.
        self.segment.forward(step, x)?;
        x.fill(f32::NAN);
        match self.left.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(ModelError::Internal { message: "the device is lost".to_owned() }),
            1 => panic!("its driver has a bug"),
            _ => Ok(()),
        }
    }

    fn load_adapter(&self, adapter: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        self.segment.load_adapter(adapter)
    }
}

#[test]
fn failing_device_leaves_sequences_unchanged() {
    let file = stories();
    let whole = load(&file, Placement::new());
    let tokens = some_tokens(40);
    let want = bits(&logits(&whole, &mut whole.new_cache(), &tokens, 64));
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let cpu = || CpuDevice::new(Cpu::new(Isa::best(), 1).expect("available"));
    let mut healthy = Decoder::load(&file, &LoadOptions::new().threads(1)).expect("loads").new_cache();
    let device = Arc::new(Fragile { cpu: cpu(), left: Arc::clone(&left) });
    let decoder = load(&file, Placement::new().cpu(2).device(3, device));
    for (fails_as, message) in [(0, "the device is lost"), (1, "its driver has a bug")] {
        let mut cache: KvCache = decoder.new_cache();
        // NaNs that the segment leaves reach only the logits, which are not looked at.
        left.store(usize::MAX, Ordering::Relaxed);
        logits(&decoder, &mut cache, &tokens[..20], 20);
        left.store(fails_as, Ordering::Relaxed);
        let chunk = Chunk { cache: &mut cache, tokens: &[1, 2, 3], logits: LogitsFor::Last };
        match decoder.forward(&mut [chunk]) {
            Err(ModelError::Internal { message: found }) => assert_eq!(found, message),
            other => panic!("{other:?}"),
        }
        assert_eq!(cache.len(), 20, "nothing was appended");
        // What it holds is what the whole model computes: it goes on elsewhere.
        let mut saved = Vec::new();
        cache.serialize(&mut saved).expect("the CPU does not fail");
        let mut moved = whole.restore_cache(&LoraSet::default(), 20, &saved).expect("what was saved");
        assert!(bits(&logits(&whole, &mut moved, &tokens[20..], 64)) == want[20 * whole.n_vocab()..]);
    }
    // A cache of another model is rejected before any device is called.
    let chunk = Chunk { cache: &mut healthy, tokens: &[1], logits: LogitsFor::Last };
    assert!(matches!(decoder.forward(&mut [chunk]), Err(ModelError::ForeignCache)));
}

#[test]
fn fingerprint_depends_on_weights_config_cache_and_arithmetic() {
    let model = &golden_models()[0];
    let (plain, other) = (model.file(), model.quantized([TensorType::Q8_0, TensorType::Q8_0]));
    let of = |file: &GgufFile, options: LoadOptions| Decoder::load(file, &options).expect("loads").fingerprint();
    let same = of(&plain, LoadOptions::new().threads(1));
    assert_eq!(of(&plain, LoadOptions::new().threads(2).isa(Isa::Scalar).context_length(50)), same);
    assert_ne!(of(&other, LoadOptions::new()), same);
    assert_ne!(of(&plain, LoadOptions::new().sliding_window(Some(30))), same);
    assert_ne!(of(&plain, LoadOptions::new().kv_type(KvType::F16)), same);
}

/// If this fails, fewbit computes other bits than before: raise `ARITHMETIC` in `fingerprint.rs`, so that saved
/// conversations of earlier versions are refused, and write the new hash here.
#[test]
fn arithmetic_version_is_raised_when_bits_change() {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for model in golden_models() {
        let file = model.quantized([TensorType::Q4_0, TensorType::Q8_0]);
        let decoder = Decoder::load(&file, &options(&model).threads(1).kv_type(KvType::F16)).expect("loads");
        for logit in bits(&logits(&decoder, &mut decoder.new_cache(), &model.tokens[..30], 64)) {
            hash = (hash ^ u64::from(logit)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    assert_eq!(hash, 0xfcd0_8033_04a5_e2bf, "these models' logits now have the hash {hash:#018x}");
}
