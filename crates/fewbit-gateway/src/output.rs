//! The hash of an answer, by which the log proves it and a replay is compared with it.
//!
//! ```text
//! SHA-256 of {"text":..,"reasoning":..,"calls":[{"name":..,"arguments":..}],"finish":"stop"}
//! ```
//!
//! It does not depend on how the answer was divided into pieces. The ids of calls are random, so they are left out.

use fewbit_serve::{CallDelta, End, Event, Piece};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex;

/// A complete answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its reasoning.
    pub reasoning: String,
    /// The calls it makes.
    pub calls: Vec<AnswerCall>,
    /// Why it ended.
    pub finish: String,
}

/// A call of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerCall {
    /// The name of the function.
    pub name: String,
    /// Its arguments.
    pub arguments: String,
}

impl Answer {
    /// Its SHA-256, in hexadecimal.
    ///
    /// # Panics
    /// Never: an answer always has a form in JSON.
    pub fn sha256(&self) -> String {
        let json = serde_json::to_vec(self).expect("an answer consists of texts");
        hex(&Sha256::digest(&json))
    }
}

/// Puts the pieces of an answer together.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    answer: Answer,
    /// The indices of its calls.
    indices: Vec<usize>,
}

impl Heard {
    pub(crate) fn hear(&mut self, event: &Event) {
        match event {
            Event::Begin { .. } => {}
            Event::Piece(piece) => self.piece(piece),
            Event::End(End { finish, .. }) => finish.as_str().clone_into(&mut self.answer.finish),
        }
    }

    fn piece(&mut self, piece: &Piece) {
        self.answer.text += &piece.text;
        self.answer.reasoning += &piece.reasoning;
        for void in &piece.void {
            if let Some(at) = self.indices.iter().position(|index| *index == void.index) {
                self.indices.remove(at);
                self.answer.calls.remove(at);
            }
        }
        for CallDelta { index, name, arguments, .. } in &piece.calls {
            let is_void = name.is_none() && piece.void.iter().any(|void| void.index == *index);
            if is_void {
                continue;
            }
            let at = self.indices.iter().position(|known| known == index).unwrap_or_else(|| {
                self.indices.push(*index);
                self.answer.calls.push(AnswerCall::default());
                self.indices.len() - 1
            });
            if let Some(call) = self.answer.calls.get_mut(at) {
                call.name += name.as_deref().unwrap_or_default();
                call.arguments += arguments;
            }
        }
    }

    pub(crate) fn answer(self) -> Answer {
        self.answer
    }
}

#[cfg(test)]
mod tests {
    use fewbit_serve::{Finish, Usage, VoidCall};

    use super::*;

    fn heard(pieces: Vec<Piece>) -> Answer {
        let mut heard = Heard::default();
        let end = Event::End(End { finish: Finish::Stop, stop: None, usage: Usage::default() });
        pieces.into_iter().map(Event::Piece).chain([end]).for_each(|event| heard.hear(&event));
        heard.answer()
    }

    fn call(index: usize, name: Option<&str>, arguments: &str) -> Piece {
        let (id, name) = (name.map(|_| format!("call_{index}")), name.map(str::to_owned));
        Piece { calls: vec![CallDelta { index, id, name, arguments: arguments.to_owned() }], ..Piece::default() }
    }

    #[test]
    fn the_hash_does_not_depend_on_the_pieces() {
        let text = |text: &str| Piece { text: text.to_owned(), ..Piece::default() };
        let whole = heard(vec![text("One two."), call(0, Some("f"), "{\"a\":1}"), call(1, Some("g"), "{}")]);
        let pieces = heard(vec![
            text("One"),
            text(" two."),
            call(0, Some("f"), ""),
            call(0, None, "{\"a\":1}"),
            call(1, Some("g"), "{}"),
        ]);
        assert_eq!((whole.sha256(), &whole), (pieces.sha256(), &pieces));
        let void = Piece { void: vec![VoidCall { index: 0, is_cut: true }], ..Piece::default() };
        assert_eq!(heard(vec![text("x"), call(0, Some("f"), "{"), void]), heard(vec![text("x")]));
        assert_ne!(whole.sha256(), heard(vec![text("One two")]).sha256());
        // python3: hashlib.sha256(b'{"text":"x","reasoning":"","calls":[],"finish":"stop"}').hexdigest()
        let want = "5e743c67ae741d83a29738983e5cf8cbdb797d7efbe4f60514831b15fc7f2896";
        assert_eq!(heard(vec![text("x")]).sha256(), want);
    }
}
