//! Limits of a key: requests per minute, tokens and cost per day.
//!
//! Requests are limited by a token bucket: it refills steadily, and allows a burst of one minute's requests. Tokens and
//! cost are reserved when an answer begins, as far as its length is bounded, and settled when it ends, so that
//! concurrent answers cannot exceed a limit together.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::keys::Key;

const DAY_MS: u64 = 24 * 3600 * 1000;
const MINUTE: Duration = Duration::from_secs(60);

/// What a key has used.
#[derive(Debug, Default)]
struct Account {
    /// When the token bucket of requests will be full again.
    full_at: Option<Instant>,
    /// The day (since 1970) to which `tokens` and `cost` belong.
    day: u64,
    tokens: u64,
    cost: f64,
    reserved_tokens: u64,
    reserved_cost: f64,
}

impl Account {
    /// Moves the account to this day. Reservations are kept: an answer counts for the day on which it ends.
    fn on(&mut self, day: u64) -> &mut Self {
        if self.day != day {
            (self.day, self.tokens, self.cost) = (day, 0, 0.0);
        }
        self
    }
}

/// The accounts of all keys.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    accounts: HashMap<String, Account>,
}

/// What is reserved for an answer: the most that it may take, or 0 if its length is not bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Reserved {
    pub(crate) tokens: u64,
    pub(crate) cost: f64,
}

/// Which limit refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Requests { retry_after: Duration },
    Tokens { retry_after: Duration },
    Cost,
}

impl Limits {
    fn account(&mut self, key: &str) -> &mut Account {
        if !self.accounts.contains_key(key) {
            self.accounts.insert(key.to_owned(), Account::default());
        }
        self.accounts.entry(key.to_owned()).or_default()
    }

    /// Admits a request, or returns after how long to retry.
    pub(crate) fn enter(&mut self, key: &Key, now: Instant) -> Result<(), Refusal> {
        let Some(n) = key.requests_per_minute else { return Ok(()) };
        if n == 0 {
            return Err(Refusal::Requests { retry_after: MINUTE });
        }
        let account = self.account(&key.name);
        let full_at = account.full_at.unwrap_or(now).max(now) + MINUTE / n;
        let over = full_at.saturating_duration_since(now).checked_sub(MINUTE).filter(|over| !over.is_zero());
        match over {
            Some(retry_after) => Err(Refusal::Requests { retry_after }),
            None => {
                account.full_at = Some(full_at);
                Ok(())
            }
        }
    }

    /// Reserves what an answer may take.
    pub(crate) fn reserve(&mut self, key: &Key, want: Reserved, now_ms: u64) -> Result<(), Refusal> {
        let account = self.account(&key.name).on(now_ms / DAY_MS);
        let retry_after = Duration::from_millis(DAY_MS - now_ms % DAY_MS);
        let tokens = account.tokens.saturating_add(account.reserved_tokens).saturating_add(want.tokens);
        // An answer of unbounded length is admitted as long as anything is left.
        if key.tokens_per_day.is_some_and(|limit| tokens > limit || account.tokens >= limit) {
            return Err(Refusal::Tokens { retry_after });
        }
        let cost = account.cost + account.reserved_cost + want.cost;
        if key.cost_per_day.is_some_and(|limit| cost > limit || account.cost >= limit) {
            return Err(Refusal::Cost);
        }
        account.reserved_tokens = account.reserved_tokens.saturating_add(want.tokens);
        account.reserved_cost += want.cost;
        Ok(())
    }

    /// Replaces the reservation of an answer that has ended with what it actually took.
    pub(crate) fn settle(&mut self, key: &str, reserved: Reserved, tokens: u64, cost: f64, now_ms: u64) {
        let account = self.account(key).on(now_ms / DAY_MS);
        account.reserved_tokens = account.reserved_tokens.saturating_sub(reserved.tokens);
        account.reserved_cost = (account.reserved_cost - reserved.cost).max(0.0);
        account.tokens = account.tokens.saturating_add(tokens);
        account.cost += cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_rate_is_limited_per_minute() {
        let key = Key { name: "a".into(), requests_per_minute: Some(3), ..Key::default() };
        let mut limits = Limits::default();
        let start = Instant::now();
        let mut at = |s: u64| limits.enter(&key, start + Duration::from_secs(s));
        assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
        assert_eq!(at(0), Err(Refusal::Requests { retry_after: Duration::from_secs(20) }));
        assert_eq!(at(15), Err(Refusal::Requests { retry_after: Duration::from_secs(5) }));
        assert_eq!([at(20), at(40), at(60), at(600), at(600), at(600)], [Ok(()); 6]);
        assert!(at(600).is_err());
        let none = Key { requests_per_minute: Some(0), ..key };
        assert!(limits.enter(&none, start).is_err());
    }

    #[test]
    fn concurrent_reservations_stay_within_daily_limits() {
        let key = Key { name: "a".into(), tokens_per_day: Some(100), cost_per_day: Some(1.0), ..Key::default() };
        let mut limits = Limits::default();
        let want = |tokens, cost| Reserved { tokens, cost };
        let retry_after = Duration::from_millis(DAY_MS - 5);
        assert_eq!(limits.reserve(&key, want(60, 0.1), 5), Ok(()));
        assert_eq!(limits.reserve(&key, want(60, 0.1), 5), Err(Refusal::Tokens { retry_after }));
        assert_eq!(limits.reserve(&key, want(40, 0.95), 5), Err(Refusal::Cost));
        limits.settle("a", want(60, 0.1), 30, 0.9, 6);
        assert_eq!(limits.reserve(&key, want(60, 0.0), 7), Ok(()));
        limits.settle("a", want(60, 0.0), 70, 0.0, 8);
        assert!(limits.reserve(&key, want(0, 0.0), 9).is_err());
        // On another day the limit is available again.
        assert_eq!(limits.reserve(&key, want(100, 1.0), DAY_MS), Ok(()));
    }
}
