//! Quantizing a whole file: GGUF in, GGUF out, in the memory of a part of one tensor.

use std::cell::RefCell;
use std::io;
use std::path::Path;

use fewbit_format::{GgufFile, GgufWriter, Metadata, TensorInfo};
use fewbit_kernels::Engine;
use fewbit_quant::{TensorType, encode::is_encodable};

use super::{Importance, ModelFacts, Plan, QuantizeError, Recipe};

/// Bytes of encoded rows that are made and written at a time.
const SLAB_BYTES: usize = 16 << 20;

/// The version of the quantization formats, in `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// How a file is quantized.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileOptions<'a> {
    /// Which type each tensor gets.
    pub plan: Plan,
    /// Quantize tensors that are quantized already.
    pub allow_requantize: bool,
    /// How much each column matters.
    pub importance: Option<&'a Importance>,
    /// Threads to compute on; by default as for a model.
    pub threads: Option<usize>,
}

impl<'a> FileOptions<'a> {
    /// A recipe as it is, from full precision, without importance.
    pub fn new(recipe: Recipe) -> Self {
        Self { plan: Plan::new(recipe), allow_requantize: false, importance: None, threads: None }
    }

    /// Quantize tensors that are quantized already.
    pub fn allow_requantize(mut self, allow: bool) -> Self {
        self.allow_requantize = allow;
        self
    }

    /// Weight errors by an importance matrix.
    pub fn importance(mut self, importance: &'a Importance) -> Self {
        self.importance = Some(importance);
        self
    }

    /// Compute on `n` threads.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = Some(n);
        self
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Every tensor, in the file's order.
    pub tensors: Vec<TensorReport>,
    /// Size of the file.
    pub file_bytes: u64,
}

/// What became of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorReport {
    /// The name.
    pub name: String,
    /// The type before.
    pub from: TensorType,
    /// The type after.
    pub to: TensorType,
    /// Weights.
    pub n_elems: u64,
    /// Bytes after.
    pub n_bytes: u64,
    /// Whether an importance matrix had a say.
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

/// One tensor's job.
struct Job<'f> {
    tensor: &'f TensorInfo,
    to: TensorType,
    n_bytes: u64,
    importance: Option<Vec<f32>>,
}

/// Quantizes `source` to a new file at `out`, which appears when it is complete. `progress` is told the bytes of
/// `source`'s tensors that are done, and how many there are.
///
/// # Errors
/// Every [`QuantizeError`]; all that can be known before is checked before anything is written.
pub fn quantize_file(
    source: &GgufFile,
    out: &Path,
    options: &FileOptions<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, QuantizeError> {
    let engine = crate::weights::engine(None, options.threads)?;
    check_paths(source, out)?;
    let jobs = plan(source, options)?;
    let total: u64 = jobs.iter().map(|job| job.tensor.n_bytes).sum();
    let progress = RefCell::new((progress, 0u64));
    let failure: RefCell<Option<QuantizeError>> = RefCell::new(None);
    let mut writer = GgufWriter::with_metadata(metadata(source.metadata(), options));
    for job in &jobs {
        let (failure, progress, engine) = (&failure, &progress, &engine);
        writer.tensor_with(&job.tensor.name, &job.tensor.shape, job.to, move |out| {
            let done = &mut |n_bytes: u64| {
                let (progress, done) = &mut *progress.borrow_mut();
                *done += n_bytes;
                progress(*done, total);
            };
            write_tensor(source, job, engine, out, done).map_err(|error| match error {
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
        from: job.tensor.ty,
        to: job.to,
        n_elems: job.tensor.n_elems(),
        n_bytes: job.n_bytes,
        weighted: job.importance.is_some(),
    });
    Ok(Report { tensors: tensors.collect(), file_bytes: written? })
}

/// An error if `out` is the file that is read.
fn check_paths(source: &GgufFile, out: &Path) -> Result<(), QuantizeError> {
    let Some(path) = source.path() else { return Ok(()) };
    // A file that does not exist yet is no other file.
    let same = match (path.canonicalize(), out.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same { Err(QuantizeError::SameFile { path: out.to_owned() }) } else { Ok(()) }
}

/// What happens to each tensor, in the order of the file.
fn plan<'f>(source: &'f GgufFile, options: &FileOptions<'_>) -> Result<Vec<Job<'f>>, QuantizeError> {
    let facts = ModelFacts::from_gguf(source.metadata(), source.tensor("output.weight").is_none())?;
    let mut choices = options.plan.clone();
    choices.importance = options.importance.is_some();
    source
        .tensors()
        .iter()
        .map(|tensor| {
            let name = || tensor.name.clone();
            let to = choices.tensor_type(&facts, &tensor.name, &tensor.shape, tensor.ty);
            if to == tensor.ty {
                return Ok(Job { tensor, to, n_bytes: tensor.n_bytes, importance: None });
            }
            if !tensor.ty.is_decodable() {
                return Err(QuantizeError::Unreadable { name: name(), ty: tensor.ty });
            }
            if tensor.ty.block_elems() > 1 && !options.allow_requantize {
                return Err(QuantizeError::Requantize { name: name(), ty: tensor.ty });
            }
            if !is_encodable(to) {
                let source = fewbit_quant::QuantError::NotEncodable { ty: to };
                return Err(QuantizeError::Tensor { name: name(), source });
            }
            let n_cols = tensor.shape.last().copied().unwrap_or(0);
            let row_bytes = usize::try_from(n_cols).ok().and_then(|n| to.row_bytes(n));
            let n_rows = tensor.n_elems().checked_div(n_cols).unwrap_or(0);
            let Some(n_bytes) = row_bytes.and_then(|bytes| n_rows.checked_mul(bytes as u64)) else {
                return Err(QuantizeError::RowLength { name: name(), n_cols, ty: to });
            };
            // Rounding to a shorter float leaves no choice.
            let importance = if to.block_elems() > 1 { importance_of(tensor, options)? } else { None };
            let optional = matches!(tensor.name.as_str(), "token_embd.weight" | "output.weight");
            if importance.is_none() && choices.recipe == Recipe::Q2_K_S && to == TensorType::Q2_K && !optional {
                return Err(QuantizeError::NeedsImportance { recipe: choices.recipe, name: name() });
            }
            Ok(Job { tensor, to, n_bytes, importance })
        })
        .collect()
}

/// The importance of a tensor's columns, if there is any for it.
fn importance_of(tensor: &TensorInfo, options: &FileOptions<'_>) -> Result<Option<Vec<f32>>, QuantizeError> {
    let Some(values) = options.importance.and_then(|all| all.mean_squares(&tensor.name)) else { return Ok(None) };
    let n_cols = tensor.shape.last().copied().unwrap_or(0);
    let n_matrices: u64 = tensor.shape.iter().rev().skip(2).product();
    let expected = n_cols.saturating_mul(n_matrices);
    if values.len() as u64 == expected {
        return Ok(Some(values));
    }
    // Tokens are looked up in the embedding, and met by activations only where it is the output as well: a matrix
    // of another shape under its name says nothing about it.
    if tensor.name == "token_embd.weight" {
        return Ok(None);
    }
    Err(QuantizeError::ImportanceSize { name: tensor.name.clone(), expected, found: values.len() as u64 })
}

/// The metadata of the new file: that of the old one, and what was done.
fn metadata(old: &Metadata, options: &FileOptions<'_>) -> Metadata {
    let mut meta = old.clone();
    for key in ["split.no", "split.count", "split.tensors.count"] {
        meta.remove(key);
    }
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

/// Why a tensor was not written.
enum WriteError {
    Io(io::Error),
    Quantize(QuantizeError),
}

/// Writes one tensor, some rows at a time.
fn write_tensor(
    source: &GgufFile,
    job: &Job<'_>,
    engine: &Engine,
    out: &mut dyn io::Write,
    done: &mut dyn FnMut(u64),
) -> Result<(), WriteError> {
    let (tensor, bytes) = (job.tensor, source.tensor_bytes(job.tensor));
    if job.to == tensor.ty {
        out.write_all(bytes).map_err(WriteError::Io)?;
        source.release(tensor);
        done(tensor.n_bytes);
        return Ok(());
    }
    let invariant = "the plan has checked shape and types";
    let dim = |i: usize| usize::try_from(tensor.shape[i]).expect("as large as the file at most");
    let n_dims = tensor.shape.len();
    let n_cols = dim(n_dims - 1);
    let (from_bytes, to_bytes) =
        (tensor.ty.row_bytes(n_cols).expect(invariant), job.to.row_bytes(n_cols).expect(invariant));
    let n_rows = bytes.len() / from_bytes;
    // Slabs do not cross the matrices of a stack, which have an importance each.
    let rows_per_matrix = if n_dims > 1 { dim(n_dims - 2) } else { n_rows }.max(1);
    let slab_rows = (SLAB_BYTES / to_bytes).clamp(1, rows_per_matrix);
    let mut encoded = Vec::new();
    let mut start = 0;
    while start < n_rows {
        let matrix = start / rows_per_matrix;
        let end = (start + slab_rows).min((matrix + 1) * rows_per_matrix);
        let importance = job.importance.as_ref().map(|w| &w[matrix * n_cols..(matrix + 1) * n_cols]);
        let rows = &bytes[start * from_bytes..end * from_bytes];
        encoded.resize((end - start) * to_bytes, 0);
        engine.convert(tensor.ty, rows, job.to, n_cols, importance, &mut encoded).map_err(|error| {
            let source = error.after(start * n_cols);
            WriteError::Quantize(QuantizeError::Tensor { name: tensor.name.clone(), source })
        })?;
        out.write_all(&encoded).map_err(WriteError::Io)?;
        done(rows.len() as u64);
        start = end;
    }
    source.release(tensor);
    Ok(())
}
