//! The commands, one file each.

#[cfg(feature = "serve")]
pub(crate) mod audit;
#[cfg(feature = "serve")]
pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod devices;
pub(crate) mod embed;
pub(crate) mod imatrix;
pub(crate) mod inspect;
#[cfg(feature = "serve")]
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod perplexity;
pub(crate) mod pull;
pub(crate) mod quantize;
pub(crate) mod run;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod tokenize;
#[cfg(feature = "serve")]
pub(crate) mod usage;
