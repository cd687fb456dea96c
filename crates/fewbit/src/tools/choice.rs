//! Required calls: a grammar of the calls that an answer may consist of, in the format of the model's style.
//!
//! ```text
//! Hermes          <tool_call>\n{"name": "f", "arguments": {..}}\n</tool_call>
//! Qwen3Coder      <tool_call>\n<function=f>\n<parameter=a>\n..\n</parameter>\n</function>\n</tool_call>
//! Glm             <tool_call>f\n<arg_key>a</arg_key>\n<arg_value>..</arg_value>\n</tool_call>
//! Lfm2            <|tool_call_start|>[f(a=1, b='x'), g()]<|tool_call_end|>
//! Olmo            <function_calls>f(a=1, b="x")\ng()</function_calls>
//! Seed            <seed:tool_call>\n<function=f>\n<parameter=a>..</parameter>\n</function>\n</seed:tool_call>
//! DeepSeekR1      function SEPARATOR f\n```json\n{..}\n```, between marks
//! DeepSeekV31     f SEPARATOR {..}, between marks
//! Kimi            functions.f:0 SEPARATOR {..}, between marks
//! Cohere          <|START_ACTION|>[{"tool_call_id": "0", "tool_name": "f", "parameters": {..}}, {..}]<|END_ACTION|>
//! Gemma4          <|tool_call>call:f{a:1,b:<|"|>x<|"|>}<tool_call|>
//! Llama3Json      {"name": "f", "parameters": {..}}; {..}
//! Llama3Pythonic  [f(a=1, b='x'), g()]
//! MistralList     [TOOL_CALLS][{"name": "f", "arguments": {..}, "id": ".."}, {..}]
//! MistralCallId   [TOOL_CALLS]f[CALL_ID]..[ARGS]{..}
//! MistralArgs     [TOOL_CALLS]f[ARGS]{..}
//! Hunyuan         <tool_calls>[{"name": "f", "arguments": {..}}, {..}]</tool_calls>
//! Granite, Phi4   <|tool_call|>[{"name": "f", "arguments": {..}}, {..}]<|/tool_call|>
//! Harmony         <|channel|>commentary to=functions.f <|constrain|>json<|message|>{..}
//! Json            {"name": "f", "arguments": {..}}, or a list of them
//! Generic         as Hermes
//! ```
//!
//! A mark is its token in the vocabulary, or else its text. Arguments are JSON of the tool's schema. In the styles
//! without JSON, each parameter is written by its type: text without quotes in XML, a literal in Python, text between
//! marks in Gemma 4. This needs a schema that is fully described by its properties, and texts that are free or one of a
//! list. For any other schema, the arguments are JSON after all, in a form that the style's reader accepts too (see
//! [`Parameters`]). The result is read by the same parser as everything else, and satisfies the schema.
//!
//! An answer ends after its sixteenth call at the latest: a small model that must call tools would go on until its
//! tokens are used up, and clients reject an answer with more than 128 calls.
//!
//! A schema with properties that does not say whether others are allowed gets no others: a function has only its own
//! parameters.

use std::fmt::Write as _;

use fewbit_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::gemma::{CALL, QUOTE};
use super::section::{DEEPSEEK, KIMI};
use super::style::ToolStyle;
use super::types::{Types, property, resolve};
use super::{Tool, ToolError};
use crate::constraints::embedded;
use crate::error::Error;

/// Keywords of a schema that constrain nothing.
const ANNOTATIONS: [&str; 9] =
    ["title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema"];

/// The most calls of an answer that must call tools.
const MAX_CALLS: usize = 16;

/// Keywords with schemas that `$ref` may refer to.
const TABLES: [&str; 2] = ["$defs", "definitions"];

/// A Lark grammar of an answer with at least one call of these tools; exactly one if `one` is set.
pub(crate) fn grammar(style: ToolStyle, tools: &[&Tool], one: bool, tokenizer: &Tokenizer) -> Result<String, Error> {
    let mut writer = Writer { tokenizer, style, rules: String::new() };
    let alternatives = tools.iter().enumerate().map(|(i, tool)| writer.call(i, tool)).collect::<Result<Vec<_>, _>>();
    let Alternatives { plain, json } = Alternatives::of(alternatives?);
    let start = writer.start(&plain, &json, one);
    let mut lark = format!("start: {start}\n");
    for (name, all) in [("call", &plain), ("json_call", &json)] {
        if !all.is_empty() {
            let _ = writeln!(lark, "{name}: {}", all.join(" | "));
        }
    }
    Ok(lark + &writer.rules)
}

/// How the call of a tool is written.
enum Form {
    /// In the format of the style.
    Plain(String),
    /// In JSON, although the style has another format.
    Json(String),
}

/// Names of rules.
#[derive(Default)]
struct Alternatives {
    plain: Vec<String>,
    json: Vec<String>,
}

impl Alternatives {
    fn of(forms: Vec<Form>) -> Self {
        let mut this = Self::default();
        for form in forms {
            match form {
                Form::Plain(rule) => this.plain.push(rule),
                Form::Json(rule) => this.json.push(rule),
            }
        }
        this
    }
}

struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    style: ToolStyle,
    rules: String,
}

impl Writer<'_> {
    /// Writes the rule for a call of a tool.
    fn call(&mut self, i: usize, tool: &Tool) -> Result<Form, Error> {
        let schema = arguments(tool)?;
        let name = tool.name.as_str();
        let quoted = Value::from(name);
        let object = |key: &str| literal(&format!("{{\"name\": {quoted}, \"{key}\": "));
        let rule = format!("call_{i}");
        let body = match self.style {
            ToolStyle::Llama3Json => format!("{} {} \"}}\"", object("parameters"), self.json(i, &schema)?),
            ToolStyle::Llama3Pythonic | ToolStyle::Lfm2 | ToolStyle::Olmo => {
                match Parameters::of(&schema, is_python_name) {
                    Some(parameters) if is_plain_name(name) => {
                        let notation = if self.style == ToolStyle::Olmo { Notation::Olmo } else { Notation::Python };
                        format!("{} {} \")\"", literal(&format!("{name}(")), self.list(i, &parameters, notation)?)
                    }
                    _ => {
                        let key = if self.style == ToolStyle::Llama3Pythonic { "parameters" } else { "arguments" };
                        let body = format!("{} {} \"}}\"", object(key), self.json(i, &schema)?);
                        let _ = writeln!(self.rules, "{rule}: {body}");
                        return Ok(Form::Json(rule));
                    }
                }
            }
            ToolStyle::Qwen3Coder | ToolStyle::Seed => {
                let tags = if self.style == ToolStyle::Seed { &SEED } else { &QWEN };
                if name.contains(['<', '>', '\n']) || name.trim() != name || name.is_empty() {
                    return Err(unwritable(name, self.style));
                }
                let open = literal(&format!("<function={name}>\n"));
                let close = literal("</function>");
                match Parameters::of(&schema, is_xml_name) {
                    Some(parameters) => format!("{open} {} {close}", self.xml(i, &parameters, tags)?),
                    None => format!("{open} {} {}", self.json(i, &schema)?, literal("\n</function>")),
                }
            }
            ToolStyle::Glm => match Parameters::of(&schema, is_xml_name) {
                Some(parameters) if is_plain_name(name) => {
                    format!("{} {}", literal(&format!("{name}\n")), self.xml(i, &parameters, &GLM)?)
                }
                _ => format!("\"\\n\" {} {} \"}}\" \"\\n\"", object("arguments"), self.json(i, &schema)?),
            },
            ToolStyle::DeepSeekR1 | ToolStyle::DeepSeekV31 | ToolStyle::Kimi => {
                self.require_plain(name)?;
                let marks = if self.style == ToolStyle::Kimi { &KIMI } else { &DEEPSEEK };
                let json = self.json(i, &schema)?;
                let (begin, separator, end) =
                    (self.mark(marks.begin), self.mark(marks.separator), self.mark(marks.end));
                match self.style {
                    ToolStyle::DeepSeekR1 => {
                        let (head, fence) = (literal(&format!("{name}\n```json\n")), literal("\n```"));
                        format!("{begin} {} {separator} {head} {json} {fence} {end}", literal("function"))
                    }
                    ToolStyle::DeepSeekV31 => format!("{begin} {} {separator} {json} {end}", literal(name)),
                    _ => {
                        let head = literal(&format!("functions.{name}:"));
                        format!("{begin} {head} /[0-9]{{1,3}}/ {separator} {json} {end}")
                    }
                }
            }
            ToolStyle::Cohere => {
                let head = literal(&format!("\", \"tool_name\": {quoted}, \"parameters\": "));
                format!("{} /[0-9]{{1,3}}/ {head} {} \"}}\"", literal("{\"tool_call_id\": \""), self.json(i, &schema)?)
            }
            ToolStyle::Gemma4 => {
                self.require_plain(name)?;
                let head = literal(&format!("{CALL}{name}"));
                match Parameters::of(&schema, is_python_name) {
                    Some(parameters) => {
                        format!("{head} \"{{\" {} \"}}\"", self.list(i, &parameters, Notation::Gemma)?)
                    }
                    None => format!("{head} {}", self.json(i, &schema)?),
                }
            }
            ToolStyle::MistralCallId | ToolStyle::MistralArgs => {
                self.require_plain(name)?;
                let id = match self.style {
                    ToolStyle::MistralCallId => format!("{} /[a-zA-Z0-9]{{9}}/ ", self.mark("[CALL_ID]")),
                    _ => String::new(),
                };
                format!("{} {id}{} {}", literal(name), self.mark("[ARGS]"), self.json(i, &schema)?)
            }
            ToolStyle::Harmony => {
                self.require_plain(name)?;
                let (constrain, message) = (self.mark("<|constrain|>"), self.mark("<|message|>"));
                let head = literal(&format!("functions.{name} "));
                format!("{head} {constrain} {} {message} {}", literal("json"), self.json(i, &schema)?)
            }
            ToolStyle::MistralList => {
                let id = r#"(", \"id\": \"" /[a-zA-Z0-9]{9}/ "\"")?"#;
                format!("{} {} {id} \"}}\"", object("arguments"), self.json(i, &schema)?)
            }
            _ => format!("{} {} \"}}\"", object("arguments"), self.json(i, &schema)?),
        };
        let _ = writeln!(self.rules, "{rule}: {body}");
        Ok(Form::Plain(rule))
    }

    fn require_plain(&self, name: &str) -> Result<(), Error> {
        if is_plain_name(name) { Ok(()) } else { Err(unwritable(name, self.style)) }
    }

    /// The start rule: a whole answer.
    fn start(&self, plain: &[String], json: &[String], one: bool) -> String {
        let several = |item: &str, between: &str| match one {
            true => item.to_owned(),
            false => format!("{item} ({} {item}){{0,{}}}", literal(between), MAX_CALLS - 1),
        };
        let list = || format!("\"[\" {} \"]\"", several("call", ", "));
        match self.style {
            ToolStyle::Hermes | ToolStyle::Qwen3Coder | ToolStyle::Seed | ToolStyle::Generic => {
                several(&format!("({})", self.enclosed("\"\\n\" call \"\\n\"")), "\n")
            }
            ToolStyle::Glm => several(&format!("({})", self.enclosed("call")), "\n"),
            ToolStyle::Gemma4 => several(&format!("({})", self.enclosed("call")), ""),
            ToolStyle::DeepSeekR1 => self.enclosed(&several("call", "\n")),
            ToolStyle::DeepSeekV31 | ToolStyle::Kimi => self.enclosed(&several("call", "")),
            ToolStyle::Cohere => {
                let calls = several("call", ",\n    ");
                self.enclosed(&format!("{} {calls} {}", literal("[\n    "), literal("\n]")))
            }
            ToolStyle::Llama3Json => several("call", "; "),
            ToolStyle::Llama3Pythonic | ToolStyle::Lfm2 => {
                let json_calls = match self.style {
                    ToolStyle::Lfm2 => format!("\"[\" {} \"]\"", several("json_call", ", ")),
                    _ => several("json_call", "; "),
                };
                let calls = match (plain.is_empty(), json.is_empty()) {
                    (false, true) => list(),
                    (true, _) => json_calls,
                    (false, false) => format!("({} | {json_calls})", list()),
                };
                if self.style == ToolStyle::Lfm2 { self.enclosed(&calls) } else { calls }
            }
            ToolStyle::Olmo => {
                let call = match (plain.is_empty(), json.is_empty()) {
                    (false, true) => "call",
                    (true, _) => "json_call",
                    (false, false) => "(call | json_call)",
                };
                self.enclosed(&several(call, "\n"))
            }
            ToolStyle::MistralList => format!("{} {}", self.mark("[TOOL_CALLS]"), list()),
            ToolStyle::MistralCallId | ToolStyle::MistralArgs => {
                let call = format!("({} call)", self.mark("[TOOL_CALLS]"));
                if one { call } else { format!("{call}{{1,{MAX_CALLS}}}") }
            }
            ToolStyle::Granite => {
                let mark =
                    if self.tokenizer.id_of("<|tool_call|>").is_some() { "<|tool_call|>" } else { "<tool_call>" };
                format!("{} {}", self.mark(mark), list())
            }
            ToolStyle::Phi4 | ToolStyle::Hunyuan => self.enclosed(&list()),
            // A message has one call, and ends the answer.
            ToolStyle::Harmony => format!("{} {} call", self.mark("<|channel|>"), literal("commentary to=")),
            ToolStyle::Json if one => "call".to_owned(),
            ToolStyle::Json => format!("call | {}", list()),
        }
    }

    /// A rule between the style's marks.
    fn enclosed(&self, rule: &str) -> String {
        let mark = self.style.marks().first();
        let (open, close) = (mark.map(|mark| self.mark(mark.text)), mark.and_then(|mark| mark.end));
        [open.as_deref(), Some(rule), close.map(|close| self.mark(close)).as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// A mark: its control token, or else its text.
    fn mark(&self, text: &str) -> String {
        match self.tokenizer.id_of(text).filter(|&id| self.tokenizer.token_bytes(id).is_empty()) {
            Some(id) => format!("<[{id}]>"),
            None => literal(text),
        }
    }

    fn json(&mut self, i: usize, schema: &Value) -> Result<String, Error> {
        self.value(&format!("arguments_{i}"), schema)
    }

    /// Writes the rule for a JSON value; returns its name.
    fn value(&mut self, name: &str, schema: &Value) -> Result<String, Error> {
        let json = embedded(schema)?;
        let _ = writeln!(self.rules, "{name}: {json}");
        Ok(name.to_owned())
    }

    fn xml(&mut self, i: usize, parameters: &Parameters, tags: &Tags) -> Result<String, Error> {
        let mut all = String::new();
        for (j, parameter) in parameters.0.iter().enumerate() {
            let open = literal(&tags.open.replace("{}", &parameter.name));
            let close = literal(&format!("{}{}\n", tags.before_end, tags.end));
            let rule = format!("value_{i}_{j}");
            let value = match &parameter.kind {
                // The first end mark ends the text.
                Kind::Text => {
                    let _ = writeln!(self.rules, "{rule}[suffix={}]: /(?s:.*)/", literal(tags.end));
                    format!("{rule} \"\\n\"")
                }
                Kind::OneOf(texts) => {
                    format!("{} {close}", one_of(texts))
                }
                Kind::Flag | Kind::Other => format!("{} {close}", self.value(&rule, &parameter.schema)?),
            };
            let whole = format!("{open} {value}");
            let _ = if parameter.required { write!(all, " {whole}") } else { write!(all, " ({whole})?") };
        }
        Ok(all)
    }

    /// Writes the rules for arguments, with commas between those that are present.
    fn list(&mut self, i: usize, parameters: &Parameters, notation: Notation) -> Result<String, Error> {
        let (comma, equals) = match notation {
            Notation::Python | Notation::Olmo => (", ", "="),
            Notation::Gemma => (",", ":"),
        };
        // Built from the last argument on: what may follow if none was written so far, and if one was.
        let (mut first, mut further) = (String::from("\"\""), String::from("\"\""));
        for (j, parameter) in parameters.0.iter().enumerate().rev() {
            let rule = format!("value_{i}_{j}");
            let value = match &parameter.kind {
                Kind::Text if notation == Notation::Gemma => self.between_marks(&rule),
                Kind::OneOf(texts) if notation == Notation::Gemma => {
                    let quote = self.mark(QUOTE);
                    format!("{quote} {} {quote}", one_of(texts))
                }
                Kind::Flag if notation != Notation::Python => r#"("true" | "false")"#.to_owned(),
                Kind::Text => {
                    let json = self.value(&rule, &json!({ "type": "string" }))?;
                    format!(r"({json} | /'([^'\\\n\r]|\\['\\n])*'/)")
                }
                Kind::OneOf(texts) => {
                    let both = texts.iter().flat_map(|text| {
                        let single = text.replace('\\', r"\\").replace('\'', r"\'");
                        // The reader accepts the escapes of JSON too.
                        let double = literal(&Value::from(text.as_str()).to_string());
                        let is_printable = !text.chars().any(char::is_control);
                        [Some(double), is_printable.then(|| literal(&format!("'{single}'")))].into_iter().flatten()
                    });
                    format!("({})", both.collect::<Vec<_>>().join(" | "))
                }
                Kind::Flag => r#"("True" | "False")"#.to_owned(),
                Kind::Other => self.value(&rule, &parameter.schema)?,
            };
            let this = format!("{} {value}", literal(&format!("{}{equals}", parameter.name)));
            let (here, after) = (format!("first_{i}_{j}"), format!("further_{i}_{j}"));
            let absent = |rest: &str| if parameter.required { String::new() } else { format!(" | {rest}") };
            let _ = writeln!(self.rules, "{here}: {this} {further}{}", absent(&first));
            let _ = writeln!(self.rules, "{after}: {} {this} {further}{}", literal(comma), absent(&further));
            (first, further) = (here, after);
        }
        Ok(first)
    }

    /// Any text between Gemma's marks, the first of which ends it.
    fn between_marks(&mut self, rule: &str) -> String {
        let quote = self.mark(QUOTE);
        if quote == literal(QUOTE) {
            let _ = writeln!(self.rules, "{rule}[suffix={quote}]: /(?s:.*)/");
            return format!("{quote} {rule}");
        }
        // Its token ends the text, which no token of text contains.
        let _ = writeln!(self.rules, "{rule}: /(?s:.+)/?");
        format!("{quote} {rule} {quote}")
    }
}

/// How arguments in a list are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notation {
    /// `a=1, b='x'`
    Python,
    /// The same with values in JSON.
    Olmo,
    /// `a:1,b:<|"|>x<|"|>`
    Gemma,
}

/// The tags around an argument whose value has no quotes.
struct Tags {
    /// Before the value, with `{}` for the argument's name.
    open: &'static str,
    /// Between the value and its end mark, unless the value is any text.
    before_end: &'static str,
    end: &'static str,
}

const QWEN: Tags = Tags { open: "<parameter={}>\n", before_end: "\n", end: "</parameter>" };
const SEED: Tags = Tags { open: "<parameter={}>", before_end: "", end: "</parameter>" };
const GLM: Tags = Tags { open: "<arg_key>{}</arg_key>\n<arg_value>", before_end: "", end: "</arg_value>" };

/// The schema of a tool's arguments, which must be an object.
fn arguments(tool: &Tool) -> Result<Value, Error> {
    let wrong = || {
        let reason = format!("the schema of {:?} describes no object, and arguments are one", tool.name);
        Error::from(ToolError::Definition { reason })
    };
    let mut fields = match &tool.parameters {
        Value::Object(fields) => fields.clone(),
        Value::Bool(true) | Value::Null => Map::new(),
        _ => return Err(wrong()),
    };
    match fields.get("type") {
        None => {}
        Some(Value::String(ty)) if ty == "object" => {}
        Some(Value::Array(types)) if types.contains(&"object".into()) => {}
        Some(_) => return Err(wrong()),
    }
    fields.insert("type".to_owned(), "object".into());
    let names_all =
        fields.get("properties").and_then(Value::as_object).is_some_and(|properties| !properties.is_empty());
    let only = |key: &String| {
        ["type", "properties", "required"].contains(&key.as_str())
            || TABLES.contains(&key.as_str())
            || ANNOTATIONS.contains(&key.as_str())
    };
    if names_all && fields.keys().all(only) {
        fields.insert("additionalProperties".to_owned(), false.into());
    }
    Ok(Value::Object(fields))
}

/// Parameters that can be written one by one.
struct Parameters(Vec<Parameter>);

struct Parameter {
    name: String,
    required: bool,
    kind: Kind,
    /// The schema with everything that it refers to.
    schema: Value,
}

enum Kind {
    /// Any text.
    Text,
    /// One of these texts.
    OneOf(Vec<String>),
    /// True or false.
    Flag,
    /// A value other than text.
    Other,
}

impl Parameters {
    /// The parameters of a schema; `None` if its properties do not describe it fully.
    fn of(schema: &Value, is_name: fn(&str) -> bool) -> Option<Self> {
        let fields = schema.as_object()?;
        let known = ["type", "properties", "required", "additionalProperties"];
        let is_simple = fields.iter().all(|(key, value)| match key.as_str() {
            "additionalProperties" => value.is_boolean(),
            key => known.contains(&key) || TABLES.contains(&key) || ANNOTATIONS.contains(&key),
        });
        let none = Map::new();
        let properties = match fields.get("properties") {
            None => &none,
            Some(properties) => properties.as_object()?,
        };
        let required: Vec<&str> = match fields.get("required") {
            None => Vec::new(),
            Some(names) => names.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?,
        };
        if !is_simple || required.iter().any(|name| !properties.contains_key(*name)) {
            return None;
        }
        let parameter = |name: &String| {
            let own = property(schema, name)?;
            let kind = Kind::of(own, schema)?;
            let required = required.contains(&name.as_str());
            let mut own = match own {
                Value::Object(own) => own.clone(),
                Value::Bool(true) => Map::new(),
                _ => return None,
            };
            for table in TABLES {
                if let Some(schemas) = fields.get(table) {
                    own.insert(table.to_owned(), schemas.clone());
                }
            }
            let schema = Value::Object(own);
            is_name(name).then(|| Parameter { name: name.clone(), required, kind, schema })
        };
        properties.keys().map(parameter).collect::<Option<_>>().map(Self)
    }
}

impl Kind {
    /// `None` if text of this schema could be confused with another value.
    fn of(schema: &Value, root: &Value) -> Option<Self> {
        if !refers_to_tables(schema) {
            return None;
        }
        let schema = resolve(schema, root)?;
        let fields = match schema {
            Value::Bool(true) => return Some(Self::Text),
            schema => schema.as_object()?,
        };
        let types = Types::of(schema, root);
        let says = |others: &[&str]| {
            fields.keys().any(|key| !ANNOTATIONS.contains(&key.as_str()) && !others.contains(&key.as_str()))
        };
        if types == Types::default() {
            // Every value is allowed, including text.
            return (!says(&[])).then_some(Self::Text);
        }
        if !types.string {
            let flag = Types { boolean: true, ..Types::default() };
            return Some(if types == flag && !says(&["type"]) { Self::Flag } else { Self::Other });
        }
        if !says(&["type"]) {
            return Some(Self::Text);
        }
        let texts = fields.get("enum").and_then(Value::as_array)?;
        let is_listed = types.is_text() && !says(&["type", "enum"]);
        let texts: Vec<String> = texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>()?;
        // Texts that the reader would cut or take for an end.
        let is_whole = |text: &String| {
            !text.is_empty() && !text.starts_with(['\n', '\r']) && !text.ends_with(['\n', '\r']) && !text.contains("</")
        };
        (is_listed && !texts.is_empty() && texts.iter().all(is_whole)).then_some(Self::OneOf(texts))
    }
}

/// Whether all references of a schema point into [`TABLES`].
fn refers_to_tables(schema: &Value) -> bool {
    let mut left = vec![schema];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => {
                let leads = |target: &str| TABLES.iter().any(|table| target.starts_with(&format!("#/{table}/")));
                let refers = fields.get("$ref").and_then(Value::as_str);
                if fields.contains_key("$dynamicRef") || refers.is_some_and(|target| !leads(target)) {
                    return false;
                }
                left.extend(fields.values());
            }
            _ => {}
        }
    }
    true
}

/// Whether the readers of Python's and Mistral's formats accept the name.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c)) && !name.ends_with(".call")
}

fn is_python_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn is_xml_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['<', '>', '\n']) && name.trim() == name
}

fn unwritable(name: &str, style: ToolStyle) -> Error {
    ToolError::Definition { reason: format!("the name {name:?} cannot be written in the style {style:?}") }.into()
}

/// One of several texts in Lark.
fn one_of(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
    format!("({})", texts.join(" | "))
}

/// A string literal in Lark.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
