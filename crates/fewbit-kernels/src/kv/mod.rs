//! The layout of a key-value cache: element types, their order in a page, and the two inner products of attention with
//! a tile of queries.
//!
//! Keys are stored so that vector lanes are positions; values are stored so that lanes are elements. For one head:
//!
//! ```text
//! f16, f32   keys    [PAGE / 16] blocks: [head_dim][16]
//!            values  [PAGE][head_dim rounded up to 16]
//! Q8_0       keys    [PAGE / 16] blocks: [head_dim / 32][16] f16 scales, [head_dim / 4][16][4] codes
//!            values  [PAGE][head_dim] codes, [head_dim / 32][PAGE] f16 scales
//! ```
//! A block of Q8_0 keys is a panel of 16 weight rows, and a score is the product that `fewbit_quant::dot` defines for
//! that type: the query is quantized as activations are. Products with values are computed in floats:
//!
//! ```text
//! score   s_j  = chain over blocks b of 32 elements: (sum of q * k, integer) * (dk_jb * dq_b) + s_j
//! value   w_jb = p_j * dv_jb,   o[d] = chain over j: w_jb * v_j[d] + o[d]
//! ```
//! Q8_0 needs a head size that is a multiple of 32.
//!
//! With latent attention, values are a part of the keys: [`KvElement::copy_values`] arranges that part as values.

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

/// Positions in a page, which are also those of one partial result of attention.
pub const PAGE: usize = 256;

/// Positions in one block of keys.
pub(crate) const KEY_BLOCK: usize = PANEL_ROWS;

/// The scaled queries of some rows, in the forms that products with keys read.
#[derive(Debug, Default)]
pub struct Queries {
    /// `[n_rows][head_dim]`
    pub(crate) rows: Vec<f32>,
    /// For Q8_0: a group as in [`Group32`] for each tile of rows.
    codes: Vec<[i8; 4]>,
    scales: Vec<f32>,
    offsets: Vec<i32>,
}

/// An element type of the cache: f16, f32 or [`Q8`].
///
/// The trait is sealed, because kernels exist for these types only.
#[allow(private_interfaces)]
pub trait KvElement: Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Whether heads of this size can be stored.
    fn supports(head_dim: usize) -> bool;
    /// Number of elements that the keys of 16 positions of one head take.
    fn key_block_elems(head_dim: usize) -> usize;
    /// Number of elements that the values of one head take in one page.
    fn head_value_elems(head_dim: usize) -> usize;
    #[doc(hidden)]
    fn store_key(isa: Isa, k: &[f32], lane: usize, block: &mut [Self]);
    #[doc(hidden)]
    fn store_value(isa: Isa, v: &[f32], position: usize, values: &mut [Self]);
    /// Converts `queries.rows` into the forms that [`scores`](Self::scores) needs, for tiles of `tile` rows.
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
    /// Writes the elements from `offset` on of the keys at some positions of a page to their places as values. `keys` are
    /// those of one head of `head_dim` elements, `values` those of one head of `head_dim - offset`.
    #[doc(hidden)]
    fn copy_values(keys: &[Self], head_dim: usize, offset: usize, positions: Range<usize>, values: &mut [Self]);
    /// Calls `f` with a buffer of this thread, of `n` elements that have any value.
    #[doc(hidden)]
    fn with_values<R>(n: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

/// [`KvElement::with_values`] for a type.
macro_rules! thread_buffer {
    ($t:ty) => {
        fn with_values<R>(n: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
            thread_local! {
                static VALUES: std::cell::RefCell<Vec<$t>> = std::cell::RefCell::default();
            }
            VALUES.with_borrow_mut(|values| {
                values.resize(n.max(values.len()), <$t>::default());
                f(&mut values[..n])
            })
        }
    };
}
pub(super) use thread_buffer;

/// `n` elements of zero bits, which mean zero in every type. The operating system clears large buffers page by page
/// when they are first written: a page of a cache takes megabytes, of which a short request writes little.
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
