// Rows as signed bytes under one scale for each BLOCK columns, with their sums; of two planes the second is what the
// first lost. A group of threads takes 256 columns, four for each thread.

@group(0) @binding(2) var<storage, read> source: array<f32>;
@group(0) @binding(3) var<storage, read_write> codes: array<u32>;
@group(0) @binding(4) var<storage, read_write> scales: array<f32>;
@group(0) @binding(5) var<storage, read_write> sums: array<i32>;

var<workgroup> largest: array<u32, 64>;
var<workgroup> totals: array<i32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let n = shape.width;
    let n_rows = step.n_tokens * shape.rows_per_token;
    let row = group.y;
    let col = group.x * 256u + local.x * 4u;
    let is_there = col < n;
    var x = vec4<f32>(0.0, 0.0, 0.0, 0.0);
    if (is_there) {
        for (var k = 0u; k < 4u; k++) { x[k] = source[row * n + col + k]; }
    }
    for (var plane = 0u; plane < shape.a; plane++) {
        var high = 0u;
        for (var k = 0u; k < 4u; k++) { high = max(high, bitcast<u32>(x[k]) & 0x7fffffffu); }
        largest[local.x] = high;
        workgroupBarrier();
        // The largest of a block, by halves.
        for (var width = BLOCK / 8u; width > 0u; width = width / 2u) {
            if (local.x % (BLOCK / 4u) < width) {
                largest[local.x] = max(largest[local.x], largest[local.x + width]);
            }
            workgroupBarrier();
        }
        let bits = largest[local.x / (BLOCK / 4u) * (BLOCK / 4u)];
        var d = 0.0;
        var q = vec4<i32>(0, 0, 0, 0);
        if (bits >= 0x7f800000u) {
            d = step.infinity - step.infinity;
        } else if (bits >= 0x0d800000u) {
            let amax = bitcast<f32>(bits);
            let inverse = div_(127.0, amax);
            d = div_(amax, 127.0);
            for (var k = 0u; k < times(4u); k++) { q[k] = code_(x[k], inverse); }
        }
        totals[local.x] = q.x + q.y + q.z + q.w;
        workgroupBarrier();
        let out = plane * n_rows + row;
        if (is_there) {
            let word = vec4<u32>(q) & vec4<u32>(0xffu);
            codes[(out * n + col) / 4u] = word.x | (word.y << 8u) | (word.z << 16u) | (word.w << 24u);
            if (col % BLOCK == 0u) { scales[(out * n + col) / BLOCK] = d; }
            if (col % SUMMED == 0u) {
                var total = 0;
                for (var i = 0u; i < SUMMED / 4u; i++) { total += totals[local.x + i]; }
                sums[(out * n + col) / SUMMED] = total;
            }
        }
        for (var k = 0u; k < times(4u); k++) { x[k] = fma_(-d, float_(q[k]), x[k]); }
        workgroupBarrier();
    }
}
