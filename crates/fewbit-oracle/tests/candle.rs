//! The decoder against candle's `quantized_llama`, on SmolLM2: the same file, the same 200 tokens, position by
//! position.
//!
//! Both quantize activations to 8 bits, but not in the same way, and neither is exact; so the most probable
//! token may differ where two are nearly even. What this test excludes is everything larger: a wrong rotation,
//! a norm in the wrong place, a head that reads its neighbour's keys, a block format read slightly wrong.
//! Exactness is tested elsewhere, against float64 (`fewbit-model`) and between our own kernels.
//!
//! candle returns logits for the last position of a call only, and is therefore fed one token at a time;
//! fewbit gets all of them at once, so that its prefill is what is compared.

use std::fs::File;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use fewbit::expert::engine::{Chunk, Decoder, LoadOptions, LogitsFor};
use fewbit::expert::format::GgufFile;
use fewbit::expert::tokenizer::{SpecialTokens, Tokenizer};

const MODEL: &str = "smollm2-135m-instruct";
const PROSE: &str = include_str!("../../../tests/data/prose.txt");
/// Ids of the first 200 tokens of `PROSE`.
const IDS: &str = include_str!("data/prose_smollm2_ids.txt");

/// Positions at which the most probable token must be the same, in percent.
const MIN_AGREEMENT: f64 = 93.0;
/// Mean divergence of fewbit's distribution from candle's, in nats. A position of a healthy pair has some
/// thousandths; a decoder with one wrong layer has tenths.
const MAX_MEAN_KL: f64 = 0.05;

fn model_file() -> std::path::PathBuf {
    let name = std::env::var("FEWBIT_TEST_SMOLLM2").unwrap_or_else(|_| MODEL.to_owned());
    let silent = |_: &fewbit::hub::Event<'_>| {};
    fewbit::resolve(&name, &silent).unwrap_or_else(|error| {
        panic!("this test needs {MODEL}: run `cargo run --release -p fewbit-cli -- pull {MODEL}` first: {error}")
    })
}

fn ids() -> Vec<u32> {
    IDS.split_whitespace().map(|id| id.parse().expect("a number")).collect()
}

/// Logits of every position: `[n_tokens][n_vocab]`.
fn by_candle(path: &std::path::Path, ids: &[u32]) -> candle_core::Result<Vec<Vec<f32>>> {
    let mut file = File::open(path)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut rows = Vec::with_capacity(ids.len());
    for (position, &id) in ids.iter().enumerate() {
        let input = Tensor::new(&[[id]], &Device::Cpu)?;
        rows.push(model.forward(&input, position)?.squeeze(0)?.to_vec1()?);
    }
    Ok(rows)
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Logarithms of the probabilities.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let log_sum = row.iter().map(|&x| (x as f64 - max).exp()).sum::<f64>().ln();
    row.iter().map(|&x| x as f64 - max - log_sum).collect()
}

fn kl_divergence(of: &[f32], from: &[f32]) -> f64 {
    let (p, q) = (log_softmax(from), log_softmax(of));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn smollm2_predictions_match_candle() {
    let path = model_file();
    let ids = ids();
    assert_eq!(ids.len(), 200);

    let file = GgufFile::open(&path).expect("a GGUF file");
    let decoder = Decoder::load(&file, &LoadOptions::new()).expect("loads");
    let mut cache = decoder.new_cache();
    let chunk = Chunk { cache: &mut cache, tokens: &ids, logits: LogitsFor::All };
    let ours = decoder.forward(&mut [chunk]).expect("runs");
    let theirs = by_candle(&path, &ids).expect("candle runs");
    assert_eq!((ours.n_rows(), theirs.len()), (200, 200));

    let mut agreeing = 0;
    let mut kl = Vec::with_capacity(theirs.len());
    for (position, row) in theirs.iter().enumerate() {
        let ours = ours.row(position);
        assert_eq!(ours.len(), row.len(), "the same vocabulary");
        agreeing += usize::from(argmax(ours) == argmax(row));
        kl.push(kl_divergence(ours, row));
    }
    let agreement = 100.0 * agreeing as f64 / theirs.len() as f64;
    let mean_kl = kl.iter().sum::<f64>() / kl.len() as f64;
    let max_kl = kl.iter().copied().fold(0.0, f64::max);
    println!(
        "same most probable token at {agreeing} of {} positions ({agreement:.1} %); KL divergence: mean {mean_kl:.5}, \
         largest {max_kl:.4}",
        theirs.len()
    );
    assert!(agreement >= MIN_AGREEMENT, "{agreement:.1} % of the positions agree");
    assert!(mean_kl <= MAX_MEAN_KL, "mean KL divergence {mean_kl:.4}");
}

#[test]
fn stored_token_ids_match_the_text() {
    let file = GgufFile::open(&model_file()).expect("a GGUF file");
    let tokenizer = Tokenizer::from_gguf(file.metadata()).expect("supported");
    let tokens = tokenizer.encode(PROSE, SpecialTokens::Plain);
    println!("{} tokens in all", tokens.len());
    assert_eq!(tokens[..200], ids());
}
