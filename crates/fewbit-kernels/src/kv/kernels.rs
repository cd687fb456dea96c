//! The inner products of attention on each instruction set.

use super::{KEY_BLOCK, PAGE};
use crate::Isa;

/// Number of query rows in the largest tile.
pub(crate) const MAX_TILE: usize = 8;

/// The inner products on one instruction set, and how many query rows they take at a time.
#[derive(Clone, Copy, Debug)]
pub struct KvKernels {
    pub(super) isa: Isa,
    pub(crate) rows: usize,
}

impl KvKernels {
    pub(crate) fn of(isa: Isa) -> Self {
        let rows = match isa {
            Isa::Avx512 => MAX_TILE,
            _ => 4,
        };
        Self { isa, rows }
    }
}

/// Calls an inner product of the instruction set's module, or the scalar definition. The arguments must be variables,
/// and the caller must have asserted the lengths that the product reads and writes.
macro_rules! on_isa {
    ($isa:expr, $product:ident($($arg:ident),*), $definition:block) => {
        match $isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: lengths asserted before; a `Cpu` is made only with an `Isa` that this CPU has.
            Isa::Avx2 | Isa::AvxVnni => unsafe { $crate::kv::kernels::avx2::$product($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { $crate::kv::kernels::avx512::$product($($arg),*) },
            // SAFETY: as above; every CPU of the target runs it.
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Isa::Sse2 | Isa::Neon => unsafe { $crate::kv::kernels::baseline::$product($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::DotProd | Isa::I8mm => unsafe { $crate::kv::kernels::dotprod::$product($($arg),*) },
            // SAFETY: lengths asserted before; every CPU runs it.
            Isa::Portable => unsafe { $crate::kv::kernels::portable::$product($($arg),*) },
            _ => $definition,
        }
    };
}
pub(super) use on_isa;

/// The inner products for one instruction set, with the tile's height chosen at run time.
macro_rules! tiles {
    ($module:ident, $simd:ty, $attr:meta, $r:literal, $chunks:literal, [$($m:literal)*]) => {
        pub(super) mod $module {
            use super::{KEY_BLOCK, PAGE};
            use crate::generic::attention::{self, KvLoad};
            use crate::generic::q32::Group32;

            /// # Safety
            /// The slices hold what `float.rs` asserts, and the CPU has the features.
            #[$attr]
            pub(in crate::kv) unsafe fn scores<T: KvLoad>(n: usize, hd: usize, n_blocks: usize, q: &[f32], keys: &[T], out: &mut [f32]) {
                let (q, keys, out) = (q.as_ptr(), keys.as_ptr(), out.as_mut_ptr());
                // SAFETY: the caller's promise.
                unsafe {
                    match n {
                        $($m => attention::scores::<$simd, T, $r, $m>(hd, n_blocks, q, keys, out, PAGE),)*
                        _ => unreachable!("a tile of {n} rows"),
                    }
                }
            }

            /// # Safety
            /// `p` has `n` rows of stride `PAGE` with `len` weights, `v` `len` and `o` `n` rows of stride `width` with
            /// `n_elems` elements, a multiple of 16, and the CPU has the features.
            #[$attr]
            pub(in crate::kv) unsafe fn values<T: KvLoad>(
                n: usize,
                n_elems: usize,
                width: usize,
                len: usize,
                p: &[f32],
                v: &[T],
                o: &mut [f32],
            ) {
                let (p, v, o) = (p.as_ptr(), v.as_ptr(), o.as_mut_ptr());
                // SAFETY: the caller's promise.
                unsafe {
                    match n {
                        $($m => attention::values::<$simd, T, $r, $chunks, $m>(n_elems, width, len, p, PAGE, v, o),)*
                        _ => unreachable!("a tile of {n} rows"),
                    }
                }
            }

            /// # Safety
            /// The group has `n` rows of `hd` elements, `keys` `n_keys` blocks, `out` `n` rows of stride `PAGE`, and the
            /// CPU has the features.
            #[$attr]
            pub(in crate::kv) unsafe fn scores_q8<T: KvLoad>(n: usize, hd: usize, n_keys: usize, q: Group32, keys: &[T], out: &mut [f32]) {
                let (keys, out) = (keys.as_ptr().cast(), out.as_mut_ptr());
                debug_assert_eq!(KEY_BLOCK, 16);
                // SAFETY: the caller's promise.
                unsafe {
                    match n {
                        $($m => attention::scores_q8::<$simd, $r, $m>(hd, n_keys, q, keys, out, PAGE),)*
                        _ => unreachable!("a tile of {n} rows"),
                    }
                }
            }

            /// # Safety
            /// As `values` with 32 elements, of which `codes` are the codes; `scales` has `len` f16, and `w` room for as
            /// many weights as `p` has.
            #[allow(clippy::too_many_arguments)]
            #[$attr]
            pub(in crate::kv) unsafe fn values_q8<T: KvLoad>(
                n: usize,
                width: usize,
                len: usize,
                p: &[f32],
                scales: &[T],
                w: &mut [f32],
                codes: &[T],
                o: &mut [f32],
            ) {
                let scales = scales.as_ptr().cast();
                // SAFETY: the caller's promise.
                unsafe {
                    for m in 0..n {
                        let at = m * PAGE;
                        attention::weigh::<$simd, $r>(len, p.as_ptr().add(at), scales, w.as_mut_ptr().add(at));
                    }
                    values(n, 32, width, len, w, codes, o);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
tiles!(avx2, crate::arch::x86_64::Avx2, target_feature(enable = "avx2,fma,f16c"), 2, 1, [1 2 3 4]);
#[cfg(target_arch = "x86_64")]
tiles!(
    avx512,
    crate::arch::x86_64::Avx512,
    target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"),
    1,
    2,
    [1 2 3 4 5 6 7 8]
);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
tiles!(baseline, crate::arch::Baseline, inline(never), 4, 1, [1 2 3 4]);
#[cfg(target_arch = "aarch64")]
tiles!(dotprod, crate::arch::aarch64::DotProd, target_feature(enable = "dotprod"), 4, 1, [1 2 3 4]);
tiles!(portable, crate::arch::Portable, inline(never), 2, 1, [1 2 3 4]);
