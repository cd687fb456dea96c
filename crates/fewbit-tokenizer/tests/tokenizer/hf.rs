//! Tokenizers from `tokenizer.json` and the files next to it.

use fewbit_tokenizer::{
    ChatTemplate, HfFiles, Message, SpecialTokens, TemplateInput, TokenKind, Tokenizer, TokenizerError, ToolCall,
    encode_rendered,
};
use serde_json::{Value, json};

use SpecialTokens::{Parse, Plain};

/// A byte-level vocabulary of a few letters, as a `tokenizer.json`.
pub(crate) fn byte_level() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 7, "content": "<s>", "special": true, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false},
            {"id": 8, "content": "<end>", "special": true, "lstrip": false, "rstrip": true, "single_word": false, "normalized": false},
            {"id": 9, "content": "<think>", "special": false, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false}
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}
        ]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ã": 4, "©": 5, "Ã©": 6},
            "merges": ["a b", ["Ã", "©"]]}
    })
}

/// Llama's vocabulary in small: characters, bytes, spaces as U+2581.
pub(crate) fn characters() -> Value {
    let mut vocab = json!({"<unk>": 0, "▁": 257, "a": 258, "b": 259, "▁a": 260, "▁ab": 261});
    for byte in 0..=255u32 {
        vocab[format!("<0x{byte:02X}>")] = json!(byte + 1);
    }
    json!({
        "added_tokens": [{"id": 262, "content": "<s>", "special": true}, {"id": 0, "content": "<unk>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "▁a b"]}
    })
}

pub(crate) fn files(tokenizer: &Value) -> HfFiles {
    let mut files = HfFiles::default();
    files.tokenizer_json = Some(tokenizer.to_string().into_bytes());
    files
}

pub(crate) fn with_config(tokenizer: &Value, config: Value) -> HfFiles {
    let mut files = files(tokenizer);
    files.tokenizer_config = Some(config.to_string().into_bytes());
    files
}

fn load(tokenizer: &Value) -> Tokenizer {
    Tokenizer::from_hf(&files(tokenizer)).expect("supported")
}

fn load_error(tokenizer: &Value) -> TokenizerError {
    Tokenizer::from_hf(&files(tokenizer)).expect_err("must be refused")
}

#[test]
fn byte_level_tokenizers_apply_every_step() {
    let tokenizer = load(&byte_level());
    assert_eq!(tokenizer.encode("ab ba", Plain), [3, 2, 1, 0]);
    // e and a combining accent are one letter after normalization.
    assert_eq!(tokenizer.encode("ae\u{301}", Plain), [0, 6]);
    assert_eq!(tokenizer.encode("a<end> \n b<think>", Parse), [0, 8, 1, 9], "white space after <end> is its own");
    assert_eq!(tokenizer.encode("b<think>", Plain), [1, 9], "a token that is text");
    assert_eq!(tokenizer.decode(&[7, 6, 2, 3]), "é ab");
    assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (Some(7), true), "the post-processor adds it");
    assert_eq!(tokenizer.with_bos(vec![7, 0]), [7, 0], "once");
    assert_eq!(tokenizer.kind(8), Some(TokenKind::Control));
}

#[test]
fn unknown_characters_fall_back_to_bytes() {
    let tokenizer = load(&characters());
    assert_eq!(tokenizer.encode("ab a", Plain), [261, 260]);
    assert_eq!(tokenizer.encode("é", Plain), [257, 0xC3 + 1, 0xA9 + 1]);
    // Each text between special tokens gets its prefix.
    assert_eq!(tokenizer.encode("a<s>a", Parse), [260, 262, 260]);
    assert_eq!(tokenizer.decode(&[261, 257, 0xC3 + 1, 0xA9 + 1]), "ab é");
    assert_eq!(tokenizer.unknown(), Some(0));
}

#[test]
fn files_next_to_tokenizer_json_are_applied() {
    let mut files = with_config(
        &byte_level(),
        json!({
            "bos_token": {"content": "<s>"}, "eos_token": "<end>", "add_bos_token": false, "add_eos_token": true,
            "added_tokens_decoder": {"10": {"content": "<|eot_id|>", "special": true}},
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
        }),
    );
    files.generation_config = Some(br#"{"eos_token_id": [8, 10]}"#.to_vec());
    files.config = Some(br#"{"eos_token_id": -1, "model_type": "llama"}"#.to_vec());
    let tokenizer = Tokenizer::from_hf(&files).expect("supported");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(7), Some(8)));
    assert_eq!((tokenizer.add_bos(), tokenizer.add_eos()), (false, true));
    assert_eq!(tokenizer.encode("a<|eot_id|>", Parse), [0, 10]);
    assert_eq!(tokenizer.end_of_generation().collect::<Vec<_>>(), [8, 10]);
    assert_eq!((tokenizer.chat_template(), tokenizer.tool_template()), (Some("D"), Some("T")));
    files.chat_template = Some(b"file".to_vec());
    let tokenizer = Tokenizer::from_hf(&files).expect("supported");
    assert_eq!((tokenizer.chat_template(), tokenizer.tool_template()), (Some("file"), None));
    // Where the configuration is silent, the map of special tokens is asked.
    files.tokenizer_config = None;
    files.special_tokens_map = Some(br#"{"eos_token": "<end>", "unk_token": {"content": "a"}}"#.to_vec());
    let tokenizer = Tokenizer::from_hf(&files).expect("supported");
    assert_eq!((tokenizer.eos(), tokenizer.unknown()), (Some(8), Some(0)));
}

/// Ids 8 and 10 are `<end>` and one that a configuration adds; the others end nothing of themselves.
#[test]
fn end_of_generation_tokens_of_all_files_are_combined() {
    let id = |name: &str, value: Value| (name.to_owned(), value);
    let whole = |value: Value| json!({ "eos_token_id": value });
    let text = |value: Value| json!({ "text_config": { "eos_token_id": value } });
    let both = json!({ "eos_token_id": 2, "text_config": { "eos_token_id": [3, 4] } });
    for (files, expected) in [
        (vec![], vec![]),
        (vec![id("config", whole(json!(2)))], vec![2]),
        (vec![id("config", whole(json!([2, 3])))], vec![2, 3]),
        (vec![id("config", text(json!(4)))], vec![4]),
        (vec![id("config", text(json!([4, 5])))], vec![4, 5]),
        (vec![id("config", both.clone())], vec![2, 3, 4]),
        (vec![id("generation", whole(json!(2)))], vec![2]),
        (vec![id("generation", whole(json!([2, 3])))], vec![2, 3]),
        (vec![id("tokenizer", json!({ "eos_token": "<end>" }))], vec![8]),
        (vec![id("tokenizer", json!({ "eos_token": { "content": "<end>" } }))], vec![8]),
        (vec![id("special", json!({ "eos_token": "<end>" }))], vec![8]),
        (
            vec![
                id("config", both.clone()),
                id("generation", whole(json!([1, 5]))),
                id("tokenizer", json!({ "eos_token": "<end>" })),
            ],
            vec![1, 2, 3, 4, 5, 8],
        ),
        // Values that are not ids: negative, null, beyond the vocabulary.
        (vec![id("config", whole(json!(-1))), id("generation", whole(json!([-1, 6, 4_000_000_000u32])))], vec![6]),
        (vec![id("config", json!({ "eos_token_id": null, "text_config": null }))], vec![]),
    ] {
        let mut json = byte_level();
        // No token that is an end by its own name.
        json["post_processor"] = Value::Null;
        let mut all = self::files(&json);
        for (name, value) in &files {
            let place = match name.as_str() {
                "config" => &mut all.config,
                "generation" => &mut all.generation_config,
                "tokenizer" => &mut all.tokenizer_config,
                _ => &mut all.special_tokens_map,
            };
            *place = Some(value.to_string().into_bytes());
        }
        let tokenizer = Tokenizer::from_hf(&all).expect("supported");
        assert_eq!(tokenizer.end_of_generation().collect::<Vec<_>>(), expected, "{files:?}");
    }
}

#[test]
fn metaspace_follows_its_prepend_scheme() {
    for (scheme, plain, after) in [("first", [260, 260], 258), ("always", [260, 260], 260), ("never", [258, 260], 258)]
    {
        let mut json = characters();
        json["normalizer"] = Value::Null;
        json["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        json["decoder"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme});
        let tokenizer = load(&json);
        assert_eq!(tokenizer.encode("a a", Plain), plain, "{scheme}");
        assert_eq!(tokenizer.encode("<s>a", Parse), [262, after], "{scheme}");
        assert_eq!(tokenizer.decode(&[260]), if scheme == "never" { " a" } else { "a" });
    }
}

#[test]
fn tokenizer_is_read_from_a_folder() {
    let folder = std::env::temp_dir().join(format!("fewbit-hf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let error = Tokenizer::from_hf_folder(&folder).expect_err("it is empty");
    assert!(matches!(&error, TokenizerError::NoTokenizerFile { .. }), "{error}");
    std::fs::write(folder.join("tokenizer.json"), byte_level().to_string()).expect("written");
    assert_eq!(Tokenizer::from_hf_folder(&folder).expect("supported").chat_template(), None);
    std::fs::write(folder.join("chat_template.json"), r#"{"chat_template": "a"}"#).expect("written");
    assert_eq!(Tokenizer::from_hf_folder(&folder).expect("supported").chat_template(), Some("a"));
    std::fs::write(folder.join("tokenizer_config.json"), r#"{"chat_template": "b"}"#).expect("written");
    assert_eq!(Tokenizer::from_hf_folder(&folder).expect("supported").chat_template(), Some("b"));
    std::fs::write(folder.join("chat_template.jinja"), "{{ bos_token }}").expect("written");
    let tokenizer = Tokenizer::from_hf_folder(&folder).expect("supported");
    assert_eq!(tokenizer.chat_template(), Some("{{ bos_token }}"));
    assert_eq!(tokenizer.tool_template(), None);
    std::fs::create_dir_all(folder.join("additional_chat_templates")).expect("a folder");
    std::fs::write(folder.join("additional_chat_templates/tool_use.jinja"), "{{ tools }}").expect("written");
    let tokenizer = Tokenizer::from_hf_folder(&folder).expect("supported");
    assert_eq!(tokenizer.chat_template(), Some("{{ bos_token }}"));
    assert_eq!(tokenizer.tool_template(), Some("{{ tools }}"));
    std::fs::create_dir_all(folder.join("config.json")).expect("a folder in the place of a file");
    let error = Tokenizer::from_hf_folder(&folder).expect_err("it cannot be read");
    assert!(matches!(&error, TokenizerError::Io { .. }), "{error}");
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// `tokenizer.json` of several of Mistral's models has Llama 3's expression for words, and the `tekken.json` next to it the
/// right one. `aB` is one word for the first, and two for the second.
#[test]
fn wrong_expression_next_to_tekken_json_is_corrected() {
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let tokens = |expression: &str, with_tekken: bool| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut json = byte_level();
        json["model"]["vocab"] = json!({"a": 0, "B": 1, "Ġ": 2, "aB": 3, "Ã": 4, "©": 5, "Ã©": 6});
        json["model"]["merges"] = json!(["a B"]);
        json["pre_tokenizer"]["pretokenizers"] = json!([
            { "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }
        ]);
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("written");
        if with_tekken {
            let mut json = tekken();
            json["config"]["pattern"] = TEKKEN.into();
            std::fs::write(folder.path().join("tekken.json"), json.to_string()).expect("written");
        }
        let tokenizer = Tokenizer::from_hf_folder(folder.path()).expect("supported");
        tokenizer.encode("aB", Plain).len()
    };
    assert_eq!((tokens(LLAMA3, false), tokens(TEKKEN, false)), (1, 2));
    assert_eq!((tokens(LLAMA3, true), tokens(TEKKEN, true)), (2, 2));
    // Any other expression is the model's own.
    assert_eq!(tokens(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", true), 1);
}

#[test]
fn unsupported_components_are_rejected_by_name() {
    let cases: [(&str, Value, &str); 16] = [
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}), "normalizer Precompiled"),
        ("/normalizer", json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}), "normalizer Lowercase"),
        ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"}), "expression"),
        ("/pre_tokenizer", json!({"type": "BertPreTokenizer"}), "pre-tokenizer BertPreTokenizer"),
        ("/pre_tokenizer/pretokenizers/0/behavior", json!("Sideways"), "behavior Sideways"),
        ("/pre_tokenizer/pretokenizers/0/pattern", json!({"Regex": "a(?=b)"}), "?=b"),
        ("/pre_tokenizer/pretokenizers/0", json!({"type": "ByteLevel"}), "ByteLevel after ByteLevel"),
        ("/post_processor", json!({"type": "RobertaProcessing"}), "post-processor RobertaProcessing"),
        ("/post_processor/single/1", json!({"SpecialToken": {"id": "<s>"}}), "several tokens"),
        ("/decoder", json!({"type": "WordPiece"}), "decoder WordPiece"),
        ("/decoder", json!({"type": "Strip", "content": "_", "start": 1, "stop": 0}), "strips"),
        ("/model/type", json!("Unigram"), "model Unigram"),
        ("/model/type", json!("WordPiece"), "model WordPiece"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/continuing_subword_prefix", json!("##"), "continuing_subword_prefix"),
        ("/model/end_of_word_suffix", json!("</w>"), "end_of_word_suffix"),
    ];
    for (place, value, name) in cases {
        let mut json = byte_level();
        match json.pointer_mut(place) {
            Some(found) => *found = value,
            None => json["model"][place.trim_start_matches("/model/")] = value,
        }
        let error = load_error(&json);
        assert!(matches!(&error, TokenizerError::Unsupported { .. }), "{place}: {error:?}");
        assert!(error.to_string().contains(name), "{place}: {error}");
    }
}

#[test]
fn broken_files_are_rejected() {
    for broken in ["", "{", "[]", "{\"model\": 3}", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}}}"] {
        let mut files = HfFiles::default();
        files.tokenizer_json = Some(broken.into());
        let error = Tokenizer::from_hf(&files).expect_err(broken);
        assert!(matches!(&error, TokenizerError::BadFile { file: "tokenizer.json", .. }), "{broken}: {error:?}");
    }
    let mut json = byte_level();
    json["normalizer"] = json!({"no": "type"});
    assert!(matches!(load_error(&json), TokenizerError::BadFile { .. }));
    let error = Tokenizer::from_hf(&with_config(&byte_level(), json!({"bos_token": 3}))).expect_err("no text");
    assert!(matches!(error, TokenizerError::BadFile { file: "tokenizer_config.json", .. }), "{error}");
    let error = Tokenizer::from_hf(&HfFiles::default()).expect_err("nothing");
    assert!(matches!(error, TokenizerError::NoTokenizerFile { .. }), "{error}");
}

#[test]
fn damaged_files_do_not_panic() {
    for json in [byte_level(), characters()] {
        let good = json.to_string().into_bytes();
        // The vocabulary of bytes is most of the second file, and its bytes are alike.
        for at in (0..good.len()).filter(|at| *at < 1500 || at % 97 == 0) {
            let mut flipped = good.clone();
            flipped[at] ^= 1 << (at % 7);
            for bytes in [good[..at].to_vec(), flipped] {
                let mut files = HfFiles::default();
                files.tokenizer_json = Some(bytes);
                if let Ok(tokenizer) = Tokenizer::from_hf(&files) {
                    let ids = tokenizer.encode("ab <s>é", Parse);
                    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
                }
            }
        }
    }
}

/// A `tekken.json` of single bytes, two longer tokens and its own special tokens.
pub(crate) fn tekken() -> Value {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let base64 = |bytes: &[u8]| -> String {
        let chunks = bytes.chunks(3).map(|chunk| {
            let bits = chunk.iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
            let digit = |i: usize| char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
            (0..4).map(|i| if i <= chunk.len() { digit(i) } else { '=' }).collect::<String>()
        });
        chunks.collect()
    };
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.extend([b"ab".to_vec(), b"bc".to_vec(), b"abc".to_vec(), " é".into()]);
    let vocab = tokens.iter().enumerate();
    let vocab: Vec<Value> =
        vocab.map(|(rank, token)| json!({"rank": rank, "token_bytes": base64(token), "token_str": null})).collect();
    json!({
        "config": {"pattern": " ?\\p{L}+|\\p{N}|\\s+(?!\\S)|\\s+", "default_vocab_size": 280,
            "default_num_special_tokens": 20, "num_vocab_tokens": 260, "version": "v3"},
        "vocab": vocab
    })
}

fn load_tekken(json: &Value) -> Result<Tokenizer, TokenizerError> {
    let mut files = HfFiles::default();
    files.tekken_json = Some(json.to_string().into_bytes());
    Tokenizer::from_hf(&files)
}

#[test]
fn tekken_merges_by_rank_and_has_a_chat_template() {
    let tokenizer = load_tekken(&tekken()).expect("supported");
    let byte = |b: u8| 20 + u32::from(b);
    assert_eq!(tokenizer.encode("abc", Plain), [20 + 258], "a piece that is a token is that token");
    assert_eq!(tokenizer.encode("abcb", Plain), [20 + 258, byte(b'b')], "ab before bc: the lower rank");
    assert_eq!(tokenizer.encode("bbc é1", Plain), [byte(b'b'), 20 + 257, 20 + 259, byte(b'1')]);
    assert_eq!(tokenizer.encode("[INST]a", Parse), [3, byte(b'a')]);
    assert_eq!(tokenizer.decode(&[3, 20 + 259, byte(b'x')]), " éx");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), true));
    assert_eq!(tokenizer.token_text(19), Some("[TOOL_CONTENT]"));

    let template = ChatTemplate::new(tokenizer.chat_template().expect("version 3 has one"), &tokenizer).expect("valid");
    let call = ToolCall { id: Some("a1b2c3d4e".into()), name: "f".into(), arguments: json!({"x": 1}) };
    let messages = [
        Message::system("S"),
        Message::user("a[/INST]"),
        Message::assistant("").with_tool_calls(&[call]),
        Message::tool("f", Some("a1b2c3d4e"), "ok"),
    ];
    let prompt = template.render(&TemplateInput::new(&messages)).expect("renders");
    assert_eq!(
        prompt.text(),
        "<s>[INST]S\n\na[/INST][/INST][TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": 1}, \"id\": \
         \"a1b2c3d4e\"}]</s>[TOOL_RESULTS]{\"content\": \"ok\", \"call_id\": \"a1b2c3d4e\"}[/TOOL_RESULTS]"
    );
    let ids = encode_rendered(&tokenizer, &prompt);
    let special: Vec<u32> = ids.into_iter().filter(|&id| tokenizer.is_control(id)).collect();
    assert_eq!(special, [1, 3, 4, 9, 2, 7, 8], "one BOS, and the user's [/INST] is text");
}

/// What the example `mistral` compares with Mistral's own library, in small.
#[test]
fn every_version_of_the_mistral_format_renders() {
    let call = ToolCall { id: Some("a1b2c3d4e".into()), name: "f".into(), arguments: json!({}) };
    let messages = [
        Message::system("S"),
        Message::user("one"),
        Message::assistant("two "),
        Message::user("three"),
        Message::assistant("").with_tool_calls(&[call]),
        Message::tool("f", Some("a1b2c3d4e"), "4"),
    ];
    let render = |version: &str, n_messages: usize, tools: bool| {
        let mut files = HfFiles::default();
        files.tokenizer_model = Some(sentencepiece(2, &KEEPS_SPACES));
        files.mistral_version = Some(version.to_owned());
        let tokenizer = Tokenizer::from_hf(&files).expect("supported");
        let template = ChatTemplate::new(tokenizer.chat_template().expect("known"), &tokenizer).expect("valid");
        let input = TemplateInput {
            tools: tools.then(|| json!([{"type": "function"}])),
            ..TemplateInput::new(&messages[..n_messages])
        };
        template.render(&input).map(|prompt| prompt.text())
    };
    assert_eq!(render("v1", 4, false).expect("renders"), "<s>[INST] S\n\none [/INST] two </s>[INST] three [/INST]");
    assert!(render("v1", 5, false).is_err(), "version 1 knows no tools");
    const TOOLS: &str = "[AVAILABLE_TOOLS][{\"type\": \"function\"}][/AVAILABLE_TOOLS]";
    let old = format!("<s>[INST]one[/INST]two</s>{TOOLS}[INST]S\n\nthree[/INST]");
    let call = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}";
    let id = "\"a1b2c3d4e\"";
    assert_eq!(
        render("v2", 6, true).expect("renders"),
        format!("{old}{call}}}]</s>[TOOL_RESULTS][{{\"name\": \"f\", \"content\": 4}}][/TOOL_RESULTS]")
    );
    assert_eq!(
        render("v3", 6, true).expect("renders"),
        format!("{old}{call}, \"id\": {id}}}]</s>[TOOL_RESULTS]{{\"content\": 4, \"call_id\": {id}}}[/TOOL_RESULTS]")
    );
    assert_eq!(
        render("v7m1", 6, true).expect("renders"),
        format!(
            "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]one[/INST]two</s>{TOOLS}[INST]three[/INST]{call}, \"id\": {id}}}]\
             </s>[TOOL_RESULTS]a1b2c3d4e[TOOL_CONTENT]4[/TOOL_RESULTS]"
        )
    );
}

#[test]
fn inconsistent_tekken_files_are_rejected() {
    let cases: [(&str, Value); 7] = [
        ("/config/default_vocab_size", json!(1000)),
        ("/config/default_vocab_size", json!(10)),
        ("/config/default_num_special_tokens", json!(4_000_000_000u32)),
        ("/config/default_num_special_tokens", json!(5)),
        ("/vocab/7/token_bytes", json!("?")),
        ("/vocab/7/token_bytes", json!("AA==")),
        ("/vocab/7/rank", json!(8)),
    ];
    for (place, value) in cases {
        let mut json = tekken();
        *json.pointer_mut(place).expect(place) = value;
        let error = load_tekken(&json).expect_err(place);
        assert!(matches!(error, TokenizerError::BadFile { file: "tekken.json", .. }), "{place}: {error}");
    }
    let mut json = tekken();
    json["config"]["pattern"] = json!("a(?=b)");
    assert!(matches!(load_tekken(&json), Err(TokenizerError::Unsupported { file: "tekken.json", .. })));
}

/// A field of a protocol buffer.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).expect("short")], value].concat()
}

/// A SentencePiece model: unknown, BOS, EOS, a control token and pieces with their scores.
pub(crate) fn sentencepiece(model_type: u8, normalizer: &[u8]) -> Vec<u8> {
    let pieces: [(&str, f32, u8); 9] = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("[INST]", 0.0, 3),
        ("▁a", -1.0, 1),
        ("b", -4.0, 1),
        ("a", -3.0, 1),
        ("▁", -5.0, 1),
        ("<0x21>", 0.0, 6),
    ];
    let mut model = Vec::new();
    for (text, score, kind) in pieces {
        let score = [&[2 << 3 | 5][..], &score.to_le_bytes()].concat();
        model.extend(field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat()));
    }
    model.extend(field(2, &[3 << 3, model_type]));
    model.extend(field(3, normalizer));
    model
}

fn load_model(bytes: Vec<u8>) -> Result<Tokenizer, TokenizerError> {
    let mut files = HfFiles::default();
    files.tokenizer_model = Some(bytes);
    files.mistral_version = Some("v2".to_owned());
    files.added_tokens = Some(br#"{"[NEW]": 9}"#.to_vec());
    Tokenizer::from_hf(&files)
}

/// `remove_extra_whitespaces` is on unless a model says otherwise.
pub(crate) const KEEPS_SPACES: [u8; 2] = [4 << 3, 0];

#[test]
fn sentencepiece_models_are_read() {
    let tokenizer = load_model(sentencepiece(2, &KEEPS_SPACES)).expect("supported");
    assert_eq!(tokenizer.encode("ab  a!", Plain), [4, 5, 7, 4, 8]);
    assert_eq!(tokenizer.encode("[INST]b[NEW]", Parse), [3, 7, 5, 9]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unknown()), (Some(1), Some(2), Some(0)));
    assert!(tokenizer.add_bos() && tokenizer.chat_template().is_some_and(|t| t.contains("version = 2")));
    assert_eq!(tokenizer.decode(&[4, 5, 8]), "ab!");
}

#[test]
fn unsupported_sentencepiece_models_are_rejected() {
    let spaces = |more: &[u8]| [&KEEPS_SPACES[..], more].concat();
    for (model, what) in [
        (sentencepiece(1, &KEEPS_SPACES), "not BPE"),
        (sentencepiece(2, &[]), "removes white space"),
        (sentencepiece(2, &spaces(&field(2, b"map"))), "normalizes"),
        (sentencepiece(2, &spaces(&[5 << 3, 0])), "escape"),
    ] {
        let error = load_model(model).expect_err(what);
        assert!(matches!(error, TokenizerError::Unsupported { file: "tokenizer.model", .. }), "{error:?}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let good = sentencepiece(2, &KEEPS_SPACES);
    for cut in 0..good.len() {
        // Cut between two pieces it is a shorter model, which lacks what comes after.
        assert!(load_model(good[..cut].to_vec()).is_err(), "{cut}");
        let mut flipped = good.clone();
        flipped[cut] ^= 0x41;
        let _ = load_model(flipped);
    }
}

#[test]
fn invalid_ids_are_rejected() {
    let mut json = byte_level();
    json["model"]["vocab"]["far"] = json!(3_000_000_000u32);
    assert!(matches!(load_error(&json), TokenizerError::SparseIds { id: 3_000_000_000, .. }));
    let mut json = byte_level();
    json["model"]["vocab"]["c"] = json!(0);
    assert!(matches!(load_error(&json), TokenizerError::DuplicateId { id: 0, .. }));
    let config = json!({"added_tokens_decoder": {"9": {"content": "<other>"}}});
    let error = Tokenizer::from_hf(&with_config(&byte_level(), config)).expect_err("id 9 is <think>");
    assert!(matches!(error, TokenizerError::DuplicateId { file: "tokenizer_config.json", .. }), "{error}");
    let mut json = byte_level();
    json["model"]["unk_token"] = json!("<unk>");
    assert!(matches!(load_error(&json), TokenizerError::UnknownToken { role: "unk_token", .. }));
    let error = Tokenizer::from_hf(&with_config(&byte_level(), json!({"add_eos_token": true}))).expect_err("no EOS");
    assert!(matches!(error, TokenizerError::UnknownToken { role: "eos_token", .. }), "{error}");
    let config = json!({"bos_token": "<end>"});
    let error = Tokenizer::from_hf(&with_config(&byte_level(), config)).expect_err("two kinds of BOS");
    assert!(matches!(error, TokenizerError::Unsupported { .. }), "{error}");
}
