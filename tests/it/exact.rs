//! The arithmetic contract on a real model: logits do not depend on how the work is split, bit for bit.
//!
//! The reference is a run with one thread and the whole text in one chunk. Every other run (more threads, smaller
//! chunks, every instruction set of this machine) must give the same bits at every position of the text, and at every
//! position of what it then generates. The text is longer than 512 tokens, so that it crosses chunks of 512 and the
//! page boundaries of attention.

use fewbit::expert::engine::{Chunk, Decoder, Isa, LoadOptions, LogitsFor};
use fewbit::expert::format::GgufFile;
use fewbit::expert::tokenizer::{SpecialTokens, Tokenizer};

use crate::smollm2;

/// Number of tokens of the text, and of tokens generated after it.
const N_TEXT: usize = 520;
const N_NEW: usize = 12;

/// Tokens of the text that go through one at a time: each costs a pass over the weights. (What is written after
/// a whole text goes through one at a time too.)
const N_TEXT_SINGLE: usize = 72;

/// Tokens of the text for the scalar definitions, which are a hundred times slower than the kernels.
const N_TEXT_SCALAR: usize = 16;

fn load(file: &GgufFile, isa: Isa, threads: usize) -> Decoder {
    Decoder::load(file, &LoadOptions::new().isa(isa).threads(threads)).expect("loads")
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}

/// Runs `text` in chunks of `size`, then writes `n_new` tokens, which it returns. `see` gets every position's
/// logits.
fn run(decoder: &Decoder, text: &[u32], size: usize, n_new: usize, mut see: impl FnMut(usize, &[f32])) -> Vec<u32> {
    let mut cache = decoder.new_cache();
    let mut step = |tokens: &[u32]| {
        let first = cache.len();
        let chunk = Chunk { cache: &mut cache, tokens, logits: LogitsFor::All };
        let logits = decoder.forward(&mut [chunk]).expect("runs");
        (0..logits.n_rows()).for_each(|i| see(first + i, logits.row(i)));
        argmax(logits.row(logits.n_rows() - 1))
    };
    let mut next = text.chunks(size).fold(0, |_, chunk| step(chunk));
    let mut new = Vec::new();
    for _ in 0..n_new {
        new.push(next);
        next = step(&[next]);
    }
    new
}

#[test]
fn bits_do_not_depend_on_threads_chunks_or_instruction_set() {
    let file = GgufFile::open(&smollm2::path()).expect("a GGUF file");
    let tokenizer = Tokenizer::from_gguf(file.metadata()).expect("supported");
    let mut text = tokenizer.encode(smollm2::PROSE, SpecialTokens::Plain);
    assert!(text.len() >= N_TEXT, "{} tokens are too few", text.len());
    text.truncate(N_TEXT);

    let best = Isa::best();
    let mut want: Vec<Vec<u32>> = Vec::new();
    let written = run(&load(&file, best, 1), &text, N_TEXT, N_NEW, |_, row| {
        assert!(row.iter().all(|x| x.is_finite()), "finite logits");
        want.push(row.iter().map(|x| x.to_bits()).collect());
    });
    println!("reference: {best}, 1 thread, one chunk; it writes {:?}", tokenizer.decode(&written));

    for isa in Isa::available() {
        let is_scalar = isa == Isa::Scalar;
        let (thread_counts, sizes): (&[usize], &[usize]) = match isa {
            Isa::Scalar => (&[2], &[7]),
            // Slow on x86-64, where they have no fused multiply-adds.
            Isa::Portable | Isa::Sse2 => (&[2], &[1, 64]),
            _ => (&[1, 2], &[1, 7, 64, 512]),
        };
        for &threads in thread_counts {
            let decoder = load(&file, isa, threads);
            for &size in sizes {
                let (text, n_new) = match size {
                    _ if is_scalar => (&text[..N_TEXT_SCALAR], 0),
                    1 => (&text[..N_TEXT_SINGLE], 0),
                    _ => (&text[..], N_NEW),
                };
                let what = format!("{isa}, {threads} threads, chunks of {size}");
                let new = run(&decoder, text, size, n_new, |position, row| {
                    let same = row.iter().zip(&want[position]).all(|(got, &want)| got.to_bits() == want);
                    assert!(same && row.len() == want[position].len(), "{what}: other bits at position {position}");
                });
                assert_eq!(new, written[..n_new], "{what}");
                println!("{what}: the same bits at {} positions", text.len() + n_new);
            }
        }
    }
}
