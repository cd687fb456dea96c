//! Starts the program for tests.

use std::process::{Command, Stdio};

pub(crate) const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/stories260K-f32.gguf");

pub(crate) fn fewbit(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbit"));
    command.args(args).stdin(Stdio::null()).env("FEWBIT_THREADS", "1");
    // Tests must not read or change the user's files, nor use the network.
    command.env("FEWBIT_HOME", "/nonexistent/fewbit").env("HF_ENDPOINT", "http://127.0.0.1:9");
    command
}
