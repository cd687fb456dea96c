//! Timing of kernels that measure what a device can do at most.

use fewbit_model::ModelError;
use std::time::Duration;

/// A round takes at least this long, and far less than what drivers allow a submission to take.
const SHORTEST: Duration = Duration::from_millis(20);

/// How many rounds are timed.
const ROUNDS: usize = 3;

/// The seconds of one kernel, in the fastest of some rounds of so many that what a submission costs does not count.
/// `round(n)` is the time that `n` of them take.
pub(crate) fn shortest_time(round: impl Fn(u32) -> Result<Duration, ModelError>) -> Result<f64, ModelError> {
    // The first one compiles.
    round(1)?;
    let mut n = 1;
    while round(n)? < SHORTEST && n < 1 << 16 {
        n *= 2;
    }
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        best = best.min(round(n)?.as_secs_f64() / f64::from(n));
    }
    Ok(best)
}
