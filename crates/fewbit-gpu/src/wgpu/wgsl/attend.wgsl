// Attention of one query head over the pages that it sees, page after page in order; see `fewbit_kernels`' attention.rs.

@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read> tables: array<u32>;
@group(0) @binding(4) var<storage, read> pool: array<u32>;
@group(0) @binding(5) var<storage, read_write> to: array<f32>;

var<workgroup> query: array<f32, HEAD>;
var<workgroup> p: array<f32, 256>;
var<workgroup> reduced: array<f32, 64>;

fn element(at: u32, i: u32) -> f32 {
#if HALF
    let word = pool[at + i / 2u];
    if ((i & 1u) == 0u) { return half_low(word); }
    return half_high(word);
#else
    return bitcast<f32>(pool[at + i]);
#endif
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    // shape: width = all query heads, part = head, a, b, c as in append, d = query heads of a key head, e = window or 0;
    // f = scale, g = cap or 0, h = 1 / cap.
    let head = group.x;
    let row = group.y;
    let n = shape.part;
    let sequence = step.sequence_at + tables[step.row_at + row] * 6u;
    let position = tables[sequence + 2u] + row - tables[sequence];
    var low = 0u;
    if (shape.e > 0u && position + 1u > shape.e) { low = position + 1u - shape.e; }
    let first_page = tables[sequence + 3u];
    let slots_at = step.slot_at + tables[sequence + 4u];
    for (var d = local.x; d < n; d += 64u) { query[d] = mul_(q[row * shape.width + head * n + d], shape.f); }
    var merged: array<f32, PER_THREAD>;
    var state_max = 0.0;
    var state_sum = 0.0;
    workgroupBarrier();
    for (var page = low / 256u; page <= position / 256u; page++) {
        let slot = tables[slots_at + page - first_page] * shape.a;
        let start = max(low, page * 256u) - page * 256u;
        let end = min(position + 1u, page * 256u + 256u) - page * 256u;
        var largest = -3.4028234e38;
        for (var j = local.x; j < 256u; j += 64u) {
            var s = 0.0;
            if (j >= start && j < end) {
                let key = (head / shape.d * 256u + j) / 16u * 16u * n + j % 16u;
                for (var d = 0u; d < n; d++) { s = fma_(query[d], element(slot, key + d * 16u), s); }
                if (shape.g > 0.0) { s = mul_(shape.g, tanh_(mul_(s, shape.h))); }
                largest = max(largest, s);
            }
            p[j] = s;
        }
        reduced[local.x] = largest;
        workgroupBarrier();
        for (var width = 32u; width > 0u; width = width / 2u) {
            if (local.x < width) { reduced[local.x] = max(reduced[local.x], reduced[local.x + width]); }
            workgroupBarrier();
        }
        let new_max = reduced[0];
        for (var j = local.x; j < 256u; j += 64u) {
            if (j >= start && j < end) { p[j] = exp_(sub_(p[j], new_max)); } else { p[j] = 0.0; }
        }
        workgroupBarrier();
        if (local.x < 16u) {
            var sum = 0.0;
            for (var j = local.x; j < 256u; j += 16u) { sum = add_(sum, p[j]); }
            reduced[local.x] = sum;
        }
        workgroupBarrier();
        if (local.x == 0u) {
            for (var width = 8u; width > 0u; width = width / 2u) {
                for (var i = 0u; i < width; i++) { reduced[i] = add_(reduced[i], reduced[i + width]); }
            }
        }
        workgroupBarrier();
        let new_sum = reduced[0];
        let is_first = page == low / 256u;
        let top = select(max(state_max, new_max), new_max, is_first);
        // What was summed up before, and what this page sums up, by how far their largest lie below the largest.
        var factors = vec2<f32>(state_max, new_max);
        for (var i = 0u; i < times(2u); i++) { factors[i] = exp_(sub_(factors[i], top)); }
        let a = factors.x;
        let b = factors.y;
        for (var i = 0u; i < PER_THREAD; i++) {
            let d = local.x + i * 64u;
            if (d < n) {
                var o = 0.0;
                let value = head / shape.d * 256u * shape.c + d;
                for (var j = start; j < end; j++) {
                    o = fma_(p[j], element(slot + shape.b, value + j * shape.c), o);
                }
                if (is_first) { merged[i] = o; } else { merged[i] = fma_(o, b, mul_(merged[i], a)); }
            }
        }
        if (is_first) { state_sum = new_sum; } else { state_sum = fma_(new_sum, b, mul_(state_sum, a)); }
        state_max = top;
        workgroupBarrier();
    }
    let inverse = div_(1.0, state_sum);
    for (var i = 0u; i < PER_THREAD; i++) {
        let d = local.x + i * 64u;
        if (d < n) { to[row * shape.width + head * n + d] = mul_(merged[i], inverse); }
    }
}
