//! Mistral's calls since v11: `name[CALL_ID]id[ARGS]{..}`. The id may be missing, and early models leave out `[ARGS]`
//! too.

use serde_json::Value;

use super::parser::{Input, MAX_NAME_BYTES, Out, Outcome, overlap};
use super::scan::Scanner;

const CALL_ID: &str = "[CALL_ID]";
const ARGS: &str = "[ARGS]";

/// One call, after its mark.
#[derive(Debug)]
pub(super) struct Named {
    name: String,
    id: Option<String>,
    arguments: Option<Arguments>,
}

/// An object with all arguments.
#[derive(Debug)]
pub(super) struct Arguments {
    scanner: Scanner,
    text: String,
    n_sent: usize,
}

impl Arguments {
    pub(super) fn new() -> Self {
        Self { scanner: Scanner::new(), text: String::new(), n_sent: 0 }
    }

    /// Whether nothing has been read.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Reads more text; returns the arguments when they are complete, and an error if they are not JSON.
    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Result<Option<Value>, String> {
        while let Some(c) = input.rest().chars().next() {
            if self.scanner.push(c).is_err() || (self.text.is_empty() && c != '{') {
                return Err(format!("{c:?} cannot follow in its arguments"));
            }
            out.attempt.extend(input.next());
            self.text.push(c);
            if self.scanner.is_done() {
                self.send(out);
                let value = serde_json::from_str(&self.text);
                return value.map(Some).map_err(|_| "its arguments are no JSON".to_owned());
            }
        }
        self.send(out);
        Ok(None)
    }

    fn send(&mut self, out: &mut Out) {
        out.arguments(&self.text[self.n_sent..]);
        self.n_sent = self.text.len();
    }
}

impl Named {
    pub(super) fn new() -> Self {
        Self { name: String::new(), id: None, arguments: None }
    }

    pub(super) fn feed(&mut self, input: &mut Input, out: &mut Out) -> Outcome {
        while self.arguments.is_none() {
            let rest = input.rest();
            let Some(c) = rest.chars().next() else { return Outcome::Wait };
            let broken = |reason: String| Outcome::Broken { name: None, reason };
            match c {
                '{' => self.arguments = Some(Arguments::new()),
                '[' => {
                    if overlap(rest, CALL_ID) == rest.len() || overlap(rest, ARGS) == rest.len() {
                        return Outcome::Wait;
                    }
                    if rest.starts_with(ARGS) {
                        out.attempt += &input.take(ARGS.len());
                    } else if rest.starts_with(CALL_ID) && self.id.is_none() {
                        out.attempt += &input.take(CALL_ID.len());
                        self.id = Some(String::new());
                    } else {
                        return broken("its name is followed by neither an id nor arguments".to_owned());
                    }
                }
                _ => {
                    let into = self.id.as_mut().unwrap_or(&mut self.name);
                    let is_part = c.is_alphanumeric() || "_-.".contains(c) || c.is_whitespace();
                    if !is_part || into.len() >= MAX_NAME_BYTES {
                        return broken(format!("{c:?} cannot stand in a name"));
                    }
                    into.push(c);
                    out.attempt.extend(input.next());
                }
            }
            if self.arguments.is_some() {
                for text in [Some(&mut self.name), self.id.as_mut()].into_iter().flatten() {
                    *text = text.trim().to_owned();
                }
                out.begin(&self.name, self.id.as_deref());
            }
        }
        let Some(arguments) = &mut self.arguments else { return Outcome::Wait };
        match arguments.feed(input, out) {
            Ok(None) => Outcome::Wait,
            Ok(Some(value)) => {
                out.complete(&self.name, self.id.as_deref(), value);
                Outcome::Done
            }
            Err(reason) => Outcome::Broken { name: Some(self.name.clone()), reason },
        }
    }
}
