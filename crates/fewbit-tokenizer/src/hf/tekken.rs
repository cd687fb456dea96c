//! `tekken.json`: the tokenizer of Mistral's models since Nemo.
//!
//! It is byte-level BPE as in `tiktoken`: a list of tokens by rank, without rules. Of all adjacent pairs that together
//! are a token, the one with the lowest rank merges first, so every way to split a token into two tokens is a rule with
//! the token's rank. Special tokens come first and text tokens after them: the id is the rank plus the number of
//! special tokens.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde_json::Value;

use super::configs::Configs;
use super::json::Text;
use super::{HfFiles, TEKKEN_JSON, TOKENIZER_JSON, mistral, parse, pattern};
use crate::bpe::{BpeBuilder, BpeOptions, Lookup};
use crate::bytes;
use crate::error::TokenizerError;
use crate::normalizer::Normalizer;
use crate::special::Matcher;
use crate::splitter::Splitter;
use crate::tables::{Merge, TextIndex, TextTable};
use crate::tokenizer::{BpeFamily, Family, Specials, Tokenizer, ends};
use crate::vocabulary::TokenKind;

#[derive(Deserialize)]
struct TekkenJson<'a> {
    config: Config,
    #[serde(borrow)]
    vocab: Vec<Token<'a>>,
    #[serde(default)]
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    version: String,
}

#[derive(Deserialize)]
struct Token<'a> {
    rank: usize,
    #[serde(borrow)]
    token_bytes: Text<'a>,
}

#[derive(Deserialize)]
struct Special {
    rank: usize,
    token_str: String,
}

/// Llama 3's expression, which the `tokenizer.json` of several Mistral models contains by mistake.
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// `tokenizer.json` with Llama 3's expression replaced by that of the `tekken.json` next to it; `None` if it has
/// another expression. Everything else is unchanged, because a model that was trained further may have other tokens.
pub(super) fn mended(tokenizer_json: &[u8], tekken_json: &[u8]) -> Result<Option<Vec<u8>>, TokenizerError> {
    let is_wrong = |split: &Value| split["pattern"]["Regex"].as_str() == Some(LLAMA3_PATTERN);
    let mut json: Value = parse(TOKENIZER_JSON, tokenizer_json)?;
    let pre = &mut json["pre_tokenizer"];
    let splits: Vec<&mut Value> = match pre.get("pretokenizers").is_some_and(Value::is_array) {
        true => pre["pretokenizers"].as_array_mut().into_iter().flatten().collect(),
        false => vec![pre],
    };
    let Some(split) = splits.into_iter().find(|split| is_wrong(split)) else { return Ok(None) };
    let tekken: PatternJson = parse(TEKKEN_JSON, tekken_json)?;
    split["pattern"]["Regex"] = tekken.config.pattern.into();
    Ok(Some(json.to_string().into_bytes()))
}

/// The fields of `tekken.json` that this needs.
#[derive(Deserialize)]
struct PatternJson {
    config: PatternConfig,
}

#[derive(Deserialize)]
struct PatternConfig {
    pattern: String,
}

/// The special tokens of files that do not list them (up to version 7).
const DEFAULT_SPECIAL: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

fn bad(reason: String) -> TokenizerError {
    TokenizerError::BadFile { file: TEKKEN_JSON, reason }
}

pub(super) fn tokenizer(json: &[u8], files: &HfFiles) -> Result<Tokenizer, TokenizerError> {
    let json: TekkenJson<'_> = parse(TEKKEN_JSON, json)?;
    let configs = Configs::read(files)?;
    let Config { default_vocab_size: n_vocab, default_num_special_tokens: n_special, .. } = json.config;
    let special = special_texts(&json, n_special)?;
    let n_text = n_vocab
        .checked_sub(n_special)
        .filter(|&n| n <= json.vocab.len())
        .ok_or_else(|| bad(format!("default_vocab_size is {n_vocab}, more than there are tokens")))?;

    let mut by_rank: Vec<Option<Vec<u8>>> = vec![None; n_text];
    for token in &json.vocab {
        let Some(place) = by_rank.get_mut(token.rank) else { continue };
        let text = base64(&token.token_bytes.0)
            .filter(|bytes| !bytes.is_empty())
            .ok_or_else(|| bad(format!("the token of rank {} is not base64", token.rank)))?;
        if place.replace(text).is_some() {
            return Err(bad(format!("two tokens have rank {}", token.rank)));
        }
    }
    let mut texts = TextTable::with_capacity(n_vocab);
    let mut decoded = TextTable::with_capacity(n_vocab);
    let mut kinds = Vec::with_capacity(n_vocab);
    for text in &special {
        texts.push(text.as_bytes())?;
        decoded.push(text.as_bytes())?;
        kinds.push(if text == "<unk>" { TokenKind::Unknown } else { TokenKind::Control });
    }
    let mut text = String::new();
    for (rank, token) in by_rank.into_iter().enumerate() {
        let token = token.ok_or_else(|| bad(format!("no token has rank {rank}")))?;
        text.clear();
        text.extend(token.iter().map(|&byte| bytes::char_of(byte)));
        texts.push(text.as_bytes())?;
        decoded.push(&token)?;
        kinds.push(TokenKind::Normal);
    }
    let is_text = |id: u32| id as usize >= n_special;
    let stored = TextIndex::new(&texts, is_text);
    let whole = TextIndex::new(&decoded, is_text);
    let id_of = |text: &str| special.iter().position(|s| s == text).and_then(|id| u32::try_from(id).ok());
    let unknown = id_of("<unk>");

    let options = BpeOptions { byte_level: true, ignore_merges: true, unknown, ..BpeOptions::default() };
    let mut builder = BpeBuilder::new(Lookup { texts: &texts, index: &stored }, n_text * 3, options);
    let lookup = Lookup { texts: &decoded, index: &whole };
    for id in (n_special..n_vocab).filter_map(|id| u32::try_from(id).ok()) {
        let token = decoded.get(id).unwrap_or_default();
        // Of two equal tokens, only the first is used.
        if lookup.get(token) != Some(id) {
            return Err(bad(format!("token {id} is there twice")));
        }
        for cut in 1..token.len() {
            let (left, right) = token.split_at(cut);
            if let (Some(left), Some(right)) = (lookup.get(left), lookup.get(right)) {
                builder.ranked_rule(left, right, Merge { rank: id, id });
            }
        }
    }
    let bpe = builder.build()?;
    let cut = pattern::compile(&json.config.pattern)
        .map_err(|what| TokenizerError::Unsupported { file: TEKKEN_JSON, what })?;
    let specials = Specials {
        bos: id_of("<s>"),
        eos: id_of("</s>"),
        padding: id_of("<pad>"),
        unknown,
        add_bos: configs.main.add_bos_token.unwrap_or(true),
        add_eos: configs.main.add_eos_token.unwrap_or(false),
    };
    for (adds, token, role) in
        [(specials.add_bos, specials.bos, "bos_token"), (specials.add_eos, specials.eos, "eos_token")]
    {
        if adds && token.is_none() {
            return Err(TokenizerError::UnknownToken { file: TEKKEN_JSON, role, text: String::new() });
        }
    }
    let templates = configs.chat_templates(files)?;
    Ok(Tokenizer {
        by_text: OnceLock::new(),
        matcher: Arc::new(Matcher::new(&texts, &kinds, HashMap::new(), |_| true)?),
        drops_space: false,
        end_of_generation: ends(&texts, &kinds, &configs.ends, specials.eos),
        texts,
        decoded,
        family: Family::Bpe(Box::new(BpeFamily {
            normalizer: Normalizer::default(),
            normalized: None,
            prefix: Normalizer::default(),
            splitter: Splitter::new(vec![cut]),
            whole,
            byte_level: true,
            whole_newlines: false,
            bpe,
        })),
        specials,
        add_space_prefix: false,
        strips_after: BTreeSet::new(),
        tool_template: templates.tool_use,
        chat_template: templates.default.or_else(|| mistral::template(&json.config.version)),
        kinds,
    })
}

/// The text of each special token, fillers included.
fn special_texts(json: &TekkenJson<'_>, n_special: usize) -> Result<Vec<String>, TokenizerError> {
    // Every special token is listed or is a filler; no file has more fillers than text tokens.
    if n_special > json.vocab.len() {
        return Err(bad(format!("default_num_special_tokens is {n_special}, more than there are tokens")));
    }
    let mut texts = vec![None; n_special];
    let listed: Vec<(usize, &str)> = match &json.special_tokens {
        Some(list) => list.iter().map(|special| (special.rank, special.token_str.as_str())).collect(),
        None => DEFAULT_SPECIAL.iter().copied().enumerate().collect(),
    };
    for (rank, text) in listed {
        let place: &mut Option<String> = texts
            .get_mut(rank)
            .ok_or_else(|| bad(format!("special token {text:?} has rank {rank}, but there are {n_special}")))?;
        if place.replace(text.to_owned()).is_some() {
            return Err(bad(format!("two special tokens have rank {rank}")));
        }
    }
    let filler = |(rank, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("<SPECIAL_{rank}>"));
    Ok(texts.into_iter().enumerate().map(filler).collect())
}

/// Decodes base64 (with padding).
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut n_bits) = (0u32, 0u32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            out.push((bits >> n_bits) as u8);
        }
        bits &= (1 << n_bits) - 1;
    }
    (bits == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_strictly() {
        for (text, bytes) in
            [("", &b""[..]), ("AA==", b"\0"), ("ICA=", b"  "), ("ZXI=", b"er"), ("/+8A", b"\xFF\xEF\0")]
        {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["A", "AA", "AA=", "A===", "AB==", "A A=", "é==="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }
}
