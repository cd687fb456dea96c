//! Prepares a model's vocabulary for the constraint engine, and compiles constraints for it.

use std::sync::{Arc, OnceLock};
use std::thread;

use fewbit_tokenizer::{SpecialTokens, Tokenizer};
use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use super::{Active, Constraint, ConstraintError, Grammar};

/// The trie numbers nodes and ids with 22 and 24 bits.
const MAX_VOCABULARY: usize = 1 << 21;

/// Longer tokens are never used in constrained text: the trie is at most 1024 levels deep.
const MAX_TOKEN_BYTES: usize = 1000;

/// The compiler recurses as deep as a grammar nests; only the used part of the stack takes memory.
const STACK_BYTES: usize = 256 << 20;

/// Compiles constraints for one model. The vocabulary is prepared for the first constraint.
#[derive(Default)]
pub(crate) struct Compiler(OnceLock<Result<Arc<ParserFactory>, ConstraintError>>);

impl Compiler {
    /// Compiles `constraint` for one text.
    pub(crate) fn start(&self, tokenizer: &Arc<Tokenizer>, constraint: &Constraint) -> Result<Active, ConstraintError> {
        constraint.check()?;
        let factory = self.0.get_or_init(|| on_large_stack(|| factory(tokenizer)).and_then(|result| result));
        let factory = factory.clone()?;
        let kind = constraint.kind();
        let matcher = on_large_stack(|| {
            let grammar = grammar(constraint)?;
            let parser = factory.create_parser_from_init_default(GrammarInit::Serialized(grammar));
            parser.map(|parser| Matcher::new(Ok(parser))).map_err(|error| classify(kind, &error.to_string()))
        })??;
        Active::new(matcher, kind)
    }
}

/// Runs code that may recurse deeply, and that may panic on unexpected input.
fn on_large_stack<R: Send>(run: impl FnOnce() -> R + Send) -> Result<R, ConstraintError> {
    let failed = |reason: &str| ConstraintError::TooComplex { reason: reason.to_owned() };
    thread::scope(|scope| {
        thread::Builder::new()
            .name("constraints".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, run)
            .map_err(|error| failed(&format!("cannot start a thread to compile it: {error}")))?
            .join()
            .map_err(|_| failed("the compiler panicked"))
    })
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, ConstraintError> {
    Ok(match &constraint.0 {
        Grammar::Json { schema, compact, any_of_one } => {
            let schema = schema.as_ref().map_err(Clone::clone)?;
            TopLevelGrammar::from_lark(super::schema::grammar(schema, *compact, *any_of_one)?)
        }
        Grammar::Regex(pattern) => TopLevelGrammar::from_regex(pattern),
        Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        Grammar::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| Value::String(text.clone()).to_string()).collect();
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
    })
}

/// Classifies an error of the compiler by its message, which is all that it returns.
fn classify(kind: &'static str, message: &str) -> ConstraintError {
    // The rest is a backtrace or the state of the parser, or the pattern with a mark below it and the reason.
    let mut lines = message.lines().map(str::trim);
    let mut reason = lines.next().unwrap_or_default().to_owned();
    if let Some(detail) = lines.find_map(|line| line.strip_prefix("error: ")) {
        reason = format!("{} {detail}", reason.trim_end_matches("regex parse error:").trim_end());
    }
    if message.contains("oneOf constraints are not supported") {
        reason = "the parts of a `oneOf` cannot be told apart: give them different types, or a required property with \
                  a different `const` in each; or use `anyOf`"
            .to_owned();
    }
    if message.contains("Unsatisfiable") || message.contains("unsatisfiable") {
        ConstraintError::Unsatisfiable { kind, reason }
    } else if ["too big", "too large", "too many", "exceeded", "fuel"].iter().any(|words| message.contains(words)) {
        ConstraintError::TooLarge { kind, reason }
    } else {
        ConstraintError::Invalid { kind, reason }
    }
}

fn factory(tokenizer: &Arc<Tokenizer>) -> Result<Arc<ParserFactory>, ConstraintError> {
    let n_vocab = tokenizer.n_vocab();
    if n_vocab > MAX_VOCABULARY {
        return Err(ConstraintError::Vocabulary { reason: format!("it has {n_vocab} tokens") });
    }
    let words: Vec<Vec<u8>> = (0..n_vocab as u32).map(|id| word(tokenizer, id)).collect();
    let ends: Vec<u32> = tokenizer.end_of_generation().collect();
    let info = TokRxInfo::new(n_vocab as u32, ends.first().copied().unwrap_or(llguidance::toktrie::INVALID_TOKEN));
    let mut trie = TokTrie::from(&info, &words);
    if ends.len() > 1 {
        trie = trie.with_eos_tokens(&ends);
    }
    // If the tokenizer puts a space before text, a part of a text cannot be encoded by itself.
    let parts: Vec<u8> =
        tokenizer.encode("a", SpecialTokens::Plain).iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
    let env: TokEnv = Arc::new(Environment { canonical: parts == b"a", tokenizer: Arc::clone(tokenizer), trie });
    let unusable = |error: &dyn std::fmt::Display| ConstraintError::Vocabulary { reason: error.to_string() };
    let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &SlicedBiasComputer::general_slices())
        .map_err(|error| unusable(&error))?;
    factory.quiet();
    // Errors are shown to users and must not contain the text so far.
    factory.limits_mut().verbose_errors = false;
    Ok(Arc::new(factory))
}

/// The bytes of a token. Special tokens begin with a byte that no text has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if bytes.len() > MAX_TOKEN_BYTES || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) {
        return Vec::new();
    }
    if bytes.is_empty() && tokenizer.is_control(id) {
        let text = tokenizer.token_text(id).unwrap_or_default();
        if text.len() <= MAX_TOKEN_BYTES {
            return [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
        }
    }
    bytes.to_vec()
}

struct Environment {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    canonical: bool,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        match std::str::from_utf8(bytes) {
            Ok(text) if self.canonical => self.tokenizer.encode(text, SpecialTokens::Plain),
            _ => self.trie.greedy_tokenize(bytes),
        }
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}
