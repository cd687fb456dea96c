#!/usr/bin/env python3
"""Trains small tokenizers of the kinds that fewbit leaves to Hugging Face's library, and lists the ids that its Python
package (`tokenizers` 0.23.3) gives them.

    make.py --train                  makes the tokenizers next to this file; no two trainings are quite the same
    make.py *.json > expected.json   their ids, or those of published files

Each is set up as published models of its kind are: BERT's (WordPiece), XLM-RoBERTa's and T5's (Unigram), LLM-jp's
(Unigram with bytes for what it lacks), a list of words (WordLevel), and byte-level BPE of lower-case text.
The texts are those of `fewbit-tokenizer`, with special tokens in some.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
ROOT = HERE.parents[4]
TEXTS = json.loads((ROOT / "crates/fewbit-tokenizer/tests/data/texts.json").read_text(encoding="utf-8"))
TEXTS += ["[CLS] the [SEP]", "a</s>b", "</s> a <s>", "  <unk> [UNK]  ", "[MASK]ed and  [MASK] ", "unaffable, isn't it?"]
CORPUS = [
    line
    for name in ("LICENSE-APACHE", "LICENSE-MIT")
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    if line.strip()
] + [text for text in TEXTS if "</s>" not in text and "<|" not in text]


def special(*texts):
    return [AddedToken(text, special=True, normalized=False) for text in texts]


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = special("[PAD]", "[UNK]", "[CLS]", "[SEP]") + [AddedToken("[MASK]", special=True, lstrip=True, normalized=False)]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=500, special_tokens=names, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def unigram(byte_fallback):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    scheme = "first" if byte_fallback else "always"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    names = special("<s>", "<pad>", "</s>", "<unk>")
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=names, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if byte_fallback:
        whole = json.loads(tokenizer.to_str())
        whole["model"]["vocab"] += [[f"<0x{byte:02X}>", 0.0] for byte in range(256)]
        whole["model"]["byte_fallback"] = True
        tokenizer = Tokenizer.from_str(json.dumps(whole))
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return tokenizer


def words():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = special("<unk>", "</s>")
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=300, special_tokens=names, show_progress=False))
    return tokenizer


def lower_case_bytes():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{L}+(?=\d)|\p{L}+|\p{N}{1,3}(?=(?:\d{3})*\b)| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = special("</s>", "<|end|>") + [AddedToken("<think>", special=False, normalized=True)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def expected(tokenizer):
    """Per text: its ids, special tokens found and not, and the text of the first."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append([ids, plain.encode(text, add_special_tokens=False).ids, tokenizer.decode(ids)])
    return {"frame": tokenizer.encode("a").special_tokens_mask, "rows": rows}


def main():
    if sys.argv[1:] == ["--train"]:
        made = {
            "bert": bert(),
            "unigram": unigram(False),
            "unigram_bytes": unigram(True),
            "words": words(),
            "lower_case_bytes": lower_case_bytes(),
        }
        for name, tokenizer in made.items():
            (HERE / f"{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")
        return
    paths = [Path(path) for path in sys.argv[1:] if Path(path).name != "expected.json"]
    if not paths:
        sys.exit(__doc__)
    of = {path.stem: expected(Tokenizer.from_file(str(path))) for path in paths}
    json.dump({"texts": TEXTS, "tokenizers": of}, sys.stdout, ensure_ascii=False, separators=(",", ":"))
    print()


main()
