//! `GET /openapi.json`: this server's own OpenAPI document. Needs no key, because it says nothing about models or keys.
//!
//! The schemas are derived from the wire types that the endpoints read and write, so they cannot differ from them. Only
//! the list of operations is written here; a test compares it with the endpoints.

use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use fewbit_api::admin::{
    Approval, AuditCheck, AuditState, Cancelled, DecideRequest, Decided, List, LiveRequest, PromptDifference,
    PromptInfo, UsageRow,
};
use fewbit_api::batches::{Batch, BatchRequest};
use fewbit_api::chat::{ChatChunk, ChatRequest, ChatResponse};
use fewbit_api::common::Sampling;
use fewbit_api::completion::{CompletionRequest, CompletionResponse};
use fewbit_api::embedding::{EmbeddingRequest, EmbeddingResponse};
use fewbit_api::error::{ErrorBody, MessagesErrorBody};
use fewbit_api::files::{FileObject, Page};
use fewbit_api::messages::{CountResponse, MessagesRequest, MessagesResponse};
use fewbit_api::models::{ModelList, ModelObject};
use fewbit_api::rerank::{RerankRequest, RerankResponse};
use fewbit_api::responses::{Response, ResponsesRequest};
use fewbit_api::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{admin, admin_models, batches, chat, completions, embeddings, files, messages, rerank, responses, small};
use crate::error::{ApiError, ErrorForm};
use crate::line::{Call, Endpoint, Reply};
use crate::server::Shared;

pub(super) struct OpenApi;

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

impl Endpoint for OpenApi {
    const PATH: &'static str = "/openapi.json";
    const IS_OPEN: bool = true;
    const HAS_BODY: bool = false;

    async fn answer(_: &Arc<Shared>, _: Call) -> Result<Reply, ApiError> {
        Ok(Reply::bytes(DOCUMENT.clone(), "application/json"))
    }
}

fn document() -> Value {
    let mut all = Document::new();
    let (post, get, delete) = ("post", "get", "delete");
    let chat_body = all.both::<ChatRequest, Sampling>();
    all.add::<chat::Chat>(post, "Answers a conversation")
        .body(chat_body)
        .answer::<ChatResponse>()
        .stream::<ChatChunk>();
    let body = all.both::<CompletionRequest, Sampling>();
    let completions = all.add::<completions::Completions>(post, "Continues texts, or token ids").body(body);
    completions.answer::<CompletionResponse>().stream::<CompletionResponse>();
    let body = all.both::<ResponsesRequest, Sampling>();
    let answers = all.add::<responses::Responses>(post, "Answers in OpenAI's later form, of items").body(body);
    answers.answer::<Response>().stream::<Value>();
    all.add::<responses::OneResponse>(get, "Shows an answer that is kept").answer::<Response>();
    all.add::<responses::DeleteResponse>(delete, "Forgets an answer that is kept").answer::<Map<String, Value>>();
    let request = all.request::<MessagesRequest>();
    let has_limit = json!({ "properties": { "max_tokens": { "type": "integer" } }, "required": ["max_tokens"] });
    let of_messages = all.add::<messages::Messages>(post, "Answers in Anthropic's form");
    of_messages.body(json!({ "allOf": [request, has_limit] })).answer::<MessagesResponse>().stream::<Value>();
    all.add::<messages::CountTokens>(post, "Counts the tokens of a conversation")
        .body(request)
        .answer::<CountResponse>();
    let body = all.request::<EmbeddingRequest>();
    all.add::<embeddings::Embeddings>(post, "Turns texts into vectors").body(body).answer::<EmbeddingResponse>();
    let body = all.request::<RerankRequest>();
    all.add::<rerank::Rerank>(post, "Says how relevant documents are to a query").body(body).answer::<RerankResponse>();
    all.add::<files::UploadFile>(post, "Takes a file of requests").form(json!({
        "type": "object",
        "properties": {
            "purpose": { "enum": ["batch"] },
            "file": { "type": "string", "format": "binary" },
        },
        "required": ["purpose", "file"],
    }));
    all.add::<files::ListFiles>(get, "Lists the key's files").answer::<Page<FileObject>>();
    all.add::<files::OneFile>(get, "Shows a file").answer::<FileObject>();
    all.add::<files::DeleteFile>(delete, "Deletes a file").answer::<Map<String, Value>>();
    all.add::<files::FileContent>(get, "The content of a file").text("application/jsonl");
    let body = all.request::<BatchRequest>();
    all.add::<batches::CreateBatch>(post, "Begins to answer the requests of a file").body(body).answer::<Batch>();
    all.add::<batches::ListBatches>(get, "Lists the key's batches").answer::<Page<Batch>>();
    all.add::<batches::OneBatch>(get, "Shows a batch").answer::<Batch>();
    all.add::<batches::CancelBatch>(post, "Cancels a batch").answer::<Batch>();
    all.add::<small::Models>(get, "Lists the models").answer::<ModelList>();
    all.add::<small::OneModel>(get, "Shows a model").answer::<ModelObject>();
    let body = all.request::<TokenizeRequest>();
    all.add::<small::Tokenize>(post, "Turns a text into token ids").body(body).answer::<TokenizeResponse>();
    let body = all.request::<DetokenizeRequest>();
    all.add::<small::Detokenize>(post, "Turns token ids into text").body(body).answer::<DetokenizeResponse>();
    all.add::<small::TokenizerInfo>(get, "Shows what is known about a tokenizer").answer::<Map<String, Value>>();
    all.add::<admin_models::Models>(get, "Shows which models are in memory").answer::<Map<String, Value>>();
    let named = json!({ "type": "object", "properties": { "model": { "type": "string" } }, "required": ["model"] });
    let load = all.add::<admin_models::Load>(post, "Loads a model").body(named.clone());
    load.answer::<Map<String, Value>>();
    let unload = all.add::<admin_models::Unload>(post, "Takes a model out of memory").body(named);
    unload.answer::<Map<String, Value>>();
    all.add::<small::Reload>(post, "Reads the configuration again").answer::<Map<String, Value>>();
    all.add::<admin::Requests<admin::Own>>(get, "Lists the key's requests in progress").answer::<List<LiveRequest>>();
    all.add::<admin::Cancel<admin::Own>>(delete, "Cancels one of the key's requests").answer::<Cancelled>();
    all.add::<admin::Usage<admin::Own>>(get, "Shows what the key used").answer::<List<UsageRow>>();
    all.add::<admin::Requests<admin::All>>(get, "Lists the requests in progress").answer::<List<LiveRequest>>();
    all.add::<admin::Cancel<admin::All>>(delete, "Cancels a request").answer::<Cancelled>();
    all.add::<admin::Usage<admin::All>>(get, "Shows what was used").answer::<List<UsageRow>>();
    all.add::<admin::Audit>(get, "Shows the state of the audit log").answer::<AuditState>();
    all.add::<admin::Verify>(post, "Verifies the audit log").answer::<AuditCheck>();
    all.add::<admin::Prompts>(get, "Lists the prompts under version").answer::<List<PromptInfo>>();
    let difference = all.add::<admin::Difference>(get, "Shows how two versions of a prompt differ");
    difference.query("from").query("to").answer::<PromptDifference>();
    all.add::<admin::Approvals>(get, "Lists the calls that wait for approval").answer::<List<Approval>>();
    let body = all.request::<DecideRequest>();
    all.add::<admin::Decide>(post, "Decides about a call").body(body).answer::<Decided>();
    all.add::<small::Health>(get, "Whether the server takes requests").answer::<Map<String, Value>>();
    all.add::<small::Metrics>(get, "Counts for Prometheus").text("text/plain");
    all.add::<OpenApi>(get, "This document").answer::<Map<String, Value>>();
    all.finish()
}

/// A document in the making.
struct Document {
    /// Schemas of what clients send.
    requests: SchemaGenerator,
    /// Schemas of what they get. A type's optional fields can differ between the two.
    answers: SchemaGenerator,
    paths: Map<String, Value>,
}

/// Where the schemas of answers are until [`Document::finish`]: a type can be in both lists.
const ANSWERS: &str = "/components/answers";
const SCHEMAS: &str = "/components/schemas";

impl Document {
    fn new() -> Self {
        let settings = |path: &'static str| {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = path.into();
                settings.meta_schema = None;
            })
        };
        Self {
            requests: settings(SCHEMAS).for_deserialize().into_generator(),
            answers: settings(ANSWERS).for_serialize().into_generator(),
            paths: Map::new(),
        }
    }

    fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().to_value()
    }

    /// The schema of a body from which two types are read.
    fn both<T: JsonSchema, U: JsonSchema>(&mut self) -> Value {
        json!({ "allOf": [self.request::<T>(), self.request::<U>()] })
    }

    fn add<E: Endpoint>(&mut self, method: &str, does: &str) -> Operation<'_> {
        // The name of an endpoint can tell its method after the path.
        let path = E::PATH.split(' ').next().unwrap_or_default();
        let error = match E::ERRORS {
            ErrorForm::OpenAi => self.answers.subschema_for::<ErrorBody>(),
            ErrorForm::Anthropic => self.answers.subschema_for::<MessagesErrorBody>(),
        };
        let error = json!({ "description": "An error", "content": { "application/json": { "schema": error } } });
        let mut operation = json!({
            "operationId": format!("{method}{}", path.replace(|c: char| !c.is_ascii_alphanumeric(), "_")),
            "summary": does,
            "responses": { "200": { "description": "Success", "content": {} }, "4XX": error, "5XX": error },
        });
        if E::IS_OPEN {
            operation["security"] = json!([]);
        }
        if path.contains("{id}") {
            operation["parameters"] = json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }]);
        }
        let of_path = self.paths.entry(path).or_insert_with(|| Value::Object(Map::new()));
        of_path[method] = operation;
        Operation { operation: &mut of_path[method], answers: &mut self.answers }
    }

    fn finish(mut self) -> Value {
        let mut schemas = self.requests.take_definitions(true);
        let answers = self.answers.take_definitions(true);
        // A type in both lists gets two names if its schemas differ.
        let name = |name: &str, schema: &Value, schemas: &Map<String, Value>| match schemas.get(name) {
            Some(other) if other != schema => format!("{name}Answer"),
            _ => name.to_owned(),
        };
        let names: Vec<(String, String)> =
            answers.iter().map(|(old, schema)| (old.clone(), name(old, schema, &schemas))).collect();
        schemas.extend(answers.into_iter().zip(&names).map(|((_, schema), (_, new))| (new.clone(), schema)));
        let mut document = json!({
            "openapi": "3.1.0",
            "info": {
                "title": "fewbit",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Language models with the interfaces of OpenAI and Anthropic",
            },
            "security": [{ "key": [] }],
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": { "key": { "type": "http", "scheme": "bearer" } },
            },
        });
        tidy(&mut document, &names);
        document
    }
}

/// An operation of a document.
struct Operation<'a> {
    operation: &'a mut Value,
    answers: &'a mut SchemaGenerator,
}

impl Operation<'_> {
    fn body(self, schema: Value) -> Self {
        self.operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        self
    }

    /// A body in the form of an HTML form with a file. The answer is the file's description.
    fn form(self, schema: Value) {
        self.operation["requestBody"] =
            json!({ "required": true, "content": { "multipart/form-data": { "schema": schema } } });
        self.answer::<FileObject>();
    }

    fn content(self, kind: &str, schema: Value) -> Self {
        self.operation["responses"]["200"]["content"][kind] = json!({ "schema": schema });
        self
    }

    fn answer<T: JsonSchema>(self) -> Self {
        let schema = self.answers.subschema_for::<T>().to_value();
        self.content("application/json", schema)
    }

    /// Server-sent events, whose data has this type.
    fn stream<T: JsonSchema>(self) -> Self {
        let data = self.answers.subschema_for::<T>().to_value();
        let events = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": data });
        self.content("text/event-stream", events)
    }

    /// A parameter of the address, which must be given.
    fn query(self, name: &str) -> Self {
        let parameter = json!({ "name": name, "in": "query", "required": true, "schema": { "type": "string" } });
        match self.operation.get_mut("parameters").and_then(Value::as_array_mut) {
            Some(parameters) => parameters.push(parameter),
            None => self.operation["parameters"] = json!([parameter]),
        }
        self
    }

    fn text(self, kind: &str) -> Self {
        self.content(kind, json!({ "type": "string" }))
    }
}

/// Replaces references to the schemas of answers, takes the marks of Rust's links out of the descriptions, and adds the
/// upper bound of unsigned numbers, which schemars leaves out.
fn tidy(value: &mut Value, names: &[(String, String)]) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| tidy(item, names)),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match value {
                    Value::String(text) if key == "$ref" => {
                        let old = text.strip_prefix(&format!("#{ANSWERS}/"));
                        let new = old.and_then(|old| names.iter().find(|(known, _)| known == old));
                        if let Some((_, new)) = new {
                            *text = format!("#{SCHEMAS}/{new}");
                        }
                    }
                    Value::String(text) if key == "description" => *text = without_links(text),
                    value => tidy(value, names),
                }
            }
            if fields.get("format").is_some_and(|format| format == "uint32") {
                fields.insert("maximum".to_owned(), u32::MAX.into());
            }
        }
        _ => {}
    }
}

/// Turns "[`a`](b)" and "[`a`]" into "`a`".
fn without_links(text: &str) -> String {
    let mut parts = text.split("[`");
    let mut out = parts.next().unwrap_or_default().replace('\n', " ");
    for part in parts {
        let (name, rest) = part.split_once("`]").unwrap_or((part, ""));
        let rest = match rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((_, rest)) => rest,
            None => rest,
        };
        out += &format!("`{name}`{rest}").replace('\n', " ");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_have_no_links() {
        assert_eq!(without_links("The [`a::B`](crate::a::B), and\n[`C`]."), "The `a::B`, and `C`.");
        assert_eq!(without_links("plain [x]"), "plain [x]");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| walk(value, found));
                }
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        walk(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        // The same type can have other required fields as an answer.
        let required = |name: &str| document["components"]["schemas"][name]["required"].clone();
        assert_ne!(required("ToolCall"), required("ToolCallAnswer"));
    }
}
