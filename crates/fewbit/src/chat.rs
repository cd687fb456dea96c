//! Conversations that keep their KV cache.
//!
//! Each turn renders the whole conversation with the model's template and tokenizes it; the cache
//! keeps the tokens that it has in common with the turn before, and only the rest is computed. That
//! is exact whatever a template does with older turns (some drop parts of them): what differs is
//! computed again.
//!
//! Random numbers begin anew with each turn, from the conversation's seed and the number of answers before it:
//! so a turn can be repeated without those before it.
//!
//! A turn ends in one of three ways. Complete: question and answer stay in the conversation.
//! Cancelled by dropping its stream: they stay too, with the answer as far as it went; a turn
//! without any text leaves nothing. Failed: it leaves nothing. The conversation goes on after each.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use fewbit_model::ModelError;
use fewbit_tokenizer::Message;
use serde_json::Value;

use crate::completion::{Completion, FinishReason, Piece};
use crate::error::Error;
use crate::model::Model;
use crate::options::{Options, option_setters};
use crate::sample::Sampler;
use crate::session::{Run, Slot, Timeline, run_accessors};
use crate::session_file::{Expected, Saved, SessionError};
use crate::tools::{self, Answer, CallFilter, Tool, ToolCall};

/// A conversation that has not started: made by [`Model::chat`].
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// use fewbit::Message;
///
/// let earlier = [Message::user("My name is Ada."), Message::assistant("Hello, Ada.")];
/// let mut chat = model.chat().system("Be brief.").history(earlier).temperature(0.7).start()?;
/// println!("{}", chat.send("What is my name?")?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `start`"]
pub struct ChatBuilder {
    model: Model,
    system: Option<String>,
    history: Vec<Message>,
    tools: Vec<Tool>,
    pub(crate) options: Options,
}

impl ChatBuilder {
    pub(crate) fn new(model: Model) -> Self {
        let options = Options::new(&model);
        Self { model, system: None, history: Vec::new(), tools: Vec::new(), options }
    }

    option_setters!();

    /// A message that tells the model how to behave.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// Messages of an earlier conversation, to go on from.
    pub fn history(mut self, messages: impl IntoIterator<Item = Message>) -> Self {
        self.history.extend(messages);
        self
    }

    /// Functions that the model may call: see [`Completion::tool_calls`] and [`Chat::send_tool_results`].
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// Checks the settings and begins.
    pub fn start(self) -> Result<Chat, Error> {
        let Self { model, system, history, tools, mut options } = self;
        if !model.has_chat_template() {
            // Says which of the two it is, missing or broken.
            model.encode_chat(&[], &[])?;
        }
        // Drawn once: each turn has a seed of its own, which follows from it.
        options.sampling.seed = Some(Sampler::new(&options.sampling)?.seed());
        let system = system.or_else(|| model.default_system().map(str::to_owned));
        let messages = system.map(Message::system).into_iter().chain(history).collect();
        let slot = Arc::new(Slot::new(&model));
        Ok(Chat { model, slot, messages, tools, options })
    }

    /// Goes on with a conversation that [`Chat::save`] wrote, instead of a new one: with its messages, its keys and
    /// values, and its seed unless one is given here. Other settings are those of this builder.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().start()?;
    /// chat.send("My name is Ada.")?;
    /// chat.save("ada.session")?;
    ///
    /// let mut chat = model.chat().restore("ada.session")?;
    /// println!("{}", chat.send("What is my name?")?); // computes only this question
    /// # Ok(()) }
    /// ```
    pub fn restore(self, path: impl AsRef<Path>) -> Result<Chat, Error> {
        let path = path.as_ref();
        let decoder = self.model.decoder();
        let context = self.model.context_length();
        let loras = decoder.lora_set(&self.options.loras)?;
        let expected = Expected {
            model: self.model.identity(&loras),
            n_vocab: self.model.tokenizer().n_vocab(),
            max_tokens: context,
            max_cache_bytes: decoder.cache_state_bytes(context),
        };
        let saved = Saved::read(path, &expected)?;
        let cache = decoder.restore_cache(&loras, saved.tokens.len(), &saved.cache).map_err(|error| match error {
            ModelError::BadCacheState { .. } => {
                Error::from(SessionError::Damaged { path: path.to_owned(), what: "keys and values" })
            }
            error => error.into(),
        })?;
        let seed = self.options.sampling.seed.unwrap_or(saved.seed);
        let mut chat = self.seed(seed).start()?;
        chat.messages = saved.messages;
        chat.slot = Arc::new(Slot::from(Timeline { cache, tokens: saved.tokens }));
        Ok(chat)
    }
}

/// A conversation with a model.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let mut chat = model.chat().start()?;
/// println!("{}", chat.send("Why is the sky blue?")?);
/// for piece in chat.send_stream("And at night?")? {
///     print!("{}", piece?.text);
/// }
/// println!("{} messages, {} tokens in the cache", chat.messages().len(), chat.cached_tokens());
/// # Ok(()) }
/// ```
pub struct Chat {
    model: Model,
    slot: Arc<Slot>,
    messages: Vec<Message>,
    tools: Vec<Tool>,
    options: Options,
}

impl std::fmt::Debug for Chat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chat").field("messages", &self.messages).finish_non_exhaustive()
    }
}

impl Chat {
    /// Sends a message and waits for the whole answer.
    pub fn send(&mut self, text: impl Into<String>) -> Result<Completion, Error> {
        self.ask(text).run()
    }

    /// A message whose answer has settings of its own.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().start()?;
    /// let answer = chat.ask("Name three colours.").temperature(0.0).max_tokens(20).run()?;
    /// # Ok(()) }
    /// ```
    pub fn ask(&mut self, text: impl Into<String>) -> Ask<'_> {
        let options = self.options.clone();
        Ask { chat: self, text: text.into(), options }
    }

    /// Sends a message; the answer comes as the stream is iterated. Dropping the stream ends the
    /// turn where it is.
    pub fn send_stream(&mut self, text: impl Into<String>) -> Result<ChatStream<'_>, Error> {
        self.ask(text).stream()
    }

    /// Tells the model what the calls of its last answer gave, and waits for what it says to that. A text goes in as
    /// it is, other values as JSON.
    pub fn send_tool_results(
        &mut self,
        results: impl IntoIterator<Item = (ToolCall, Value)>,
    ) -> Result<Completion, Error> {
        let messages = results.into_iter().map(|(call, result)| tools::result_message(&call, &result)).collect();
        let options = self.options.clone();
        self.begin(messages, options)?.run()
    }

    fn begin(&mut self, new: Vec<Message>, mut options: Options) -> Result<ChatStream<'_>, Error> {
        let turns = self.messages.iter().filter(|message| message.role == "assistant").count() as u64;
        options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(turns));
        let before = self.messages.len();
        self.messages.extend(new);
        let run = self
            .model
            .encode_chat(&self.messages, &self.tools)
            .and_then(|prompt| Run::new(&self.model, prompt, &options, Some(Arc::clone(&self.slot))));
        match run {
            Ok(run) => Ok(ChatStream {
                filter: (!self.tools.is_empty()).then(CallFilter::default),
                answer: OnceLock::new(),
                chat: self,
                run,
                before,
                failed: false,
                recorded: false,
            }),
            Err(error) => {
                self.messages.truncate(before);
                Err(error)
            }
        }
    }

    /// The conversation so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// How many tokens are in the KV cache.
    pub fn cached_tokens(&self) -> usize {
        self.slot.with(|timeline| timeline.cache.len())
    }

    /// Writes the conversation to a file, with the keys and values of its tokens: [`ChatBuilder::restore`] goes on
    /// from there without computing them again, with the same model and adapters. The file is replaced whole or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let loras = self.model.decoder().lora_set(&self.options.loras)?;
        let (tokens, cache) = self.slot.with(|timeline| {
            let mut bytes = Vec::new();
            // The last answer may have had adapters of its own: then the next one begins anew, here as there.
            if *timeline.cache.loras() != loras {
                self.model.decoder().new_cache_with(&loras).serialize(&mut bytes)?;
                return Ok((Vec::new(), bytes));
            }
            timeline.cache.serialize(&mut bytes)?;
            Ok::<_, Error>((timeline.tokens.clone(), bytes))
        })?;
        let model = self.model.identity(&loras);
        let seed = self.options.sampling.seed.unwrap_or_default();
        let messages = self.messages.clone();
        Ok(Saved { model, seed, messages, tokens, cache }.write(path.as_ref())?)
    }

    /// Forgets all turns; a system message stays.
    pub fn clear(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }
}

/// A message that has not been sent: made by [`Chat::ask`]. Its settings begin as those of the conversation.
#[must_use = "nothing happens before `run` or `stream`"]
pub struct Ask<'a> {
    chat: &'a mut Chat,
    text: String,
    pub(crate) options: Options,
}

impl std::fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask").field("text", &self.text).field("options", &self.options).finish_non_exhaustive()
    }
}

impl<'a> Ask<'a> {
    option_setters!();

    /// Waits for the whole answer.
    pub fn run(self) -> Result<Completion, Error> {
        self.stream()?.run()
    }

    /// The answer comes as the stream is iterated; dropping it ends the turn where it is.
    pub fn stream(self) -> Result<ChatStream<'a>, Error> {
        let Self { chat, text, options } = self;
        chat.begin(vec![Message::user(text)], options)
    }
}

/// An answer under way: an iterator over its pieces.
#[must_use = "a stream generates nothing unless it is iterated"]
pub struct ChatStream<'a> {
    chat: &'a mut Chat,
    pub(crate) run: Run,
    /// Where there are tools, keeps calls out of the text.
    filter: Option<CallFilter>,
    /// See [`ChatStream::answer`].
    answer: OnceLock<Option<Answer>>,
    /// Messages before this turn.
    before: usize,
    failed: bool,
    recorded: bool,
}

impl std::fmt::Debug for ChatStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatStream").field("text", &self.run.text()).finish_non_exhaustive()
    }
}

impl Iterator for ChatStream<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.run.next();
        self.filtered(item)
    }
}

impl std::iter::FusedIterator for ChatStream<'_> {}

impl ChatStream<'_> {
    run_accessors!();

    fn run(mut self) -> Result<Completion, Error> {
        self.run.wait_for_end();
        self.by_ref().try_for_each(|piece| piece.map(drop))?;
        Ok(self.into_completion())
    }

    /// What the generation gave, as the caller gets it: text that may be a call is kept back to the end.
    pub(crate) fn filtered(&mut self, item: Option<Result<Piece, Error>>) -> Option<Result<Piece, Error>> {
        self.failed |= matches!(item, Some(Err(_)));
        let Some(filter) = &mut self.filter else { return item };
        let mut piece = match item {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Some(Err(error)),
            None => Piece { text: String::new(), token_ids: Vec::new(), logprobs: Vec::new() },
        };
        let at_end = self.run.finish_reason().is_some();
        piece.text = filter.push(self.chat.model.tokenizer(), &piece.token_ids, &piece.text);
        if at_end {
            let rest = filter.finish();
            if self.answer().is_none() {
                piece.text += &rest;
            }
        }
        let is_empty = piece.text.is_empty() && piece.token_ids.is_empty();
        (!is_empty).then_some(Ok(piece))
    }

    /// The answer taken apart, if it has calls. It is read once, when nothing follows any more.
    fn answer(&self) -> Option<&Answer> {
        let read = || {
            self.filter.as_ref()?;
            let whole = self.chat.model.tokenizer().decode_with_special(self.run.tokens());
            tools::read(&whole, &self.chat.tools)
        };
        self.answer.get_or_init(read).as_ref()
    }

    /// The answer as far as it went.
    pub fn into_completion(mut self) -> Completion {
        self.record();
        let answer = self.answer().cloned();
        let mut completion = self.run.completion();
        if let Some(answer) = answer {
            completion.text = answer.text;
            completion.tool_calls = answer.calls;
        }
        completion
    }

    /// Puts the turn into the conversation, or takes its question out again.
    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let ended = matches!(self.run.finish_reason(), Some(reason) if reason != FinishReason::Cancelled);
        if !self.failed && (ended || !self.run.text().is_empty()) {
            let answer = match self.answer() {
                Some(answer) => tools::call_message(&answer.text, &answer.calls),
                None => Message::assistant(self.run.text()),
            };
            self.chat.messages.push(answer);
        } else {
            self.chat.messages.truncate(self.before);
        }
    }
}

impl Drop for ChatStream<'_> {
    fn drop(&mut self) {
        self.record();
    }
}
