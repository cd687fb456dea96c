//! Chat templates: turn a conversation into the text of a prompt, with the model's own Jinja template.
//!
//! The environment is the one that Hugging Face's `apply_chat_template` sets up, because template authors test against
//! it: block trimming, `break` and `continue`, `raise_exception`, `strftime_now`, a `tojson` that does not escape HTML,
//! `{% generation %}` blocks. `minijinja` runs the templates; its Python-method shims replace the methods that Jinja2
//! gets from Python.
//!
//! A template comes from a model file, so it is not trusted: it cannot open files or include other templates, and both
//! its steps and its output are limited. [`ChatTemplate`] documents what these limits do not cover.
//!
//! The text of the conversation is not trusted either: see [`guard`].

mod capabilities;
mod environment;
mod guard;
mod message;
mod python;
mod role;
mod watched;

use std::io;
use std::sync::OnceLock;
use std::thread;

use minijinja::{Environment, ErrorKind};
use serde_json::Map;

use crate::special::SpecialTokens;
use crate::tokenizer::Tokenizer;
pub use capabilities::{ArgumentsForm, CallContent, TemplateCapabilities};
use guard::Guard;
pub use message::{Message, MessageError, ToolCall};
pub use role::Role;

/// The name that error messages of the engine use.
const NAME: &str = "chat template";

/// The longest template that is accepted: four times the longest known one.
const MAX_SOURCE_BYTES: usize = 64 << 10;

/// The engine recurses as deeply as a template nests its operators and lists. This stack is large enough for any
/// template within [`MAX_SOURCE_BYTES`] and the default [`TemplateLimits::steps`]; only the pages that are touched take
/// memory.
const STACK_BYTES: usize = 256 << 20;

/// Runs the engine on a stack that allows deep recursion, and catches its panics: `''[::-1]` makes minijinja 3.0.5
/// panic.
fn on_large_stack<R: Send>(run: impl FnOnce() -> R + Send) -> Result<R, String> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("chat template".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, run)
            .map_err(|error| format!("cannot start a thread for the template engine: {error}"))?
            .join()
            .map_err(|_| "the template engine panicked".to_owned())
    })
}

/// The time that `strftime_now` formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clock {
    /// The system's time in its time zone.
    #[default]
    System,
    /// A fixed moment, in UTC.
    Fixed {
        /// Seconds since 1970-01-01 00:00:00 UTC.
        unix_s: i64,
    },
}

/// The input for rendering a template.
#[derive(Debug, Clone, Default)]
pub struct TemplateInput<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// Whether the prompt ends with the start of the model's answer.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as JSON schemas.
    pub tools: Option<serde_json::Value>,
    /// Documents that the answer may use, for templates that support them.
    pub documents: Option<serde_json::Value>,
    /// Further variables, such as `enable_thinking`.
    pub extra: Map<String, serde_json::Value>,
    /// The time that the template sees.
    pub clock: Clock,
}

impl<'a> TemplateInput<'a> {
    /// Creates the input for a conversation whose next message is the model's.
    pub fn new(messages: &'a [Message]) -> Self {
        Self { messages, add_generation_prompt: true, ..Self::default() }
    }
}

/// The limits of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Number of engine instructions allowed for any conversation.
    pub steps: u64,
    /// Number of additional instructions per message: templates look ahead and back, some of them over all messages.
    pub steps_per_message: u64,
    /// Maximum length of the output.
    pub output_bytes: usize,
}

impl Default for TemplateLimits {
    /// Two million steps (part of a second), ten thousand per message, and 64 MiB.
    fn default() -> Self {
        Self { steps: 2_000_000, steps_per_message: 10_000, output_bytes: 64 << 20 }
    }
}

/// Errors of chat templates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid.
    #[error("chat template, line {line}: {detail}")]
    Syntax {
        /// Line of the template, from 1; 0 if it is not known.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// The template is far longer than any known one.
    #[error("the chat template has {bytes} bytes, more than the {limit} that are accepted")]
    SourceTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The template failed on this conversation.
    #[error("chat template failed in line {line}: {detail}")]
    Failed {
        /// Line of the template, from 1; 0 if it is not known.
        line: usize,
        /// What went wrong.
        detail: String,
    },
    /// The template rejected the conversation with a message of its own.
    #[error("the model's chat template does not accept this conversation: {message}")]
    Refused {
        /// The template's message.
        message: String,
    },
    /// The template exceeded its number of steps.
    #[error("chat template stopped after {steps} steps")]
    OutOfSteps {
        /// The limit.
        steps: u64,
    },
    /// The template exceeded its output length.
    #[error("chat template stopped after writing {output_bytes} bytes")]
    OutputTooLong {
        /// The limit.
        output_bytes: usize,
    },
    /// The conversation contains every character that could serve as marker.
    #[error("the conversation contains all Unicode noncharacters; remove at least one of them")]
    NoMarker,
}

/// A prompt that a template wrote.
///
/// [`encode_rendered`] turns it into ids. Special tokens that the template wrote are recognised in its text. If the
/// conversation itself contained the text of one, there is a marker character inside it, which [`text`](Self::text)
/// leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    marked: String,
    marker: Option<char>,
}

impl RenderedPrompt {
    /// The text of the prompt, for display. Encoding this text would turn user text into special tokens.
    pub fn text(&self) -> String {
        match self.marker {
            Some(marker) => self.marked.replace(marker, ""),
            None => self.marked.clone(),
        }
    }

    /// The character that breaks up special tokens in user text; `None` if there were none.
    pub fn marker(&self) -> Option<char> {
        self.marker
    }
}

/// A chat template for one tokenizer.
///
/// It runs for a limited number of steps and writes a limited text ([`TemplateLimits`]). It can read only the
/// conversation and the clock, and cannot include other templates. In two cases the engine has no limit, so a malicious
/// template can still end the process: strings that are doubled again and again take all memory, and printing a
/// namespace that contains itself takes all stack.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    guard: Guard,
    /// `bos_token` and similar variables.
    special_texts: Vec<(&'static str, String)>,
    limits: TemplateLimits,
    source: String,
    /// Determined on first use.
    capabilities: OnceLock<TemplateCapabilities>,
}

impl ChatTemplate {
    /// Compiles a template. The tokenizer provides the texts of the special tokens.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        Self::with_limits(source, tokenizer, TemplateLimits::default())
    }

    /// As [`new`](Self::new), with other limits.
    pub fn with_limits(source: &str, tokenizer: &Tokenizer, limits: TemplateLimits) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::SourceTooLong { bytes: source.len(), limit: MAX_SOURCE_BYTES });
        }
        let environment = on_large_stack(|| {
            let mut environment = environment::build();
            let engines = python::with_items(&environment::without_generation_tags(source));
            environment.add_template_owned(NAME, engines).map(|()| environment)
        })
        .map_err(|detail| TemplateError::Syntax { line: 0, detail })?
        .map_err(|error| TemplateError::Syntax { line: error.line().unwrap_or(0), detail: detail(&error) })?;
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(str::to_owned);
        let special_texts = [
            // Templates concatenate BOS with other text, which fails if it is undefined.
            ("bos_token", Some(text(tokenizer.bos()).unwrap_or_default())),
            ("eos_token", Some(text(tokenizer.eos()).unwrap_or_default())),
            ("unk_token", text(tokenizer.unknown())),
            ("pad_token", text(tokenizer.padding())),
        ];
        Ok(Self {
            environment,
            guard: Guard::new(source, tokenizer),
            special_texts: special_texts.into_iter().filter_map(|(name, text)| Some((name, text?))).collect(),
            limits,
            source: source.to_owned(),
            capabilities: OnceLock::new(),
        })
    }

    /// The source of the template.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes the prompt for a conversation.
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<RenderedPrompt, TemplateError> {
        self.render_watched(input, None)
    }

    /// As [`render`](Self::render), but also records the variables that were looked up and not found.
    fn render_watched(
        &self,
        input: &TemplateInput<'_>,
        missed: Option<&watched::Missed>,
    ) -> Result<RenderedPrompt, TemplateError> {
        let messages = input.messages.iter().map(Message::to_json);
        let mut variables = Map::new();
        variables.insert("messages".into(), messages.collect());
        variables.insert("tools".into(), input.tools.clone().unwrap_or_default());
        variables.insert("documents".into(), input.documents.clone().unwrap_or_default());
        variables.extend(input.extra.clone());
        let mut variables = serde_json::Value::Object(variables);
        let marker = self.guard.apply(&mut variables)?;
        if let Some(variables) = variables.as_object_mut() {
            variables.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
            for (name, text) in &self.special_texts {
                variables.entry(*name).or_insert_with(|| text.clone().into());
            }
            variables.insert(environment::CLOCK.into(), environment::clock_variable(input.clock));
        }
        let n_messages = u64::try_from(input.messages.len()).unwrap_or(u64::MAX);
        let steps = self.limits.steps.saturating_add(self.limits.steps_per_message.saturating_mul(n_messages));
        let (result, output) = on_large_stack(|| {
            let mut engine = self.environment.clone();
            // The engine counts in signed numbers.
            engine.set_fuel(Some(steps.min(isize::MAX as u64)));
            let mut output = Limited { text: Vec::new(), limit: self.limits.output_bytes, hit: false };
            let variables = environment::value(&variables);
            let variables = match missed {
                Some(missed) => watched::watched(variables, missed),
                None => variables,
            };
            let result = engine.get_template(NAME).and_then(|t| t.render_captured_to(variables, &mut output).map(drop));
            (result, output)
        })
        .map_err(|detail| TemplateError::Failed { line: 0, detail })?;
        if output.hit {
            return Err(TemplateError::OutputTooLong { output_bytes: self.limits.output_bytes });
        }
        result.map_err(|error| explain(&error, steps))?;
        let marked = String::from_utf8(output.text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Ok(RenderedPrompt { marked, marker })
    }
}

/// Converts an error of the engine to one of this crate.
fn explain(error: &minijinja::Error, steps: u64) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::OutOfSteps { steps };
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(refusal) = inner.downcast_ref::<environment::Refusal>() {
            return TemplateError::Refused { message: refusal.0.clone() };
        }
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::OutOfSteps { steps };
        }
        source = inner.source();
    }
    TemplateError::Failed { line: error.line().unwrap_or(0), detail: detail(error) }
}

/// The description of the error, without its position.
fn detail(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// A writer that fails when it is full.
struct Limited {
    text: Vec<u8>,
    limit: usize,
    hit: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit.saturating_sub(self.text.len()) {
            self.hit = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encodes a prompt to ids: special tokens are recognised in what the template wrote, never inside the text of the
/// conversation. If the model needs BOS, it comes first, and only once.
pub fn encode_rendered(tokenizer: &Tokenizer, prompt: &RenderedPrompt) -> Vec<u32> {
    let mut encoder = tokenizer.encoder();
    match prompt.marker {
        None => encoder.push(&prompt.marked, SpecialTokens::Parse),
        Some(marker) => encoder.push_marked(&prompt.marked, marker),
    }
    tokenizer.with_bos(encoder.finish())
}
