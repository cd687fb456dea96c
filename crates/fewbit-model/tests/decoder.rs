//! The decoder against a float64 forward pass, and against itself under every way to cut the same work.

mod support;

use fewbit_format::GgufFile;
use fewbit_model::{Chunk, Decoder, Isa, KvCache, LoadOptions, LogitsFor};
use support::{TinyModel, bits, stories, tiny_models};

fn load(file: &GgufFile, isa: Isa, threads: usize) -> Decoder {
    Decoder::load(file, &LoadOptions::new().isa(isa).threads(threads)).expect("loads")
}

/// Feeds `tokens` in chunks of `size` and returns the logits of all of them.
fn logits(decoder: &Decoder, cache: &mut KvCache, tokens: &[u32], size: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for tokens in tokens.chunks(size) {
        let got = decoder.forward(&mut [Chunk { cache, tokens, logits: LogitsFor::All }]).expect("runs");
        (0..got.n_rows()).for_each(|i| all.extend(bits(got.row(i))));
    }
    all
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}

#[derive(serde::Deserialize)]
struct Golden {
    ids: Vec<u32>,
}

#[test]
fn stories260k_writes_the_golden_story() {
    let golden: Golden = serde_json::from_str(include_str!("golden/stories260k_greedy.json")).expect("valid JSON");
    for isa in Isa::available() {
        let decoder = load(&stories(), isa, 2);
        let mut cache = decoder.new_cache();
        let mut ids = vec![golden.ids[0]];
        while ids.len() < golden.ids.len() {
            let tokens = &ids[ids.len() - 1..];
            let got = decoder.forward(&mut [Chunk { cache: &mut cache, tokens, logits: LogitsFor::Last }]);
            ids.push(argmax(got.expect("runs").row(0)));
        }
        assert_eq!(ids, golden.ids, "{isa}");
    }
}

#[test]
fn stories260k_logits_are_those_of_float64() {
    let golden: Golden = serde_json::from_str(include_str!("golden/stories260k_greedy.json")).expect("valid JSON");
    let want: Vec<f32> = include_bytes!("golden/stories260k_logits.f32")
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let decoder = load(&stories(), Isa::best(), 1);
    let mut cache = decoder.new_cache();
    let chunk = Chunk { cache: &mut cache, tokens: &golden.ids[..200], logits: LogitsFor::All };
    let got = decoder.forward(&mut [chunk]).expect("runs");
    let mut worst = 0.0f32;
    for (i, want) in want.chunks(decoder.n_vocab()).enumerate() {
        for (g, w) in got.row(20 * i).iter().zip(want) {
            worst = worst.max((g - w).abs());
        }
    }
    println!("largest difference of a logit from float64: {worst:e}");
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn bits_do_not_depend_on_chunks_threads_or_instruction_set() {
    for TinyModel { name, file } in tiny_models() {
        let tokens: Vec<u32> = (0..300).map(|i| (i * 7 + i / 3) % 60).collect();
        let reference = load(&file, Isa::Scalar, 1);
        let want = logits(&reference, &mut reference.new_cache(), &tokens, 512);
        assert!(want.iter().all(|&b| f32::from_bits(b).is_finite()), "{name}: finite logits");
        for isa in Isa::available() {
            // One token at a time on the scalar definitions would take most of the test's time.
            let sizes: &[usize] = if isa == Isa::Scalar { &[64] } else { &[1, 7, 64, 512] };
            for threads in [1, 2] {
                let decoder = load(&file, isa, threads);
                for &size in sizes {
                    let got = logits(&decoder, &mut decoder.new_cache(), &tokens, size);
                    assert!(got == want, "{name}, {isa}, {threads} threads, chunks of {size}");
                }
            }
        }
    }
}

#[test]
fn a_batch_gives_each_sequence_what_it_gets_alone() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        let prompts: Vec<Vec<u32>> =
            [1usize, 5, 40, 2, 9].iter().map(|&n| (0..n as u32).map(|i| (i * 13 + n as u32) % 60).collect()).collect();
        let alone: Vec<Vec<u32>> = prompts.iter().map(|p| logits(&decoder, &mut decoder.new_cache(), p, 512)).collect();
        let mut caches: Vec<KvCache> = prompts.iter().map(|_| decoder.new_cache()).collect();
        let mut batch: Vec<Chunk<'_>> = caches
            .iter_mut()
            .zip(&prompts)
            .map(|(cache, tokens)| Chunk { cache, tokens, logits: LogitsFor::All })
            .collect();
        let got = decoder.forward(&mut batch).expect("runs");
        let got: Vec<u32> = (0..got.n_rows()).flat_map(|i| bits(got.row(i))).collect();
        assert!(got == alone.concat(), "{name}");
    }
}

#[test]
fn a_truncated_cache_goes_on_as_if_the_rest_had_never_been() {
    for TinyModel { name, file } in tiny_models() {
        let decoder = load(&file, Isa::best(), 2);
        let tokens: Vec<u32> = (0..300).map(|i| i % 60).collect();
        let (mut straight, mut bent) = (decoder.new_cache(), decoder.new_cache());
        logits(&decoder, &mut straight, &tokens, 64);
        logits(&decoder, &mut bent, &tokens, 64);
        logits(&decoder, &mut bent, &[3; 100], 64);
        bent.truncate(tokens.len());
        assert_eq!(bent.len(), tokens.len());
        let next = [11, 12, 13];
        assert!(logits(&decoder, &mut bent, &next, 2) == logits(&decoder, &mut straight, &next, 3), "{name}");
    }
}

#[test]
fn logits_come_only_where_they_are_asked_for() {
    let decoder = load(&stories(), Isa::best(), 1);
    let (mut a, mut b, mut c) = (decoder.new_cache(), decoder.new_cache(), decoder.new_cache());
    let all = decoder.forward(&mut [Chunk { cache: &mut a, tokens: &[1, 2, 3, 4], logits: LogitsFor::All }]);
    let some = decoder.forward(&mut [
        Chunk { cache: &mut b, tokens: &[1, 2, 3, 4], logits: LogitsFor::LastN(2) },
        Chunk { cache: &mut c, tokens: &[1, 2], logits: LogitsFor::None },
    ]);
    let (all, some) = (all.expect("runs"), some.expect("runs"));
    assert_eq!((all.n_rows(), some.n_rows()), (4, 2));
    assert_eq!((some.row(0), some.row(1)), (all.row(2), all.row(3)));
    let next = decoder.forward(&mut [Chunk { cache: &mut c, tokens: &[3], logits: LogitsFor::Last }]).expect("runs");
    assert_eq!(next.row(0), all.row(2));
}
