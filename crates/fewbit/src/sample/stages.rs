//! The stages: each narrows the candidates, or reshapes their probabilities.
//!
//! The definitions are those of the papers, or else those of llama.cpp. Probabilities are f64; ties are broken by the
//! order of the candidates (larger logit first, then lower id).

use super::candidates::{Candidate, Candidates, best_first};
use super::rng::Rng;
use super::settings::{DynamicTemperature, Sampling, Stage, Xtc};

/// A stage and its setting.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    TopNSigma(f32),
    TopK(usize),
    Typical(f32),
    TopP(f32),
    MinP(f32),
    Xtc(Xtc),
    Temperature(f32),
    DynamicTemperature { around: f32, dynamic: DynamicTemperature },
}

impl Step {
    /// The step for a stage; `None` if its setting turns it off.
    pub(super) fn of(stage: Stage, s: &Sampling) -> Option<Self> {
        match stage {
            Stage::TopNSigma => (s.top_n_sigma > 0.0).then_some(Self::TopNSigma(s.top_n_sigma)),
            Stage::TopK => (s.top_k > 0).then_some(Self::TopK(s.top_k)),
            Stage::Typical => (s.typical_p < 1.0).then_some(Self::Typical(s.typical_p)),
            Stage::TopP => (s.top_p < 1.0).then_some(Self::TopP(s.top_p)),
            Stage::MinP => (s.min_p > 0.0).then_some(Self::MinP(s.min_p)),
            Stage::Xtc => s.xtc.filter(|xtc| xtc.probability > 0.0).map(Self::Xtc),
            Stage::Temperature => match s.dynamic_temperature.filter(|dynamic| dynamic.range > 0.0) {
                Some(dynamic) => Some(Self::DynamicTemperature { around: s.temperature, dynamic }),
                None => Some(Self::Temperature(s.temperature)),
            },
        }
    }

    pub(super) fn apply(self, candidates: &mut Candidates<'_>, rng: &mut Rng) {
        match self {
            Self::TopNSigma(n) => top_n_sigma(candidates, n),
            Self::TopK(k) => candidates.keep_best(k),
            Self::Typical(p) => typical(candidates, p),
            Self::TopP(p) => top_p(candidates, p),
            Self::MinP(p) => min_p(candidates, p),
            Self::Xtc(xtc) => exclude_top_choices(candidates, xtc, rng),
            Self::Temperature(temperature) => candidates.set_temperature(temperature.into()),
            Self::DynamicTemperature { around, dynamic } => dynamic_temperature(candidates, around, dynamic),
        }
    }
}

fn top_p(candidates: &mut Candidates<'_>, p: f32) {
    let enough = f64::from(p) * candidates.total();
    let weight = candidates.weight();
    candidates.keep_prefix(|best| {
        let mut sum = 0.0;
        best.iter()
            .position(|candidate| {
                sum += weight(candidate);
                sum >= enough
            })
            .map(|last| last + 1)
    });
}

/// `p >= min_p * p_max`, computed with logarithms.
fn min_p(candidates: &mut Candidates<'_>, p: f32) {
    let below = libm::log(f64::from(p)) / candidates.inverse_temperature();
    candidates.keep_from(f64::from(candidates.max()) + below);
}

/// Logits within `n` standard deviations of the largest.
fn top_n_sigma(candidates: &mut Candidates<'_>, n: f32) {
    let max = f64::from(candidates.max());
    let list = candidates.list();
    let count = list.len() as f64;
    let mean = list.iter().map(|c| f64::from(c.logit)).sum::<f64>() / count;
    let square = |c: &Candidate| (f64::from(c.logit) - mean) * (f64::from(c.logit) - mean);
    let deviation = (list.iter().map(square).sum::<f64>() / count).sqrt();
    candidates.keep_from(max - f64::from(n) * deviation);
}

/// Locally typical sampling (Meister et al., 2022): keeps the tokens whose surprise is nearest to the entropy, until
/// their probabilities sum to `p`.
fn typical(candidates: &mut Candidates<'_>, p: f32) {
    let probabilities = candidates.probabilities();
    let surprise = |p: f64| -libm::log(p);
    let entropy: f64 = probabilities.iter().filter(|p| **p > 0.0).map(|&p| p * surprise(p)).sum();
    let list = candidates.list();
    let mut by_distance: Vec<(f64, f64, Candidate)> =
        list.iter().zip(&probabilities).map(|(&c, &p)| ((surprise(p) - entropy).abs(), p, c)).collect();
    by_distance.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then_with(|| best_first(&a.2, &b.2)));
    let mut sum = 0.0;
    let last = by_distance.iter().position(|(_, probability, _)| {
        sum += probability;
        sum >= f64::from(p)
    });
    by_distance.truncate(last.map_or(by_distance.len(), |last| last + 1));
    candidates.replace(by_distance.into_iter().map(|(.., candidate)| candidate));
}

fn exclude_top_choices(candidates: &mut Candidates<'_>, xtc: Xtc, rng: &mut Rng) {
    // Always drawn, so that later random numbers do not depend on the logits.
    if rng.next_f64() >= f64::from(xtc.probability) {
        return;
    }
    let probabilities = candidates.probabilities();
    let is_top = |p: f64| p >= f64::from(xtc.threshold);
    let list = candidates.list();
    let tops = list.iter().zip(&probabilities).filter(|(_, p)| is_top(**p)).map(|(&candidate, _)| candidate);
    let Some(least) = tops.max_by(best_first) else { return };
    let kept: Vec<Candidate> = list
        .iter()
        .zip(&probabilities)
        .filter(|(candidate, p)| !is_top(**p) || candidate.id == least.id)
        .map(|(&candidate, _)| candidate)
        .collect();
    if kept.len() < list.len() {
        candidates.replace(kept);
    }
}

/// The entropy of the candidates, as a fraction of the largest possible one, sets the temperature within its range.
fn dynamic_temperature(candidates: &mut Candidates<'_>, around: f32, dynamic: DynamicTemperature) {
    let (around, range) = (f64::from(around), f64::from(dynamic.range));
    let (low, high) = ((around - range).max(0.0), around + range);
    let probabilities = candidates.probabilities();
    if probabilities.len() < 2 {
        return;
    }
    let entropy: f64 = probabilities.iter().filter(|p| **p > 0.0).map(|&p| -p * libm::log(p)).sum();
    let normalized = (entropy / libm::log(probabilities.len() as f64)).clamp(0.0, 1.0);
    candidates.set_temperature(low + (high - low) * libm::pow(normalized, f64::from(dynamic.exponent)));
}

/// Mirostat v2 (Basu et al., 2021): its state, and the two steps before and after the draw.
#[derive(Debug, Clone)]
pub(super) struct MirostatState {
    tau: f64,
    eta: f64,
    /// The most surprise that a candidate may have, in bits.
    mu: f64,
}

impl MirostatState {
    pub(super) fn new(settings: super::Mirostat) -> Self {
        let tau = f64::from(settings.tau);
        Self { tau, eta: settings.eta.into(), mu: 2.0 * tau }
    }

    /// Removes candidates that are too surprising, but never the most probable one.
    pub(super) fn narrow(&self, candidates: &mut Candidates<'_>) {
        let total = candidates.total();
        let weight = candidates.weight();
        // -log2(w / total) <= mu
        let at_least = total * libm::exp2(-self.mu);
        let kept: Vec<Candidate> = candidates.list().iter().filter(|c| weight(c) >= at_least).copied().collect();
        if kept.is_empty() {
            candidates.keep_best(1);
        } else {
            candidates.replace(kept);
        }
    }

    /// Updates `mu` with the probability of the token that was drawn.
    pub(super) fn learn(&mut self, probability: f64) {
        self.mu -= self.eta * (-libm::log2(probability) - self.tau);
    }
}
