//! Measures how fast a model is: prefill and decode of the bare model, compared with what the machine could do; and
//! ([`Serving`]) how much of that the engine reaches for requests.
//!
//! *Prefill* runs a prompt through the model; *decode* runs steps of one token for each sequence of a batch. Both start
//! after `depth` tokens that are not timed. The tokens are arbitrary and nothing is sampled: only the model is
//! measured. There is one more repetition than requested, and the first is not counted, because it pages the weights
//! in. Each round of repetitions runs all combinations, so that a slow moment of the machine affects all of them.
//!
//! The ceilings are measured in the same run: how fast all threads can read memory, which bounds decode, and how many
//! int8 multiply-accumulates they can do, which bounds prefill. The fractions show how near the model came to them.
//! They count only the work that a step cannot avoid: the weights, and in decode the keys and values of the sequences.
//! [`Bench::kernels`] says where the time of a GPU goes, and [`DeviceCheck`] whether its results are the CPU's.
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

mod check;
mod figures;
mod model;
mod serving;

pub use self::check::DeviceCheck;
pub use self::figures::{BenchError, Spread};
pub use self::model::{Bench, BenchReport, BenchTest, Ceilings, Measured, Target, TimedKernels};
pub use self::serving::{Figure, Serving};
