//! x86-64.

mod avx2;
mod avx512;
mod avx_vnni;
pub(crate) mod sse2;

pub(crate) use avx_vnni::AvxVnni;
pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
