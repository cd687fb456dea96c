//! Writes the logits of the second half of windows of 512 tokens, for `scripts/float64_kl.py` to compare.
//!
//! usage: fewbit tokenize MODEL --json < TEXT | cargo run --release -p fewbit-oracle --example logits -- MODEL N OUT
//!
//! OUT gets `N * 255` rows of little-endian f32, `[n_vocab]` each.

use std::error::Error;
use std::io::{BufWriter, Read, Write};

use fewbit::expert::engine::{Chunk, LogitsFor};

const WINDOW: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, n, out] = &args[..] else { return Err("usage: logits MODEL N_WINDOWS OUT".into()) };
    let n: usize = n.parse()?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let ids = text.split(|c: char| !c.is_ascii_digit()).filter(|id| !id.is_empty());
    let ids: Vec<u32> = ids.take(n * WINDOW).map(str::parse).collect::<Result<_, _>>()?;
    let model = fewbit::Model::load(model)?;
    let mut out = BufWriter::new(std::fs::File::create(out)?);
    for window in ids.chunks_exact(WINDOW) {
        let mut cache = fewbit::expert::decoder(&model).new_cache();
        let chunk = Chunk { cache: &mut cache, tokens: window, logits: LogitsFor::All };
        let logits = fewbit::expert::decoder(&model).forward(&mut [chunk])?;
        for row in WINDOW / 2..WINDOW - 1 {
            logits.row(row).iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
        }
    }
    Ok(out.flush()?)
}
