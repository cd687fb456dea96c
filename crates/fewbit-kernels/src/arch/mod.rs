//! Instruction sets: thin implementations of [`crate::generic::Simd`].

/// Methods of [`Simd`](crate::generic::Simd) with one-expression bodies: `fn name(args) -> T { expression }`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
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

/// Functions on registers that every CPU of the target has.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! registers {
    ($($(#[$doc:meta])* fn $name:ident $(<const $n:ident: u32>)? ($($arg:ident: $ty:ty),*) -> $ret:ty $body:block)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[allow(unused_unsafe)]
        pub(crate) fn $name $(<const $n: u32>)? ($($arg: $ty),*) -> $ret {
            // SAFETY: the target itself has these instructions, so every CPU that runs this does.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod baseline;
mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use baseline::Baseline;
pub(crate) use portable::Portable;
