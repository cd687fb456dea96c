//! Serializes a schema as its text, because the data model of `serde` has no numbers of any size. A schema that is
//! given as JSON itself is accepted too.

use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serializer};
use serde_json::Value;

use super::Json;
use crate::constraints::{Constraint, ConstraintError, Grammar};

type Schema = Result<Arc<Json>, ConstraintError>;

pub(crate) fn serialize<S: Serializer>(schema: &Schema, serializer: S) -> Result<S::Ok, S::Error> {
    match schema {
        Ok(schema) => serializer.collect_str(schema),
        Err(error) => Err(S::Error::custom(error)),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Schema, D::Error> {
    let constraint = match Value::deserialize(deserializer)? {
        Value::String(text) => Constraint::json_schema_str(&text).map_err(D::Error::custom)?,
        value => Constraint::json_schema(value),
    };
    match constraint.0 {
        Grammar::Json { schema: Ok(schema), .. } => Ok(Ok(schema)),
        Grammar::Json { schema: Err(error), .. } => Err(D::Error::custom(error)),
        _ => Err(D::Error::custom("not a JSON schema")),
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| Value::from(text).to_string();
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(number) => {
                let sign = if number.is_negative { "-" } else { "" };
                match number.parts() {
                    ("", _) => f.write_str("0"),
                    (digits, 0) => write!(f, "{sign}{digits}"),
                    (digits, exponent) => write!(f, "{sign}{digits}e{exponent}"),
                }
            }
            Self::String(text) => f.write_str(&quoted(text)),
            Self::Array(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Self::Object(fields) => {
                f.write_str("{")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{}:{value}", if i == 0 { "" } else { "," }, quoted(name))?;
                }
                f.write_str("}")
            }
        }
    }
}
