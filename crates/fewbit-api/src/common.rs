//! Types that several endpoints share: sampling settings, stop texts, usage.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The type of a value, for error messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// How tokens are chosen, and where a text ends. These fields are the same for chats and completions, and are
/// deserialized from the same JSON object as the rest of the request.
///
/// `min_p`, `top_k`, `repeat_penalty`, `repeat_last_n` and `ignore_eos` are not part of OpenAI's interface; they have the
/// names of llama.cpp's server. vLLM's name `repetition_penalty` is accepted for `repeat_penalty`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Sampling {
    /// How random the choice is; 0 always takes the most probable token.
    pub temperature: Option<f32>,
    /// Only the most probable tokens that together have this probability are considered.
    pub top_p: Option<f32>,
    /// Only the k most probable tokens are considered; 0 and -1 mean all.
    pub top_k: Option<i64>,
    /// Only tokens with at least this fraction of the highest probability are considered.
    pub min_p: Option<f32>,
    /// Makes tokens that occurred already less probable; 1 has no effect.
    #[serde(alias = "repetition_penalty")]
    pub repeat_penalty: Option<f32>,
    /// How many of the last tokens the penalties consider; -1 means all.
    pub repeat_last_n: Option<i64>,
    /// Subtracted once from the logit of every token that occurred already.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for each time that it occurred.
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of these tokens.
    pub logit_bias: Option<LogitBias>,
    /// The seed of the random numbers: the same seed gives the same answer.
    pub seed: Option<i64>,
    /// Texts at which the answer ends.
    pub stop: Option<Stop>,
    /// Goes on after the model's own end, up to the token limit: for measurements.
    pub ignore_eos: Option<bool>,
    /// A grammar in llama.cpp's notation (GBNF) that the text must follow.
    pub grammar: Option<String>,
    /// A regular expression that the text must match as a whole.
    pub regex: Option<String>,
}

/// Biases by token id. In JSON, an object whose keys are token ids.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitBias(pub Vec<(u32, f32)>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, f32>::deserialize(deserializer)?;
        let entry = |(token, bias): (String, f32)| match token.parse() {
            Ok(token) => Ok((token, bias)),
            Err(_) => {
                Err(D::Error::custom(format!("{token:?} is not a token id: the keys are numbers, as in \"50256\"")))
            }
        };
        map.into_iter().map(entry).collect::<Result<_, _>>().map(Self)
    }
}

/// Stop texts. In JSON, one text or a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stop(pub Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(vec![text])),
            Value::Array(items) => items.into_iter().map(text).collect::<Result<_, _>>().map(Self),
            other => Err(D::Error::custom(format!("expected a text or a list of texts, found {}", kind(&other)))),
        }
    }
}

fn text<E: serde::de::Error>(value: Value) -> Result<String, E> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(E::custom(format!("expected a text or a list of texts, found {} in the list", kind(&other)))),
    }
}

/// One prompt: a text, or token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// The field `prompt` or `input`: a text, a list of texts, a list of token ids, or a list of such lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// The prompts, in the order of the request.
    pub list: Vec<Prompt>,
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "expected a text, a list of texts, a list of token ids, or a list of lists of token ids";
        let wrong = |found: String| D::Error::custom(format!("{EXPECTED}, found {found}"));
        let ids = |items: Vec<Value>| {
            let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
            items.iter().map(|item| id(item).ok_or_else(|| wrong(item_name(item)))).collect::<Result<Vec<u32>, _>>()
        };
        let list = match Value::deserialize(deserializer)? {
            Value::String(text) => vec![Prompt::Text(text)],
            Value::Array(items) if items.first().is_some_and(Value::is_number) => vec![Prompt::Tokens(ids(items)?)],
            Value::Array(items) => {
                let each = items.into_iter().map(|item| match item {
                    Value::String(text) => Ok(Prompt::Text(text)),
                    Value::Array(items) => ids(items).map(Prompt::Tokens),
                    other => Err(wrong(item_name(&other))),
                });
                each.collect::<Result<_, _>>()?
            }
            other => return Err(wrong(kind(&other).to_owned())),
        };
        Ok(Self { list })
    }
}

/// The type of a list item, for error messages. Numbers are shown, because they may be out of range; texts are not,
/// because they may be private.
fn item_name(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("the number {number} in a list"),
        other => format!("{} in a list", kind(other)),
    }
}

/// Options of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct StreamOptions {
    /// Whether the stream ends with a chunk that has the usage and no choices.
    pub include_usage: Option<bool>,
}

/// The tokens that a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens of the answers.
    pub completion_tokens: usize,
    /// The sum of both.
    pub total_tokens: usize,
    /// Details about the prompt tokens.
    pub prompt_tokens_details: PromptDetails,
}

/// Details of a [`Usage`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptDetails {
    /// Tokens that were found in the cache, because an earlier request had them.
    pub cached_tokens: usize,
}

impl Usage {
    /// Creates a usage with these numbers of tokens.
    pub fn new(prompt: usize, cached: usize, completion: usize) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptDetails { cached_tokens: cached },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn stop_and_prompts_accept_one_value_or_a_list() {
        let stop = |value| from_value::<Stop>(value).map(|stop| stop.0).map_err(|error| error.to_string());
        assert_eq!(stop(json!("a")).unwrap(), ["a"]);
        assert_eq!(stop(json!(["a", "b"])).unwrap(), ["a", "b"]);
        assert!(stop(json!(3)).unwrap_err().contains("found a number"));
        assert!(stop(json!(["a", null])).unwrap_err().contains("found null in the list"));

        let prompts = |value| from_value::<Prompts>(value).map(|p| p.list).map_err(|error| error.to_string());
        assert_eq!(prompts(json!("a")).unwrap(), [Prompt::Text("a".into())]);
        assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2, 3]])).unwrap(), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
        assert_eq!(prompts(json!(["a", [7]])).unwrap(), [Prompt::Text("a".into()), Prompt::Tokens(vec![7])]);
        assert_eq!(prompts(json!([])).unwrap(), []);
        assert!(prompts(json!([1, -2])).unwrap_err().contains("the number -2 in a list"));
        assert!(prompts(json!([1, 4294967296_u64])).unwrap_err().contains("4294967296"));
        assert!(prompts(json!([["secret"]])).unwrap_err().ends_with("found a text in a list"));
        assert!(prompts(json!(true)).unwrap_err().ends_with("found a boolean"));
    }

    #[test]
    fn logit_bias_keys_are_token_ids() {
        assert_eq!(from_value::<LogitBias>(json!({ "5": -100, "7": 1.5 })).unwrap().0, [(5, -100.0), (7, 1.5)]);
        assert!(from_value::<LogitBias>(json!({ "the": 1 })).unwrap_err().to_string().contains("is not a token id"));
    }
}
