//! Pages of keys and values: counted, shared, copied when one of several holders writes.
//!
//! A page holds 256 positions of all layers of one sequence. Sequences that begin alike hold the same
//! pages; the count of holders is that of an [`Arc`], so nothing has to be given back by hand, and a page that
//! is held more than once is never written.
//!
//! A new element type is a variant of [`KvType`] and of [`Page`], an arm in each `match` of this file, and an
//! implementation of [`Element`].

use crate::{ModelConfig, ModelError};
use fewbit_kernels::kv::{Q8, zeroed};
use fewbit_kernels::{AttentionShape, KvElement, KvPage, KvPageMut};
use half::f16;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The element type of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)]
pub enum KvType {
    /// Half precision: 2 bytes.
    F16,
    /// Full precision: 4 bytes.
    F32,
    /// Blocks of 32 elements: a byte each, and a scale in half precision. For heads of a multiple of 32 elements.
    Q8_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// Whether heads of this size can be stored.
    pub fn supports(self, head_dim: usize) -> bool {
        match self {
            Self::F16 => f16::supports(head_dim),
            Self::F32 => f32::supports(head_dim),
            Self::Q8_0 => Q8::supports(head_dim),
        }
    }

    /// Elements of the keys and of the values of one page of one layer.
    fn page_elems(self, shape: &AttentionShape) -> (usize, usize) {
        match self {
            Self::F16 => (shape.key_elems::<f16>(), shape.value_elems::<f16>()),
            Self::F32 => (shape.key_elems::<f32>(), shape.value_elems::<f32>()),
            Self::Q8_0 => (shape.key_elems::<Q8>(), shape.value_elems::<Q8>()),
        }
    }

    /// Bytes of one page of one layer.
    fn layer_bytes(self, shape: &AttentionShape) -> usize {
        let (keys, values) = self.page_elems(shape);
        let elem_bytes = match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::Q8_0 => 1,
        };
        elem_bytes * (keys + values)
    }

    /// The name that the command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What pages of a model need to know about its attention: sizes that all layers share, and the window of a
/// model in which every layer has one.
pub(crate) fn attention_shape(config: &ModelConfig) -> AttentionShape {
    AttentionShape { window: config.widest_window(), ..config.attention_shape(0) }
}

/// Bytes of one page.
pub(crate) fn page_bytes(config: &ModelConfig, ty: KvType) -> u64 {
    let shape = attention_shape(config);
    config.n_layers() as u64 * ty.layer_bytes(&shape) as u64
}

/// What all pages of a model have in common, and how many of them there are.
#[derive(Debug)]
pub(crate) struct PageKind {
    /// Tells the caches of different models apart.
    pub(crate) model: u64,
    pub(crate) ty: KvType,
    pub(crate) shape: AttentionShape,
    pub(crate) n_layers: usize,
    live: Arc<AtomicUsize>,
}

impl PageKind {
    pub(crate) fn new(model: u64, config: &ModelConfig, ty: KvType) -> Self {
        let shape = attention_shape(config);
        Self { model, ty, shape, n_layers: config.n_layers(), live: Arc::default() }
    }

    /// Pages of this kind that exist, each counted once however many hold it.
    pub(crate) fn n_live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Bytes of one page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.n_layers * self.ty.layer_bytes(&self.shape)
    }

    /// Where a layer's keys and values lie in a page.
    fn parts(&self, layer: usize) -> (Range<usize>, Range<usize>) {
        let (nk, nv) = self.ty.page_elems(&self.shape);
        (layer * nk..(layer + 1) * nk, layer * nv..(layer + 1) * nv)
    }

    /// An empty page.
    pub(crate) fn new_page(&self) -> Result<Page, ModelError> {
        Ok(match self.ty {
            KvType::F16 => Page::F16(Arc::new(PageOf::new(self)?)),
            KvType::F32 => Page::F32(Arc::new(PageOf::new(self)?)),
            KvType::Q8_0 => Page::Q8(Arc::new(PageOf::new(self)?)),
        })
    }
}

/// A page that is held here, and perhaps elsewhere too.
#[derive(Clone)]
pub(crate) enum Page {
    F16(Arc<PageOf<f16>>),
    F32(Arc<PageOf<f32>>),
    Q8(Arc<PageOf<Q8>>),
}

/// The elements of a page.
pub(crate) struct PageOf<T> {
    /// `[n_layers][key_elems]`
    keys: Vec<T>,
    /// `[n_layers][value_elems]`
    values: Vec<T>,
    live: Arc<AtomicUsize>,
}

/// An element type that pages can have.
pub(crate) trait Element: KvElement + Copy {
    /// The elements of a page of this type.
    fn of(page: &Page) -> Option<&PageOf<Self>>;
    /// The same, to be written; `None` also if the page is shared.
    fn of_mut(page: &mut Page) -> Option<&mut PageOf<Self>>;
    /// Appends the bytes of `elems`, little-endian.
    fn put(elems: &[Self], out: &mut Vec<u8>);
    /// Reads `elems.len()` elements from bytes of that length.
    fn take(bytes: &[u8], elems: &mut [Self]);
}

macro_rules! element {
    ($t:ty, $variant:ident, $n_bytes:literal, $to_bytes:expr, $from_bytes:expr) => {
        impl Element for $t {
            fn of(page: &Page) -> Option<&PageOf<Self>> {
                if let Page::$variant(page) = page { Some(page) } else { None }
            }

            fn of_mut(page: &mut Page) -> Option<&mut PageOf<Self>> {
                if let Page::$variant(page) = page { Arc::get_mut(page) } else { None }
            }

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

element!(f16, F16, 2, f16::to_le_bytes, f16::from_le_bytes);
element!(f32, F32, 4, f32::to_le_bytes, f32::from_le_bytes);
element!(Q8, Q8, 1, |x: Q8| [x.to_byte()], |[byte]: [u8; 1]| Q8::from_byte(byte));

impl<T: Element> PageOf<T> {
    fn new(kind: &PageKind) -> Result<Self, ModelError> {
        let (n_keys, n_values) = kind.ty.page_elems(&kind.shape);
        let (keys, values) = (zeroed(kind.n_layers * n_keys)?, zeroed(kind.n_layers * n_values)?);
        kind.live.fetch_add(1, Ordering::Relaxed);
        Ok(Self { keys, values, live: Arc::clone(&kind.live) })
    }

    fn copy_from(&mut self, other: &Self) {
        self.keys.copy_from_slice(&other.keys);
        self.values.copy_from_slice(&other.values);
    }

    /// One layer, to be read.
    pub(crate) fn layer(&self, kind: &PageKind, layer: usize) -> KvPage<'_, T> {
        let (keys, values) = kind.parts(layer);
        KvPage { keys: &self.keys[keys], values: &self.values[values] }
    }

    /// One layer, to be written.
    pub(crate) fn layer_mut(&mut self, kind: &PageKind, layer: usize) -> KvPageMut<'_, T> {
        let (keys, values) = kind.parts(layer);
        KvPageMut { keys: &mut self.keys[keys], values: &mut self.values[values] }
    }
}

impl<T> Drop for PageOf<T> {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Page {
    /// Whether somebody else holds it too.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::F16(page) => Arc::strong_count(page) > 1,
            Self::F32(page) => Arc::strong_count(page) > 1,
            Self::Q8(page) => Arc::strong_count(page) > 1,
        }
    }

    /// A page of its own with the same elements.
    pub(crate) fn copy(&self, kind: &PageKind) -> Result<Self, ModelError> {
        fn fill<T: Element>(mut to: Page, from: &PageOf<T>) -> Page {
            T::of_mut(&mut to).expect("a new page of the same type").copy_from(from);
            to
        }
        let new = kind.new_page()?;
        Ok(match self {
            Self::F16(page) => fill(new, page),
            Self::F32(page) => fill(new, page),
            Self::Q8(page) => fill(new, page),
        })
    }

    /// Appends its bytes: all keys, then all values.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        fn put<T: Element>(page: &PageOf<T>, out: &mut Vec<u8>) {
            T::put(&page.keys, out);
            T::put(&page.values, out);
        }
        match self {
            Self::F16(page) => put(page, out),
            Self::F32(page) => put(page, out),
            Self::Q8(page) => put(page, out),
        }
    }

    /// A page from the bytes that [`put`](Self::put) gave; `bytes` is as long as a page.
    pub(crate) fn take(kind: &PageKind, bytes: &[u8]) -> Result<Self, ModelError> {
        fn fill<T: Element>(mut to: Page, bytes: &[u8]) -> Page {
            let page = T::of_mut(&mut to).expect("a new page of its kind's type");
            let (keys, values) = bytes.split_at(size_of_val(&page.keys[..]));
            T::take(keys, &mut page.keys);
            T::take(values, &mut page.values);
            to
        }
        assert_eq!(bytes.len(), kind.page_bytes(), "bytes of a page");
        let new = kind.new_page()?;
        Ok(match kind.ty {
            KvType::F16 => fill::<f16>(new, bytes),
            KvType::F32 => fill::<f32>(new, bytes),
            KvType::Q8_0 => fill::<Q8>(new, bytes),
        })
    }
}
