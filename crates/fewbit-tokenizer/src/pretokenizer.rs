//! Splitting text into the pieces that BPE merges stay within: one table row per `tokenizer.ggml.pre`.
//!
//! Each family publishes its split as regular expressions, which are applied one after the other: every match is a
//! piece, and so is the text between matches; the next expression works inside those pieces ([`crate::splitter`]). A
//! `tokenizer.json` contains its own expressions and needs no row here.

use crate::splitter::{Cut, Splitter};

/// One way to split text, as data.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    /// The values of `tokenizer.ggml.pre` that select this row.
    pub(crate) names: &'static [&'static str],
    pub(crate) steps: &'static [Step],
    /// Whether a piece that is itself a token becomes that token even if merges would not produce it.
    pub(crate) ignore_merges: bool,
    /// Whether a prompt starts with BOS if the file does not specify it.
    pub(crate) add_bos: bool,
    /// Whether text is normalized to NFC before it is split.
    pub(crate) nfc: bool,
}

/// One expression of a row.
#[derive(Debug)]
pub(crate) struct Step {
    /// The expression, in parts that are concatenated.
    pattern: &'static [&'static str],
    /// Whether `|\s+(?!\S)|\s+` follows.
    whitespace: bool,
}

impl Step {
    /// An expression as given.
    const fn plain(pattern: &'static [&'static str]) -> Self {
        Self { pattern, whitespace: false }
    }

    /// An expression that continues with `|\s+(?!\S)|\s+`.
    const fn words(pattern: &'static [&'static str]) -> Self {
        Self { pattern, whitespace: true }
    }
}

/// GPT-2's words: contractions in lower case, an optional space before letters, digits or the rest.
const GPT2: Step = Step::words(&[r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"]);

/// Every digit separately.
const DIGIT: Step = Step::plain(&[r"\p{N}"]);

/// The parts that most expressions since cl100k share.
const CONTRACTIONS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const LETTERS: &str = r"|[^\r\n\p{L}\p{N}]?\p{L}+";
const SYMBOLS: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+";
const SYMBOLS_SLASH: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+";

/// cl100k with up to three digits together, as Llama 3 has it.
const LLAMA3: Step = Step::words(&[CONTRACTIONS, LETTERS, r"|\p{N}{1,3}", SYMBOLS]);

/// cl100k with single digits, as Qwen has it.
const QWEN2: Step = Step::words(&[CONTRACTIONS, LETTERS, r"|\p{N}", SYMBOLS]);

/// Words that break where lower case turns to upper case.
const TITLE_WORD: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
const UPPER_WORD: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
const OPTIONAL_CONTRACTION: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

const GPT4O: Step = Step::words(&[
    TITLE_WORD,
    OPTIONAL_CONTRACTION,
    "|",
    UPPER_WORD,
    OPTIONAL_CONTRACTION,
    r"|\p{N}{1,3}",
    SYMBOLS_SLASH,
]);

/// GPT-4o's words without Chinese characters, which are pieces of their own.
const KIMI: Step = Step::words(&[
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    OPTIONAL_CONTRACTION,
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    OPTIONAL_CONTRACTION,
    r"|\p{N}{1,3}",
    SYMBOLS,
]);

/// DeepSeek-V3's last step; digits and CJK are split off before it.
const DEEPSEEK3: Step = Step::words(&[
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+",
]);

/// The letters that have a case, as of the Unicode version that DeepSeek's tokenizer was made with:
/// a fixed list, since the current properties name more.
const DEEPSEEK_LETTERS: &[&str] = &[
    r"\s?[",
    r"A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}",
    r"\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}",
    r"\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}",
    r"\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}",
    r"\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}",
    r"\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}",
    r"\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}",
    r"\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
    r"\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}",
    r"\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
    r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}",
    r"\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
    r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}",
    r"\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}",
    r"\u{1E900}-\u{1E943}",
    r"]+",
];

/// The rows. Aliases share a row where the split is the same.
const TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "mellum",
            "modern-bert",
            "a.x-4.0",
        ],
        steps: &[GPT2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[DIGIT, GPT2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        steps: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        nfc: false,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        steps: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer { names: &["glm4", "glm5"], steps: &[LLAMA3], ignore_merges: true, add_bos: false, nfc: false },
    PreTokenizer { names: &["qwen2"], steps: &[QWEN2], ignore_merges: false, add_bos: false, nfc: true },
    PreTokenizer {
        names: &["deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2", "kormo"],
        steps: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["qwen35"],
        steps: &[Step::words(&[
            CONTRACTIONS,
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
        ])],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["tekken"],
        steps: &[Step::words(&[TITLE_WORD, "|", UPPER_WORD, r"|\p{N}", SYMBOLS_SLASH])],
        ignore_merges: true,
        add_bos: true,
        nfc: false,
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4", "kanana2", "minimax-m2"],
        steps: &[GPT4O],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer { names: &["kimi-k2"], steps: &[KIMI], ignore_merges: false, add_bos: false, nfc: false },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Step::plain(&[r"[\r\n]"]),
            Step::plain(DEEPSEEK_LETTERS),
            Step::plain(&[r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+"]),
            Step::plain(&[r"\s+$"]),
            Step::plain(&[r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+"]),
            Step::plain(&[r"\p{N}+"]),
        ],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[
            Step::plain(&[r"[\r\n]"]),
            Step::plain(&[r"\s?\p{L}+"]),
            Step::plain(&[r"\s?\p{P}+"]),
            Step::plain(&[r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+"]),
            DIGIT,
        ],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        steps: &[
            Step::plain(&[r"\p{N}{1,3}"]),
            Step::plain(&[r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+"]),
            DEEPSEEK3,
        ],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["falcon"],
        steps: &[Step::plain(&[r"[\p{P}$+<=>^~|`]+"]), GPT2, Step::plain(&["[0-9][0-9][0-9]"])],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["poro-chat", "bloom", "gpt3-finnish"],
        steps: &[Step::plain(&[BLOOM])],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["viking"],
        steps: &[Step::plain(&[BLOOM]), DIGIT],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[Step::words(&[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"|\s*[\r\n]",
        ])],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["seed-coder"],
        steps: &[Step::words(&[CONTRACTIONS, LETTERS, r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"])],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["minicpm5"],
        steps: &[Step::plain(&[r"\p{N}{1,3}"]), Step::words(&[CONTRACTIONS, LETTERS, r"|\p{N}+", SYMBOLS])],
        ignore_merges: true,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["laguna"],
        steps: &[Step::plain(&[r"[^\n]+|\n+"]), QWEN2],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
    PreTokenizer {
        names: &["gemma4"],
        steps: &[Step::plain(&[r"[^\n]+|\n+"])],
        ignore_merges: false,
        add_bos: true,
        nfc: false,
    },
    // What converters wrote before `pre` existed, when they were told to go on regardless.
    PreTokenizer {
        names: &["default"],
        steps: &[
            Step::plain(&[r"[\p{P}$+<=>^~|]+"]),
            GPT2,
            Step::plain(&[r"\p{N}+"]),
            Step::plain(&["[0-9][0-9][0-9]"]),
        ],
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    },
];

/// BLOOM's words: everything up to white space or one of these punctuation marks.
const BLOOM: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";

/// Every known value of `tokenizer.ggml.pre`.
pub(crate) fn names() -> Vec<&'static str> {
    TABLE.iter().flat_map(|row| row.names.iter().copied()).collect()
}

/// The rows that define a split: all except `default`, which stands for an unknown one, and `gemma4`, which is of
/// another kind.
pub(crate) fn rows() -> impl Iterator<Item = &'static PreTokenizer> {
    TABLE.iter().filter(|row| !row.names.iter().any(|name| ["default", "gemma4"].contains(name)))
}

/// The row for a value of `tokenizer.ggml.pre`.
pub(crate) fn find(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name))
}

/// The expressions of a row, compiled.
pub(crate) fn splitter(row: &PreTokenizer) -> Splitter {
    let compile = |step: &Step| Cut::new(&step.pattern.concat(), step.whitespace);
    Splitter::new(
        row.steps.iter().map(|step| compile(step).expect("the table compiles: a test builds each row")).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        splitter(find(name).expect("known")).split(text, &mut |p| pieces.push(p.to_owned()));
        pieces
    }

    #[test]
    fn every_pre_tokenizer_compiles_and_loses_no_text() {
        let text = "  Hello's WORLD'S 12345\r\n\n\t x  é\u{301} 你好，。 🙂\u{200D}🙂 \u{7}\u{AD}  ";
        for name in names() {
            assert_eq!(pieces(name, text).concat(), text, "{name}");
            assert!(pieces(name, "").is_empty(), "{name}");
        }
    }

    /// The expected pieces come from another regex engine with the published expressions, lookaheads included:
    /// `tests/data/pieces.py`.
    #[test]
    fn pieces_match_the_published_expressions() {
        let texts: Vec<String> = serde_json::from_str(include_str!("../tests/data/texts.json")).expect("valid");
        let expected: std::collections::BTreeMap<String, Vec<Vec<String>>> =
            serde_json::from_str(include_str!("../tests/data/pieces.json")).expect("valid");
        let mut tested = std::collections::BTreeSet::new();
        for (name, cases) in &expected {
            let row = find(name).expect("known");
            tested.insert(row.names[0]);
            for (text, expected) in texts.iter().zip(cases) {
                assert_eq!(&pieces(name, text), expected, "{name}: {text:?}");
            }
        }
        let steps = |row: &PreTokenizer| -> Vec<String> { row.steps.iter().map(|step| format!("{step:?}")).collect() };
        for row in TABLE {
            let same = TABLE.iter().any(|r| tested.contains(r.names[0]) && steps(r) == steps(row));
            assert!(same, "no expectations for {:?}", row.names);
        }
    }

    #[test]
    fn long_runs_take_linear_time() {
        // A quarter of a megabyte each: anything quadratic would take minutes.
        for unit in [" ", "\n", " \n", "a", "aB", "1", "!", "\u{3000}", "'", "中", "\u{301}", "\t ", "\0"] {
            let text = unit.repeat((1 << 18) / unit.len());
            for row in TABLE {
                let mut n_bytes = 0;
                splitter(row).split(&text, &mut |piece| n_bytes += piece.len());
                assert_eq!(n_bytes, text.len(), "{:?} {unit:?}", row.names);
            }
        }
    }

    #[test]
    fn pre_tokenizer_names_are_unique() {
        let mut all = names();
        all.sort_unstable();
        let n = all.len();
        all.dedup();
        assert_eq!(all.len(), n);
    }

    #[test]
    fn last_space_of_a_run_belongs_to_the_next_word() {
        assert_eq!(pieces("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(pieces("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(pieces("llama-bpe", "a \n b"), ["a", " \n", " b"]);
        assert_eq!(pieces("llama-bpe", "a\u{3000}\u{3000}b"), ["a", "\u{3000}", "\u{3000}b"]);
    }
}
