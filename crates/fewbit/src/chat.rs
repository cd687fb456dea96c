//! Conversations that keep their KV cache; [`turn`] has a single turn: a question and its answer.
//!
//! Each turn renders the whole conversation with the model's chat template and tokenizes it. The KV cache keeps the
//! tokens that are the same as in the turn before, and only the rest is computed. The result is exact whatever a
//! template does with older turns (some drop parts of them): the part that differs is computed again.
//!
//! Each turn has its own random numbers, from the seed of the conversation and the number of answers before it, so a
//! turn can be repeated without the turns before it. An answer that is generated again has another seed.
//!
//! A turn ends in one of three ways. Complete: question and answer stay in the conversation. Cancelled, by dropping its
//! stream: both stay too, with the answer so far; without any text, the turn leaves nothing. Failed: it leaves nothing.
//! If the turn leaves nothing, the messages that it was to replace are restored. In all cases the conversation can go
//! on.

mod turn;

use std::path::Path;
use std::sync::Arc;

use fewbit_model::ModelError;
use fewbit_tokenizer::Message;
use serde_json::Value;

pub use self::turn::{Ask, ChatStream};
use crate::completion::Completion;
use crate::error::Error;
use crate::model::Model;
use crate::options::{Options, option_setters, option_shortcuts};
use crate::sample::Sampler;
use crate::session::{Run, Slot, Timeline};
use crate::session_file::{Expected, Saved, SessionError};
use crate::tools::{
    self, Plan, Reader, ReasoningStyle, Setup, Tool, ToolCall, ToolChoice, ToolError, ToolFallback, ToolStyle,
};

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
    fallback: ToolFallback,
    pub(crate) options: Options,
}

impl ChatBuilder {
    pub(crate) fn new(model: Model) -> Self {
        let options = Options::new(&model);
        Self { model, system: None, history: Vec::new(), tools: Vec::new(), fallback: ToolFallback::Refuse, options }
    }

    option_setters!();
    option_shortcuts! { tool_choice(choice: ToolChoice), parallel_tool_calls(yes: bool) }

    /// Sets the system message, which tells the model how to behave.
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.system = Some(text.into());
        self
    }

    /// Adds messages of an earlier conversation, to continue from.
    pub fn history(mut self, messages: impl IntoIterator<Item = Message>) -> Self {
        self.history.extend(messages);
        self
    }

    /// Adds functions that the model may call: see [`Completion::tool_calls`] and [`Chat::send_tool_results`].
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// What to do with tools if the model's chat template does not support them. Default: [`ToolFallback::Refuse`].
    pub fn tool_fallback(mut self, fallback: ToolFallback) -> Self {
        self.fallback = fallback;
        self
    }

    /// Checks the options and starts the conversation. Nothing is computed yet.
    pub fn start(self) -> Result<Chat, Error> {
        let Self { model, system, history, tools, fallback, mut options } = self;
        if !model.has_chat_template() {
            // Returns the error for a missing or a broken template.
            model.encode_chat(&[], &[], &options.data.template_vars)?;
        }
        for (i, tool) in tools.iter().enumerate() {
            if tools[..i].iter().any(|other| other.name == tool.name) {
                return Err(ToolError::SameName { name: tool.name.clone() }.into());
            }
        }
        if let Some(choice) = &options.data.tool_choice {
            choice.demanded(&tools, true)?;
        }
        let in_texts = !tools.is_empty() && !model.shows_tools()?;
        if in_texts && fallback == ToolFallback::Refuse {
            return Err(ToolError::TemplateWithoutTools { path: model.path().to_owned() }.into());
        }
        // Drawn once: the seed of each turn follows from it.
        options.data.seed = Some(Sampler::new(&options.sampling())?.seed());
        let system = system.or_else(|| model.default_system().map(str::to_owned));
        let messages = system.map(Message::system).into_iter().chain(history).collect();
        let slot = Arc::new(Slot::new(&model));
        options.shown = model.shown_marks();
        Ok(Chat { model, slot, messages, tools: tools.into(), in_texts, options, again: 0 })
    }

    /// Continues a conversation saved by [`Chat::save`]: restores its messages, its KV cache, and its seed unless one
    /// is set here. All other settings are those of this builder.
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
    ///
    /// # Errors
    /// [`ErrorKind::Session`](crate::ErrorKind::Session) if the file cannot be read, or belongs to another model or
    /// adapters.
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
        let seed = self.options.data.seed.unwrap_or(saved.seed);
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
    tools: Arc<[Tool]>,
    /// The template does not support tools: they are listed in the system message, and calls and results are texts.
    in_texts: bool,
    options: Options,
    /// How many times the last answer was regenerated.
    again: u64,
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

    /// A message whose answer has its own options; nothing is sent before [`Ask::run`] or [`Ask::stream`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().start()?;
    /// let answer = chat.ask("Name three colours.").temperature(0.0).max_tokens(20).run()?;
    /// # Ok(()) }
    /// ```
    pub fn ask(&mut self, text: impl Into<String>) -> Ask<&mut Self> {
        Ask::new(self, text)
    }

    /// Answers the conversation without a new message: for one whose last message was added with
    /// [`history`](ChatBuilder::history), such as a question or the result of a tool.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// use fewbit::Message;
    ///
    /// let messages = [Message::user("My name is Ada."), Message::assistant("Hi."), Message::user("What is it?")];
    /// println!("{}", model.chat().history(messages).start()?.reply().run()?);
    /// # Ok(()) }
    /// ```
    pub fn reply(&mut self) -> Ask<&mut Self> {
        Ask::reply(self)
    }

    /// Generates another answer instead of the last one: see [`Ask::regenerate`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().temperature(0.9).start()?;
    /// println!("{}", chat.send("Name a colour.")?);
    /// println!("{}", chat.regenerate().run()?);
    /// # Ok(()) }
    /// ```
    pub fn regenerate(&mut self) -> Ask<&mut Self> {
        Ask::regenerate(self)
    }

    /// Replaces the message at `index` (from 0) and all after it by a new one: see [`Ask::edit`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().start()?;
    /// chat.send("Name a colour.")?;
    /// let question = chat.messages().len() - 2;
    /// println!("{}", chat.edit(question, "Name an animal.")?.run()?);
    /// # Ok(()) }
    /// ```
    pub fn edit(&mut self, index: usize, text: impl Into<String>) -> Result<Ask<&mut Self>, Error> {
        Ask::edit(self, index, text)
    }

    /// Sends a message and streams the answer. Dropping the stream ends the turn; the answer so far stays in the
    /// conversation.
    pub fn send_stream(&mut self, text: impl Into<String>) -> Result<ChatStream<&mut Self>, Error> {
        self.ask(text).stream()
    }

    /// Sends the results of the tool calls of the last answer, and waits for the model's next answer. A string is sent
    /// unchanged, other values as JSON. Each call needs exactly one result; the order does not matter.
    ///
    /// # Errors
    /// [`ErrorKind::Tools`](crate::ErrorKind::Tools) if a result belongs to no call of the last answer, or if a call
    /// has no result or two.
    pub fn send_tool_results(
        &mut self,
        results: impl IntoIterator<Item = (ToolCall, Value)>,
    ) -> Result<Completion, Error> {
        self.tool_results(results)?.run()
    }

    /// Like [`send_tool_results`](Self::send_tool_results), but the answer can have its own options, or be streamed.
    pub fn tool_results(
        &mut self,
        results: impl IntoIterator<Item = (ToolCall, Value)>,
    ) -> Result<Ask<&mut Self>, Error> {
        Ask::tool_results(self, results)
    }

    /// The tools that the prompt lists.
    fn tools_for(&self, options: &Options) -> Arc<[Tool]> {
        let is_none = options.data.tool_choice == Some(ToolChoice::None);
        if is_none { [].into() } else { Arc::clone(&self.tools) }
    }

    fn encode(&self, options: &Options) -> Result<(Vec<u32>, Option<ReasoningStyle>), Error> {
        let tools = self.tools_for(options);
        let template_vars = &options.data.template_vars;
        if self.in_texts {
            let texts = tools::as_texts(&self.messages, &tools);
            self.model.encode_chat(&texts, &[], template_vars)
        } else {
            self.model.encode_chat(&self.messages, &tools, template_vars)
        }
    }

    /// The number of prompt tokens that [`reply`](Self::reply) would have. Only tokenizes: the model does not run.
    pub fn prompt_tokens(&self) -> Result<usize, Error> {
        self.encode(&self.options).map(|(prompt, _)| prompt.len())
    }

    /// The run of the next answer, and the reader of its text.
    fn prepare(&self, options: &mut Options) -> Result<(Run, Reader), Error> {
        let style = if self.in_texts { ToolStyle::Generic } else { self.model.tool_style() };
        let may_not_repeat = options.data.parallel_tool_calls == Some(false);
        let is_forced = self.force(options, style)?;
        #[cfg_attr(not(feature = "constraints"), expect(unused_mut))]
        let (mut prompt, opened) = self.encode(options)?;
        #[cfg(feature = "constraints")]
        if style == ToolStyle::Harmony && !is_forced && options.data.constraint.is_some() {
            prompt.extend(tools::final_header(self.model.tokenizer()).unwrap_or_default());
        }
        let calls = self.messages.iter().flat_map(tools::calls_of);
        let setup = Setup {
            style,
            tools: self.tools_for(options),
            n_earlier: calls.clone().count(),
            taken_ids: Arc::new(calls.filter_map(|call| Some(call.get("id")?.as_str()?.to_owned())).collect()),
            ..Setup::without_tools(&self.model, opened)
        };
        // A constrained answer ends where the constraint is complete: after the mark that closes the call.
        let reader = Reader::new(&setup, may_not_repeat && !is_forced);
        let plan = Plan::new(setup, options, is_forced);
        let run = Run::new(&self.model, prompt, options, Some(Arc::clone(&self.slot)), Some(plan))?;
        Ok((run, reader))
    }

    /// Constrains the answer to tool calls, if the tool choice requires it.
    fn force(&self, options: &mut Options, style: ToolStyle) -> Result<bool, Error> {
        let parallel = options.data.parallel_tool_calls != Some(false);
        let choice = options.data.tool_choice.clone().unwrap_or_default();
        let Some((tools, one)) = choice.demanded(&self.tools, parallel)? else { return Ok(false) };
        #[cfg(feature = "constraints")]
        {
            if options.data.constraint.is_some() {
                return Err(ToolError::ChoiceAndConstraint.into());
            }
            options.data.constraint = Some(tools::constraint(style, &tools, one, self.model.tokenizer())?);
            Ok(true)
        }
        #[cfg(not(feature = "constraints"))]
        {
            let _ = (style, tools, one);
            Err(ToolError::ChoiceWithoutFeature.into())
        }
    }

    /// The conversation so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The messages, to change them in any way. The next turn computes everything after the first change again.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().start()?;
    /// chat.send("Tell me a story.")?;
    /// if let Some(answer) = chat.messages_mut().last_mut() {
    ///     answer.content.push_str(" The end.");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn messages_mut(&mut self) -> &mut Vec<Message> {
        &mut self.messages
    }

    /// Keeps the first `n_messages` messages and removes the others.
    pub fn truncate(&mut self, n_messages: usize) {
        self.messages.truncate(n_messages);
    }

    /// A second conversation that begins with the same messages and continues separately. The two share the keys and
    /// values that they have in common: nothing is copied or computed again.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), fewbit::Error> {
    /// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
    /// let mut chat = model.chat().start()?;
    /// chat.send("Here is a long text: ...")?;
    /// let mut other = chat.fork();
    /// println!("{}\n{}", chat.send("Summarize it.")?, other.send("Who is it about?")?);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn fork(&self) -> Self {
        let fork = |timeline: &mut Timeline| Timeline { cache: timeline.cache.fork(), tokens: timeline.tokens.clone() };
        Self {
            model: self.model.clone(),
            slot: Arc::new(Slot::from(self.slot.with(fork))),
            messages: self.messages.clone(),
            tools: Arc::clone(&self.tools),
            in_texts: self.in_texts,
            options: self.options.clone(),
            again: self.again,
        }
    }

    /// The number of tokens in the KV cache.
    pub fn cached_tokens(&self) -> usize {
        self.slot.with(|timeline| timeline.cache.len())
    }

    /// Saves the conversation to a file, with its KV cache. [`ChatBuilder::restore`] continues it without computing the
    /// cache again, with the same model and adapters. The file is written whole or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::Session`](crate::ErrorKind::Session) if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let loras = self.model.decoder().lora_set(&self.options.loras)?;
        let (tokens, cache) = self.slot.with(|timeline| {
            let mut bytes = Vec::new();
            // If the last answer used adapters of its own, the saved cache is empty: the next turn would recompute it
            // anyway. So it is if the cache was on a device that was lost.
            if *timeline.cache.loras() == loras {
                match timeline.cache.serialize(&mut bytes) {
                    Ok(()) => return Ok((timeline.tokens.clone(), bytes)),
                    Err(error) if error.is_lost() => bytes.clear(),
                    Err(error) => return Err(error.into()),
                }
            }
            self.model.decoder().new_cache_with(&loras).serialize(&mut bytes)?;
            Ok::<_, Error>((Vec::new(), bytes))
        })?;
        let model = self.model.identity(&loras);
        let seed = self.options.data.seed.unwrap_or_default();
        let messages = self.messages.clone();
        Ok(Saved { model, seed, messages, tokens, cache }.write(path.as_ref())?)
    }

    /// Removes all messages except system messages.
    pub fn clear(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }
}
