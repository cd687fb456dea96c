//! The messages of a conversation, including tool calls and their results.

use super::{CallContent, Role};
use serde_json::{Map, Value, json};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// The author's role.
    pub role: Role,
    /// The text of the message.
    pub content: String,
    /// Further fields that templates use, such as `tool_calls`, `name`, `reasoning_content`. A field `content` here
    /// replaces the text, for templates that take a list of parts.
    pub fields: Map<String, Value>,
    /// Whether the message has no field `content` at all: see [`Message::without_text`].
    pub omits_content: bool,
}

/// A function call that the model requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ToolCall {
    /// The id that the result refers to. Some templates require one, and some require nine letters and digits.
    pub id: Option<String>,
    /// The function's name.
    pub name: String,
    /// Its arguments, usually an object.
    pub arguments: Value,
}

/// An error in a message that was given as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// It is not an object.
    #[error("a message is not a JSON object")]
    NoObject,
    /// It has no role.
    #[error("a message has no text `role`")]
    NoRole,
}

impl Message {
    /// Creates a message with a role and a text.
    pub fn new(role: impl Into<Role>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), fields: Map::new(), omits_content: false }
    }

    /// Creates a message with instructions that precede the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// Creates a message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// Creates a message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// Creates a message with the result of a call: the name of the function, and the id of the call if it had one.
    pub fn tool(name: impl Into<String>, call_id: Option<&str>, content: impl Into<String>) -> Self {
        let message = Self::new(Role::Tool, content).with_field("name", name.into());
        match call_id {
            Some(id) => message.with_field("tool_call_id", id),
            None => message,
        }
    }

    /// Adds calls of the model to this message, in the form that templates know from Hugging Face: arguments are JSON
    /// values, not JSON text.
    pub fn with_tool_calls(self, calls: &[ToolCall]) -> Self {
        let calls = calls.iter().map(|call| {
            let mut value = json!({
                "type": "function",
                "function": { "name": call.name, "arguments": call.arguments },
            });
            if let (Some(id), Some(fields)) = (&call.id, value.as_object_mut()) {
                fields.insert("id".into(), id.clone().into());
            }
            value
        });
        self.with_field("tool_calls", calls.collect::<Value>())
    }

    /// Adds a further field to this message.
    pub fn with_field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Marks this message as having no text, in one of several forms. For messages that consist of calls only; see
    /// [`TemplateCapabilities::call_content`](super::TemplateCapabilities::call_content).
    pub fn without_text(mut self, form: CallContent) -> Self {
        self.content.clear();
        self.fields.shift_remove("content");
        self.omits_content = form == CallContent::Omitted;
        match form {
            CallContent::Null => self.with_field("content", Value::Null),
            CallContent::Empty | CallContent::Omitted => self,
        }
    }

    /// Adds the model's reasoning before its answer, in the field where templates look for it (`reasoning_content`).
    pub fn with_reasoning(self, text: impl Into<String>) -> Self {
        self.with_field("reasoning_content", text.into())
    }

    /// Parses a message as in chat APIs: an object with `role`, `content` (a text, a list of parts, or absent) and
    /// further fields.
    pub fn from_json(value: Value) -> Result<Self, MessageError> {
        let Value::Object(mut fields) = value else { return Err(MessageError::NoObject) };
        let Some(Value::String(role)) = fields.shift_remove("role") else { return Err(MessageError::NoRole) };
        let content = match fields.get_mut("content").map(Value::take) {
            Some(Value::String(text)) => {
                fields.shift_remove("content");
                text
            }
            Some(other) => {
                fields.insert("content".into(), other);
                String::new()
            }
            // Templates may check whether the field exists.
            None => {
                fields.insert("content".into(), Value::Null);
                String::new()
            }
        };
        Ok(Self { role: role.into(), content, fields, omits_content: false })
    }

    /// The object that templates see.
    pub(super) fn to_json(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("role".into(), self.role.as_str().into());
        if !self.omits_content {
            fields.insert("content".into(), self.content.clone().into());
        }
        fields.extend(self.fields.clone());
        Value::Object(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_through_json() {
        for value in [
            json!({"role": "user", "content": "Hi"}),
            json!({"role": "user", "content": [{"type": "text", "text": "Hi"}]}),
            json!({"role": "assistant", "content": null, "tool_calls": []}),
            json!({"role": "tool", "content": "3", "tool_call_id": "x"}),
        ] {
            assert_eq!(Message::from_json(value.clone()).expect("valid").to_json(), value);
        }
        assert_eq!(Message::from_json(json!([])), Err(MessageError::NoObject));
        assert_eq!(Message::from_json(json!({"role": 3})), Err(MessageError::NoRole));
    }

    #[test]
    fn calls_and_results_have_the_fields_templates_expect() {
        let call = ToolCall { id: Some("a1".into()), name: "f".into(), arguments: json!({"x": 1}) };
        assert_eq!(
            Message::assistant("").with_tool_calls(&[call]).to_json(),
            json!({"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "a1"}]})
        );
        assert_eq!(
            Message::tool("f", Some("a1"), "2").to_json(),
            json!({"role": "tool", "content": "2", "name": "f", "tool_call_id": "a1"})
        );
    }
}
