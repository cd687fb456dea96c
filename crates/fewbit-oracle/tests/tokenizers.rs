//! Tokenizers against Hugging Face's library.
//!
//! What fewbit reads with its own tokenizer is compared with that library on 10,000 strings, for the real vocabulary of
//! SmolLM2 under the published expressions of several families, and for BPE over characters with bytes for what the
//! vocabulary lacks. What fewbit leaves to that library (feature `tokenizers`) is compared with the ids that its Python
//! package gave (`data/tokenizers/make.py`).

use std::collections::HashMap;
use std::path::PathBuf;

use fewbit::expert::format::GgufFile;
use fewbit::expert::tokenizer::{
    ChatTemplate, HfFiles, Message, SpecialTokens, TemplateInput, TokenKind, Tokenizer, Vocabulary, encode_rendered,
};
use serde_json::{Value, json};

use SpecialTokens::{Parse, Plain};

const N_TEXTS: usize = 10_000;

fn model_file() -> PathBuf {
    let name = std::env::var("FEWBIT_TEST_SMOLLM2").unwrap_or_else(|_| "smollm2-135m-instruct".to_owned());
    fewbit::resolve(&name, &|_: &fewbit::hub::Event<'_>| {}).expect("the model is fetched by README's first command")
}

fn files(json: &str) -> HfFiles {
    let mut files = HfFiles::default();
    files.tokenizer_json = Some(json.into());
    files
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % n
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const SPACES: [&str; 12] =
    [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u{A0}", "\u{3000}", "\u{2009}", "\u{85}", "\u{2028}", "\u{B}"];
const WORDS: [&str; 43] = [
    "the",
    "of",
    "and",
    "I'm",
    "you're",
    "we'll",
    "HELLO'S",
    "don't",
    "it's",
    "He'd",
    "they'Ve",
    "'s",
    "'T",
    "naïve",
    "Straße",
    "ſtraße",
    "CamelCase",
    "snake_case",
    "x1",
    "123",
    "1234567",
    "3.14",
    "½",
    "Ⅷ",
    "٣٤",
    "你好",
    "世界",
    "こんにちは",
    "안녕",
    "привет",
    "мир",
    "שלום",
    "नमस्ते",
    "ไทย",
    "e\u{301}",
    "a\u{308}\u{323}",
    "ﬁ",
    "🙂",
    "👩\u{200D}👩\u{200D}👧",
    "🇨🇭",
    "<|im_end|>",
    "<|endoftext|>",
    "▁",
];
/// Ranges of characters that the tables of both libraries know.
const SCRIPTS: [(u32, u32); 9] = [
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x391, 0x3A1),
    (0x410, 0x450),
    (0x5D0, 0x5EA),
    (0x905, 0x939),
    (0x3041, 0x3096),
    (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A3),
];

fn text(random: &mut Random, prose: &str) -> String {
    let n = [1, 2, 3, 5, 8, 13, 30][random.below(7)];
    let mut out = String::new();
    match random.below(5) {
        0 => {
            for _ in 0..n {
                let (low, high) = SCRIPTS[random.below(SCRIPTS.len())];
                out.extend(char::from_u32(low + random.below((high - low) as usize) as u32));
            }
        }
        1 => (0..n).for_each(|_| {
            out.push_str(if random.below(3) > 0 { random.pick(&SPACES) } else { random.pick(&["a", "1", "."]) })
        }),
        2 | 3 => {
            for _ in 0..n {
                out.push_str(random.pick(&WORDS));
                let space = random.pick(&SPACES);
                out.push_str(random.pick(&["", " ", "", " ", space]));
            }
        }
        _ => {
            let start = prose.floor_char_boundary(random.below(prose.len()));
            let end = prose.floor_char_boundary((start + random.below(200)).min(prose.len()));
            out.push_str(&prose[start..end.max(start)]);
        }
    }
    out
}

/// Compares both on random texts: ids with and without special tokens, and the text of the ids.
fn compare(name: &str, json: &Value) {
    let json = json.to_string();
    let ours = Tokenizer::from_hf(&files(&json)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
    let prose = include_str!("../../../tests/data/prose.txt");
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let texts: Vec<String> = (0..N_TEXTS).map(|_| text(&mut random, prose)).collect();
    for special in [Parse, Plain] {
        theirs.set_encode_special_tokens(special == Plain);
        for text in &texts {
            let expected = theirs.encode_fast(text.as_str(), false).expect("encodes");
            let ids = ours.encode(text, special);
            assert_eq!(ids, expected.get_ids(), "{name}, {special:?}: {text:?}");
            let decoded = theirs.decode(&ids, true).expect("decodes");
            assert_eq!(ours.decode(&ids), decoded, "{name}: {text:?}");
        }
    }
}

/// SmolLM2's vocabulary as a `tokenizer.json` that splits by expressions.
fn byte_level(vocabulary: &Vocabulary<'_>, expressions: &[&str], normalizer: Value) -> Value {
    let mut steps: Vec<Value> = expressions
        .iter()
        .map(|regex| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}));
    let control = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate();
    let control = control.filter(|(_, (_, kind))| **kind == TokenKind::Control);
    json!({
        "added_tokens": control.map(|(id, (text, _))| added(id, text)).collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {
            "type": "BPE",
            "vocab": vocabulary.tokens.iter().cloned().zip(0..).collect::<HashMap<_, u32>>(),
            "merges": vocabulary.merges
        }
    })
}

fn added(id: usize, text: &str) -> Value {
    json!({"id": id, "content": text, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false})
}

#[test]
fn byte_level_bpe_matches_the_library_for_seven_families() {
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const DEEPSEEK3: [&str; 3] = [
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
    ];
    let file = GgufFile::open(&model_file()).expect("a model");
    let vocabulary = Vocabulary::from_gguf(file.metadata()).expect("a vocabulary");
    let nfc = json!({"type": "NFC"});
    for (name, expressions, normalizer) in [
        ("smollm", &[r"\p{N}", GPT2][..], Value::Null),
        ("gpt-2", &[GPT2], Value::Null),
        ("llama-3", &[LLAMA3], Value::Null),
        ("qwen2", &[QWEN2], nfc),
        ("tekken", &[TEKKEN], Value::Null),
        ("deepseek-v3", &DEEPSEEK3, Value::Null),
        ("falcon", &[r"[\p{P}$+<=>^~|`]+", GPT2, r"[0-9][0-9][0-9]"], Value::Null),
    ] {
        compare(name, &byte_level(&vocabulary, expressions, normalizer));
    }
}

#[test]
fn character_bpe_of_llama_and_mistral_matches_the_library() {
    let file = GgufFile::open(&model_file()).expect("a model");
    let vocabulary = Vocabulary::from_gguf(file.metadata()).expect("a vocabulary");
    // SmolLM2's rules between ASCII letters, with spaces as SentencePiece writes them.
    let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(('!'..='~').map(String::from).chain(["▁".to_owned(), "é".to_owned(), "世".to_owned()]));
    let mut known: std::collections::HashSet<String> = tokens.iter().cloned().collect();
    let mut merges = Vec::new();
    for rule in vocabulary.merges.iter().filter(|rule| rule.trim_start_matches('Ġ').is_ascii()) {
        let rule = rule.replace('Ġ', "▁");
        let (left, right) = rule.split_once(' ').expect("two symbols");
        if known.contains(left) && known.contains(right) {
            merges.push(rule.clone());
            if known.insert(format!("{left}{right}")) {
                tokens.push(format!("{left}{right}"));
            }
        }
    }
    assert!(merges.len() > 10_000, "{}", merges.len());
    let strip = json!([
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]);
    let prepend = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    for (name, normalizer, pre_tokenizer) in
        [("Prepend", prepend, Value::Null), ("Metaspace, first", Value::Null, metaspace)]
    {
        let json = json!({
            "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": {"type": "Sequence", "decoders": strip},
            "model": {
                "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "merges": merges,
                "vocab": tokens.iter().cloned().zip(0..).collect::<HashMap<_, u32>>(),
            }
        });
        compare(name, &json);
    }
}

const EXPECTED: &str = include_str!("data/tokenizers/expected.json");
const TOKENIZERS: [(&str, &str); 5] = [
    ("bert", include_str!("data/tokenizers/bert.json")),
    ("lower_case_bytes", include_str!("data/tokenizers/lower_case_bytes.json")),
    ("unigram", include_str!("data/tokenizers/unigram.json")),
    ("unigram_bytes", include_str!("data/tokenizers/unigram_bytes.json")),
    ("words", include_str!("data/tokenizers/words.json")),
];

fn load(name: &str) -> Tokenizer {
    let (_, json) = TOKENIZERS.iter().find(|(made, _)| *made == name).expect("one of them");
    Tokenizer::from_hf(&files(json)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("ids")
}

#[test]
fn models_run_by_the_library_give_its_ids() {
    let expected: Value = serde_json::from_str(EXPECTED).expect("JSON");
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).expect("texts");
    for (name, _) in TOKENIZERS {
        let tokenizer = load(name);
        let rows = expected["tokenizers"][name]["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), texts.len());
        for (text, row) in texts.iter().zip(rows) {
            let parsed = tokenizer.encode(text, Parse);
            assert_eq!(parsed, ids(&row[0]), "{name}: {text:?}");
            // Token by token, as a stream is.
            let mut decoder = tokenizer.decoder();
            let pieces: String = parsed.iter().map(|&id| decoder.push(&tokenizer, id)).collect();
            assert_eq!(Some(&*(pieces + &decoder.finish())), row[2].as_str(), "{name}: {text:?}");
            // Where the library's own model makes control tokens of plain text, this one does not.
            let plain = tokenizer.encode(text, Plain);
            assert!(plain.iter().all(|&id| !tokenizer.is_control(id)), "{name}: {text:?}");
            if ids(&row[1]).iter().all(|&id| !tokenizer.is_control(id)) {
                assert_eq!(plain, ids(&row[1]), "{name}: {text:?}");
            }
        }
    }
    assert!((load("bert").add_bos(), load("bert").bos(), load("bert").eos()) == (true, Some(2), Some(3)));
    assert!((load("unigram").add_bos(), load("unigram").add_eos()) == (true, true));
    assert!((load("words").add_bos(), load("words").eos()) == (false, None));
}

#[test]
fn chat_content_never_becomes_control_tokens() {
    for (name, end) in [("unigram", "</s>"), ("unigram_bytes", "</s>"), ("words", "</s>"), ("bert", "[SEP]")] {
        let tokenizer = load(name);
        let template = ChatTemplate::new(&format!("{{{{ messages[0].content }}}} {end}"), &tokenizer).expect("valid");
        let user = format!("a {end} b {end}");
        let prompt = template.render(&TemplateInput::new(&[Message::user(&user)])).expect("renders");
        let ids = encode_rendered(&tokenizer, &prompt);
        let end = tokenizer.id_of(end).expect("a token");
        assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1, "{name}: {ids:?}");
        assert_eq!(ids.last(), Some(&end), "{name}: {ids:?}");
        // Nor does a text with the names that control tokens have in the model's vocabulary.
        let hidden = tokenizer.encode(&format!("\u{10FFFF}{end} \u{10FFFF}1"), Plain);
        assert!(hidden.iter().all(|&id| !tokenizer.is_control(id)), "{name}: {hidden:?}");
    }
    // Nor where the vocabulary has its text twice.
    let (_, json) = TOKENIZERS.iter().find(|(name, _)| *name == "unigram").expect("one of them");
    let mut json: Value = serde_json::from_str(json).expect("JSON");
    json["model"]["vocab"].as_array_mut().expect("a list").push(json!(["</s>", -0.1]));
    let tokenizer = Tokenizer::from_hf(&files(&json.to_string())).expect("supported");
    let ids = tokenizer.encode("a </s> b", Plain);
    assert!(ids.iter().all(|&id| tokenizer.token_text(id) != Some("</s>")), "{ids:?}");
}

#[test]
fn damaged_files_do_not_panic() {
    let mut random = Random(7);
    let (mut n_refused, mut n_read) = (0, 0);
    for (name, json) in TOKENIZERS {
        for _ in 0..60 {
            let mut bytes = json.as_bytes().to_vec();
            for _ in 0..1 + random.below(2) {
                let at = random.below(bytes.len());
                bytes[at] = b"0\"{}[],:a\\-"[random.below(11)];
            }
            let mut files = HfFiles::default();
            files.tokenizer_json = Some(bytes);
            match Tokenizer::from_hf(&files) {
                Ok(tokenizer) => {
                    n_read += 1;
                    let ids = tokenizer.encode("The quick brown fox, </s> 123 世界", Parse);
                    tokenizer.decode(&ids);
                }
                Err(error) => {
                    n_refused += 1;
                    assert!(!error.to_string().is_empty(), "{name}");
                }
            }
        }
    }
    assert!(n_refused > 50 && n_read > 20, "{n_refused} refused, {n_read} read");
}

#[test]
fn unsupported_settings_are_rejected_by_name() {
    let refused = |name: &str, change: &dyn Fn(&mut Value)| {
        let (_, json) = TOKENIZERS.iter().find(|(made, _)| *made == name).expect("one of them");
        let mut json: Value = serde_json::from_str(json).expect("JSON");
        change(&mut json);
        Tokenizer::from_hf(&files(&json.to_string())).expect_err(name).to_string()
    };
    let error = refused("words", &|json| json["decoder"] = json!({"type": "BPEDecoder", "suffix": "</w>"}));
    assert!(error.contains("decoder BPEDecoder"), "{error}");
    let error = refused("words", &|json| {
        json["decoder"] = json!({"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true})
    });
    assert!(error.contains("CTC"), "{error}");
    let error = refused("lower_case_bytes", &|json| json["model"]["dropout"] = json!(0.1));
    assert!(error.contains("dropout"), "{error}");
    let error = refused("unigram", &|json| json["model"]["unk_id"] = Value::Null);
    assert!(error.contains("no unknown token"), "{error}");
    let error = refused("bert", &|json| json["model"]["unk_token"] = json!("[WHAT]"));
    assert!(error.contains("[WHAT]"), "{error}");
    let error = refused("unigram", &|json| json["pre_tokenizer"]["type"] = json!("Sideways"));
    assert!(error.contains("pre_tokenizer"), "{error}");
}
