//! Constraints on generated text: a JSON schema, a regular expression, a grammar, or a choice of texts.
//!
//! A constraint is compiled when a generation is prepared: a constraint that cannot be compiled, or that no text can
//! satisfy, is an error then. While generating, a mask is computed for each position: the tokens after which the text
//! can still end validly. All other tokens are ruled out before any sampling setting applies. A generation ends as soon
//! as its text is complete and nothing can follow; where more could follow, the model decides. If a text is cut, by a
//! token limit for example, it is the beginning of a valid text, and its [`FinishReason`](crate::FinishReason) is not
//! `EndOfGeneration`.
//!
//! The masks come from the crate `llguidance`, which is not part of the public API.

mod active;
mod closed;
mod gbnf;
mod schema;
mod serial;
mod vocabulary;

use std::sync::Arc;

use serde_json::{Value, json};

pub(crate) use active::Active;
pub(crate) use vocabulary::Compiler;

use schema::Json;

/// The longest grammar or schema that is compiled.
const MAX_SOURCE_BYTES: usize = 1 << 20;

/// How deep a schema may nest.
const MAX_DEPTH: usize = 128;

/// The white space allowed between the tokens of JSON: enough for indented text, but bounded.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// A constraint that the generated text must satisfy.
///
/// ```no_run
/// # fn main() -> Result<(), fewbit::Error> {
/// use fewbit::Constraint;
///
/// let model = fewbit::Model::load("smollm2-135m-instruct")?;
/// let answer = model.generate("Is the sky blue?").templated().constraint(Constraint::choice(["yes", "no"])).run()?;
/// assert!(["yes", "no"].contains(&answer.text.as_str()));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Constraint(pub(crate) Grammar);

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Grammar {
    /// A schema, or the error in it.
    Json {
        #[serde(with = "serial")]
        schema: Result<Arc<Json>, ConstraintError>,
        compact: bool,
        any_of_one: bool,
    },
    Regex(String),
    Lark(String),
    Choice(Vec<String>),
}

impl Constraint {
    /// JSON that satisfies a schema (draft 2020-12, and older spellings of earlier drafts).
    ///
    /// The generated JSON always satisfies the schema. A keyword that cannot be enforced is an error that names the
    /// keyword and its place; keywords that constrain nothing (annotations, a `format` that is not enforced, unknown
    /// keywords) are accepted. Not everything that satisfies a schema can be generated: properties come in the order of
    /// the schema, and numbers have a limited length. Integers that the schema does not bound stay within the range of
    /// their `format`, or else within 53 bits; other numbers have up to 15 digits before the point, 17 after it and 2
    /// in the exponent. Numbers in the schema may be of any size; those beyond 64 bits need
    /// [`json_schema_str`](Self::json_schema_str), because a [`Value`] does not hold them.
    pub fn json_schema(schema: impl Into<Value>) -> Self {
        let schema = schema.into();
        Self::of_schema(check_schema(&schema).map(|()| Json::from(&schema)), false)
    }

    fn of_schema(schema: Result<Json, ConstraintError>, any_of_one: bool) -> Self {
        Self(Grammar::Json { schema: schema.map(Arc::new), compact: false, any_of_one })
    }

    /// Like [`json_schema`](Self::json_schema), from the text of the schema.
    ///
    /// # Errors
    /// [`ConstraintError`] if the text is not JSON, or is longer than 1 MiB. Other errors are reported when a
    /// generation is prepared.
    pub fn json_schema_str(schema: &str) -> Result<Self, ConstraintError> {
        read_schema(schema).map(|schema| Self::of_schema(Ok(schema), false))
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::json_schema(json!({ "type": "object" }))
    }

    /// JSON that can be deserialized as a `T`. Objects have the fields of their types and no others; except in types
    /// that use `#[serde(flatten)]` or internal tags: there, other fields may occur, which deserialization skips.
    pub fn for_type<T: schemars::JsonSchema + ?Sized>() -> Self {
        let mut schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>().to_value();
        let checked = check_schema(&schema).map(|()| {
            closed::close(&mut schema);
            Json::from(&schema)
        });
        // The alternatives of an enum: `serde` tells them apart, and accepts the first that fits.
        Self::of_schema(checked, true)
    }

    /// Text that matches a regular expression as a whole, in the syntax of the crate `regex`.
    pub fn regex(pattern: impl Into<String>) -> Self {
        Self(Grammar::Regex(pattern.into()))
    }

    /// Text of a context-free grammar in `llguidance`'s variant of Lark; the start rule is `start`.
    pub fn lark(grammar: impl Into<String>) -> Self {
        Self(Grammar::Lark(grammar.into()))
    }

    /// Text of a context-free grammar in GBNF, llama.cpp's notation; the start rule is `root`.
    pub fn gbnf(grammar: &str) -> Result<Self, ConstraintError> {
        check_size("GBNF grammar", grammar)?;
        Ok(Self(Grammar::Lark(gbnf::to_lark(grammar)?)))
    }

    /// One of the given texts.
    pub fn choice<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self(Grammar::Choice(texts.into_iter().map(Into::into).collect()))
    }

    /// Removes all white space between the parts of the JSON.
    pub fn compact(mut self) -> Self {
        if let Grammar::Json { compact, .. } = &mut self.0 {
            *compact = true;
        }
        self
    }

    /// The name of the kind of constraint, for errors.
    fn kind(&self) -> &'static str {
        match self.0 {
            Grammar::Json { .. } => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
            Grammar::Choice(_) => "choice",
        }
    }

    /// Rejects input that the compiler would not survive.
    fn check(&self) -> Result<(), ConstraintError> {
        match &self.0 {
            Grammar::Json { schema, .. } => schema.as_ref().map(|_| ()).map_err(Clone::clone),
            Grammar::Regex(text) => check_size("regular expression", text),
            Grammar::Lark(text) => check_size("grammar", text),
            Grammar::Choice(texts) if texts.is_empty() => Err(ConstraintError::NoChoice),
            Grammar::Choice(texts) => texts.iter().try_for_each(|text| check_size("choice", text)),
        }
    }
}

fn read_schema(text: &str) -> Result<Json, ConstraintError> {
    check_size("JSON schema", text)?;
    Json::read(text)
}

fn check_size(kind: &'static str, text: &str) -> Result<(), ConstraintError> {
    if text.len() > MAX_SOURCE_BYTES {
        return Err(ConstraintError::TooLarge { kind, reason: format!("it has {} bytes", text.len()) });
    }
    Ok(())
}

/// The body of a Lark rule for JSON that satisfies a schema.
pub(crate) fn embedded(schema: &Value) -> Result<String, ConstraintError> {
    check_schema(schema)?;
    // One space where models write one, and no more: unlimited white space could go on for long.
    let grammar = schema::grammar(&Json::from(schema), true, false)?.replacen('\n', "\n%ignore /\\x20/\n", 1);
    Ok(format!("%lark {{\n{grammar}}}"))
}

/// Checks the depth and the size of a schema, without recursion.
fn check_schema(schema: &Value) -> Result<(), ConstraintError> {
    let too_large = |reason| Err(ConstraintError::TooLarge { kind: "JSON schema", reason });
    let mut left = vec![(schema, 0)];
    let mut bytes = 0_usize;
    while let Some((value, depth)) = left.pop() {
        if depth > MAX_DEPTH {
            return too_large(format!("it nests more than {MAX_DEPTH} levels"));
        }
        match value {
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => {
                bytes += fields.keys().map(|key| key.len() + 4).sum::<usize>();
                left.extend(fields.values().map(|field| (field, depth + 1)));
            }
            Value::String(text) => bytes += text.len() + 2,
            _ => bytes += 4,
        }
        if bytes > MAX_SOURCE_BYTES {
            return too_large(format!("it has more than {MAX_SOURCE_BYTES} bytes"));
        }
    }
    Ok(())
}

fn invalid(kind: &'static str, reason: &dyn std::fmt::Display) -> ConstraintError {
    ConstraintError::Invalid { kind, reason: reason.to_string() }
}

/// Why a constraint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The constraint is not valid, or uses an unsupported feature.
    #[error("the {kind} cannot be used: {reason}")]
    Invalid {
        /// The kind of constraint.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No text can satisfy the constraint.
    #[error("no text satisfies the {kind}: {reason}")]
    Unsatisfiable {
        /// The kind of constraint.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// The constraint is too large.
    #[error("the {kind} is too large: {reason}")]
    TooLarge {
        /// The kind of constraint.
        kind: &'static str,
        /// Which limit it exceeds.
        reason: String,
    },
    /// A choice has no texts.
    #[error("there are no choices: give at least one text")]
    NoChoice,
    /// Constraints do not work with this model's vocabulary.
    #[error("constraints do not work with this vocabulary: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// The constraint became too complex while generating.
    #[error("the constraint cannot be followed any further: {reason}")]
    TooComplex {
        /// Why.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_sources_are_rejected_before_parsing() {
        let mut deep = json!(true);
        for _ in 0..200 {
            deep = json!({ "not": deep });
        }
        assert!(matches!(Constraint::json_schema(deep).check(), Err(ConstraintError::TooLarge { .. })));
        let long = "a".repeat(MAX_SOURCE_BYTES + 1);
        for constraint in [
            Constraint::regex(&long),
            Constraint::lark(&long),
            Constraint::choice([&long]),
            Constraint::json_schema(json!({ "const": &long })),
        ] {
            assert!(matches!(constraint.check(), Err(ConstraintError::TooLarge { .. })));
        }
        assert!(matches!(Constraint::json_schema_str(&long), Err(ConstraintError::TooLarge { .. })));
        assert!(matches!(Constraint::gbnf(&long), Err(ConstraintError::TooLarge { .. })));
        assert!(matches!(Constraint::json_schema_str("{"), Err(ConstraintError::Invalid { .. })));
        assert_eq!(Constraint::choice::<String>([]).check(), Err(ConstraintError::NoChoice));
    }
}
