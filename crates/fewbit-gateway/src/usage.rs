//! Usage, summed up from the audit log.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::audit::{Outcome, verify};
use crate::error::GatewayError;

/// How to group the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum By {
    /// By the name of the key.
    Key,
    /// By the model or route that was requested.
    Model,
    /// By the route target that answered, or the model if there was no route.
    Backend,
    /// By the version of the prompt that was named, such as `support@3`.
    Prompt,
    /// By the feature of the client's program that the request was for, as far as clients say so.
    Feature,
    /// By the day (UTC), such as `2026-11-28`.
    Day,
}

/// The sums of one group.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// The name of the group: a key, model, backend, prompt, feature or day; `-` for what has none.
    pub of: String,
    /// Answers, including those that failed or were cancelled.
    pub answers: u64,
    /// Requests that were not admitted: they were invalid, not allowed, or too many.
    pub refused: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// How many of them were found in the cache.
    pub cached_tokens: u64,
    /// Generated tokens.
    pub completion_tokens: u64,
    /// Cost, in the currency of the prices.
    pub cost: f64,
    /// Answers that came from a fallback target of a route.
    pub fallbacks: u64,
    /// Answers whose token counts are estimates.
    pub estimated: u64,
}

/// Sums up the log of a store, and verifies the log while reading it.
///
/// # Errors
/// The errors of [`verify`].
pub fn usage(store: impl AsRef<Path>, by: By) -> Result<Vec<Row>, GatewayError> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    verify(store, None, |entry| {
        if !entry.is_of_answer() {
            return;
        }
        let of = match by {
            By::Key => entry.key.clone().unwrap_or_else(|| "-".to_owned()),
            By::Model => entry.model.clone(),
            By::Backend => entry.backend.clone().unwrap_or_else(|| entry.model.clone()),
            By::Prompt => entry.prompt.clone().unwrap_or_else(|| "-".to_owned()),
            By::Feature => entry.feature.clone().unwrap_or_else(|| "-".to_owned()),
            By::Day => date(entry.time_ms),
        };
        let row = rows.entry(of.clone()).or_insert_with(|| Row { of, ..Row::default() });
        match entry.outcome {
            Outcome::Refused => row.refused += 1,
            _ => row.answers += 1,
        }
        row.prompt_tokens += entry.prompt_tokens;
        row.cached_tokens += entry.cached_tokens;
        row.completion_tokens += entry.completion_tokens;
        row.cost += entry.cost;
        row.fallbacks += u64::from(entry.fallback);
        row.estimated += u64::from(entry.estimated);
    })?;
    Ok(rows.into_values().collect())
}

/// The UTC date of a time. Computed in eras of 400 years whose years begin in March, so that a leap day is the last day
/// of its year.
pub fn date(time_ms: u64) -> String {
    let days = time_ms / (24 * 3600 * 1000) + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A time in seconds since 1970 as a UTC date and time, such as `2026-11-28 09:41:07`.
pub fn date_time(time_s: u64) -> String {
    let second = time_s % (24 * 3600);
    let day = date(time_s.saturating_mul(1000));
    format!("{day} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Audit, Entry, tests::entry};

    #[test]
    fn dates_are_computed_from_unix_time() {
        let of = |days: u64| date(days * 24 * 3600 * 1000 + 5);
        let want = ["1970-01-01", "1970-12-31", "2000-02-29", "2000-03-01", "2024-02-29", "2026-11-28", "2100-03-01"];
        assert_eq!(date_time(1_795_858_867), "2026-11-28 09:41:07");
        assert_eq!([0, 364, 11_016, 11_017, 19_782, 20_785, 47_541].map(of), want);
    }

    #[test]
    fn usage_is_summed_by_key_model_and_day() {
        let folder = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(folder.path(), |_| ()).unwrap();
        audit.append(entry("ada", 0, 5)).unwrap();
        audit.append(entry("bob", 1, 7)).unwrap();
        let refused =
            Entry { outcome: Outcome::Refused, prompt_tokens: 0, cached_tokens: 0, cost: 0.0, ..entry("ada", 2, 0) };
        audit.append(refused).unwrap();
        let row = |of: &str, answers, refused, completion_tokens| Row {
            of: of.into(),
            answers,
            refused,
            prompt_tokens: 3 * answers,
            cached_tokens: answers,
            completion_tokens,
            cost: 0.5 * answers as f64,
            ..Row::default()
        };
        assert_eq!(usage(folder.path(), By::Key).unwrap(), [row("ada", 1, 1, 5), row("bob", 1, 0, 7)]);
        assert_eq!(usage(folder.path(), By::Model).unwrap(), [row("m", 2, 1, 12)]);
        assert_eq!(usage(folder.path(), By::Day).unwrap(), [row("1970-01-01", 2, 1, 12)]);
    }
}
