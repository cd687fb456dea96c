//! Writes calls in the format of each style: the inverse of [`parser`](super::parser).

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value, json};

use super::ToolStyle;
use super::gemma::{CALL, QUOTE};
use super::section::{DEEPSEEK, KIMI};

/// Puts a space after `,` and `:`, like Python's `json.dumps`, whose output models were trained on.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// JSON with spaces.
pub(super) fn spaced(value: &Value) -> String {
    let mut out = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)) {
        Ok(()) => String::from_utf8(out).unwrap_or_else(|_| value.to_string()),
        Err(_) => value.to_string(),
    }
}

/// A value as a Python literal, except that strings are in double quotes, as in JSON.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), python(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

/// A value as Gemma 4's template writes it: as JSON, but for texts, keys, their order, and `null`.
fn gemma(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::String(text) => format!("{QUOTE}{text}{QUOTE}"),
        Value::Array(items) => format!("[{}]", items.iter().map(gemma).collect::<Vec<_>>().join(",")),
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| key.to_lowercase());
            let fields = fields.into_iter().map(|(key, value)| format!("{key}:{}", gemma(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// The parts of a call that are written.
struct Call<'a> {
    id: &'a str,
    name: &'a str,
    /// An object, unless a history has something else.
    arguments: Value,
}

impl<'a> Call<'a> {
    fn read(call: &'a Value) -> Self {
        let function = call.get("function").unwrap_or(call);
        let text = |value: Option<&'a Value>| value.and_then(Value::as_str).unwrap_or_default();
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            // Clients send the arguments as JSON text.
            Some(Value::String(text)) => {
                serde_json::from_str(text).ok().filter(Value::is_object).unwrap_or_else(|| text.as_str().into())
            }
            Some(other) => other.clone(),
        };
        Self { id: text(call.get("id")), name: text(function.get("name")), arguments }
    }

    fn object(&self, arguments: &str) -> Value {
        json!({ "name": self.name, arguments: self.arguments })
    }

    fn pairs(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.arguments.as_object().into_iter().flatten()
    }
}

/// A value as the formats without quotes have it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| spaced(value), str::to_owned)
}

impl ToolStyle {
    /// A text between the style's marks.
    fn enclosed(self, text: &str) -> String {
        let mark = self.marks().first();
        let (open, close) = (mark.map_or("", |mark| mark.text), mark.and_then(|mark| mark.end).unwrap_or_default());
        format!("{open}{text}{close}")
    }

    /// The calls of a message, as a model of this style writes them.
    pub(super) fn write(self, calls: &[Value]) -> String {
        let calls: Vec<Call<'_>> = calls.iter().map(Call::read).collect();
        let all = |separator: &str, one: &dyn Fn(&Call<'_>) -> String| {
            calls.iter().map(one).collect::<Vec<_>>().join(separator)
        };
        let list = || spaced(&calls.iter().map(|call| call.object("arguments")).collect());
        match self {
            Self::Hermes | Self::Generic => {
                all("\n", &|call| self.enclosed(&format!("\n{}\n", spaced(&call.object("arguments")))))
            }
            Self::Qwen3Coder | Self::Seed => {
                let line = if self == Self::Qwen3Coder { "\n" } else { "" };
                let one = |call: &Call<'_>| {
                    let parameters: String = call
                        .pairs()
                        .map(|(name, value)| format!("<parameter={name}>{line}{}{line}</parameter>\n", plain(value)))
                        .collect();
                    self.enclosed(&format!("\n<function={}>\n{parameters}</function>\n", call.name))
                };
                all("\n", &one)
            }
            Self::Glm => all("\n", &|call| {
                let pairs = call.pairs();
                let pairs: String = pairs
                    .map(|(name, value)| {
                        format!("<arg_key>{name}</arg_key>\n<arg_value>{}</arg_value>\n", plain(value))
                    })
                    .collect();
                self.enclosed(&format!("{}\n{pairs}", call.name))
            }),
            Self::DeepSeekR1 => {
                let (begin, separator, end) = (DEEPSEEK.begin, DEEPSEEK.separator, DEEPSEEK.end);
                self.enclosed(&all("\n", &|call| {
                    let arguments = spaced(&call.arguments);
                    format!("{begin}function{separator}{}\n```json\n{arguments}\n```{end}", call.name)
                }))
            }
            Self::DeepSeekV31 => {
                let (begin, separator, end) = (DEEPSEEK.begin, DEEPSEEK.separator, DEEPSEEK.end);
                self.enclosed(&all("", &|call| {
                    format!("{begin}{}{separator}{}{end}", call.name, spaced(&call.arguments))
                }))
            }
            Self::Kimi => {
                let calls = calls.iter().enumerate().map(|(i, call)| {
                    let id = format!("functions.{}:{i}", call.name);
                    format!("{}{id}{}{}{}", KIMI.begin, KIMI.separator, spaced(&call.arguments), KIMI.end)
                });
                self.enclosed(&calls.collect::<String>())
            }
            Self::Cohere => {
                let calls = calls.iter().enumerate().map(|(i, call)| {
                    let Call { name, arguments, .. } = call;
                    let call = json!({ "tool_call_id": i.to_string(), "tool_name": name, "parameters": arguments });
                    format!("    {}", spaced(&call))
                });
                self.enclosed(&format!("[\n{}\n]", calls.collect::<Vec<_>>().join(",\n")))
            }
            Self::Gemma4 => all("", &|call| self.enclosed(&format!("{CALL}{}{}", call.name, gemma(&call.arguments)))),
            Self::Llama3Json => all("; ", &|call| spaced(&call.object("parameters"))),
            Self::Llama3Pythonic | Self::Lfm2 => {
                let one = |call: &Call<'_>| {
                    let pairs = call.pairs().map(|(name, value)| format!("{name}={}", python(value)));
                    format!("{}({})", call.name, pairs.collect::<Vec<_>>().join(", "))
                };
                let list = format!("[{}]", all(", ", &one));
                if self == Self::Lfm2 { self.enclosed(&list) } else { list }
            }
            Self::Olmo => {
                let one = |call: &Call<'_>| {
                    let pairs = call.pairs().map(|(name, value)| format!("{name}={}", spaced(value)));
                    format!("{}({})", call.name, pairs.collect::<Vec<_>>().join(", "))
                };
                self.enclosed(&all("\n", &one))
            }
            Self::MistralList => {
                let list = calls.iter().map(|call| {
                    let mut object = call.object("arguments");
                    if let Some(fields) = object.as_object_mut().filter(|_| !call.id.is_empty()) {
                        fields.insert("id".to_owned(), call.id.into());
                    }
                    object
                });
                format!("[TOOL_CALLS]{}", spaced(&list.collect()))
            }
            Self::MistralCallId => all("", &|call| {
                let Call { id, name, arguments } = call;
                format!("[TOOL_CALLS]{name}[CALL_ID]{id}[ARGS]{}", spaced(arguments))
            }),
            Self::MistralArgs => all("", &|call| format!("[TOOL_CALLS]{}[ARGS]{}", call.name, spaced(&call.arguments))),
            Self::Granite => format!("<|tool_call|>{}", list()),
            Self::Phi4 | Self::Hunyuan => self.enclosed(&list()),
            Self::Harmony => all("<|start|>assistant", &|call| {
                let arguments = spaced(&call.arguments);
                format!(
                    "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{arguments}<|call|>",
                    call.name
                )
            }),
            Self::Json => match &calls[..] {
                [one] => spaced(&one.object("arguments")),
                _ => list(),
            },
        }
    }
}
