//! Importance matrices: the mean square of the activations that are multiplied with each column of each matrix.
//!
//! The cost of an error in a weight depends on the activations of its column, so the encoders weight errors by these
//! values. Two file formats are in use, both of llama.cpp's `llama-imatrix`:
//!
//! ```text
//! GGUF     general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size;
//!          per matrix NAME.in_sum2 [n_matrices, n_cols] and NAME.counts [n_matrices, 1], both F32
//! legacy   entries i32; per entry: length i32, name, calls i32, values i32, value f32 ... (the mean, times calls)
//!          then, in newer files: chunks i32, length i32, name of the text
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewbit_format::{FormatError, GgufFile, GgufWriter};
use fewbit_quant::TensorType;

/// An error of reading an importance matrix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportanceError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The content of the file is invalid.
    #[error("cannot use the importance matrix {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: Box<ImportanceError>,
    },
    /// The GGUF file is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The GGUF file is not an importance matrix.
    #[error("the file is a model, not an importance matrix: general.type is {found:?}")]
    NotImportance {
        /// The value of `general.type`.
        found: String,
    },
    /// A legacy file ends early, or its counts are invalid.
    #[error("the importance matrix is damaged: {what} at byte {offset}")]
    Damaged {
        /// What was being read.
        what: &'static str,
        /// Position in the file.
        offset: usize,
    },
    /// A matrix has sums without counts, counts without sums, or the two do not match.
    #[error("the importance matrix is damaged: sums and counts of {name:?} do not fit each other")]
    Mismatch {
        /// The matrix.
        name: String,
    },
    /// A value is negative, infinite or not a number.
    #[error("the importance matrix has a value for {name:?} that is not a positive number")]
    Value {
        /// The matrix.
        name: String,
    },
    /// The file has no entries.
    #[error("the importance matrix is empty")]
    Empty,
}

/// The values of one matrix.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// `[n_matrices, n_cols]`: sums of squares.
    sums: Vec<f32>,
    /// `[n_matrices]`: number of rows that were added up.
    counts: Vec<f32>,
}

/// An importance matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    entries: BTreeMap<String, Entry>,
    /// The file that it was read from, if any.
    source: Option<String>,
    datasets: Vec<String>,
    /// Number of text windows that it was computed on; 0 if unknown.
    n_chunks: u32,
    /// Number of tokens in a window; 0 if unknown.
    chunk_tokens: u32,
}

impl Importance {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// Every [`ImportanceError`].
    pub fn open(path: &Path) -> Result<Self, ImportanceError> {
        let bytes = std::fs::read(path).map_err(|source| ImportanceError::Io { path: path.to_owned(), source })?;
        let read = Self::from_bytes(bytes)
            .map_err(|error| ImportanceError::File { path: path.to_owned(), error: Box::new(error) })?;
        Ok(Self { source: Some(path.display().to_string()), ..read })
    }

    /// Reads the bytes of a file of either format.
    ///
    /// # Errors
    /// Every [`ImportanceError`] except those that name a file.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImportanceError> {
        let found = if bytes.starts_with(b"GGUF") { Self::from_gguf(bytes)? } else { Self::from_legacy(&bytes)? };
        if found.entries.is_empty() {
            return Err(ImportanceError::Empty);
        }
        for (name, entry) in &found.entries {
            let fine = |v: &f32| v.is_finite() && *v >= 0.0;
            if !(entry.sums.iter().all(fine) && entry.counts.iter().all(fine)) {
                return Err(ImportanceError::Value { name: name.clone() });
            }
        }
        Ok(found)
    }

    fn from_gguf(bytes: Vec<u8>) -> Result<Self, ImportanceError> {
        let file = GgufFile::from_bytes(bytes)?;
        let meta = file.metadata();
        if let Some(kind) = meta.str("general.type")?.filter(|kind| *kind != "imatrix") {
            return Err(ImportanceError::NotImportance { found: kind.to_owned() });
        }
        if meta.contains("general.architecture") {
            return Err(ImportanceError::NotImportance { found: "model".to_owned() });
        }
        let floats = |tensor: &fewbit_format::TensorInfo| {
            let bytes = file.tensor_bytes(tensor).as_chunks::<4>().0;
            bytes.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>()
        };
        let mut entries = BTreeMap::new();
        for tensor in file.tensors() {
            let mismatch = |name: &str| ImportanceError::Mismatch { name: name.to_owned() };
            let (name, other) = match tensor.name.strip_suffix(".in_sum2") {
                Some(name) => (name, format!("{name}.counts")),
                None => match tensor.name.strip_suffix(".counts") {
                    Some(name) => (name, format!("{name}.in_sum2")),
                    None => continue,
                },
            };
            let Some(counts) = file.tensor(&other).filter(|t| t.ty == TensorType::F32 && tensor.ty == t.ty) else {
                return Err(mismatch(name));
            };
            if other.ends_with(".in_sum2") {
                continue;
            }
            let (sums, counts) = (floats(tensor), floats(counts));
            if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
                return Err(mismatch(name));
            }
            entries.insert(name.to_owned(), Entry { sums, counts });
        }
        Ok(Self {
            entries,
            source: None,
            datasets: meta.str_array("imatrix.datasets")?.unwrap_or_default().to_vec(),
            n_chunks: meta.u32("imatrix.chunk_count")?.unwrap_or(0),
            chunk_tokens: meta.u32("imatrix.chunk_size")?.unwrap_or(0),
        })
    }

    fn from_legacy(bytes: &[u8]) -> Result<Self, ImportanceError> {
        let mut reader = Legacy { bytes, offset: 0 };
        let n_entries = reader.count("the number of entries")?;
        let mut found = Self::default();
        for _ in 0..n_entries {
            let name = reader.text("a name")?;
            let calls = reader.int("a number of calls")?;
            let n_values = reader.count("a number of values")?;
            let n_bytes = n_values.checked_mul(4).ok_or(reader.damaged("a number of values"))?;
            let values = reader.take(n_bytes, "values")?;
            let sums: Vec<f32> = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            // Files from before counts were stored contain means.
            let counts = vec![if calls > 0 { calls as f32 } else { 1.0 }];
            if sums.is_empty() {
                return Err(ImportanceError::Mismatch { name });
            }
            found.entries.insert(name, Entry { sums, counts });
        }
        if reader.offset < bytes.len() {
            found.n_chunks = u32::try_from(reader.int("the number of chunks")?).unwrap_or(0);
            if reader.offset < bytes.len() {
                found.datasets.push(reader.text("the name of the text")?);
            }
        }
        Ok(found)
    }

    /// The mean squares for a matrix: `[n_matrices, n_cols]`, or `[n_cols]` if they apply to all of its matrices. A
    /// matrix that no row was multiplied with (an expert that was never chosen) gets 1 everywhere.
    pub fn mean_squares(&self, name: &str) -> Option<Vec<f32>> {
        let entry = self.entries.get(name)?;
        let n_cols = entry.sums.len() / entry.counts.len();
        let rows = entry.sums.chunks_exact(n_cols).zip(&entry.counts);
        Some(rows.flat_map(|(sums, &n)| sums.iter().map(move |&sum| if n > 0.0 { sum / n } else { 1.0 })).collect())
    }

    /// Removes the matrices whose names `keep` rejects.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|name, _| keep(name));
    }

    /// Number of matrices with values.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no matrices.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The names of the matrices with values, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The file that it was read from.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// The names of the texts that it was computed on.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// Number of text windows that it was computed on; 0 if unknown.
    pub fn n_chunks(&self) -> u32 {
        self.n_chunks
    }

    /// Number of tokens in a window; 0 if unknown.
    pub fn chunk_tokens(&self) -> u32 {
        self.chunk_tokens
    }

    /// Writes it in the GGUF format, as llama.cpp reads it.
    ///
    /// # Errors
    /// Errors of the GGUF format, for names that are too long and for the file itself.
    pub fn write(&self, path: &Path) -> Result<u64, FormatError> {
        let mut writer = GgufWriter::new();
        writer.set("general.type", "imatrix").set("imatrix.datasets", self.datasets.clone());
        writer.set("imatrix.chunk_count", self.n_chunks).set("imatrix.chunk_size", self.chunk_tokens);
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for (name, entry) in &self.entries {
            let n_matrices = entry.counts.len() as u64;
            let n_cols = entry.sums.len() as u64 / n_matrices;
            let ty = TensorType::F32;
            writer.tensor(format!("{name}.in_sum2"), &[n_matrices, n_cols], ty, bytes(&entry.sums))?;
            writer.tensor(format!("{name}.counts"), &[n_matrices, 1], ty, bytes(&entry.counts))?;
        }
        writer.write_file(path)
    }
}

/// Sums up the squares of activations.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    /// Sums in `f64`, so that long texts lose no precision, and counts for each matrix of a stack.
    entries: BTreeMap<String, (Vec<f64>, Vec<u64>)>,
}

impl Collector {
    /// Creates an empty collector.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds rows of activations that were multiplied with matrix `index` of `n_matrices` that are stored as one tensor.
    /// `x`: `[n_rows, n_cols]`.
    ///
    /// # Panics
    /// If the same name is used with different shapes.
    pub fn add(&mut self, name: &str, index: usize, n_matrices: usize, x: &[f32], n_cols: usize) {
        if !self.entries.contains_key(name) {
            self.entries.insert(name.to_owned(), (vec![0.0; n_matrices * n_cols], vec![0; n_matrices]));
        }
        let (sums, counts) = self.entries.get_mut(name).expect("inserted above");
        assert!(sums.len() == n_matrices * n_cols && index < n_matrices, "one shape for {name}");
        let sums = &mut sums[index * n_cols..(index + 1) * n_cols];
        for row in x.chunks_exact(n_cols) {
            for (sum, &v) in sums.iter_mut().zip(row) {
                *sum += f64::from(v) * f64::from(v);
            }
        }
        counts[index] += (x.len() / n_cols) as u64;
    }

    /// Converts the sums to an importance matrix: `n_chunks` windows of `chunk_tokens` tokens of `dataset`.
    pub fn finish(self, dataset: &str, n_chunks: u32, chunk_tokens: u32) -> Importance {
        let entries = self.entries.into_iter().map(|(name, (sums, counts))| {
            let sums = sums.into_iter().map(|sum| sum as f32).collect();
            (name, Entry { sums, counts: counts.into_iter().map(|n| n as f32).collect() })
        });
        Importance {
            entries: entries.collect(),
            source: None,
            datasets: vec![dataset.to_owned()],
            n_chunks,
            chunk_tokens,
        }
    }
}

/// A cursor over a legacy file; no count is accepted unless enough bytes remain for it.
struct Legacy<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Legacy<'a> {
    fn damaged(&self, what: &'static str) -> ImportanceError {
        ImportanceError::Damaged { what, offset: self.offset }
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], ImportanceError> {
        let end = self.offset.checked_add(n);
        let bytes = end.and_then(|end| self.bytes.get(self.offset..end)).ok_or_else(|| self.damaged(what))?;
        self.offset += n;
        Ok(bytes)
    }

    fn int(&mut self, what: &'static str) -> Result<i32, ImportanceError> {
        let mut value = [0; 4];
        value.copy_from_slice(self.take(4, what)?);
        Ok(i32::from_le_bytes(value))
    }

    fn count(&mut self, what: &'static str) -> Result<usize, ImportanceError> {
        let value = self.int(what)?;
        usize::try_from(value).ok().filter(|&n| n > 0).ok_or_else(|| self.damaged(what))
    }

    fn text(&mut self, what: &'static str) -> Result<String, ImportanceError> {
        let n = usize::try_from(self.int(what)?).map_err(|_| self.damaged(what))?;
        let bytes = self.take(n, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.damaged(what))
    }
}
