//! Serializes a schema as the text of its JSON, with every digit of its numbers.

use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

use super::schema::Json;
use super::{ConstraintError, read_schema};

pub(super) fn serialize<S: Serializer>(
    schema: &Result<Arc<Json>, ConstraintError>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match schema {
        Ok(schema) => serializer.serialize_str(&schema.to_string()),
        Err(error) => Err(S::Error::custom(error)),
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Result<Arc<Json>, ConstraintError>, D::Error> {
    let text = String::deserialize(deserializer)?;
    read_schema(&text).map(|schema| Ok(Arc::new(schema))).map_err(D::Error::custom)
}
