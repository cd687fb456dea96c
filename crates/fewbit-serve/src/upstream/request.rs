//! Converts a job to a request in OpenAI's form, and checks that its answer has the form that was asked for.

use std::collections::BTreeMap;

use fewbit_api::chat::{ChatMessage, ToolChoice};
use serde_json::{Map, Value, json};

use super::failed;
use crate::backend::{BackendError, Event, Finish, Form, Input, Job};
use crate::job::{choice_json, message_json, prompt_json};

/// The path of the request (relative to the base URL) and its body.
pub(super) fn of(job: &Job) -> Result<(&'static str, Value), BackendError> {
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            body.insert(name.to_owned(), value);
        }
    };
    set("model", json!(job.model));
    set("stream", json!(true));
    set("stream_options", json!({ "include_usage": true }));
    let sampling = &job.sampling;
    set("temperature", json!(sampling.temperature));
    set("top_p", json!(sampling.top_p));
    set("top_k", json!(sampling.top_k));
    set("min_p", json!(sampling.min_p));
    set("ignore_eos", json!(sampling.ignore_eos));
    set("repeat_penalty", json!(sampling.repeat_penalty));
    set("repetition_penalty", json!(sampling.repeat_penalty));
    set("repeat_last_n", json!(sampling.repeat_last_n));
    set("presence_penalty", json!(sampling.presence_penalty));
    set("frequency_penalty", json!(sampling.frequency_penalty));
    // Only if the client gave a seed: some servers do not take every number. This is the seed of this answer, not of
    // the request's first one.
    set("seed", json!(sampling.seed.map(|_| job.seed.cast_signed())));
    set("stop", json!(sampling.stop.as_ref().map(|stop| &stop.0)));
    let bias = |bias: &fewbit_api::common::LogitBias| -> BTreeMap<String, f32> {
        bias.0.iter().map(|(token, bias)| (token.to_string(), *bias)).collect()
    };
    set("logit_bias", json!(sampling.logit_bias.as_ref().map(bias)));
    let format = match &job.form {
        None => Value::Null,
        Some((Form::JsonObject, _)) => json!({ "type": "json_object" }),
        Some((Form::JsonSchema(schema), param)) => {
            jsonschema::validator_for(schema).map_err(|error| BackendError::invalid(*param, error))?;
            json!({ "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": schema } })
        }
        Some((Form::Grammar(_) | Form::Regex(_), param)) => {
            let message = format!("{:?} runs on another server, where a `{param}` cannot be enforced", job.model);
            return Err(BackendError::invalid(*param, message));
        }
    };
    set("response_format", format);
    match &job.input {
        Input::Text { prompt, echo } => {
            set("prompt", prompt_json(prompt));
            set("max_tokens", json!(job.max_tokens));
            set("logprobs", json!(job.logprobs));
            set("echo", if *echo { json!(true) } else { Value::Null });
            Ok(("/completions", body.into()))
        }
        Input::Chat { messages, tools, choice, parallel, template_vars } => {
            let message = |message: &ChatMessage| message_json(message, json!(message.content.as_text()));
            set("messages", messages.iter().map(message).collect());
            set("max_tokens", json!(job.max_tokens));
            set("logprobs", json!(job.logprobs.map(|_| true)));
            set("top_logprobs", json!(job.logprobs));
            if !tools.is_empty() {
                set("tools", json!(tools));
                set("tool_choice", choice_json(choice));
                set("parallel_tool_calls", if *parallel { Value::Null } else { json!(false) });
            }
            if !template_vars.is_empty() {
                set("chat_template_kwargs", json!(template_vars));
            }
            Ok(("/chat/completions", body.into()))
        }
    }
}

fn must_call(job: &Job) -> Option<Option<&str>> {
    match &job.input {
        Input::Chat { choice: ToolChoice::Required, .. } => Some(None),
        Input::Chat { choice: ToolChoice::Named(name), .. } => Some(Some(name)),
        _ => None,
    }
}

/// Whether an answer must be validated as a whole before any of it is sent.
pub(super) fn is_held_back(job: &Job) -> bool {
    job.form.is_some() || must_call(job).is_some()
}

/// Checks that an answer has the form that was asked for. An answer that was cut off by the token limit is not checked:
/// it is incomplete, as a local one would be.
pub(super) fn check(job: &Job, events: &[Event]) -> Result<(), BackendError> {
    let (mut text, mut names, mut finish) = (String::new(), Vec::new(), None);
    for event in events {
        match event {
            Event::Piece(piece) => {
                text += &piece.text;
                names.extend(piece.calls.iter().filter_map(|call| call.name.clone()));
            }
            Event::End(end) => finish = Some(end.finish),
            Event::Begin { .. } => {}
        }
    }
    if finish == Some(Finish::Length) {
        return Ok(());
    }
    if let Some(name) = must_call(job)
        && (names.is_empty() || name.is_some_and(|name| names.iter().any(|called| called != name)))
    {
        return Err(failed("did not call what it had to call"));
    }
    let Some((form, param)) = &job.form else { return Ok(()) };
    let value: Value = serde_json::from_str(&text).map_err(|_| failed("answered with what is not JSON"))?;
    match form {
        Form::JsonSchema(schema) => {
            let validator = jsonschema::validator_for(schema).map_err(|error| BackendError::invalid(*param, error))?;
            if validator.is_valid(&value) { Ok(()) } else { Err(failed("answered with JSON that the schema forbids")) }
        }
        _ if value.is_object() => Ok(()),
        _ => Err(failed("answered with JSON that is no object")),
    }
}
