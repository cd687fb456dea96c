// The experts of every token, best first, and their weights; see `fewbit_model`'s routing. The scores are used up.

@group(0) @binding(2) var<storage, read_write> scores: array<f32>;
@group(0) @binding(3) var<storage, read_write> routes: array<vec2<u32>>;

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    // shape: width = experts, a = used, b = 1 if weights are normalized, f = factor.
    let token = group.y;
    let base = token * shape.width;
    var top = scores[base];
    for (var e = 1u; e < shape.width; e++) { if (scores[base + e] > top) { top = scores[base + e]; } }
    var sum = 0.0;
    for (var e = 0u; e < shape.width; e++) {
        let p = exp_(sub_(scores[base + e], top));
        scores[base + e] = p;
        sum = add_(sum, p);
    }
    for (var e = 0u; e < shape.width; e++) { scores[base + e] = div_(scores[base + e], sum); }
    var last = 2.0;
    var last_expert = 0u;
    var total = 0.0;
    for (var used = 0u; used < shape.a; used++) {
        // The best of those after the last one. Of scores that are no numbers any will do.
        var best = -1.0;
        var expert = used;
        for (var e = 0u; e < shape.width; e++) {
            let p = scores[base + e];
            if ((p < last || (p == last && e > last_expert)) && p > best) {
                best = p;
                expert = e;
            }
        }
        last = best;
        last_expert = expert;
        let p = scores[base + expert];
        total = add_(total, p);
        routes[token * shape.a + used] = vec2<u32>(expert, bitcast<u32>(p));
    }
    let divisor = select(1.0, max(total, 0.00006103515625), shape.b == 1u);
    for (var used = 0u; used < shape.a; used++) {
        let at = token * shape.a + used;
        let weight = mul_(div_(bitcast<f32>(routes[at].y), divisor), shape.f);
        routes[at].y = bitcast<u32>(weight);
    }
}
