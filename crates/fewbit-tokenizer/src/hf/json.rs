//! The structure of `tokenizer.json` and of the files next to it.
//!
//! Parts that are read differently depending on their kind stay JSON until then, so that errors can name an unknown
//! kind. The vocabulary and the merge rules are read as borrowed texts, because they are most of a file of many
//! megabytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

/// `tokenizer.json`.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerJson<'a> {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub(super) normalizer: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) pre_tokenizer: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) post_processor: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) decoder: Option<serde_json::Value>,
    #[serde(borrow)]
    pub(super) model: Model<'a>,
}

/// A token that is added to the model's vocabulary.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AddedToken {
    /// Absent in `added_tokens_decoder`, which has the id as its key.
    #[serde(default)]
    pub(super) id: Option<u32>,
    pub(super) content: String,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) normalized: Option<bool>,
    #[serde(default)]
    pub(super) special: bool,
}

impl AddedToken {
    /// Whether the token is searched for in normalized text.
    pub(super) fn is_normalized(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }
}

/// The model of `tokenizer.json`, with the fields of the implemented kind.
#[derive(Debug, Deserialize)]
pub(super) struct Model<'a> {
    /// Absent in old files, which hold BPE if there are merges.
    #[serde(rename = "type", default)]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) dropout: Option<f64>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    /// The same for Unigram models.
    #[serde(default)]
    pub(super) unk_id: Option<u64>,
    #[serde(default)]
    pub(super) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(borrow, default)]
    pub(super) vocab: Option<Vocab<'a>>,
    #[serde(borrow, default)]
    pub(super) merges: Vec<Rule<'a>>,
}

/// A text, borrowed from the file if it contains no escapes there.
#[derive(Debug, PartialEq)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<'a>(PhantomData<&'a str>);
        impl<'de: 'a, 'a> Visitor<'de> for TextVisitor<'a> {
            type Value = Text<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

/// Tokens with their ids.
#[derive(Debug, Default)]
pub(super) struct Vocab<'a>(pub(super) Vec<(Text<'a>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VocabVisitor<'a>(PhantomData<&'a str>);
        impl<'de: 'a, 'a> Visitor<'de> for VocabVisitor<'a> {
            type Value = Vocab<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens with their ids, or a list of tokens with their scores")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab<'a>, A::Error> {
                let mut vocab = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    vocab.push(entry);
                }
                Ok(Vocab(vocab))
            }

            // Unigram models have a list of texts with scores.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab<'a>, A::Error> {
                let mut vocab = Vec::new();
                while let Some((text, _)) = list.next_element::<(_, de::IgnoredAny)>()? {
                    let id = u32::try_from(vocab.len()).map_err(|_| de::Error::custom("more than 2^32 tokens"))?;
                    vocab.push((text, id));
                }
                Ok(Vocab(vocab))
            }
        }
        deserializer.deserialize_any(VocabVisitor(PhantomData))
    }
}

/// A merge rule: a text with a space between the symbols, or, in newer files, a pair.
#[derive(Debug)]
pub(super) enum Rule<'a> {
    Joined(Text<'a>),
    Pair(Text<'a>, Text<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Rule<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RuleVisitor<'a>(PhantomData<&'a str>);
        impl<'de: 'a, 'a> Visitor<'de> for RuleVisitor<'a> {
            type Value = Rule<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge rule: a string, or a list of two")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Rule<'a>, E> {
                Ok(Rule::Joined(Text(Cow::Borrowed(text))))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rule<'a>, E> {
                Ok(Rule::Joined(Text(Cow::Owned(text.to_owned()))))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rule<'a>, A::Error> {
                let left = list.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let right = list.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                match list.next_element::<de::IgnoredAny>()? {
                    None => Ok(Rule::Pair(left, right)),
                    Some(_) => Err(de::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(RuleVisitor(PhantomData))
    }
}

/// A token that is given by its text, with or without its properties.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Named {
    Text(String),
    Token { content: String },
}

impl Named {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Token { content: text } => text,
        }
    }
}

/// The relevant fields of `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConfigJson {
    #[serde(default)]
    pub(super) bos_token: Option<Named>,
    #[serde(default)]
    pub(super) eos_token: Option<Named>,
    #[serde(default)]
    pub(super) unk_token: Option<Named>,
    #[serde(default)]
    pub(super) pad_token: Option<Named>,
    #[serde(default)]
    pub(super) add_bos_token: Option<bool>,
    #[serde(default)]
    pub(super) add_eos_token: Option<bool>,
    /// Updated properties of added tokens, by id.
    #[serde(default)]
    pub(super) added_tokens_decoder: BTreeMap<String, AddedToken>,
    #[serde(default)]
    pub(super) chat_template: Option<TemplatesJson>,
}

/// One chat template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum TemplatesJson {
    One(String),
    Many(Vec<NamedTemplate>),
}

/// A chat template with a purpose: `default`, `tool_use`, `rag`.
#[derive(Debug, Deserialize)]
pub(super) struct NamedTemplate {
    pub(super) name: String,
    pub(super) template: String,
}

/// `generation_config.json` or `config.json`: the tokens that end an answer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EndsJson {
    #[serde(default)]
    pub(super) eos_token_id: Option<Ids>,
    /// The text part of a vision model.
    #[serde(default)]
    pub(super) text_config: Option<Box<EndsJson>>,
}

/// One id or several; negative ids mean none.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(i64),
    Many(Vec<i64>),
}
