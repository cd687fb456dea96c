//! One turn of a conversation: a question with its options ([`Ask`]), and the running answer ([`ChatStream`]).
//!
//! A turn accesses its conversation through any pointer to it: a `&mut Chat` while the conversation stays in place; a
//! `Box<Chat>` or a lock guard if the turn is handed to another thread or task and outlives the function that started
//! it.

use std::io::Write;
use std::ops::DerefMut;

use fewbit_tokenizer::{Message, Role};
use serde_json::Value;

use super::Chat;
use crate::completion::{Completion, FinishReason, Piece};
use crate::error::{Error, ErrorKind};
use crate::generate::write_pieces;
use crate::options::{Options, option_setters, option_shortcuts};
use crate::session::Run;
use crate::tools::{self, Reader, ToolCall, ToolChoice};

/// Distance between the seeds of two answers to the same question. Large, because the seeds of turns are consecutive.
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A message that has not been sent: made by [`Chat::ask`], [`Chat::reply`] and the like, which borrow the
/// conversation, or with [`Ask::new`] from any pointer to a conversation. Its options begin as those of the
/// conversation.
///
/// A turn that outlives the function that starts it owns its conversation, or a lock guard of a shared one. When the
/// stream is dropped, the answer so far is in the conversation. If a turn cannot start (its question is too long, for
/// example), an owned conversation is dropped with it: to keep it, use a lock guard, or ask a [`fork`](Chat::fork).
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
    /// Number of messages to keep; those after them are replaced.
    from: usize,
    /// New messages; empty if the conversation ends with the message to answer.
    new: Vec<Message>,
    /// Whether the question was answered before.
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

    /// Sends a message of the user.
    pub fn new(chat: C, text: impl Into<String>) -> Self {
        let from = chat.messages.len();
        Self::after(chat, from, vec![Message::user(text)])
    }

    /// Answers the conversation without a new message.
    pub fn reply(chat: C) -> Self {
        let from = chat.messages.len();
        Self::after(chat, from, Vec::new())
    }

    /// Generates another answer instead of the last one, with the next seed; with greedy sampling it is the same
    /// answer. The old answer is restored if the turn fails, or is dropped before it has any text. If the last message
    /// is not an answer, this is the same as [`reply`](Self::reply).
    pub fn regenerate(chat: C) -> Self {
        let answers = chat.messages.iter().rev().take_while(|message| message.role == Role::Assistant).count();
        let from = chat.messages.len() - answers;
        Self { is_again: answers > 0, ..Self::after(chat, from, Vec::new()) }
    }

    /// Replaces the message at `index` (from 0) and all after it by a new one of the user. The old messages are
    /// restored if the turn fails, or is dropped before it has any text.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchMessage`] if `index` is not below the number of messages.
    pub fn edit(chat: C, index: usize, text: impl Into<String>) -> Result<Self, Error> {
        let n_messages = chat.messages.len();
        if index >= n_messages {
            return Err(ErrorKind::NoSuchMessage { index, n_messages }.into());
        }
        Ok(Self::after(chat, index, vec![Message::user(text)]))
    }

    /// Sends the results of the tool calls of the last answer: see [`Chat::send_tool_results`].
    ///
    /// # Errors
    /// [`ErrorKind::Tools`] if a result belongs to no call of the last answer, or if a call has no result or two.
    pub fn tool_results(chat: C, results: impl IntoIterator<Item = (ToolCall, Value)>) -> Result<Self, Error> {
        let messages = tools::ordered_results(&chat.messages, results)?;
        let from = chat.messages.len();
        Ok(Self::after(chat, from, messages))
    }

    /// Waits for the whole answer.
    pub fn run(self) -> Result<Completion, Error> {
        self.stream()?.run()
    }

    /// Writes the answer to `out` while it is generated, and returns it when it is complete: see
    /// [`Generate::write_to`](crate::Generate::write_to).
    pub fn write_to(self, out: impl Write) -> Result<Completion, Error> {
        let mut stream = self.stream()?;
        write_pieces(out, stream.by_ref())?;
        Ok(stream.into_completion())
    }

    /// Streams the answer. Dropping the stream ends the turn; the answer so far stays in the conversation.
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

/// A running answer: an iterator over its pieces. Dropping it ends the turn.
#[must_use = "a stream generates nothing unless it is iterated"]
pub struct ChatStream<C: DerefMut<Target = Chat>> {
    /// `None` once the turn is recorded in the conversation.
    chat: Option<C>,
    pub(crate) run: Run,
    /// Separates reasoning and tool calls from the text.
    reader: Reader,
    /// Number of messages before this turn, and the messages that it replaces.
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
    /// The text so far, without reasoning and tool calls.
    pub fn text(&self) -> &str {
        &self.reader.answer().text
    }

    /// The reasoning so far.
    pub fn reasoning(&self) -> &str {
        &self.reader.answer().reasoning
    }

    /// Why the answer ended; `None` while it is running.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.run.finish_reason().map(|reason| tools::reason(reason, !self.reader.answer().calls.is_empty()))
    }

    /// The stop string that ended the answer, if one did.
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

    fn run(mut self) -> Result<Completion, Error> {
        self.run.wait_for_end();
        self.by_ref().try_for_each(|piece| piece.map(drop))?;
        Ok(self.into_completion())
    }

    /// Converts an item of the run into one for the caller.
    pub(crate) fn read(&mut self, item: Option<Result<Piece, Error>>) -> Option<Result<Piece, Error>> {
        self.failed |= matches!(item, Some(Err(_)));
        if self.failed { item } else { self.reader.read(&mut self.run, item) }
    }

    /// Ends the turn, and returns the answer so far.
    pub fn into_completion(mut self) -> Completion {
        self.record();
        self.completion()
    }

    /// Ends the turn, and returns the answer so far and the pointer to the conversation, which has the answer now.
    pub fn into_parts(mut self) -> (Completion, C) {
        let chat = self.record().expect("a turn is recorded once, and this was its only way to end");
        (self.completion(), chat)
    }

    fn completion(&mut self) -> Completion {
        let mut completion = self.run.completion();
        self.reader.answer().clone().put_into(&mut completion);
        completion
    }

    /// Records the turn in the conversation, or restores the messages that were there before.
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
