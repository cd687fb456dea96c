//! Routing: which experts each token goes through.
//!
//! ```text
//! p       = softmax(scores)              sums in order of the experts; or the sigmoid of each score
//! chosen  = the n_used largest p, of equal ones that of the lower number first
//! weight  = p, divided by the sum of the chosen ones in that order (at least 2^-14) if they are normalized
//! out     = chain of mul_adds over the chosen ones in that order: weight * expert(x), or 1 * expert(weight * x)
//! ```
//! Each token is routed on its own, so the result does not depend on the batch. The tokens of each expert are grouped
//! only to multiply with its weights once.

use fewbit_checkpoint::{ExpertConfig, Gating};
use fewbit_kernels::math::{exp, sigmoid};
use std::ops::Range;

/// The routes of a batch.
#[derive(Default)]
pub struct Routing {
    /// `[n_tokens, n_used]`: expert and weight, best first.
    pub chosen: Vec<(usize, f32)>,
    /// `[n_tokens * n_used]`: tokens in order of their experts.
    pub tokens: Vec<usize>,
    /// `[n_tokens * n_used]`: the weight of each of `tokens`.
    pub weights: Vec<f32>,
    /// `[n_tokens, n_used]`: position of each route in `tokens`.
    pub places: Vec<usize>,
    /// Experts that have tokens, and the range of these in `tokens`.
    pub groups: Vec<(usize, Range<usize>)>,
    /// Buffers for one token: probabilities, and indices of experts.
    p: Vec<f32>,
    order: Vec<usize>,
}

impl Routing {
    /// Routes every token by its scores: `[n_tokens, n_experts]`.
    pub fn route(&mut self, config: &ExpertConfig, scores: &[f32]) {
        self.chosen.clear();
        for scores in scores.chunks_exact(config.n_experts) {
            self.choose(config, scores);
        }
        // Counting sort by expert.
        let mut ends = vec![0; config.n_experts + 1];
        for &(expert, _) in &self.chosen {
            ends[expert + 1] += 1;
        }
        for expert in 0..config.n_experts {
            ends[expert + 1] += ends[expert];
        }
        let used = (0..config.n_experts).map(|e| (e, ends[e]..ends[e + 1])).filter(|(_, range)| !range.is_empty());
        self.groups.clear();
        self.groups.extend(used);
        self.tokens.clear();
        self.tokens.resize(self.chosen.len(), 0);
        self.weights.clear();
        self.weights.resize(self.chosen.len(), 0.0);
        self.places.clear();
        for (i, &(expert, weight)) in self.chosen.iter().enumerate() {
            self.tokens[ends[expert]] = i / config.n_used;
            self.weights[ends[expert]] = weight;
            self.places.push(ends[expert]);
            ends[expert] += 1;
        }
    }

    fn choose(&mut self, config: &ExpertConfig, scores: &[f32]) {
        self.p.clear();
        if config.gating == Gating::Sigmoid {
            self.p.extend(scores.iter().map(|&s| sigmoid(s)));
        } else {
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, |m, s| if s > m { s } else { m });
            self.p.extend(scores.iter().map(|&s| exp(s - max)));
            let sum: f32 = self.p.iter().sum();
            self.p.iter_mut().for_each(|p| *p /= sum);
        }
        self.order.clear();
        self.order.extend(0..scores.len());
        // A total order, so that every token gets its experts even if scores are NaN.
        let best = |&a: &usize, &b: &usize| self.p[b].total_cmp(&self.p[a]).then(a.cmp(&b));
        if config.n_used < self.order.len() {
            self.order.select_nth_unstable_by(config.n_used, best);
        }
        let order = &mut self.order[..config.n_used];
        order.sort_unstable_by(best);
        let total: f32 = order.iter().map(|&e| self.p[e]).sum();
        let divisor = if config.is_normalized { total.max(MIN_SUM) } else { 1.0 };
        self.chosen.extend(order.iter().map(|&e| (e, self.p[e] / divisor * config.scale)));
    }
}

/// The smallest sum that weights are divided by.
const MIN_SUM: f32 = 1.0 / 16384.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(n_experts: usize, n_used: usize, is_normalized: bool) -> ExpertConfig {
        ExpertConfig {
            n_experts,
            n_used,
            ffn_dim: 1,
            gating: Gating::Softmax,
            scales_inputs: false,
            is_normalized,
            scale: 1.0,
            shared_ffn_dim: None,
            has_shared_gate: false,
        }
    }

    #[test]
    fn best_experts_are_chosen_and_ties_go_to_the_first() {
        let mut routing = Routing::default();
        routing.route(&config(4, 2, true), &[0.0, 2.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]);
        let experts: Vec<usize> = routing.chosen.iter().map(|c| c.0).collect();
        assert_eq!(experts, [1, 3, 0, 1]);
        assert_eq!(routing.chosen.iter().map(|c| c.1).collect::<Vec<_>>(), [0.5; 4]);
        assert_eq!(routing.groups, [(0, 0..1), (1, 1..3), (3, 3..4)]);
        assert_eq!(routing.tokens, [1, 0, 1, 0]);
        assert_eq!(routing.places, [1, 3, 0, 2]);
        assert_eq!(routing.weights, [0.5; 4]);
    }

    #[test]
    fn weights_are_softmax_probabilities_or_normalized() {
        let mut routing = Routing::default();
        let scores = [1.0f32, -0.5, 0.25, 3.0];
        let exact: Vec<f64> = scores.iter().map(|&s| f64::from(s).exp()).collect();
        let sum: f64 = exact.iter().sum();
        routing.route(&config(4, 2, false), &scores);
        let weights: Vec<f64> = routing.chosen.iter().map(|c| f64::from(c.1)).collect();
        assert!((weights[0] - exact[3] / sum).abs() < 1e-6 && (weights[1] - exact[0] / sum).abs() < 1e-6);
        routing.route(&config(4, 2, true), &scores);
        let weights: Vec<f64> = routing.chosen.iter().map(|c| f64::from(c.1)).collect();
        assert!((weights[0] - exact[3] / (exact[0] + exact[3])).abs() < 1e-6, "{weights:?}");
        assert!((weights[0] + weights[1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn sigmoids_are_weights_of_their_own() {
        let mut routing = Routing::default();
        let config = ExpertConfig { gating: Gating::Sigmoid, ..config(3, 2, false) };
        routing.route(&config, &[-1.0, 2.0, 0.5, 30.0, -2.0, 3.0]);
        let want = [(1, 2.0f64), (2, 0.5), (0, 30.0), (2, 3.0)];
        for (&(expert, weight), (want, score)) in routing.chosen.iter().zip(want) {
            assert_eq!(expert, want);
            assert!((f64::from(weight) - 1.0 / (1.0 + (-score).exp())).abs() < 1e-6, "{weight}");
        }
        // In the order of the experts.
        let by_expert = [routing.chosen[2].1, routing.chosen[0].1, routing.chosen[1].1, routing.chosen[3].1];
        assert_eq!(routing.weights, by_expert);
    }

    #[test]
    fn nan_and_infinite_scores_still_choose_experts() {
        let mut routing = Routing::default();
        routing.route(&config(3, 2, true), &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(routing.chosen.len(), 2);
    }
}
