//! Tokenizers and chat templates of fewbit.
#![forbid(unsafe_code)]
