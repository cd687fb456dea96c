//! Maps the tensors of the files to those of the model, by the module that they belong to.

use super::config::Extras;
use super::experts::{Columns, Mxfp4, joint};
use super::fp8::Fp8;
use super::ints::{Ints, Layout, Parts};
use super::latent::Turned;
use super::part::{matrix_shape, plain_type};
use super::scheme::Scheme;
use super::{FileTensor, HfError, permutes, unpermuted};
use crate::families::ExpertLayout;
use crate::names::{self, Part};
use crate::source::{decode, tensor_bytes};
use crate::{CheckpointError, ModelConfig, Recurrent, StateSpaceConfig};
use fewbit_format::safetensors::Dtype;
use fewbit_format::{SafetensorsModel, TensorInfo};
use fewbit_quant::TensorType;
use std::collections::{BTreeMap, HashMap};

/// Last parts of the names of tensors that do not describe weights: the quantization of activations or of keys and
/// values, and tables that follow from the configuration.
const IGNORED: [&str; 11] = [
    "input_scale",
    "input_zero_point",
    "input_scale_ub",
    "activation_scale",
    "output_scale",
    "q_scale",
    "k_scale",
    "v_scale",
    "kv_scale",
    "inv_freq",
    "weight_shape",
];

/// How a tensor of the model is stored in the files.
pub(super) struct Entry {
    pub(super) stored: Stored,
    pub(super) order: Order,
}

/// How the rows of a model's tensor map to those of the file's tensor.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Order {
    /// In the same order.
    Same,
    /// Rows of a head are in the order of half-split pairs in the file, and of interleaved pairs in the model.
    Pairs,
    /// The rows of the first of every two blocks of this many rows.
    First(usize),
    /// The rows of the second of every two blocks.
    Second(usize),
    /// The first of every two rows.
    Even,
    /// The second of every two rows.
    Odd,
    /// Of every `of` rows, the `n` that follow the first `skip`.
    Some { of: usize, skip: usize, n: usize },
    /// Of rows that are in order of the key heads (query, key, values, gates of each), the queries of all heads, then all
    /// keys, then all values.
    HeadsToQkv,
    /// Of the same rows, the gates.
    HeadsToGates,
    /// Heads of this many elements that belong to values, tiled: the first of every key head, then the second of each.
    /// Before them are this many rows that stay.
    Tiled(usize, usize),
    /// Columns in order of [`Order::Tiled`] heads, which fill a row.
    TiledColumns,
}

impl Order {
    /// The index of the row in the file.
    pub(super) fn source(self, config: &ModelConfig, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::Pairs => unpermuted(config, row),
            Self::First(n) => row / n * 2 * n + row % n,
            Self::Second(n) => row / n * 2 * n + n + row % n,
            Self::Even => 2 * row,
            Self::Odd => 2 * row + 1,
            Self::Some { of, skip, n } => row / n * of + skip + row % n,
            Self::HeadsToQkv => config.delta_net().map_or(row, |delta| delta.mixed_row(row)),
            Self::HeadsToGates => config.delta_net().map_or(row, |delta| delta.mixed_row(delta.n_channels() + row)),
            Self::Tiled(kept, _) if row < kept => row,
            Self::Tiled(kept, width) => {
                let (head, element) = ((row - kept) / width, (row - kept) % width);
                kept + config.delta_net().map_or(head, |delta| delta.grouped_head(head)) * width + element
            }
            Self::TiledColumns => row,
        }
    }
}

#[derive(Clone)]
pub(super) enum Stored {
    /// Unchanged.
    Plain(FileTensor),
    /// A vector to which 1 is added; converted to F32.
    MinusOne {
        tensor: FileTensor,
        ty: TensorType,
    },
    /// A vector of logarithms, whose exponentials are negated; converted to F32.
    Log {
        tensor: FileTensor,
        ty: TensorType,
    },
    Fp8(Fp8),
    Ints(Ints),
    Columns(Columns),
    Mxfp4(Mxfp4),
    Turned(Turned),
}

impl Stored {
    /// The tensors of the files that it consists of; the first one names it.
    pub(super) fn tensors(&self) -> Vec<&FileTensor> {
        match self {
            Self::Plain(tensor) | Self::MinusOne { tensor, .. } | Self::Log { tensor, .. } => vec![tensor],
            Self::Fp8(fp8) => [&fp8.weight].into_iter().chain(&fp8.scale).collect(),
            Self::Columns(columns) => vec![&columns.tensor],
            Self::Mxfp4(mxfp4) => vec![&mxfp4.blocks, &mxfp4.scales],
            Self::Turned(turned) => turned.stored.tensors(),
            Self::Ints(ints) => [&ints.codes, &ints.scales].into_iter().chain(&ints.zeros).collect(),
        }
    }

    /// The name of the first of these, for errors.
    pub(super) fn file_name(&self) -> String {
        self.tensors().first().map_or_else(String::new, |tensor| tensor.name.clone())
    }
}

/// The tensors of the model under their GGUF names, and how each is stored in the files.
#[derive(Default)]
pub(super) struct Tensors {
    infos: Vec<TensorInfo>,
    /// How each of `infos` is stored.
    entries: Vec<Entry>,
    /// Index of each name in `infos`.
    places: HashMap<String, usize>,
}

impl Tensors {
    pub(super) fn all(&self) -> &[TensorInfo] {
        &self.infos
    }

    pub(super) fn get(&self, name: &str) -> Option<(&TensorInfo, &Entry)> {
        self.places.get(name).map(|&place| (&self.infos[place], &self.entries[place]))
    }

    fn add(&mut self, info: TensorInfo, entry: Entry) {
        self.places.insert(info.name.clone(), self.infos.len());
        self.infos.push(info);
        self.entries.push(entry);
    }
}

/// The tensors of one module, by the last part of their names.
type Module<'a> = BTreeMap<&'a str, &'a FileTensor>;

/// Whether the files have the layer that predicts a further token, as the configuration says: some files lack it.
pub(super) fn has_mtp(files: &SafetensorsModel, config: &ModelConfig, extras: &Extras) -> bool {
    let wanted = format!("model.layers.{}.hnorm", config.n_layers());
    let plain = |module| names::plain_hf(module, extras.is_wrapped, config.mtp.map(|_| config.n_layers()));
    files.tensors().iter().any(|tensor| plain(names::split_hf(&tensor.name).0).is_some_and(|name| name == wanted))
}

/// Finds the tensors of the model in the files.
pub(super) fn read(
    files: &SafetensorsModel,
    config: &ModelConfig,
    extras: &Extras,
    scheme: Scheme,
) -> Result<Tensors, CheckpointError> {
    let mut modules: BTreeMap<&str, Module<'_>> = BTreeMap::new();
    for tensor in files.tensors() {
        let (module, leaf) = names::split_hf(&tensor.name);
        if !IGNORED.contains(&leaf) {
            modules.entry(module).or_default().insert(leaf, tensor);
        }
    }
    let mut all = Builder { files, config, scheme, tensors: Tensors::default() };
    for (name, module) in &modules {
        let n_layers = config.mtp.map(|_| config.n_layers());
        let Some(plain) = names::plain_hf(name, extras.is_wrapped, n_layers) else { continue };
        // A layer that predicts further tokens.
        if names::layer_of_hf(&plain)
            .is_some_and(|layer| config.leaves_out_layer(layer) || config.is_copy(layer, &plain))
        {
            continue;
        }
        let Some((part, gguf)) = names::from_hf(&plain, &config.architecture) else {
            let first = module.values().next().map_or_else(String::new, |tensor| tensor.name.clone());
            return Err(CheckpointError::UnexpectedTensor { name: first, architecture: config.architecture.clone() });
        };
        // Keys and values of a layer that sees those of another one.
        if config.leaves_out(&format!("{gguf}.weight")) {
            continue;
        }
        // Some files store the embedding twice.
        if part == Part::Output && extras.tied {
            continue;
        }
        all.module(part, &gguf, module, extras)?;
    }
    Ok(all.tensors)
}

pub(super) struct Builder<'a> {
    files: &'a SafetensorsModel,
    pub(super) config: &'a ModelConfig,
    scheme: Scheme,
    tensors: Tensors,
}

impl Builder<'_> {
    fn module(&mut self, part: Part, gguf: &str, module: &Module<'_>, extras: &Extras) -> Result<(), CheckpointError> {
        let is_norm = matches!(
            part,
            Part::OutputNorm
                | Part::AttnNorm
                | Part::AttnPostNorm
                | Part::FfnNorm
                | Part::FfnPostNorm
                | Part::QNorm
                | Part::KNorm
                | Part::QLatentNorm
                | Part::KvLatentNorm
                | Part::MtpEmbeddingNorm
                | Part::MtpHiddenNorm
                | Part::MtpOutputNorm
        );
        let weight = if names::is_whole_name(part) { gguf.to_owned() } else { format!("{gguf}.weight") };
        let mut used = Vec::new();
        if let Some(ints) = self.ints(module, &mut used)? {
            let shape = vec![ints.n_rows as u64, ints.n_cols as u64];
            self.add(weight, shape, ints.ty, Stored::Ints(ints), part)?;
        } else if let Some(tensor) = module.get("weight") {
            used.push("weight");
            if Fp8::is(tensor.dtype) {
                let (scale, block) = self.fp8_scale(tensor, module, &mut used)?;
                let is_joint = extras.expert_layout == ExpertLayout::Joint;
                let fp8 = match is_joint && tensor.shape.len() == 3 {
                    true => Fp8::stacked(self.files, tensor, scale)?,
                    false => Fp8::new(self.files, tensor, scale, block)?,
                };
                let weight = if is_joint && part == Part::ExpertUps { joint(&weight) } else { weight };
                self.add(weight, tensor.shape.clone(), fp8.ty, Stored::Fp8(fp8), part)?;
            } else if matches!(part, Part::ExpertUps | Part::ExpertDowns) {
                self.experts(part, gguf, tensor, extras.expert_layout)?;
            } else {
                let ty = plain_type(tensor)?;
                match is_norm && extras.norms_from_one {
                    _ if part == Part::SsmA => {
                        let stored = Stored::Log { tensor: (*tensor).clone(), ty };
                        self.add(weight, tensor.shape.clone(), TensorType::F32, stored, part)?;
                    }
                    true => {
                        let stored = Stored::MinusOne { tensor: (*tensor).clone(), ty };
                        self.add(weight, tensor.shape.clone(), TensorType::F32, stored, part)?;
                    }
                    false => {
                        // The tensor for the shared expert's score has one row, which older files have as a vector.
                        let shape = match (part, &tensor.shape[..]) {
                            (Part::SharedRouter, &[1, n]) if self.config.recurrent.is_none() => vec![n],
                            _ => tensor.shape.clone(),
                        };
                        self.add(weight, shape, ty, Stored::Plain((*tensor).clone()), part)?;
                    }
                }
            }
        }
        if let (Scheme::Mxfp4, Some(blocks)) = (self.scheme, module.get("blocks")) {
            used.extend(["blocks", "scales"]);
            let scales = require(module.get("scales").copied(), blocks, "scales")?;
            self.mxfp4(part, gguf, blocks, scales)?;
        }
        if let (Part::Router, Some(tensor)) = (part, module.get("e_score_correction_bias")) {
            used.push("e_score_correction_bias");
            let name = format!("{}.bias", gguf.replace("ffn_gate_inp", "exp_probs_b"));
            let stored = Stored::Plain((*tensor).clone());
            self.add(name, tensor.shape.clone(), plain_type(tensor)?, stored, Part::ExpertBias)?;
        }
        if let Some(tensor) = module.get("bias") {
            used.push("bias");
            let ty = plain_type(tensor)?;
            if part == Part::ExpertUps {
                self.expert_biases(gguf, tensor, extras.expert_layout)?;
                return self.check_used(module, &used);
            }
            let stored = Stored::Plain((*tensor).clone());
            self.add(format!("{gguf}.bias"), tensor.shape.clone(), ty, stored, part)?;
        }
        self.check_used(module, &used)
    }

    /// Returns an error for a tensor of a module that has not been used.
    fn check_used(&self, module: &Module<'_>, used: &[&str]) -> Result<(), CheckpointError> {
        match module.iter().find(|(leaf, _)| !used.contains(leaf)) {
            Some((_, tensor)) => Err(CheckpointError::UnexpectedTensor {
                name: tensor.name.clone(),
                architecture: self.config.architecture.clone(),
            }),
            None => Ok(()),
        }
    }

    fn add(
        &mut self,
        name: String,
        shape: Vec<u64>,
        ty: TensorType,
        stored: Stored,
        part: Part,
    ) -> Result<(), CheckpointError> {
        if let (Part::KvFromLatent, Some(latent)) = (part, self.config.latent) {
            return self.latent(&latent, &name, shape, ty, stored);
        }
        match self.config.recurrent {
            None => self.attention(name, shape, ty, stored, part),
            Some(Recurrent::StateSpace(space)) => self.state_space(&space, name, shape, ty, stored, part),
            Some(_) => self.recurrent(name, shape, ty, stored, part),
        }
    }

    /// Adds a tensor of a model with state spaces.
    fn state_space(
        &mut self,
        space: &StateSpaceConfig,
        name: String,
        shape: Vec<u64>,
        ty: TensorType,
        stored: Stored,
        part: Part,
    ) -> Result<(), CheckpointError> {
        let n_groups = space.n_groups as u64;
        let shape = match (part, &shape[..]) {
            // `[n_channels, 1, n_taps]`, as PyTorch has it.
            (Part::SsmConv, &[rows, 1, taps]) => vec![rows, taps],
            (Part::SsmA | Part::SsmD, &[n]) => vec![n, 1],
            (Part::SsmNorm, &[n]) if n.is_multiple_of(n_groups) => vec![n_groups, n / n_groups],
            _ => shape,
        };
        let experts = self.config.experts;
        let width = experts.and_then(|experts| experts.shared_ffn_dim).unwrap_or(self.config.ffn_dim);
        let parts = match (part, experts) {
            _ if !self.config.is_gated => return self.attention(name, shape, ty, stored, part),
            (Part::SharedUp, Some(_)) => [Part::SharedGate, Part::SharedUp],
            (Part::SharedUp, None) => [Part::Gate, Part::Up],
            (Part::SharedDown, None) => {
                let name = name.replace("ffn_down_shexp", "ffn_down");
                return self.add_in_order(name, shape, ty, stored, Order::Same);
            }
            _ => return self.attention(name, shape, ty, stored, part),
        };
        let expected = vec![2 * width as u64, self.config.dim as u64];
        if shape != expected {
            return Err(CheckpointError::TensorShape { name: stored.file_name(), expected, found: shape });
        }
        let layer = names::layer_of_gguf(&name).unwrap_or(0);
        for (part, order) in parts.into_iter().zip([Order::First(width), Order::Second(width)]) {
            let shape = vec![width as u64, self.config.dim as u64];
            self.add_in_order(format!("{}.weight", names::gguf(part, layer)), shape, ty, stored.clone(), order)?;
        }
        Ok(())
    }

    /// Adds a tensor, with the rows of queries and keys in the order of the model's pairs.
    fn attention(
        &mut self,
        name: String,
        shape: Vec<u64>,
        ty: TensorType,
        stored: Stored,
        part: Part,
    ) -> Result<(), CheckpointError> {
        let is_permuted = matches!(part, Part::Q | Part::K) && permutes(self.config);
        if is_permuted {
            // Rows are permuted within heads, so there must be whole heads.
            let n_heads = if part == Part::Q { self.config.n_heads } else { self.config.n_kv_heads };
            let n_rows = (n_heads * self.config.head_dim) as u64;
            if shape.first() != Some(&n_rows) {
                let expected = [n_rows].into_iter().chain(shape.get(1).copied()).collect();
                let name = stored.file_name();
                return Err(CheckpointError::TensorShape { name, expected, found: shape });
            }
        }
        self.add_in_order(name, shape, ty, stored, if is_permuted { Order::Pairs } else { Order::Same })
    }

    /// Adds a tensor of a model with another kind of recurrent layers.
    fn recurrent(
        &mut self,
        name: String,
        shape: Vec<u64>,
        ty: TensorType,
        stored: Stored,
        part: Part,
    ) -> Result<(), CheckpointError> {
        let Some(delta) = self.config.delta_net() else {
            // `[n_channels, 1, n_taps]`, as PyTorch has it.
            let shape = match (part, &shape[..]) {
                (Part::Conv, &[rows, 1, taps]) => vec![rows, taps],
                _ => shape,
            };
            return self.add_in_order(name, shape, ty, stored, Order::Same);
        };
        let file_name = stored.file_name();
        let expect = |n_rows: usize| match shape.first() {
            Some(&n) if n == n_rows as u64 => Ok(()),
            _ => {
                let expected = [n_rows as u64].into_iter().chain(shape.get(1).copied()).collect();
                Err(CheckpointError::TensorShape { name: file_name.clone(), expected, found: shape.clone() })
            }
        };
        let keys = 2 * delta.key_dim();
        let order = match part {
            Part::SsmIn => {
                expect(delta.n_channels() + delta.value_dim())?;
                let parts = [
                    (Part::Qkv, delta.n_channels(), Order::HeadsToQkv),
                    (Part::AttnGate, delta.value_dim(), Order::HeadsToGates),
                ];
                for (part, n_rows, order) in parts {
                    let shape = [n_rows as u64].into_iter().chain(shape.get(1).copied()).collect();
                    let layer = names::layer_of_gguf(&name).unwrap_or(0);
                    let name = format!("{}.weight", names::gguf(part, layer));
                    self.add_in_order(name, shape, ty, stored.clone(), order)?;
                }
                return Ok(());
            }
            Part::SsmConv => {
                // `[n_channels, 1, n_taps]`, as PyTorch has it.
                let shape = match shape[..] {
                    [rows, 1, taps] => vec![rows, taps],
                    _ => shape,
                };
                let order = if delta.is_tiled { Order::Tiled(keys, delta.v_dim) } else { Order::Same };
                return self.add_in_order(name, shape, ty, stored, order);
            }
            _ if !delta.is_tiled => Order::Same,
            Part::Qkv => {
                expect(delta.n_channels())?;
                Order::Tiled(keys, delta.v_dim)
            }
            Part::AttnGate => {
                expect(delta.value_dim())?;
                Order::Tiled(0, delta.v_dim)
            }
            Part::SsmBeta | Part::SsmAlpha | Part::SsmDt | Part::SsmA => {
                expect(delta.n_v_heads)?;
                Order::Tiled(0, 1)
            }
            Part::SsmOut => {
                let n_cols = delta.value_dim() as u64;
                if shape.get(1) != Some(&n_cols) {
                    let expected = shape.first().copied().into_iter().chain([n_cols]).collect();
                    return Err(CheckpointError::TensorShape { name: file_name, expected, found: shape });
                }
                if !delta.v_dim.is_multiple_of(ty.block_elems()) {
                    return Err(CheckpointError::UnsupportedFeature {
                        feature: "value heads that do not fill the blocks of a quantized output projection",
                        key: file_name,
                        value: format!("{} elements, blocks of {}", delta.v_dim, ty.block_elems()),
                    });
                }
                Order::TiledColumns
            }
            _ => Order::Same,
        };
        self.add_in_order(name, shape, ty, stored, order)
    }

    pub(super) fn add_in_order(
        &mut self,
        name: String,
        shape: Vec<u64>,
        ty: TensorType,
        stored: Stored,
        order: Order,
    ) -> Result<(), CheckpointError> {
        if let Some((_, other)) = self.tensors.get(&name) {
            return Err(HfError::Ambiguous { first: other.stored.file_name(), second: stored.file_name() }.into());
        }
        let Some(n_bytes) = tensor_bytes(&shape, ty) else {
            let expected = vec![1, ty.block_elems() as u64];
            return Err(HfError::PartShape { name: stored.file_name(), expected, found: shape }.into());
        };
        self.tensors.add(TensorInfo { name, shape, ty, offset: 0, n_bytes }, Entry { stored, order });
        Ok(())
    }

    /// The integer matrix of a module, if it has one.
    fn ints(&self, module: &Module<'_>, used: &mut Vec<&'static str>) -> Result<Option<Ints>, CheckpointError> {
        let mut take = |leaf: &'static str| {
            let tensor = module.get(leaf).copied();
            used.extend(tensor.map(|_| leaf));
            tensor
        };
        match self.scheme {
            Scheme::Gptq(gptq) => {
                let Some(codes) = take("qweight") else { return Ok(None) };
                let parts = Parts {
                    codes,
                    scales: require(take("scales"), codes, "scales")?,
                    zeros: Some(require(take("qzeros"), codes, "qzeros")?),
                    g_idx: take("g_idx"),
                };
                let [words, n_rows] = matrix_shape(codes)?;
                // Rows need not fill their last word, but the group index has one entry for each column.
                let n_cols = match parts.g_idx.map(|t| &t.shape[..]) {
                    Some(&[n]) => usize::try_from(n).unwrap_or(usize::MAX).min(words * (32 / gptq.bits)),
                    _ => words * (32 / gptq.bits),
                };
                let layout = Layout::Gptq { zeros_minus_one: gptq.zeros_minus_one };
                let shape = [n_rows, n_cols];
                Ints::new(self.files, layout, gptq.bits, gptq.group.or(Some(n_cols)), shape, &parts).map(Some)
            }
            Scheme::Awq { group } => {
                let Some(codes) = take("qweight") else { return Ok(None) };
                let parts = Parts {
                    codes,
                    scales: require(take("scales"), codes, "scales")?,
                    zeros: Some(require(take("qzeros"), codes, "qzeros")?),
                    g_idx: None,
                };
                let [n_cols, words] = matrix_shape(codes)?;
                let shape = [words * 8, n_cols];
                Ints::new(self.files, Layout::Awq, 4, group.or(Some(n_cols)), shape, &parts).map(Some)
            }
            Scheme::CompressedTensors { .. } => self.compressed(module, &mut take),
            Scheme::None | Scheme::Mxfp4 | Scheme::Fp8 { .. } => Ok(None),
        }
    }

    fn compressed<'m>(
        &self,
        module: &Module<'m>,
        take: &mut dyn FnMut(&'static str) -> Option<&'m FileTensor>,
    ) -> Result<Option<Ints>, CheckpointError> {
        let (layout, codes) = match (take("weight_packed"), module.get("weight")) {
            (Some(codes), _) => (Layout::Packed, codes),
            (None, Some(codes)) if codes.dtype == Dtype::I8 => {
                take("weight");
                (Layout::Bytes, *codes)
            }
            _ => return Ok(None),
        };
        let scales = require(take("weight_scale"), codes, "weight_scale")?;
        let (zeros, g_idx) = (take("weight_zero_point"), take("weight_g_idx"));
        let [n_rows, stored_cols] = matrix_shape(codes)?;
        let (bits, n_cols) = match layout {
            Layout::Bytes => (8, stored_cols),
            _ => self.packed_columns(codes, stored_cols)?,
        };
        let parts = Parts { codes, scales, zeros, g_idx };
        Ints::new(self.files, layout, bits, None, [n_rows, n_cols], &parts).map(Some)
    }

    /// Bits per code and number of columns of a packed matrix: its `weight_shape` gives the columns that its words
    /// hold.
    fn packed_columns(&self, codes: &FileTensor, words: usize) -> Result<(usize, usize), CheckpointError> {
        let module = codes.name.strip_suffix("weight_packed").unwrap_or(&codes.name);
        let name = format!("{module}weight_shape");
        let tensor = self.files.tensor(&name).ok_or(HfError::MissingPart { name })?;
        let ty = match tensor.dtype {
            Dtype::I64 | Dtype::I32 => tensor.dtype.tensor_type(),
            _ => None,
        };
        let Some(ty) = ty.filter(|_| tensor.shape == [2]) else {
            let (expected, found) = (vec![2], tensor.shape.clone());
            return Err(HfError::PartShape { name: tensor.name.clone(), expected, found }.into());
        };
        let shape = decode(&tensor.name, ty, self.files.tensor_bytes(tensor), 2)?;
        let n_cols = shape[1] as usize;
        match [4, 8].into_iter().find(|bits| n_cols > 0 && n_cols.div_ceil(32 / bits) == words) {
            Some(bits) => Ok((bits, n_cols)),
            None => {
                let expected = vec![codes.shape.first().copied().unwrap_or(0), (n_cols as u64).div_ceil(8)];
                Err(HfError::PartShape { name: codes.name.clone(), expected, found: codes.shape.clone() }.into())
            }
        }
    }

    /// The scales of an FP8 matrix, and the number of rows and columns that share one.
    fn fp8_scale<'m>(
        &self,
        weight: &FileTensor,
        module: &Module<'m>,
        used: &mut Vec<&'static str>,
    ) -> Result<(Option<&'m FileTensor>, Option<[usize; 2]>), HfError> {
        let found = ["weight_scale_inv", "weight_scale"].into_iter().find_map(|leaf| Some((leaf, *module.get(leaf)?)));
        used.extend(found.map(|(leaf, _)| leaf));
        let scale = found.map(|(_, tensor)| tensor);
        match self.scheme {
            Scheme::Fp8 { block } | Scheme::CompressedTensors { block } => {
                require(scale, weight, "weight_scale").map(|scale| (Some(scale), block))
            }
            // Converted without scales.
            _ => Ok((scale, None)),
        }
    }
}

/// Returns a tensor that `other` requires, or an error if it is missing.
fn require<'m>(tensor: Option<&'m FileTensor>, other: &FileTensor, leaf: &str) -> Result<&'m FileTensor, HfError> {
    tensor.ok_or_else(|| {
        let module = other.name.rsplit_once('.').map_or("", |(module, _)| module);
        HfError::MissingPart { name: format!("{module}.{leaf}") }
    })
}
