//! JSON schemas of the types that are not deserialized by derived code. Each describes what the `Deserialize` of its
//! type accepts.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::json;

use crate::chat::{Content, Role, ToolChoice};
use crate::common::{LogitBias, Prompts, Stop};
use crate::messages::{Block, Blocks};
use crate::prompt::PromptParam;
use crate::responses::{Input, Item};

/// Implements [`JsonSchema`] with this schema.
macro_rules! schema {
    ($type:ty, $name:literal, $schema:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let schema: fn(&mut SchemaGenerator) -> Schema = $schema;
                schema(generator)
            }
        }
    };
}

schema!(LogitBias, "LogitBias", |_| json_schema!({
    "description": "Biases by token id.",
    "type": "object",
    "propertyNames": { "pattern": "^[0-9]{1,9}$" },
    "additionalProperties": { "type": "number" },
}));

schema!(Stop, "Stop", |_| json_schema!({
    "description": "One text, or a list of texts.",
    "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
}));

schema!(PromptParam, "PromptParam", |_| json_schema!({
    "description": "A prompt of the server: its name, with its version after an `@`, or an object.",
    "anyOf": [
        { "type": "string" },
        {
            "type": "object",
            "properties": {
                "id": { "type": "string" },
                "version": { "type": ["string", "number", "null"] },
                "variables": { "type": ["object", "null"] },
            },
            "required": ["id"],
        },
    ],
}));

schema!(Prompts, "Prompts", |_| {
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX } });
    json_schema!({
        "description": "A text, a list of texts, a list of token ids, or a list of lists of token ids.",
        "anyOf": [
            { "type": "string" },
            ids,
            { "type": "array", "items": { "anyOf": [{ "type": "string" }, ids] } },
        ],
    })
});

schema!(Role, "Role", |_| json_schema!({
    "description": "Who sent a message.",
    "enum": ["system", "developer", "user", "assistant", "tool"],
}));

schema!(Content, "Content", |_| {
    let part = |kinds: &[&str], field: &str| {
        json!({
            "type": "object",
            "properties": { "type": { "enum": kinds }, field: { "type": "string" } },
            "required": ["type", field],
        })
    };
    let parts = [part(&["text", "input_text", "output_text"], "text"), part(&["refusal"], "refusal")];
    json_schema!({
        "description": "A text, or a list of parts that are texts.",
        "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "anyOf": parts } },
            { "type": "null" },
        ],
    })
});

schema!(ToolChoice, "ToolChoice", |_| {
    let name = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
    json_schema!({
        "description": "Whether the model may, must or must not call a tool.",
        "anyOf": [
            { "enum": ["none", "auto", "required"] },
            { "type": "object", "properties": { "function": name }, "required": ["function"] },
            name,
        ],
    })
});

schema!(Blocks, "Blocks", |generator| json_schema!({
    "description": "A text, or a list of blocks.",
    "anyOf": [{ "type": "string" }, { "type": "array", "items": generator.subschema_for::<Block>() }],
}));

schema!(Input, "Input", |generator| {
    let message = json!({
        "description": "A message may leave out its type.",
        "type": "object",
        "properties": {
            "type": { "type": "null" },
            "role": generator.subschema_for::<Role>(),
            "content": generator.subschema_for::<Content>(),
        },
        "required": ["role", "content"],
    });
    json_schema!({
        "description": "A text, or a list of items.",
        "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "anyOf": [generator.subschema_for::<Item>(), message] } },
        ],
    })
});
