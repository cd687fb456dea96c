//! The PTX of each module, for each architecture: made by `cargo xtask ptx`.

/// Names of modules, and their texts by architecture, ascending.
pub(super) const TEXTS: &[(&str, [&str; 2])] = &[];
