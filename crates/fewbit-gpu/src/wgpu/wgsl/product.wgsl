// The products of one matrix, or of a tile of its rows, with rows of inputs: a thread for each output row, TOKENS inputs
// at a time. The weights lie in panels of 16 rows (see `fewbit_kernels`' pack.rs), so that neighbouring threads read
// neighbouring words. One chain of fused multiply-adds for each output, over the blocks in order.
//
// For prefill the inputs of a block are fetched once for all threads of a workgroup (TILES): each weight that is read and
// unpacked is then used for 16 tokens.

@group(0) @binding(2) var<storage, read> w: array<u32>;
#if FLOAT
@group(0) @binding(3) var<storage, read> x: array<f32>;
#else
@group(0) @binding(3) var<storage, read> x: array<u32>;
@group(0) @binding(4) var<storage, read> scales: array<f32>;
@group(0) @binding(5) var<storage, read> sums: array<i32>;
#endif
@group(0) @binding(6) var<storage, read_write> to: array<f32>;
#if EXPERTS
// Expert and weight of every route.
@group(0) @binding(7) var<storage, read> routes: array<vec2<u32>>;
#endif

#if LEVELS
fn level(code: u32) -> u32 { return (LEVELS[code >> 2u] >> ((code & 3u) * 8u)) & 0xffu; }

fn levels4(q: u32) -> u32 {
    return level(q & 15u) | (level((q >> 8u) & 15u) << 8u) | (level((q >> 16u) & 15u) << 16u)
        | (level(q >> 24u) << 24u);
}
#else
fn levels4(q: u32) -> u32 { return q; }
#endif

fn half_of(word: u32, i: u32) -> f32 {
    if ((i & 1u) == 0u) { return half_low(word); }
    return half_high(word);
}

#if INTEGERS
fn byte_of(at: u32, i: u32) -> u32 { return (w[at + i / 4u] >> ((i & 3u) * 8u)) & 0xffu; }

SCALES
#endif

#if TILES
// The current 32 columns of TOKENS inputs.
var<workgroup> inputs: array<u32, TILE>;

fn fetch(local: u32, first: u32, last: u32, base: u32, column: u32) {
    workgroupBarrier();
    for (var k = local; k < TILE; k += 64u) {
        let row = base + min(first + k / 8u, last);
        inputs[k] = x[(row * shape.width + column) / 4u + k % 8u];
    }
    workgroupBarrier();
}
#endif

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    // shape: width = columns, part = rows of the tile, a = first of them in the output, b = words of a panel,
    // c = words before the codes, d = planes, e = rows of the output; experts: f's bits = words of an expert.
#if TILES
    // All threads fetch inputs, so those beyond the last row compute it again, and do not write it.
    let out_row = min(group.x * 64u + local.x, (shape.part + 15u) / 16u * 16u - 1u);
    let is_beyond = group.x * 64u + local.x >= shape.part;
#else
    let out_row = group.x * 64u + local.x;
    if (out_row >= (shape.part + 15u) / 16u * 16u) { return; }
    let is_beyond = out_row >= shape.part;
#endif
    let lane = out_row % 16u;
    let n = shape.width;
    let n_rows = step.n_tokens * shape.rows_per_token;
    let first = group.y * TOKENS;
#if EXPERTS
    let base = out_row / 16u * shape.b + routes[first].x * bitcast<u32>(shape.f);
#else
    let base = out_row / 16u * shape.b;
#endif
    var rows: array<u32, TOKENS>;
    var y: array<f32, TOKENS>;
    for (var t = 0u; t < TOKENS; t++) {
#if EXPERTS
        // Rows of the input are tokens, or routes.
        rows[t] = first / bitcast<u32>(shape.g);
#else
        rows[t] = min(first + t, n_rows - 1u);
#endif
        y[t] = 0.0;
    }
#if EXPERTS
    let n_inputs = n_rows / bitcast<u32>(shape.g);
#else
    let n_inputs = n_rows;
#endif
#if FLOAT
    for (var k = 0u; k < n; k++) {
        let v = weight(base, k * 16u + lane);
        for (var t = 0u; t < times(TOKENS); t++) { y[t] = fma_(v, x[rows[t] * n + k], y[t]); }
    }
#else
    for (var plane = 0u; plane < shape.d; plane++) {
        var z: array<f32, TOKENS>;
        for (var t = 0u; t < TOKENS; t++) { z[t] = 0.0; }
        for (var b = 0u; b < n / BLOCK; b++) {
            let meta_at = base + b * META;
            let d = FACTORED(SCALE_OF(w[meta_at + lane / 2u], lane));
#if MINIMUM
            let m = half_of(w[meta_at + 8u + lane / 2u], lane);
#endif
#if BLOCK_256
            var i: array<i32, TOKENS>;
            var minimums: array<i32, TOKENS>;
            for (var t = 0u; t < TOKENS; t++) {
                i[t] = 0;
                minimums[t] = 0;
            }
            for (var g = 0u; g < times(8u); g++) {
#if TILES
                fetch(local.x, first, n_rows - 1u, plane * n_inputs, b * 256u + g * 32u);
#endif
                let at = base + shape.c + (b * 8u + g) * GROUP + lane;
                var q: array<u32, 8>;
                CODES
                let s0 = scale(meta_at + INTEGERS_AT, 2u * g, lane);
                let s1 = scale(meta_at + INTEGERS_AT, 2u * g + 1u, lane);
#if MINIMUM
                let m0 = minimum(meta_at + INTEGERS_AT, 2u * g, lane);
                let m1 = minimum(meta_at + INTEGERS_AT, 2u * g + 1u, lane);
#endif
                for (var t = 0u; t < times(TOKENS); t++) {
                    let row = plane * n_inputs + rows[t];
#if TILES
#else
                    let x_at = (row * n + b * 256u + g * 32u) / 4u;
#endif
                    var low = 0;
                    var high = 0;
                    for (var k = 0u; k < times(4u); k++) {
#if TILES
                        low += dot4I8Packed(q[k], inputs[t * 8u + k]);
                        high += dot4I8Packed(q[k + 4u], inputs[t * 8u + 4u + k]);
#else
                        low += dot4I8Packed(q[k], x[x_at + k]);
                        high += dot4I8Packed(q[k + 4u], x[x_at + 4u + k]);
#endif
                    }
                    let sum_at = (row * n + b * 256u + g * 32u) / 16u;
                    i[t] += s0 * (low - OFFSET * sums[sum_at]) + s1 * (high - OFFSET * sums[sum_at + 1u]);
#if MINIMUM
                    minimums[t] += m0 * sums[sum_at] + m1 * sums[sum_at + 1u];
#endif
                }
            }
            for (var t = 0u; t < times(TOKENS); t++) {
                let dx = scales[((plane * n_inputs + rows[t]) * n) / 256u + b];
                z[t] = fma_(float_(i[t]), mul_(d, dx), z[t]);
#if MINIMUM
                z[t] = fma_(float_(-minimums[t]), mul_(m, dx), z[t]);
#endif
            }
#else
#if TILES
            fetch(local.x, first, n_rows - 1u, plane * n_inputs, b * 32u);
#endif
            let at = base + shape.c + b * GROUP + lane;
            var q: array<u32, 8>;
            CODES
            for (var t = 0u; t < times(TOKENS); t++) {
                let row = plane * n_inputs + rows[t];
                let block_at = (row * n) / 32u + b;
                var i = 0;
#if TILES
                for (var k = 0u; k < times(8u); k++) { i += dot4I8Packed(q[k], inputs[t * 8u + k]); }
#else
                for (var k = 0u; k < times(8u); k++) { i += dot4I8Packed(q[k], x[block_at * 8u + k]); }
#endif
                let sum = sums[block_at];
                let dx = scales[block_at];
                z[t] = fma_(float_(i - OFFSET * sum), mul_(d, dx), z[t]);
#if MINIMUM
                z[t] = fma_(m, mul_(dx, float_(sum)), z[t]);
#endif
            }
#endif
        }
        for (var t = 0u; t < times(TOKENS); t++) {
            if (plane == 0u) { y[t] = z[t]; } else { y[t] = add_(y[t], z[t]); }
        }
    }
#endif
    if (is_beyond) { return; }
    for (var t = 0u; t < times(TOKENS); t++) {
        if (first + t < n_rows) {
            let at = (first + t) * shape.e + shape.a + out_row;
#if ADDS
            to[at] = add_(to[at], y[t]);
#else
            to[at] = y[t];
#endif
        }
    }
}
