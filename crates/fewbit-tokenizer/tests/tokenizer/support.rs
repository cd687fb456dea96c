//! Vocabularies and files that the tests share.

use std::path::{Path, PathBuf};

use fewbit_format::GgufFile;
use fewbit_tokenizer::{TokenKind, Tokenizer, Vocabulary};
use serde::Deserialize;

/// Expected ids of one text.
#[derive(Debug, Deserialize)]
pub(crate) struct Golden {
    pub(crate) plain: Vec<u32>,
    pub(crate) special: Vec<u32>,
}

/// The texts that goldens were made for.
pub(crate) fn texts() -> Vec<String> {
    serde_json::from_str(include_str!("../data/texts.json")).expect("valid")
}

/// The character that stands for a byte in byte-level vocabularies.
pub(crate) fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
        char::from_u32(0x100 + before).expect("a letter")
    }
}

/// The special tokens of [`byte_level`], from id 256.
pub(crate) const SPECIAL: [(&str, TokenKind); 7] = [
    ("<unk>", TokenKind::Unknown),
    ("<s>", TokenKind::Control),
    ("</s>", TokenKind::Control),
    ("<|im_start|>", TokenKind::Control),
    ("<|im_end|>", TokenKind::Control),
    ("<think>", TokenKind::UserDefined),
    ("[INST]", TokenKind::Control),
];

/// A byte-level vocabulary: id `b` is byte `b`, then [`SPECIAL`], then merged words.
pub(crate) fn byte_level(pre: &str, merges: &[&str]) -> Vocabulary<'static> {
    let mut tokens: Vec<String> = (0..=255).map(|b| byte_char(b).to_string()).collect();
    let mut kinds = vec![TokenKind::Normal; 256];
    for (text, kind) in SPECIAL {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    for merge in merges {
        tokens.push(merge.replace(' ', ""));
        kinds.push(TokenKind::Normal);
    }
    Vocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: tokens.into(),
        kinds,
        merges: merges.iter().map(|&merge| merge.to_owned()).collect(),
        unknown: Some(256),
        bos: Some(257),
        eos: Some(258),
        ..Vocabulary::default()
    }
}

/// [`byte_level`] with a few merges.
pub(crate) fn small() -> Tokenizer {
    let merges = ["a b", "ab c", "Ġ a", "h e", "l l", "he ll", "hell o", "i m", "m _", "_ e", "n d"];
    Tokenizer::new(&byte_level("gpt-2", &merges)).expect("valid")
}

/// The tokenizer of stories260K, whose file the repository has.
pub(crate) fn stories() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stories260K-f32.gguf");
    let file = GgufFile::open(&path).expect("tests/data/stories260K-f32.gguf is in the repository");
    Tokenizer::from_gguf(file.metadata()).expect("supported")
}

/// The SmolLM2 file that `fewbit pull smollm2-135m-instruct` fetches.
pub(crate) fn smollm2_file() -> GgufFile {
    let path = smollm2_path();
    GgufFile::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where the file is: `FEWBIT_TEST_SMOLLM2`, else the model cache.
fn smollm2_path() -> PathBuf {
    if let Some(path) = std::env::var_os("FEWBIT_TEST_SMOLLM2") {
        return path.into();
    }
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || var("HOME");
    let cache = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home().map(|home| home.join("Library/Caches"))
    } else {
        var("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")))
    };
    let root = var("FEWBIT_HOME").or_else(|| cache.map(|cache| cache.join("fewbit")));
    let folder = root.unwrap_or_default().join("models/smollm2-135m-instruct");
    let found = std::fs::read_dir(&folder).ok().and_then(|entries| {
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|ext| ext == "gguf"))
    });
    found.unwrap_or_else(|| {
        panic!(
            "no SmolLM2 in {}: run `cargo run --release -p fewbit-cli -- pull \
             smollm2-135m-instruct` first",
            folder.display()
        )
    })
}
