//! The decoder of fewbit: configuration, weights, KV cache, one forward pass for the Llama family.
#![forbid(unsafe_code)]
