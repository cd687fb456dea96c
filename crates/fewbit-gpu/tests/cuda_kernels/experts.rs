//! Routing, and the sums of experts' outputs.

use crate::memory::{Memory, Random, assert_bits, run};
use fewbit_gpu::cuda::kernels::{CombineParams, Route, RouteParams, RoutedParams};
use fewbit_kernels::math::sigmoid;
use fewbit_model::{ExpertConfig, ExpertGroups, Gating, Routing};

#[test]
fn routes_and_their_weights_are_those_of_the_cpu() {
    let random = &mut Random(1);
    let groups = |n_groups, n_used, n_best| Some(ExpertGroups { n_groups, n_used, n_best });
    for (n_experts, n_used, is_normalized, gating, has_bias, groups) in [
        (2, 1, false, Gating::Softmax, false, None),
        (8, 2, true, Gating::Softmax, false, None),
        (60, 4, false, Gating::Softmax, false, None),
        (128, 8, true, Gating::Softmax, false, None),
        (5, 5, true, Gating::Softmax, false, None),
        (5, 2, false, Gating::Sigmoid, false, None),
        (128, 8, true, Gating::Sigmoid, true, None),
        (12, 3, false, Gating::Softmax, false, groups(4, 2, 1)),
        (256, 8, true, Gating::Sigmoid, true, groups(8, 4, 2)),
        (120, 2, true, Gating::Sigmoid, true, groups(60, 1, 2)),
    ] {
        let n_rows = 9;
        let mut scores = random.floats(n_rows * n_experts, 6.0);
        // Equal scores, and some that differ so much that probabilities are 0.
        scores[..n_experts].fill(1.0);
        scores[n_experts..2 * n_experts].iter_mut().enumerate().for_each(|(i, s)| *s = -(i as f32) * 30.0);
        scores[2 * n_experts..3 * n_experts].iter_mut().for_each(|s| *s = s.round());
        let bias = random.floats(n_experts, 1.0);
        let (memory, mut routes) = (Memory::of(&scores), Memory::<Route>::new(n_rows * n_used));
        let [n_groups, n_groups_used, n_best] = groups.map_or([0; 3], |g| [g.n_groups, g.n_used, g.n_best]);
        let bias_memory = Memory::of(&bias);
        let mut choices = Memory::<f32>::new(n_rows * (n_experts + n_groups));
        let params = RouteParams {
            scores: memory.address(),
            bias: if has_bias { bias_memory.address() } else { 0 },
            choices: if has_bias || groups.is_some() { choices.address() } else { 0 },
            routes: routes.address(),
            n_rows: n_rows as u32,
            n_experts: n_experts as u32,
            n_used: n_used as u32,
            is_normalized: u32::from(is_normalized),
            scale: 2.5,
            is_sigmoid: u32::from(gating == Gating::Sigmoid),
            n_groups: n_groups as u32,
            n_groups_used: n_groups_used as u32,
            n_best: n_best as u32,
            unused: 0,
        };
        if run(&params.launch(), &params).is_none() {
            return;
        }
        let config = ExpertConfig {
            next_to_mlp: false,
            n_experts,
            n_used,
            ffn_dim: 1,
            gating,
            groups,
            scales_inputs: false,
            is_normalized,
            scale: 2.5,
            shared_ffn_dim: None,
            has_shared_gate: false,
        };
        let mut want = Routing::default();
        want.route(&config, has_bias.then_some(&bias[..]), &scores);
        for (i, (got, (expert, weight))) in routes.get().iter().zip(want.chosen).enumerate() {
            let got = (got.expert as usize, got.weight.to_bits());
            assert_eq!(got, (expert, weight.to_bits()), "route {i} of {n_experts} experts");
        }
        routes.check();
        choices.check();
    }
}

#[test]
fn rows_of_routes_get_the_biases_of_their_experts_or_their_weights() {
    let random = &mut Random(3);
    for (n_rows, n_used, n_cols) in [(1, 1, 3), (5, 3, 300)] {
        let (n_routes, n_experts) = (n_rows * n_used, 4);
        let weights = random.floats(n_routes, 1.0);
        let route = |weight| Route { expert: random.next() % n_experts, weight };
        let routes: Vec<_> = weights.into_iter().map(route).collect();
        let (biases, inputs) = (random.floats(n_experts as usize * n_cols, 2.0), random.floats(n_rows * n_cols, 2.0));
        let before = random.floats(n_routes * n_cols, 2.0);
        let (routes_memory, biases_memory, inputs_memory) =
            (Memory::of(&routes), Memory::of(&biases), Memory::of(&inputs));
        for is_bias in [true, false] {
            let mut to = Memory::of(&before);
            let params = RoutedParams {
                other: if is_bias { biases_memory.address() } else { inputs_memory.address() },
                routes: routes_memory.address(),
                to: to.address(),
                n_routes: n_routes as u32,
                n_cols: n_cols as u32,
                routes_per_row: n_used as u32,
                unused: 0,
            };
            if run(&params.launch(is_bias), &params).is_none() {
                return;
            }
            let element = |i: usize| {
                let (route, col) = (i / n_cols, i % n_cols);
                match is_bias {
                    true => before[i] + biases[routes[route].expert as usize * n_cols + col],
                    false => inputs[route / n_used * n_cols + col] * routes[route].weight,
                }
            };
            let want: Vec<f32> = (0..n_routes * n_cols).map(element).collect();
            assert_bits(to.get(), &want, &format!("{n_routes} routes, biases: {is_bias}"));
            to.check();
        }
    }
}

/// Scores that are no numbers still give every row its experts.
#[test]
fn every_row_has_experts_that_exist() {
    let scores = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, 2.0];
    let (memory, routes) = (Memory::of(&scores), Memory::<Route>::new(4));
    let params = RouteParams {
        scores: memory.address(),
        routes: routes.address(),
        n_rows: 2,
        n_experts: 3,
        n_used: 2,
        is_normalized: 1,
        scale: 1.0,
        ..RouteParams::default()
    };
    if run(&params.launch(), &params).is_none() {
        return;
    }
    for routes in routes.get().chunks_exact(2) {
        assert!(routes.iter().all(|route| route.expert < 3) && routes[0].expert != routes[1].expert, "{routes:?}");
    }
}

#[test]
fn combined_outputs_have_the_bits_of_the_definition() {
    let random = &mut Random(2);
    for (n_rows, n_cols, n_used, has_shared, has_score, weighs) in [
        (1, 5, 1, false, false, true),
        (7, 300, 4, true, false, true),
        (33, 32, 2, true, true, true),
        (7, 300, 2, true, false, false),
    ] {
        let outputs = random.floats(n_rows * n_used * n_cols, 2.0);
        let routes: Vec<_> =
            random.floats(n_rows * n_used, 1.0).into_iter().map(|weight| Route { expert: 0, weight }).collect();
        let (shared, score) = (random.floats(n_rows * n_cols, 2.0), random.floats(n_rows, 3.0));
        let (outputs_memory, routes_memory) = (Memory::of(&outputs), Memory::of(&routes));
        let (shared_memory, score_memory, mut to) =
            (Memory::of(&shared), Memory::of(&score), Memory::new(n_rows * n_cols));
        let params = CombineParams {
            outputs: outputs_memory.address(),
            routes: routes_memory.address(),
            shared: if has_shared { shared_memory.address() } else { 0 },
            shared_score: if has_score { score_memory.address() } else { 0 },
            to: to.address(),
            n_rows: n_rows as u32,
            n_cols: n_cols as u32,
            n_used: n_used as u32,
            weighs: u32::from(weighs),
        };
        if run(&params.launch(), &params).is_none() {
            return;
        }
        let element = |i: usize| {
            let (row, col) = (i / n_cols, i % n_cols);
            let mut sum = 0.0f32;
            for route in row * n_used..(row + 1) * n_used {
                let weight = if weighs { routes[route].weight } else { 1.0 };
                sum = outputs[route * n_cols + col].mul_add(weight, sum);
            }
            let weight = if has_score { sigmoid(score[row]) } else { 1.0 };
            if has_shared { shared[i].mul_add(weight, sum) } else { sum }
        };
        let want: Vec<f32> = (0..n_rows * n_cols).map(element).collect();
        assert_bits(to.get(), &want, &format!("{n_rows} rows of {n_used} experts"));
        to.check();
    }
}
