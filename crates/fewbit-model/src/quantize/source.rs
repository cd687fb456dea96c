//! A source that quantizes the tensors of another one as they are read.

use super::{ModelFacts, Plan, Recipe};
use fewbit_checkpoint::source::{WeightSource, n_cols, row_bytes, tensor_bytes};
use fewbit_checkpoint::{CheckpointError, ModelConfig, Workers};
use fewbit_format::TensorInfo;
use fewbit_kernels::convert_rows;
use fewbit_quant::QuantError;
use fewbit_quant::encode::is_encodable;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Number of weights that a thread converts at a time: few enough that their `f32` form stays in its cache.
const CHUNK_ELEMS: usize = 1 << 14;

/// Weights that are read from another source and quantized by a recipe, each on request.
///
/// Tensors that already take no more bits than they would get are kept, because quantizing quantized weights again can
/// only lose precision.
pub struct Quantized<'a> {
    source: &'a dyn WeightSource,
    /// In the order of the source, with their new types.
    tensors: Vec<TensorInfo>,
    /// Index of each name in `tensors`.
    index: HashMap<String, usize>,
}

impl<'a> Quantized<'a> {
    /// Chooses the type of each tensor of `source`.
    ///
    /// # Errors
    /// As [`WeightSource::config`].
    pub fn new(source: &'a dyn WeightSource, recipe: Recipe) -> Result<Self, CheckpointError> {
        let config = source.config()?;
        let facts = ModelFacts::from_config(&config, source.tensor("output.weight").is_none());
        let plan = Plan::new(recipe);
        let index = source.tensors().iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        let tensors = source.tensors().iter().map(|tensor| {
            let mut ty = plan.tensor_type(&facts, &tensor.name, &tensor.shape, tensor.ty);
            if !tensor.ty.is_decodable() || !is_encodable(ty) || ty.bits_per_weight() >= tensor.ty.bits_per_weight() {
                ty = tensor.ty;
            }
            match tensor_bytes(&tensor.shape, ty) {
                Some(n_bytes) => TensorInfo { ty, n_bytes, ..tensor.clone() },
                None => tensor.clone(),
            }
        });
        Ok(Self { source, tensors: tensors.collect(), index })
    }
}

impl WeightSource for Quantized<'_> {
    fn config(&self) -> Result<ModelConfig, CheckpointError> {
        self.source.config()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&i| self.tensors.get(i))
    }

    fn rows(
        &self,
        workers: &dyn Workers,
        tensor: &TensorInfo,
        rows: Range<usize>,
    ) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let original = self.source.tensor(&tensor.name).expect("every tensor is one of the source");
        let (first, n_rows) = (rows.start, rows.len());
        let bytes = self.source.rows(workers, original, rows)?;
        if original.ty == tensor.ty {
            return Ok(bytes);
        }
        let (n_cols, from_bytes, to_bytes) = (n_cols(tensor), row_bytes(original), row_bytes(tensor));
        let mut out = vec![0; n_rows * to_bytes];
        // The first row that cannot be encoded, whichever thread finds it.
        let failed: Mutex<Option<(usize, QuantError)>> = Mutex::new(None);
        workers.fill_rows(&mut out, to_bytes, (CHUNK_ELEMS / n_cols.max(1)).max(1), &|rows, out| {
            let from = &bytes[rows.start * from_bytes..rows.end * from_bytes];
            if let Err(error) = convert_rows(original.ty, from, tensor.ty, n_cols, out) {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(row, _)| rows.start < *row) {
                    *failed = Some((rows.start, error.after((first + rows.start) * n_cols)));
                }
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, source)) => Err(CheckpointError::Decode { name: self.name_in_file(&tensor.name), source }),
            None => Ok(Cow::Owned(out)),
        }
    }

    fn release(&self, tensor: &TensorInfo) {
        if let Some(original) = self.source.tensor(&tensor.name) {
            self.source.release(original);
        }
    }

    fn name_in_file(&self, name: &str) -> String {
        self.source.name_in_file(name)
    }
}
