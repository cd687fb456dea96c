//! Routing: which experts each token goes through.
//!
//! ```text
//! p       = softmax(scores)              sums in order of the experts; or the sigmoid of each score
//! choice  = p [+ bias of the expert]
//! groups  = if experts are in groups, the group's n_best largest choices, added from the largest on; of the groups with
//!           the largest sums, of equal ones those of lower numbers, n_used are used
//! chosen  = of the experts in used groups, the n_used with the largest choice, of equal ones that of the lower number
//!           first
//! weight  = p, divided by the sum of the chosen ones in that order (at least 2^-14) if they are normalized, times the
//!           scale of all [times the factor of the expert]
//! out     = chain of mul_adds over the chosen ones in that order: weight * expert(x), or 1 * expert(weight * x)
//! ```
//! Each token is routed on its own, so the result does not depend on the batch. The tokens of each expert are grouped
//! only to multiply with its weights once.

use fewbit_checkpoint::{ExpertConfig, ExpertGroups, Gating};
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
    /// Buffers for one token: probabilities, the same with biases, sums of groups, and indices of experts.
    p: Vec<f32>,
    choice: Vec<f32>,
    sums: Vec<f32>,
    used: Vec<usize>,
    order: Vec<usize>,
}

impl Routing {
    /// Routes every token by its scores: `[n_tokens, n_experts]`. `bias` is added to choose experts, `[n_experts]`.
    pub fn route(&mut self, config: &ExpertConfig, bias: Option<&[f32]>, scores: &[f32]) {
        self.route_with_factors(config, bias, None, scores);
    }

    /// The same, where experts have factors of their weights, `[n_experts]`.
    pub fn route_with_factors(
        &mut self,
        config: &ExpertConfig,
        bias: Option<&[f32]>,
        factors: Option<&[f32]>,
        scores: &[f32],
    ) {
        self.chosen.clear();
        for scores in scores.chunks_exact(config.n_experts) {
            self.choose(config, bias, scores);
        }
        if let Some(factors) = factors {
            self.chosen.iter_mut().for_each(|(expert, weight)| *weight *= factors[*expert]);
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

    fn choose(&mut self, config: &ExpertConfig, bias: Option<&[f32]>, scores: &[f32]) {
        self.p.clear();
        if config.gating == Gating::Sigmoid {
            self.p.extend(scores.iter().map(|&s| sigmoid(s)));
        } else {
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, |m, s| if s > m { s } else { m });
            self.p.extend(scores.iter().map(|&s| exp(s - max)));
            let sum: f32 = self.p.iter().sum();
            self.p.iter_mut().for_each(|p| *p /= sum);
        }
        self.choice.clear();
        self.choice.extend_from_slice(&self.p);
        if let Some(bias) = bias {
            self.choice.iter_mut().zip(bias).for_each(|(choice, bias)| *choice += bias);
        }
        self.order.clear();
        match config.groups {
            None => self.order.extend(0..scores.len()),
            Some(groups) => self.extend_with_groups(groups),
        }
        // A total order, so that every token gets its experts even if scores are NaN.
        let best = |&a: &usize, &b: &usize| self.choice[b].total_cmp(&self.choice[a]).then(a.cmp(&b));
        if config.n_used < self.order.len() {
            self.order.select_nth_unstable_by(config.n_used, best);
        }
        let order = &mut self.order[..config.n_used];
        order.sort_unstable_by(best);
        let total: f32 = order.iter().map(|&e| self.p[e]).sum();
        let divisor = if config.is_normalized { total.max(MIN_SUM) } else { 1.0 };
        self.chosen.extend(order.iter().map(|&e| (e, self.p[e] / divisor * config.scale)));
    }

    /// Makes `order` the experts of the groups that are used.
    fn extend_with_groups(&mut self, groups: ExpertGroups) {
        let size = self.choice.len() / groups.n_groups;
        self.sums.clear();
        for group in self.choice.chunks_exact(size) {
            // One or two of them, so sorting would be more work.
            let mut best = [f32::NEG_INFINITY; 2];
            for &choice in group {
                if choice.total_cmp(&best[0]).is_gt() {
                    best = [choice, best[0]];
                } else if choice.total_cmp(&best[1]).is_gt() {
                    best[1] = choice;
                }
            }
            self.sums.push(if groups.n_best > 1 { best[0] + best[1] } else { best[0] });
        }
        self.used.clear();
        self.used.extend(0..groups.n_groups);
        self.used.sort_by(|&a, &b| self.sums[b].total_cmp(&self.sums[a]).then(a.cmp(&b)));
        self.used.truncate(groups.n_used);
        self.order.extend(self.used.iter().flat_map(|group| group * size..(group + 1) * size));
    }
}

/// The smallest sum that weights are divided by.
const MIN_SUM: f32 = 1.0 / 16384.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(n_experts: usize, n_used: usize, is_normalized: bool) -> ExpertConfig {
        ExpertConfig {
            next_to_mlp: false,
            n_experts,
            n_used,
            ffn_dim: 1,
            gating: Gating::Softmax,
            groups: None,
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
        routing.route(&config(4, 2, true), None, &[0.0, 2.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]);
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
        routing.route(&config(4, 2, false), None, &scores);
        let weights: Vec<f64> = routing.chosen.iter().map(|c| f64::from(c.1)).collect();
        assert!((weights[0] - exact[3] / sum).abs() < 1e-6 && (weights[1] - exact[0] / sum).abs() < 1e-6);
        routing.route(&config(4, 2, true), None, &scores);
        let weights: Vec<f64> = routing.chosen.iter().map(|c| f64::from(c.1)).collect();
        assert!((weights[0] - exact[3] / (exact[0] + exact[3])).abs() < 1e-6, "{weights:?}");
        assert!((weights[0] + weights[1] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn sigmoids_are_weights_of_their_own() {
        let mut routing = Routing::default();
        let config = ExpertConfig { gating: Gating::Sigmoid, ..config(3, 2, false) };
        routing.route(&config, None, &[-1.0, 2.0, 0.5, 30.0, -2.0, 3.0]);
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
    fn bias_chooses_experts_but_does_not_weight_them() {
        let mut routing = Routing::default();
        let config = ExpertConfig { gating: Gating::Sigmoid, scale: 2.0, ..config(4, 2, true) };
        routing.route(&config, Some(&[0.0, 0.9, 0.0, 0.0]), &[1.0, -1.0, 2.0, 0.5]);
        let p = |score: f64| 1.0 / (1.0 + (-score).exp());
        let experts: Vec<usize> = routing.chosen.iter().map(|c| c.0).collect();
        assert_eq!(experts, [1, 2]);
        for (&(_, weight), score) in routing.chosen.iter().zip([-1.0, 2.0]) {
            assert!((f64::from(weight) - 2.0 * p(score) / (p(-1.0) + p(2.0))).abs() < 1e-6, "{weight}");
        }
    }

    #[test]
    fn experts_are_of_the_best_groups_by_one_or_two_of_them() {
        let mut routing = Routing::default();
        let groups = |n_best| Some(ExpertGroups { n_groups: 3, n_used: 1, n_best });
        // The best expert is in the first group, the best two together are in the last.
        let scores = [4.0, -9.0, 1.0, 1.0, 3.0, 3.0];
        let mut chosen = |n_best, scores: &[f32]| {
            let config = ExpertConfig { gating: Gating::Sigmoid, groups: groups(n_best), ..config(6, 2, false) };
            routing.route(&config, None, scores);
            routing.chosen.iter().map(|c| c.0).collect::<Vec<_>>()
        };
        assert_eq!(chosen(1, &scores), [0, 1]);
        assert_eq!(chosen(2, &scores), [4, 5]);
        assert_eq!(chosen(2, &[0.0; 6]), [0, 1], "of equal groups the first");
        assert_eq!(chosen(2, &[f32::NAN; 6]).len(), 2);
    }

    #[test]
    fn nan_and_infinite_scores_still_choose_experts() {
        let mut routing = Routing::default();
        routing.route(&config(3, 2, true), None, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        assert_eq!(routing.chosen.len(), 2);
    }
}
