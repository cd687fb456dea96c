//! One turn of a conversation: a question with its settings ([`Ask`]), and the answer under way ([`ChatStream`]).
//!
//! A turn holds its conversation by anything that leads to it: a `&mut Chat` while it stays in place, a `Box<Chat>` or
//! the guard of a lock where the turn is handed to another thread or task, which outlives the function that began it.

use std::io::Write;
use std::ops::DerefMut;

use fewbit_tokenizer::{Message, Role};
use serde_json::Value;

use super::Chat;
use crate::completion::{Completion, FinishReason, Piece};
use crate::error::{Error, ErrorKind};
use crate::generate::write_piece;
use crate::options::{Options, option_setters, option_shortcuts};
use crate::session::Run;
use crate::tools::{self, Reader, ToolCall, ToolChoice};

/// Between the seeds of two answers to the same question: large, as the seeds of the turns are next to each other.
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A message that has not been sent: made by [`Chat::ask`], [`Chat::reply`] and their like, which borrow the
/// conversation, or from whatever leads to one. Its settings begin as those of the conversation.
///
/// A turn that is to outlive the function that begins it owns its conversation, or the lock of one that is shared. The
/// conversation has the answer, as far as it went, when the stream is dropped. An owned one is gone with a turn that
/// cannot begin (a question that is too long, say): where it must not be, hold a lock, or ask a [`fork`](Chat::fork).
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// # let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// use fewbit::Ask;
///
/// let chat = Box::new(model.chat().start()?);
/// let mut stream = Ask::new(chat, "Why is the sky blue?").max_tokens(100).stream()?;
/// let thread = std::thread::spawn(move || {
///     for piece in stream.by_ref() {
///         print!("{}", piece?.text);
///     }
///     let (answer, chat) = stream.into_parts();
///     Ok::<_, fewbit::Error>((answer, chat))
/// });
/// let (answer, mut chat) = thread.join().expect("no panic")?;
/// println!("{} {}", answer.finish_reason, chat.send("And at night?")?);
/// # Ok(()) }
/// ```
#[must_use = "nothing happens before `run` or `stream`"]
pub struct Ask<C> {
    chat: C,
    /// Messages that stay; what comes after them is replaced.
    from: usize,
    /// Nothing, if what is to be answered is in the conversation already.
    new: Vec<Message>,
    /// The question was answered before.
    is_again: bool,
    pub(crate) options: Options,
}

impl<C> std::fmt::Debug for Ask<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask").field("new", &self.new).field("options", &self.options).finish_non_exhaustive()
    }
}

impl<C: DerefMut<Target = Chat>> Ask<C> {
    option_setters!();
    option_shortcuts! { tool_choice(choice: ToolChoice), parallel_tool_calls(yes: bool) }

    fn after(chat: C, from: usize, new: Vec<Message>) -> Self {
        let options = chat.options.clone();
        Self { chat, from, new, is_again: false, options }
    }

    /// A message of the user.
    pub fn new(chat: C, text: impl Into<String>) -> Self {
        let from = chat.messages.len();
        Self::after(chat, from, vec![Message::user(text)])
    }

    /// The answer to the conversation as it is.
    pub fn reply(chat: C) -> Self {
        let from = chat.messages.len();
        Self::after(chat, from, Vec::new())
    }

    /// Another answer in place of the last one, with the next of the seeds that follow from the conversation's; greedy,
    /// it is the same answer. The last one is there again if this one fails, or is dropped before it has any text. If
    /// the last message is no answer, this is [`reply`](Self::reply).
    pub fn regenerate(chat: C) -> Self {
        let answers = chat.messages.iter().rev().take_while(|message| message.role == Role::Assistant).count();
        let from = chat.messages.len() - answers;
        Self { is_again: answers > 0, ..Self::after(chat, from, Vec::new()) }
    }

    /// A message of the user in place of the one at `index` (from 0) and all after it, which are there again if the
    /// turn fails, or is dropped before it has any text.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchMessage`].
    pub fn edit(chat: C, index: usize, text: impl Into<String>) -> Result<Self, Error> {
        let n_messages = chat.messages.len();
        if index >= n_messages {
            return Err(ErrorKind::NoSuchMessage { index, n_messages }.into());
        }
        Ok(Self::after(chat, index, vec![Message::user(text)]))
    }

    /// What the calls of the last answer gave: see [`Chat::send_tool_results`].
    ///
    /// # Errors
    /// [`ErrorKind::Tools`] if a result is of another call, or a call has none or two.
    pub fn tool_results(chat: C, results: impl IntoIterator<Item = (ToolCall, Value)>) -> Result<Self, Error> {
        let messages = tools::ordered_results(&chat.messages, results)?;
        let from = chat.messages.len();
        Ok(Self::after(chat, from, messages))
    }

    /// Waits for the whole answer.
    pub fn run(self) -> Result<Completion, Error> {
        self.stream()?.run()
    }

    /// Writes the answer as it comes, and returns it at its end: see
    /// [`Generate::write_to`](crate::Generate::write_to).
    pub fn write_to(self, mut out: impl Write) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        for piece in stream.by_ref() {
            write_piece(&mut out, &piece?)?;
        }
        Ok(stream.into_completion())
    }

    /// The answer comes as the stream is iterated; dropping it ends the turn where it is.
    pub fn stream(self) -> Result<ChatStream<C>, Error> {
        let Self { mut chat, from, new, is_again, mut options } = self;
        let conversation = &mut *chat;
        let replaced = conversation.messages.split_off(from);
        let again = if is_again { conversation.again.wrapping_add(1) } else { 0 };
        let turns = conversation.messages.iter().filter(|message| message.role == Role::Assistant).count() as u64;
        options.data.seed = options.data.seed.map(|seed| {
            let seed = seed.wrapping_add(turns);
            seed.wrapping_add(again.wrapping_mul(SEED_STEP))
        });
        conversation.messages.extend(new);
        match conversation.prepare(&mut options) {
            Ok((run, reader)) => {
                conversation.again = again;
                Ok(ChatStream { chat: Some(chat), run, reader, from, replaced, failed: false })
            }
            Err(error) => {
                conversation.messages.truncate(from);
                conversation.messages.extend(replaced);
                Err(error)
            }
        }
    }
}

/// An answer under way: an iterator over its pieces.
#[must_use = "a stream generates nothing unless it is iterated"]
pub struct ChatStream<C: DerefMut<Target = Chat>> {
    /// Until the turn is recorded.
    chat: Option<C>,
    pub(crate) run: Run,
    /// Takes reasoning and calls out of the text.
    reader: Reader,
    /// Messages before this turn, and those that were in its place.
    from: usize,
    replaced: Vec<Message>,
    failed: bool,
}

impl<C: DerefMut<Target = Chat>> std::fmt::Debug for ChatStream<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatStream").field("text", &self.text()).finish_non_exhaustive()
    }
}

impl<C: DerefMut<Target = Chat>> Iterator for ChatStream<C> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.run.next();
        self.read(item)
    }
}

impl<C: DerefMut<Target = Chat>> std::iter::FusedIterator for ChatStream<C> {}

impl<C: DerefMut<Target = Chat>> ChatStream<C> {
    /// The text so far, without reasoning and calls.
    pub fn text(&self) -> &str {
        &self.reader.answer().text
    }

    /// The reasoning so far.
    pub fn reasoning(&self) -> &str {
        &self.reader.answer().reasoning
    }

    /// Why it ended, if it has.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.run.finish_reason().map(|reason| tools::reason(reason, !self.reader.answer().calls.is_empty()))
    }

    /// The stop string that ended it, if one did.
    pub fn stop_string(&self) -> Option<&str> {
        self.run.stop_string()
    }

    /// Tokens so far.
    pub fn usage(&self) -> crate::Usage {
        self.run.usage()
    }

    /// Times so far.
    pub fn timings(&self) -> crate::Timings {
        self.run.timings()
    }

    fn run(mut self) -> Result<Completion, Error> {
        self.run.wait_for_end();
        self.by_ref().try_for_each(|piece| piece.map(drop))?;
        Ok(self.into_completion())
    }

    /// What the generation gave, as the caller gets it.
    pub(crate) fn read(&mut self, item: Option<Result<Piece, Error>>) -> Option<Result<Piece, Error>> {
        self.failed |= matches!(item, Some(Err(_)));
        if self.failed { item } else { self.reader.read(&mut self.run, item) }
    }

    /// The answer as far as it went.
    pub fn into_completion(mut self) -> Completion {
        self.record();
        self.completion()
    }

    /// The answer as far as it went, and what led to the conversation, which has it now.
    pub fn into_parts(mut self) -> (Completion, C) {
        let chat = self.record().expect("a turn is recorded once, and this was its only way to end");
        (self.completion(), chat)
    }

    fn completion(&mut self) -> Completion {
        let mut completion = self.run.completion();
        self.reader.answer().clone().put_into(&mut completion);
        completion
    }

    /// Puts the turn into the conversation, or takes its question out again.
    fn record(&mut self) -> Option<C> {
        let mut chat = self.chat.take()?;
        let ended = matches!(self.run.finish_reason(), Some(reason) if reason != FinishReason::Cancelled);
        let reason = self.run.finish_reason().unwrap_or(FinishReason::Cancelled);
        self.reader.finish(reason, &mut Piece::default());
        if !self.failed && (ended || !self.run.text().is_empty()) {
            chat.messages.push(tools::answer_message(self.reader.answer()));
        } else {
            chat.messages.truncate(self.from);
            chat.messages.append(&mut self.replaced);
        }
        Some(chat)
    }
}

impl<C: DerefMut<Target = Chat>> Drop for ChatStream<C> {
    fn drop(&mut self) {
        self.record();
    }
}
