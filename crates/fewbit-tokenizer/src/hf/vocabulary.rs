//! Converts the tokenizer of a Hugging Face repository to the form that a GGUF file has.
//!
//! GGUF identifies pre-tokenizers by name and cannot store expressions, and it orders the merges of SentencePiece
//! vocabularies by score. So the name is chosen whose splits equal those of the repository on [`PROBES`], and scores
//! are derived from the order of the rules. Then the tokenizer built from the GGUF metadata has to give the same ids as
//! the repository's own, for these texts and for the texts of all tokens. If it does not, the result is an error, and
//! no file is written.

use std::borrow::Cow;

use super::json::{Rule, TokenizerJson};
use super::{HfFiles, TEKKEN_JSON, TOKENIZER_JSON, TOKENIZER_MODEL, parse, sentencepiece};
use crate::error::TokenizerError;
use crate::normalizer::{Form, Normalization, Normalizer};
use crate::pretokenizer;
use crate::special::SpecialTokens;
use crate::spm::SPACE;
use crate::tokenizer::{BpeFamily, Family, Tokenizer, TokenizerOptions, checked_kinds, ends};
use crate::vocabulary::{TokenKind, Vocabulary};

/// Texts on which pre-tokenizers differ: contractions; runs of digits, of white space and of punctuation; letters of
/// different cases and scripts; marks; and all of them combined.
const PROBES: [&str; 30] = [
    "Hello, world! It's WE'LL they've I'M you'd don'T 'tis",
    "1 12 123 1234 12345 1234567 3.14159 1,000,000 x1y22z333",
    "a  b   c    d \t e\t\tf  \u{3000} g\u{A0}\u{A0}h ",
    "line\nline\r\nline\n\nline\n\n\nline \n line\n  \n\n   end\n",
    "   leading and trailing   ",
    "\n\n  \n",
    "camelCaseWord HTTPServer XMLHttpRequest iPhone eBay",
    "if (x[0] != y->z && !done) { return -1; } // comment/**/ https://a.b/c?d=e#f\n",
    "\t\tdef f(a, b=None):\n\t\t\treturn a*b  # 5%\n",
    "...!!! ??? --- === $100 €5 <tag attr=\"v\"> `code` ~~ ^^ ||",
    "e\u{301}te\u{301} naïve Ångström Straße ŒUVRE ﬁn",
    "Привет, Мир! Ёлка 2024",
    "γειά σου Κόσμε",
    "你好，世界！今天是2024年1月1日。",
    "こんにちは世界、カタカナとひらがな。",
    "안녕하세요 세계 여러분",
    "नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก",
    "שלום עולם مرحبا بالعالم",
    "🙂🙃👨\u{200D}👩\u{200D}👧 ❤\u{FE0F} 🇩🇪",
    "ǅ ǈ ʰ ª º ⅷ ² ½ ٣",
    "'s 'S 't'T 're'RE 'll",
    " 's a'b 'x\u{2019}s",
    "\u{0}\u{1}\u{7F}\u{AD}\u{200B}\u{FEFF}",
    "a/b/c \\n \\t /\n/ //\n!\n.\n",
    "word\u{2026}word\u{2014}word\u{2013}word\u{201C}word\u{201D}",
    "3a 3A a3 A3 _x x_ __init__ a_b-c",
    "ÀÉÎ àéî ÀéÎ aÀ Àa ßa aß",
    " \u{2028} \u{2029} \u{85} \u{B} \u{C}x",
    "",
];

fn no_form(file: &'static str, what: impl Into<String>) -> TokenizerError {
    TokenizerError::NoGgufForm { file, what: what.into() }
}

impl Vocabulary<'static> {
    /// The contents of a GGUF file with the tokenizer of a Hugging Face repository. If `options` names the
    /// pre-tokenizer, that name is used unchecked.
    ///
    /// # Errors
    /// As [`Tokenizer::from_hf`], and [`TokenizerError::NoGgufForm`] for what GGUF cannot express.
    pub fn from_hf(files: &HfFiles, options: &TokenizerOptions) -> Result<Self, TokenizerError> {
        let tokenizer = Tokenizer::from_hf(files)?;
        let (file, vocabulary) = if let Some(json) = &files.tokenizer_json {
            (TOKENIZER_JSON, from_json(json, &tokenizer, options)?)
        } else if files.tekken_json.is_some() {
            (TEKKEN_JSON, from_ranks(&tokenizer, options)?)
        } else if let Some(model) = &files.tokenizer_model {
            (TOKENIZER_MODEL, sentencepiece::vocabulary(model, files.mistral_version.as_deref(), files)?)
        } else {
            return Err(TokenizerError::NoTokenizerFile { folder: Default::default() });
        };
        if options.pre.is_none() {
            // The tokenizer as it will be read from the GGUF file.
            let gguf = Tokenizer::from_gguf(&vocabulary.to_gguf(vocabulary.tokens.len()))?;
            check(file, &tokenizer, &gguf)?;
        }
        Ok(vocabulary)
    }
}

/// The fields that all kinds of vocabulary share, from the tokenizer that was built from the files.
fn common(tokenizer: &Tokenizer) -> Result<Vocabulary<'static>, TokenizerError> {
    let text = |id: u32| match tokenizer.token_text(id) {
        Some("") | None => filler(id),
        Some(text) => text.to_owned(),
    };
    let specials = &tokenizer.specials;
    let mut vocabulary = Vocabulary {
        tokens: (0..tokenizer.n_vocab() as u32).map(text).collect(),
        kinds: tokenizer.kinds.clone(),
        bos: specials.bos,
        eos: specials.eos,
        unknown: specials.unknown,
        padding: specials.padding,
        add_bos: Some(specials.add_bos),
        add_eos: Some(specials.add_eos),
        chat_template: tokenizer.chat_template.clone(),
        tool_template: tokenizer.tool_template.clone(),
        ..Vocabulary::default()
    };
    // Tokens that a reader finds by itself need not be listed: GGUF has keys for only a few of them.
    let found = ends(&tokenizer.texts, &checked_kinds(&vocabulary)?, &[], None);
    vocabulary.end_of_generation = tokenizer.end_of_generation().filter(|id| !found.contains(id)).collect();
    Ok(vocabulary)
}

/// The text of an id that no token has.
pub(crate) fn filler(id: u32) -> String {
    format!("[PAD{id}]")
}

fn from_json(
    json: &[u8],
    tokenizer: &Tokenizer,
    options: &TokenizerOptions,
) -> Result<Vocabulary<'static>, TokenizerError> {
    let Family::Bpe(family) = &tokenizer.family else { return Err(no_form(TOKENIZER_JSON, "this model")) };
    let json: TokenizerJson<'_> = parse(TOKENIZER_JSON, json)?;
    let rules = &json.model.merges;
    if family.byte_level {
        let merges = rules.iter().map(|rule| match rule {
            Rule::Joined(rule) => Ok(rule.0.to_string()),
            Rule::Pair(left, right) if left.0.contains(' ') || right.0.contains(' ') => {
                Err(no_form(TOKENIZER_JSON, "a merge rule of symbols with spaces"))
            }
            Rule::Pair(left, right) => Ok(format!("{} {}", left.0, right.0)),
        });
        return Ok(Vocabulary {
            model: "gpt2".into(),
            pre: Some(pre_tokenizer(TOKENIZER_JSON, family, options)?),
            merges: merges.collect::<Result<Vec<_>, _>>()?.into(),
            ..common(tokenizer)?
        });
    }
    // SentencePiece merges the pair with the highest score first, so the position of the rule that produces a token
    // gives its score.
    let mut scores: Vec<Option<f32>> = vec![None; tokenizer.n_vocab()];
    for (rank, rule) in rules.iter().enumerate() {
        let token: Cow<'_, str> = match rule {
            Rule::Joined(rule) => rule.0.replacen(' ', "", 1).into(),
            Rule::Pair(left, right) => format!("{}{}", left.0, right.0).into(),
        };
        let place = tokenizer.id_of(&token).and_then(|id| scores.get_mut(id as usize));
        if let Some(place) = place.filter(|place| place.is_none()) {
            *place = Some(-(rank as f32));
        }
    }
    let last = -(rules.len() as f32);
    // For any text, a space added before it shows up in the first token.
    let first = tokenizer.encode("a", SpecialTokens::Plain).first().copied();
    let has_prefix = first.and_then(|id| tokenizer.token_text(id)).is_some_and(|text| text.starts_with(SPACE));
    Ok(Vocabulary {
        model: "llama".into(),
        // The value that every reader uses for this kind of vocabulary.
        pre: Some("default".into()),
        scores: scores.into_iter().map(|score| score.unwrap_or(last)).collect(),
        add_space_prefix: Some(has_prefix),
        ..common(tokenizer)?
    })
}

/// A vocabulary whose merges follow from the ranks of its tokens: one rule for every way to split a token into two.
fn from_ranks(tokenizer: &Tokenizer, options: &TokenizerOptions) -> Result<Vocabulary<'static>, TokenizerError> {
    let Family::Bpe(family) = &tokenizer.family else { return Err(no_form(TEKKEN_JSON, "this model")) };
    let mut merges = Vec::new();
    let mut cuts = Vec::new();
    for id in 0..tokenizer.n_vocab() as u32 {
        if tokenizer.kind(id) != Some(TokenKind::Normal) {
            continue;
        }
        let token = tokenizer.raw_bytes(id);
        cuts.clear();
        for cut in 1..token.len() {
            let (left, right) = token.split_at(cut);
            let id_of = |part| family.whole.get(&tokenizer.decoded, part);
            cuts.extend(id_of(left).zip(id_of(right)));
        }
        cuts.sort_unstable();
        for (left, right) in &cuts {
            let text = |id: u32| tokenizer.token_text(id).unwrap_or_default();
            merges.push(format!("{} {}", text(*left), text(*right)));
        }
    }
    Ok(Vocabulary {
        model: "gpt2".into(),
        pre: Some(pre_tokenizer(TEKKEN_JSON, family, options)?),
        merges: merges.into(),
        ..common(tokenizer)?
    })
}

/// The name of the pre-tokenizer that splits text as this one does.
fn pre_tokenizer(file: &'static str, family: &BpeFamily, options: &TokenizerOptions) -> Result<String, TokenizerError> {
    if let Some(pre) = &options.pre {
        return Ok(pre.clone());
    }
    let nfc = family.normalizer.steps() == [Normalization::Form(Form::Nfc)];
    if !(nfc || family.normalizer.steps().is_empty()) {
        return Err(no_form(file, "a normalizer other than NFC before bytes"));
    }
    if !family.prefix.steps().is_empty() {
        return Err(no_form(file, "a space before bytes"));
    }
    let pieces = |splitter: &crate::splitter::Splitter| -> Vec<String> {
        let mut pieces = Vec::new();
        for probe in PROBES {
            // Probes are normalized first, because texts never reach the splitter in another form.
            let probe = if nfc { normalized(probe) } else { probe.into() };
            splitter.split(&probe, &mut |piece| pieces.push(piece.to_owned()));
            pieces.push(String::new());
        }
        pieces
    };
    let ours = pieces(&family.splitter);
    let mut rows: Vec<_> =
        pretokenizer::rows().filter(|row| row.nfc == nfc && pieces(&pretokenizer::splitter(row)) == ours).collect();
    // Whether whole pieces bypass the merge rules only matters if the rules do not produce all tokens, which the check
    // of the whole vocabulary would detect.
    rows.sort_by_key(|row| row.ignore_merges != family.bpe.ignores_merges());
    let row = rows.first();
    let name = row.and_then(|row| row.names.first());
    name.map(|name| (*name).to_owned()).ok_or_else(|| {
        no_form(
            file,
            "a way to split text that has no name there (if you know one that is as good: TokenizerOptions::pre)",
        )
    })
}

fn normalized(text: &str) -> Cow<'_, str> {
    Normalizer::new(vec![Normalization::Form(Form::Nfc)]).apply(text, false)
}

/// Returns an error unless both give the same ids.
fn check(file: &'static str, theirs: &Tokenizer, gguf: &Tokenizer) -> Result<(), TokenizerError> {
    let differ = |text: &str| {
        let same = theirs.encode(text, SpecialTokens::Plain) == gguf.encode(text, SpecialTokens::Plain);
        if same { Ok(()) } else { Err(no_form(file, format!("what becomes of {text:?}"))) }
    };
    PROBES.into_iter().try_for_each(differ)?;
    // The texts of all tokens, some at a time.
    let mut text = String::new();
    for id in 0..theirs.n_vocab() as u32 {
        if theirs.kind(id) == Some(TokenKind::Normal) {
            text.push_str(&String::from_utf8_lossy(theirs.token_bytes(id)));
            text.push_str(if id % 2 == 0 { " " } else { "" });
        }
        if text.len() > 1 << 10 {
            differ(&text)?;
            text.clear();
        }
    }
    differ(&text)
}
