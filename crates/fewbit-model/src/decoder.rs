//! A loaded model (embedding, segments, head), and the checks around a step through them.

use crate::batch::{Chunk, Logits, LogitsFor};
use crate::cache::KvCache;
use crate::cpu::{CpuDevice, MtpLayer, attention_shape, no_states};
use crate::embedding::{Embedding, LayerEmbedding};
use crate::fingerprint::TensorHashes;
use crate::load::{LoadOptions, Placed, host_cpu};
use crate::loader::{LayerLoader, LayerPart};
use crate::lora::{
    self, AdaptedRows, AdapterPart, Fused, Lora, LoraError, LoraModel, LoraSet, LoraTarget, LowRank, WeakLora,
    adapted_rows,
};
use crate::memory::{PartEstimates, check_fits, default_kv_type};
use crate::pages::{FixedStores, PageKind};
use crate::placed::{DeviceUse, ModelPart, PlacedPart};
use crate::prefix::PrefixTree;
use crate::quantize::Collector;
use crate::quantize::{Quantized, Recipe};
use crate::rope::{Rope, RopeAngles};
use crate::segment::{Device, DeviceCeilings, Head, KernelTime, Segment, Step};
use crate::state::StateStore;
use crate::{KvType, ModelConfig, ModelError};
use fewbit_checkpoint::names::{self, Part};
use fewbit_checkpoint::{CheckpointError, WeightSource};
use fewbit_kernels::{Activations, Cpu, Isa, PAGE, ThreadPool};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Largest number of logits whose memory is kept for reuse.
const MOST_RECYCLED: usize = 1 << 24;

/// A loaded model.
pub struct Decoder {
    config: ModelConfig,
    embedding: Embedding,
    layer_embedding: Option<LayerEmbedding>,
    /// Replaced when a device is lost.
    parts: RwLock<Arc<Parts>>,
    rope: Rope,
    /// The host's instruction set and threads.
    cpu: Cpu,
    /// The CPU as a device.
    here: CpuDevice,
    /// The other devices that the model was placed on.
    devices: Vec<Arc<dyn Device>>,
    /// The recipe that the weights were quantized with as they were read.
    recipe: Option<Recipe>,
    /// The hashes of all tensors, if some are on other devices and might have to be read again.
    hashes: Option<TensorHashes>,
    /// The adapters, if parts of them might have to be loaded again.
    loras: Mutex<Vec<WeakLora>>,
    pages: Arc<PageKind>,
    fused: Vec<Fused>,
    fingerprint: u128,
    /// Buffers of a step. They are locked for the whole step, so that steps of different callers run in turn.
    buffers: Mutex<Buffers>,
}

/// The parts of a model that are on devices.
pub(crate) struct Parts {
    /// The segments in the order of their layers, each with at least one layer, or halves of layers.
    pub(crate) segments: Vec<(LayerPart, Arc<dyn Segment>)>,
    head: Arc<dyn Head>,
    /// The layer that predicts a further token, which comes after the segments in pages.
    pub(crate) mtp: Option<Arc<MtpLayer>>,
    /// The embedding, the segments, the head.
    placed: Vec<PlacedPart>,
}

impl Parts {
    /// Passes a part of an adapter to the device of its matrix.
    fn load_adapter(&self, part: &LowRank<'_>) -> Result<AdapterPart, ModelError> {
        let mut segments = self.segments.iter().map(|(_, segment)| segment);
        // Of halves the first one: no adapter changes experts.
        match segments.find(|segment| segment.layers().contains(&part.layer)) {
            Some(segment) if part.target != LoraTarget::Output => segment.load_adapter(part),
            _ => self.head.load_adapter(part),
        }
    }

    fn stores(&self) -> Vec<Arc<dyn StateStore>> {
        let of_segments = self.segments.iter().map(|(_, segment)| segment.states());
        of_segments.chain(self.mtp.as_ref().map(|mtp| mtp.states())).collect()
    }

    /// The stores of recurrent layers and of the last hidden state for drafts, if there are such.
    fn fixed_stores(&self) -> Option<FixedStores> {
        let of_segments = self.segments.iter().map(|(_, segment)| segment.fixed_states());
        let stores: Vec<_> = of_segments.chain(self.mtp.as_ref().map(|mtp| Some(mtp.fixed_states()))).collect();
        stores.iter().any(Option::is_some).then(|| {
            let stores = stores.into_iter().map(|stores| stores.unwrap_or_else(|| [no_states(), no_states()]));
            let (states, logs) = stores.map(|[states, logs]| (states, logs)).unzip();
            FixedStores { states, logs }
        })
    }
}

/// Buffers of a step on the host.
#[derive(Default)]
pub(crate) struct Buffers {
    /// `[n_tokens, dim]`: the residual stream.
    pub(crate) x: Vec<f32>,
    /// Rotary angles of every token's position, for global layers and for local ones.
    pub(crate) global: RopeAngles,
    pub(crate) local: RopeAngles,
    /// `[n_tokens]`: factors of the queries.
    pub(crate) temperatures: Vec<f32>,
    /// `[n_tokens, n_layers, per_layer_dim]`: what each layer gets of the per-layer embeddings.
    per_layer: Vec<f32>,
    /// `[n_tokens]`, and the input of the projection to it.
    tokens: Vec<u32>,
    input: Activations,
    /// `[n_wanted, dim]`: the rows for the head.
    wanted: Vec<f32>,
    /// `[n_tokens, dim]`: embeddings and last hidden states, in models that draft.
    embedded: Vec<f32>,
    hidden: Vec<f32>,
    /// `[n_vocab]`: logits of a draft.
    pub(crate) draft_logits: Vec<f32>,
    /// Logits of an earlier step, whose memory is reused.
    spare_logits: Logits,
}

impl Decoder {
    /// Packs the weights of a model: a [`GgufFile`](fewbit_format::GgufFile) or an [`HfModel`](crate::HfModel), which
    /// is not needed afterwards.
    ///
    /// # Errors
    /// Every [`ModelError`] except those of [`forward`](Self::forward).
    pub fn load(source: &dyn WeightSource, options: &LoadOptions) -> Result<Self, ModelError> {
        match options.quantize {
            Some(recipe) => Self::pack(&Quantized::new(source, recipe)?, options),
            None => Self::pack(source, options),
        }
    }

    fn pack(source: &dyn WeightSource, options: &LoadOptions) -> Result<Self, ModelError> {
        let config = options.configure(source.config()?)?;
        let with_mtp = config.with_mtp();
        let kv_type = options.kv_type.unwrap_or(default_kv_type(source));
        let mut shapes = (0..config.n_layers()).map(|layer| attention_shape(&config, layer));
        if let Some(shape) = shapes.find(|shape| !kv_type.supports_shape(shape)) {
            return Err(CheckpointError::UnsupportedFeature {
                feature: "a q8_0 KV cache for heads whose size is not a multiple of 32 (choose f16)",
                key: "head_dim".to_owned(),
                value: shape.head_dim.to_string(),
            }
            .into());
        }
        let cpu = host_cpu(options.isa, options.threads)?;
        let placed = options.placement.segments(config.n_layers(), config.experts.is_some())?;
        let head_device = options.placement.head_device();
        let is_elsewhere = |name: &str, layer| {
            let mut elsewhere = placed.iter().filter(|placed| placed.device.is_some());
            elsewhere.any(|placed| placed.layers.contains(&layer) && placed.part.has_tensor(name))
        };
        check_fits(source, cpu.isa(), |name| match names::layer_of_gguf(name) {
            Some(layer) => !is_elsewhere(name, layer) && !config.leaves_out(name),
            None => head_device.is_none() || names::is_embedding_in_gguf(name),
        })?;
        let devices = options.placement.devices();
        if !devices.is_empty() {
            let n_ctx = options.planned_context(&config);
            options.placement.check_fits(&PartEstimates::of(source, n_ctx, Some(kv_type))?)?;
        }
        let here = CpuDevice::new(cpu.clone());
        let progress = options.progress.as_deref().unwrap_or(&|_, _| {});
        let mut loader = LayerLoader::new(source, &config, kv_type, &**cpu.pool(), progress);
        let embedding = Embedding::load(&mut loader, &cpu, head_device.is_none())?;
        let layer_embedding = LayerEmbedding::load(&mut loader, &cpu, embedding.n_vocab())?;
        let (head, mtp) = match &with_mtp {
            Some(with_mtp) => {
                loader.configure(with_mtp);
                let (head, mtp) = here.load_with_mtp(&mut loader)?;
                loader.configure(&config);
                (head, Some(Arc::new(mtp)))
            }
            None => (head_device.unwrap_or(&here).load_head(&mut loader)?, None),
        };
        let mut parts = Vec::new();
        let mut note = |part, device: Option<&dyn Device>, weight_bytes, page_bytes| {
            let (is_host, device) = (device.is_none(), device.unwrap_or(&here).name());
            parts.push(PlacedPart { part, device, is_host, weight_bytes, page_bytes });
        };
        let embedding_bytes = embedding.matrix.n_bytes() + layer_embedding.as_ref().map_or(0, LayerEmbedding::n_bytes);
        note(ModelPart::Embedding, None, embedding_bytes as u64, 0);
        let mut segments = Vec::new();
        for Placed { layers, part, device } in placed {
            loader.part = part;
            let segment: Arc<dyn Segment> = device.unwrap_or(&here).load_segment(&mut loader, layers.clone())?.into();
            let (weights, page) = (segment.weight_bytes(), segment.states().page_bytes() as u64);
            note(ModelPart::of_layers(layers, part), device, weights, page);
            segments.push((part, segment));
        }
        note(ModelPart::Head, head_device, head.weight_bytes(), 0);
        if let Some(mtp) = &mtp {
            note(ModelPart::Mtp, None, mtp.weight_bytes(), mtp.states().page_bytes() as u64);
        }
        let parts = Parts { segments, head: head.into(), mtp, placed: parts };
        let fused = (0..config.n_layers()).map(|i| Fused {
            qkv: loader.has(Part::Qkv, i),
            gate_up: config.is_gated && !loader.has(Part::Gate, i),
            lacks_values: config.can_lack_values(i) && !loader.has(Part::V, i),
        });
        let fused = fused.collect();
        let is_here = parts.placed.iter().all(|part| part.is_host);
        let hashes = (!is_here).then(|| loader.hashes());
        let fingerprint = loader.finish()?;
        let rope = Rope::new(&config);
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let pages = Arc::new(
            PageKind::new(id, kv_type, config.widest_window(), parts.stores()).with_fixed(parts.fixed_stores()),
        );
        let decoder = Self {
            config,
            embedding,
            layer_embedding,
            parts: RwLock::new(Arc::new(parts)),
            rope,
            cpu,
            here,
            devices,
            recipe: options.quantize,
            hashes,
            loras: Mutex::default(),
            pages,
            fused,
            fingerprint,
            buffers: Mutex::default(),
        };
        tracing::info!(
            isa = %decoder.isa(),
            threads = decoder.n_threads(),
            segments = decoder.segments().count(),
            weight_bytes = decoder.weight_bytes(),
            "loaded a {} model",
            decoder.config.architecture
        );
        Ok(decoder)
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.embedding.n_vocab()
    }

    /// Number of threads that a step runs on.
    pub fn n_threads(&self) -> usize {
        self.cpu.pool().n_threads()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    /// Element type of the KV caches.
    pub fn kv_type(&self) -> KvType {
        self.pages.ty
    }

    /// The host's threads: steps run on them, and between steps they may do other work.
    pub fn pool(&self) -> &ThreadPool {
        self.cpu.pool()
    }

    /// The host's instruction set and threads, for measuring what they can do.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    pub(crate) fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.parts.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The placement of each part: the embedding, each segment of layers, the head. It changes when a device is lost.
    pub fn placed(&self) -> Vec<PlacedPart> {
        self.parts().placed.clone()
    }

    /// The devices other than the CPU that have parts of the model, with their memory.
    pub fn devices(&self) -> Vec<DeviceUse> {
        let placed = self.placed();
        let of = |device: &Arc<dyn Device>| {
            let device_name = device.name();
            let parts = || placed.iter().filter(|part| part.device == device_name);
            let (weight_bytes, page_bytes) =
                parts().fold((0, 0), |(weights, pages), part| (weights + part.weight_bytes, pages + part.page_bytes));
            let memory = device.memory();
            parts().next().map(|_| DeviceUse { device: device_name.clone(), weight_bytes, page_bytes, memory })
        };
        self.devices.iter().filter_map(of).collect()
    }

    /// The name and the measured ceilings of the device that has all layers and the output matrix; `None` if that is the
    /// CPU, or if there are several.
    ///
    /// # Errors
    /// If the device fails.
    pub fn device_ceilings(&self) -> Result<Option<(String, DeviceCeilings)>, ModelError> {
        let placed = self.placed();
        let is_on = |part: &PlacedPart, name: &str| part.part == ModelPart::Embedding || part.device == name;
        for device in &self.devices {
            let name = device.name();
            if placed.iter().all(|part| is_on(part, &name)) {
                return Ok(device.ceilings()?.map(|ceilings| (name, ceilings)));
            }
        }
        Ok(None)
    }

    /// Measures how long each kernel takes on the devices other than the CPU while `run` does steps with this decoder, and
    /// returns the devices that can measure it, by name. Steps take longer meanwhile, also those of others.
    ///
    /// # Errors
    /// Those of `run`.
    pub fn time_kernels<E>(&self, run: impl FnOnce() -> Result<(), E>) -> Result<Vec<(String, Vec<KernelTime>)>, E> {
        let timed: Vec<_> = self.devices.iter().filter(|device| device.start_timing()).collect();
        let done = run();
        let times = timed.into_iter().map(|device| (device.name(), device.stop_timing())).collect();
        done.map(|()| times)
    }

    /// The ranges of layers that form its segments. If the halves of a layer are on different devices, its range comes
    /// twice.
    pub fn segments(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        self.parts().segments.iter().map(|(_, segment)| segment.layers()).collect::<Vec<_>>().into_iter()
    }

    /// Moves the parts whose devices were lost to the CPU: loads them again from `source`, which must have the weights
    /// that the model was loaded from. Returns the parts in their new place; none if no device was lost.
    ///
    /// The keys and values of all sequences are gone then: their caches are [stale](KvCache::is_stale), and have to be
    /// cleared and computed again. Adapters are loaded again from their files.
    ///
    /// # Errors
    /// As [`load`](Self::load), and [`ModelError::ChangedFile`], [`ModelError::Adapter`]. Then nothing has changed.
    pub fn replace_lost(&self, source: &dyn WeightSource) -> Result<Vec<PlacedPart>, ModelError> {
        match self.recipe {
            Some(recipe) => self.replace(&Quantized::new(source, recipe)?),
            None => self.replace(source),
        }
    }

    fn replace(&self, source: &dyn WeightSource) -> Result<Vec<PlacedPart>, ModelError> {
        // No step runs meanwhile.
        let _buffers = self.buffers();
        let old = self.parts();
        let lost: Vec<usize> = (0..old.segments.len()).filter(|&i| old.segments[i].1.check().is_err()).collect();
        let is_head_lost = old.head.check().is_err();
        if lost.is_empty() && !is_head_lost {
            return Ok(Vec::new());
        }
        let is_moved = |name: &str| match names::layer_of_gguf(name) {
            Some(layer) => lost.iter().any(|&i| {
                let (part, segment) = &old.segments[i];
                segment.layers().contains(&layer) && part.has_tensor(name)
            }),
            None => is_head_lost && !names::is_embedding_in_gguf(name),
        };
        check_fits(source, self.cpu.isa(), is_moved)?;
        let mut loader = LayerLoader::new(source, &self.config, self.kv_type(), &**self.cpu.pool(), &|_, _| {});
        let (segments, head) = (old.segments.clone(), Arc::clone(&old.head));
        let mut parts = Parts { segments, head, mtp: old.mtp.clone(), placed: old.placed.clone() };
        let mut moved = Vec::new();
        let mut note = |part: &mut PlacedPart, weight_bytes| {
            (part.device, part.is_host, part.weight_bytes) = (self.here.name(), true, weight_bytes);
            moved.push(part.clone());
        };
        for &i in &lost {
            let (part, segment) = &mut parts.segments[i];
            loader.part = *part;
            *segment = self.here.load_segment(&mut loader, segment.layers())?.into();
            // The embedding comes before the segments.
            note(&mut parts.placed[1 + i], segment.weight_bytes());
        }
        if is_head_lost {
            parts.head = self.here.load_head(&mut loader)?.into();
            note(&mut parts.placed[1 + parts.segments.len()], parts.head.weight_bytes());
        }
        loader.check_unchanged(self.hashes.as_ref().unwrap_or(&TensorHashes::new()))?;
        let mut loras = self.loras.lock().unwrap_or_else(PoisonError::into_inner);
        loras.retain(|lora| lora.upgrade().is_some());
        let again = loras.iter().filter_map(WeakLora::upgrade).map(|lora| {
            let error = |error| ModelError::Adapter(Box::new(error));
            let again = self.lora_of(lora.path(), &parts).map_err(error)?;
            if again.fingerprint() != lora.fingerprint() {
                return Err(ModelError::ChangedFile { tensor: lora.path().display().to_string() });
            }
            Ok((lora, again))
        });
        let again: Vec<_> = again.collect::<Result<_, ModelError>>()?;
        // From here on nothing fails.
        again.iter().for_each(|(lora, again)| lora.take_parts_of(again));
        self.pages.replace_stores(parts.stores(), parts.fixed_stores());
        *self.parts.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(parts);
        Ok(moved)
    }

    /// A hash that identifies the model. It is equal for equal weights, configuration and cache type, whatever the
    /// file, threads, instruction set or devices. It differs between versions of fewbit that compute different bits. It
    /// covers one byte in 64 of the weights.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Bytes of the packed weights, on all devices.
    pub fn weight_bytes(&self) -> u64 {
        self.parts().placed.iter().map(|part| part.weight_bytes).sum()
    }

    /// Bytes that one more position takes in a cache, on average.
    pub fn kv_bytes_per_position(&self) -> u64 {
        self.kv_page_bytes() / PAGE as u64
    }

    /// Bytes of one page of a cache: [`KV_PAGE`](crate::KV_PAGE) positions. What recurrent layers keep is not in pages.
    pub fn kv_page_bytes(&self) -> u64 {
        self.pages.page_bytes() as u64
    }

    /// The least pages that the cache of a sequence of this many positions takes: those of its keys and values, and those
    /// that the states of recurrent layers at its beginning and its end are as large as.
    pub fn least_kv_pages(&self, n_positions: usize) -> usize {
        let n_states = if n_positions > 0 { 2 } else { 0 };
        n_positions.div_ceil(PAGE).saturating_add(self.pages.pages_of((n_states, 0)))
    }

    /// Number of pages that all caches and prefix trees of this model hold together; a shared page counts once.
    pub fn kv_pages(&self) -> usize {
        self.pages.n_live()
    }

    /// Creates an empty sequence that is computed without adapters.
    pub fn new_cache(&self) -> KvCache {
        self.new_cache_with(&LoraSet::default())
    }

    /// Creates an empty sequence that is computed with these adapters.
    pub fn new_cache_with(&self, loras: &LoraSet) -> KvCache {
        KvCache::new(Arc::clone(&self.pages), loras.clone())
    }

    /// Loads an adapter for this model: a GGUF file, or a folder with `adapter_config.json` and
    /// `adapter_model.safetensors` as written by PEFT.
    ///
    /// # Errors
    /// [`LoraError`] for a file that is damaged, is not an adapter, was made for another model, or needs anything other
    /// than low-rank parts for this model's matrices; also if a device has no memory for it.
    pub fn load_lora(&self, path: &Path) -> Result<Lora, LoraError> {
        let lora = self.lora_of(path, &self.parts())?;
        if self.hashes.is_some() {
            let mut loras = self.loras.lock().unwrap_or_else(PoisonError::into_inner);
            loras.retain(|lora| lora.upgrade().is_some());
            loras.push(lora.downgrade());
        }
        Ok(lora)
    }

    fn lora_of(&self, path: &Path, parts: &Parts) -> Result<Lora, LoraError> {
        let load_part = |part: &LowRank<'_>| parts.load_adapter(part);
        let (id, config, n_vocab) = (self.id(), &self.config, self.n_vocab());
        lora::load(path, &LoraModel { id, config, n_vocab, fused: &self.fused, load_part: &load_part })
    }

    /// Creates a set of adapters, each with a scale. If an adapter occurs twice, its last scale counts.
    ///
    /// # Errors
    /// [`ModelError::ForeignLora`], [`ModelError::LoraScale`].
    pub fn lora_set(&self, loras: &[(Lora, f32)]) -> Result<LoraSet, ModelError> {
        LoraSet::new(self.id(), loras)
    }

    /// The id of this model, unique among all loaded models.
    pub(crate) fn id(&self) -> u64 {
        self.pages.model
    }

    /// Restores a sequence of `len` positions from bytes written by [`KvCache::serialize`]. The caller has to ensure
    /// that they were computed by this model with these adapters.
    ///
    /// # Errors
    /// [`ModelError::BadCacheState`] if the number of bytes does not match such a cache; out of memory.
    pub fn restore_cache(&self, loras: &LoraSet, len: usize, bytes: &[u8]) -> Result<KvCache, ModelError> {
        KvCache::deserialize(&self.pages, loras.clone(), len, bytes)
    }

    /// Upper bound on the bytes that [`KvCache::serialize`] appends for a sequence of `len` positions.
    pub fn cache_state_bytes(&self, len: usize) -> u64 {
        let pages = (len.div_ceil(PAGE) as u64).saturating_mul(self.pages.saved_bytes() as u64);
        let fixed =
            self.pages.fixed.as_ref().map_or(0, |fixed| fixed.states.saved_bytes() + fixed.logs.saved_bytes() + 8);
        pages.saturating_add(fixed as u64 + 8)
    }

    /// Creates an empty tree of prefixes.
    pub fn new_prefix_tree(&self) -> PrefixTree {
        PrefixTree::new(Arc::clone(&self.pages))
    }

    /// Appends every chunk's tokens to its sequence, in one pass over the weights, and returns the logits that the
    /// chunks request.
    ///
    /// The logits of a token depend only on the tokens before it in its own sequence and on the adapters of its cache,
    /// bit for bit: not on how the sequence was split into chunks, the rest of the batch, or the number of threads.
    ///
    /// # Errors
    /// [`ModelError::ContextFull`], [`ModelError::TokenId`], [`ModelError::ForeignCache`], [`ModelError::StaleCache`],
    /// out of memory for the cache, or an error of a device: in all these cases nothing is appended to any sequence.
    /// [`ModelError::Internal`] is a bug.
    pub fn forward(&self, batch: &mut [Chunk<'_>]) -> Result<Logits, ModelError> {
        self.run(batch, None)
    }

    /// Takes back logits that are no longer needed: the next step reuses their memory, because new memory would have to
    /// be cleared first.
    pub fn recycle(&self, logits: Logits) {
        if logits.values.len() <= MOST_RECYCLED {
            self.buffers().spare_logits = logits;
        }
    }

    /// As [`forward`](Self::forward), but also passes every input of a matrix to `collector`.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn forward_collecting(&self, batch: &mut [Chunk<'_>], collector: &mut Collector) -> Result<Logits, ModelError> {
        self.run(batch, Some(collector))
    }

    fn run(&self, batch: &mut [Chunk<'_>], collector: Option<&mut Collector>) -> Result<Logits, ModelError> {
        let mut buffers = self.buffers();
        for chunk in batch.iter_mut() {
            self.check(chunk)?;
            chunk.cache.reserve(chunk.tokens.len())?;
        }
        let parts = self.parts();
        let logits = caught(|| self.step(&parts, batch, &mut buffers, collector))?;
        for chunk in batch.iter_mut() {
            chunk.cache.advance(chunk.tokens.len());
        }
        Ok(logits)
    }

    /// Runs embedding, segments and head.
    fn step(
        &self,
        parts: &Parts,
        batch: &mut [Chunk<'_>],
        buffers: &mut Buffers,
        collector: Option<&mut Collector>,
    ) -> Result<Logits, ModelError> {
        self.embed(batch, buffers);
        self.layers(parts, batch, buffers, collector)?;
        let hidden = self.hidden_states(&*parts.head, batch, &buffers.x)?;
        let mut logits = self.logits(&*parts.head, batch, buffers)?;
        logits.hidden = hidden;
        Ok(logits)
    }

    fn embed(&self, batch: &[Chunk<'_>], s: &mut Buffers) {
        let at = |chunk: &Chunk<'_>| chunk.cache.len()..;
        let tokens = batch.iter().flat_map(|chunk| chunk.tokens.iter().copied().zip(at(chunk)));
        self.embed_at(tokens, s);
        if let Some(layer_embedding) = &self.layer_embedding {
            s.tokens.clear();
            s.tokens.extend(batch.iter().flat_map(|chunk| chunk.tokens));
            layer_embedding.compute(&self.cpu, &s.tokens, &s.x, &mut s.input, &mut s.per_layer);
        }
    }

    /// The embeddings of tokens, and what layers need of their positions.
    pub(crate) fn embed_at(&self, tokens: impl Iterator<Item = (u32, usize)>, s: &mut Buffers) {
        let c = &self.config;
        [&mut s.global, &mut s.local].into_iter().for_each(RopeAngles::clear);
        s.temperatures.clear();
        let mut n = 0;
        for (token, position) in tokens {
            s.x.resize((n + 1) * c.dim, 0.0);
            let x = &mut s.x[n * c.dim..];
            self.embedding.look_up(token, x);
            if c.embedding_scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= c.embedding_scale);
            }
            self.rope.angles(position, &mut s.global, &mut s.local);
            s.temperatures.extend(c.attention_temperature.map(|t| t.factor(position)));
            n += 1;
        }
        s.x.truncate(n * c.dim);
    }

    /// The buffers of a step, for the one that locks them.
    pub(crate) fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layers(
        &self,
        parts: &Parts,
        batch: &mut [Chunk<'_>],
        s: &mut Buffers,
        collector: Option<&mut Collector>,
    ) -> Result<(), ModelError> {
        if s.x.is_empty() {
            return Ok(());
        }
        let loras = loras_of(batch, |chunk| chunk.tokens.len());
        let mut end = 0;
        let sequences = batch.iter_mut().map(|chunk| {
            end += chunk.tokens.len();
            chunk.cache.rows(end - chunk.tokens.len()..end)
        });
        let mut step = Step {
            sequences: sequences.collect(),
            global: &s.global,
            local: &s.local,
            temperatures: &s.temperatures,
            per_layer: &s.per_layer,
            loras: &loras,
            collector,
        };
        if parts.mtp.is_some() {
            s.embedded.clone_from(&s.x);
        }
        for (i, (_, segment)) in parts.segments.iter().enumerate() {
            step.sequences.iter_mut().for_each(|sequence| sequence.enter(i));
            segment.forward(&mut step, &mut s.x)?;
        }
        if let Some(mtp) = &parts.mtp {
            step.sequences.iter_mut().for_each(|sequence| sequence.enter(parts.segments.len()));
            (step.loras, step.collector) = (&[], None);
            s.hidden.clone_from(&s.x);
            parts.head.norm(&mut s.hidden)?;
            mtp.fill(&mut step, &s.embedded, &s.hidden);
        }
        Ok(())
    }

    /// The hidden states after the last norm, for the chunks that request them.
    fn hidden_states(&self, head: &dyn Head, batch: &[Chunk<'_>], x: &[f32]) -> Result<Vec<f32>, ModelError> {
        let dim = self.config.dim;
        let mut wanted = Vec::new();
        let mut end = 0;
        for chunk in batch {
            let start = end;
            end += chunk.tokens.len();
            if chunk.logits == LogitsFor::Hidden {
                wanted.extend_from_slice(&x[start * dim..end * dim]);
            }
        }
        if !wanted.is_empty() {
            head.norm(&mut wanted)?;
        }
        Ok(wanted)
    }

    /// Computes the logits of the requested rows only: the output matrix is the largest of a small model.
    fn logits(&self, head: &dyn Head, batch: &[Chunk<'_>], s: &mut Buffers) -> Result<Logits, ModelError> {
        let dim = self.config.dim;
        s.wanted.clear();
        let mut end = 0;
        for chunk in batch {
            end += chunk.tokens.len();
            let rows = chunk.logits.rows(chunk.tokens.len());
            s.wanted.extend_from_slice(&s.x[(end - rows) * dim..end * dim]);
        }
        let mut logits = std::mem::take(&mut s.spare_logits);
        logits.resize(self.n_vocab(), s.wanted.len() / dim);
        if !s.wanted.is_empty() {
            let loras = loras_of(batch, |chunk| chunk.logits.rows(chunk.tokens.len()));
            head.logits(&s.wanted, &loras, &mut logits.values)?;
        }
        Ok(logits)
    }

    pub(crate) fn check(&self, chunk: &Chunk<'_>) -> Result<(), ModelError> {
        if chunk.cache.model() != self.pages.model {
            return Err(ModelError::ForeignCache);
        }
        if !chunk.cache.loras().is_of(self.id()) {
            let foreign = chunk.cache.loras().iter().next().map(|(lora, _)| lora.path().to_owned());
            return Err(ModelError::ForeignLora { path: foreign.unwrap_or_default() });
        }
        let (position, n_tokens) = (chunk.cache.len(), chunk.tokens.len());
        if position + n_tokens > self.config.context_length {
            return Err(ModelError::ContextFull { position, n_tokens, context_length: self.config.context_length });
        }
        match chunk.tokens.iter().find(|&&id| id as usize >= self.n_vocab()) {
            Some(&id) => Err(ModelError::TokenId { id, n_vocab: self.n_vocab() }),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

/// What `run` returns; if it panics, that as an error.
pub(crate) fn caught<T>(run: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(ModelError::Internal { message: message.to_owned() })
    })
}

/// The adapters of the rows of each chunk.
fn loras_of(batch: &[Chunk<'_>], n_rows: impl Fn(&Chunk<'_>) -> usize) -> Vec<AdaptedRows> {
    adapted_rows(batch.iter().map(|chunk| (chunk.cache.loras(), n_rows(chunk))))
}
