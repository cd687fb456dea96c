//! aarch64.

mod dotprod;
pub(crate) mod neon;

pub(crate) use dotprod::{DotProd, I8mm};
