//! The program, as its tests start it.

use std::process::{Command, Stdio};

pub(crate) const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

pub(crate) fn fewbit(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbit"));
    command.args(args).stdin(Stdio::null()).env("FEWBIT_THREADS", "1");
    // No test may read or change what the user has, nor reach the network.
    command.env("FEWBIT_HOME", "/nonexistent/fewbit").env("HF_ENDPOINT", "http://127.0.0.1:9");
    command
}
