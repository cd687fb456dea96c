//! Tools that a model may call, and its reasoning: how the model is told of the tools, and how its answers are parsed.
//!
//! A tool goes into the model's chat template as a JSON schema. How a model writes a call depends on its training:
//! [`ToolStyle`] is the table of the known formats, one row each, and [`ReasoningStyle`] the table of the known formats
//! of reasoning. The row is chosen by what the template and the vocabulary show.
//!
//! ```text
//! style.rs     the two tables, and how a row is chosen
//! parser.rs    an answer, text in, parts out: text, reasoning, calls
//! out.rs       what the formats below read from and write to
//! scan.rs      one JSON value, character by character
//! calls.rs     calls in JSON: objects, lists, wrappers
//! named.rs     Mistral: name, id, arguments
//! harmony.rs   gpt-oss: messages with headers
//! python.rs    Llama, LFM2: [f(a=1, b='x')]; OLMo: f(a=1, b="x")
//! gemma.rs     Gemma 4: call:f{a:1,b:<|"|>x<|"|>}
//! section.rs   DeepSeek, Kimi: calls between marks of their own
//! pairs.rs     GLM: a name, <arg_key>a</arg_key><arg_value>1</arg_value>, typed likewise
//! xml.rs       Qwen3-Coder: <function=f><parameter=a>, typed by the tool's schema (types.rs)
//! reader.rs    parts to the pieces of a stream, and to the whole answer
//! write.rs     calls as a model of each style writes them
//! history.rs   a conversation as a template can render it
//! choice.rs    calls that must be: a grammar of them, in each style
//! thinking.rs  constraints that wait for the end of reasoning, and a budget of it
//! ```
//!
//! # How an answer is read
//!
//! There is one parser, for streams and for whole answers. It takes text in pieces of any size and gives
//! [`Part`](parser::Part)s. How the text was cut into pieces changes only how the parts are cut.
//!
//! ```text
//!          start mark                 end mark
//! Text ------------------> Reasoning ----------> Text
//!      call mark, or JSON         complete                 end mark, or something else
//! Text ------------------> Call -----------> (another, or) ----------------------------> Text
//!                            | cannot be a call
//!                            +------------------> Broken (streams on as text) ---------> Text
//! ```
//!
//! Five rules:
//!
//! 1. *A mark counts only where it can begin something.* Inside reasoning nothing is a call; inside a call's string
//!    nothing is a mark, because each format is followed by its own grammar, not searched for its end. Without a mark, a
//!    call can only begin an answer.
//! 2. *Every part has its source text.* The sources of all parts, in order, are the answer: nothing is lost. A property
//!    test checks this for any text.
//! 3. *A call counts when it is complete*, names a tool, and has an object as its arguments. Its name is emitted as
//!    soon as it is known, its arguments as they come. If it turns out to be no call, it is text, and is reported as a
//!    [`MalformedCall`]; if its beginning was emitted already, the report has its index, and the next call takes that
//!    index.
//! 4. *The text is the answer without calls and reasoning*, and nothing else changes: white space around them is text
//!    if text comes before and after it (`"See.\n" call "\nDone"` is `"See.\n\nDone"`); otherwise it is dropped.
//! 5. *Reasoning begins at a start mark at the beginning of a line, and ends at its first end mark*, quoted or not:
//!    models write the end mark when they are done, quotes and code fences inside reasoning are often never closed, and
//!    the answer must not be lost in reasoning. A mark in the middle of a line or in a fenced block of the answer is
//!    text about marks. Several blocks of reasoning are joined by an empty line.
//!
//! Parsing is linear in the length of the answer, and keeps no more than the current call and text that may be a mark.

mod calls;
#[cfg(feature = "constraints")]
mod choice;
mod gemma;
mod harmony;
mod history;
mod named;
mod out;
mod pairs;
mod parser;
mod python;
mod reader;
mod scan;
mod section;
mod style;
#[cfg(test)]
mod tests;
mod thinking;
mod types;
mod write;
mod xml;

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind};
pub(crate) use harmony::MARKS as HARMONY_MARKS;
#[cfg(feature = "constraints")]
pub(crate) use harmony::final_header;
pub(crate) use history::{answer_message, as_texts, calls_of, fitted, ordered_results};
pub(crate) use parser::Setup;
pub(crate) use reader::{Answer, Reader, reason};
pub use style::{ReasoningStyle, ToolStyle};
#[cfg(feature = "constraints")]
pub(crate) use thinking::Say;
pub(crate) use thinking::{Plan, Thinking};

/// A function that the model may call.
///
/// ```
/// use fewbit::Tool;
/// use serde_json::json;
///
/// let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
/// let weather = Tool::new("get_weather", "The weather in a city.", schema);
/// assert_eq!(weather.name, "get_weather");
/// // `model.chat().tools([weather])` offers it to the model; `Tool::of` derives the schema from a type.
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does; the model reads this.
    pub description: String,
    /// JSON schema of its arguments, which are an object.
    pub parameters: Value,
}

impl Tool {
    /// A tool with the JSON schema of its arguments.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: impl Into<Value>) -> Self {
        Self { name: name.into(), description: description.into(), parameters: parameters.into() }
    }

    /// A tool whose arguments are a value of type `T`.
    #[cfg(feature = "constraints")]
    pub fn of<T: schemars::JsonSchema>(name: impl Into<String>, description: impl Into<String>) -> Self {
        let mut schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
        // Templates print the schema, and models were not trained with these keywords.
        schema.remove("$schema");
        schema.remove("title");
        Self::new(name, description, schema.to_value())
    }

    /// Reads a tool in the format of chat APIs:
    /// `{"type": "function", "function": {"name", "description", "parameters"}}`, or the inner object alone. Without
    /// `parameters`, the tool has no arguments.
    ///
    /// # Errors
    /// [`ToolError::Definition`] if it has no name, or something in it has the wrong type.
    pub fn from_json(value: &Value) -> Result<Self, ToolError> {
        let wrong = |reason: &str| ToolError::Definition { reason: reason.to_owned() };
        let function = value.get("function").unwrap_or(value);
        let fields = function.as_object().ok_or_else(|| wrong("it is not an object"))?;
        let name = fields.get("name").and_then(Value::as_str).ok_or_else(|| wrong("it has no text `name`"))?;
        let description = match fields.get("description") {
            None | Some(Value::Null) => "",
            Some(text) => text.as_str().ok_or_else(|| wrong("its `description` is not a text"))?,
        };
        let parameters = match fields.get("parameters") {
            None | Some(Value::Null) => json!({ "type": "object", "properties": {} }),
            Some(schema @ Value::Object(_)) => schema.clone(),
            Some(_) => return Err(wrong("its `parameters` are not a JSON schema: give an object")),
        };
        Ok(Self::new(name, description, parameters))
    }

    pub(crate) fn to_json(&self) -> Value {
        let Self { name, description, parameters } = self;
        json!({
            "type": "function",
            "function": { "name": name, "description": description, "parameters": parameters }
        })
    }
}

/// The tools as the template gets them; `None` if there are none.
pub(crate) fn for_template(tools: &[Tool]) -> Option<Value> {
    (!tools.is_empty()).then(|| tools.iter().map(Tool::to_json).collect())
}

/// A tool call of the model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ToolCall {
    /// Identifies the call in its conversation. It is the model's own id if it wrote one; otherwise nine letters and
    /// digits, as some templates require.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// The arguments: an object.
    pub arguments: Value,
}

impl ToolCall {
    /// A call, such as one of an earlier conversation.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<Value>) -> Self {
        Self { id: id.into(), name: name.into(), arguments: arguments.into() }
    }

    /// Deserializes the arguments.
    ///
    /// # Errors
    /// [`ErrorKind::Json`](crate::ErrorKind::Json) if the arguments do not fit the type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(self.arguments.clone())
            .map_err(|error| Error::new(ErrorKind::Json { text: self.arguments.to_string() }, error))
    }
}

/// A part of a call, while it is generated: its name first, then pieces of its arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCallDelta {
    /// Index of the call in [`Completion::tool_calls`](crate::Completion::tool_calls), from 0.
    pub index: usize,
    /// Its id, sent once: with the name, or in the last delta of the call if the model writes it after the arguments.
    pub id: Option<String>,
    /// Name of the tool, only in the first delta of the call.
    pub name: Option<String>,
    /// Text to append to the arguments. All pieces together are the JSON text of an object.
    pub arguments: String,
}

/// Text that began like a tool call but is none: it was cut, has the wrong format, or names no tool. It is also in the
/// text of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MalformedCall {
    /// The index of its [deltas](ToolCallDelta), if some were emitted before this was known: ignore them.
    pub index: Option<usize>,
    /// Name of the tool, as far as it could be read.
    pub name: Option<String>,
    /// What the model wrote.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Whether an answer must call tools.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// The prompt lists no tools, and no text of the answer is read as a call.
    None,
    /// The model decides.
    #[default]
    Auto,
    /// The answer is one or more calls; with `parallel_tool_calls(false)`, exactly one.
    Required,
    /// The answer is one call of the tool with this name.
    Named(String),
}

impl ToolChoice {
    /// The tools that must be called, and whether only one call is allowed; `None` if no call is required.
    pub(crate) fn demanded<'a>(
        &self,
        tools: &'a [Tool],
        parallel: bool,
    ) -> Result<Option<(Vec<&'a Tool>, bool)>, ToolError> {
        let (demanded, one): (Vec<&Tool>, _) = match self {
            Self::None | Self::Auto => return Ok(None),
            Self::Required => (tools.iter().collect(), !parallel),
            Self::Named(name) => (tools.iter().filter(|tool| tool.name == *name).collect(), true),
        };
        match self {
            _ if tools.is_empty() => Err(ToolError::ChoiceWithoutTools),
            Self::Named(name) if demanded.is_empty() => {
                let known = tools.iter().map(|tool| tool.name.clone()).collect();
                Err(ToolError::UnknownTool { name: name.clone(), known })
            }
            _ => Ok(Some((demanded, one))),
        }
    }
}

/// The constraint for an answer that must consist of calls.
#[cfg(feature = "constraints")]
pub(crate) fn constraint(
    style: ToolStyle,
    tools: &[&Tool],
    one: bool,
    tokenizer: &fewbit_tokenizer::Tokenizer,
) -> Result<crate::Constraint, Error> {
    choice::grammar(style, tools, one, tokenizer).map(crate::Constraint::lark)
}

/// What to do with tools if the model's chat template does not support them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolFallback {
    /// Fails with [`ToolError::TemplateWithoutTools`].
    #[default]
    Refuse,
    /// Lists the tools in the system message, and asks for calls in the format of Hermes models. Calls and results of
    /// the conversation become text in the same format. If the template has no system message, the list is at the
    /// beginning of the user's first message. Models that were not trained for tools do not call them reliably.
    SystemPrompt,
}

/// An error in tools, a tool call, or its result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The chat template does not support tools, so the model would not see them.
    #[error(
        "the chat template of {} knows no tools, so the model would not see them: take a model made for tools, give \
         another template (`ModelBuilder::chat_template`), or have them described in the system message \
         (`tool_fallback(ToolFallback::SystemPrompt)`)", path.display()
    )]
    TemplateWithoutTools {
        /// The model's file.
        path: PathBuf,
    },
    /// A tool given as JSON is invalid.
    #[error("a tool cannot be used: {reason}")]
    Definition {
        /// What is wrong with it.
        reason: String,
    },
    /// The tool choice requires a call, but there are no tools.
    #[error(
        "`tool_choice` demands a call, and there are no tools: give some (`tools`), or leave the choice to the model"
    )]
    ChoiceWithoutTools,
    /// The tool choice names a tool that does not exist.
    #[error("`tool_choice` names {name:?}, which is not one of the tools: {}", known.join(", "))]
    UnknownTool {
        /// The name.
        name: String,
        /// The names of the tools.
        known: Vec<String>,
    },
    /// The tool choice requires a call, and there is also a constraint on the text.
    #[error(
        "`tool_choice` demands a call, and a constraint demands something else of the same answer: leave one of them out"
    )]
    ChoiceAndConstraint,
    /// The tool choice requires a call, which needs the feature `constraints`.
    #[error("`tool_choice` requires a call, which needs the feature `constraints`: build fewbit with it")]
    ChoiceWithoutFeature,
    /// Two tools have the same name.
    #[error("two tools are called {name:?}: give each a name of its own")]
    SameName {
        /// Their name.
        name: String,
    },
    /// A result belongs to no call of the last answer.
    #[error("the result of call {id:?} was given, but the last answer has no such call: it has {}", known.join(", "))]
    UnknownCall {
        /// The id of the result.
        id: String,
        /// The ids of the calls of the last answer.
        known: Vec<String>,
    },
    /// A call has two results.
    #[error("call {id:?} has two results: give one for each call")]
    SecondResult {
        /// Its id.
        id: String,
    },
    /// A call has no result; the conversation cannot continue without it.
    #[error("call {id:?} of {name:?} has no result: give one for each call of an answer")]
    NoResult {
        /// Its id.
        id: String,
        /// The tool.
        name: String,
    },
}
