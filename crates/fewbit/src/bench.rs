//! How fast a model is: prefill and decode of the bare model, compared with what the machine could do, and
//! ([`Serving`]) what the engine makes of requests.
//!
//! *Prefill* runs a prompt through the model, *decode* runs steps of one token for each sequence of a batch; both after
//! `depth` tokens that are not timed. Tokens are arbitrary and nothing is sampled: it is the model that is
//! measured. One repetition more than asked for is run, and the first is not counted: it pages the weights in.
//! Repetitions go round all combinations, so that a slow minute of the machine meets them all.
//!
//! The ceilings are measured in the same run: how fast all threads can read memory, which bounds
//! decode, and how many int8 multiply-accumulates they can do, which bounds prefill. The fractions
//! say how near to them the model came, counting only what a step cannot do without: weights, and in decode the
//! keys and values of the sequences.
//!
//! ```no_run
//! # fn main() -> Result<(), fewbit::bench::BenchError> {
//! use fewbit::Model;
//! use fewbit::bench::{Bench, Target};
//!
//! let model = Model::load("smollm2-135m-instruct")?;
//! let report = Bench::new().prompt([128, 512]).n_gen([64]).batch([1, 8]).run(&Target::of(&model)?)?;
//! for result in &report.results {
//!     println!("{:?}: {:.1} tokens/s", result.test, result.tokens_per_s.median);
//! }
//! # Ok(()) }
//! ```

mod figures;
mod model;
mod serving;

pub use self::figures::{BenchError, Spread};
pub use self::model::{Bench, BenchReport, BenchTest, Ceilings, Measured, Target};
pub use self::serving::{Figure, Serving};
