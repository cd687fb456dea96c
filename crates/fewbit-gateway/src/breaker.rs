//! A circuit breaker: a target that keeps failing is skipped for a while.
//!
//! ```text
//! closed --5 failures in a row--> open --after 30 s--> half-open --trial succeeds--> closed
//!                                  ^                       |
//!                                  +----- trial fails -----+
//! ```
//!
//! While the breaker is half-open, one request is the trial and the others go to other targets. An answer counts when
//! it ends: one that breaks off midway is a failure. A request that says nothing about the target (its client
//! disconnected, or the request was invalid) counts as neither success nor failure; if it was the trial, the next
//! request becomes the trial.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many failures in a row open the breaker.
pub(crate) const FAILURES: u32 = 5;
/// How long it stays open.
pub(crate) const OPEN_FOR: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

/// Permission for one request to the target. Report the result with [`Permit::succeeded`] or [`Permit::failed`]; a
/// permit that is dropped counts as neither.
#[derive(Debug)]
pub(crate) struct Permit {
    breaker: Arc<Breaker>,
    is_trial: bool,
    is_settled: bool,
}

impl Breaker {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A permit for one request to the target, or `None` if the target is to be skipped now.
    pub(crate) fn permit(self: &Arc<Self>, now: Instant) -> Option<Permit> {
        let is_trial = self.with(|state| match *state {
            State::Closed { .. } => Some(false),
            State::Open { until } if now >= until => {
                *state = State::HalfOpen;
                Some(true)
            }
            State::Open { .. } | State::HalfOpen => None,
        })?;
        Some(Permit { breaker: Arc::clone(self), is_trial, is_settled: false })
    }

    /// Whether the breaker is open or half-open.
    pub(crate) fn is_open(&self) -> bool {
        self.with(|state| !matches!(state, State::Closed { .. }))
    }
}

impl Permit {
    pub(crate) fn succeeded(mut self) {
        self.settle(Ok(()), Instant::now());
    }

    pub(crate) fn failed(mut self) {
        self.settle(Err(()), Instant::now());
    }

    /// Records a result. While the breaker is open or half-open, only the trial's result counts: requests that began
    /// before it opened are ignored.
    fn settle(&mut self, result: Result<(), ()>, now: Instant) {
        self.is_settled = true;
        let is_trial = self.is_trial;
        let open = State::Open { until: now + OPEN_FOR };
        self.breaker.with(|state| {
            *state = match (*state, result) {
                (State::Closed { .. }, Ok(())) => State::Closed { failures: 0 },
                (State::Closed { failures }, Err(())) if failures + 1 < FAILURES => {
                    State::Closed { failures: failures + 1 }
                }
                (State::Closed { .. }, Err(())) => open,
                (State::HalfOpen, Ok(())) if is_trial => State::default(),
                (State::HalfOpen, Err(())) if is_trial => open,
                (other, _) => other,
            };
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_trial && !self.is_settled {
            self.breaker.with(|state| *state = State::Open { until: Instant::now() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(breaker: &Arc<Breaker>, now: Instant) {
        for _ in 0..FAILURES {
            breaker.permit(now).unwrap().settle(Err(()), now);
        }
    }

    #[test]
    fn opens_after_consecutive_failures_and_closes_after_a_trial() {
        let (breaker, start) = (Arc::<Breaker>::default(), Instant::now());
        for _ in 1..FAILURES {
            breaker.permit(start).unwrap().settle(Err(()), start);
        }
        breaker.permit(start).unwrap().settle(Ok(()), start);
        let mut late = breaker.permit(start).unwrap();
        open(&breaker, start);
        assert!(breaker.is_open() && breaker.permit(start + OPEN_FOR / 2).is_none());
        let mut trial = breaker.permit(start + OPEN_FOR).unwrap();
        assert!(breaker.permit(start + OPEN_FOR).is_none());
        // This request began before the breaker opened.
        late.settle(Ok(()), start + OPEN_FOR);
        assert!(breaker.is_open());
        trial.settle(Ok(()), start + OPEN_FOR);
        assert!(!breaker.is_open() && breaker.permit(start + OPEN_FOR).is_some());
    }

    #[test]
    fn failed_trial_reopens_and_unsettled_trial_is_repeated() {
        let (breaker, start) = (Arc::<Breaker>::default(), Instant::now());
        open(&breaker, start);
        let later = start + OPEN_FOR;
        drop(breaker.permit(later).unwrap());
        breaker.permit(later).unwrap().settle(Err(()), later);
        assert!(breaker.permit(later).is_none());
        assert!(breaker.permit(later + OPEN_FOR).is_some());
    }
}
