//! Puts back into an answer what was masked in its request.
//!
//! A placeholder can be divided between pieces of a stream, so the end of a piece that could be the beginning of a
//! placeholder is held back until it is known what it is:
//!
//! ```text
//! "Hello [EM" "AIL_1], how" -> "Hello " "ada@example.org, how"
//! ```
//!
//! Text, reasoning and the arguments of each call are followed separately. In arguments, and in text that must be JSON,
//! a placeholder is inside a string, so the text for which it stands is escaped as JSON wants it.

use std::collections::VecDeque;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll};

use fewbit_serve::{BackendError, CallDelta, End, Event, Generating, Piece, Token};
use futures_core::Stream;
use serde_json::Value;

use super::mask::Back;

/// More bytes than any placeholder has.
const MAX_PLACEHOLDER: usize = 100;

impl Back {
    /// The placeholder with which a text begins, and the text for which it stands. Without one, whether the whole text is
    /// the beginning of a placeholder.
    fn at(&self, text: &str) -> Result<(&str, &str), bool> {
        if let Some(end) = text.bytes().take(MAX_PLACEHOLDER).position(|byte| byte == b']')
            && let Some((placeholder, value)) = self.values.get_key_value(&text[..=end])
        {
            return Ok((placeholder, value));
        }
        // All placeholders with this beginning follow it in the order of the map.
        let next = self.values.range::<str, _>((Bound::Included(text), Bound::Unbounded)).next();
        Err(next.is_some_and(|(placeholder, _)| placeholder.starts_with(text)))
    }

    /// Replaces all placeholders of a text. Returns how much of it was read: the rest could be the beginning of one.
    fn replace(&self, text: &str, is_json: bool, out: &mut String) -> usize {
        let mut from = 0;
        while let Some(at) = text[from..].find('[').map(|at| from + at) {
            *out += &text[from..at];
            match self.at(&text[at..]) {
                Ok((placeholder, value)) => {
                    if is_json {
                        let escaped = Value::from(value).to_string();
                        *out += &escaped[1..escaped.len() - 1];
                    } else {
                        *out += value;
                    }
                    from = at + placeholder.len();
                }
                Err(true) => return at,
                Err(false) => {
                    out.push('[');
                    from = at + 1;
                }
            }
        }
        *out += &text[from..];
        text.len()
    }

    /// Replaces all placeholders of a text that is complete.
    pub(super) fn whole(&self, text: &str, is_json: bool) -> String {
        let mut out = String::with_capacity(text.len());
        let n = self.replace(text, is_json, &mut out);
        out + &text[n..]
    }
}

/// What a piece of text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Reasoning,
    Text,
    Call(usize),
}

/// An answer in which the masked texts are put back.
pub(super) struct Unmasked {
    answer: Generating,
    back: Back,
    /// Whether the text must be JSON.
    is_json: bool,
    /// What the held text belongs to.
    channel: Channel,
    held: String,
    /// Tokens whose text is held.
    tokens: Vec<Token>,
    ready: VecDeque<Result<Event, BackendError>>,
    has_ended: bool,
}

impl Unmasked {
    pub(super) fn new(answer: Generating, back: Back, is_json: bool) -> Self {
        Self {
            answer,
            back,
            is_json,
            channel: Channel::Text,
            held: String::new(),
            tokens: Vec::new(),
            ready: VecDeque::new(),
            has_ended: false,
        }
    }

    fn send(&mut self, text: String, mut piece: Piece) {
        match self.channel {
            Channel::Reasoning => piece.reasoning = text,
            Channel::Text => piece.text = text,
            Channel::Call(index) => match piece.calls.first_mut() {
                Some(call) => call.arguments = text,
                None if text.is_empty() => {}
                None => piece.calls.push(CallDelta { index, arguments: text, ..CallDelta::default() }),
            },
        }
        if !piece.is_empty() {
            piece.tokens.append(&mut self.tokens);
            self.ready.push_back(Ok(Event::Piece(piece)));
        }
    }

    /// Sends what is held: nothing follows that could complete it.
    fn flush(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.send(held, Piece::default());
    }

    /// Sends new text, except for an end that could be the beginning of a placeholder. `piece` is what else is new.
    fn push(&mut self, channel: Channel, new: &str, piece: Piece) {
        if channel != self.channel {
            self.flush();
            self.channel = channel;
        }
        let text = std::mem::take(&mut self.held) + new;
        let is_json = self.is_json || matches!(channel, Channel::Call(_));
        let mut out = String::with_capacity(text.len());
        let n = self.back.replace(&text, is_json, &mut out);
        text[n..].clone_into(&mut self.held);
        self.send(out, piece);
    }

    fn piece(&mut self, piece: Piece) {
        let Piece { text, reasoning, calls, void, tokens } = piece;
        self.tokens.extend(tokens);
        if !void.is_empty() {
            if matches!(self.channel, Channel::Call(index) if void.iter().any(|void| void.index == index)) {
                self.held.clear();
            }
            self.flush();
            self.ready.push_back(Ok(Event::Piece(Piece { void, ..Piece::default() })));
        }
        if !reasoning.is_empty() {
            self.push(Channel::Reasoning, &reasoning, Piece::default());
        }
        if !text.is_empty() {
            self.push(Channel::Text, &text, Piece::default());
        }
        for CallDelta { index, id, name, arguments } in calls {
            let mut head = Piece::default();
            if id.is_some() || name.is_some() {
                let name = name.map(|name| self.back.whole(&name, false));
                head.calls.push(CallDelta { index, id, name, arguments: String::new() });
            }
            self.push(Channel::Call(index), &arguments, head);
        }
    }

    /// Sends all that is left, tokens without text included.
    fn end(&mut self) {
        self.flush();
        if !self.tokens.is_empty() {
            let tokens = std::mem::take(&mut self.tokens);
            self.ready.push_back(Ok(Event::Piece(Piece { tokens, ..Piece::default() })));
        }
    }
}

impl Stream for Unmasked {
    type Item = Result<Event, BackendError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            match std::task::ready!(Pin::new(&mut this.answer).poll_next(context)) {
                Some(Ok(Event::Piece(piece))) => this.piece(piece),
                Some(Ok(Event::End(End { finish, stop, usage }))) => {
                    this.end();
                    let stop = stop.map(|stop| this.back.whole(&stop, false));
                    this.ready.push_back(Ok(Event::End(End { finish, stop, usage })));
                }
                Some(Ok(other)) => this.ready.push_back(Ok(other)),
                Some(Err(error)) => {
                    this.end();
                    this.ready.push_back(Err(error));
                }
                None => {
                    this.end();
                    this.has_ended = true;
                }
            }
        }
    }
}
