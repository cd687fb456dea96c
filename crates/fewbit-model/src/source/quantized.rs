//! A source that quantizes the tensors of another one as they are read.

use super::{WeightSource, n_cols, row_bytes, tensor_bytes};
use crate::quantize::{ModelFacts, Plan, Recipe};
use crate::{ModelConfig, ModelError};
use fewbit_format::TensorInfo;
use fewbit_kernels::Engine;
use fewbit_quant::encode::is_encodable;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

/// Weights read from another source and quantized to a recipe, each when it is asked for.
///
/// Tensors that take no more bits already than they would get stay as they are: quantizing again what is
/// quantized can only lose.
pub struct Quantized<'a> {
    source: &'a dyn WeightSource,
    /// In the order of the source, with the types that they get.
    tensors: Vec<TensorInfo>,
    /// Place of each name in `tensors`.
    index: HashMap<String, usize>,
}

impl<'a> Quantized<'a> {
    /// Decides what type each tensor of `source` gets.
    ///
    /// # Errors
    /// As [`WeightSource::config`].
    pub fn new(source: &'a dyn WeightSource, recipe: Recipe) -> Result<Self, ModelError> {
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
    fn config(&self) -> Result<ModelConfig, ModelError> {
        self.source.config()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&i| self.tensors.get(i))
    }

    fn rows(&self, engine: &Engine, tensor: &TensorInfo, rows: Range<usize>) -> Result<Cow<'_, [u8]>, ModelError> {
        let original = self.source.tensor(&tensor.name).expect("every tensor is one of the source");
        let n_rows = rows.len();
        let first = rows.start;
        let bytes = self.source.rows(engine, original, rows)?;
        if original.ty == tensor.ty {
            return Ok(bytes);
        }
        let n_cols = n_cols(tensor);
        let mut out = vec![0; n_rows * row_bytes(tensor)];
        engine.convert(original.ty, &bytes, tensor.ty, n_cols, None, &mut out).map_err(|error| ModelError::Decode {
            name: self.name_in_file(&tensor.name),
            source: error.after(first * n_cols),
        })?;
        Ok(Cow::Owned(out))
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
