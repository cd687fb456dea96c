//! SmolLM2 for the tests: fetched once by the hub, and loaded once for all tests that use default settings.

use std::path::PathBuf;
use std::sync::LazyLock;

use fewbit::{Model, ModelBuilder};

pub(crate) const NAME: &str = "smollm2-135m-instruct";

/// A text to feed it.
pub(crate) const PROSE: &str = include_str!("../data/prose.txt");

/// The name, or the path in `FEWBIT_TEST_SMOLLM2`.
fn name() -> String {
    std::env::var("FEWBIT_TEST_SMOLLM2").unwrap_or_else(|_| NAME.to_owned())
}

/// Fails with a message if the model is missing: tests that need it are not skipped.
fn missing(error: &fewbit::Error) -> ! {
    panic!("this test needs {NAME}: run `cargo run --release -p fewbit-cli -- pull {NAME}` first: {error}")
}

/// The file.
pub(crate) fn path() -> PathBuf {
    let silent = |_: &fewbit::hub::Event<'_>| {};
    fewbit::resolve(name(), &silent).unwrap_or_else(|error| missing(&error))
}

/// The model, with other settings.
pub(crate) fn load(builder: ModelBuilder) -> Model {
    builder.load(name()).unwrap_or_else(|error| missing(&error))
}

/// The model, with default settings.
pub(crate) fn model() -> &'static Model {
    static MODEL: LazyLock<Model> = LazyLock::new(|| load(Model::builder()));
    &MODEL
}
