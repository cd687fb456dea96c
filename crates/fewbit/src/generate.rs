//! Generation from one prompt: the builder, and the lazy stream.

use std::io::Write;

use fewbit_tokenizer::Message;

use crate::completion::{Completion, Piece};
use crate::error::Error;
use crate::model::Model;
use crate::options::{Options, option_setters};
use crate::sample::Sampler;
use crate::session::Run;
use crate::tools::{Plan, Reader, Setup};

/// The text or tokens to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prompt {
    /// A text. It is tokenized without special tokens.
    Text(String),
    /// Token ids, used unchanged: no beginning-of-text token is added.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&&str> for Prompt {
    fn from(text: &&str) -> Self {
        Self::Text((*text).to_owned())
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

impl From<&Vec<u32>> for Prompt {
    fn from(tokens: &Vec<u32>) -> Self {
        Self::Tokens(tokens.clone())
    }
}

impl From<&[u32]> for Prompt {
    fn from(tokens: &[u32]) -> Self {
        Self::Tokens(tokens.to_owned())
    }
}

/// A generation that has not started: made by [`Model::generate`].
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let request = model.generate("Name a colour.").templated().max_tokens(16).temperature(0.7).stop(".");
/// let first = request.clone().seed(1).run()?;
/// let second = request.seed(2).run()?;
/// println!("{first} ({}), {second} ({})", first.finish_reason, second.finish_reason);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `run` or `stream`"]
pub struct Generate {
    model: Model,
    prompt: Prompt,
    templated: bool,
    system: Option<String>,
    echo: bool,
    pub(crate) options: Options,
}

impl Generate {
    pub(crate) fn new(model: Model, prompt: Prompt) -> Self {
        let options = Options::new(&model);
        Self { model, prompt, templated: false, system: None, echo: false, options }
    }

    option_setters!();

    /// Renders the prompt with the model's chat template, as the first message of a user.
    pub fn templated(mut self) -> Self {
        self.templated = true;
        self
    }

    /// Uses the prompt without a chat template (the default).
    pub fn raw(mut self) -> Self {
        self.templated = false;
        self
    }

    /// Sets a system message for a [templated](Self::templated) prompt.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// Puts the text of the prompt before the generated text, as the first piece and in the completion. With
    /// [`logprobs`](Self::logprobs), also returns the log probabilities of its tokens, which takes another pass over
    /// it.
    pub fn echo(mut self, yes: bool) -> Self {
        self.echo = yes;
        self
    }

    /// Generates until the end and returns the completion.
    pub fn run(self) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        stream.by_ref().try_for_each(|piece| piece.map(drop))?;
        Ok(stream.into_completion())
    }

    /// Writes the text to `out` while it is generated, and returns the completion. Each piece is flushed, so that a
    /// reader sees it at once. Reasoning is not written; the returned completion has it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let out = model.generate("Once upon a time").max_tokens(64).write_to(std::io::stdout())?;
    /// eprintln!("{:.0} tokens/s", out.timings.decode_tokens_per_second());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::System`](crate::ErrorKind::System) if writing to `out` fails, which ends the generation; and those
    /// of [`run`](Self::run).
    pub fn write_to(self, out: impl Write) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        write_pieces(out, stream.by_ref())?;
        Ok(stream.into_completion())
    }

    /// Generates `n` continuations at the same time. The first has the seed of the options (or a new one), each of the
    /// others the next seed, so each of them can be repeated alone.
    pub fn samples(mut self, n: usize) -> Result<Vec<Completion>, Error> {
        let first = Sampler::new(&self.options.sampling())?.seed();
        let streams = (0..n as u64).map(|i| {
            self.options.data.seed = Some(first.wrapping_add(i));
            let mut stream = self.clone().stream()?;
            stream.run.wait_for_end();
            stream.run.start()?;
            Ok::<_, Error>(stream)
        });
        let streams: Vec<Stream> = streams.collect::<Result<_, Error>>()?;
        let finish = |mut stream: Stream| {
            stream.by_ref().try_for_each(|piece| piece.map(drop))?;
            Ok::<_, Error>(stream.into_completion())
        };
        streams.into_iter().map(finish).collect()
    }

    /// Prepares a generation that gives one token per [`next`](Iterator::next). Errors of the prompt and the options
    /// are returned here. Nothing is computed before the first `next`, and the engine never runs more than a few tokens
    /// ahead of the reader.
    pub fn stream(self) -> Result<Stream, Error> {
        let Self { model, prompt, templated, system, echo, mut options } = self;
        let mut reader = None;
        let mut plan = None;
        // There are no tools here, so a tool choice that requires a call is an error.
        options.data.tool_choice.as_ref().map_or(Ok(None), |choice| choice.demanded(&[], true))?;
        let prompt = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) if templated => {
                let system = system.or_else(|| model.default_system().map(str::to_owned));
                let mut messages: Vec<Message> = Vec::new();
                messages.extend(system.map(Message::system));
                messages.push(Message::user(text));
                let (prompt, opened) = model.encode_chat(&messages, &[], &options.data.template_vars)?;
                options.shown = model.shown_marks();
                let setup = Setup::without_tools(&model, opened);
                reader = Some(Reader::new(&setup, false));
                plan = Some(Plan::new(setup, &options, false));
                prompt
            }
            Prompt::Text(text) => model.encode_raw(&text),
        };
        let mut echoed = None;
        if echo {
            let logprobs = match options.data.logprobs {
                Some(n_top) => model.logprobs_with(&model.decoder().lora_set(&options.loras)?, &prompt, n_top)?,
                None => Vec::new(),
            };
            let text = model.tokenizer().decode(&prompt);
            echoed = Some(Piece { text, token_ids: prompt.clone(), logprobs, ..Piece::default() });
        }
        let run = Run::new(&model, prompt, &options, None, plan)?;
        Ok(Stream { run, reader, echoed: echoed.clone(), to_echo: echoed })
    }
}

/// Writes the text of each piece and flushes it, so that a reader sees it at once.
pub(crate) fn write_pieces(
    mut out: impl Write,
    pieces: impl Iterator<Item = Result<Piece, Error>>,
) -> Result<(), Error> {
    for piece in pieces {
        let text = piece?.text;
        if !text.is_empty() {
            let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            written.map_err(|error| Error::system("write the text", error))?;
        }
    }
    Ok(())
}

/// A running generation: an iterator over its pieces. Dropping it ends the generation.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let mut stream = model.generate("Once upon a time").stream()?;
/// for piece in stream.by_ref() {
///     print!("{}", piece?.text);
/// }
/// println!("{:?}", stream.into_completion().usage);
/// # Ok(()) }
/// ```
#[must_use = "a stream generates nothing unless it is iterated"]
pub struct Stream {
    pub(crate) run: Run,
    /// For templated prompts: separates reasoning from the text.
    reader: Option<Reader>,
    /// The prompt, if it is echoed; `to_echo` has it until it was emitted.
    echoed: Option<Piece>,
    pub(crate) to_echo: Option<Piece>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("text", &self.text()).finish_non_exhaustive()
    }
}

impl Iterator for Stream {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.to_echo.take() {
            Some(prompt) => Some(Ok(prompt)),
            None => {
                let item = self.run.next();
                self.read(item)
            }
        }
    }
}

impl std::iter::FusedIterator for Stream {}

impl Stream {
    /// The tokens of the prompt.
    pub fn prompt_tokens(&self) -> &[u32] {
        self.run.prompt_tokens()
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        self.reader.as_ref().map_or_else(|| self.run.text(), |reader| &reader.answer().text)
    }

    /// Why the generation ended; `None` while it is running.
    pub fn finish_reason(&self) -> Option<crate::FinishReason> {
        self.run.finish_reason()
    }

    /// The stop string that ended the generation, if one did.
    pub fn stop_string(&self) -> Option<&str> {
        self.run.stop_string()
    }

    /// Token counts so far.
    pub fn usage(&self) -> crate::Usage {
        self.run.usage()
    }

    /// Timings so far.
    pub fn timings(&self) -> crate::Timings {
        self.run.timings()
    }

    /// Converts an item of the run into one for the caller.
    pub(crate) fn read(&mut self, item: Option<Result<Piece, Error>>) -> Option<Result<Piece, Error>> {
        match &mut self.reader {
            Some(reader) => reader.read(&mut self.run, item),
            None => item,
        }
    }

    /// The generation so far.
    pub fn into_completion(mut self) -> Completion {
        let mut completion = self.run.completion();
        if let Some(mut reader) = self.reader {
            reader.finish(completion.finish_reason, &mut Piece::default());
            reader.into_answer().put_into(&mut completion);
        }
        if let Some(prompt) = self.echoed {
            completion.text.insert_str(0, &prompt.text);
            completion.prompt_logprobs = prompt.logprobs;
        }
        completion
    }
}
