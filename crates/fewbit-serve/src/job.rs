//! A job as JSON, to keep it and to give it again: the same job has the same bytes.

use fewbit_api::chat::{ChatMessage, Content, Role, ToolChoice};
use fewbit_api::common::{Prompt, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::backend::{Caller, Form, Input, Job};

/// The fields that can ask for a form, as [`Job::form`] names them.
const PARAMS: [&str; 7] = [
    "response_format",
    "response_format.json_schema.schema",
    "text.format",
    "text.format.schema",
    "output_config.format.schema",
    "grammar",
    "regex",
];

/// Why a JSON value is not a job.
#[derive(Debug, thiserror::Error)]
#[error("this is not a request as it is kept: {0}")]
pub struct NoJob(#[from] serde_json::Error);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    model: String,
    input: KeptInput,
    sampling: Sampling,
    seed: u64,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    form: Option<KeptForm>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptInput {
    Chat {
        messages: Vec<ChatMessage>,
        tools: Vec<Value>,
        tool_choice: ToolChoice,
        parallel: bool,
        template_vars: Map<String, Value>,
    },
    Text {
        prompt: KeptPrompt,
        echo: bool,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum KeptPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Deserialize)]
struct KeptForm {
    #[serde(flatten)]
    form: KeptKind,
    param: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptKind {
    JsonObject(serde::de::IgnoredAny),
    JsonSchema(Value),
    Grammar(String),
    Regex(String),
}

impl Job {
    /// The job as JSON, without its caller.
    pub fn to_json(&self) -> Value {
        let input = match &self.input {
            Input::Chat { messages, tools, choice, parallel, template_vars } => json!({ "chat": {
                "messages": messages.iter().map(message).collect::<Vec<_>>(),
                "tools": tools,
                "tool_choice": choice_json(choice),
                "parallel": parallel,
                "template_vars": template_vars,
            } }),
            Input::Text { prompt, echo } => {
                json!({ "text": { "prompt": prompt_json(prompt), "echo": echo } })
            }
        };
        let form = self.form.as_ref().map(|(form, param)| {
            let (kind, value) = match form {
                Form::JsonObject => ("json_object", json!(true)),
                Form::JsonSchema(schema) => ("json_schema", schema.clone()),
                Form::Grammar(text) => ("grammar", json!(text)),
                Form::Regex(text) => ("regex", json!(text)),
            };
            json!({ kind: value, "param": param })
        });
        json!({
            "model": self.model,
            "input": input,
            "sampling": sampling(&self.sampling),
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "logprobs": self.logprobs,
            "form": form,
        })
    }

    /// The job that [`Job::to_json`] wrote, for this caller.
    ///
    /// # Errors
    /// If the value is not a job.
    pub fn from_json(value: Value, caller: Caller) -> Result<Self, NoJob> {
        let Kept { model, input, sampling, seed, max_tokens, logprobs, form } = serde_json::from_value(value)?;
        let input = match input {
            KeptInput::Chat { messages, tools, tool_choice, parallel, template_vars } => {
                Input::Chat { messages, tools, choice: tool_choice, parallel, template_vars }
            }
            KeptInput::Text { prompt, echo } => {
                let prompt = match prompt {
                    KeptPrompt::Text(text) => Prompt::Text(text),
                    KeptPrompt::Tokens(tokens) => Prompt::Tokens(tokens),
                };
                Input::Text { prompt, echo }
            }
        };
        let form = form.map(|KeptForm { form, param }| {
            let form = match form {
                KeptKind::JsonObject(_) => Form::JsonObject,
                KeptKind::JsonSchema(schema) => Form::JsonSchema(schema),
                KeptKind::Grammar(text) => Form::Grammar(text),
                KeptKind::Regex(text) => Form::Regex(text),
            };
            // It only serves to name the field in an error.
            (form, PARAMS.into_iter().find(|known| *known == param).unwrap_or("response_format"))
        });
        Ok(Self { caller, model, input, sampling, seed, max_tokens, logprobs, form, prompt: None })
    }
}

/// A prompt in the form of the interface.
pub(crate) fn prompt_json(prompt: &Prompt) -> Value {
    match prompt {
        Prompt::Text(text) => json!(text),
        Prompt::Tokens(tokens) => json!(tokens),
        // Requests can only contain those two.
        _ => Value::Null,
    }
}

/// A `tool_choice` in the form of the interface.
pub(crate) fn choice_json(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::None => json!("none"),
        ToolChoice::Required => json!("required"),
        ToolChoice::Named(name) => json!({ "type": "function", "function": { "name": name } }),
        _ => json!("auto"),
    }
}

/// A message in the form of the interface, with this content.
pub(crate) fn message_json(message: &ChatMessage, content: Value) -> Value {
    let role = match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
        _ => "system",
    };
    let mut fields = Map::new();
    fields.insert("role".to_owned(), role.into());
    fields.insert("content".to_owned(), content);
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("name", json!(message.name));
    set("tool_calls", json!(message.tool_calls));
    set("tool_call_id", json!(message.tool_call_id));
    set("reasoning_content", json!(message.reasoning_content));
    fields.into()
}

/// A message with its content as it came: no content, one text, or several.
fn message(message: &ChatMessage) -> Value {
    let Content(parts) = &message.content;
    let content = match parts.as_deref() {
        None => Value::Null,
        Some([text]) => json!(text),
        Some(parts) => parts.iter().map(|text| json!({ "type": "text", "text": text })).collect(),
    };
    message_json(message, content)
}

fn sampling(sampling: &Sampling) -> Value {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("temperature", json!(sampling.temperature));
    set("top_p", json!(sampling.top_p));
    set("top_k", json!(sampling.top_k));
    set("min_p", json!(sampling.min_p));
    set("ignore_eos", json!(sampling.ignore_eos));
    set("repeat_penalty", json!(sampling.repeat_penalty));
    set("repeat_last_n", json!(sampling.repeat_last_n));
    set("presence_penalty", json!(sampling.presence_penalty));
    set("frequency_penalty", json!(sampling.frequency_penalty));
    let bias = sampling
        .logit_bias
        .as_ref()
        .map(|bias| bias.0.iter().map(|(token, bias)| (token.to_string(), json!(bias))).collect::<Map<_, _>>());
    set("logit_bias", json!(bias));
    set("seed", json!(sampling.seed));
    set("stop", json!(sampling.stop.as_ref().map(|stop| &stop.0)));
    set("grammar", json!(sampling.grammar));
    set("regex", json!(sampling.regex));
    fields.into()
}

#[cfg(test)]
mod tests {
    use fewbit_api::chat::ToolCall;
    use fewbit_api::common::{LogitBias, Stop};

    use super::*;

    fn same(job: &Job) {
        let json = job.to_json();
        let text = json.to_string();
        let again = Job::from_json(serde_json::from_str(&text).unwrap(), Caller::default()).unwrap();
        assert_eq!(&again, job, "{text}");
        assert_eq!(again.to_json().to_string(), text);
    }

    #[test]
    fn a_job_is_the_same_after_it_was_kept() {
        let mut sampling = Sampling::default();
        sampling.temperature = Some(0.1);
        sampling.top_p = Some(0.95);
        sampling.top_k = Some(-1);
        sampling.logit_bias = Some(LogitBias(vec![(5, 0.3), (70, -100.0)]));
        sampling.seed = Some(-3);
        sampling.stop = Some(Stop(vec!["a".into(), "b".into()]));
        let mut answer = ChatMessage::with_content(Role::Assistant, Content(None));
        answer.tool_calls = Some(vec![ToolCall::new("c1", "f", "{\"a\": 1.50}")]);
        answer.reasoning_content = Some("Hm.".into());
        let mut result = ChatMessage::with_content(Role::Tool, Content(Some(vec!["x".into(), "y".into()])));
        result.tool_call_id = Some("c1".into());
        let messages = vec![ChatMessage::new(Role::System, "s"), ChatMessage::new(Role::User, ""), answer, result];
        let template_vars = json!({ "enable_thinking": false, "n": 1.25 }).as_object().unwrap().clone();
        let mut job = Job {
            caller: Caller::default(),
            model: "m".into(),
            input: Input::Chat {
                messages,
                tools: vec![json!({ "z": 1, "a": [2] })],
                choice: ToolChoice::Named("f".into()),
                parallel: false,
                template_vars,
            },
            sampling,
            seed: u64::MAX,
            max_tokens: Some(9),
            logprobs: Some(0),
            form: Some((Form::JsonSchema(json!({ "type": "object" })), "text.format.schema")),
            prompt: None,
        };
        same(&job);
        for form in [Form::JsonObject, Form::Grammar("root ::= \"a\"".into()), Form::Regex("a+".into())] {
            job.form = Some((form, "grammar"));
            same(&job);
        }
        job.form = None;
        for prompt in [Prompt::Text("Once".into()), Prompt::Tokens(vec![1, 2]), Prompt::Tokens(Vec::new())] {
            job.input = Input::Text { prompt, echo: true };
            same(&job);
        }
        assert!(Job::from_json(json!({ "model": "m" }), Caller::default()).is_err());
    }
}
