//! SmolLM2 for the tests: fetched once by the hub, loaded once for those that do not need it in a special way.

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

/// What to say when there is no model: tests that need it fail, they are not left out.
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
