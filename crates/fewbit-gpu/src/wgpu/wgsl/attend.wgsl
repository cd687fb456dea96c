// Attention of one query head over the pages that it sees, page after page in order; see `fewbit_kernels`' attention.rs.

@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read> tables: array<u32>;
@group(0) @binding(4) var<storage, read> pool: array<u32>;
@group(0) @binding(5) var<storage, read_write> to: array<f32>;
#if SINKS
@group(0) @binding(6) var<storage, read> sinks: array<f32>;
#endif

#if BLOCKS
// Codes of four elements, and scales of blocks.
var<workgroup> query: array<u32, QUADS>;
var<workgroup> query_scales: array<f32, BLOCKS_OF_HEAD>;
#else
var<workgroup> query: array<f32, HEAD>;
#endif
var<workgroup> p: array<f32, 256>;
var<workgroup> reduced: array<f32, 64>;

fn half_at(at: u32, i: u32) -> f32 {
    let word = pool[at + i / 2u];
    if ((i & 1u) == 0u) { return half_low(word); }
    return half_high(word);
}

#if BLOCKS
// Quantizes block b of a query.
fn quantize_query(q_at: u32, b: u32) {
    var largest = 0u;
    for (var i = 0u; i < times(32u); i++) {
        largest = max(largest, bitcast<u32>(mul_(q[q_at + b * 32u + i], shape.f)) & 0x7fffffffu);
    }
    var d = 0.0;
    var inverse = 0.0;
    if (largest >= 0x7f800000u) {
        d = step.infinity - step.infinity;
    } else if (largest >= 0x0d800000u) {
        d = div_(bitcast<f32>(largest), 127.0);
        inverse = div_(127.0, bitcast<f32>(largest));
    }
    query_scales[b] = d;
    for (var quad = 0u; quad < times(8u); quad++) {
        var word = 0u;
        for (var i = 0u; i < times(4u); i++) {
            let x = mul_(q[q_at + b * 32u + quad * 4u + i], shape.f);
            var code = 0;
            if (inverse != 0.0) { code = code_(x, inverse); }
            word |= (bitcast<u32>(code) & 0xffu) << (i * 8u);
        }
        query[b * 8u + quad] = word;
    }
}
#else
fn element(at: u32, i: u32) -> f32 {
#if HALF
    return half_at(at, i);
#else
    return bitcast<f32>(pool[at + i]);
#endif
}
#endif

// The product of the query with the key at position j of a page, whose keys begin at `keys`.
fn score(keys: u32, kv_head: u32, j: u32, n: u32) -> f32 {
    var s = 0.0;
#if BLOCKS
    let at = keys + (kv_head * 16u + j / 16u) * (n / 4u * 17u);
    let codes = at + n / 4u + j % 16u;
    for (var b = 0u; b < n / 32u; b++) {
        var sum = 0;
        for (var i = b * 8u; i < b * 8u + times(8u); i++) { sum += dot4I8Packed(pool[codes + i * 16u], query[i]); }
        s = fma_(float_(sum), mul_(half_at(at, b * 16u + j % 16u), query_scales[b]), s);
    }
#else
    let key = (kv_head * 256u + j) / 16u * 16u * n + j % 16u;
    for (var d = 0u; d < n; d++) { s = fma_(query[d], element(keys, key + d * 16u), s); }
#endif
    return s;
}

// Element d of the sum of the values at positions `start .. end` of a page, by their weights.
fn weighted(values: u32, kv_head: u32, start: u32, end: u32, d: u32, n: u32) -> f32 {
    var o = 0.0;
#if BLOCKS
    let of_head = values + kv_head * n * 68u;
    for (var j = start; j < end; j++) {
        let code = i32(pool[of_head + (j * n + d) / 4u] << (24u - d % 4u * 8u)) >> 24u;
        let scale = half_at(of_head + n * 64u, d / 32u * 256u + j);
        o = fma_(mul_(p[j], scale), f32(code), o);
    }
#else
    let value = kv_head * 256u * shape.c + d;
    for (var j = start; j < end; j++) { o = fma_(p[j], element(values, value + j * shape.c), o); }
#endif
    return o;
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
#if CHUNKED
    low = position / shape.e * shape.e;
#else
    if (shape.e > 0u && position + 1u > shape.e) { low = position + 1u - shape.e; }
#endif
    let first_page = tables[sequence + 3u];
    let slots_at = step.slot_at + tables[sequence + 4u];
    let q_at = row * shape.width + head * n;
#if BLOCKS
    for (var b = local.x; b < n / 32u; b += 64u) { quantize_query(q_at, b); }
#else
    for (var d = local.x; d < n; d += 64u) { query[d] = mul_(q[q_at + d], shape.f); }
#endif
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
                s = score(slot, head / shape.d, j, n);
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
                let o = weighted(slot + shape.b, head / shape.d, start, end, d, n);
                if (is_first) { merged[i] = o; } else { merged[i] = fma_(o, b, mul_(merged[i], a)); }
            }
        }
        if (is_first) { state_sum = new_sum; } else { state_sum = fma_(new_sum, b, mul_(state_sum, a)); }
        state_max = top;
        workgroupBarrier();
    }
#if SINKS
    // A score that takes its part of the sum.
    let sink = sinks[head];
    let top = at_least(state_max, sink);
    var factors = vec2<f32>(state_max, sink);
    for (var i = 0u; i < times(2u); i++) { factors[i] = exp_(sub_(factors[i], top)); }
    let inverse = div_(factors.x, add_(mul_(state_sum, factors.x), factors.y));
#else
    let inverse = div_(1.0, state_sum);
#endif
    for (var i = 0u; i < PER_THREAD; i++) {
        let d = local.x + i * 64u;
        if (d < n) { to[row * shape.width + head * n + d] = mul_(merged[i], inverse); }
    }
}
