//! GGUF files for fewbit: a validating reader over bytes, and a writer.
