//! The pages of a CPU segment: one buffer per page, in which every layer has a fixed range.
//!
//! To add a kind of state, add a variant to [`LayerState`], its size in [`CpuStates::new`], and the arm of the forward
//! pass that reads and writes it. To add an element type for keys and values, add a variant to [`KvType`], an
//! implementation of [`Element`], and an arm to `of_kv_type`.

use super::attention::attention_shape;
use crate::snapshots::{LOG_ROWS, usual_states};
use crate::state::{StatePage, StateStore};
use crate::{KvType, ModelConfig, ModelError, Recurrent};
use fewbit_kernels::KvElement;
use fewbit_kernels::kv::{Q8, zeroed};
use half::f16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// The state of a layer in a page, and the range of its elements. With latent attention, values are part of the keys, and
/// their range is empty.
pub(crate) enum LayerState {
    KeysValues {
        keys: Range<usize>,
        values: Range<usize>,
    },
    /// Nothing in pages: layers without attention, those with a state of fixed size, for which see [`FixedLayout`], and those
    /// that see the keys and values of another layer.
    Nothing,
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
            if !config.has_keys_values(layer) {
                return LayerState::Nothing;
            }
            let (n_keys, n_values) = ty.page_elems(&attention_shape(config, layer));
            LayerState::KeysValues { keys: place(n_keys), values: place(n_values) }
        };
        let layers = layers.map(state).collect();
        Self { layers, n_elems }
    }

    /// The ranges of a layer's keys and values; layers are counted within the segment.
    pub(crate) fn keys_values(&self, layer: usize) -> (Range<usize>, Range<usize>) {
        match &self.layers[layer] {
            LayerState::KeysValues { keys, values } => (keys.clone(), values.clone()),
            LayerState::Nothing => (0..0, 0..0),
        }
    }
}

/// The layout of the states of recurrent layers at one position, and of the log of their inputs.
pub(crate) struct FixedLayout {
    /// `None` for layers that are not recurrent.
    layers: Vec<Option<FixedLayer>>,
    n_elems: usize,
    n_log_elems: usize,
}

/// The places of a recurrent layer.
#[derive(Clone)]
pub(crate) struct FixedLayer {
    /// In a state: the last inputs of the convolution, `[n_taps - 1, n_channels]`.
    pub(crate) convolution: Range<usize>,
    /// In a state: the state of every head.
    pub(crate) heads: Range<usize>,
    /// In the log: `[LOG_ROWS, row]`.
    pub(crate) log: Range<usize>,
}

impl FixedLayout {
    pub(crate) fn new(config: &ModelConfig, layers: Range<usize>) -> Self {
        let (mut n_elems, mut n_log_elems) = (0, 0);
        let place = |end: &mut usize, n: usize| {
            *end += n;
            *end - n..*end
        };
        let layer = |layer| {
            let recurrent = config.recurrent_of(layer)?;
            let (convolution, heads) = match recurrent {
                Recurrent::DeltaNet(delta) => {
                    ((delta.n_taps - 1) * delta.n_channels(), delta.n_v_heads * delta.k_dim * delta.v_dim)
                }
                Recurrent::StateSpace(space) => {
                    ((space.n_taps - 1) * space.n_channels(), space.value_dim() * space.state_dim)
                }
                Recurrent::ShortConvolution { n_taps } => ((n_taps - 1) * config.dim, 0),
                _ => unreachable!("every kind of recurrent layer is above"),
            };
            Some(FixedLayer {
                convolution: place(&mut n_elems, convolution),
                heads: place(&mut n_elems, heads),
                log: place(&mut n_log_elems, LOG_ROWS * log_row(&recurrent, config.dim)),
            })
        };
        let layers = layers.map(layer).collect();
        Self { layers, n_elems, n_log_elems }
    }

    /// The places of a recurrent layer; layers are counted within the segment.
    pub(crate) fn layer(&self, layer: usize) -> FixedLayer {
        self.layers[layer].clone().expect("a recurrent layer")
    }

    /// The stores of states and of logs, if there are recurrent layers.
    pub(crate) fn stores(&self) -> Option<[Arc<dyn StateStore>; 2]> {
        (self.n_elems > 0).then(|| [floats(self.n_elems), floats(self.n_log_elems)])
    }
}

/// Elements of a row of the log: the input of the convolution, and the scores of the gates of a state.
pub(crate) fn log_row(recurrent: &Recurrent, dim: usize) -> usize {
    match recurrent {
        Recurrent::DeltaNet(delta) => delta.n_channels() + 2 * delta.n_v_heads,
        Recurrent::StateSpace(space) => space.n_channels() + space.n_heads,
        Recurrent::ShortConvolution { .. } => dim,
        _ => unreachable!("every kind of recurrent layer is above"),
    }
}

/// Bytes of the states of recurrent layers of a cache of this many positions.
pub(crate) fn fixed_bytes(config: &ModelConfig, n_positions: usize) -> u64 {
    let layout = FixedLayout::new(config, 0..config.n_layers());
    let hidden = if config.mtp.is_some() { config.dim } else { 0 };
    let (n_elems, n_log_elems) = (layout.n_elems + hidden, layout.n_log_elems + LOG_ROWS * hidden);
    4 * (usual_states(n_positions) as u64 * n_elems as u64 + n_log_elems as u64)
}

/// A store without content, for segments without recurrent layers.
pub(crate) fn no_states() -> Arc<dyn StateStore> {
    floats(0)
}

/// A store of states of this many floats.
pub(crate) fn floats(n_elems: usize) -> Arc<dyn StateStore> {
    Arc::new(CpuStates::<f32> { n_elems, of: PhantomData })
}

/// Bytes of one page over all layers, and that which predicts a further token.
pub(crate) fn page_bytes(config: &ModelConfig, ty: KvType) -> u64 {
    let with_mtp = config.with_mtp();
    let config = with_mtp.as_ref().unwrap_or(config);
    (0..config.n_layers()).map(|layer| layer_page_bytes(config, ty, layer)).fold(0, u64::saturating_add)
}

/// Bytes of a layer's part of a page.
pub(crate) fn layer_page_bytes(config: &ModelConfig, ty: KvType, layer: usize) -> u64 {
    if !config.has_keys_values(layer) {
        return 0;
    }
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
pub(crate) fn store(layout: &Layout, ty: KvType) -> Arc<dyn StateStore> {
    let n_elems = layout.n_elems;
    of_kv_type!(ty, T => Arc::new(CpuStates::<T> { n_elems, of: PhantomData }))
}

/// Creates pages of one element type.
struct CpuStates<T> {
    n_elems: usize,
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
        self.n_elems * size_of::<T>()
    }

    fn saved_bytes(&self) -> usize {
        self.page_bytes()
    }

    fn new_page(&self) -> Result<StatePage, ModelError> {
        Ok(Box::new(zeroed::<T>(self.n_elems)?))
    }

    fn copy_page(&self, page: &StatePage) -> Result<StatePage, ModelError> {
        let mut copy = zeroed::<T>(self.n_elems)?;
        copy.copy_from_slice(elems(page));
        Ok(Box::new(copy))
    }

    fn save_page(&self, page: &StatePage, out: &mut Vec<u8>) -> Result<(), ModelError> {
        T::put(elems(page), out);
        Ok(())
    }

    fn load_page(&self, bytes: &[u8]) -> Result<StatePage, ModelError> {
        let mut page = zeroed::<T>(self.n_elems)?;
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
