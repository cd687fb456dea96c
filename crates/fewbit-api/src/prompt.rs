//! The field `prompt` of chats, Responses and Messages: a prompt of the server, with its variables.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::common::kind;

/// A prompt of the server. In JSON: a text such as `"support@3"` or `"support"`, or OpenAI's object
/// `{"id": "support", "version": "3", "variables": {..}}`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PromptParam {
    /// Its name; as a text, with the version after an `@`.
    pub id: String,
    /// Its version. Without one, the server chooses.
    pub version: Option<String>,
    /// Its variables.
    pub variables: Map<String, Value>,
}

#[derive(Deserialize)]
struct Fields {
    id: String,
    version: Option<Value>,
    variables: Option<Map<String, Value>>,
}

impl<'de> Deserialize<'de> for PromptParam {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(id) => Ok(Self { id, ..Self::default() }),
            value @ Value::Object(_) => {
                let Fields { id, version, variables } = Fields::deserialize(value).map_err(D::Error::custom)?;
                let version = match version {
                    None | Some(Value::Null) => None,
                    Some(Value::String(version)) => Some(version),
                    Some(Value::Number(version)) => Some(version.to_string()),
                    Some(other) => {
                        return Err(D::Error::custom(format!(
                            "expected a `version` such as \"3\", found {}",
                            kind(&other)
                        )));
                    }
                };
                Ok(Self { id, version, variables: variables.unwrap_or_default() })
            }
            other => Err(D::Error::custom(format!(
                "expected a prompt of this server, such as \"support@3\" or {{\"id\": \"support\", \"variables\": {{}}}}, found {}",
                kind(&other)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_prompt_is_a_text_or_an_object() {
        let param = |value| from_value::<PromptParam>(value).map_err(|error| error.to_string());
        assert_eq!(param(json!("a@3")).unwrap(), PromptParam { id: "a@3".into(), ..PromptParam::default() });
        let variables = json!({ "x": 1 }).as_object().unwrap().clone();
        let want = PromptParam { id: "a".into(), version: Some("3".into()), variables };
        assert_eq!(param(json!({ "id": "a", "version": "3", "variables": { "x": 1 } })).unwrap(), want);
        assert_eq!(param(json!({ "id": "a", "version": 3, "variables": { "x": 1 } })).unwrap(), want);
        assert_eq!(param(json!({ "id": "a", "version": null, "variables": null })).unwrap().variables, Map::new());
        assert!(param(json!({ "version": "3" })).unwrap_err().contains("missing field `id`"));
        assert!(param(json!({ "id": "a", "version": [] })).unwrap_err().contains("found a list"));
        assert!(param(json!(3)).unwrap_err().contains("found a number"));
    }
}
