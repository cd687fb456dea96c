//! Generation from one prompt: the builder, and the lazy stream.

use fewbit_tokenizer::Message;

use crate::completion::{Completion, Piece};
use crate::error::Error;
use crate::model::Model;
use crate::options::{Options, option_setters};
use crate::session::{Run, run_accessors};

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prompt {
    /// A text. Nothing in it is a special token.
    Text(String),
    /// Tokens, taken as they are: none is added.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

impl From<&[u32]> for Prompt {
    fn from(tokens: &[u32]) -> Self {
        Self::Tokens(tokens.to_owned())
    }
}

/// A generation that has not started: made by [`Model::generate`].
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `run` or `stream`"]
pub struct Generate {
    model: Model,
    prompt: Prompt,
    templated: bool,
    system: Option<String>,
    pub(crate) options: Options,
}

impl Generate {
    pub(crate) fn new(model: Model, prompt: Prompt) -> Self {
        let options = Options::new(model.recommended_sampling());
        Self { model, prompt, templated: false, system: None, options }
    }

    option_setters!();

    /// Puts the prompt into the model's chat template, as the first message of a user.
    pub fn templated(mut self) -> Self {
        self.templated = true;
        self
    }

    /// Takes the prompt as it is: the default.
    pub fn raw(mut self) -> Self {
        self.templated = false;
        self
    }

    /// A system message before a [templated](Self::templated) prompt.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// Generates to the end.
    pub fn run(self) -> Result<Completion, Error> {
        self.stream()?.run.finish()
    }

    /// Prepares a generation whose tokens come one with each [`next`](Iterator::next). Errors of the prompt
    /// and the settings come from here; nothing is computed before the first `next`, and never more than a few
    /// tokens ahead of the reader.
    pub fn stream(self) -> Result<Stream, Error> {
        let Self { model, prompt, templated, system, options } = self;
        let prompt = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) if templated => {
                let system = system.or_else(|| model.default_system().map(str::to_owned));
                let mut messages: Vec<Message> = Vec::new();
                messages.extend(system.map(Message::system));
                messages.push(Message::user(text));
                model.encode_chat(&messages)?
            }
            Prompt::Text(text) => model.encode_raw(&text),
        };
        Ok(Stream { run: Run::new(&model, prompt, &options, None)? })
    }
}

/// A running generation: an iterator over its pieces. Dropping it ends it.
#[must_use = "a stream generates nothing unless it is iterated"]
pub struct Stream {
    run: Run,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("text", &self.run.text()).finish_non_exhaustive()
    }
}

impl Iterator for Stream {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.run.next()
    }
}

impl std::iter::FusedIterator for Stream {}

impl Stream {
    /// The tokens of the prompt.
    pub fn prompt_tokens(&self) -> &[u32] {
        self.run.prompt_tokens()
    }

    run_accessors!();

    /// The generation as far as it went.
    pub fn into_completion(mut self) -> Completion {
        self.run.completion()
    }
}
