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

use std::sync::Arc;

use fewbit_tokenizer::Message;

use crate::completion::{Completion, FinishReason, Piece};
use crate::error::Error;
use crate::model::Model;
use crate::options::{Options, option_setters};
use crate::sample::Sampler;
use crate::session::{Run, Slot, run_accessors};

/// A conversation that has not started: made by [`Model::chat`].
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `start`"]
pub struct ChatBuilder {
    model: Model,
    system: Option<String>,
    history: Vec<Message>,
    pub(crate) options: Options,
}

impl ChatBuilder {
    pub(crate) fn new(model: Model) -> Self {
        let options = Options::new(model.recommended_sampling());
        Self { model, system: None, history: Vec::new(), options }
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

    /// Checks the settings and begins.
    pub fn start(self) -> Result<Chat, Error> {
        let Self { model, system, history, mut options } = self;
        if !model.has_chat_template() {
            // Says which of the two it is, missing or broken.
            model.encode_chat(&[])?;
        }
        // Drawn once: each turn has a seed of its own, which follows from it.
        options.sampling.seed = Some(Sampler::new(&options.sampling)?.seed());
        let system = system.or_else(|| model.default_system().map(str::to_owned));
        let messages = system.map(Message::system).into_iter().chain(history).collect();
        let slot = Arc::new(Slot::new(&model));
        Ok(Chat { model, slot, messages, options })
    }
}

/// A conversation with a model.
pub struct Chat {
    model: Model,
    slot: Arc<Slot>,
    messages: Vec<Message>,
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

    fn begin(&mut self, text: String, mut options: Options) -> Result<ChatStream<'_>, Error> {
        let turns = self.messages.iter().filter(|message| message.role == "assistant").count() as u64;
        options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(turns));
        self.messages.push(Message::user(text));
        let run = self
            .model
            .encode_chat(&self.messages)
            .and_then(|prompt| Run::new(&self.model, prompt, &options, Some(Arc::clone(&self.slot))));
        match run {
            Ok(run) => Ok(ChatStream { chat: self, run, failed: false, recorded: false }),
            Err(error) => {
                self.messages.pop();
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
        let mut stream = self.stream()?;
        stream.run.wait_for_end();
        stream.by_ref().try_for_each(|piece| piece.map(drop))?;
        Ok(stream.into_completion())
    }

    /// The answer comes as the stream is iterated; dropping it ends the turn where it is.
    pub fn stream(self) -> Result<ChatStream<'a>, Error> {
        let Self { chat, text, options } = self;
        chat.begin(text, options)
    }
}

/// An answer under way: an iterator over its pieces.
#[must_use = "a stream generates nothing unless it is iterated"]
pub struct ChatStream<'a> {
    chat: &'a mut Chat,
    run: Run,
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
        self.failed |= matches!(item, Some(Err(_)));
        item
    }
}

impl std::iter::FusedIterator for ChatStream<'_> {}

impl ChatStream<'_> {
    run_accessors!();

    /// The answer as far as it went.
    pub fn into_completion(mut self) -> Completion {
        self.record();
        self.run.completion()
    }

    /// Puts the turn into the conversation, or takes its question out again.
    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let ended = matches!(self.run.finish_reason(), Some(reason) if reason != FinishReason::Cancelled);
        if !self.failed && (ended || !self.run.text().is_empty()) {
            let answer = Message::assistant(self.run.text());
            self.chat.messages.push(answer);
        } else {
            self.chat.messages.pop();
        }
    }
}

impl Drop for ChatStream<'_> {
    fn drop(&mut self) {
        self.record();
    }
}
