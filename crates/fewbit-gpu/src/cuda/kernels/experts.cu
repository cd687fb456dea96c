// Routing to experts, as `routing` in `fewbit_model` defines it.
#include "functions.h"

// The place of a number in the total order of floats.
DEVICE i32 order_of(float x) {
    i32 bits = (i32)bits_of(x);
    return bits < 0 ? (i32)((u32)bits ^ 0x7fffffffu) : bits;
}

// Whether expert a comes before expert b: the larger probability, of equal ones the lower number.
DEVICE bool is_before(i32 order_a, u32 a, i32 order_b, u32 b) { return order_a > order_b || (order_a == order_b && a < b); }

// What experts are chosen by: probabilities and their biases. With groups, experts of those that are not used come after
// all others.
DEVICE const float *choices_of(const RouteParams &p, const float *scores) {
    if (p.choices == nullptr) return scores;
    u32 lane = thread(), n = p.n_experts;
    float *choices = p.choices + (u64)block_x() * (n + p.n_groups), *sums = choices + n;
    for (u32 e = lane; e < n; e += 32) choices[e] = p.bias == nullptr ? scores[e] : add_(scores[e], p.bias[e]);
    barrier();
    if (p.n_groups == 0) return choices;
    u32 size = n / p.n_groups;
    for (u32 g = lane; g < p.n_groups; g += 32) {
        float best = of_bits(0xff800000u), second = best;
        for (u32 e = g * size; e < (g + 1) * size; e++) {
            if (order_of(choices[e]) > order_of(best)) {
                second = best;
                best = choices[e];
            } else if (order_of(choices[e]) > order_of(second)) {
                second = choices[e];
            }
        }
        sums[g] = p.n_best > 1 ? add_(best, second) : best;
    }
    barrier();
    for (u32 g = lane; g < p.n_groups; g += 32) {
        i32 order = order_of(sums[g]);
        u32 before = 0;
        for (u32 i = 0; i < p.n_groups; i++) before += is_before(order_of(sums[i]), i, order, g);
        if (before < p.n_groups_used) continue;
        for (u32 e = g * size; e < (g + 1) * size; e++) choices[e] = of_bits(0xffffffffu);
    }
    barrier();
    return choices;
}

// A warp for each row.
KERNEL(32, route, RouteParams) {
    SHARED float shared_sum;
    u32 lane = thread(), n = p.n_experts;
    float *scores = p.scores + (u64)block_x() * n;
    Route *routes = p.routes + (u64)block_x() * p.n_used;
    if (p.is_sigmoid) {
        for (u32 e = lane; e < n; e += 32) scores[e] = sigmoid(scores[e]);
    } else {
        float top = of_bits(0xff800000u);
        for (u32 e = lane; e < n; e += 32) top = larger(top, scores[e]);
        UNROLL for (u32 width = 16; width > 0; width /= 2) top = larger(top, shuffle_xor(top, width));
        for (u32 e = lane; e < n; e += 32) scores[e] = exp_(sub_(scores[e], top));
        barrier();
        if (lane == 0) {
            float sum = 0.0f;
            for (u32 e = 0; e < n; e++) sum = add_(sum, scores[e]);
            shared_sum = sum;
        }
        barrier();
        for (u32 e = lane; e < n; e += 32) scores[e] = div_(scores[e], shared_sum);
    }
    const float *choices = choices_of(p, scores);
    i32 last_order = 0x7fffffff;
    u32 last = 0;
    bool is_first = true;
    float total = 0.0f;
    for (u32 used = 0; used < p.n_used; used++) {
        // The first of those after the last one.
        i32 order = (i32)0x80000000;
        u32 expert = ~0u;
        for (u32 e = lane; e < n; e += 32) {
            i32 own = order_of(choices[e]);
            if ((is_first || is_before(last_order, last, own, e)) && is_before(own, e, order, expert)) {
                order = own;
                expert = e;
            }
        }
        UNROLL for (u32 width = 16; width > 0; width /= 2) {
            i32 other_order = shuffle_xor(order, width);
            u32 other = shuffle_xor(expert, width);
            if (is_before(other_order, other, order, expert)) {
                order = other_order;
                expert = other;
            }
        }
        last_order = order;
        last = expert;
        is_first = false;
        // Written by another thread of the warp, before the barrier.
        barrier();
        float weight = scores[expert];
        total = add_(total, weight);
        if (lane == 0) routes[used] = Route{expert, weight};
    }
    if (lane != 0) return;
    const float smallest = 1.0f / 16384.0f;
    float divisor = p.is_normalized ? (total > smallest ? total : smallest) : 1.0f;
    for (u32 used = 0; used < p.n_used; used++) {
        routes[used].weight = mul_(div_(routes[used].weight, divisor), p.scale);
    }
}

// One block. A thread for each expert finds the expert's routes, in order.
KERNEL(256, group, GroupParams) {
    const u32 tile = 64;
    u32 *counts = p.scratch;
    for (u32 e = thread(); e < p.n_experts; e += 256) {
        u32 count = 0;
        for (u32 i = 0; i < p.n_routes; i++) count += p.routes[i].expert == e;
        counts[e] = count;
    }
    barrier();
    for (u32 e = thread(); e < p.n_experts; e += 256) {
        u32 at = 0, tiles_at = 0;
        for (u32 before = 0; before < e; before++) {
            at += counts[before];
            tiles_at += (counts[before] + tile - 1) / tile;
        }
        u32 end = at + counts[e];
        for (u32 first = at; first < end; first += tile, tiles_at++) {
            u32 *to = p.tiles + tiles_at * 3;
            to[0] = e;
            to[1] = first;
            to[2] = least(first + tile, end);
        }
        for (u32 i = 0; at < end; i++) {
            if (p.routes[i].expert == e) p.order[at++] = i;
        }
        if (e + 1 == p.n_experts) {
            for (; tiles_at < p.n_experts + p.n_routes / tile; tiles_at++) {
                u32 *to = p.tiles + tiles_at * 3;
                to[0] = to[1] = to[2] = 0;
            }
        }
    }
}

// A block for the columns of a route's row.
KERNEL(256, bias_experts, RoutedParams) {
    u32 col = block_y() * 256 + thread(), route = block_x();
    if (col >= p.n_cols) return;
    u64 at = (u64)route * p.n_cols + col;
    p.to[at] = add_(p.to[at], p.other[(u64)p.routes[route].expert * p.n_cols + col]);
}

KERNEL(256, weigh, RoutedParams) {
    u32 col = block_y() * 256 + thread(), route = block_x();
    if (col >= p.n_cols) return;
    float x = p.other[(u64)(route / p.routes_per_row) * p.n_cols + col];
    p.to[(u64)route * p.n_cols + col] = mul_(x, p.routes[route].weight);
}

KERNEL(256, combine, CombineParams) {
    u32 col = block_y() * 256 + thread(), row = block_x();
    if (col >= p.n_cols) return;
    float sum = 0.0f;
    for (u64 i = (u64)row * p.n_used; i < (u64)(row + 1) * p.n_used; i++) {
        sum = fma_(p.outputs[i * p.n_cols + col], p.weighs ? p.routes[i].weight : 1.0f, sum);
    }
    if (p.shared != nullptr) {
        float weight = p.shared_score != nullptr ? sigmoid(p.shared_score[row]) : 1.0f;
        sum = fma_(p.shared[(u64)row * p.n_cols + col], weight, sum);
    }
    p.to[(u64)row * p.n_cols + col] = sum;
}
