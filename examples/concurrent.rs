//! Several requests at once, which the model's engine computes together:
//! `cargo run --release --example concurrent`.

use std::thread;
use std::time::Instant;

use fewbit::Model;

fn main() -> Result<(), fewbit::Error> {
    let model = Model::load("smollm2-135m-instruct")?;
    let start = Instant::now();
    let answers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = ["Paris", "Rome", "Cairo", "Lima"]
            .map(|city| {
                let request = model.generate(format!("In which country is {city}?")).templated();
                scope.spawn(move || request.temperature(0.0).max_tokens(32).run())
            })
            .into();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut n_tokens = 0;
    for answer in answers {
        let answer = answer?;
        println!("- {}", answer.text.trim());
        n_tokens += answer.usage.completion;
    }
    println!("{:.0} tokens/s together", n_tokens as f64 / start.elapsed().as_secs_f64());

    // Several continuations of one prompt, which is computed once.
    for sample in model.generate("My favourite colour is").max_tokens(8).seed(1).samples(3)? {
        println!("... {} (seed {})", sample.text.trim(), sample.seed);
    }
    Ok(())
}
