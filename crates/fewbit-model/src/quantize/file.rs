//! Quantizes a whole model, a GGUF file or a Hugging Face folder, to a GGUF file. At any time, only part of one tensor
//! is in memory.

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fewbit_format::{GgufFile, GgufWriter, Metadata};
use fewbit_kernels::Cpu;
use fewbit_quant::{TensorType, encode::is_encodable};

use super::input::{self, Data, Input, Tensor};
use super::{Importance, Plan, QuantizeError, Recipe};
use crate::HfModel;
use fewbit_checkpoint::source::row_bytes;

/// Number of bytes of encoded rows that are produced and written at a time.
const SLAB_BYTES: usize = 16 << 20;

/// The version of the quantization formats, in `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// Options for quantizing a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileOptions<'a> {
    /// The choice of a type for each tensor.
    pub plan: Plan,
    /// Whether to quantize tensors that are quantized already.
    pub allow_requantize: bool,
    /// The importance matrix, which weights the errors of columns.
    pub importance: Option<&'a Importance>,
    /// Number of threads; the default is that for running a model.
    pub threads: Option<usize>,
    /// Stops the work with [`QuantizeError::Cancelled`] once it is set, from any thread.
    pub cancel: Option<&'a AtomicBool>,
}

impl<'a> FileOptions<'a> {
    /// Creates options for a recipe, from full precision and without importance matrix.
    pub fn new(recipe: Recipe) -> Self {
        Self { plan: Plan::new(recipe), allow_requantize: false, importance: None, threads: None, cancel: None }
    }

    /// Allows quantizing tensors that are quantized already.
    pub fn allow_requantize(mut self, allow: bool) -> Self {
        self.allow_requantize = allow;
        self
    }

    /// Weights errors by an importance matrix.
    pub fn importance(mut self, importance: &'a Importance) -> Self {
        self.importance = Some(importance);
        self
    }

    /// Computes on `n` threads.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }

    /// Stops once `flag` is set, and leaves no file.
    pub fn cancel(mut self, flag: &'a AtomicBool) -> Self {
        self.cancel = Some(flag);
        self
    }
}

/// The result of quantizing a file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// All tensors, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// Size of the file.
    pub file_bytes: u64,
}

/// The result for one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorReport {
    /// The name.
    pub name: String,
    /// The type before.
    pub from: TensorType,
    /// The type after.
    pub to: TensorType,
    /// Number of weights.
    pub n_elems: u64,
    /// Size of the quantized tensor in bytes.
    pub n_bytes: u64,
    /// Whether an importance matrix was used.
    pub weighted: bool,
}

impl Report {
    /// Bits per weight, over all tensors.
    pub fn bits_per_weight(&self) -> f64 {
        let n_bytes: u64 = self.tensors.iter().map(|t| t.n_bytes).sum();
        let n_elems: u64 = self.tensors.iter().map(|t| t.n_elems).sum();
        8.0 * n_bytes as f64 / n_elems.max(1) as f64
    }
}

/// The work for one tensor.
struct Job<'a> {
    tensor: &'a Tensor,
    to: TensorType,
    n_bytes: u64,
    importance: Option<Vec<f32>>,
}

/// Called with the number of bytes of the source's tensors that are done, and the total.
pub type QuantizeProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Quantizes `source` to a new file at `out`, which appears only when it is complete.
///
/// # Errors
/// Every [`QuantizeError`]. Everything that can be checked in advance is checked before anything is written.
pub fn quantize_file(
    source: &GgufFile,
    out: &Path,
    options: &FileOptions<'_>,
    progress: QuantizeProgress<'_>,
) -> Result<Report, QuantizeError> {
    let input = Input::gguf(source)?;
    input.check_out(&source.parts().flatten().collect::<Vec<_>>(), out)?;
    quantize(&input, out, options, progress)
}

/// Quantizes the model of a Hugging Face folder to a new GGUF file at `out`, which appears only when it is complete.
/// Matrices that are MXFP4 in the folder stay so, unless requantizing is allowed.
///
/// `about` is further metadata for the file, such as the vocabulary and the name.
///
/// # Errors
/// Every [`QuantizeError`]. Everything that can be checked in advance is checked before anything is written.
pub fn quantize_folder(
    source: &HfModel,
    about: &Metadata,
    out: &Path,
    options: &FileOptions<'_>,
    progress: QuantizeProgress<'_>,
) -> Result<Report, QuantizeError> {
    let input = Input::folder(source, about)?;
    input.check_out(&source.files().shards().flatten().collect::<Vec<_>>(), out)?;
    quantize(&input, out, options, progress)
}

fn quantize(
    input: &Input<'_>,
    out: &Path,
    options: &FileOptions<'_>,
    progress: QuantizeProgress<'_>,
) -> Result<Report, QuantizeError> {
    let cpu = crate::load::host_cpu(None, options.threads)?;
    let jobs = plan(input, options)?;
    let total: u64 = jobs.iter().flat_map(|job| job.tensor.parts()).map(|part| part.n_bytes).sum();
    let progress = RefCell::new((progress, 0u64));
    let failure: RefCell<Option<QuantizeError>> = RefCell::new(None);
    let mut writer = GgufWriter::with_metadata(metadata(&input.metadata, options));
    for job in &jobs {
        let (failure, progress, cpu) = (&failure, &progress, &cpu);
        writer.tensor_with(&job.tensor.name, &job.tensor.shape, job.to, move |out| {
            let done = &mut |n_bytes: u64| {
                let (progress, done) = &mut *progress.borrow_mut();
                *done += n_bytes;
                progress(*done, total);
                match options.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                    true => Err(QuantizeError::Cancelled),
                    false => Ok(()),
                }
            };
            write_tensor(input, job, cpu, out, done).map_err(|error| match error {
                WriteError::Io(error) => error,
                WriteError::Quantize(error) => {
                    *failure.borrow_mut() = Some(error);
                    io::Error::other("a tensor could not be quantized")
                }
            })
        })?;
    }
    let written = writer.write_file(out);
    drop(writer);
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    let tensors = jobs.iter().map(|job| TensorReport {
        name: job.tensor.name.clone(),
        from: job.tensor.ty(),
        to: job.to,
        n_elems: job.tensor.n_elems(),
        n_bytes: job.n_bytes,
        weighted: job.importance.is_some(),
    });
    Ok(Report { tensors: tensors.collect(), file_bytes: written? })
}

/// The work for each tensor, in the order of the file.
fn plan<'a>(input: &'a Input<'_>, options: &FileOptions<'_>) -> Result<Vec<Job<'a>>, QuantizeError> {
    let mut choices = options.plan.clone();
    choices.importance = options.importance.is_some();
    input
        .tensors
        .iter()
        .map(|tensor| {
            let (name, from) = (&tensor.name, tensor.ty());
            let mut to = choices.tensor_type(&input.facts, name, &tensor.shape, from);
            let is_short = matches!(to, TensorType::F16 | TensorType::BF16);
            if input.widens && is_short && !choices.quantizes(name, &tensor.shape) {
                to = TensorType::F32;
            }
            // A folder with MXFP4 has it since its training, and other matrices that are to be quantized.
            if input.widens && tensor.ty() == TensorType::MXFP4 && !options.allow_requantize {
                to = TensorType::MXFP4;
            }
            let Some(n_bytes) = input::n_bytes(tensor, to) else {
                let n_cols = tensor.shape.last().copied().unwrap_or(0);
                return Err(QuantizeError::RowLength { name: name.clone(), n_cols, ty: to });
            };
            if tensor.parts().iter().all(|part| part.ty == to) {
                return Ok(Job { tensor, to, n_bytes, importance: None });
            }
            for part in tensor.parts().iter().filter(|part| part.ty != to) {
                let (name, ty) = (input.source.name_in_file(&part.name), part.ty);
                if !ty.is_decodable() {
                    return Err(QuantizeError::Unreadable { name, ty });
                }
                if ty.block_elems() > 1 && !options.allow_requantize {
                    return Err(QuantizeError::Requantize { name, ty });
                }
            }
            if !is_encodable(to) {
                let source = fewbit_quant::QuantError::NotEncodable { ty: to };
                return Err(QuantizeError::Tensor { name: name.clone(), source });
            }
            // Rounding to a shorter float leaves no choice, so importance does not matter.
            let importance = if to.block_elems() > 1 { importance_of(tensor, options)? } else { None };
            let optional =
                matches!(name.as_str(), "token_embd.weight" | "per_layer_token_embd.weight" | "output.weight");
            if importance.is_none() && choices.recipe == Recipe::Q2_K_S && to == TensorType::Q2_K && !optional {
                return Err(QuantizeError::NeedsImportance { recipe: choices.recipe, name: name.clone() });
            }
            Ok(Job { tensor, to, n_bytes, importance })
        })
        .collect()
}

/// The importance of a tensor's columns, if there is any for it.
fn importance_of(tensor: &Tensor, options: &FileOptions<'_>) -> Result<Option<Vec<f32>>, QuantizeError> {
    let n_cols = tensor.shape.last().copied().unwrap_or(0);
    let Some(values) = options.importance.and_then(|all| mean_squares(all, tensor, n_cols)) else { return Ok(None) };
    let n_matrices: u64 = tensor.shape.iter().rev().skip(2).product();
    let expected = n_cols.saturating_mul(n_matrices);
    if values.len() as u64 == expected {
        return Ok(Some(values));
    }
    // Rows of the embedding are looked up. They are multiplied with activations only if it is also the output matrix,
    // so a matrix of another shape under this name is not about it.
    if tensor.name == "token_embd.weight" {
        return Ok(None);
    }
    Err(QuantizeError::ImportanceSize { name: tensor.name.clone(), expected, found: values.len() as u64 })
}

/// The importance matrix's values for a tensor: under its own name or, for experts with separate tensors in the source,
/// under the names of those. Experts that no token went through weight all columns equally.
fn mean_squares(all: &Importance, tensor: &Tensor, n_cols: u64) -> Option<Vec<f32>> {
    if let Some(values) = all.mean_squares(&tensor.name) {
        return Some(values);
    }
    let parts: Vec<_> = tensor.parts().iter().map(|part| all.mean_squares(&part.name)).collect();
    if parts.iter().all(Option::is_none) {
        return None;
    }
    let alike = vec![1.0; usize::try_from(n_cols).ok()?];
    Some(parts.into_iter().flat_map(|part| part.unwrap_or_else(|| alike.clone())).collect())
}

/// The metadata of the new file: that of the source, with the changes made by quantizing.
fn metadata(old: &Metadata, options: &FileOptions<'_>) -> Metadata {
    let mut meta = old.clone();
    meta.set("general.quantization_version", QUANTIZATION_VERSION);
    meta.set("general.file_type", options.plan.recipe.file_type());
    if let Some(importance) = options.importance {
        if let Some(source) = importance.source() {
            meta.set("quantize.imatrix.file", source);
        }
        if let Some(dataset) = importance.datasets().first() {
            meta.set("quantize.imatrix.dataset", dataset.as_str());
        }
        meta.set("quantize.imatrix.entries_count", u32::try_from(importance.len()).unwrap_or(u32::MAX));
        if importance.n_chunks() > 0 {
            meta.set("quantize.imatrix.chunks_count", importance.n_chunks());
        }
    }
    meta
}

/// The reason why a tensor was not written.
enum WriteError {
    Io(io::Error),
    Quantize(QuantizeError),
}

/// Writes one tensor, some rows at a time.
fn write_tensor(
    input: &Input<'_>,
    job: &Job<'_>,
    cpu: &Cpu,
    out: &mut dyn io::Write,
    done: &mut dyn FnMut(u64) -> Result<(), QuantizeError>,
) -> Result<(), WriteError> {
    let tensor = job.tensor;
    let parts = match &tensor.data {
        Data::Parts(parts) => parts,
        Data::Values(values) => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            return out.write_all(&bytes).map_err(WriteError::Io);
        }
    };
    let quantize = |error| WriteError::Quantize(error);
    let dim = |i: usize| usize::try_from(tensor.shape[i]).expect("as large as the file at most");
    let n_dims = tensor.shape.len();
    let n_cols = if n_dims > 0 { dim(n_dims - 1) } else { 1 };
    let to_bytes = job.to.row_bytes(n_cols).expect("the plan has checked shape and types");
    // Number of rows before this part, over all matrices of the stack.
    let mut before = 0;
    for part in parts {
        let from_bytes = row_bytes(part);
        let n_rows = usize::try_from(part.n_bytes).unwrap_or(0).checked_div(from_bytes).unwrap_or(0);
        // Slabs do not cross the boundaries of the stack's matrices, because each has its own importance.
        let rows_per_matrix = if n_dims > 1 { dim(n_dims - 2) } else { n_rows }.max(1);
        let slab_rows = (SLAB_BYTES / to_bytes.max(from_bytes).max(1)).clamp(1, rows_per_matrix);
        let mut encoded = Vec::new();
        let mut start = 0;
        while start < n_rows {
            let matrix = (before + start) / rows_per_matrix;
            let end = (start + slab_rows).min((matrix + 1) * rows_per_matrix - before).min(n_rows);
            let rows = input.source.rows(&**cpu.pool(), part, start..end).map_err(|error| quantize(error.into()))?;
            if part.ty == job.to {
                out.write_all(&rows).map_err(WriteError::Io)?;
            } else {
                let importance = job.importance.as_ref().map(|w| &w[matrix * n_cols..(matrix + 1) * n_cols]);
                encoded.resize((end - start) * to_bytes, 0);
                cpu.convert(part.ty, &rows, job.to, n_cols, importance, &mut encoded).map_err(|error| {
                    let (name, source) = (input.source.name_in_file(&part.name), error.after(start * n_cols));
                    quantize(QuantizeError::Tensor { name, source })
                })?;
                out.write_all(&encoded).map_err(WriteError::Io)?;
            }
            done(((end - start) * from_bytes) as u64).map_err(quantize)?;
            start = end;
        }
        before += n_rows;
        input.source.release(part);
    }
    Ok(())
}
