//! The linear layer: packed weights, their product as a candle operation, and its gradient.
//!
//! ```text
//! y[.., r] = sum over c of w[r, c] x[.., c] (+ bias[r])        x: [.., n_cols]   y: [.., n_rows]
//! ```
//! The leading dimensions are one batch of rows. It is computed in parts of a bounded size, so that the memory of a
//! product, apart from its output, does not grow with the batch; a row's result does not depend on where the batch is
//! split.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Module, Shape, Tensor};
use fewbit_format::GgufFile;
use fewbit_kernels::{ActivationKinds, Matrix};
use fewbit_quant::TensorType;
use half::{bf16, f16};

use crate::{Error, Kernels};

/// Number of input values that are quantized at a time, unless a single row is longer.
const PART_ELEMS: usize = 1 << 22;

/// A linear layer with quantized weights: the equivalent of candle's `QMatMul` on fewbit's kernels.
///
/// A clone shares the weights.
#[derive(Clone, Debug)]
pub struct QLinear {
    weights: Arc<Weights>,
    bias: Option<Tensor>,
}

#[derive(Debug)]
struct Weights {
    matrix: Matrix,
    kernels: Kernels,
}

/// The product as a custom operation of candle.
struct Product(Arc<Weights>);

impl QLinear {
    /// Packs the weights of a candle tensor `[n_rows, n_cols]`, for the kernels of the process.
    ///
    /// # Errors
    /// [`Error::NotOnCpu`], [`Error::NotMatrix`], and [`Error::Kernel`] for types without kernels (`Q8_1`, `Q8K`) and
    /// if memory or threads are missing.
    pub fn from_qtensor(weights: QTensor) -> Result<Self, Error> {
        Self::pack_qtensor(&Kernels::shared()?, &weights)
    }

    /// As [`from_qtensor`](Self::from_qtensor), for weights that are also held elsewhere. They are copied: if only this
    /// layer needs the tensor, use `from_qtensor`.
    ///
    /// # Errors
    /// As [`from_qtensor`](Self::from_qtensor).
    pub fn from_arc(weights: Arc<QTensor>) -> Result<Self, Error> {
        Self::pack_qtensor(&Kernels::shared()?, &weights)
    }

    /// As [`from_qtensor`](Self::from_qtensor), for the given kernels.
    ///
    /// # Errors
    /// As [`from_qtensor`](Self::from_qtensor).
    pub fn pack_qtensor(kernels: &Kernels, weights: &QTensor) -> Result<Self, Error> {
        if !weights.device().is_cpu() {
            return Err(Error::NotOnCpu { what: "the weights", location: weights.device().location() });
        }
        let shape = weights.shape().dims();
        Self::pack(kernels, tensor_type(weights.dtype()), shape, "the tensor", &weights.data()?)
    }

    /// Packs a matrix of a GGUF file, for the kernels of the process. The bytes are read once, from the file's map.
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::NotMatrix`], [`Error::Kernel`].
    pub fn from_gguf(file: &GgufFile, name: &str) -> Result<Self, Error> {
        Self::pack_gguf(&Kernels::shared()?, file, name)
    }

    /// As [`from_gguf`](Self::from_gguf), for the given kernels.
    ///
    /// # Errors
    /// As [`from_gguf`](Self::from_gguf).
    pub fn pack_gguf(kernels: &Kernels, file: &GgufFile, name: &str) -> Result<Self, Error> {
        let tensor = file.tensor(name).ok_or_else(|| Error::NoTensor { name: name.to_owned() })?;
        // Sizes beyond this machine's address space cannot occur: the parser has checked that the tensor is in the
        // file.
        let shape: Vec<usize> = tensor.shape.iter().map(|&n| usize::try_from(n).unwrap_or(usize::MAX)).collect();
        Self::pack(kernels, tensor.ty, &shape, name, file.tensor_bytes(tensor))
    }

    /// Packs the rows of a matrix as in GGUF files: blocks of `ty`, row after row. `shape`: `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`Error::Kernel`] if `bytes` does not have the length that `shape` and `ty` require, and as above.
    pub fn from_bytes(kernels: &Kernels, ty: TensorType, shape: [usize; 2], bytes: &[u8]) -> Result<Self, Error> {
        Self::pack(kernels, ty, &shape, "the matrix", bytes)
    }

    fn pack(kernels: &Kernels, ty: TensorType, shape: &[usize], what: &str, bytes: &[u8]) -> Result<Self, Error> {
        let &[n_rows, n_cols] = shape else {
            return Err(Error::NotMatrix { what: what.to_owned(), shape: shape.to_vec() });
        };
        let matrix = kernels.cpu().pack(ty, n_rows, n_cols, bytes)?;
        Ok(Self { weights: Arc::new(Weights { matrix, kernels: kernels.clone() }), bias: None })
    }

    /// Adds a bias `[n_rows]` to the layer, which is added to every output.
    ///
    /// # Errors
    /// [`Error::BiasShape`], [`Error::NotOnCpu`].
    pub fn with_bias(self, bias: Tensor) -> Result<Self, Error> {
        if bias.dims() != [self.n_rows()] {
            return Err(Error::BiasShape { expected: self.n_rows(), shape: bias.dims().to_vec() });
        }
        on_cpu("the bias", &bias)?;
        Ok(Self { bias: Some(bias), ..self })
    }

    /// Number of rows of the weights: the last dimension of an output.
    pub fn n_rows(&self) -> usize {
        self.weights.matrix.n_rows()
    }

    /// Number of columns of the weights: the last dimension of an input.
    pub fn n_cols(&self) -> usize {
        self.weights.matrix.n_cols()
    }

    /// The type of the weights.
    pub fn ty(&self) -> TensorType {
        self.weights.matrix.ty()
    }

    /// Size of the packed weights in bytes.
    pub fn n_bytes(&self) -> usize {
        self.weights.matrix.n_bytes()
    }

    /// The product of `x` (`[.., n_cols]`, f32, f16 or bf16, in any layout) as `[.., n_rows]` of the same type. It does
    /// the same as `forward`, with an error that can be matched. 16-bit inputs are computed in f32.
    ///
    /// Gradients flow to `x` (and the bias), as for a product with the decoded weights; the weights have no gradient.
    ///
    /// # Errors
    /// [`Error::NotOnCpu`], [`Error::InputType`], [`Error::InputShape`], [`Error::Candle`].
    pub fn try_forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        on_cpu("the input", x)?;
        if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::InputType { found: x.dtype() });
        }
        if x.dims().last() != Some(&self.n_cols()) {
            return Err(Error::InputShape { expected: self.n_cols(), shape: x.dims().to_vec() });
        }
        let y = x.apply_op1(Product(Arc::clone(&self.weights)))?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => Ok(y.broadcast_add(&bias.to_dtype(y.dtype())?)?),
        }
    }

    /// Looks up rows of the weights by index, in f32: `[..]` gives `[.., n_cols]`. For weights that are token
    /// embeddings.
    ///
    /// # Errors
    /// [`Error::NoRow`], [`Error::OutOfMemory`], [`Error::Candle`] if the ids are not integers.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor, Error> {
        let (n_rows, n_cols) = (self.n_rows(), self.n_cols());
        let flat = ids.to_device(&Device::Cpu)?.flatten_all()?;
        let flat: Vec<i64> = match ids.dtype() {
            DType::U8 | DType::U32 | DType::I64 => flat.to_dtype(DType::I64)?.to_vec1()?,
            _ => flat.to_vec1()?,
        };
        let mut values = zeros("embeddings", flat.len().checked_mul(n_cols))?;
        for (i, &id) in flat.iter().enumerate() {
            let row = usize::try_from(id).ok().filter(|&row| row < n_rows).ok_or(Error::NoRow { id, n_rows })?;
            self.weights.matrix.decode_row(row, &mut values[i * n_cols..(i + 1) * n_cols]);
        }
        let shape = [ids.dims(), &[n_cols]].concat();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// The weights in f32: `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn dequantize(&self) -> Result<Tensor, Error> {
        self.weights.dequantize()
    }
}

impl Module for QLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        Ok(self.try_forward(x)?)
    }
}

impl Weights {
    fn dequantize(&self) -> Result<Tensor, Error> {
        let (n_rows, n_cols) = (self.matrix.n_rows(), self.matrix.n_cols());
        let mut values = zeros("the weights", n_rows.checked_mul(n_cols))?;
        if n_cols > 0 {
            let rows = values.chunks_exact_mut(n_cols);
            rows.enumerate().for_each(|(i, row)| self.matrix.decode_row(i, row));
        }
        Ok(Tensor::from_vec(values, (n_rows, n_cols), &Device::Cpu)?)
    }

    /// The product of all rows of `values`, which `layout` describes.
    fn product<T: Value>(&self, values: &[T], layout: &Layout) -> Result<Vec<f32>, Error> {
        let (n_rows, n_cols) = (self.matrix.n_rows(), self.matrix.n_cols());
        let batch = &layout.dims()[..layout.dims().len() - 1];
        let n = batch.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let mut out = zeros("the output", n.and_then(|n| n.checked_mul(n_rows)))?;
        if out.is_empty() || n_cols == 0 {
            return Ok(out);
        }
        let n = out.len() / n_rows;
        let per_part = (PART_ELEMS / n_cols).clamp(1, n);
        let kinds = ActivationKinds::of([self.matrix.ty()]);
        let mut gathered = Vec::new();
        self.kernels.with_activations(|activations| {
            for (part, out) in out.chunks_mut(per_part * n_rows).enumerate() {
                let first = part * per_part;
                let rows = first..first + out.len() / n_rows;
                let at = layout.start_offset();
                let plain = layout.is_contiguous().then(|| &values[at + rows.start * n_cols..at + rows.end * n_cols]);
                let x = match plain.and_then(T::as_f32) {
                    Some(x) => x,
                    None => {
                        gathered.clear();
                        rows.for_each(|row| gather(row, values, layout, &mut gathered));
                        &gathered[..]
                    }
                };
                self.kernels.cpu().activate(x, n_cols, kinds, activations);
                self.kernels.cpu().matmul(&self.matrix, activations, out);
            }
        });
        Ok(out)
    }
}

/// Appends one row of a tensor in any layout. `row` is an index over the leading dimensions.
fn gather<T: Value>(mut row: usize, values: &[T], layout: &Layout, out: &mut Vec<f32>) {
    let (dims, strides) = (layout.dims(), layout.stride());
    let last = dims.len() - 1;
    let mut at = layout.start_offset();
    for (&dim, &stride) in dims[..last].iter().zip(strides).rev() {
        at += row % dim * stride;
        row /= dim;
    }
    out.extend((0..dims[last]).map(|i| values[at + i * strides[last]].widen()));
}

/// An element of an input.
trait Value: Copy {
    fn widen(self) -> f32;
    /// The same values, if they are `f32`.
    fn as_f32(values: &[Self]) -> Option<&[f32]>;
}

impl Value for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Value for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl Value for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn as_f32(_: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "fewbit-product"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let product = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(self.0.product(x, layout)?),
            CpuStorage::F16(x) => CpuStorage::F16(self.0.product(x, layout)?.into_iter().map(f16::from_f32).collect()),
            CpuStorage::BF16(x) => {
                CpuStorage::BF16(self.0.product(x, layout)?.into_iter().map(bf16::from_f32).collect())
            }
            _ => candle_core::bail!("checked before the operation was applied: the input is made of floats"),
        };
        let batch = &layout.dims()[..layout.dims().len() - 1];
        Ok((product, Shape::from([batch, &[self.0.matrix.n_rows()]].concat())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        if x.elem_count() == 0 || gradient.elem_count() == 0 {
            return Ok(Some(x.zeros_like()?));
        }
        let weights = self.0.dequantize()?.to_dtype(gradient.dtype())?;
        let rows = gradient.reshape(((), self.0.matrix.n_rows()))?;
        Ok(Some(rows.matmul(&weights)?.reshape(x.shape())?))
    }
}

/// Allocates zeros, if there is memory for them.
fn zeros(what: &'static str, n_elems: Option<usize>) -> Result<Vec<f32>, Error> {
    let n_elems = n_elems.unwrap_or(usize::MAX);
    let mut values = Vec::new();
    values.try_reserve_exact(n_elems).map_err(|_| Error::OutOfMemory { what, n_elems })?;
    values.resize(n_elems, 0.0);
    Ok(values)
}

fn on_cpu(what: &'static str, tensor: &Tensor) -> Result<(), Error> {
    match tensor.device() {
        Device::Cpu => Ok(()),
        device => Err(Error::NotOnCpu { what, location: device.location() }),
    }
}

/// The name of a candle tensor's type in GGUF files.
fn tensor_type(ty: GgmlDType) -> TensorType {
    match ty {
        GgmlDType::F32 => TensorType::F32,
        GgmlDType::F16 => TensorType::F16,
        GgmlDType::BF16 => TensorType::BF16,
        GgmlDType::Q4_0 => TensorType::Q4_0,
        GgmlDType::Q4_1 => TensorType::Q4_1,
        GgmlDType::Q5_0 => TensorType::Q5_0,
        GgmlDType::Q5_1 => TensorType::Q5_1,
        GgmlDType::Q8_0 => TensorType::Q8_0,
        GgmlDType::Q8_1 => TensorType::Q8_1,
        GgmlDType::Q2K => TensorType::Q2_K,
        GgmlDType::Q3K => TensorType::Q3_K,
        GgmlDType::Q4K => TensorType::Q4_K,
        GgmlDType::Q5K => TensorType::Q5_K,
        GgmlDType::Q6K => TensorType::Q6_K,
        GgmlDType::Q8K => TensorType::Q8_K,
    }
}
