//! x86-64.

/// Methods of [`Simd`](crate::generic::Simd) that are one expression each: `fn name(args) -> T { expression }`.
macro_rules! methods {
    ($(fn $name:ident $(<const $n:ident: u32>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        #[allow(unused_unsafe)]
        unsafe fn $name $(<const $n: u32>)? ($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: `Simd`'s contract says that the CPU has the instruction set and that pointers are valid
            // for the width read or written.
            unsafe { $body }
        }
    )*};
}

mod avx2;
mod avx512;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
