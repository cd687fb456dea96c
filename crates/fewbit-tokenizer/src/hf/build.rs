//! Builds a [`Tokenizer`] from the files of a Hugging Face repository.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use super::configs::Configs;
use super::json::{AddedToken, Rule, TokenizerJson};
use super::pipeline::{self, Frame, PreTokenization, unsupported};
use super::{HfFiles, TOKENIZER_CONFIG, TOKENIZER_JSON, parse};
use crate::bpe::{BpeBuilder, BpeOptions, Lookup, split_rule};
use crate::bytes;
use crate::error::TokenizerError;
use crate::normalizer::Normalizer;
use crate::special::{self, Edges, Matcher};
use crate::splitter::Splitter;
use crate::spm::SPACE;
use crate::tables::{TextIndex, TextTable};
use crate::tokenizer::{BpeFamily, Family, Specials, Tokenizer, ends};
use crate::vocabulary::TokenKind;

/// Ids may have this many gaps in addition to as many gaps as there are tokens, because vocabularies are padded.
const MAX_HOLES: usize = 1 << 16;

/// The tokens of all files, by id.
pub(super) struct Tokens {
    pub(super) texts: Vec<String>,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) added: Vec<AddedToken>,
    /// The token for text that the model cannot express.
    pub(super) unknown: Option<u32>,
    ids: HashMap<String, u32>,
}

pub(super) fn tokenizer(json: &[u8], files: &HfFiles) -> Result<Tokenizer, TokenizerError> {
    let json: TokenizerJson<'_> = parse(TOKENIZER_JSON, json)?;
    let configs = Configs::read(files)?;
    check_model(&json)?;
    let normalizer = Normalizer::new(pipeline::normalizer(json.normalizer.as_ref())?);
    let PreTokenization { prefix, cuts, byte_level } = pipeline::pre_tokenizer(json.pre_tokenizer.as_ref())?;
    let tokens = Tokens::new(&json, &configs)?;
    let n_vocab = tokens.texts.len();

    let mut texts = TextTable::with_capacity(n_vocab);
    let mut decoded = TextTable::with_capacity(n_vocab);
    let mut is_byte_level = vec![false; n_vocab];
    for (i, (text, kind)) in tokens.texts.iter().zip(&tokens.kinds).enumerate() {
        texts.push(text.as_bytes())?;
        match kind {
            TokenKind::Byte => decoded.push(&[bytes::parse_byte_token(text).unwrap_or_default()])?,
            TokenKind::Control | TokenKind::Unknown => decoded.push(text.as_bytes())?,
            TokenKind::UserDefined if byte_level => decoded.push(text.as_bytes())?,
            _ if byte_level => match bytes::decode(text) {
                Some(bytes) => {
                    is_byte_level[i] = true;
                    decoded.push(&bytes)?;
                }
                None => decoded.push(text.as_bytes())?,
            },
            _ => decoded.push(text.replace(SPACE, " ").as_bytes())?,
        }
    }

    let specials = specials(pipeline::post_processor(json.post_processor.as_ref())?, &tokens, &configs)?;
    let kinds = &tokens.kinds;
    let stored = TextIndex::new(&texts, |id| {
        !matches!(kinds.get(id as usize), Some(TokenKind::Control | TokenKind::Unknown) | None)
    });
    let options = BpeOptions {
        byte_level,
        byte_fallback: json.model.byte_fallback && !byte_level,
        ignore_merges: json.model.ignore_merges,
        unknown: specials.unknown,
        fuse_unknown: json.model.fuse_unk,
        last_rule_wins: true,
    };
    let rules = &json.model.merges;
    let mut builder = BpeBuilder::new(Lookup { texts: &texts, index: &stored }, rules.len(), options);
    let rules = rules.iter().enumerate().map(|(index, rule)| match rule {
        Rule::Joined(rule) => split_rule(index, &rule.0),
        Rule::Pair(left, right) => Ok((&*left.0, &*right.0)),
    });
    builder.rules(&rules.collect::<Result<Vec<_>, _>>()?)?;
    let bpe = builder.build()?;

    let (matcher, normalized) = matchers(&tokens, &texts, &normalizer)?;
    let templates = configs.chat_templates(files)?;
    let family = BpeFamily {
        normalizer,
        normalized,
        prefix: Normalizer::new(prefix),
        splitter: Splitter::new(cuts),
        whole: if byte_level { TextIndex::new(&decoded, |id| is_byte_level[id as usize]) } else { stored },
        byte_level,
        whole_newlines: false,
        bpe,
    };
    Ok(Tokenizer {
        by_text: OnceLock::new(),
        matcher: Arc::new(matcher),
        drops_space: pipeline::drops_space(json.decoder.as_ref())?,
        end_of_generation: ends(&texts, &tokens.kinds, &configs.ends, specials.eos),
        texts,
        decoded,
        family: Family::Bpe(Box::new(family)),
        specials,
        add_space_prefix: false,
        strips_after: BTreeSet::new(),
        chat_template: templates.default,
        tool_template: templates.tool_use,
        kinds: tokens.kinds,
    })
}

/// Returns an error for models that are not implemented.
fn check_model(json: &TokenizerJson<'_>) -> Result<(), TokenizerError> {
    let model = &json.model;
    match model.kind.as_deref() {
        Some("BPE") => {}
        // Old files do not name the type of the model.
        None if !model.merges.is_empty() => {}
        Some(kind) => return Err(unsupported(format!("model {kind}"))),
        None => return Err(unsupported("a model without a type")),
    }
    if model.dropout.is_some_and(|rate| rate != 0.0) {
        return Err(unsupported("BPE with dropout"));
    }
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if is_set(&model.continuing_subword_prefix) {
        return Err(unsupported("BPE with continuing_subword_prefix"));
    }
    if is_set(&model.end_of_word_suffix) {
        return Err(unsupported("BPE with end_of_word_suffix"));
    }
    Ok(())
}

impl Tokens {
    pub(super) fn new(json: &TokenizerJson<'_>, configs: &Configs) -> Result<Self, TokenizerError> {
        let vocab = json.model.vocab.as_ref().map(|vocab| vocab.0.as_slice()).unwrap_or_default();
        let added = added_tokens(json, configs)?;
        let n_tokens = vocab.len() + added.len();
        let listed = vocab.iter().map(|(text, id)| (&*text.0, *id));
        let listed = listed.chain(added.iter().filter_map(|token| Some((token.content.as_str(), token.id?))));
        let mut n_vocab = 0;
        for (text, id) in listed.clone() {
            if id as usize >= n_tokens * 2 + MAX_HOLES {
                return Err(TokenizerError::SparseIds { file: TOKENIZER_JSON, text: text.to_owned(), id, n_tokens });
            }
            n_vocab = n_vocab.max(id as usize + 1);
        }
        let mut texts = vec![String::new(); n_vocab];
        let mut ids = HashMap::with_capacity(n_tokens);
        for (text, id) in listed {
            let Some(place) = texts.get_mut(id as usize) else { continue };
            if place.is_empty() {
                place.push_str(text);
            } else if place != text {
                let (text, other) = (text.to_owned(), place.clone());
                return Err(TokenizerError::DuplicateId { file: TOKENIZER_JSON, text, id, other });
            }
            ids.entry(text.to_owned()).or_insert(id);
        }
        // A gap in the ids stays empty, and no text is encoded to it.
        let mut kinds: Vec<TokenKind> = texts
            .iter()
            .map(|text| match text.is_empty() {
                true => TokenKind::Unused,
                false if json.model.byte_fallback && bytes::parse_byte_token(text).is_some() => TokenKind::Byte,
                false => TokenKind::Normal,
            })
            .collect();
        for token in &added {
            let Some(kind) = token.id.and_then(|id| kinds.get_mut(id as usize)) else { continue };
            let content = token.content.as_str();
            // A token that ends an answer is not text, whatever the file says.
            let is_end = special::ENDS.contains(&content);
            *kind = if token.special || is_end { TokenKind::Control } else { TokenKind::UserDefined };
        }
        let unknown = match (&json.model.unk_token, json.model.unk_id) {
            (Some(text), _) => Some(ids.get(text).copied().ok_or_else(|| text.clone())),
            (None, Some(id)) => Some(u32::try_from(id).map_err(|_| id.to_string())),
            (None, None) => None,
        };
        let role = if json.model.unk_token.is_some() { "unk_token" } else { "unk_id" };
        let unknown =
            unknown.transpose().map_err(|text| TokenizerError::UnknownToken { file: TOKENIZER_JSON, role, text })?;
        if let Some(id) = unknown {
            let text = id.to_string();
            *kinds.get_mut(id as usize).ok_or(TokenizerError::UnknownToken { file: TOKENIZER_JSON, role, text })? =
                TokenKind::Unknown;
        }
        Ok(Self { texts, kinds, added, unknown, ids })
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }
}

/// The added tokens of `tokenizer.json`, as `tokenizer_config.json` changes and extends them.
fn added_tokens(json: &TokenizerJson<'_>, configs: &Configs) -> Result<Vec<AddedToken>, TokenizerError> {
    let mut added = json.added_tokens.clone();
    if let Some(token) = added.iter().find(|token| token.id.is_none()) {
        let reason = format!("added token {:?} has no id", token.content);
        return Err(TokenizerError::BadFile { file: TOKENIZER_JSON, reason });
    }
    let place: HashMap<u32, usize> =
        added.iter().enumerate().filter_map(|(place, token)| Some((token.id?, place))).collect();
    for (id, token) in configs.added_tokens()? {
        let token = AddedToken { id: Some(id), ..token };
        match place.get(&id).and_then(|&place| added.get_mut(place)) {
            Some(known) if known.content == token.content => *known = token,
            Some(known) => {
                let (text, other) = (token.content, known.content.clone());
                return Err(TokenizerError::DuplicateId { file: TOKENIZER_CONFIG, text, id, other });
            }
            None => added.push(token),
        }
    }
    added.retain(|token| !token.content.is_empty());
    Ok(added)
}

pub(super) fn specials(frame: Frame, tokens: &Tokens, configs: &Configs) -> Result<Specials, TokenizerError> {
    let id = |text: Option<&str>| text.and_then(|text| tokens.id(text));
    let config = &configs.main;
    // The tokens that the post-processor adds are BOS and EOS, whether or not a file names them.
    let bos = id(configs.named(|c| c.bos_token.as_ref())).or(frame.before);
    let eos = id(configs.named(|c| c.eos_token.as_ref())).or(frame.after);
    let add_bos = config.add_bos_token.unwrap_or(frame.before.is_some());
    let add_eos = config.add_eos_token.unwrap_or(frame.after.is_some());
    for (adds, place, token) in [(add_bos, frame.before, bos), (add_eos, frame.after, eos)] {
        if adds && place.is_some() && place != token {
            return Err(unsupported("a post-processor that adds other tokens than bos_token and eos_token"));
        }
    }
    for (adds, token, role, name) in [
        (add_bos, bos, "bos_token", configs.named(|c| c.bos_token.as_ref())),
        (add_eos, eos, "eos_token", configs.named(|c| c.eos_token.as_ref())),
    ] {
        if adds && token.is_none_or(|id| id as usize >= tokens.texts.len()) {
            let text = name.unwrap_or_default().to_owned();
            return Err(TokenizerError::UnknownToken { file: TOKENIZER_CONFIG, role, text });
        }
    }
    Ok(Specials {
        bos,
        eos,
        padding: id(configs.named(|c| c.pad_token.as_ref())),
        unknown: tokens.unknown.or_else(|| id(configs.named(|c| c.unk_token.as_ref()))),
        add_bos,
        add_eos,
    })
}

/// The matchers of added tokens: for the original text and, if there are tokens that need it, for normalized text.
pub(super) fn matchers(
    tokens: &Tokens,
    texts: &TextTable,
    normalizer: &Normalizer,
) -> Result<(Matcher, Option<Matcher>), TokenizerError> {
    let mut edges = HashMap::new();
    let mut late = HashSet::new();
    for token in &tokens.added {
        let Some(id) = token.id else { continue };
        let AddedToken { lstrip, rstrip, single_word, .. } = *token;
        if lstrip || rstrip || single_word {
            edges.insert(id, Edges { lstrip, rstrip, single_word });
        }
        let is_text = tokens.kinds.get(id as usize) == Some(&TokenKind::UserDefined);
        if is_text && token.is_normalized() && normalizer.apply(&token.content, false) != token.content {
            late.insert(id);
        }
    }
    let matcher = Matcher::new(texts, &tokens.kinds, edges.clone(), |id| !late.contains(&id))?;
    if late.is_empty() {
        return Ok((matcher, None));
    }
    let mut patterns = TextTable::with_capacity(late.len());
    for (id, text) in (0u32..).zip(&tokens.texts) {
        let pattern = if late.contains(&id) { normalizer.apply(text, false) } else { Default::default() };
        patterns.push(pattern.as_bytes())?;
    }
    let normalized = Matcher::new(&patterns, &tokens.kinds, edges, |id| late.contains(&id))?;
    Ok((matcher, Some(normalized)))
}
