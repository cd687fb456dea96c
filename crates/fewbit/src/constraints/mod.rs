//! Constraints on what is generated: a JSON schema, a regular expression, a grammar, a choice.
//!
//! A constraint is compiled when a generation is prepared: what cannot be compiled, or can have no output, is an error
//! there. While generating, a mask says for each position which tokens keep the text on a way to a valid end; all
//! others become impossible before anything of sampling acts. A generation ends as soon as its text is complete and
//! cannot go on; where it could go on, the model decides. A text that is cut, by a limit of tokens say, is a valid
//! beginning, and its [`FinishReason`](crate::FinishReason) is not `EndOfGeneration`.
//!
//! The masks come from the crate `llguidance`, of which nothing shows here.

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

/// What white space may stand between the tokens of JSON: enough for indented text, and an end to it.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// What a generated text must be.
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
    /// A schema, or why it is none.
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
    /// JSON that a schema describes (draft 2020-12, and what earlier drafts wrote otherwise).
    ///
    /// What is generated satisfies the schema. What cannot be enforced is an error that names the keyword and its place;
    /// what constrains nothing (annotations, a `format` that is not enforced, unknown keywords) is accepted. Not all that
    /// satisfies a schema is generated: properties come in the order of the schema, and every number ends. Integers that
    /// the schema leaves unbounded stay within the range of their `format`, else within 53 bits; other numbers have up to
    /// 15 digits before the point, 17 after it and 2 in the exponent. Numbers in the schema may be of any size; those
    /// beyond 64 bits need [`json_schema_str`](Self::json_schema_str), because a [`Value`] does not hold them.
    pub fn json_schema(schema: impl Into<Value>) -> Self {
        let schema = schema.into();
        Self::of_schema(check_schema(&schema).map(|()| Json::from(&schema)), false)
    }

    fn of_schema(schema: Result<Json, ConstraintError>, any_of_one: bool) -> Self {
        Self(Grammar::Json { schema: schema.map(Arc::new), compact: false, any_of_one })
    }

    /// The same, from the text of the schema.
    pub fn json_schema_str(schema: &str) -> Result<Self, ConstraintError> {
        read_schema(schema).map(|schema| Self::of_schema(Ok(schema), false))
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::json_schema(json!({ "type": "object" }))
    }

    /// JSON that can be read as a `T`. Objects have the fields of their types and no others, unless a type is put
    /// together with `#[serde(flatten)]` or tagged inside: then others may come, which reading skips.
    pub fn for_type<T: schemars::JsonSchema + ?Sized>() -> Self {
        let mut schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>().to_value();
        let checked = check_schema(&schema).map(|()| {
            closed::close(&mut schema);
            Json::from(&schema)
        });
        // The alternatives of an enum: `serde` tells them apart, and accepts the first that fits.
        Self::of_schema(checked, true)
    }

    /// Text that a regular expression matches as a whole, in the syntax of the crate `regex`.
    pub fn regex(pattern: impl Into<String>) -> Self {
        Self(Grammar::Regex(pattern.into()))
    }

    /// Text of a context-free grammar in the Lark variant of `llguidance`; it begins with the rule `start`.
    pub fn lark(grammar: impl Into<String>) -> Self {
        Self(Grammar::Lark(grammar.into()))
    }

    /// Text of a context-free grammar in llama.cpp's notation; it begins with the rule `root`.
    pub fn gbnf(grammar: &str) -> Result<Self, ConstraintError> {
        check_size("GBNF grammar", grammar)?;
        Ok(Self(Grammar::Lark(gbnf::to_lark(grammar)?)))
    }

    /// One of these texts.
    pub fn choice<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self(Grammar::Choice(texts.into_iter().map(Into::into).collect()))
    }

    /// JSON without white space between its parts.
    pub fn compact(mut self) -> Self {
        if let Grammar::Json { compact, .. } = &mut self.0 {
            *compact = true;
        }
        self
    }

    /// What it is called in errors.
    fn kind(&self) -> &'static str {
        match self.0 {
            Grammar::Json { .. } => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) => "grammar",
            Grammar::Choice(_) => "choice",
        }
    }

    /// Checks what the compiler below would not survive.
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

/// A rule's body in Lark, of JSON that a schema describes.
pub(crate) fn embedded(schema: &Value) -> Result<String, ConstraintError> {
    check_schema(schema)?;
    // A space where models write one, and no more: white space could go on for long.
    let grammar = schema::grammar(&Json::from(schema), true, false)?.replacen('\n', "\n%ignore /\\x20/\n", 1);
    Ok(format!("%lark {{\n{grammar}}}"))
}

/// Bounds the depth and the number of the parts of a schema, without recursion.
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

/// Why a constraint cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// It is not valid, or uses what is not supported.
    #[error("the {kind} cannot be used: {reason}")]
    Invalid {
        /// What it is.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No text can satisfy it.
    #[error("no text satisfies the {kind}: {reason}")]
    Unsatisfiable {
        /// What it is.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// It is too large.
    #[error("the {kind} is too large: {reason}")]
    TooLarge {
        /// What it is.
        kind: &'static str,
        /// How so.
        reason: String,
    },
    /// There are no texts to choose from.
    #[error("there is nothing to choose from: give at least one text")]
    NoChoice,
    /// A vocabulary that constraints do not work with.
    #[error("constraints do not work with this vocabulary: {reason}")]
    Vocabulary {
        /// Why.
        reason: String,
    },
    /// It became too complex while it was followed.
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
    fn what_is_too_large_is_refused_before_it_is_looked_at() {
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
