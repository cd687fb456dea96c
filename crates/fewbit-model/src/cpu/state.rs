//! The pages of a CPU segment: one buffer per page, in which every layer has a fixed range.
//!
//! To add a kind of state, add a variant to [`LayerState`], its size in [`CpuStates::new`], and the arm of the forward
//! pass that reads and writes it. To add an element type for keys and values, add a variant to [`KvType`], an
//! implementation of [`Element`], and an arm to `of_kv_type`.

use super::attention::attention_shape;
use crate::state::{StatePage, StateStore};
use crate::{KvType, ModelConfig, ModelError};
use fewbit_kernels::KvElement;
use fewbit_kernels::kv::{Q8, zeroed};
use half::f16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// The state of a layer in a page, and the range of its elements. With latent attention, values are part of the keys, and
/// their range is empty.
pub(crate) enum LayerState {
    KeysValues { keys: Range<usize>, values: Range<usize> },
}

/// The layout of a page of some layers.
pub(crate) struct Layout {
    layers: Vec<LayerState>,
    n_elems: usize,
}

impl Layout {
    pub(crate) fn new(config: &ModelConfig, ty: KvType, layers: Range<usize>) -> Self {
        let mut n_elems = 0;
        let mut place = |n: usize| {
            n_elems += n;
            n_elems - n..n_elems
        };
        let state = |layer| {
            let (n_keys, n_values) = ty.page_elems(&attention_shape(config, layer));
            LayerState::KeysValues { keys: place(n_keys), values: place(n_values) }
        };
        let layers = layers.map(state).collect();
        Self { layers, n_elems }
    }

    /// The ranges of a layer's keys and values; layers are counted within the segment.
    pub(crate) fn keys_values(&self, layer: usize) -> (Range<usize>, Range<usize>) {
        let LayerState::KeysValues { keys, values } = &self.layers[layer];
        (keys.clone(), values.clone())
    }
}

/// Bytes of one page over all layers.
pub(crate) fn page_bytes(config: &ModelConfig, ty: KvType) -> u64 {
    (0..config.n_layers()).map(|layer| layer_page_bytes(config, ty, layer)).fold(0, u64::saturating_add)
}

/// Bytes of a layer's part of a page.
pub(crate) fn layer_page_bytes(config: &ModelConfig, ty: KvType, layer: usize) -> u64 {
    let (keys, values) = ty.page_elems(&attention_shape(config, layer));
    ((keys + values) as u64).saturating_mul(ty.elem_bytes() as u64)
}

/// Runs code with the element type of `$ty` as the type `$t`.
macro_rules! of_kv_type {
    ($ty:expr, $t:ident => $body:expr) => {
        match $ty {
            crate::KvType::F16 => {
                type $t = half::f16;
                $body
            }
            crate::KvType::F32 => {
                type $t = f32;
                $body
            }
            crate::KvType::Q8_0 => {
                type $t = fewbit_kernels::kv::Q8;
                $body
            }
        }
    };
}
pub(crate) use of_kv_type;

/// Creates the store of pages with this layout.
pub(crate) fn store(layout: &Arc<Layout>, ty: KvType) -> Arc<dyn StateStore> {
    let layout = Arc::clone(layout);
    of_kv_type!(ty, T => Arc::new(CpuStates::<T> { layout, of: PhantomData }))
}

/// Creates pages of one element type.
struct CpuStates<T> {
    layout: Arc<Layout>,
    of: PhantomData<fn() -> T>,
}

/// The elements of a page.
pub(crate) fn elems<T: Element>(page: &StatePage) -> &[T] {
    page.downcast_ref::<Vec<T>>().expect("a page of this segment")
}

/// The elements of a page, for writing.
pub(crate) fn elems_mut<T: Element>(page: &mut StatePage) -> &mut [T] {
    page.downcast_mut::<Vec<T>>().expect("a page of this segment")
}

impl<T: Element> StateStore for CpuStates<T> {
    fn page_bytes(&self) -> usize {
        self.layout.n_elems * size_of::<T>()
    }

    fn saved_bytes(&self) -> usize {
        self.page_bytes()
    }

    fn new_page(&self) -> Result<StatePage, ModelError> {
        Ok(Box::new(zeroed::<T>(self.layout.n_elems)?))
    }

    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError> {
        let mut copy = zeroed::<T>(self.layout.n_elems)?;
        copy.copy_from_slice(elems(page));
        Ok(Box::new(copy))
    }

    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError> {
        T::put(elems(page), out);
        Ok(())
    }

    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError> {
        let mut page = zeroed::<T>(self.layout.n_elems)?;
        T::take(bytes, &mut page);
        Ok(Box::new(page))
    }
}

/// An element type that pages can have.
pub(crate) trait Element: KvElement + Copy + Send + Sync + 'static {
    /// Appends the bytes of `elems`, little-endian.
    fn put(elems: &[Self], out: &mut Vec<u8>);
    /// Reads `elems.len()` elements from bytes of that length.
    fn take(bytes: &[u8], elems: &mut [Self]);
}

macro_rules! element {
    ($t:ty, $n_bytes:literal, $to_bytes:expr, $from_bytes:expr) => {
        impl Element for $t {
            fn put(elems: &[Self], out: &mut Vec<u8>) {
                out.extend(elems.iter().flat_map(|x| $to_bytes(*x)));
            }

            fn take(bytes: &[u8], elems: &mut [Self]) {
                for (x, bytes) in elems.iter_mut().zip(bytes.as_chunks::<$n_bytes>().0) {
                    *x = $from_bytes(*bytes);
                }
            }
        }
    };
}

element!(f16, 2, f16::to_le_bytes, f16::from_le_bytes);
element!(f32, 4, f32::to_le_bytes, f32::from_le_bytes);
element!(Q8, 1, |x: Q8| [x.to_byte()], |[byte]: [u8; 1]| Q8::from_byte(byte));
