//! Finds out what a chat template can render, by giving it small conversations and searching the output for their
//! words.
//!
//! Templates do not declare what they accept. One writes the arguments of a call with `tojson` and so needs an object,
//! another concatenates them to a string and so needs text; one silently ignores tools, one writes only the first of
//! two calls, one writes calls only if `content` is null. So each case is tried: a conversation with words that occur
//! nowhere else is rendered in every form, and a form is supported if all of its words appear in the output unchanged.
//! If a template calls `raise_exception`, that form counts as not rendered.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::PoisonError;

use serde_json::{Map, Value, json};

use super::watched::Missed;
use super::{ChatTemplate, Clock, Message, TemplateInput};

/// The form in which a template expects the arguments of earlier calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ArgumentsForm {
    /// A JSON object, as in transformers.
    #[default]
    Object,
    /// The JSON text of an object, as in OpenAI's API.
    Text,
}

/// The `content` of an assistant message that has calls and no text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CallContent {
    /// An empty text.
    #[default]
    Empty,
    /// `null`.
    Null,
    /// The message has no such field.
    Omitted,
}

/// What a chat template can render.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TemplateCapabilities {
    /// Tools appear in the prompt.
    pub tools: bool,
    /// Calls that the model made appear in the prompt, in the form given by the next two fields.
    pub tool_calls: bool,
    /// The form of their arguments.
    pub arguments: ArgumentsForm,
    /// The `content` to use for a message with calls and no text.
    pub call_content: CallContent,
    /// Several calls in one message all appear.
    pub parallel_calls: bool,
    /// The result of a call, in a message with role `tool`, appears.
    pub tool_results: bool,
    /// A system message appears. Also true for a template that rejects a plain question, about which nothing is known.
    pub system: bool,
    /// The field with an answer's reasoning that is rendered while the answer is not finished: after a call, when its
    /// result is the last message.
    pub reasoning: Option<&'static str>,
    /// Variables that the template reads and that are not part of a conversation, such as `enable_thinking`; sorted.
    pub variables: Vec<String>,
}

/// The variables and functions that every template has.
const USUAL: [&str; 14] = [
    "add_generation_prompt",
    "bos_token",
    "caller",
    "documents",
    "eos_token",
    "loop",
    "messages",
    "pad_token",
    "raise_exception",
    "self",
    "strftime_now",
    "tools",
    "unk_token",
    "super",
];

/// Fields in which templates expect reasoning, the most common first.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// The words of the probes: no template contains them, and none is part of another. Function names are plain words, in
/// case a template checks that; ids have the nine letters and digits that some templates require.
const SYSTEM: &str = "qsystemq";
const QUESTION: &str = "qquestionq";
const ANSWER: &str = "qanswerq";
const THOUGHT: &str = "qthoughtq";
const TOOLS: [&str; 2] = ["qtoolq", "qotherq"];
const KEYS: [&str; 2] = ["qkeyq", "qargq"];
const VALUES: [&str; 2] = ["qvalueq", "qwordq"];
const RESULTS: [&str; 2] = ["qresultq", "qoutcomeq"];
const IDS: [&str; 2] = ["qcallid01", "qcallid02"];

impl ChatTemplate {
    /// What this template can render. On first use, the template is tried with about twenty short conversations.
    ///
    /// ```
    /// # use fewbit_tokenizer::{ArgumentsForm, ChatTemplate, Tokenizer, TokenKind, Vocabulary};
    /// # let tokenizer = Tokenizer::new(&Vocabulary { model: "gpt2".into(), pre: Some("gpt-2".into()),
    /// #     kinds: vec![TokenKind::Control], tokens: vec!["<s>".to_owned()].into(), ..Vocabulary::default() })?;
    /// let source = "{% for m in messages %}{{ m.content }}\
    ///     {% for call in m.tool_calls %}{{ call.function.name + ' ' + call.function.arguments }}{% endfor %}{% endfor %}";
    /// let template = ChatTemplate::new(source, &tokenizer)?;
    /// assert_eq!(template.capabilities().arguments, ArgumentsForm::Text);
    /// assert!(template.capabilities().parallel_calls && !template.capabilities().tools);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn capabilities(&self) -> &TemplateCapabilities {
        self.capabilities.get_or_init(|| probe(self))
    }

    /// The messages in the form that this template can render, according to [`capabilities`](Self::capabilities):
    /// arguments of calls as object or as text, `content` of messages with calls and no text, reasoning in the field
    /// where the template looks for it. Everything else is unchanged.
    pub fn fitted<'m>(&self, messages: &'m [Message]) -> Cow<'m, [Message]> {
        if messages.iter().all(|message| calls_of(message).is_none() && reasoning_of(message).is_none()) {
            return Cow::Borrowed(messages);
        }
        let wanted = self.capabilities();
        Cow::Owned(messages.iter().map(|message| fitted(message, wanted)).collect())
    }
}

fn calls_of(message: &Message) -> Option<&Vec<Value>> {
    message.fields.get("tool_calls").and_then(Value::as_array).filter(|calls| !calls.is_empty())
}

/// The field in which a message has its reasoning.
fn reasoning_of(message: &Message) -> Option<&'static str> {
    REASONING.into_iter().find(|field| message.fields.get(*field).is_some_and(Value::is_string))
}

fn fitted(message: &Message, wanted: &TemplateCapabilities) -> Message {
    let mut message = message.clone();
    if let (Some(wanted), Some(found)) = (wanted.reasoning, reasoning_of(&message))
        && !message.fields.contains_key(wanted)
        && let Some(text) = message.fields.shift_remove(found)
    {
        message = message.with_field(wanted, text);
    }
    if calls_of(&message).is_none() {
        return message;
    }
    let is_silent = match message.fields.get("content") {
        None => message.content.is_empty(),
        Some(content) => content.is_null() || content.as_str() == Some(""),
    };
    if is_silent {
        message = message.without_text(wanted.call_content);
    }
    let calls = message.fields.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let call = match call.get("function") {
            Some(_) => call.get_mut("function"),
            None => Some(call),
        };
        if let Some(arguments) = call.and_then(|call| call.get_mut("arguments")) {
            let other = match (&*arguments, wanted.arguments) {
                (Value::String(text), ArgumentsForm::Object) => {
                    // Text that is not a JSON object is what the model wrote: it is kept.
                    serde_json::from_str(text).ok().filter(Value::is_object)
                }
                (Value::String(_), ArgumentsForm::Text) => None,
                (other, ArgumentsForm::Text) => Some(Value::String(spaced(other))),
                (_, ArgumentsForm::Object) => None,
            };
            if let Some(other) = other {
                *arguments = other;
            }
        }
    }
    message
}

/// JSON in the style of Python's `json.dumps`, which models were trained on.
fn spaced(value: &Value) -> String {
    super::environment::json_text(value)
}

/// One conversation to try.
#[derive(Clone, Copy)]
struct Probe {
    n_calls: usize,
    arguments: ArgumentsForm,
    content: CallContent,
    has_system: bool,
    has_results: bool,
    reasoning: Option<&'static str>,
}

impl Probe {
    fn render(self, trial: &Trial<'_>) -> Option<String> {
        let mut messages = Vec::new();
        if self.has_system {
            messages.push(Message::system(SYSTEM));
        }
        messages.push(Message::user(QUESTION));
        let calls = (0..self.n_calls).map(|i| {
            let arguments = json!({ KEYS[i]: VALUES[i] });
            let arguments = match self.arguments {
                ArgumentsForm::Object => arguments,
                ArgumentsForm::Text => spaced(&arguments).into(),
            };
            json!({"type": "function", "id": IDS[i], "function": {"name": TOOLS[i], "arguments": arguments}})
        });
        let mut answer =
            Message::assistant("").with_field("tool_calls", calls.collect::<Value>()).without_text(self.content);
        if let Some(field) = self.reasoning {
            answer = answer.with_field(field, THOUGHT);
        }
        messages.push(answer);
        if self.has_results {
            messages.extend((0..self.n_calls).map(|i| Message::tool(TOOLS[i], Some(IDS[i]), RESULTS[i])));
        }
        trial.render(&messages, Some(tools(self.n_calls)))
    }

    /// Renders the calls, and returns the output if it contains every word of them unchanged.
    fn calls(self, trial: &Trial<'_>) -> Option<String> {
        let text = self.render(trial)?;
        // If the tools are rendered too, names and keys have to occur more often than without the calls.
        let without = self.without_calls(trial);
        let more = |word: &str| text.matches(word).count() > without.matches(word).count();
        // Some templates write the id, which contains the name.
        let is_whole = (0..self.n_calls).all(|i| (more(TOOLS[i]) || more(IDS[i])) && more(KEYS[i]) && more(VALUES[i]));
        // `'k': 'v'` is a Python dictionary, which no model was trained to write; `\"k\"` is a text encoded as JSON.
        let is_mangled =
            (0..self.n_calls).any(|i| more(&format!("'{}':", KEYS[i])) || more(&format!("\\\"{}", KEYS[i])));
        // What `null` and a missing field become if a template writes them like text.
        let is_noisy = self.content != CallContent::Empty && ["None", "null", "Undefined"].into_iter().any(more);
        (is_whole && !is_mangled && !is_noisy).then_some(text)
    }

    /// The same question, answered with text.
    fn without_calls(self, trial: &Trial<'_>) -> String {
        let system = self.has_system.then(|| Message::system(SYSTEM));
        let messages: Vec<Message> =
            system.into_iter().chain([Message::user(QUESTION), Message::assistant(ANSWER)]).collect();
        let more = [messages.as_slice(), &[Message::user(QUESTION)]].concat();
        let tools = Some(tools(self.n_calls));
        let text = trial.render(&messages, tools.clone()).or_else(|| trial.render(&more, tools));
        text.unwrap_or_default()
    }
}

/// Tools whose parameters have the keys of the calls.
fn tools(n: usize) -> Value {
    let tools = (0..n.max(1)).map(|i| {
        let properties: Map<String, Value> =
            Map::from_iter([(KEYS[i].to_owned(), json!({"type": "string", "description": "d"}))]);
        json!({"type": "function", "function": {
            "name": TOOLS[i],
            "description": "d",
            "parameters": {"type": "object", "properties": properties, "required": [KEYS[i]]},
        }})
    });
    tools.collect()
}

/// A template that is being tried.
struct Trial<'t> {
    template: &'t ChatTemplate,
    /// Variables that it looked up and that were missing.
    missed: Missed,
}

impl Trial<'_> {
    fn render(&self, messages: &[Message], tools: Option<Value>) -> Option<String> {
        let input = TemplateInput { tools, clock: Clock::Fixed { unix_s: 0 }, ..TemplateInput::new(messages) };
        let text = |input: &TemplateInput<'_>| {
            self.template.render_watched(input, Some(&self.missed)).ok().map(|prompt| prompt.text())
        };
        // Some templates reject a new answer directly after an answer.
        text(&input).or_else(|| text(&TemplateInput { add_generation_prompt: false, ..input.clone() }))
    }
}

fn probe(template: &ChatTemplate) -> TemplateCapabilities {
    let trial = Trial { template, missed: Missed::default() };
    let mut found = forms_found(&trial);
    let missed = std::mem::take(&mut *trial.missed.lock().unwrap_or_else(PoisonError::into_inner));
    found.variables = variables(template, missed);
    found
}

fn forms_found(trial: &Trial<'_>) -> TemplateCapabilities {
    let system = [Message::system(SYSTEM), Message::user(QUESTION)];
    let question = &system[1..];
    let shows = |messages: &[Message], tools: Option<Value>, word: &str| {
        trial.render(messages, tools).is_some_and(|text| text.contains(word))
    };
    let mut found = TemplateCapabilities {
        system: shows(&system, None, SYSTEM)
            || shows(&system, Some(tools(1)), SYSTEM)
            || !shows(question, None, QUESTION),
        tools: shows(question, Some(tools(1)), TOOLS[0]) || shows(&system, Some(tools(1)), TOOLS[0]),
        ..TemplateCapabilities::default()
    };
    let one = Probe {
        n_calls: 1,
        arguments: ArgumentsForm::Object,
        content: CallContent::Empty,
        has_system: false,
        has_results: true,
        reasoning: None,
    };
    let Some(good) = forms(one).find(|probe| probe.calls(trial).is_some()) else { return found };
    found.tool_calls = true;
    (found.arguments, found.call_content) = (good.arguments, good.content);
    found.parallel_calls = Probe { n_calls: 2, ..good }.calls(trial).is_some();
    found.tool_results = Probe { has_results: true, ..good }.calls(trial).is_some_and(|t| t.contains(RESULTS[0]));
    found.reasoning = REASONING.into_iter().find(|field| {
        let text = Probe { reasoning: Some(field), ..good }.calls(trial);
        text.is_some_and(|text| text.contains(THOUGHT))
    });
    found
}

/// The forms of a call, the usual ones first.
fn forms(probe: Probe) -> impl Iterator<Item = Probe> {
    // Without results, or with a system message, only if a template rejects the usual conversation.
    let places = [(true, false), (false, false), (true, true), (false, true)];
    let contents = [CallContent::Empty, CallContent::Null, CallContent::Omitted];
    places.into_iter().flat_map(move |(has_results, has_system)| {
        [ArgumentsForm::Object, ArgumentsForm::Text].into_iter().flat_map(move |arguments| {
            contents.into_iter().map(move |content| Probe { arguments, content, has_results, has_system, ..probe })
        })
    })
}

/// The variables that the template looked up and did not find, and those that it only reads.
///
/// The engine's own analysis considers a name as set if it is set anywhere, which would miss the variable in
/// `{% set effort = effort | default('low') %}`. The variables that the probes looked up do not include those in
/// branches that no probe reached. Together they cover all known cases.
fn variables(template: &ChatTemplate, missed: BTreeSet<String>) -> Vec<String> {
    let Ok(compiled) = template.environment.get_template(super::NAME) else { return Vec::new() };
    let Ok(read) = super::on_large_stack(|| compiled.undeclared_variables(false)) else { return Vec::new() };
    let Assigned { names: assigned, macros } = assigned(&template.source);
    let is_global = |name: &str| template.environment.globals().any(|(global, _)| global == name);
    let read = read.into_iter().filter(|name| !assigned.contains(name.as_str()));
    let names: BTreeSet<String> = missed.into_iter().chain(read).collect();
    let is_free =
        |name: &String| !USUAL.contains(&name.as_str()) && !macros.contains(name.as_str()) && !is_global(name);
    names.into_iter().filter(is_free).collect()
}

/// Names that a template assigns.
#[derive(Default)]
struct Assigned<'s> {
    /// Names assigned by `set`, by `for` and as arguments of macros.
    names: BTreeSet<&'s str>,
    macros: BTreeSet<&'s str>,
}

fn assigned(source: &str) -> Assigned<'_> {
    let mut found = Assigned::default();
    for tag in source.split("{%").skip(1) {
        let tag = tag.trim_start_matches(['-', '+']).trim_start();
        let Some((word, rest)) = tag.split_once(char::is_whitespace) else { continue };
        let (targets, end) = match word {
            "set" => (rest, '='),
            "for" => (rest.split(" in ").next().unwrap_or(rest), '%'),
            "macro" => match rest.split_once('(') {
                Some((name, arguments)) => {
                    found.macros.insert(name.trim());
                    (arguments, ')')
                }
                None => continue,
            },
            _ => continue,
        };
        // In the block form of `set`, the names end where the tag ends.
        let targets = targets.split([end, '%']).next().unwrap_or(targets);
        let targets = targets.split(',').map(|target| target.split('=').next().unwrap_or(target));
        found.names.extend(targets.map(|target| target.trim_matches([' ', '\t', '\n', '\r', '(', ')', '-'])));
    }
    found
}
