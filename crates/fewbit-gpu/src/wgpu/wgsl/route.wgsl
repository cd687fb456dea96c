// The experts of every token, best first, and their weights; see `fewbit_model`'s routing. The scores are used up.

@group(0) @binding(2) var<storage, read_write> scores: array<f32>;
@group(0) @binding(3) var<storage, read_write> routes: array<vec2<u32>>;
#if CHOICES
// Of each token what its experts are chosen by, then the sums of their groups: bits, which include numbers that are none.
@group(0) @binding(4) var<storage, read_write> choices: array<u32>;
#endif
#if BIASED
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif
#if FACTORS
@group(0) @binding(6) var<storage, read> factors: array<f32>;
#endif

// The place of a number in the total order of floats.
fn order_of(x: u32) -> i32 {
    let bits = bitcast<i32>(x);
    return select(bits, bits ^ 0x7fffffff, bits < 0);
}

// Whether a comes before b: the larger number, of equal ones the lower index.
fn is_before(order_a: i32, a: u32, order_b: i32, b: u32) -> bool {
    return order_a > order_b || (order_a == order_b && a < b);
}

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    // shape: width = experts, a = used, b = 1 if weights are normalized, c = groups, d = those used, e = how many experts
    // of a group count, f = factor.
    let token = group.y;
    let base = token * shape.width;
#if SIGMOID
    for (var e = 0u; e < shape.width; e++) { scores[base + e] = sigmoid_(scores[base + e]); }
#else
    var top = scores[base];
    for (var e = 1u; e < shape.width; e++) { if (scores[base + e] > top) { top = scores[base + e]; } }
    var sum = 0.0;
    for (var e = 0u; e < shape.width; e++) {
        let p = exp_(sub_(scores[base + e], top));
        scores[base + e] = p;
        sum = add_(sum, p);
    }
    for (var e = 0u; e < shape.width; e++) { scores[base + e] = div_(scores[base + e], sum); }
#endif
#if CHOICES
    let choices_at = token * (shape.width + shape.c);
    for (var e = 0u; e < shape.width; e++) {
        var choice = scores[base + e];
#if BIASED
        choice = add_(choice, bias[e]);
#endif
        choices[choices_at + e] = bitcast<u32>(choice);
    }
#endif
#if GROUPED
    let sums_at = choices_at + shape.width;
    let size = shape.width / shape.c;
    for (var g = 0u; g < shape.c; g++) {
        var best = 0xff800000u;
        var second = best;
        for (var e = g * size; e < (g + 1u) * size; e++) {
            let choice = choices[choices_at + e];
            if (order_of(choice) > order_of(best)) {
                second = best;
                best = choice;
            } else if (order_of(choice) > order_of(second)) {
                second = choice;
            }
        }
        if (shape.e > 1u) { best = bitcast<u32>(add_(bitcast<f32>(best), bitcast<f32>(second))); }
        choices[sums_at + g] = best;
    }
    // Experts of groups that are not used come after all others.
    for (var g = 0u; g < shape.c; g++) {
        let order = order_of(choices[sums_at + g]);
        var before = 0u;
        for (var i = 0u; i < shape.c; i++) {
            if (is_before(order_of(choices[sums_at + i]), i, order, g)) { before += 1u; }
        }
        if (before >= shape.d) {
            for (var e = g * size; e < (g + 1u) * size; e++) { choices[choices_at + e] = 0xffffffffu; }
        }
    }
#endif
    var last_order = 0x7fffffff;
    var last = 0u;
    var total = 0.0;
    for (var used = 0u; used < shape.a; used++) {
        // The first of those after the last one.
        var best = bitcast<i32>(0x80000000u);
        var expert = 0xffffffffu;
        for (var e = 0u; e < shape.width; e++) {
#if CHOICES
            let own = order_of(choices[choices_at + e]);
#else
            let own = order_of(bitcast<u32>(scores[base + e]));
#endif
            if ((used == 0u || is_before(last_order, last, own, e)) && is_before(own, e, best, expert)) {
                best = own;
                expert = e;
            }
        }
        last_order = best;
        last = expert;
        let p = scores[base + expert];
        total = add_(total, p);
        routes[token * shape.a + used] = vec2<u32>(expert, bitcast<u32>(p));
    }
    let divisor = select(1.0, max(total, 0.00006103515625), shape.b == 1u);
    for (var used = 0u; used < shape.a; used++) {
        let at = token * shape.a + used;
        var weight = mul_(div_(bitcast<f32>(routes[at].y), divisor), shape.f);
#if FACTORS
        weight = mul_(weight, factors[routes[at].x]);
#endif
        routes[at].y = bitcast<u32>(weight);
    }
}
