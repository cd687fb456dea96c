//! Sampling with a custom rule: no words with a given letter.
//! `cargo run --release --example custom_sampler`.

use fewbit::Model;
use fewbit::sample::CustomSampler;

/// Makes every token with a given letter impossible.
struct Without(Vec<u32>);

impl Without {
    fn new(model: &Model, letter: u8) -> Self {
        let tokenizer = model.tokenizer();
        let has = |id: &u32| tokenizer.token_bytes(*id).iter().any(|byte| byte.eq_ignore_ascii_case(&letter));
        Self((0..tokenizer.n_vocab() as u32).filter(has).collect())
    }
}

impl CustomSampler for Without {
    fn adjust(&mut self, _tokens: &[u32], logits: &mut [f32]) {
        for &token in &self.0 {
            logits[token as usize] = f32::NEG_INFINITY;
        }
    }
}

fn main() -> Result<(), fewbit::Error> {
    let model = Model::load("smollm2-135m-instruct")?;
    let for_sampler = model.clone();
    let out = model
        .generate("Write one sentence about the sea.")
        .templated()
        .temperature(0.0)
        .max_tokens(40)
        .custom_sampler(move || Without::new(&for_sampler, b'e'))
        .run()?;
    println!("{}", out.text);
    assert!(!out.text.contains(['e', 'E']));
    Ok(())
}
