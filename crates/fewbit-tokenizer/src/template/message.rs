//! Messages of a conversation, with what a model called and what came of it.

use super::{CallContent, Role};
use serde_json::{Map, Value, json};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// Whose it is.
    pub role: Role,
    /// What was said.
    pub content: String,
    /// Further fields that templates look at, such as `tool_calls`, `name`, `reasoning_content`. A
    /// field `content` here replaces the text, for templates that take a list of parts.
    pub fields: Map<String, Value>,
    /// The message has no field `content` at all: see [`Message::without_text`].
    pub omits_content: bool,
}

/// A function that a model wants called.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ToolCall {
    /// What the result will be known by; some templates ask for one, of nine letters and digits even.
    pub id: Option<String>,
    /// The function's name.
    pub name: String,
    /// Its arguments, mostly an object.
    pub arguments: Value,
}

/// What is wrong with a message that came as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// It is no object.
    #[error("a message is not a JSON object")]
    NoObject,
    /// It does not say whose it is.
    #[error("a message has no text `role`")]
    NoRole,
}

impl Message {
    /// A message with a role and a text.
    pub fn new(role: impl Into<Role>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), fields: Map::new(), omits_content: false }
    }

    /// Instructions that precede the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }

    /// What came of a call: the name of the function, and the id of the call if it had one.
    pub fn tool(name: impl Into<String>, call_id: Option<&str>, content: impl Into<String>) -> Self {
        let message = Self::new(Role::Tool, content).with_field("name", name.into());
        match call_id {
            Some(id) => message.with_field("tool_call_id", id),
            None => message,
        }
    }

    /// This message with calls of the model, in the form that templates know from Hugging Face: arguments are
    /// JSON, not a text of it.
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

    /// This message with a further field.
    pub fn with_field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// This message with nothing said, in one of the ways to say so: for messages that are calls and nothing else. See
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

    /// What the model thought before it answered, where templates look for it (`reasoning_content`).
    pub fn with_reasoning(self, text: impl Into<String>) -> Self {
        self.with_field("reasoning_content", text.into())
    }

    /// A message as chat interfaces write it: an object with `role`, `content` (a text, a list of parts, or
    /// nothing) and further fields.
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
            // Templates may ask whether there is any.
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
    fn messages_come_and_go_as_json() {
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
    fn calls_and_results_have_the_fields_that_templates_know() {
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
