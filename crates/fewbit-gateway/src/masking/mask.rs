//! Replaces what must not leave in every text of a job, and remembers what stood there.
//!
//! ```text
//! "Write to ada@example.org" -> "Write to [EMAIL_1]"
//! ```
//!
//! The same text gets the same placeholder everywhere in a request, so that a model can tell people apart. Placeholders
//! are numbered in the order of the request: a longer conversation gets the same ones as its beginning, which lets
//! servers reuse a cached prompt, and the same request is the same bytes again. If a request contains a text like a
//! placeholder, those of this request have letters before their numbers, so that nothing is put where nothing was taken.
//!
//! Texts that are JSON (arguments of calls) are read as such: a string is decoded before it is searched, and stays valid
//! JSON afterwards.

use std::collections::{BTreeMap, HashMap, HashSet};

use fewbit_serve::api::chat::{ChatMessage, Content, ToolChoice};
use fewbit_serve::api::common::Prompt;
use fewbit_serve::{BackendError, BackendErrorKind, Form, Input, Job};
use serde_json::{Map, Value};

use super::Chosen;
use super::find::find;

/// The most texts that are replaced in one request.
const MAX_VALUES: usize = 100_000;

/// The placeholders of a request, with the texts for which they stand.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Back {
    pub(super) values: BTreeMap<String, String>,
}

/// Masks the texts of one request.
pub(super) struct Mask<'a> {
    chosen: &'a Chosen<'a>,
    /// The letters before the numbers of placeholders.
    tag: String,
    /// Placeholders by text.
    known: HashMap<String, String>,
    /// How many placeholders each finder has.
    n: HashMap<usize, usize>,
    back: Back,
}

/// A part of a job that can contain text.
enum Part<'a> {
    Text(&'a mut String),
    /// A text that is JSON, unless the client or the model made a mistake.
    Json(&'a mut String),
    Value(&'a mut Value),
}

/// Token ids cannot be searched for text, so they are refused.
fn is_readable(prompt: &Prompt, param: String) -> Result<(), BackendError> {
    match prompt {
        Prompt::Text(_) => Ok(()),
        _ => {
            let message = "this server masks private text, and cannot search token ids for it: send a text";
            Err(BackendError::invalid(param, message))
        }
    }
}

/// Masks the texts of a job. Returns what has to be put back into the answer; nothing is in it if nothing was masked.
///
/// # Errors
/// If a part of the job cannot be searched, or too many texts would have to be replaced.
pub(super) fn job(chosen: &Chosen<'_>, job: &mut Job) -> Result<Back, BackendError> {
    if let Input::Text { prompt, .. } = &job.input {
        is_readable(prompt, "prompt".to_owned())?;
    }
    let mut mask = Mask::new(chosen);
    let mut used = HashSet::new();
    each(job, &mut |part| {
        match part {
            Part::Text(text) => mask.placeholders_in(text, &mut used),
            Part::Json(text) => match serde_json::from_str(text) {
                Ok(value) => mask.placeholders_in_value(&value, &mut used),
                Err(_) => mask.placeholders_in(text, &mut used),
            },
            Part::Value(value) => mask.placeholders_in_value(value, &mut used),
        }
        Ok(())
    })?;
    mask.choose_tag(&used);
    each(job, &mut |part| {
        match part {
            Part::Text(text) => mask.text(text),
            Part::Json(text) => mask.json(text),
            Part::Value(value) => mask.value(value),
        }
        mask.check()
    })?;
    Ok(mask.back)
}

/// Masks texts one by one, each as if it were alone, and returns how many places were masked.
///
/// # Errors
/// As for [`job`].
pub(super) fn texts(chosen: &Chosen<'_>, texts: &mut [Prompt]) -> Result<usize, BackendError> {
    let mut n = 0;
    for (i, prompt) in texts.iter_mut().enumerate() {
        is_readable(prompt, format!("input[{i}]"))?;
        if let Prompt::Text(text) = prompt {
            let (masked, back) = one(chosen, text)?;
            *text = masked;
            n += back.values.len();
        }
    }
    Ok(n)
}

/// Masks one text.
///
/// # Errors
/// If too many parts of it would have to be replaced.
pub(super) fn one(chosen: &Chosen<'_>, text: &str) -> Result<(String, Back), BackendError> {
    let mut mask = Mask::new(chosen);
    let mut used = HashSet::new();
    mask.placeholders_in(text, &mut used);
    mask.choose_tag(&used);
    let mut text = text.to_owned();
    mask.text(&mut text);
    mask.check()?;
    Ok((text, mask.back))
}

/// Masks a JSON value.
///
/// # Errors
/// If too many parts of it would have to be replaced.
pub(super) fn value(chosen: &Chosen<'_>, value: &mut Value) -> Result<usize, BackendError> {
    let mut mask = Mask::new(chosen);
    let mut used = HashSet::new();
    mask.placeholders_in_value(value, &mut used);
    mask.choose_tag(&used);
    mask.value(value);
    mask.check()?;
    Ok(mask.back.values.len())
}

/// Visits every text of a job that a backend sees.
fn each(job: &mut Job, visit: &mut impl FnMut(Part<'_>) -> Result<(), BackendError>) -> Result<(), BackendError> {
    match &mut job.input {
        Input::Text { prompt: Prompt::Text(text), .. } => visit(Part::Text(text))?,
        Input::Text { .. } => {}
        Input::Chat { messages, tools, choice, parallel: _, template_vars } => {
            messages.iter_mut().try_for_each(|message| each_of_message(message, visit))?;
            tools.iter_mut().try_for_each(|tool| visit(Part::Value(tool)))?;
            if let ToolChoice::Named(name) = choice {
                visit(Part::Text(name))?;
            }
            // Maps are visited as values, so that their keys are masked as well.
            let mut vars = Value::Object(std::mem::take(template_vars));
            visit(Part::Value(&mut vars))?;
            if let Value::Object(vars) = vars {
                *template_vars = vars;
            }
        }
    }
    let sampling = &mut job.sampling;
    sampling.stop.iter_mut().flat_map(|stop| &mut stop.0).try_for_each(|stop| visit(Part::Text(stop)))?;
    for text in [&mut sampling.grammar, &mut sampling.regex].into_iter().flatten() {
        visit(Part::Text(text))?;
    }
    match &mut job.form {
        None | Some((Form::JsonObject, _)) => Ok(()),
        Some((Form::JsonSchema(schema), _)) => visit(Part::Value(schema)),
        Some((Form::Grammar(text) | Form::Regex(text), _)) => visit(Part::Text(text)),
    }
}

fn each_of_message(
    message: &mut ChatMessage,
    visit: &mut impl FnMut(Part<'_>) -> Result<(), BackendError>,
) -> Result<(), BackendError> {
    // The parts of a content are put together by every backend, so that a part must not hide half of an address.
    if let Some(mut text) = message.content.as_text() {
        visit(Part::Text(&mut text))?;
        message.content = Content(Some(vec![text]));
    }
    let texts = [&mut message.name, &mut message.tool_call_id, &mut message.reasoning_content];
    texts.into_iter().flatten().try_for_each(|text| visit(Part::Text(text)))?;
    for call in message.tool_calls.iter_mut().flatten() {
        visit(Part::Text(&mut call.id))?;
        visit(Part::Text(&mut call.function.name))?;
        visit(Part::Json(&mut call.function.arguments))?;
    }
    Ok(())
}

impl<'a> Mask<'a> {
    fn new(chosen: &'a Chosen<'a>) -> Self {
        Self { chosen, tag: String::new(), known: HashMap::new(), n: HashMap::new(), back: Back::default() }
    }

    fn check(&self) -> Result<(), BackendError> {
        if self.back.values.len() <= MAX_VALUES {
            return Ok(());
        }
        let message = format!("more than {MAX_VALUES} texts of the request would have to be masked: send less at once");
        Err(BackendError::new(BackendErrorKind::Invalid, message))
    }

    /// Notes the letters of what looks like a placeholder.
    fn placeholders_in(&self, text: &str, used: &mut HashSet<String>) {
        for (at, _) in text.match_indices('[') {
            let rest = text.get(at + 1..).unwrap_or_default();
            for finder in self.chosen.finders().map(|(_, finder)| finder) {
                if let Some(rest) = rest.strip_prefix(&*finder.shown).and_then(|rest| rest.strip_prefix('_')) {
                    let n = rest.bytes().take_while(u8::is_ascii_uppercase).count();
                    used.extend(rest.get(..n).map(str::to_owned));
                }
            }
        }
    }

    fn placeholders_in_value(&self, value: &Value, used: &mut HashSet<String>) {
        match value {
            Value::String(text) => self.placeholders_in(text, used),
            Value::Array(items) => items.iter().for_each(|item| self.placeholders_in_value(item, used)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    self.placeholders_in(name, used);
                    self.placeholders_in_value(field, used);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Takes the first letters that are not in use: none, A to Z, AA and so on.
    fn choose_tag(&mut self, used: &HashSet<String>) {
        while used.contains(&self.tag) {
            self.tag = next_tag(&self.tag);
        }
    }

    fn placeholder(&mut self, finder: usize, text: &str) -> String {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        let n = self.n.entry(finder).or_default();
        *n += 1;
        let placeholder = format!("[{}_{}{n}]", self.chosen.shown(finder), self.tag);
        self.known.insert(text.to_owned(), placeholder.clone());
        self.back.values.insert(placeholder.clone(), text.to_owned());
        placeholder
    }

    /// The text with placeholders, or `None` if nothing is found in it.
    fn masked(&mut self, text: &str) -> Option<String> {
        let all = find(self.chosen.finders(), text);
        if all.is_empty() {
            return None;
        }
        let mut masked = String::with_capacity(text.len());
        let mut from = 0;
        for found in all {
            masked += text.get(from..found.at.start).unwrap_or_default();
            masked += &self.placeholder(found.finder, text.get(found.at.clone()).unwrap_or_default());
            from = found.at.end;
        }
        masked += text.get(from..).unwrap_or_default();
        Some(masked)
    }

    fn text(&mut self, text: &mut String) {
        if let Some(masked) = self.masked(text) {
            *text = masked;
        }
    }

    /// Masks the strings and numbers of a JSON text, and leaves the rest as it is.
    fn json(&mut self, text: &mut String) {
        if serde_json::from_str::<Value>(text).is_err() {
            return self.text(text);
        }
        let mut masked = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let n = literal(rest);
            let (part, after) = rest.split_at(n);
            if part.starts_with('"') {
                let decoded: String = serde_json::from_str(part).unwrap_or_default();
                match self.masked(&decoded) {
                    Some(changed) => masked += &Value::from(changed).to_string(),
                    None => masked += part,
                }
            } else {
                // Not inside a string: a number becomes a string.
                match self.masked(part) {
                    Some(changed) => masked += &Value::from(changed).to_string(),
                    None => masked += part,
                }
            }
            rest = after;
        }
        *text = masked;
    }

    /// Masks the strings, numbers and names of a value.
    fn value(&mut self, value: &mut Value) {
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::String(text) => self.text(text),
            Value::Number(number) => {
                if let Some(masked) = self.masked(&number.to_string()) {
                    *value = masked.into();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(fields) => {
                let all = std::mem::take(fields);
                *fields = all
                    .into_iter()
                    .map(|(mut name, mut field)| {
                        self.text(&mut name);
                        self.value(&mut field);
                        (name, field)
                    })
                    .collect::<Map<_, _>>();
            }
        }
    }
}

/// The length of the string, the number, or the other characters with which a JSON text begins.
fn literal(text: &str) -> usize {
    let bytes = text.as_bytes();
    let is_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    match bytes.first() {
        Some(b'"') => {
            let mut is_escaped = false;
            let end = bytes.iter().skip(1).position(|&byte| {
                let is_end = byte == b'"' && !is_escaped;
                is_escaped = byte == b'\\' && !is_escaped;
                is_end
            });
            end.map_or(bytes.len(), |end| end + 2)
        }
        Some(b'-' | b'0'..=b'9') => bytes.iter().take_while(|byte| is_number(byte)).count(),
        _ => bytes.iter().take_while(|byte| !matches!(byte, b'"' | b'-' | b'0'..=b'9')).count(),
    }
}

fn next_tag(tag: &str) -> String {
    let mut letters: Vec<u8> = tag.bytes().collect();
    for letter in letters.iter_mut().rev() {
        if *letter < b'Z' {
            *letter += 1;
            return String::from_utf8(letters).unwrap_or_default();
        }
        *letter = b'A';
    }
    letters.insert(0, b'A');
    String::from_utf8(letters).unwrap_or_default()
}
