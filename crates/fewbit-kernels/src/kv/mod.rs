//! What a cache of keys and values is made of: element types, how they lie in a page, and the two inner products of
//! attention with a tile of queries.
//!
//! Keys are stored so that positions are vector lanes, values so that elements are. For one head:
//!
//! ```text
//! f16, f32   keys    [PAGE / 16] blocks: [head_dim][16]
//!            values  [PAGE][head_dim rounded up to 16]
//! Q8_0       keys    [PAGE / 16] blocks: [head_dim / 32][16] f16 scales, [head_dim / 4][16][4] codes
//!            values  [PAGE][head_dim] codes, [head_dim / 32][PAGE] f16 scales
//! ```
//! A block of Q8_0 keys is a panel of 16 weight rows, and a score is the product that `fewbit_quant::dot` defines for
//! that type: the query is quantized as activations are. Values are floats again:
//!
//! ```text
//! score   s_j  = chain over blocks b of 32 elements: (sum of q * k, integer) * (dk_jb * dq_b) + s_j
//! value   w_jb = p_j * dv_jb,   o[d] = chain over j: w_jb * v_j[d] + o[d]
//! ```
//! Q8_0 exists for heads of a multiple of 32 elements.

mod float;
mod kernels;
mod q8;

pub use float::KvFloat;
pub use kernels::KvKernels;
pub(crate) use kernels::MAX_TILE;
pub use q8::Q8;

use crate::weights::PANEL_ROWS;
use crate::{Isa, KernelError};
use std::alloc::{Layout, alloc_zeroed};
use std::ops::Range;
use std::ptr::NonNull;

/// Positions of a page, and of one partial result of attention.
pub const PAGE: usize = 256;

/// Positions in one block of keys.
pub(crate) const KEY_BLOCK: usize = PANEL_ROWS;

/// The scaled queries of some rows, in the forms that products with keys read.
#[derive(Debug, Default)]
pub struct Queries {
    /// `[n_rows][head_dim]`
    pub(crate) rows: Vec<f32>,
    /// For Q8_0: per tile of rows a group as [`Group32`] has it.
    codes: Vec<[i8; 4]>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

/// An element type of the cache: f16, f32 or [`Q8`].
///
/// Sealed: kernels exist for these.
#[allow(private_interfaces)]
pub trait KvElement: Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Whether heads of this size can be stored.
    fn supports(head_dim: usize) -> bool;
    /// Elements that the keys of 16 positions of one head take.
    fn key_block_elems(head_dim: usize) -> usize;
    /// Elements that the values of one head in one page take.
    fn head_value_elems(head_dim: usize) -> usize;
    #[doc(hidden)]
    fn store_key(isa: Isa, k: &[f32], lane: usize, block: &mut [Self]);
    #[doc(hidden)]
    fn store_value(isa: Isa, v: &[f32], position: usize, values: &mut [Self]);
    /// Makes the forms of `queries.rows` that [`scores`](Self::scores) needs, for tiles of `tile` rows.
    #[doc(hidden)]
    fn prepare(isa: Isa, head_dim: usize, tile: usize, queries: &mut Queries);
    /// `out[m][j] = q[m] . k_j` for the queries `rows`, which are one tile; `out` has row stride [`PAGE`].
    #[doc(hidden)]
    fn scores(kernels: KvKernels, q: &Queries, rows: Range<usize>, head_dim: usize, keys: &[Self], out: &mut [f32]);
    /// `o[m] += sum over j in range of p[m][j] * v_j`; `p` has row stride [`PAGE`], `o` is `[n][width]`.
    #[doc(hidden)]
    fn values(
        kernels: KvKernels,
        n: usize,
        p: &[f32],
        range: Range<usize>,
        values: &[Self],
        head_dim: usize,
        o: &mut [f32],
    );
}

/// `n` elements of zero bits, which are zeros in every type. Large ones are cleared by the operating system, page by
/// page as they are first written: a page of a cache is some megabytes, and a short request writes little of it.
///
/// # Errors
/// [`KernelError::OutOfMemory`]
pub fn zeroed<T: KvElement>(n: usize) -> Result<Vec<T>, KernelError> {
    let out_of_memory = || KernelError::OutOfMemory { bytes: n.saturating_mul(size_of::<T>()) };
    let layout = Layout::array::<T>(n).map_err(|_| out_of_memory())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout's size is not 0.
    let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
    // SAFETY: allocated by the global allocator as an array of `n` elements, and zero bits are a value of f16, f32 and
    // `Q8`, which are all the types that there are.
    Ok(unsafe { Vec::from_raw_parts(ptr.cast().as_ptr(), n, n) })
}
